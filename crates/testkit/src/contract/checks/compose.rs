//! Checks of composing: images of uploaded layers.

use stead_core::api::package::{ComposeRequest, Composed, PackedConfig};
use stead_core::engine::ImageInfo;
use stead_core::error::Code;
use stead_core::ids::Digest;

use super::super::parcel::{Coding, Parcel, digest_of, request};
use super::super::stage::{Stage, Verdict};
use super::{different, equal, refused};

fn libraries() -> Parcel {
    Parcel::new(&[("/app/lib/a", "a library")])
}

fn program() -> Parcel {
    Parcel::new(&[("/app/run", "a program")])
}

/// Composes what cannot be composed yet: gives what is missing.
async fn missing(stage: &Stage, request: &ComposeRequest) -> Result<Vec<Digest>, String> {
    match stage.engine().compose(request, None).await {
        Ok(Composed::Missing(layers)) => Ok(layers),
        other => Err(format!("layers are missing, and compose answers {other:?}")),
    }
}

pub(super) async fn compose_names_what_is_missing(stage: &mut Stage) -> Verdict {
    let (a, b) = (libraries(), program());
    let nothing = missing(stage, &request(vec![a.packed(), b.packed()])).await?;
    equal("missing at first", &nothing, &vec![a.diff_id(), b.diff_id()])?;
    stage.send(&a.sent, 0, &a.sent).await?;
    let half = missing(stage, &request(vec![a.uploaded(), b.uploaded()])).await?;
    equal("missing once one was sent", &half, &vec![b.diff_id()])?;
    equal("images", &stage.images().await?, &vec![])
}

pub(super) async fn a_layer_of_another_image_needs_no_upload(stage: &mut Stage) -> Verdict {
    let (a, b) = (libraries(), program());
    stage.composed(&[&a, &b]).await?;
    let next = Parcel::new(&[("/app/run", "its next version")]);
    let lacking = missing(stage, &request(vec![a.packed(), next.packed()])).await?;
    equal("missing of the next version", &lacking, &vec![next.diff_id()])?;
    stage.send(&next.sent, 0, &next.sent).await?;
    stage.compose(&request(vec![a.packed(), next.uploaded()]), None).await.map(drop)
}

pub(super) async fn the_same_request_makes_the_same_image(stage: &mut Stage) -> Verdict {
    let (a, b) = (libraries(), program());
    let image = stage.composed(&[&a, &b]).await?;
    let asked = request(vec![a.packed(), b.packed()]);
    equal("whether it has its name", &image.names.contains(&asked.name), &true)?;
    let again = stage.compose(&asked, None).await?;
    equal("the image of the same request", &again.digest, &image.digest)?;
    equal("images", &stage.images().await?, &vec![image.digest.clone()])?;
    let config = PackedConfig { user: "1000".into(), ..asked.config.clone() };
    let other = stage.compose(&ComposeRequest { config, ..asked }, None).await?;
    different("image of another config", &other.digest, &image.digest)
}

pub(super) async fn the_same_request_may_be_made_at_once(stage: &mut Stage) -> Verdict {
    let (a, b) = (libraries(), program());
    for layer in [&a, &b] {
        stage.send(&layer.sent, 0, &layer.sent).await?;
    }
    let asked = request(vec![a.uploaded(), b.uploaded()]);
    let at_once = (0..4).map(|_| stage.compose(&asked, None));
    let images = futures_util::future::try_join_all(at_once).await?;
    let mut digests: Vec<_> = images.into_iter().map(|image| image.digest).collect();
    digests.dedup();
    equal("images", &stage.images().await?, &digests)
}

pub(super) async fn a_dry_run_changes_nothing(stage: &mut Stage) -> Verdict {
    let layer = program();
    let dry = |asked| ComposeRequest { dry_run: true, ..asked };
    let lacking = missing(stage, &dry(request(vec![layer.packed()]))).await?;
    equal("missing before it is sent", &lacking, &vec![layer.diff_id()])?;
    stage.send(&layer.sent, 0, &layer.sent).await?;
    let lacking = missing(stage, &dry(request(vec![layer.uploaded()]))).await?;
    equal("missing once it was sent", &lacking, &vec![])?;
    equal("images of a dry run", &stage.images().await?, &vec![])?;
    let made = stage.compose(&request(vec![layer.uploaded()]), None).await?;
    let other = ComposeRequest {
        name: format!("{}-other", made.names[0]),
        ..request(vec![layer.packed()])
    };
    let seen = stage.compose(&dry(other), None).await?;
    equal("the image of a dry run", &seen.digest, &made.digest)?;
    equal("its names", &seen.names, &made.names)
}

pub(super) async fn a_name_is_of_the_image_that_got_it_last(stage: &mut Stage) -> Verdict {
    let first = stage.composed(&[&libraries()]).await?;
    let second = stage.composed(&[&program()]).await?;
    equal("names of the last", &second.names, &first.names)?;
    let all = stage.engine().images().await.map_err(|error| format!("images fails: {error}"))?;
    let named = all.into_iter().filter(|image| !image.names.is_empty());
    equal("images with a name", &named.map(|i| i.digest).collect(), &vec![second.digest])
}

pub(super) async fn how_a_layer_is_sent_makes_no_difference(stage: &mut Stage) -> Verdict {
    let mut images = Vec::new();
    for coding in [Coding::Zstd, Coding::Gzip, Coding::Plain] {
        let layer = program().coded(coding);
        images.push(stage.composed(&[&layer]).await?.digest);
        // So that the next one has to be made anew.
        stage.prune(&[]).await?;
        equal("images after a prune", &stage.images().await?, &vec![])?;
    }
    images.dedup();
    equal("different images", &images.len(), &1)
}

pub(super) async fn a_layer_that_is_not_what_was_sent_is_refused(stage: &mut Stage) -> Verdict {
    let (named, sent) = (program(), libraries());
    let wrong = Parcel { tar: named.tar, sent: sent.sent };
    stage.send(&wrong.sent, 0, &wrong.sent).await?;
    let asked = request(vec![wrong.uploaded()]);
    refused("another layer", stage.engine().compose(&asked, None).await, Code::ImageCorrupt)?;
    equal("images", &stage.images().await?, &vec![])?;
    // It can be sent again: what was wrong is not used again.
    let lacking = missing(stage, &asked).await?;
    equal("missing then", &lacking, &vec![wrong.diff_id()])
}

pub(super) async fn a_base_makes_another_image(stage: &mut Stage) -> Verdict {
    let (base, layer) = (stage.warm(&stage.images.good).await?, program());
    let alone = stage.composed(&[&layer]).await?;
    let above = stage.compose(&request(vec![layer.packed()]), Some(&base)).await?;
    different("image on a base", &above.digest, &alone.digest)?;
    let again = stage.compose(&request(vec![layer.packed()]), Some(&base)).await?;
    equal("image on the same base", &again.digest, &above.digest)
}

pub(super) async fn a_base_that_is_not_here_is_refused(stage: &mut Stage) -> Verdict {
    let layer = program();
    stage.send(&layer.sent, 0, &layer.sent).await?;
    let asked = request(vec![layer.uploaded()]);
    let answer = stage.engine().compose(&asked, Some(&digest_of(b"no image"))).await;
    refused("a base that is not here", answer, Code::ImageNotFound)?;
    equal("images", &stage.images().await?, &vec![])?;
    stage.compose(&asked, None).await.map(drop)
}

pub(super) async fn a_composed_image_does_without_the_image_of_its_base(
    stage: &mut Stage,
) -> Verdict {
    let (base, image) = composed_to_run(stage).await?;
    let removed = stage.engine().remove_image(&base).await;
    removed.map_err(|error| format!("the base is not removed: {error}"))?;
    equal("images", &stage.images().await?, &vec![image.digest.clone()])?;
    runs(stage, &image).await
}

pub(super) async fn a_composed_image_outlives_the_engine_and_runs(stage: &mut Stage) -> Verdict {
    let (_, image) = composed_to_run(stage).await?;
    stage.restart_engine().await;
    let here = stage.images().await?;
    equal("whether it is still here", &here.contains(&image.digest), &true)?;
    runs(stage, &image).await
}

/// An image that runs as its base does, and that base.
async fn composed_to_run(stage: &Stage) -> Result<(Digest, ImageInfo), String> {
    let (base, layer) = (stage.warm(&stage.images.good).await?, program());
    stage.send(&layer.sent, 0, &layer.sent).await?;
    let config = PackedConfig::default();
    let asked = ComposeRequest { config, ..request(vec![layer.uploaded()]) };
    let image = stage.compose(&asked, Some(&base)).await?;
    Ok((base, image))
}

async fn runs(stage: &mut Stage, image: &ImageInfo) -> Verdict {
    let name = image.names.first().ok_or("it has no name")?;
    let release = stage.release_of(name, image.digest.clone(), |_| {});
    stage.settle(&stage.fleet(1, 1, (1, 1), &[(1, release)])).await.map(drop)
}
