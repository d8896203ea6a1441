//! The Fleet: what an engine shall hold for one App, what it holds, and the pure planner
//! between the two.
//!
//! [`plan()`] is the only place that decides whether an Instance is upgraded in place,
//! recreated, restarted or left alone. Engines carry its steps out and observe again.

mod budget;
mod part;
mod plan;
mod seen;
mod step;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use part::{Part, Slot};
pub use plan::{RESTART_BACKOFF_CAP, backoff, plan};
pub use seen::{
    ContainerSeen, ContainerState, Exit, FleetSeen, Health, ImageSeen, InstanceSeen, SandboxSeen,
    TrafficState, Trouble,
};
pub use step::{Plan, Step, StopCause};

use crate::ids::{Digest, Generation, Ordinal, ReleaseNo};
use crate::manifest::{Manifest, RestartPolicy, Strategy};
use crate::name::AppKey;
use crate::time::Micros;

/// What a Container was started for: a Release, and which run of it. A restart wants the
/// same Release with a higher run, so that the planner needs no second code path.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
pub struct Revision {
    /// The Release.
    pub release: ReleaseNo,
    /// Rises with every change of the App; distinguishes restarts of one Release.
    pub run: u32,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.release, self.run)
    }
}

/// What a Release asks of an engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseSpec {
    /// The image, by digest.
    pub image: Digest,
    /// The reference it was resolved from, for pulling.
    pub reference: String,
    /// Everything else.
    pub settings: Arc<Manifest>,
}

impl ReleaseSpec {
    /// How long a started Container may take until it is ready.
    pub fn startup_timeout(&self) -> Micros {
        Micros::from_millis(self.settings.health.startup_timeout().millis())
    }

    /// How long open requests may go on, and how long the process may take to end after its
    /// stop signal.
    pub fn grace(&self) -> Micros {
        Micros::from_millis(self.settings.lifecycle.grace.millis())
    }

    /// Whether a Container that ended by itself with `exit` is started again.
    pub fn runs_again_after(&self, exit: Exit) -> bool {
        match self.settings.restart {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit.code != 0,
            RestartPolicy::Never => false,
        }
    }

    /// What a Sandbox is built from and cannot change in place. Two Releases of different
    /// shape do not fit into one Sandbox.
    pub fn shape(&self) -> String {
        let parts = (&self.settings.volumes, &self.settings.isolation);
        serde_json::to_string(&parts).expect("settings are plain data")
    }
}

/// The wanted Instances of one App. An engine that was given a newer generation refuses an
/// older one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    /// The App.
    pub app: AppKey,
    /// Of the App's intent this follows from.
    pub generation: Generation,
    /// Wanted Instances: the ordinals `0..instances`.
    pub instances: u32,
    /// What each Instance shall run. `None` before anything was released.
    pub target: Option<Revision>,
    /// Single Instances that shall run again, by the run wanted. Ignored once the target's
    /// run is higher.
    pub reruns: BTreeMap<Ordinal, u32>,
    /// Every Release that is wanted, running or to be fetched beforehand.
    pub releases: BTreeMap<ReleaseNo, ReleaseSpec>,
}

impl Fleet {
    /// What the Instance at `ordinal` shall run; `None` when there shall be no such Instance.
    pub fn wanted(&self, ordinal: Ordinal) -> Option<Revision> {
        let target = self.target.filter(|_| ordinal.0 < self.instances)?;
        let rerun = self.reruns.get(&ordinal).copied().unwrap_or(0);
        Some(Revision { run: target.run.max(rerun), ..target })
    }

    /// The wanted Release's strategy.
    pub fn strategy(&self) -> Strategy {
        self.target_spec().map_or(Strategy::InPlace, |spec| spec.settings.rollout.strategy())
    }

    /// What the target Release asks for.
    pub fn target_spec(&self) -> Option<&ReleaseSpec> {
        self.releases.get(&self.target?.release)
    }

    /// How many Instances may be out of service at once because of our decisions.
    ///
    /// An upgrade in place takes each Instance out for a moment, so zero means one at a time.
    pub fn may_be_out(&self) -> u32 {
        let allowed = self
            .target_spec()
            .map_or(0, |spec| spec.settings.rollout.max_unavailable.of(self.instances));
        allowed.max(1)
    }

    /// The number of Instances in service below which no decision of ours may lead.
    pub fn floor(&self) -> u32 {
        self.instances.saturating_sub(self.may_be_out())
    }
}
