//! Builds the benchmarks in release mode, installs what they compare with, and runs them.

use std::ffi::OsString;

use anyhow::Context;

use crate::run::{cargo, target};
use crate::{harness, leftovers, packages, samples};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// One benchmark; all when none is named. `cargo xtask bench list` names them.
    name: Option<String>,
    /// Print one JSON document instead of the table.
    #[arg(long)]
    json: bool,
    /// Rounds of each benchmark; each round measures every contestant once.
    #[arg(long)]
    rounds: Option<usize>,
    /// Only contestants whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

/// Measures.
///
/// # Errors
/// When something cannot be built, installed or measured.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    packages::install(packages::FOR_TESTS)?;
    packages::install(packages::FOR_BENCH)?;
    samples::prepare()?;
    cargo(["build", "--release", "--package", "stead", "--package", "stead-bench"]).run()?;
    let mut command_line: Vec<OsString> = vec![target().join("release/stead-bench").into()];
    command_line.extend(options.name.as_ref().map(Into::into));
    if options.json {
        command_line.push("--json".into());
    }
    if let Some(rounds) = options.rounds {
        command_line.extend(["--rounds".into(), rounds.to_string().into()]);
    }
    if let Some(only) = &options.only {
        command_line.extend(["--only".into(), only.into()]);
    }
    let before = leftovers::cgroups();
    let measured = harness::enter(&command_line).context("the benchmarks");
    leftovers::remove_cgroups(leftovers::cgroups().difference(&before));
    measured
}
