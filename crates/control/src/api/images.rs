//! Images on the machine.

use std::path::Path as FsPath;

use axum::Json;
use axum::body::Body as Stream;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::header;
use serde::Deserialize;
use stead_core::api::package::{ArchiveFormat, ComposeRequest, Composed};
use stead_core::api::{ProblemJson, PruneRequest, Pruned, PullRequest, Pulled};
use stead_core::engine::{ImageInfo, PullSeen};
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;
use stead_core::time::Micros;
use tokio::io::AsyncWriteExt;
use utoipa::IntoParams;

use super::Handle;
use super::problem::Problem;
use super::request::{Body, Params};

/// Images on the machine.
#[utoipa::path(get, path = "/api/v1/images", tag = "images",
    responses((status = 200, body = Vec<ImageInfo>), (status = "default", body = ProblemJson)))]
pub(super) async fn list(State(api): Handle) -> Result<Json<Vec<ImageInfo>>, Problem> {
    Ok(Json(api.engine.images().await?))
}

/// Fetches an image; answers when it is here.
#[utoipa::path(post, path = "/api/v1/images/pull", tag = "images", request_body = PullRequest,
    responses((status = 200, body = Pulled), (status = "default", body = ProblemJson)))]
pub(super) async fn pull(
    State(api): Handle,
    Body(request): Body<PullRequest>,
) -> Result<Json<Pulled>, Problem> {
    let digest = api.engine.resolve(&request.reference).await?;
    api.engine.warm(&request.reference, &digest).await?;
    Ok(Json(Pulled { digest }))
}

/// Images on their way here.
#[utoipa::path(get, path = "/api/v1/images/pulls", tag = "images",
    responses((status = 200, body = Vec<PullSeen>), (status = "default", body = ProblemJson)))]
pub(super) async fn pulls(State(api): Handle) -> Json<Vec<PullSeen>> {
    Json(api.engine.pulls())
}

/// How the names of archives on their way in begin.
const UNFINISHED: &str = "import-";

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ImportQuery {
    /// The reference it shall be known by; the archive's own if it has one.
    name: Option<String>,
}

/// Takes an image in: an OCI archive or the output of `docker save`, as the body.
#[utoipa::path(post, path = "/api/v1/images/import", tag = "images", params(ImportQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = ImageInfo), (status = "default", body = ProblemJson)))]
pub(super) async fn import(
    State(api): Handle,
    Params(query): Params<ImportQuery>,
    body: Stream,
) -> Result<Json<ImageInfo>, Problem> {
    // Removed when this returns, however it does.
    let file =
        tempfile::NamedTempFile::with_prefix_in(UNFINISHED, &api.temp_dir).map_err(no_room)?;
    receive(body, file.path()).await?;
    Ok(Json(api.engine.import(file.path().to_owned(), query.name).await?))
}

/// What is left free on the disk for those who run, in bytes; on a small disk a share of it.
/// Half of what the image store leaves: it may have filled the disk up to there.
const RESERVE: u64 = 32 << 20;
const RESERVE_SHARE: u64 = 32;
/// Bytes between two looks at how much is free.
const LOOK: u64 = 8 << 20;

async fn receive(body: Stream, path: &FsPath) -> Result<(), Problem> {
    let mut file = tokio::fs::OpenOptions::new().write(true).open(path).await.map_err(no_room)?;
    let mut chunks = body.into_data_stream();
    let mut unseen = LOOK;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            UserError::new(
                Code::BadRequest,
                format!("the archive broke off: {error}"),
                "send it again",
            )
        })?;
        if unseen >= LOOK {
            has_room(path).map_err(no_room)?;
            unseen = 0;
        }
        unseen += chunk.len() as u64;
        file.write_all(&chunk).await.map_err(no_room)?;
    }
    file.flush().await.map_err(no_room)?;
    Ok(())
}

/// Whether the disk takes more until the next look.
fn has_room(path: &FsPath) -> std::io::Result<()> {
    let disk = rustix::fs::statvfs(path)?;
    let (free, size) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
    match free < LOOK + RESERVE.min(size / RESERVE_SHARE) {
        true => Err(std::io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    }
}

/// Removes archives that an earlier process was killed over.
pub(crate) fn remove_unfinished(temp_dir: &FsPath) -> std::io::Result<()> {
    for entry in std::fs::read_dir(temp_dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn no_room(error: std::io::Error) -> Problem {
    UserError::new(
        Code::DiskFull,
        format!("the archive cannot be kept: {error}"),
        "make room under the data directory",
    )
    .into()
}

/// Makes an image of uploaded layers, or says which are missing.
#[utoipa::path(post, path = "/api/v1/images/compose", tag = "images",
    request_body = ComposeRequest,
    responses((status = 200, body = Composed), (status = "default", body = ProblemJson)))]
pub(super) async fn compose(
    State(api): Handle,
    Body(request): Body<ComposeRequest>,
) -> Result<Json<Composed>, Problem> {
    let base = match &request.base {
        Some(name) if request.dry_run => api.base_here(name).await?,
        Some(name) => Some(api.base(name).await?),
        None => None,
    };
    Ok(Json(api.engine.compose(&request, base.as_ref()).await?))
}

/// Removes images that no App uses or may go back to.
#[utoipa::path(post, path = "/api/v1/images/prune", tag = "images", request_body = PruneRequest,
    responses((status = 200, body = Pruned), (status = "default", body = ProblemJson)))]
pub(super) async fn prune(
    State(api): Handle,
    Body(request): Body<PruneRequest>,
) -> Result<Json<Pruned>, Problem> {
    let unused_for =
        request.older_than.map_or(Micros(0), |span| Micros::from_millis(span.millis()));
    let needed = api.images_needed()?;
    Ok(Json(Pruned { freed: api.engine.prune(&needed, unused_for).await? }))
}

/// Removes one image, with all its names, unless an App uses it or may go back to it.
#[utoipa::path(delete, path = "/api/v1/images/{digest}", tag = "images",
    params(("digest" = String, Path)),
    responses((status = 200, body = Pruned), (status = "default", body = ProblemJson)))]
pub(super) async fn remove(
    State(api): Handle,
    Path(digest): Path<String>,
) -> Result<Json<Pruned>, Problem> {
    let digest = parse_digest(&digest)?;
    let needed = api.images_needed()?;
    if needed.contains(&digest) {
        return Err(UserError::new(
            Code::Conflict,
            format!("image {digest} is needed by an app, or is a base"),
            "`stead releases APP` shows what an app may go back to; delete the app, or the base",
        )
        .into());
    }
    // What was needed a moment ago is let go of.
    api.engine.keep(&needed).await?;
    Ok(Json(Pruned { freed: api.engine.remove_image(&digest).await? }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ArchiveQuery {
    /// `oci` or `docker`.
    #[serde(default)]
    #[param(inline)]
    format: ArchiveFormat,
}

/// An image as a tar archive: an OCI layout, or what `docker save` writes.
#[utoipa::path(get, path = "/api/v1/images/{digest}/archive", tag = "images",
    params(("digest" = String, Path), ArchiveQuery),
    responses((status = 200, body = Vec<u8>, content_type = "application/x-tar"),
        (status = "default", body = ProblemJson)))]
pub(super) async fn archive(
    State(api): Handle,
    Path(digest): Path<String>,
    Params(query): Params<ArchiveQuery>,
) -> Result<Response, Problem> {
    let bytes = api.engine.export(&parse_digest(&digest)?, query.format).await?;
    let kind = [(header::CONTENT_TYPE, "application/x-tar")];
    Ok((kind, Stream::from_stream(bytes)).into_response())
}

/// A digest in a path.
pub(super) fn parse_digest(text: &str) -> Result<Digest, Problem> {
    text.parse().map_err(|error: stead_core::ids::BadDigest| {
        UserError::new(Code::BadRequest, error.to_string(), "`stead image ls` shows digests").into()
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    use futures_util::stream;

    use super::*;

    /// A small disk, gone when dropped.
    struct Mounted(PathBuf);

    impl Mounted {
        fn new(path: &FsPath) -> Self {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", "size=64m", "stead-test"]).arg(path);
            assert!(mount.status().unwrap().success());
            Self(path.to_owned())
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }

    #[tokio::test]
    async fn an_archive_does_not_fill_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let _disk = Mounted::new(dir.path());
        let path = dir.path().join("archive");
        std::fs::write(&path, "").unwrap();
        let piece = axum::body::Bytes::from(vec![7; 1 << 20]);
        let pieces = stream::iter(vec![piece; 60]).chain(stream::pending());
        let received = receive(Stream::from_stream(pieces.map(std::io::Result::Ok)), &path);
        let refused = tokio::time::timeout(Duration::from_secs(20), received).await;
        let problem = refused.expect("it is refused before the disk is full").unwrap_err();
        assert_eq!(problem.into_response().status(), http::StatusCode::INSUFFICIENT_STORAGE);
        assert!(std::fs::metadata(&path).unwrap().len() > 32 << 20, "what fits is taken");
    }
}
