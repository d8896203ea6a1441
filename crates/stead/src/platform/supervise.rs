//! The supervisor: the parent of `serve` and of the gateway.
//!
//! # Flow
//! Take the lock (from a predecessor, which retires) → end the predecessor's `serve` → start
//! a new one → start a gateway, which takes the sockets over from one that runs → watch.
//!
//! # Guarantees
//! A child that dies is started again. SIGTERM and SIGINT end both children; SIGHUP has the
//! gateway read certificates and open its access log again; SIGUSR2 makes the supervisor
//! retire and leaves the children to its successor. A start that fails ends only what
//! this supervisor started: a gateway that ran before goes on.
//!
//! # Assumptions
//! A gateway that was taken over drains and ends by itself.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;
use stead_core::error::{Code, UserError};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::Instant;

use super::layout::Layout;
use super::process::{self, Kind, running};
use super::ready;
use super::role::{Role, said_ready};
use super::settings::Settings;

/// Asks a supervisor to leave its children to a successor.
const RETIRE: Signal = Signal::USR2;
/// How long a gateway may drain, and `serve` may finish, when the platform is stopped.
const STOP: Duration = Duration::from_secs(20);
/// How long a predecessor may take to retire.
const HANDOVER: Duration = Duration::from_secs(15);
/// How long the start of a child may take: `serve` may have many Sandboxes to find again.
const START: Duration = Duration::from_secs(60);
/// Between two attempts to get the lock.
const PACE: Duration = Duration::from_millis(20);

/// Runs until it is told to end. `ready` is called once, when both children answer.
///
/// # Errors
/// When a child cannot be started at all; what it said last is in the message.
pub(crate) async fn run(settings: Settings, ready: impl FnOnce()) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut retire = signal(SignalKind::user_defined2())?;
    let hangup = signal(SignalKind::hangup())?;
    settings.layout.make()?;
    let lock = take_lock(&settings.layout).await?;
    let layout = &settings.layout;
    let me = std::process::id();
    process::note(layout, Kind::Supervisor, me.cast_signed())?;
    fs::write(layout.pid_file(), format!("{me}\n"))?;
    settings.write()?;

    let mut family = Family::new(&settings, hangup);
    let end = tokio::select! {
        failed = family.keep(ready) => End::Failed(failed),
        _ = terminate.recv() => End::Stop,
        _ = interrupt.recv() => End::Stop,
        _ = retire.recv() => End::Retire,
    };
    match end {
        End::Retire => {
            tracing::info!("a successor takes over");
            drop(lock);
            Ok(())
        }
        End::Stop => {
            tracing::info!("stopping");
            stop_everything(layout).await;
            Ok(())
        }
        End::Failed(error) => {
            family.stop_own().await;
            Err(error)
        }
    }
}

enum End {
    Stop,
    Retire,
    Failed(anyhow::Error),
}

/// Ends the gateways, then `serve`, whoever started them. What the platform was started with
/// stays noted: `down --all` needs it, and so does the next `up`.
pub(super) async fn stop_everything(layout: &Layout) {
    // Gateways first: what they report last is still taken in.
    end_all(layout, Kind::Gateway).await;
    end_all(layout, Kind::Serve).await;
    // Gone already is fine.
    let _ = fs::remove_file(layout.pid_file());
}

async fn end_all(layout: &Layout, kind: Kind) {
    let all = running(layout, kind);
    futures_util::future::join_all(all.iter().map(|process| process.end(STOP))).await;
    // Looking again removes their records.
    running(layout, kind);
}

/// The lock that one supervisor holds. A predecessor is asked to retire.
async fn take_lock(layout: &Layout) -> Result<File> {
    let path = layout.lock();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let deadline = Instant::now() + HANDOVER;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        for predecessor in running(layout, Kind::Supervisor) {
            tracing::info!(pid = predecessor.pid, "asking the running supervisor to retire");
            predecessor.signal(RETIRE);
            predecessor.ended(HANDOVER).await;
        }
        if Instant::now() > deadline {
            return Err(UserError::new(
                Code::Conflict,
                format!("another supervisor holds {} and does not retire", path.display()),
                "wait until the other `stead up` is through, or use `stead down`",
            )
            .into());
        }
        tokio::time::sleep(PACE).await;
    }
    Ok(file)
}

/// The two children.
struct Family<'a> {
    settings: &'a Settings,
    hangup: Signals,
    serve: Role,
    gateway: Role,
}

impl<'a> Family<'a> {
    fn new(settings: &'a Settings, hangup: Signals) -> Self {
        let layout = &settings.layout;
        Self {
            settings,
            hangup,
            serve: Role::new(Kind::Serve, layout, settings.serve_flags()),
            gateway: Role::new(Kind::Gateway, layout, settings.gateway_flags()),
        }
    }

    /// Starts both and keeps them running. Returns only when the start fails.
    async fn keep(&mut self, ready: impl FnOnce()) -> anyhow::Error {
        if let Err(error) = self.start().await {
            return error;
        }
        ready();
        loop {
            let role = tokio::select! {
                _ = self.hangup.recv() => {
                    running(&self.settings.layout, Kind::Gateway)
                        .iter()
                        .for_each(|gateway| gateway.signal(Signal::HUP));
                    continue;
                }
                end = self.serve.died() => { log_death("serve", end); &mut self.serve }
                end = self.gateway.died() => { log_death("gateway", end); &mut self.gateway }
            };
            // One after the other: both dying at once is rare, and pauses are short.
            loop {
                tokio::time::sleep(role.mourn()).await;
                match role.start() {
                    Ok(()) => break,
                    Err(error) => tracing::error!(role = role.word(), %error, "cannot be started"),
                }
            }
        }
    }

    async fn start(&mut self) -> Result<()> {
        let layout = &self.settings.layout;
        let succeed = !running(layout, Kind::Gateway).is_empty();
        end_all(layout, Kind::Serve).await;
        self.serve.start().context("serve cannot be started")?;
        // Where one runs already, nothing is touched before the new `serve` is known to work.
        if !succeed {
            self.gateway.start().context("the gateway cannot be started")?;
        }
        started(&mut self.serve, |pid| ready::serve(self.settings, pid)).await?;
        if succeed {
            self.gateway.start().context("the gateway cannot be started")?;
        }
        let output = self.gateway.output();
        started(&mut self.gateway, |_| said_ready(output)).await
    }

    /// Ends what this supervisor started.
    async fn stop_own(&mut self) {
        let own: Vec<i32> = [self.gateway.pid(), self.serve.pid()].into_iter().flatten().collect();
        for kind in [Kind::Gateway, Kind::Serve] {
            for process in running(&self.settings.layout, kind) {
                if own.contains(&process.pid) {
                    process.end(STOP).await;
                }
            }
        }
    }
}

/// Waits until a child answers.
async fn started<F: Future<Output = ()>>(
    role: &mut Role,
    answers: impl FnOnce(i32) -> F,
) -> Result<()> {
    let pid = role.pid().context("it has ended already")?;
    let what = tokio::select! {
        () = answers(pid) => return Ok(()),
        end = role.died() => match end {
            Ok(status) => format!("ended at once ({status})"),
            Err(error) => format!("cannot be watched: {error}"),
        },
        () = tokio::time::sleep(START) => format!("does not answer after {} s", START.as_secs()),
    };
    let words = role.last_words();
    let words = if words.is_empty() { String::new() } else { format!("; it said last:\n{words}") };
    Err(UserError::new(
        Code::PlatformDown,
        format!("{} {what}{words}", role.word()),
        "`stead doctor` checks the machine; the logs are in the folder `log` of the data directory",
    )
    .into())
}

fn log_death(role: &str, end: io::Result<std::process::ExitStatus>) {
    match end {
        Ok(status) => tracing::warn!(role, %status, "died; starting it again"),
        Err(error) => tracing::warn!(role, %error, "cannot be watched; starting it again"),
    }
}
