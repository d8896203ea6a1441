//! Other programs, run by argument vector from the root of the workspace.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// Where cargo builds to.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from)
}

/// A program to run, and how to say it went wrong.
pub(crate) struct Program {
    command: Command,
}

/// The cargo that runs us, with these arguments.
pub(crate) fn cargo<I: IntoIterator<Item = impl AsRef<OsStr>>>(arguments: I) -> Program {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut program = program(cargo, arguments);
    // What `cargo run` set for us is not meant for the crates built next.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_PKG_NAME"] {
        program.command.env_remove(name);
    }
    program
}

/// A program with its arguments.
pub(crate) fn program<I: IntoIterator<Item = impl AsRef<OsStr>>>(
    name: impl AsRef<OsStr>,
    arguments: I,
) -> Program {
    let mut command = Command::new(name);
    command.args(arguments).current_dir(root());
    Program { command }
}

impl Program {
    /// With one more argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// With more arguments.
    pub(crate) fn args(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    /// With another current folder.
    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// With an input.
    pub(crate) fn stdin(mut self, input: std::fs::File) -> Self {
        self.command.stdin(input);
        self
    }

    /// With this variable in its environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end; its output is ours.
    ///
    /// # Errors
    /// When it cannot be started or does not succeed.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        let status = self.command.status().with_context(|| self.cannot_start())?;
        if !status.success() {
            bail!("{} failed: {status}", self.shown());
        }
        Ok(())
    }

    /// Runs it to its end; its standard output as text.
    ///
    /// # Errors
    /// When it cannot be started or does not succeed.
    pub(crate) fn output(mut self) -> anyhow::Result<String> {
        self.command.stderr(Stdio::inherit());
        let output = self.command.output().with_context(|| self.cannot_start())?;
        if !output.status.success() {
            bail!("{} failed: {}", self.shown(), output.status);
        }
        String::from_utf8(output.stdout).context("its output is not text")
    }

    /// The command itself, for what the verbs above do not cover.
    pub(crate) fn into_command(self) -> Command {
        self.command
    }

    fn cannot_start(&self) -> String {
        format!("{} cannot be started", self.command.get_program().display())
    }

    fn shown(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}
