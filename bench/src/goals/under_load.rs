//! Releases under a thousand requests per second, contestant after contestant, round by round.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use stead_testkit::load::{Mix, Plan, Report};

use super::other;
use crate::contest::Row;

const PER_SECOND: f64 = 1000.0;
const MIX: Mix = Mix { keep_alive: 12, one_shot: 4, ..Mix::NOBODY };

/// How somebody releases behind an address that goes on answering, and what was noted of each
/// release.
pub(super) struct Way<T> {
    pub(super) name: &'static str,
    address: SocketAddr,
    host: String,
    release: Box<dyn FnMut(&'static str) -> anyhow::Result<()>>,
    version: &'static str,
    pub(super) noted: Vec<T>,
    trouble: Option<String>,
}

impl<T> Way<T> {
    /// `release` brings version `1` or `2` about and returns when it is through; `1` runs.
    pub(super) fn new(
        name: &'static str,
        address: SocketAddr,
        host: String,
        release: impl FnMut(&'static str) -> anyhow::Result<()> + 'static,
    ) -> Self {
        let release = Box::new(release);
        Self { name, address, host, release, version: "1", noted: Vec::new(), trouble: None }
    }

    /// One figure of every release.
    pub(super) fn row(&self, figure: impl Fn(&T) -> f64) -> Row {
        let figures = self.noted.iter().map(figure).collect();
        Row { trouble: self.trouble.clone(), ..Row::new(self.name, figures) }
    }
}

/// The load of one release, and when the release began and was through in it, in milliseconds.
pub(super) struct Loaded {
    pub(super) report: Report,
    pub(super) begun: f64,
    pub(super) through: f64,
}

/// Lets every way release once in each round, and notes what `note` makes of it. The load goes on
/// for `before` a release and for `after` it.
pub(super) fn releases<T>(
    ways: &mut [Way<T>],
    rounds: usize,
    (before, after): (Duration, Duration),
    note: impl Fn(&Loaded) -> T,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    for _ in 0..rounds {
        for way in ways.iter_mut().filter(|way| way.trouble.is_none()) {
            match release(&runtime, way, before, after) {
                Ok(loaded) => way.noted.push(note(&loaded)),
                Err(error) => way.trouble = Some(format!("{error:#}")),
            }
        }
    }
    Ok(())
}

fn release<T>(
    runtime: &tokio::runtime::Runtime,
    way: &mut Way<T>,
    before: Duration,
    after: Duration,
) -> anyhow::Result<Loaded> {
    let _context = runtime.enter();
    let plan = Plan {
        per_second: Some(PER_SECOND),
        timeout: Duration::from_secs(10),
        ..Plan::new(way.address, way.host.clone()).mix(MIX)
    };
    let load = plan.start();
    // The load has its duration; this is not waiting for a condition.
    thread::sleep(before);
    way.version = other(way.version);
    let begun = load.elapsed_ms();
    (way.release)(way.version)?;
    let through = load.elapsed_ms();
    thread::sleep(after);
    let report = runtime.block_on(load.stop());
    anyhow::ensure!(report.sent > 1000, "the load sent only {} requests", report.sent);
    Ok(Loaded { report, begun, through })
}
