//! Namespaces of their own for the tests: process ids, mounts and network.
//!
//! Whatever a test leaves behind is visible inside exactly, disturbs nobody outside, and is gone
//! when the namespaces are. Only cgroups are shared with the machine; [`crate::leftovers`] looks
//! at those by name.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::process::{Pid, WaitOptions, wait};

use crate::run::program;

/// What to run inside.
#[derive(Debug, clap::Args)]
pub(crate) struct InitOptions {
    /// Program and arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs this very program with these arguments in new namespaces. When it ends, everything
/// started inside ends with it.
///
/// # Errors
/// When the namespaces cannot be made or the program fails.
pub(crate) fn enter(arguments: &[OsString]) -> anyhow::Result<()> {
    let myself = std::env::current_exe().context("the path of xtask itself")?;
    let unshare = ["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"];
    let mut command = program("unshare", unshare).into_command();
    command.arg(&myself).args(["harness-init", "--"]).arg(&myself).args(arguments);
    let status = command.status().context("unshare (util-linux) cannot be started")?;
    if !status.success() {
        bail!("the tests failed");
    }
    Ok(())
}

/// Process 1 inside: starts the command, adopts and reaps orphans until it ends.
///
/// # Errors
/// When the command cannot be started or fails.
pub(crate) fn init(options: &InitOptions) -> anyhow::Result<()> {
    program("ip", ["link", "set", "lo", "up"]).run()?;
    // Run-time files of the tests belong to this run alone.
    program("mount", ["-t", "tmpfs", "-o", "mode=755", "stead-tests", "/run"]).run()?;
    let (program, arguments) = options.command.split_first().context("there is nothing to run")?;
    let child = Command::new(program).args(arguments).spawn().context("the tests cannot start")?;
    let child = Pid::from_child(&child);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                std::process::exit(status.exit_status().unwrap_or(1));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("waiting for the tests: {error}"),
        }
    }
}
