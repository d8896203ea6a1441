//! Measures stead beside crun, runc, podman and docker on the same machine, in the same minutes.
//!
//! `cargo xtask bench` builds it in release mode and runs it in namespaces of its own (process
//! ids, mounts, network), so that nothing here can touch the machine's own containers, and what
//! is left ends with them. It promises fair turns: contestants are measured in rounds, each once
//! per round, never one after the other in blocks. It sets no limits: figures are for reading.

mod answer;
mod contest;
mod engine;
mod goals;
mod link;
mod peers;
mod platform;
mod table;
mod workshop;

use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;

use contest::Outcome;
use goals::{GOALS, Goal};
use workshop::Workshop;

/// Benchmarks of stead.
#[derive(Parser)]
struct Options {
    /// Only this goal; `list` names them all.
    name: Option<String>,
    /// Print one JSON document instead of tables.
    #[arg(long)]
    json: bool,
    /// Rounds of each goal; each has a default of its own.
    #[arg(long)]
    rounds: Option<usize>,
    /// Only contestants whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    if options.name.as_deref() == Some("list") {
        for goal in GOALS {
            println!("{:<10} goal {:<4} {}", goal.name, goal.number, goal.title);
        }
        return Ok(());
    }
    let chosen = chosen(options.name.as_deref())?;
    let mut workshop = Workshop::open(options.only.clone()).context("preparing the workshop")?;
    let mut outcomes = Vec::new();
    for goal in chosen {
        eprintln!("measuring {} ({})", goal.name, goal.title);
        let rounds = options.rounds.unwrap_or(goal.rounds);
        let measured = (goal.measure)(&mut workshop, rounds);
        let measured = measured.with_context(|| format!("goal {}", goal.name))?;
        if !options.json {
            measured.iter().for_each(table::print);
        }
        outcomes.extend(measured);
    }
    if options.json {
        println!("{}", document(&outcomes)?);
    }
    Ok(())
}

fn chosen(name: Option<&str>) -> anyhow::Result<Vec<&'static Goal>> {
    let chosen: Vec<_> = GOALS
        .iter()
        .filter(|goal| name.is_none_or(|name| name == goal.name || name == goal.number))
        .collect();
    if chosen.is_empty() {
        bail!("there is no goal of this name; `list` names them");
    }
    Ok(chosen)
}

fn document(outcomes: &[Outcome]) -> anyhow::Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let document = serde_json::json!({
        "machine": {
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "kernel": kernel.trim(),
        },
        "outcomes": outcomes.iter().map(table::to_json).collect::<Vec<_>>(),
    });
    Ok(serde_json::to_string_pretty(&document)?)
}
