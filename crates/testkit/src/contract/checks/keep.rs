//! Checks of what stays of images, and what goes.

use stead_core::error::Code;
use stead_core::ids::Digest;
use stead_core::time::Micros;

use super::super::stage::{Stage, Verdict};
use super::{equal, refused};

/// Two images, here before anything runs.
async fn two(stage: &Stage) -> Result<(Digest, Digest), String> {
    let images = &stage.images;
    Ok((stage.warm(&images.good).await?, stage.warm(&images.second).await?))
}

async fn is_here(stage: &Stage, image: &Digest) -> Result<bool, String> {
    Ok(stage.images().await?.contains(image))
}

pub(super) async fn a_prune_leaves_what_is_needed(stage: &mut Stage) -> Verdict {
    let (needed, other) = two(stage).await?;
    let freed = stage.prune(std::slice::from_ref(&needed)).await?;
    equal("whether it freed anything", &(freed > 0), &true)?;
    equal("images", &stage.images().await?, &vec![needed])?;
    equal("whether the other is here", &is_here(stage, &other).await?, &false)?;
    stage.prune(&[]).await?;
    equal("images, once it is released", &stage.images().await?, &vec![])
}

pub(super) async fn a_prune_leaves_what_runs(stage: &mut Stage) -> Verdict {
    let (runs, _) = two(stage).await?;
    let releases = [(1, stage.release(&stage.images.good, |_| {}).await?)];
    let fleet = stage.fleet(1, 1, (1, 1), &releases);
    let before = stage.settle(&fleet).await?;
    stage.prune(&[]).await?;
    equal("images", &stage.images().await?, &vec![runs])?;
    let instances = before.instances;
    stage.quiet("what runs", |seen| seen.instances == instances).await
}

pub(super) async fn a_prune_of_what_is_old_leaves_the_rest(stage: &mut Stage) -> Verdict {
    let (image, _) = two(stage).await?;
    let freed = stage.engine().prune(&[], Micros::from_secs(3600)).await;
    equal("freed", &freed.map_err(|error| format!("prune fails: {error}"))?, &0)?;
    equal("whether it is here", &is_here(stage, &image).await?, &true)
}

pub(super) async fn a_needed_image_is_removed_once_it_is_released(stage: &mut Stage) -> Verdict {
    let (image, other) = two(stage).await?;
    stage.keep(&[image.clone(), other.clone()]).await?;
    let answer = stage.engine().remove_image(&image).await;
    refused("removing what is needed", answer, Code::Conflict)?;
    equal("whether it is here", &is_here(stage, &image).await?, &true)?;
    stage.keep(std::slice::from_ref(&other)).await?;
    let freed = stage.engine().remove_image(&image).await;
    let freed = freed.map_err(|error| format!("removing what was released fails: {error}"))?;
    equal("whether it freed anything", &(freed > 0), &true)?;
    equal("images", &stage.images().await?, &vec![other])?;
    refused("removing it again", stage.engine().remove_image(&image).await, Code::NotFound)?;
    Ok(())
}

pub(super) async fn an_image_may_be_needed_before_it_comes(stage: &mut Stage) -> Verdict {
    let image = stage.resolve(&stage.images.good).await?;
    stage.keep(std::slice::from_ref(&image)).await?;
    stage.warm(&stage.images.good).await?;
    refused("removing what is needed", stage.engine().remove_image(&image).await, Code::Conflict)?;
    equal("whether it is here", &is_here(stage, &image).await?, &true)
}

pub(super) async fn an_image_that_a_fleet_may_go_back_to_is_not_removed(
    stage: &mut Stage,
) -> Verdict {
    let (_, back) = two(stage).await?;
    let releases = [
        (1, stage.release(&stage.images.second, |_| {}).await?),
        (2, stage.release(&stage.images.good, |_| {}).await?),
    ];
    stage.settle(&stage.fleet(1, 1, (2, 1), &releases)).await?;
    // A Fleet needs its images without being told of.
    stage.keep(&[]).await?;
    refused("removing it", stage.engine().remove_image(&back).await, Code::Conflict)?;
    equal("whether it is here", &is_here(stage, &back).await?, &true)
}
