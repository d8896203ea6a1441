//! Events: facts for people. Never an input to a decision.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::UserError;
use crate::fleet::{Exit, Fallback, Revision};
use crate::ids::{ContainerId, Ordinal};
use crate::name::AppKey;
use crate::time::{Micros, Time};

/// A timed part of a change. The waterfall of a Rollout is built from these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs, reason = "the names are the documentation; design.md lists them")]
pub enum PhaseName {
    Queue,
    Resolve,
    Pull,
    Unpack,
    Network,
    Volumes,
    Prepare,
    Start,
    Ready,
    Attach,
    Drain,
    Stop,
    Hook,
    Freeze,
    Thaw,
    Update,
    Flip,
}

impl PhaseName {
    /// Its name as people see it.
    pub fn as_str(self) -> &'static str {
        match self {
            PhaseName::Queue => "queue",
            PhaseName::Resolve => "resolve",
            PhaseName::Pull => "pull",
            PhaseName::Unpack => "unpack",
            PhaseName::Network => "network",
            PhaseName::Volumes => "volumes",
            PhaseName::Prepare => "prepare",
            PhaseName::Start => "start",
            PhaseName::Ready => "ready",
            PhaseName::Attach => "attach",
            PhaseName::Drain => "drain",
            PhaseName::Stop => "stop",
            PhaseName::Hook => "hook",
            PhaseName::Freeze => "freeze",
            PhaseName::Thaw => "thaw",
            PhaseName::Update => "update",
            PhaseName::Flip => "flip",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Fact {
    /// A timed part of a change ended well.
    Phase {
        /// Which.
        phase: PhaseName,
        /// When it began.
        begun: Time,
        /// How long it took.
        took: Micros,
    },
    /// A Container ended.
    Exited {
        /// How.
        exit: Exit,
    },
    /// An Instance is ready.
    Ready,
    /// An Instance is not ready any more.
    Unready {
        /// What the probe saw.
        why: String,
    },
    /// Something went wrong.
    Trouble {
        /// What.
        error: UserError,
    },
    /// An Instance changes in place, although a handover was wanted.
    Fallback {
        /// Why.
        because: Fallback,
    },
    /// Something about how it runs that a person may want to know.
    Noted {
        /// What, in a sentence.
        what: String,
    },
    /// A Rollout entered a phase.
    Rollout {
        /// Its number.
        number: u32,
        /// The phase's name.
        phase: String,
        /// Why.
        why: String,
    },
    /// A person changed something.
    Changed {
        /// Who.
        by: String,
        /// What, in a sentence.
        what: String,
    },
}

/// One fact about one App.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When.
    pub at: Time,
    /// The App.
    pub app: AppKey,
    /// The Instance, where it concerns one.
    pub instance: Option<Ordinal>,
    /// The Container, where it concerns one.
    pub container: Option<ContainerId>,
    /// The Revision it happened for.
    pub revision: Option<Revision>,
    /// What happened.
    #[serde(flatten)]
    pub fact: Fact,
}

/// Where Events go. Giving one never waits and never fails.
pub trait Events: Send + Sync {
    /// Notes a fact.
    fn emit(&self, event: Event);
}
