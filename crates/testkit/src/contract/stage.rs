//! One check's surroundings: its App, its Fleet, and waiting on what is seen.

use std::sync::Arc;
use std::time::Duration;

use stead_core::api::package::{ComposeRequest, Composed, UploadView};
use stead_core::engine::{Engine, EngineError, ImageInfo};
use stead_core::fleet::{ContainerSeen, ContainerState, Fleet, FleetSeen, ReleaseSpec};
use stead_core::ids::{Digest, Generation, Ordinal};
use stead_core::invariants::check_world;
use stead_core::manifest::Manifest;
use stead_core::name::AppKey;
use stead_core::time::Micros;
use tokio::time::Instant;

use super::parcel::{Parcel, part, pieces, request};
use super::{Images, Registries, Subject, Witness};
use crate::sim::{app_key, fleet, release_of, settings};

/// Longest wait for anything.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long nothing must happen before a check believes that nothing does.
const QUIET: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(2);

/// Why a check failed.
pub(super) type Verdict = Result<(), String>;

pub(super) struct Stage {
    subject: Box<dyn Subject>,
    pub(super) witness: Arc<Witness>,
    pub(super) app: AppKey,
    pub(super) images: Images,
    /// The first rule that was seen broken at any look.
    broken: Option<String>,
}

impl Stage {
    pub(super) fn new(subject: Box<dyn Subject>, witness: Arc<Witness>, check: &str) -> Self {
        // Names are short: the first letters of the words do.
        let initials: String = check.split('_').filter_map(|word| word.chars().next()).collect();
        let images = subject.images();
        Self { subject, witness, app: app_key(&format!("c-{initials}")), images, broken: None }
    }

    pub(super) fn engine(&self) -> Arc<dyn Engine> {
        self.subject.engine()
    }

    pub(super) async fn restart_engine(&mut self) {
        self.subject.restart().await;
    }

    pub(super) async fn end(self) {
        self.subject.end().await;
    }

    /// A Release of `image`, its settings changed by `change`.
    pub(super) async fn release(
        &self,
        image: &str,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<ReleaseSpec, String> {
        Ok(self.release_of(image, self.resolve(image).await?, change))
    }

    /// A Release of an image that is known by its digest.
    pub(super) fn release_of(
        &self,
        reference: &str,
        image: Digest,
        change: impl FnOnce(&mut Manifest),
    ) -> ReleaseSpec {
        let mut settings = settings(&self.app, reference);
        self.subject.fit(&mut settings);
        change(&mut settings);
        release_of(settings, image)
    }

    /// The digest that a reference names.
    pub(super) async fn resolve(&self, image: &str) -> Result<Digest, String> {
        let digest = self.engine().resolve(image).await;
        digest.map_err(|error| format!("{image} does not resolve: {error}"))
    }

    /// Registries to test with.
    pub(super) fn registries(&self) -> Registries {
        self.subject.registries()
    }

    /// Fetches an image.
    pub(super) async fn warm(&self, image: &str) -> Result<Digest, String> {
        let digest = self.resolve(image).await?;
        let warmed = self.engine().warm(image, &digest).await;
        warmed.map_err(|error| format!("{image} is not fetched: {error}"))?;
        Ok(digest)
    }

    /// Images that are here, in order of their digests.
    pub(super) async fn images(&self) -> Result<Vec<Digest>, String> {
        let images = self.engine().images().await;
        let images = images.map_err(|error| format!("images fails: {error}"))?;
        let mut images: Vec<Digest> = images.into_iter().map(|image| image.digest).collect();
        images.sort();
        Ok(images)
    }

    /// Removes all images but these, and gives the bytes freed.
    pub(super) async fn prune(&self, keep: &[Digest]) -> Result<u64, String> {
        let freed = self.engine().prune(keep, Micros(0)).await;
        freed.map_err(|error| format!("prune fails: {error}"))
    }

    /// Says which images are needed.
    pub(super) async fn keep(&self, needed: &[Digest]) -> Verdict {
        self.engine().keep(needed).await.map_err(|error| format!("keep fails: {error}"))
    }

    /// How much of an upload is here.
    pub(super) async fn uploaded(&self, whole: &[u8]) -> Result<UploadView, String> {
        let view = self.engine().uploaded(&part(whole, 0).digest).await;
        view.map_err(|error| format!("uploaded fails: {error}"))
    }

    /// Looks until so much of an upload is here.
    pub(super) async fn until_uploaded(&self, whole: &[u8], bytes: u64) -> Verdict {
        let deadline = Instant::now() + DEADLINE;
        while self.uploaded(whole).await?.offset < bytes {
            if Instant::now() >= deadline {
                return Err(format!("{bytes} bytes of an upload never arrived"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Sends more of an upload.
    pub(super) async fn send(
        &self,
        whole: &[u8],
        offset: usize,
        bytes: &[u8],
    ) -> Result<UploadView, String> {
        let view = self.engine().upload(part(whole, offset), pieces(bytes)).await;
        view.map_err(|error| format!("an upload at {offset} fails: {error}"))
    }

    /// The image that a request makes of what is here.
    pub(super) async fn compose(
        &self,
        request: &ComposeRequest,
        base: Option<&Digest>,
    ) -> Result<ImageInfo, String> {
        match self.engine().compose(request, base).await {
            Ok(Composed::Image(image)) => Ok(image),
            other => Err(format!("all layers are here, and compose answers {other:?}")),
        }
    }

    /// Sends layers and composes them.
    pub(super) async fn composed(&self, layers: &[&Parcel]) -> Result<ImageInfo, String> {
        for layer in layers {
            self.send(&layer.sent, 0, &layer.sent).await?;
        }
        self.compose(&request(layers.iter().map(|l| l.uploaded()).collect()), None).await
    }

    /// A Fleet of this check's App.
    pub(super) fn fleet(
        &self,
        generation: u64,
        instances: u32,
        target: (u32, u32),
        releases: &[(u32, ReleaseSpec)],
    ) -> Fleet {
        fleet(&self.app, generation, instances, target, releases)
    }

    /// Hands a Fleet to the engine.
    pub(super) async fn apply(&self, fleet: &Fleet) -> Verdict {
        self.try_apply(fleet).await.map_err(|error| format!("apply fails: {error}"))
    }

    pub(super) async fn try_apply(&self, fleet: &Fleet) -> Result<(), EngineError> {
        self.engine().apply(fleet.clone()).await
    }

    /// Looks once, and at the invariants while at it.
    pub(super) async fn look(&mut self) -> Result<FleetSeen, String> {
        // What was open before the look and is stopped in it was stopped while open.
        let open = self.witness.open();
        let seen = self.engine().observe(&self.app).await;
        let seen = seen.map_err(|error| format!("observe fails: {error}"))?;
        if let Some(violation) = check_world(&seen).first() {
            self.broken.get_or_insert_with(|| violation.to_string());
        }
        let still_open = self.witness.open();
        let stopped = |c: &&ContainerSeen| match c.state {
            ContainerState::Stopping { .. } => true,
            ContainerState::Exited(exit) => exit.intended,
            _ => false,
        };
        let mut containers = seen.instances.values().flat_map(|i| &i.containers).filter(stopped);
        if let Some(c) = containers.find(|c| open.contains(&c.id) && still_open.contains(&c.id)) {
            let why = format!("{} was stopped while requests may have been open", c.id);
            self.broken.get_or_insert(why);
        }
        Ok(seen)
    }

    /// Looks until `good` holds.
    pub(super) async fn until(
        &mut self,
        what: &str,
        good: impl Fn(&FleetSeen) -> bool,
    ) -> Result<FleetSeen, String> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let seen = self.look().await?;
            if good(&seen) {
                return Ok(seen);
            }
            if Instant::now() >= deadline {
                return Err(format!("never came about: {what}; seen {seen:?}"));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks until the engine has reached the Fleet, and only that.
    pub(super) async fn reach(&mut self, fleet: &Fleet) -> Result<FleetSeen, String> {
        let what = format!("{} instances of {:?}", fleet.instances, fleet.lineup);
        self.until(&what, |seen| reached(fleet, seen)).await
    }

    /// Applies and reaches a Fleet.
    pub(super) async fn settle(&mut self, fleet: &Fleet) -> Result<FleetSeen, String> {
        self.apply(fleet).await?;
        self.reach(fleet).await
    }

    /// For a while, nothing but what `same` permits may change.
    pub(super) async fn quiet(&mut self, what: &str, same: impl Fn(&FleetSeen) -> bool) -> Verdict {
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            let seen = self.look().await?;
            if !same(&seen) {
                return Err(format!("did not stay: {what}; seen {seen:?}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// What all checks watch for beside their own matter.
    pub(super) fn verdict(&self) -> Verdict {
        if let Some(why) = &self.broken {
            return Err(why.clone());
        }
        match self.witness.ended_while_open() {
            Some(id) => Err(format!("{id} ended before its drain had")),
            None => Ok(()),
        }
    }
}

/// Whether every wanted Instance serves its revision and there is no other.
fn reached(fleet: &Fleet, seen: &FleetSeen) -> bool {
    let serves = |n: u32| {
        let ordinal = Ordinal(n);
        let serving = seen.instances.get(&ordinal).and_then(|i| i.serving());
        serving.map(|c| c.revision) == fleet.wanted(ordinal) && serving.is_some()
    };
    seen.generation >= Generation(fleet.generation.0)
        && (0..fleet.instances).all(serves)
        && seen.instances.len() == fleet.instances as usize
}

/// The serving Container of an Instance.
pub(super) fn serving(seen: &FleetSeen, ordinal: u32) -> Result<&ContainerSeen, String> {
    let instance = seen.instances.get(&Ordinal(ordinal));
    instance.and_then(|i| i.serving()).ok_or_else(|| format!("instance {ordinal} does not serve"))
}

/// Sandbox and address of an Instance.
pub(super) fn sandbox(seen: &FleetSeen, ordinal: u32) -> Result<(String, String), String> {
    let instance = seen.instances.get(&Ordinal(ordinal));
    let sandbox = instance.and_then(|i| i.sandbox.as_ref());
    let sandbox = sandbox.ok_or_else(|| format!("instance {ordinal} has no sandbox"))?;
    Ok((sandbox.id.to_string(), sandbox.ip.to_string()))
}
