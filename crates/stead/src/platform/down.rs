//! `stead down`: stops the platform's processes, and with `--all` everything they made.

use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use stead_core::error::{Code, UserError};

use super::layout::Layout;
use super::process::{Kind, running};
use super::settings::Settings;
use super::{role, supervise, up};

/// How long a supervisor may take to stop its children.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops supervisor, gateways and `serve`. Containers go on.
pub(crate) fn stop(layout: &Layout) -> Result<()> {
    up::must_be_root()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for supervisor in running(layout, Kind::Supervisor) {
            supervisor.signal(Signal::TERM);
            if !supervisor.ended(PATIENCE).await {
                return Err(UserError::new(
                    Code::PlatformDown,
                    format!("the supervisor (pid {}) does not stop", supervisor.pid),
                    format!("look at {}", layout.log("supervisor").display()),
                )
                .into());
            }
        }
        // A supervisor that was killed left its children behind.
        supervise::stop_everything(layout).await;
        Ok(())
    })
}

/// Removes every Container, network and control group of the stopped platform. Data stays.
pub(crate) fn destroy(settings: &Settings) -> Result<()> {
    let layout = &settings.layout;
    layout.make()?;
    let log = layout.open_log("serve")?;
    let from = log.metadata()?.len();
    let flags = settings.serve_flags();
    let status = role::command(["serve".into(), "--destroy".into()].into_iter().chain(flags))
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .context("serve --destroy cannot be started")?;
    if status.success() {
        return Ok(());
    }
    Err(UserError::new(
        Code::EngineFailed,
        format!("what runs could not be removed: {}", layout.tail_of_log("serve", from, 4)),
        format!("look at {}, and run it again", layout.log("serve").display()),
    )
    .into())
}
