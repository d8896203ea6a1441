//! Images on the machine.

use std::collections::BTreeSet;
use std::path::Path as FsPath;

use axum::Json;
use axum::body::Body as Stream;
use axum::extract::State;
use futures_util::StreamExt;
use serde::Deserialize;
use stead_core::api::{ProblemJson, Pruned, PullRequest, Pulled};
use stead_core::app::App;
use stead_core::engine::ImageInfo;
use stead_core::error::{Code, UserError};
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
        tempfile::NamedTempFile::with_prefix_in("import-", &api.temp_dir).map_err(no_room)?;
    receive(body, file.path()).await?;
    Ok(Json(api.engine.import(file.path().to_owned(), query.name).await?))
}

async fn receive(body: Stream, path: &FsPath) -> Result<(), Problem> {
    let mut file = tokio::fs::OpenOptions::new().write(true).open(path).await.map_err(no_room)?;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            UserError::new(
                Code::BadRequest,
                format!("the archive broke off: {error}"),
                "send it again",
            )
        })?;
        file.write_all(&chunk).await.map_err(no_room)?;
    }
    file.flush().await.map_err(no_room)?;
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

/// Removes images that no App uses or may go back to.
#[utoipa::path(post, path = "/api/v1/images/prune", tag = "images",
    responses((status = 200, body = Pruned), (status = "default", body = ProblemJson)))]
pub(super) async fn prune(State(api): Handle) -> Result<Json<Pruned>, Problem> {
    let listing = api.store.list::<App>("")?;
    if let Some(damaged) = listing.damaged.first() {
        // What a damaged App needs is not known: nothing is taken away.
        return Err(UserError::new(
            Code::StateCorrupt,
            damaged.to_string(),
            "repair or delete that app first; `stead doctor` lists damaged records",
        )
        .into());
    }
    let mut keep = BTreeSet::new();
    for stored in listing.found {
        for number in stored.value.releases_needed() {
            if let Some(release) = api.release(&stored.value.key, number)? {
                keep.insert(release.image);
                keep.extend(release.sidecars.into_values());
            }
        }
    }
    let keep: Vec<_> = keep.into_iter().collect();
    Ok(Json(Pruned { freed: api.engine.prune(&keep).await? }))
}
