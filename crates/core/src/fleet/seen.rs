//! What an engine observes of one App.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Revision;
use crate::error::UserError;
use crate::ids::{ContainerId, Digest, Generation, Ordinal, SandboxId};
use crate::time::Time;

/// One App as its engine sees it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct FleetSeen {
    /// Generation of the Fleet the engine works towards.
    pub generation: Generation,
    /// Images of the Fleet's Releases. One that is not listed is not on this machine.
    pub images: BTreeMap<Digest, ImageSeen>,
    /// Instances that exist in any form.
    pub instances: BTreeMap<Ordinal, InstanceSeen>,
}

impl FleetSeen {
    /// Whether the Instance takes traffic and answers.
    pub fn serves(&self, ordinal: Ordinal) -> bool {
        self.instances.get(&ordinal).is_some_and(|i| i.serving().is_some())
    }
}

/// An image on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSeen {
    /// Complete and verified.
    Present,
    /// The last attempt to fetch it failed.
    Failed {
        /// Why.
        error: UserError,
        /// When.
        at: Time,
        /// How many attempts have failed in a row.
        count: u32,
    },
}

/// One Instance.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct InstanceSeen {
    /// What holds it. `None` before it is created.
    pub sandbox: Option<SandboxSeen>,
    /// Its Containers, oldest first.
    pub containers: Vec<ContainerSeen>,
    /// What last went wrong with it, until it has been well for a while.
    pub trouble: Option<Trouble>,
    /// How often it was started again after a crash since its Sandbox exists. Restarts a
    /// person asked for do not count.
    pub crashes: u32,
}

impl InstanceSeen {
    /// The Container that takes traffic and is ready.
    pub fn serving(&self) -> Option<&ContainerSeen> {
        self.containers.iter().find(|c| c.serves())
    }
}

/// What holds an Instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxSeen {
    /// Its id.
    pub id: SandboxId,
    /// Its address, kept for its whole life.
    #[schema(value_type = String)]
    pub ip: IpAddr,
    /// [`super::ReleaseSpec::shape`] of the Release it was made for.
    pub shape: String,
    /// What it was made for. The strategy `recreate` wants a new Sandbox for each.
    pub made_for: Revision,
    /// When it was made.
    pub created: Time,
}

/// One Container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ContainerSeen {
    /// Its id.
    pub id: ContainerId,
    /// What it was prepared for.
    pub revision: Revision,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Whether the gateway sends requests to it.
    pub traffic: TrafficState,
}

impl ContainerSeen {
    /// Whether it takes traffic and is ready.
    pub fn serves(&self) -> bool {
        self.traffic == TrafficState::Attached
            && matches!(self.state, ContainerState::Running { health: Health::Ready, .. })
    }

    /// Whether a process of it may exist.
    pub fn alive(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. } | ContainerState::Stopping { .. })
    }
}

/// Where a Container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerState {
    /// Set up to the last step before its program runs.
    Prepared,
    /// Its program runs.
    Running {
        /// Since when.
        since: Time,
        /// What the probes say.
        health: Health,
    },
    /// It was told to stop.
    Stopping {
        /// When.
        since: Time,
    },
    /// It ended.
    Exited(Exit),
}

/// What the probes say of a running Container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It has not been ready yet.
    Starting,
    /// It answers.
    Ready,
    /// It was ready, and its readiness probe fails now.
    Unready,
    /// Its liveness probe gave up on it.
    Dead,
}

/// Whether the gateway sends requests to a Container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TrafficState {
    /// Every gateway has acknowledged that it sends none, and none is open.
    Detached,
    /// It may get requests.
    Attached,
    /// It gets no new ones; open ones go on.
    Draining,
}

/// How a Container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exit {
    /// When.
    pub at: Time,
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The kernel ended it for lack of memory.
    pub oom_killed: bool,
    /// We asked for it.
    pub intended: bool,
}

/// What last went wrong with an Instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trouble {
    /// What it was running or about to run.
    pub revision: Revision,
    /// What happened.
    pub error: UserError,
    /// When.
    pub at: Time,
    /// How many times in a row.
    pub count: u32,
}
