//! What simulated trouble is called.

use stead_core::error::{Code, UserError};
use stead_core::fleet::{HookName, StopCause};

pub(super) fn stopped(cause: StopCause) -> UserError {
    match cause {
        StopCause::NeverReady => UserError::new(
            Code::NeverReady,
            "the instance did not become ready in time",
            "look at `stead logs`, or raise health.startup.timeout",
        ),
        StopCause::NotAlive => UserError::new(
            Code::ExitedAtOnce,
            "the instance was ended because its liveness probe failed",
            "look at `stead logs`",
        ),
    }
}

pub(super) fn exited(code: i32, oom_killed: bool) -> UserError {
    let message = if oom_killed {
        "the main process was killed for lack of memory".to_owned()
    } else {
        format!("the main process ended with exit code {code}")
    };
    UserError::new(Code::ExitedAtOnce, message, "look at `stead logs`")
}

pub(super) fn cannot_start() -> UserError {
    UserError::new(
        Code::CannotStart,
        "the command does not exist in the image",
        "check `command` in the manifest",
    )
}

pub(super) fn hook_failed(hook: HookName) -> UserError {
    UserError::new(
        Code::HookFailed,
        format!("the hook {} failed", hook.as_str()),
        "look at `stead logs`",
    )
}

pub(super) fn not_pulled(code: Code, reference: &str) -> UserError {
    UserError::new(code, format!("image {reference} cannot be fetched"), "check the registry")
}
