//! Processes found again after whoever started them is gone.
//!
//! A record names a process by pid, start time and boot. A pid alone could by now be
//! somebody else's: a record that does not fit any more means the process has ended. Signals
//! go through a pidfd, which cannot come to mean another process.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::layout::{Layout, write_whole};

/// What tells a process from every other one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    pid: i32,
    /// Start time in clock ticks since boot: field 22 of proc_pid_stat(5).
    start: u64,
    boot: String,
}

impl Identity {
    /// The identity of the process that has this pid now; `None` when none is running.
    fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = state_and_start(&stat)?;
        // A zombie has ended; only its parent has not looked yet.
        if matches!(state, "Z" | "X") {
            return None;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Self { pid, start, boot: boot.trim().to_owned() })
    }
}

/// State and start time out of a line of proc_pid_stat(5). The name may hold anything, so
/// fields count from its closing parenthesis.
fn state_and_start(stat: &str) -> Option<(&str, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// What a process of the platform does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Supervisor,
    Serve,
    Gateway,
}

impl Kind {
    /// Its name in commands, records and logs.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Serve => "serve",
            Self::Gateway => "gateway",
        }
    }
}

/// A record in the run folder.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    kind: Kind,
    #[serde(flatten)]
    identity: Identity,
}

fn record_path(layout: &Layout, kind: Kind, pid: i32) -> PathBuf {
    layout.processes().join(format!("{}-{pid}.json", kind.word()))
}

/// Notes a running process, so that it can be found again.
pub(super) fn note(layout: &Layout, kind: Kind, pid: i32) -> io::Result<()> {
    // One that has ended already needs no record.
    let Some(identity) = Identity::of(pid) else { return Ok(()) };
    let record = serde_json::to_vec(&Record { kind, identity })?;
    write_whole(&record_path(layout, kind, pid), &record)
}

/// Every process of one kind that is still running. Records of ended ones go.
pub(super) fn running(layout: &Layout, kind: Kind) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(layout.processes()) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(record) = read(&path) else { continue };
        match Process::open(&record.identity) {
            Some(process) if record.kind == kind => found.push(process),
            Some(_) => {}
            // It may be gone already: two commands may look at the same time.
            None => drop(fs::remove_file(&path)),
        }
    }
    found
}

/// Whether any process of the platform is running.
pub(super) fn any_running(layout: &Layout) -> bool {
    let kinds = [Kind::Supervisor, Kind::Serve, Kind::Gateway];
    kinds.into_iter().any(|kind| !running(layout, kind).is_empty())
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// A handle on one running process, whoever its parent is.
pub(super) struct Process {
    pub(super) pid: i32,
    fd: Arc<OwnedFd>,
}

impl Process {
    /// The process of that identity, if it still runs.
    fn open(identity: &Identity) -> Option<Self> {
        let pid = Pid::from_raw(identity.pid)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Looked at after the descriptor was opened: what is compared is what it names.
        let same = Identity::of(identity.pid).as_ref() == Some(identity);
        same.then(|| Self { pid: identity.pid, fd: Arc::new(fd) })
    }

    /// Sends a signal. One that has ended already is as good as one that got it.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.fd, signal);
    }

    /// Returns when it has ended: true, or after `within`: false.
    pub(super) async fn ended(&self, within: Duration) -> bool {
        let fd = Arc::clone(&self.fd);
        tokio::task::spawn_blocking(move || readable(&fd, within)).await.unwrap_or(false)
    }

    /// Asks it to end, and makes it end after `grace`.
    pub(super) async fn end(&self, grace: Duration) {
        self.signal(Signal::TERM);
        if !self.ended(grace).await {
            tracing::warn!(pid = self.pid, "did not end in time; killed");
            self.signal(Signal::KILL);
            self.ended(Duration::from_secs(5)).await;
        }
    }
}

/// Whether the process behind a pidfd ends within that time: it is readable then
/// (pidfd_open(2)).
fn readable(fd: &OwnedFd, within: Duration) -> bool {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn layout(dir: &Path) -> Layout {
        let layout = Layout::new(Some(dir), Some(&dir.join("run"))).unwrap();
        layout.make().unwrap();
        layout
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse() {
        let stat = "7 (a) b) c) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(state_and_start(stat), Some(("R", 4242)));
        assert_eq!(state_and_start("garbage"), None);
    }

    #[tokio::test]
    async fn a_process_is_found_again_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        note(&layout, Kind::Serve, child.id() as i32).unwrap();
        assert!(running(&layout, Kind::Gateway).is_empty());
        let found = running(&layout, Kind::Serve);
        assert_eq!(found.len(), 1);
        assert!(!found[0].ended(Duration::from_millis(1)).await);
        found[0].end(Duration::from_secs(10)).await;
        // Not waited for yet: a zombie counts as ended.
        assert!(running(&layout, Kind::Serve).is_empty());
        assert!(fs::read_dir(layout.processes()).unwrap().next().is_none(), "its record is gone");
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_pid_that_is_somebody_else_s_now_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let me = Identity::of(std::process::id() as i32).unwrap();
        let stranger = Identity { start: me.start + 1, ..me };
        let record = Record { kind: Kind::Serve, identity: stranger };
        let path = record_path(&layout, Kind::Serve, record.identity.pid);
        fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(running(&layout, Kind::Serve).is_empty());
    }
}
