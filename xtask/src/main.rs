//! The project's own commands. It only starts other programs, each by its argument vector, and
//! judges what they say: nothing of stead is linked into it, so `cargo xtask tidy` works while a
//! crate does not compile.

mod bench;
mod demo;
mod fuzz;
mod harness;
mod leftovers;
mod packages;
mod run;
mod samples;
mod test;
mod tidy;
mod v2;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands for work on stead. The first run on a fresh machine installs what it needs from
/// Debian's packages.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build stead, deploy the sample service, upgrade it under load, leave it running.
    Demo(demo::Options),
    /// Run every test, and check that none leaves anything behind.
    Test(test::Options),
    /// Run the engine's tests on an emulated machine with pure cgroup v2.
    TestV2(v2::Options),
    /// Measure stead beside crun, runc, podman and docker.
    Bench(bench::Options),
    /// Give everything that reads what strangers wrote bytes of libFuzzer's making.
    Fuzz(fuzz::Options),
    /// Check the house rules: arrows, sizes, error pages, formatting, lints.
    Tidy(tidy::Options),
    /// Make the test images and serve them by a registry until the standard input ends.
    Images,
    /// Install the Debian packages that tests need, and fetch what the samples need.
    Prepare,
    /// Inside the test namespaces: be the process that adopts orphans.
    #[command(hide = true)]
    HarnessInit(harness::InitOptions),
    /// Inside the test namespaces: run the tests and look for leftovers.
    #[command(hide = true)]
    HarnessTest(test::Options),
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::TestV2(options) => v2::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Tidy(options) => tidy::run(&options),
        Command::Images => {
            packages::install(packages::FOR_TESTS)?;
            let arguments = ["run", "-p", "stead-testkit", "--example", "images", "--", "serve"];
            run::cargo(arguments).run()
        }
        Command::Prepare => {
            packages::install(packages::FOR_TESTS)?;
            samples::prepare()
        }
        Command::HarnessInit(options) => harness::init(&options),
        Command::HarnessTest(options) => test::inside(&options),
    }
}
