//! Builds the benchmarks in release mode, installs what they compare with, and runs them.

use crate::packages;
use crate::run::{cargo, program, target};

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
}

/// Measures.
///
/// # Errors
/// When something cannot be built, installed or measured.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    packages::install(packages::FOR_TESTS)?;
    packages::install(packages::FOR_BENCH)?;
    cargo(["build", "--release", "--package", "stead", "--package", "stead-bench"]).run()?;
    let mut arguments: Vec<String> = options.name.clone().into_iter().collect();
    if options.json {
        arguments.push("--json".to_owned());
    }
    if let Some(rounds) = options.rounds {
        arguments.extend(["--rounds".to_owned(), rounds.to_string()]);
    }
    program(target().join("release/stead-bench"), arguments).run()
}
