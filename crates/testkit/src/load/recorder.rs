//! Counts what the clients see. Shared by all of them; a failure is never lost, latencies are
//! kept one by one (eight bytes each).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Role;
use super::report::{Failure, FailureKind, Latency, Report, Version, Window, millis};

/// With so many failures nothing more is learnt: the load ends.
pub(super) const MOST_FAILURES: usize = 10_000;

#[derive(Debug)]
pub(super) struct Recorder {
    start: Instant,
    sent: AtomicU64,
    seen: Mutex<Seen>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Seen {
    failed: Vec<Failure>,
    versions: BTreeMap<String, Version>,
    latencies: Vec<Duration>,
    windows: Vec<Window>,
    last_ok: Option<Instant>,
    longest_gap: Duration,
}

/// Wakes when something was recorded.
pub(super) struct Changes(watch::Receiver<()>);

impl Changes {
    pub(super) async fn wait(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Recorder {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            sent: AtomicU64::new(0),
            seen: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    pub(super) fn sending(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn ok(&self) -> u64 {
        self.seen().latencies.len() as u64
    }

    pub(super) fn failed(&self) -> usize {
        self.seen().failed.len()
    }

    pub(super) fn saw(&self, version: &str) -> bool {
        self.seen().versions.contains_key(version)
    }

    pub(super) fn changes(&self) -> Changes {
        Changes(self.changed.subscribe())
    }

    /// A request that was due at `due` has its whole answer, from `version`.
    pub(super) fn succeeded(&self, role: Role, due: Instant, version: &str) {
        let now = Instant::now();
        let since_start = millis(now - self.start);
        let mut seen = self.seen();
        seen.latencies.push(now - due);
        if role.is_plain() {
            Window::count(&mut seen.windows, millis(due - self.start), since_start);
        }
        if let Some(last) = seen.last_ok.replace(now) {
            seen.longest_gap = seen.longest_gap.max(now.saturating_duration_since(last));
        }
        if let Some(version) = seen.versions.get_mut(version) {
            version.count += 1;
            version.last_ms = since_start;
        } else {
            let first = Version { count: 1, first_ms: since_start, last_ms: since_start };
            seen.versions.insert(version.to_owned(), first);
        }
        drop(seen);
        self.changed.send_replace(());
    }

    pub(super) fn failed_with(&self, role: Role, kind: FailureKind, what: String) {
        let at_ms = self.elapsed_ms();
        self.seen().failed.push(Failure { at_ms, role, kind, seen: what });
        self.changed.send_replace(());
    }

    pub(super) fn elapsed_ms(&self) -> f64 {
        millis(self.start.elapsed())
    }

    /// A bug of the generator must not look like a quiet load.
    pub(super) fn client_died(&self, why: &str) {
        self.sending();
        self.failed_with(Role::OneShot, FailureKind::Protocol, format!("a client died: {why}"));
    }

    pub(super) fn report(&self) -> Report {
        let seen = self.seen();
        let mut latencies = seen.latencies.clone();
        latencies.sort_unstable();
        Report {
            sent: self.sent(),
            ok: latencies.len() as u64,
            failed: seen.failed.clone(),
            by_version: seen.versions.clone(),
            latency: Latency::of_sorted(&latencies),
            windows: seen.windows.clone(),
            longest_gap_ms: millis(seen.longest_gap),
            elapsed_ms: self.elapsed_ms(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // A panicking client is reported by its task; what it counted stays true.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
