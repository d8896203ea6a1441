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
    /// The slowest of the good answers of plain roles in each tenth of a second, from the start.
    pub windows: Vec<Window>,
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

/// A tenth of a second of a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Good answers that were under way in it.
    pub count: u64,
    /// The slowest of them, over its whole way, in milliseconds.
    pub max_ms: f64,
}

impl Window {
    /// Length of a window, in milliseconds.
    pub const MS: f64 = 100.0;

    /// Counts an answer in each window that it was under way in.
    pub(super) fn count(windows: &mut Vec<Self>, due_ms: f64, came_ms: f64) {
        let index = |ms: f64| (ms / Self::MS) as usize;
        let (first, last) = (index(due_ms), index(came_ms));
        if windows.len() <= last {
            windows.resize(last + 1, Self::default());
        }
        for window in &mut windows[first..=last] {
            window.count += 1;
            window.max_ms = window.max_ms.max(came_ms - due_ms);
        }
    }
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
    /// A gRPC call ended with this status.
    Rpc(i32),
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
            Self::Rpc(status) => write!(f, "gRPC status {status}"),
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

    /// The slowest plain request that was under way between two instants, to the tenth of a
    /// second, in milliseconds; zero when there was none.
    pub fn slowest_between(&self, from_ms: f64, to_ms: f64) -> f64 {
        let (first, last) = ((from_ms / Window::MS) as usize, (to_ms / Window::MS) as usize);
        let between = self.windows.iter().take(last + 1).skip(first);
        between.map(|window| window.max_ms).fold(0.0, f64::max)
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
    fn a_slow_request_counts_wherever_it_was_under_way() {
        let mut windows = Vec::new();
        Window::count(&mut windows, 10.0, 12.0);
        Window::count(&mut windows, 90.0, 250.0);
        Window::count(&mut windows, 310.0, 311.0);
        let maxima: Vec<_> = windows.iter().map(|window| window.max_ms).collect();
        assert_eq!(maxima, [160.0, 160.0, 160.0, 1.0]);
        assert_eq!(windows[0].count, 2);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let sorted: Vec<_> = (1..=200).map(Duration::from_millis).collect();
        let latency = Latency::of_sorted(&sorted);
        let Latency { p50_ms, p99_ms, max_ms } = latency;
        assert_eq!((p50_ms, p99_ms, max_ms), (100.0, 198.0, 200.0));
        assert_eq!(Latency::of_sorted(&[]).max_ms, 0.0);
    }
}
