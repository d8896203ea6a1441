//! A Rollout: the persisted journey of an App from one Revision to another.
//!
//! [`advance()`] decides the next phase from what is seen, [`wanted()`] what follows from a
//! phase for the engine and the gateway. Undo is another target for the same planner.

mod advance;
mod wanted;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use advance::{Advance, START_ATTEMPTS, advance};
pub use wanted::{Routing, Wanted, wanted};

use crate::error::UserError;
use crate::fleet::Revision;
use crate::ids::{Ordinal, RolloutNo};
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
    /// Instances change.
    Progressing {
        /// Instances done.
        done: u32,
        /// When that last grew.
        since: Time,
    },
    /// The new Revision failed; Instances change back.
    Undoing {
        /// Why.
        why: UserError,
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
    /// It failed, and there is nothing to go back to, or going back is not wanted.
    Held {
        /// Since when.
        at: Time,
        /// Why.
        why: UserError,
    },
    /// A newer change took its place.
    Superseded {
        /// When.
        at: Time,
    },
}

impl Phase {
    /// Whether nothing more will come of it.
    pub fn is_final(&self) -> bool {
        match self {
            Phase::Pulling | Phase::Progressing { .. } | Phase::Undoing { .. } => false,
            Phase::Done { .. }
            | Phase::Undone { .. }
            | Phase::Held { .. }
            | Phase::Superseded { .. } => true,
        }
    }

    /// Whether it ended in a state to go back to.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self, Phase::Done { .. } | Phase::Undone { .. } | Phase::Superseded { .. })
    }

    /// Its name, for people and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Phase::Pulling => "pulling",
            Phase::Progressing { .. } => "progressing",
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
    /// Where it goes back to when it fails. `None` for the first.
    pub from: Option<Revision>,
    /// Instances that had been restarted by themselves before it, by their run. Going back
    /// brings these back too, so that an Instance it never touched is left alone.
    pub from_reruns: BTreeMap<Ordinal, u32>,
    /// What Instances run while its images are fetched: `from`, or what a Rollout that it
    /// superseded had come to. So each Instance changes once, not back and forth.
    pub meanwhile: Option<Revision>,
    /// Where it goes.
    pub to: Revision,
    /// The one Instance a restart is for; `None` for all.
    pub only: Option<Ordinal>,
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
    /// The Revision that Instances shall run in this phase.
    pub fn target(&self) -> Option<Revision> {
        match self.phase {
            Phase::Pulling => self.meanwhile,
            Phase::Progressing { .. } | Phase::Done { .. } | Phase::Held { .. } => Some(self.to),
            Phase::Undoing { .. } | Phase::Undone { .. } | Phase::Superseded { .. } => self.from,
        }
    }

    /// The phase that follows when it is given up: back to where it came from, if there is
    /// such a place.
    pub(crate) fn give_up(&self, why: UserError, now: Time) -> Phase {
        match (&self.phase, self.from) {
            (_, None) => Phase::Held { at: now, why },
            // Nothing was touched.
            (Phase::Pulling, from) if self.meanwhile == from => Phase::Undone { at: now, why },
            _ => Phase::Undoing { why },
        }
    }

    /// Why it failed, when it did.
    pub fn failure(&self) -> Option<&UserError> {
        match &self.phase {
            Phase::Undoing { why } | Phase::Undone { why, .. } | Phase::Held { why, .. } => {
                Some(why)
            }
            _ => None,
        }
    }
}
