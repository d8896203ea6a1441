//! How an Instance gets from what it runs to what it shall run. The planner acts on this,
//! and a person is told of it beforehand.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    ContainerSeen, Fleet, FleetSeen, InstanceSeen, Part, ReleaseSpec, Revision, SandboxSeen,
};
use crate::ids::Ordinal;
use crate::manifest::{Effect, Strategy};

/// How an Instance changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "way")]
pub enum Way {
    /// It is made.
    Create,
    /// It is as it shall be.
    Keep,
    /// What runs goes on, with new limits or probes.
    Update,
    /// The new Container starts beside the old one, and takes over when it is ready.
    Handover,
    /// The old Container stops before the new one starts, in the same Sandbox.
    InPlace {
        /// Why it is not a handover, where one was wanted.
        because: Option<Fallback>,
    },
    /// A new Sandbox with a new address takes its place.
    Recreate {
        /// Why.
        because: Remake,
    },
}

/// Why an Instance is not handed over although its App would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum Fallback {
    /// Two writers on one disk would corrupt it.
    ExclusiveVolume {
        /// The volume.
        name: String,
    },
    /// Sidecars share the network of the main Container that they stand beside.
    Sidecars,
    /// Two do not fit into the machine's memory.
    Memory {
        /// Bytes that the second would need.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fallback::ExclusiveVolume { name } => {
                write!(f, "volume {name} is not shared, and two may not write to it")
            }
            Fallback::Sidecars => f.write_str("sidecars share the network of one main Container"),
            Fallback::Memory { needed, free } => write!(
                f,
                "a second Container needs {} MiB of memory, and {} MiB are free",
                needed >> 20,
                free >> 20
            ),
        }
    }
}

/// Why an Instance needs a new Sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Remake {
    /// Its volumes or its isolation differ.
    Shape,
    /// The strategy says so.
    Strategy,
}

impl Fleet {
    /// How an Instance gets to what it shall run; `None` when there shall be no such Instance.
    pub fn way(&self, seen: &FleetSeen, ordinal: Ordinal) -> Option<Way> {
        let revision = self.wanted(ordinal)?;
        let spec = self.releases.get(&revision.release)?;
        let nothing = InstanceSeen::default();
        let instance = seen.instances.get(&ordinal).unwrap_or(&nothing);
        let Some(sandbox) = &instance.sandbox else { return Some(Way::Create) };
        if let Some(because) = spec.remake(sandbox, revision) {
            return Some(Way::Recreate { because });
        }
        let mut mains = instance.mains().filter(|c| c.exists());
        Some(match mains.find(|c| self.fits(c, revision, spec)) {
            Some(container) if container.revision == revision => Way::Keep,
            Some(container) if container.alive() => Way::Update,
            _ => spec.change(seen.memory.map(|memory| memory.free)),
        })
    }

    /// Whether a Container can be brought to `revision` without a restart.
    pub fn fits(&self, container: &ContainerSeen, revision: Revision, spec: &ReleaseSpec) -> bool {
        if container.revision == revision {
            return true;
        }
        let young = !container.part.is_main() || container.born >= revision.since;
        let of = self.releases.get(&container.revision.release);
        young && of.is_some_and(|old| spec.effect_on(&container.part, old) <= Effect::ResourcesOnly)
    }
}

impl ReleaseSpec {
    /// Why a Sandbox cannot hold `revision`, which is of this Release.
    pub(super) fn remake(&self, sandbox: &SandboxSeen, revision: Revision) -> Option<Remake> {
        if sandbox.shape != self.shape() {
            Some(Remake::Shape)
        } else if self.strategy() == Strategy::Recreate && sandbox.made_for != revision {
            Some(Remake::Strategy)
        } else {
            None
        }
    }

    /// How a Container of this Release takes the place of another in the same Sandbox.
    /// `free` is the memory that is left for a second one, in bytes; `None` if not known.
    pub(super) fn change(&self, free: Option<u64>) -> Way {
        if self.strategy() != Strategy::Handover {
            return Way::InPlace { because: None };
        }
        let because = self.fallback(free);
        if because.is_some() { Way::InPlace { because } } else { Way::Handover }
    }

    fn strategy(&self) -> Strategy {
        self.settings.rollout.strategy()
    }

    fn fallback(&self, free: Option<u64>) -> Option<Fallback> {
        self.alone().or_else(|| {
            let needed = self.settings.resources.memory?.bytes();
            let free = free?;
            (free < needed).then_some(Fallback::Memory { needed, free })
        })
    }

    /// Why two Containers of the App must never run in one Sandbox.
    pub fn alone(&self) -> Option<Fallback> {
        if let Some(volume) = self.settings.volumes.iter().find(|volume| !volume.shared) {
            return Some(Fallback::ExclusiveVolume { name: volume.name.to_string() });
        }
        (!self.settings.sidecars.is_empty()).then_some(Fallback::Sidecars)
    }

    /// Whether `part` is one of an Instance of this Release.
    pub(super) fn has(&self, part: &Part) -> bool {
        match part {
            Part::Main => true,
            Part::Sidecar(name) => self.settings.sidecar(name).is_some(),
        }
    }
}
