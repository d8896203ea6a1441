//! Every test, in namespaces of their own, and then a look at what they left behind.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, bail};

use crate::leftovers::Snapshot;
use crate::run::cargo;
use crate::{harness, packages, samples, tidy};

/// What to test.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Leave out the end-to-end tests and the lints.
    #[arg(long)]
    quick: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Prepares the machine, builds, and runs the tests.
///
/// # Errors
/// When something fails or is left behind; what has been printed.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the tests make containers: become root (sudo -E cargo xtask test)");
    }
    packages::install(packages::FOR_TESTS)?;
    samples::prepare()?;
    // A rule broken must not hide a test failed: remember it, and go on.
    let tidied = match options.filter {
        Some(_) => Ok(()),
        None => tidy::run(&tidy::Options::fast(options.quick)),
    };
    // Inside there is no network: everything is built before, by the very selection that runs
    // there, so that cargo chooses the same features.
    cargo(["test", "--no-run"].iter().chain(selection(options))).run()?;

    let myself = std::env::current_exe().context("the path of xtask itself")?;
    let mut arguments: Vec<OsString> = vec![myself.into(), "harness-test".into()];
    if options.quick {
        arguments.push("--quick".into());
    }
    arguments.extend(options.filter.as_ref().map(Into::into));
    harness::enter(&arguments).context("the tests")?;
    tidied
}

/// Inside the namespaces: runs the tests, looks for leftovers, prints the closing line.
///
/// # Errors
/// When a test failed or something was left behind.
pub(crate) fn inside(options: &Options) -> anyhow::Result<()> {
    let before = Snapshot::take()?;
    let mut tally = Tally::default();
    tally.run(selection(options), options.filter.as_deref())?;

    let after = Snapshot::take()?;
    let leftovers = after.leftovers_since(&before);
    for leftover in &leftovers {
        println!("left behind: {leftover}");
    }
    after.clean(&before);
    if !leftovers.is_empty() {
        tally.failed += 1;
    }
    if tally == Tally::default() {
        bail!("no test ran: nothing has this name");
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 {
        // The closing line stays the last one.
        std::process::exit(1);
    }
    Ok(())
}

/// What cargo is told to select. Everything is one selection: another would unify features
/// differently and build the dependencies a second time. The end-to-end program takes its
/// platforms one at a time by itself.
fn selection(options: &Options) -> &'static [&'static str] {
    if options.quick { &["--workspace", "--exclude", "stead"] } else { &["--workspace"] }
}

/// Tests counted over several runs of cargo.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    fn run(&mut self, selection: &[&str], filter: Option<&str>) -> anyhow::Result<()> {
        let words = ["test", "--offline", "--no-fail-fast"].iter().chain(selection);
        let words = words.chain(filter.as_ref());
        let mut command = cargo(words).into_command();
        let mut child = command.stdout(Stdio::piped()).spawn().context("cargo cannot start")?;
        let output = child.stdout.take().context("cargo has no output")?;
        let before = self.failed;
        for line in BufReader::new(output).lines() {
            let line = line.context("the output of cargo")?;
            println!("{line}");
            self.count(&line);
        }
        let status = child.wait().context("waiting for cargo")?;
        if !status.success() && self.failed == before {
            // A test program that crashed says no result.
            self.failed += 1;
        }
        Ok(())
    }

    /// Counts `test result: ok. 3 passed; 1 failed; …`.
    pub(crate) fn count(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let words: Vec<_> = result.split([' ', ';']).collect();
        let before = |word: &str| {
            let at = words.iter().position(|found| *found == word)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        self.passed += before("passed").unwrap_or(0);
        self.failed += before("failed").unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut tally = Tally::default();
        tally.count("running 5 tests");
        tally.count("test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured");
        tally.count("test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured");
        assert_eq!(tally, Tally { passed: 7, failed: 2 });
    }
}
