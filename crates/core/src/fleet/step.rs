//! What the planner asks an engine to do.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Part, Revision, Slot};
use crate::ids::{ContainerId, Generation, Ordinal, ReleaseNo};
use crate::time::{Micros, Time};

/// One act. Each is idempotent: doing it twice, or after it was done, changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// Fetch, verify and unpack a Release's images.
    Pull {
        /// The Release.
        release: ReleaseNo,
    },
    /// Make the Instance's Sandbox.
    CreateSandbox {
        /// The Instance.
        ordinal: Ordinal,
        /// What it is made for.
        revision: Revision,
    },
    /// Set a Container up to the last step before its program runs.
    Prepare {
        /// The Instance.
        ordinal: Ordinal,
        /// What it is to the Instance.
        part: Part,
        /// What it shall run.
        revision: Revision,
        /// Where in the Sandbox.
        slot: Slot,
    },
    /// Bring a running Container to another Revision without a restart: its limits, its
    /// probes, its name.
    Update {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container.
        container: ContainerId,
        /// What it is from then on.
        revision: Revision,
    },
    /// Let a Container that gets no requests stand still.
    Freeze {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container.
        container: ContainerId,
    },
    /// Let a frozen Container go on.
    Thaw {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container.
        container: ContainerId,
        /// What it is from then on.
        revision: Revision,
    },
    /// Run a hook of the App, and wait for its end.
    Hook {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container it runs in, or is asked of.
        container: ContainerId,
        /// Which.
        hook: HookName,
        /// For which change: its settings say what the hook does.
        revision: Revision,
    },
    /// Run a prepared Container's program.
    Start {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container.
        container: ContainerId,
    },
    /// Let the gateway send requests to a ready Container, and let new connections to the
    /// Instance's address go to its slot.
    Attach {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container.
        container: ContainerId,
    },
    /// Send no new requests; done when no request and no connection of another App is open
    /// any more, or at the deadline.
    Detach {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container.
        container: ContainerId,
        /// How long open requests may go on.
        drain: Micros,
    },
    /// End a Container that gets no requests: pre-stop, signal, grace, kill.
    Stop {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container.
        container: ContainerId,
        /// How long it may take after the signal.
        grace: Micros,
        /// Why, when it counts as a failure of the Container.
        because: Option<StopCause>,
    },
    /// Remove what is left of a Container that never ran or has ended.
    Discard {
        /// The Instance.
        ordinal: Ordinal,
        /// The Container.
        container: ContainerId,
    },
    /// Remove an Instance's Sandbox. Its volumes stay.
    RemoveSandbox {
        /// The Instance.
        ordinal: Ordinal,
    },
}

/// Why a Container is stopped although it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum StopCause {
    /// It did not become ready within its startup timeout.
    NeverReady,
    /// Its liveness probe gave up on it.
    NotAlive,
}

/// A moment in an Instance's life at which an App may have a say.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum HookName {
    /// Before anything of the Instance changes; in the Container that is to go.
    BeforeUpdate,
    /// Before a fresh Container gets requests; in that Container.
    AfterUpdate,
    /// Before an Instance that is not wanted any more loses its requests.
    PreDelete,
}

impl HookName {
    /// Its name as a manifest has it.
    pub fn as_str(self) -> &'static str {
        match self {
            HookName::BeforeUpdate => "before_update",
            HookName::AfterUpdate => "after_update",
            HookName::PreDelete => "pre_delete",
        }
    }
}

impl Step {
    /// The Instance it acts on; `None` for a step of the whole machine.
    pub fn ordinal(&self) -> Option<Ordinal> {
        match self {
            Step::Pull { .. } => None,
            Step::CreateSandbox { ordinal, .. }
            | Step::Prepare { ordinal, .. }
            | Step::Update { ordinal, .. }
            | Step::Freeze { ordinal, .. }
            | Step::Thaw { ordinal, .. }
            | Step::Hook { ordinal, .. }
            | Step::Start { ordinal, .. }
            | Step::Attach { ordinal, .. }
            | Step::Detach { ordinal, .. }
            | Step::Stop { ordinal, .. }
            | Step::Discard { ordinal, .. }
            | Step::RemoveSandbox { ordinal } => Some(*ordinal),
        }
    }

    /// The Container it acts on; `None` for a step of an Instance or of the machine.
    pub fn container(&self) -> Option<&ContainerId> {
        match self {
            Step::Update { container, .. }
            | Step::Freeze { container, .. }
            | Step::Thaw { container, .. }
            | Step::Hook { container, .. }
            | Step::Start { container, .. }
            | Step::Attach { container, .. }
            | Step::Detach { container, .. }
            | Step::Stop { container, .. }
            | Step::Discard { container, .. } => Some(container),
            Step::Pull { .. }
            | Step::CreateSandbox { .. }
            | Step::Prepare { .. }
            | Step::RemoveSandbox { .. } => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Pull { release } => write!(f, "pull release {release}"),
            Step::CreateSandbox { ordinal, revision } => {
                write!(f, "create sandbox {ordinal} for {revision}")
            }
            Step::Prepare { ordinal, part: Part::Main, revision, slot } => {
                write!(f, "prepare {ordinal} for {revision} in slot {slot}")
            }
            Step::Prepare { ordinal, part, revision, .. } => {
                write!(f, "prepare {part} of {ordinal} for {revision}")
            }
            Step::Update { container, revision, .. } => {
                write!(f, "update {container} to {revision}")
            }
            Step::Freeze { container, .. } => write!(f, "freeze {container}"),
            Step::Thaw { container, revision, .. } => write!(f, "thaw {container} for {revision}"),
            Step::Hook { container, hook, .. } => write!(f, "{} of {container}", hook.as_str()),
            Step::Start { container, .. } => write!(f, "start {container}"),
            Step::Attach { container, .. } => write!(f, "attach {container}"),
            Step::Detach { container, .. } => write!(f, "detach {container}"),
            Step::Stop { container, .. } => write!(f, "stop {container}"),
            Step::Discard { container, .. } => write!(f, "discard {container}"),
            Step::RemoveSandbox { ordinal } => write!(f, "remove sandbox {ordinal}"),
        }
    }
}

/// What to do now, and when to look again if nothing happens before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Generation of the Fleet it was made for.
    pub generation: Generation,
    /// Steps that may run at the same time. What must wait for one of them is planned after
    /// its observation.
    pub steps: Vec<Step>,
    /// When time alone may call for another step.
    pub wake: Option<Time>,
}

impl Plan {
    /// Adds a step; one that is planned already, for another reason, is not planned twice.
    pub(super) fn add(&mut self, step: Step) {
        if !self.steps.contains(&step) {
            self.steps.push(step);
        }
    }

    /// Whether a step acts on that Container.
    pub(super) fn acts_on(&self, id: &ContainerId) -> bool {
        self.steps.iter().any(|step| step.container() == Some(id))
    }

    pub(super) fn wake_at(&mut self, at: Time) {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
    }
}
