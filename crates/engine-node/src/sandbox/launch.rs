//! Starting a holder: process, namespaces, link and address. What comes out belongs to nobody
//! yet.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::time::timeout;

use super::SandboxError;
use super::host::Means;
use super::link::{Link, socket_pair, watch};
use crate::network::{Connection, Index};

/// How long a holder may take to come up. It takes a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The first user id given to a Sandbox: below are people and services, and ranges that other
/// tools hand out from /etc/subuid.
const FIRST_USER: u32 = 16_777_216;

/// User ids of each Sandbox.
const USERS_EACH: u32 = 65_536;

/// A holder with its namespaces and its link.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) connection: Connection,
    pub(crate) link: Arc<Link>,
    pub(crate) process: Process,
    pub(crate) folder: PathBuf,
}

/// A process that is not ours to wait for, by a descriptor that never names another one.
#[derive(Debug)]
pub(crate) struct Process(AsyncFd<OwnedFd>);

impl Process {
    /// The process of this number, which must still be alive or unreaped.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        watch(pidfd_open(pid, PidfdFlags::empty())?).map(Self)
    }

    pub(crate) fn kill(&self) {
        // One that has ended cannot be killed, which is just as good.
        let _ = pidfd_send_signal(self.0.get_ref(), Signal::KILL);
    }

    pub(crate) fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut entry = [PollFd::new(self.0.get_ref(), PollFlags::IN)];
        matches!(poll(&mut entry, Some(&rustix::event::Timespec::default())), Ok(1))
    }

    /// Waits for its end; kills it when it takes too long.
    pub(crate) async fn ended(&self) {
        if timeout(PATIENCE, self.0.readable()).await.is_err() {
            self.kill();
            let _ = timeout(PATIENCE, self.0.readable()).await;
        }
    }
}

/// The first host id of a Sandbox's range.
pub(crate) fn first_user(index: Index) -> u32 {
    FIRST_USER + u32::from(index.0) * USERS_EACH
}

/// The folder of a holder, below the run folder.
pub(crate) fn folder(run_dir: &Path, index: Index) -> PathBuf {
    run_dir.join("sb").join(index.0.to_string())
}

/// Starts a holder and connects it. After a failure nothing is left of it.
pub(crate) async fn launch(
    means: &Arc<Means>,
    wanted: Option<Ipv4Addr>,
) -> Result<Held, SandboxError> {
    let index = means.network.take(wanted).ok_or(SandboxError::Full)?;
    let folder = folder(&means.run_dir, index);
    let launched = start(means, index, &folder).await;
    if launched.is_err() {
        let _ = fs::remove_dir_all(&folder);
        means.network.release(index);
    }
    launched
}

async fn start(means: &Arc<Means>, index: Index, folder: &Path) -> Result<Held, SandboxError> {
    let (mine, theirs) = socket_pair().map_err(SandboxError::step("control socket"))?;
    make_folder(folder).map_err(SandboxError::step(format!("folder {}", folder.display())))?;
    let mut child = spawn(&means.holder, index, folder, theirs)
        .await
        .map_err(SandboxError::step("starting the holder"))?;
    let connected = connect(means, index, mine, child.id()).await;
    match connected {
        Ok((connection, link, process)) => {
            // The runtime reaps it should it end while this `serve` is its parent.
            drop(child);
            Ok(Held { connection, link, process, folder: folder.to_owned() })
        }
        Err(error) => {
            let _ = child.kill().await;
            Err(error)
        }
    }
}

/// Starts the program. Its arguments can be read by everybody inside, because the init of a
/// Container is a copy of it; its environment cannot.
async fn spawn(
    program: &Path,
    index: Index,
    folder: &Path,
    socket: OwnedFd,
) -> io::Result<tokio::process::Child> {
    let mut command = Command::new(program);
    command
        .arg0("stead-holder")
        .arg(index.0.to_string())
        .env_clear()
        .env("STEAD_FOLDER", folder)
        .env("STEAD_FIRST_ID", first_user(index).to_string())
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // The caller stands still until the program has been loaded.
    let spawning = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        loop {
            match command.spawn() {
                // A process that was being started while the program was written holds it open
                // for writing for a moment longer.
                Err(error)
                    if error.kind() == io::ErrorKind::ExecutableFileBusy
                        && begun.elapsed() < PATIENCE =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                other => return other,
            }
        }
    });
    spawning.await.map_err(io::Error::other)?
}

async fn connect(
    means: &Arc<Means>,
    index: Index,
    socket: OwnedFd,
    pid: Option<u32>,
) -> Result<(Connection, Arc<Link>, Process), SandboxError> {
    let pid = pid.ok_or(io::ErrorKind::NotFound).map_err(io::Error::from);
    let pid = pid.map_err(SandboxError::step("starting the holder"))?;
    let process = Process::open(pid as i32).map_err(SandboxError::step("holder"))?;
    means.cgroups.adopt_holder(pid).map_err(SandboxError::step("control group of holders"))?;
    let link = Link::new(socket).map_err(SandboxError::step("control socket"))?;
    let silent = || SandboxError::Step {
        step: "holder".into(),
        source: io::Error::new(io::ErrorKind::BrokenPipe, "it ended before it was ready"),
    };
    let (netns, routing) = match timeout(PATIENCE, link.hello()).await {
        Ok(Ok(descriptors)) => descriptors,
        Ok(Err(Some(failure))) => return Err(SandboxError::from_holder("", failure)),
        Ok(Err(None)) | Err(_) => return Err(silent()),
    };
    let network = means.clone();
    let connection =
        tokio::task::spawn_blocking(move || network.network.connect(index, netns.as_fd(), routing))
            .await
            .map_err(io::Error::other)
            .and_then(|connected| connected)
            .map_err(SandboxError::step("network"))?;
    Ok((connection, link, process))
}

fn make_folder(folder: &Path) -> io::Result<()> {
    // Left by a holder that was never found again: nothing in it is of use.
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)
}
