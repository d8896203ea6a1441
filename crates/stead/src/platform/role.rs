//! One child of the supervisor: started, watched, started again when it dies.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdout};
use tokio::time::Instant;

use super::layout::Layout;
use super::process::{self, Kind};

/// The binary that runs now, also when its file was replaced: all roles are of one version.
const SELF: &str = "/proc/self/exe";
/// One that ran this long before it died is started again at once.
const LONG: Duration = Duration::from_secs(10);
/// What a role writes to its standard output when it is ready.
pub(super) const READY: &str = "ready";
/// Longest pause before it is started again. The gateway has to be back within a second.
const LONGEST_PAUSE: Duration = Duration::from_millis(800);
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// A `stead` process with these arguments, apart from the caller's terminal and output. The
/// child makes a session of its own as its first act.
pub(super) fn command(args: impl IntoIterator<Item = OsString>) -> Command {
    let mut command = Command::new(SELF);
    command.arg0("stead").args(args).stdin(Stdio::null()).current_dir("/");
    command
}

/// The first act of a process that a supervisor started.
pub(super) fn leave_session(name: &std::ffi::CStr) {
    // Refused to a leader of its group: started by hand from a shell, it stays there.
    let _ = rustix::process::setsid();
    // The name in process lists would otherwise be `exe`.
    let _ = rustix::thread::set_name(name);
}

/// Lets this process open as many files as it may. What starts us often says 1024, which is not
/// even so many connections. Not for a role that starts others: Containers would have it from
/// it, and some programs close all they could have open, one by one.
pub(super) fn open_many_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!(%error, at_most = limit.current, "no more files may be open");
    }
}

/// A child that shall always run.
pub(super) struct Role {
    kind: Kind,
    layout: Layout,
    flags: Vec<OsString>,
    child: Option<Child>,
    begun: Instant,
    /// Where its log began when it was started.
    log_from: u64,
    /// Deaths in a row, each soon after the start.
    deaths: u32,
}

impl Role {
    /// A role that is not started yet.
    pub(super) fn new(kind: Kind, layout: &Layout, flags: Vec<OsString>) -> Self {
        let layout = layout.clone();
        Self { kind, layout, flags, child: None, begun: Instant::now(), log_from: 0, deaths: 0 }
    }

    /// Starts it. What it has to say goes to its log; its standard output is for
    /// [`said_ready`].
    pub(super) fn start(&mut self) -> io::Result<()> {
        let log = self.layout.open_log(self.kind.word())?;
        self.log_from = log.metadata()?.len();
        let role = OsString::from(self.kind.word());
        let mut command = command([role].into_iter().chain(self.flags.iter().cloned()));
        command.stdout(Stdio::piped()).stderr(log);
        let child = tokio::process::Command::from(command).spawn()?;
        // Looking removes the record of the one that died.
        process::running(&self.layout, self.kind);
        if let Some(pid) = child.id() {
            process::note(&self.layout, self.kind, pid.cast_signed())?;
            tracing::info!(role = self.kind.word(), pid, "started");
        }
        self.child = Some(child);
        self.begun = Instant::now();
        Ok(())
    }

    /// Its pid while it runs.
    pub(super) fn pid(&self) -> Option<i32> {
        self.child.as_ref()?.id().map(u32::cast_signed)
    }

    /// Returns when it has died; never while it is not started. May be dropped and called
    /// again.
    pub(super) async fn died(&mut self) -> io::Result<ExitStatus> {
        match &mut self.child {
            Some(child) => child.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Its standard output, once.
    pub(super) fn output(&mut self) -> Option<ChildStdout> {
        self.child.as_mut()?.stdout.take()
    }

    /// Notes a death; gives the pause before the next start.
    pub(super) fn mourn(&mut self) -> Duration {
        self.child = None;
        self.deaths = if self.begun.elapsed() > LONG { 0 } else { self.deaths + 1 };
        match self.deaths {
            0 | 1 => Duration::ZERO,
            n => LONGEST_PAUSE.min(SHORTEST_PAUSE * 2u32.saturating_pow(n - 2)),
        }
    }

    /// What its log said last.
    pub(super) fn last_words(&self) -> String {
        self.layout.tail_of_log(self.kind.word(), self.log_from, 8)
    }

    /// Its name.
    pub(super) fn word(&self) -> &'static str {
        self.kind.word()
    }
}

/// Returns when a role has said on its standard output that it is ready; never when it ends
/// before.
pub(super) async fn said_ready(output: Option<ChildStdout>) {
    if let Some(output) = output {
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line).await;
        if read.is_ok() && line.trim_end() == READY {
            return;
        }
    }
    std::future::pending().await
}

/// Says to whoever started this role that it is ready.
pub(super) fn say_ready() {
    // Nobody may be listening any more: that is no reason to end.
    let _ = writeln!(io::stdout(), "{READY}");
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn who_dies_often_waits_a_little_longer_each_time() {
        let layout = Layout::new(Some(Path::new("/srv/x")), None).unwrap();
        let mut role = Role::new(Kind::Gateway, &layout, Vec::new());
        let pauses: Vec<u128> = (0..8).map(|_| role.mourn().as_millis()).collect();
        assert_eq!(pauses, [0, 50, 100, 200, 400, 800, 800, 800]);
    }
}
