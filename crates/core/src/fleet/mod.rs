//! The Fleet: what an engine shall hold for one App, what it holds, and the pure planner
//! between the two.
//!
//! [`plan()`] is the only place that decides whether an Instance is upgraded in place,
//! recreated, restarted or left alone. Engines carry its steps out and observe again.

mod budget;
mod jvm;
mod lineup;
mod part;
mod plan;
mod seen;
mod step;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use jvm::{ArchiveKept, ArchiveKind, ArchiveSeen, JvmSeen};
pub use lineup::{Lineup, Revision};
pub use part::{Part, Slot};
pub use plan::{RESTART_BACKOFF_CAP, backoff, plan};
pub use seen::{
    ContainerSeen, ContainerState, Exit, FleetSeen, Health, HookSeen, ImageSeen, InstanceSeen,
    MemorySeen, SandboxSeen, SiteSeen, TrafficState, Trouble,
};
pub use step::{HookName, Plan, Step, StopCause};
pub use way::{Fallback, Remake, Way};

use crate::ids::{Digest, Generation, Ordinal, ReleaseNo};
use crate::manifest::{Effect, EnvName, Hook, Manifest, RestartPolicy, Strategy, effect_on};
use crate::name::AppKey;
use crate::time::Micros;

/// What a Release asks of an engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReleaseSpec {
    /// The image, by digest.
    pub image: Digest,
    /// The reference it was resolved from, for pulling.
    pub reference: String,
    /// Images of the sidecars, by their names.
    #[serde(default)]
    pub sidecars: BTreeMap<String, Digest>,
    /// Everything else.
    pub settings: Arc<Manifest>,
    /// Versions of the main Container's secrets, by the variable that each becomes.
    #[serde(default)]
    pub secrets: BTreeMap<EnvName, u32>,
}

impl ReleaseSpec {
    /// The parts of an Instance: the App itself, and its sidecars.
    pub fn parts(&self) -> impl Iterator<Item = Part> {
        let sidecars = self.settings.sidecars.iter();
        std::iter::once(Part::Main)
            .chain(sidecars.map(|sidecar| Part::Sidecar(sidecar.name.to_string())))
    }

    /// Whether the gateway serves it from files and nothing runs.
    pub fn is_site(&self) -> bool {
        self.settings.site.is_some()
    }

    /// The image of a part, and the reference it is pulled by. `None` where there is no such
    /// part.
    pub fn image_of(&self, part: &Part) -> Option<(&Digest, &str)> {
        match part {
            Part::Main => Some((&self.image, &self.reference)),
            Part::Sidecar(name) => {
                let sidecar = self.settings.sidecar(name)?;
                Some((self.sidecars.get(name)?, &sidecar.source))
            }
        }
    }

    /// Every image, with the reference it is pulled by.
    pub fn images(&self) -> impl Iterator<Item = (&Digest, &str)> {
        let parts: Vec<Part> = self.parts().collect();
        parts.into_iter().filter_map(|part| self.image_of(&part))
    }

    /// How long a started Container may take until it is ready.
    pub fn startup_timeout(&self, part: &Part) -> Micros {
        let health = match part {
            Part::Main => Some(&self.settings.health),
            Part::Sidecar(name) => self.settings.sidecar(name).map(|sidecar| &sidecar.health),
        };
        Micros::from_millis(health.unwrap_or(&self.settings.health).startup_timeout().millis())
    }

    /// How long the old main Container stays frozen after a change to this Release. Nothing is
    /// kept beside sidecars: the new one needs the old one's place.
    pub fn keep_previous(&self) -> Micros {
        let rules = &self.settings.rollout;
        let kept = match self.alone() {
            Some(Fallback::Sidecars) => return Micros(0),
            Some(_) => rules.keep_previous(Strategy::InPlace),
            None => rules.keep_previous(rules.strategy()),
        };
        Micros::from_millis(kept.millis())
    }

    /// What the App does itself at that moment.
    pub fn hook(&self, name: HookName) -> Option<&Hook> {
        let hooks = &self.settings.lifecycle.hooks;
        match name {
            HookName::BeforeUpdate => hooks.before_update.as_ref(),
            HookName::AfterUpdate => hooks.after_update.as_ref(),
            HookName::PreDelete => hooks.pre_delete.as_ref(),
        }
    }

    /// What bringing a Container of `part` from the Release `old` to this one asks of it.
    pub fn effect_on(&self, part: &Part, old: &Self) -> Effect {
        let secrets = match part {
            Part::Main if self.secrets != old.secrets => Effect::RestartContainer,
            _ => Effect::None,
        };
        secrets.max(self.effect_of_settings(part, old))
    }

    fn effect_of_settings(&self, part: &Part, old: &Self) -> Effect {
        match (old.image_of(part), self.image_of(part)) {
            (Some((before, source)), Some((now, other))) if before == now => {
                if source == other {
                    return effect_on(part, &old.settings, &self.settings);
                }
                // Another name of the same image is no other image.
                let mut settings = Manifest::clone(&self.settings);
                settings.source.clone_from(&old.settings.source);
                for sidecar in &mut settings.sidecars {
                    if let Some(old) = old.settings.sidecar(sidecar.name.as_str()) {
                        sidecar.source.clone_from(&old.source);
                    }
                }
                effect_on(part, &old.settings, &settings)
            }
            _ => Effect::RestartContainer,
        }
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
    /// Wanted number of Instances.
    pub instances: u32,
    /// Ordinals that were taken away by name: the lowest others are the Instances.
    #[serde(default)]
    pub absent: BTreeSet<Ordinal>,
    /// What each Instance shall run. `None` before anything was released.
    pub lineup: Option<Lineup>,
    /// Where the App is going: the Release whose rollout settings hold, and what Instances
    /// above the wanted number run.
    pub heading: Option<Revision>,
    /// Instances above the wanted number, for the time of a Rollout.
    #[serde(default)]
    pub surge: u32,
    /// A person paused the Rollout: a change that has begun is finished, no other begins.
    #[serde(default)]
    pub paused: bool,
    /// A Rollout is undone: where it goes is known to be good.
    #[serde(default)]
    pub returning: bool,
    /// Every Release that is wanted, running or to be fetched beforehand.
    pub releases: BTreeMap<ReleaseNo, ReleaseSpec>,
}

impl Fleet {
    /// The Instances that are wanted, lowest first.
    pub fn ordinals(&self) -> impl Iterator<Item = Ordinal> {
        self.present().take(self.instances as usize)
    }

    /// The Instances above the wanted number.
    pub fn surplus(&self) -> impl Iterator<Item = Ordinal> {
        self.present().skip(self.instances as usize).take(self.surge as usize)
    }

    fn present(&self) -> impl Iterator<Item = Ordinal> {
        (0..).map(Ordinal).filter(|ordinal| !self.absent.contains(ordinal))
    }

    /// What the Instance at `ordinal` shall run; `None` when there shall be no such Instance.
    pub fn wanted(&self, ordinal: Ordinal) -> Option<Revision> {
        let lineup = self.lineup.as_ref()?;
        if self.absent.contains(&ordinal) {
            return None;
        }
        let below = self.absent.range(..ordinal).count();
        let place = (ordinal.0 as usize).saturating_sub(below);
        if place < self.instances as usize {
            Some(lineup.of(ordinal))
        } else if place < (self.instances as usize).saturating_add(self.surge as usize) {
            self.heading
        } else {
            None
        }
    }

    /// What the Release that the App is going to asks for.
    pub fn heading_spec(&self) -> Option<&ReleaseSpec> {
        self.releases.get(&self.heading?.release)
    }

    /// How many Instances may be out of service at once because of our decisions.
    ///
    /// An upgrade in place takes each Instance out for a moment, so zero means one at a time
    /// where there is no Instance above the wanted number to stand in.
    pub fn may_be_out(&self) -> u32 {
        let rules = self.heading_spec().map(|spec| &spec.settings.rollout);
        let allowed = rules.map_or(0, |rules| rules.max_unavailable.of(self.instances));
        if self.surge == 0 { allowed.max(1) } else { allowed }
    }

    /// How many Instances may be in the middle of a change at once. A handover takes none out
    /// of service, but needs the room of two: a quarter, unless more may be out anyway.
    pub fn at_once(&self) -> u32 {
        self.may_be_out().max(self.instances.div_ceil(4)).max(1)
    }

    /// The number of Instances in service below which no decision of ours may lead.
    pub fn floor(&self) -> u32 {
        self.instances.saturating_sub(self.may_be_out())
    }
}
