//! What can go wrong with a Sandbox, for programs and for people.

use std::io;

use stead_core::error::{Code, UserError};
use stead_holder::wire::Failure;

/// What can go wrong with a Sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The machine lacks something that every Sandbox needs.
    #[error("this machine cannot hold Sandboxes: {what}: {source}")]
    Unfit {
        /// What was being set up.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Every address is in use.
    #[error("no address is free for another Sandbox")]
    Full,
    /// There is no such Sandbox, or no such Container in it.
    #[error("{what} does not exist")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The Container, or a Sandbox of that name, is in another state than the call needs.
    #[error("{what} {state}")]
    WrongState {
        /// What was asked for.
        what: String,
        /// How it is.
        state: &'static str,
    },
    /// The program cannot be run.
    #[error("{program} cannot be run: {reason}")]
    CannotRun {
        /// As it was given.
        program: String,
        /// Why.
        reason: RunRefusal,
    },
    /// The specification makes no sense.
    #[error("{0}")]
    BadSpec(String),
    /// A step of the set-up failed.
    #[error("{step}: {source}")]
    Step {
        /// Which step.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The Sandbox's holder was started by an older version of this program.
    #[error("sandbox {sandbox} was made by an older version of stead, which cannot {what}")]
    Outdated {
        /// The Sandbox's id.
        sandbox: String,
        /// What was asked for.
        what: &'static str,
    },
    /// The Sandbox's holder has ended, and every Container with it.
    #[error("the holder of sandbox {sandbox} has ended")]
    HolderLost {
        /// The Sandbox's id.
        sandbox: String,
    },
}

/// Why a program cannot be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RunRefusal {
    /// It, or the interpreter it names, is not in the image.
    #[error("command not found in the image")]
    NotFound,
    /// It may not be executed by this user.
    #[error("permission denied")]
    NotPermitted,
    /// It is no program for this machine.
    #[error("not a program for this machine")]
    WrongFormat,
    /// Something else, by error number.
    #[error("{}", io::Error::from_raw_os_error(*.0))]
    Other(i32),
}

impl RunRefusal {
    fn new(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ENOTDIR => Self::NotFound,
            libc::EACCES | libc::EPERM => Self::NotPermitted,
            libc::ENOEXEC => Self::WrongFormat,
            other => Self::Other(other),
        }
    }
}

impl SandboxError {
    /// A step that failed with an error of the system.
    pub(crate) fn step(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Step { step, source }
    }

    /// What the holder of a Sandbox answered about one of its Containers.
    pub(crate) fn from_holder(container: &str, failure: Failure) -> Self {
        use stead_holder::wire::State;
        let what = || format!("container {container}");
        match failure {
            Failure::Unknown => Self::NotFound { what: what() },
            Failure::WrongState(state) => Self::WrongState {
                what: what(),
                state: match state {
                    State::Prepared => "is prepared and was not started",
                    State::Running { .. } => "is running",
                    State::Exited(_) => "has ended",
                },
            },
            Failure::CannotRun { program, errno } => {
                Self::CannotRun { program, reason: RunRefusal::new(errno) }
            }
            Failure::Step { step, errno } => {
                Self::Step { step, source: io::Error::from_raw_os_error(errno) }
            }
            Failure::NotUnderstood(text) => Self::BadSpec(text),
        }
    }

    /// The same for a person.
    pub fn user(&self) -> UserError {
        let (code, hint) = match self {
            Self::Unfit { .. } => (Code::MachineUnfit, "run `stead doctor` as root"),
            Self::Full => (Code::EngineFailed, "delete Apps that are no longer needed"),
            Self::NotFound { .. } => (Code::NoInstance, "look at `stead ps`"),
            Self::WrongState { .. } => (Code::Conflict, "look at `stead ps` and try again"),
            Self::CannotRun { .. } => (
                Code::CannotStart,
                "check `command` in the manifest and that the image is for this machine",
            ),
            Self::BadSpec(_) => (Code::BadRequest, "correct the manifest"),
            Self::Step { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                (Code::DiskFull, "make room on the data folder's disk")
            }
            Self::Step { .. } => (Code::EngineFailed, "run `stead doctor`; see the log of serve"),
            Self::Outdated { .. } => (
                Code::EngineFailed,
                "deploy with `--strategy recreate` once, or go on with `--strategy in-place`",
            ),
            Self::HolderLost { .. } => {
                (Code::EngineFailed, "nothing: a new Sandbox is made in its place")
            }
        };
        UserError::new(code, self.to_string(), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_command_is_told_as_such() {
        let failure = Failure::CannotRun { program: "serv".into(), errno: libc::ENOENT };
        let error = SandboxError::from_holder("c1", failure).user();
        assert_eq!(error.code, Code::CannotStart);
        assert_eq!(error.message, "serv cannot be run: command not found in the image");
    }
}
