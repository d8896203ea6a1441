//! A Docker daemon of our own, by hand, with its own roots.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{CGROUP, STOP_SIGNAL, quiet};

const SOCKET: &str = "unix:///run/stead-bench-docker.sock";

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Docker {
    daemon: Child,
}

impl Docker {
    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let log = File::create(folder.join("dockerd.log"))?;
        let daemon = Command::new("dockerd")
            .arg("--data-root")
            .arg(folder.join("data"))
            .args(["--exec-root", "/run/stead-bench-docker", "--host", SOCKET])
            .args(["--pidfile", "/run/stead-bench-docker.pid"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("dockerd cannot be started")?;
        let docker = Self { daemon };
        let deadline = Instant::now() + Duration::from_secs(60);
        while quiet(client().arg("info")).is_err() {
            if Instant::now() > deadline {
                docker.stop();
                bail!("dockerd does not answer; see {}", folder.join("dockerd.log").display());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(docker)
    }

    /// Loads a `docker save` archive.
    pub(crate) fn load(&self, archive: &Path) -> anyhow::Result<()> {
        quiet(client().args(["load", "--quiet", "--input"]).arg(archive))
    }

    /// Runs the trivial App of a version, published at `address`.
    pub(crate) fn run(name: &str, version: &str, address: SocketAddr) -> anyhow::Result<()> {
        Self::run_slow(name, version, address, 0)
    }

    /// The same, of an App that takes so many milliseconds until it listens.
    pub(crate) fn run_slow(
        name: &str,
        version: &str,
        address: SocketAddr,
        start_delay: u64,
    ) -> anyhow::Result<()> {
        quiet(
            client()
                .args(["run", "--detach", "--name", name, "--stop-signal", STOP_SIGNAL])
                .args(["--cgroup-parent", CGROUP])
                .args(["--publish", &format!("{address}:8080")])
                .args(["--env", &format!("START_DELAY_MS={start_delay}")])
                .arg(format!("trivial:{version}")),
        )
    }

    /// Stops and removes a container, in the one call docker has for it.
    pub(crate) fn remove(name: &str) -> anyhow::Result<()> {
        quiet(client().args(["rm", "--force", name]))
    }

    /// Restarts a container.
    pub(crate) fn restart(name: &str) -> anyhow::Result<()> {
        quiet(client().args(["restart", "--time", "0", name]))
    }

    /// Removes every container and ends the daemon.
    pub(crate) fn stop(mut self) {
        let listed = client().args(["ps", "--all", "--quiet"]).output();
        if let Ok(listed) = listed {
            for id in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
                let _ = Self::remove(id);
            }
        }
        // SIGTERM lets it unmount and end its containerd.
        let pid = self.daemon.id().to_string();
        let _ = quiet(Command::new("kill").args(["-TERM", &pid]));
        let deadline = Instant::now() + Duration::from_secs(15);
        while Instant::now() < deadline && matches!(self.daemon.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn client() -> Command {
    let mut command = Command::new(client_program());
    command.args(["--host", SOCKET]);
    command
}

/// Debian's client: another one first in the path may be too new for Debian's daemon.
fn client_program() -> &'static str {
    if Path::new("/usr/bin/docker").exists() { "/usr/bin/docker" } else { "docker" }
}
