//! What an engine observes of one App.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{HookName, JvmSeen, Part, Revision, Slot};
use crate::error::UserError;
use crate::ids::{ContainerId, Digest, Generation, Ordinal, ReleaseNo, SandboxId};
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
    /// The machine's memory. `None` where it is not known.
    #[serde(default)]
    pub memory: Option<MemorySeen>,
    /// The Java virtual machine of the newest Container, where its program is one.
    #[serde(default)]
    pub jvm: Option<JvmSeen>,
    /// Which files the gateways serve, of an App that is a site. No engine sees that: it is
    /// added by whoever talks to the gateways.
    #[serde(default)]
    pub site: Option<SiteSeen>,
}

/// A site, as far as gateways have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SiteSeen {
    /// Every gateway serves this Release, and no other.
    Served(ReleaseNo),
    /// This Release cannot be served.
    Unfit {
        /// The Release.
        release: ReleaseNo,
        /// Why.
        error: UserError,
    },
}

/// The memory of the machine that holds the Instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemorySeen {
    /// Bytes that a new Container could use.
    pub free: u64,
    /// So little is free that what is kept for convenience must go.
    pub pressed: bool,
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
    /// Where new connections to its address go.
    #[serde(default)]
    pub slot: Slot,
    /// What last went wrong with the App itself, until it has been well for a while.
    pub trouble: Option<Trouble>,
    /// The same of each sidecar, by name.
    #[serde(default)]
    pub sidecar_trouble: BTreeMap<String, Trouble>,
    /// How often it was started again after a crash since its Sandbox exists. Restarts a
    /// person asked for do not count.
    pub crashes: u32,
}

impl InstanceSeen {
    /// The Container that takes traffic and is ready.
    pub fn serving(&self) -> Option<&ContainerSeen> {
        self.containers.iter().find(|c| c.serves())
    }

    /// The Containers of one part.
    pub fn of<'a>(&'a self, part: &'a Part) -> impl Iterator<Item = &'a ContainerSeen> {
        self.containers.iter().filter(move |c| c.part == *part)
    }

    /// The App's own Containers.
    pub fn mains(&self) -> impl Iterator<Item = &ContainerSeen> {
        self.of(&Part::Main)
    }

    /// What last went wrong with a part.
    pub fn trouble_of(&self, part: &Part) -> Option<&Trouble> {
        match part {
            Part::Main => self.trouble.as_ref(),
            Part::Sidecar(name) => self.sidecar_trouble.get(name),
        }
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
    /// What it is to its Instance.
    #[serde(default)]
    pub part: Part,
    /// Where it is in its Sandbox.
    #[serde(default)]
    pub slot: Slot,
    /// What it was prepared for, or was brought to without a restart.
    pub revision: Revision,
    /// The run it was prepared for.
    #[serde(default)]
    pub born: u32,
    /// Where it is in its life.
    pub state: ContainerState,
    /// Whether the gateway sends requests to it.
    pub traffic: TrafficState,
    /// Hooks that were run for it.
    #[serde(default)]
    pub hooks: Vec<HookSeen>,
}

/// A hook that was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HookSeen {
    /// Which.
    pub hook: HookName,
    /// The run that wanted it.
    pub run: u32,
}

impl ContainerSeen {
    /// A Container of the App itself that was just prepared in `slot`.
    pub fn prepared(id: ContainerId, part: Part, slot: Slot, revision: Revision) -> Self {
        Self {
            id,
            part,
            slot,
            revision,
            born: revision.run,
            state: ContainerState::Prepared,
            traffic: TrafficState::Detached,
            hooks: Vec::new(),
        }
    }

    /// Whether it takes traffic and is ready.
    pub fn serves(&self) -> bool {
        self.traffic == TrafficState::Attached && self.ready()
    }

    /// Whether a process of it may run.
    pub fn alive(&self) -> bool {
        matches!(self.state, ContainerState::Running { .. } | ContainerState::Stopping { .. })
    }

    /// Whether a process of it may exist: it runs, or is frozen.
    pub fn exists(&self) -> bool {
        self.alive() || self.is_frozen()
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        matches!(self.state, ContainerState::Frozen { .. })
    }

    /// Whether it runs and is ready.
    pub fn ready(&self) -> bool {
        matches!(self.state, ContainerState::Running { health: Health::Ready, .. })
    }

    /// Whether `hook` was run for it in `run`.
    pub fn hooked(&self, hook: HookName, run: u32) -> bool {
        self.hooks.contains(&HookSeen { hook, run })
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
    /// Its processes stand still, and their memory may be taken; it can be thawed.
    Frozen {
        /// Since when.
        since: Time,
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
    /// It happened to a Container that had been ready, and not for a reason of ours.
    #[serde(default)]
    pub was_ready: bool,
}
