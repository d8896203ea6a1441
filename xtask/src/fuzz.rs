//! libFuzzer on everything that reads what strangers wrote: the targets of `fuzz/`.
//!
//! Needs no nightly toolchain: what libFuzzer must know of a program's branches is a pass of
//! LLVM that the stable compiler runs too. A target is what has a folder of seeds.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::run::{self, cargo, program, root};

/// Makes the program count edges and comparisons, where libFuzzer looks for them; the flags
/// that cargo-fuzz sets.
const INSTRUMENTED: &str = "-Cpasses=sancov-module \
     -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares \
     -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
     -Ccodegen-units=16";
/// What one run of a target may take, and what it may be given.
const BOUNDS: [&str; 3] = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"];
/// Words of the lines that say what was found, and where the input is kept.
const SAYS_WHAT: [&str; 3] = ["panicked at", "ERROR: libFuzzer", "Test unit written to"];
/// Other lines shown behind the first of these.
const SHOWN: usize = 30;

/// What to fuzz, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Targets; all of them if none is named.
    targets: Vec<String>,
    /// For how long, shared out among the targets.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Name the targets.
    #[arg(long)]
    list: bool,
}

/// Builds the targets and runs them, one after the other.
///
/// # Errors
/// When they cannot be built, or one of them found something; what, has been printed.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let all = targets()?;
    if options.list {
        all.iter().for_each(|target| println!("{target}"));
        return Ok(());
    }
    let chosen = match &options.targets[..] {
        [] => &all,
        named => named,
    };
    if let Some(unknown) = chosen.iter().find(|target| !all.contains(target)) {
        bail!("no target is called {unknown:?}; there are {}", all.join(", "));
    }
    let fuzzer = build()?;
    let each = Duration::from_secs((options.seconds / chosen.len() as u64).max(1));
    println!("{:<18}{:>10}{:>12}{:>10}{:>10}", "target", "seconds", "runs", "edges", "corpus");
    let mut found = Vec::new();
    for target in chosen {
        let outcome = fuzz(&fuzzer, target, each)?;
        let Figures { runs, edges, corpus } = &outcome.figures;
        println!("{target:<18}{:>10}{runs:>12}{edges:>10}{corpus:>10}", each.as_secs());
        if let Some(told) = outcome.found {
            println!("{told}");
            found.push(target.as_str());
        }
    }
    if !found.is_empty() {
        bail!(
            "something was found by {}: see above. Make the input a seed under fuzz/seeds/TARGET, \
             where it is a test from then on, and mend what it breaks",
            found.join(", ")
        );
    }
    Ok(())
}

/// The names of the targets.
fn targets() -> anyhow::Result<Vec<String>> {
    let seeds = fs::read_dir(root().join("fuzz/seeds")).context("the folder fuzz/seeds")?;
    let name = |entry: std::io::Result<fs::DirEntry>| {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    let mut names = seeds.map(name).collect::<std::io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The program with all targets in it.
fn build() -> anyhow::Result<PathBuf> {
    if program("c++", ["--version"]).output().is_err() {
        bail!("libFuzzer is C++ and there is no compiler for it: apt-get install g++");
    }
    let version = program("rustc", ["-vV"]).output()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say for what it compiles")?;
    let folder = run::target().join("fuzz");
    // A target named leaves build scripts and macros as they are.
    cargo(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", host])
        .arg("--target-dir")
        .arg(&folder)
        .env("RUSTFLAGS", INSTRUMENTED)
        .run()?;
    Ok(folder.join(host).join("release/stead-fuzz"))
}

/// What came of one target.
struct Outcome {
    figures: Figures,
    /// What it said of what it found.
    found: Option<String>,
}

/// As libFuzzer counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    runs: u64,
    edges: u64,
    /// Inputs kept, each of which reached something new.
    corpus: u64,
}

fn fuzz(fuzzer: &Path, target: &str, time: Duration) -> anyhow::Result<Outcome> {
    let made = |folder: &str| {
        let path = run::target().join("fuzz").join(folder).join(target);
        fs::create_dir_all(&path).with_context(|| path.display().to_string()).map(|()| path)
    };
    let (corpus, findings) = (made("corpus")?, made("findings")?);
    let mut fuzzer = program(fuzzer, BOUNDS)
        .env("STEAD_FUZZ_TARGET", target)
        .args(&["-print_final_stats=1", "-verbosity=1"])
        .arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-artifact_prefix={}/", findings.display()));
    let dictionary = root().join("fuzz/dictionaries").join(target);
    if dictionary.exists() {
        fuzzer = fuzzer.arg(format!("-dict={}", dictionary.display()));
    }
    // New inputs go to the first folder.
    let fuzzer = fuzzer.arg(corpus).arg(root().join("fuzz/seeds").join(target));
    let mut command = fuzzer.into_command();
    let mut child = command.stderr(Stdio::piped()).spawn().context("the fuzzer cannot start")?;
    let output = child.stderr.take().context("it has no output")?;
    let mut figures = Figures::default();
    let mut told = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("the output of the fuzzer")?;
        let line = String::from_utf8_lossy(&line).into_owned();
        figures.read(&line);
        let important = SAYS_WHAT.iter().any(|words| line.contains(words));
        if important || (!told.is_empty() && told.len() < SHOWN) {
            told.push(line);
        }
    }
    let status = child.wait().context("waiting for the fuzzer")?;
    // What a target has in memory stays there when it ends in the middle.
    let _ = fs::remove_dir_all(format!("/dev/shm/stead-fuzz-{}", child.id()));
    let found = (!status.success()).then(|| told.join("\n"));
    Ok(Outcome { figures, found })
}

impl Figures {
    /// Takes what a line of libFuzzer says: `#123 DONE cov: 45 ft: 67 corp: 8/90b …` or
    /// `stat::number_of_executed_units: 123`.
    fn read(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        let after = |word: &str| {
            let at = words.iter().position(|found| *found == word)?;
            words.get(at + 1)?.split('/').next()?.parse().ok()
        };
        let counted = words.first().and_then(|word| word.strip_prefix('#'));
        let counted = counted.and_then(|runs| runs.trim_end_matches(':').parse().ok());
        let runs = after("stat::number_of_executed_units:").or(counted);
        self.runs = runs.unwrap_or(self.runs).max(self.runs);
        self.edges = after("cov:").unwrap_or(self.edges);
        self.corpus = after("corp:").unwrap_or(self.corpus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_off_libfuzzer_s_lines() {
        let mut figures = Figures::default();
        for line in [
            "INFO: seed corpus: files: 6 min: 1024b max: 4096b total: 15360b rss: 40Mb",
            "#7\tINITED cov: 700 ft: 900 corp: 6/15Kb exec/s: 0 rss: 41Mb",
            "#4096\tpulse  cov: 812 ft: 1200 corp: 31/80Kb lim: 4096 exec/s: 2048 rss: 45Mb",
            "==1== ERROR: libFuzzer: deadly signal",
            "stat::number_of_executed_units: 5000",
        ] {
            figures.read(line);
        }
        assert_eq!(figures, Figures { runs: 5000, edges: 812, corpus: 31 });
    }

    #[test]
    fn every_dictionary_belongs_to_a_target() {
        let targets = targets().unwrap();
        for entry in fs::read_dir(root().join("fuzz/dictionaries")).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            assert!(targets.contains(&name), "{name}");
        }
    }
}
