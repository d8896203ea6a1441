//! Namespaces of their own for tests and benchmarks: process ids, mounts and network.
//!
//! Whatever they leave behind is visible inside exactly, disturbs nobody outside, and is gone
//! when the namespaces are. Only cgroups are shared with the machine; [`crate::leftovers`] looks
//! at those by name.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::process::{Pid, WaitOptions, wait};

use crate::run;

/// Says to programs that they are inside, for those that would do harm outside.
const INSIDE: &str = "STEAD_XTASK_INSIDE";

/// What to run inside.
#[derive(Debug, clap::Args)]
pub(crate) struct InitOptions {
    /// Program and arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs a program in new namespaces. When it ends, everything started inside ends with it.
///
/// # Errors
/// When the namespaces cannot be made or the program fails.
pub(crate) fn enter(command_line: &[OsString]) -> anyhow::Result<()> {
    let myself = std::env::current_exe().context("the path of xtask itself")?;
    let unshare = ["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"];
    let mut command = run::program("unshare", unshare).into_command();
    command.arg(&myself).args(["harness-init", "--"]).args(command_line);
    let status =
        command.env(INSIDE, "1").status().context("unshare (util-linux) cannot be started")?;
    if !status.success() {
        bail!("it ended with {status}");
    }
    Ok(())
}

/// Process 1 inside: starts the command, adopts and reaps orphans until it ends.
///
/// # Errors
/// When the command cannot be started or fails.
pub(crate) fn init(options: &InitOptions) -> anyhow::Result<()> {
    run::program("ip", ["link", "set", "lo", "up"]).run()?;
    // Run-time files in there belong to this run alone.
    run::program("mount", ["-t", "tmpfs", "-o", "mode=755", "stead-xtask", "/run"]).run()?;
    // The first netns makes `ip` mount a folder that stays: it is no leftover of a test.
    run::program("ip", ["netns", "add", "first"]).run()?;
    run::program("ip", ["netns", "delete", "first"]).run()?;
    let (program, arguments) = options.command.split_first().context("there is nothing to run")?;
    let child = Command::new(program).args(arguments).spawn().context("it cannot be started")?;
    let child = Pid::from_child(&child);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == child => {
                std::process::exit(status.exit_status().unwrap_or(1));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("waiting for it: {error}"),
        }
    }
}
