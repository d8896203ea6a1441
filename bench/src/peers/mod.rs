//! The peers, driven by their own command lines: as a person or a script would.

mod containerd;
mod docker;
mod nginx;
mod podman;
mod runtime;

pub(crate) use containerd::Containerd;
pub(crate) use docker::Docker;
pub(crate) use nginx::Nginx;
pub(crate) use podman::Podman;
pub(crate) use runtime::{Job, Runtime};

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The cgroup below which peers put their containers, so that leftovers are found by name.
const CGROUP: &str = "/stead-bench";

/// Every peer stops its container by SIGKILL: waiting for the trivial App to react to SIGTERM,
/// which process 1 ignores by default, would measure nothing of theirs.
const STOP_SIGNAL: &str = "KILL";

/// Runs a program to its end, quietly.
pub(crate) fn quiet(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let program = command.get_program().to_string_lossy().into_owned();
    let output = output.with_context(|| format!("{program} cannot be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, said.trim());
    }
    Ok(())
}
