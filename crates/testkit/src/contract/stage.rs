//! One check's surroundings: its App, its Fleet, and waiting on what is seen.

use std::sync::Arc;
use std::time::Duration;

use stead_core::engine::{Engine, EngineError};
use stead_core::fleet::{ContainerSeen, ContainerState, Fleet, FleetSeen, ReleaseSpec};
use stead_core::ids::{Generation, Ordinal};
use stead_core::invariants::check_world;
use stead_core::manifest::Manifest;
use stead_core::name::AppKey;
use tokio::time::Instant;

use super::{Images, Subject, Witness};
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
        let mut settings = settings(&self.app, image);
        self.subject.fit(&mut settings);
        change(&mut settings);
        let digest = self.engine().resolve(image).await;
        let digest = digest.map_err(|error| format!("{image} does not resolve: {error}"))?;
        Ok(release_of(settings, digest))
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
