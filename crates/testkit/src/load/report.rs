//! What a load saw.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Role;

/// The outcome of a load. Times are in milliseconds, `*_ms` instants since its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Requests sent; an echo on a WebSocket counts as one.
    pub sent: u64,
    /// Of those, the ones with a whole, good answer.
    pub ok: u64,
    /// The others.
    pub failed: Vec<Failure>,
    /// Good answers by the version that gave them.
    pub by_version: BTreeMap<String, Version>,
    /// Latency of the good answers, from when they were due.
    pub latency: Latency,
    /// The longest time in which no client got a good answer.
    pub longest_gap_ms: f64,
    /// How long the load ran.
    pub elapsed_ms: f64,
}

/// Answers of one version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Version {
    /// How many.
    pub count: u64,
    /// When the first came.
    pub first_ms: f64,
    /// When the last came.
    pub last_ms: f64,
}

/// Latencies in milliseconds; zero when nothing was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50_ms: f64,
    /// 99 of 100 were at most this.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Latency {
    pub(super) fn of_sorted(sorted: &[Duration]) -> Self {
        // Nearest rank.
        let rank = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().map_or(0.0, millis)
        };
        Self { p50_ms: rank(0.5), p99_ms: rank(0.99), max_ms: rank(1.0) }
    }
}

/// One request that went wrong.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// When it was noticed.
    pub at_ms: f64,
    /// What the client was doing.
    pub role: Role,
    /// In what way it went wrong.
    pub kind: FailureKind,
    /// What was seen, for a person.
    pub seen: String,
}

/// In what way a request went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The connection was refused or could not be made.
    Connect,
    /// The connection ended before the head of the answer.
    Closed,
    /// The answer had this status.
    Status(u16),
    /// The answer was cut off or not what it had to be.
    Body,
    /// What arrived was not HTTP or WebSocket as it should be.
    Protocol,
    /// The whole answer was not there in time.
    Timeout,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("not connected"),
            Self::Closed => f.write_str("closed without an answer"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Body => f.write_str("wrong or cut body"),
            Self::Protocol => f.write_str("protocol broken"),
            Self::Timeout => f.write_str("timed out"),
        }
    }
}

impl Report {
    /// Whether nothing failed and at least `minimum` requests were sent.
    ///
    /// # Errors
    /// A text that says what went wrong, with the first failures.
    pub fn lossless(&self, minimum: u64) -> Result<(), String> {
        if self.failed.is_empty() && self.sent >= minimum && self.ok == self.sent {
            return Ok(());
        }
        Err(format!("{self}\n(expected no failure and at least {minimum} requests)"))
    }

    /// Asserts that nothing failed and at least `minimum` requests were sent.
    ///
    /// # Panics
    /// Otherwise, with what was seen.
    #[track_caller]
    pub fn assert_lossless(&self, minimum: u64) {
        if let Err(text) = self.lossless(minimum) {
            panic!("{text}");
        }
    }

    /// Answers of a version.
    pub fn of_version(&self, version: &str) -> u64 {
        self.by_version.get(version).map_or(0, |version| version.count)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50_ms, p99_ms, max_ms } = self.latency;
        writeln!(
            f,
            "{} sent, {} ok, {} failed in {:.1} s; p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, \
             slowest {max_ms:.2} ms, longest gap {:.2} ms",
            self.sent,
            self.ok,
            self.failed.len(),
            self.elapsed_ms / 1000.0,
            self.longest_gap_ms
        )?;
        for (name, version) in &self.by_version {
            let Version { count, first_ms, last_ms } = version;
            writeln!(f, "  version {name}: {count} answers, {first_ms:.0} to {last_ms:.0} ms")?;
        }
        let mut kinds: BTreeMap<FailureKind, usize> = BTreeMap::new();
        for failure in &self.failed {
            *kinds.entry(failure.kind).or_default() += 1;
        }
        for (kind, count) in kinds {
            writeln!(f, "  {count} x {kind}")?;
        }
        for failure in self.failed.iter().take(10) {
            let Failure { at_ms, role, kind, seen } = failure;
            writeln!(f, "  at {at_ms:.0} ms {role:?}: {kind}: {seen}")?;
        }
        Ok(())
    }
}

pub(super) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        let latency = Latency::of_sorted(&sorted);
        let Latency { p50_ms, p99_ms, max_ms } = latency;
        assert_eq!((p50_ms, p99_ms, max_ms), (100.0, 198.0, 200.0));
        assert_eq!(Latency::of_sorted(&[]).max_ms, 0.0);
    }
}
