//! The platform's processes on one machine: the supervisor, `serve` and the gateway.
//!
//! `stead up` is, or starts, a supervisor, which keeps one `serve` and one gateway running
//! and owns nothing else: whatever it knows can be found again from the run folder.
//! Processes are told apart by pid, start time and boot, never by name.

pub(crate) mod down;
pub(crate) mod gateway;
pub(crate) mod layout;
mod process;
mod ready;
mod role;
pub(crate) mod serve;
pub(crate) mod settings;
pub(crate) mod supervise;
pub(crate) mod up;

use tracing_subscriber::EnvFilter;

/// Sends log lines to standard error, at the level that `STEAD_LOG` names.
fn log_to_stderr() {
    use std::io::{IsTerminal, stderr};
    let filter = EnvFilter::try_from_env("STEAD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
}
