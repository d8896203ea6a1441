//! Checks of images on their way out.

use futures_util::TryStreamExt;
use stead_core::api::package::ArchiveFormat;
use stead_core::engine::Engine;
use stead_core::error::Code;
use stead_core::ids::Digest;

use super::super::archive::{Content, layer};
use super::super::parcel::{Parcel, digest_of, request};
use super::super::stage::{Stage, Verdict};
use super::{equal, refused};

/// An image as the archive of it that the engine gives out.
async fn exported(
    engine: &dyn Engine,
    image: &Digest,
    format: ArchiveFormat,
) -> Result<Vec<u8>, String> {
    let stream = engine.export(image, format).await;
    let stream = stream.map_err(|error| format!("export fails: {error}"))?;
    let bytes = stream.try_fold(Vec::new(), |mut all, piece| async move {
        all.extend_from_slice(&piece);
        Ok(all)
    });
    bytes.await.map_err(|error| format!("an export broke off: {error}"))
}

async fn content(stage: &Stage, image: &Digest) -> Result<Content, String> {
    Content::of(&exported(&*stage.engine(), image, ArchiveFormat::Oci).await?)
}

pub(super) async fn what_is_exported_comes_back_the_same(stage: &mut Stage) -> Verdict {
    // The upper layer changes a file of the lower one, and hides another.
    let lower = Parcel::new(&[("/app/run", "one"), ("/app/old", "gone"), ("/app/lib/a", "a")]);
    let upper = Parcel::new(&[("/app/run", "two"), ("/app/.wh.old", "")]);
    let image = stage.composed(&[&lower, &upper]).await?;
    let before = content(stage, &image.digest).await?;
    equal("layers", &before.layers, &vec![layer(&lower.tar)?, layer(&upper.tar)?])?;
    let asked = request(Vec::new());
    equal("program", &before.run["Entrypoint"], &asked.config.entrypoint.into())?;
    equal("environment", &before.run["Env"], &vec!["GREETING=hello"].into())?;
    equal("folder", &before.run["WorkingDir"], &"/app".into())?;
    let nothing = stage.engine().export(&digest_of(b"no image"), ArchiveFormat::Oci).await;
    refused("an image that is not here", nothing.map(drop), Code::NotFound)?;
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let archive = exported(&*stage.engine(), &image.digest, format).await?;
        let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
        std::fs::write(file.path(), archive).map_err(|error| error.to_string())?;
        let back = stage.engine().import(file.path().to_owned(), None).await;
        let back = back.map_err(|error| format!("import of {format:?} fails: {error}"))?;
        equal("names", &back.names, &image.names)?;
        equal(&format!("{format:?}"), &content(stage, &back.digest).await?, &before)?;
    }
    Ok(())
}

/// Who can is not asked to refuse.
pub(super) async fn export_is_refused_by_who_cannot_do_it(stage: &mut Stage) -> Verdict {
    let engine = stage.engine();
    if engine.capabilities().export {
        return Ok(());
    }
    let image = stage.warm(&stage.images.good).await?;
    let answer = engine.export(&image, ArchiveFormat::Oci).await.map(drop);
    refused("an export", answer, Code::NotBuilt).map(drop)
}
