//! A Rollout: the persisted journey of an App from one Revision to another.
//!
//! [`advance()`] decides the next phase from what is seen, [`wanted()`] what follows from a
//! phase for the engine and the gateway. Undo is another target for the same planner.

mod advance;
mod stage;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use advance::{Advance, START_ATTEMPTS, advance};
pub use stage::{Stage, stages};
pub use wanted::{Routing, Wanted, WantedSite, wanted};

use crate::error::UserError;
use crate::fleet::{Lineup, Revision};
use crate::ids::{Ordinal, ReleaseNo, RolloutNo};
use crate::manifest;
use crate::time::{Micros, Time};

/// What a person asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutKind {
    /// A new Release.
    Deploy,
    /// An earlier Release again.
    Rollback,
    /// The same Release again.
    Restart,
    /// A new Release that differs in settings alone.
    Config,
}

/// Where a Rollout is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "phase")]
pub enum Phase {
    /// Images are fetched. Nothing that runs has been touched.
    Pulling,
    /// Instances change, batch by batch.
    Progressing {
        /// Which batch, from 0.
        batch: u32,
        /// Instances that it has reached.
        reach: Reach,
        /// Of these, how many are done.
        done: u32,
        /// When that last grew.
        since: Time,
        /// What is waited for before the next batch, once this one is through.
        gate: Option<Gate>,
    },
    /// Every Instance runs the new Revision; it may still prove bad.
    Watching {
        /// Since when.
        since: Time,
        /// Until when.
        until: Time,
    },
    /// The new Revision failed; Instances change back.
    Undoing {
        /// Since when.
        since: Time,
        /// Why.
        why: UserError,
        /// The batch it had come to: the new Release gets no larger share of the requests
        /// than that one gave it. `None` where it had reached all.
        #[serde(default)]
        batch: Option<u32>,
    },
    /// Every Instance runs the new Revision.
    Done {
        /// Since when.
        at: Time,
    },
    /// Every Instance runs the old Revision again.
    Undone {
        /// Since when.
        at: Time,
        /// Why.
        why: UserError,
    },
    /// It failed, and there is nothing to go back to, going back is not wanted, or that
    /// failed too.
    Held {
        /// Since when.
        at: Time,
        /// Why.
        why: UserError,
        /// What Instances run until a person decides.
        lineup: Option<Lineup>,
        /// The batch it had come to, whose share of the requests holds. `None` where it had
        /// reached all.
        #[serde(default)]
        batch: Option<u32>,
    },
    /// A newer change took its place.
    Superseded {
        /// When.
        at: Time,
    },
}

/// Instances that a Rollout has reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// All of them, however many there are.
    All,
    /// These.
    Of(BTreeSet<Ordinal>),
}

impl Reach {
    /// Whether it has reached this one.
    pub fn covers(&self, ordinal: Ordinal) -> bool {
        match self {
            Reach::All => true,
            Reach::Of(some) => some.contains(&ordinal),
        }
    }
}

/// What a Rollout waits for between two batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gate {
    /// Since when.
    pub since: Time,
    /// Until when; `None` until a person promotes it.
    pub until: Option<Time>,
}

/// A Rollout that a person paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Paused {
    /// When.
    pub at: Time,
    /// Who.
    pub by: String,
}

impl Phase {
    /// Whether nothing more will come of it.
    pub fn is_final(&self) -> bool {
        match self {
            Phase::Pulling
            | Phase::Progressing { .. }
            | Phase::Watching { .. }
            | Phase::Undoing { .. } => false,
            Phase::Done { .. }
            | Phase::Undone { .. }
            | Phase::Held { .. }
            | Phase::Superseded { .. } => true,
        }
    }

    /// Whether the new Revision runs on every Instance, as far as is known now.
    pub fn is_through(&self) -> bool {
        matches!(self, Phase::Watching { .. } | Phase::Done { .. })
    }

    /// Whether it came to a state to go back to.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_through() || matches!(self, Phase::Undone { .. } | Phase::Superseded { .. })
    }

    /// Its name, for people and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Pulling => "pulling",
            Phase::Progressing { .. } => "progressing",
            Phase::Watching { .. } => "watching",
            Phase::Undoing { .. } => "undoing",
            Phase::Done { .. } => "done",
            Phase::Undone { .. } => "undone",
            Phase::Held { .. } => "held",
            Phase::Superseded { .. } => "superseded",
        }
    }
}

/// One Rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Rollout {
    /// Its number within the App.
    pub number: RolloutNo,
    /// What a person asked for.
    pub kind: RolloutKind,
    /// What Instances run again when it fails. `None` for the first.
    pub from: Option<Lineup>,
    /// What Instances run that it has not reached: `from`, or what a Rollout that it
    /// superseded had come to. So each Instance changes once, not back and forth.
    pub meanwhile: Option<Lineup>,
    /// What `rollback` without a number meant before it.
    #[serde(default)]
    pub before: Option<ReleaseNo>,
    /// Where it goes.
    pub to: Revision,
    /// The one Instance a restart is for; `None` for all.
    pub only: Option<Ordinal>,
    /// Instances that a person restarted while it was under way, by the run wanted.
    #[serde(default)]
    pub again: BTreeMap<Ordinal, u32>,
    /// A person paused it.
    #[serde(default)]
    pub paused: Option<Paused>,
    /// Where it is.
    #[serde(flatten)]
    pub phase: Phase,
    /// When a person asked for it.
    pub started: Time,
    /// How long it may go on without another Instance done.
    pub deadline: Micros,
    /// Whether it goes back by itself when it fails.
    pub auto_rollback: bool,
    /// Who asked for it.
    pub by: String,
    /// Why, in that person's words.
    pub message: Option<String>,
}

impl Rollout {
    /// What Instances shall run in this phase.
    pub fn lineup(&self) -> Option<Lineup> {
        let lineup = match &self.phase {
            Phase::Pulling => self.meanwhile.clone(),
            Phase::Progressing { reach, .. } => Some(self.reached(reach)),
            Phase::Watching { .. } | Phase::Done { .. } => Some(self.reached(&Reach::All)),
            Phase::Held { lineup, .. } => lineup.clone(),
            Phase::Undoing { .. } | Phase::Undone { .. } | Phase::Superseded { .. } => {
                self.from.clone()
            }
        };
        lineup.map(|lineup| self.with_restarts(lineup))
    }

    fn reached(&self, reach: &Reach) -> Lineup {
        match (&self.meanwhile, self.only, reach) {
            (Some(meanwhile), Some(only), _) => meanwhile.with([only], self.to),
            (Some(meanwhile), None, Reach::Of(some)) => {
                meanwhile.with(some.iter().copied(), self.to)
            }
            _ => Lineup::all(self.to),
        }
    }

    fn with_restarts(&self, mut lineup: Lineup) -> Lineup {
        for (ordinal, run) in &self.again {
            let revision = lineup.of(*ordinal);
            if revision.run < *run {
                let again = Revision { run: *run, since: *run, ..revision };
                lineup.each.insert(*ordinal, again);
            }
        }
        lineup
    }

    /// Whether a person paused it, and it has not come to where that means nothing any more.
    pub fn is_paused(&self) -> bool {
        self.paused.is_some() && matches!(self.phase, Phase::Pulling | Phase::Progressing { .. })
    }

    /// Whether batches, the watch and the analysis apply: a new Release is tried out, an old
    /// one is known.
    pub fn is_trial(&self) -> bool {
        self.from.is_some() && matches!(self.kind, RolloutKind::Deploy | RolloutKind::Config)
    }

    /// The phase in which Instances begin to change.
    pub(crate) fn begin(
        &self,
        rules: Option<&manifest::Rollout>,
        ordinals: &[Ordinal],
        now: Time,
    ) -> Phase {
        let reach = match rules {
            Some(rules) if self.is_trial() && self.only.is_none() => {
                stage::reach_at(rules, 0, ordinals, &Reach::Of(BTreeSet::new()))
            }
            _ => Reach::All,
        };
        Phase::Progressing { batch: 0, reach, done: 0, since: now, gate: None }
    }

    /// The phase in which the next batch changes; `None` where there is none.
    pub(crate) fn next_batch(
        &self,
        rules: Option<&manifest::Rollout>,
        ordinals: &[Ordinal],
        now: Time,
    ) -> Option<Phase> {
        let Phase::Progressing { batch, reach: already @ Reach::Of(_), done, .. } = &self.phase
        else {
            return None;
        };
        let batch = batch + 1;
        let reach =
            rules.map_or(Reach::All, |rules| stage::reach_at(rules, batch, ordinals, already));
        Some(Phase::Progressing { batch, reach, done: *done, since: now, gate: None })
    }

    /// The phase that follows when it is given up: back to where it came from, if there is
    /// such a place.
    pub(crate) fn give_up(&self, why: UserError, now: Time) -> Phase {
        match (&self.phase, &self.from) {
            (_, None) => self.hold(why, now),
            // Nothing was touched.
            (Phase::Pulling, from) if self.meanwhile == *from => Phase::Undone { at: now, why },
            _ => Phase::Undoing { since: now, why, batch: self.batch() },
        }
    }

    /// The batch that says who shares the requests; `None` where the new Release has all, or
    /// none yet.
    pub(crate) fn batch(&self) -> Option<u32> {
        match &self.phase {
            Phase::Progressing { batch, reach: Reach::Of(_), .. } => Some(*batch),
            Phase::Undoing { batch, .. } | Phase::Held { batch, .. } => *batch,
            _ => None,
        }
    }

    /// The phase in which everything stays as it is until a person decides.
    pub(crate) fn hold(&self, why: UserError, now: Time) -> Phase {
        Phase::Held { at: now, why, lineup: self.lineup(), batch: self.batch() }
    }

    /// Why it failed, when it did.
    pub fn failure(&self) -> Option<&UserError> {
        match &self.phase {
            Phase::Undoing { why, .. } | Phase::Undone { why, .. } | Phase::Held { why, .. } => {
                Some(why)
            }
            _ => None,
        }
    }
}
