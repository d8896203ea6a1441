//! A containerd of our own, by hand, with its own roots; driven by `ctr`, with runc beneath.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::quiet;

const STATE: &str = "/run/stead-bench-containerd";
const SOCKET: &str = "/run/stead-bench-containerd.sock";
/// Longer than it takes to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running daemon; dropped, it ends.
#[derive(Debug)]
pub(crate) struct Containerd {
    daemon: Child,
    log: PathBuf,
}

impl Containerd {
    /// Starts the daemon and waits until it answers.
    pub(crate) fn start(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let config = folder.join("config.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {STATE:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = {SOCKET:?}\n",
            folder.join("root")
        );
        fs::write(&config, text)?;
        let log = folder.join("containerd.log");
        let daemon = Command::new("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("containerd cannot be started")?;
        let containerd = Self { daemon, log };
        let deadline = Instant::now() + PATIENCE;
        while quiet(ctr().arg("version")).is_err() {
            if Instant::now() > deadline {
                bail!("containerd does not answer; see {}", containerd.log.display());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(containerd)
    }

    /// Fetches and unpacks an image from a registry without TLS.
    pub(crate) fn pull(reference: &str) -> anyhow::Result<()> {
        quiet(ctr().args(["image", "pull", "--plain-http", reference]))
    }

    /// Runs the sample service on the host's network, listening on this port.
    pub(crate) fn run(name: &str, reference: &str, port: u16) -> anyhow::Result<()> {
        let port = format!("PORT={port}");
        quiet(ctr().args(["run", "--detach", "--net-host", "--env", &port, reference, name]))
    }

    /// Ends and removes a container, if there is one of this name.
    pub(crate) fn remove(name: &str) {
        let _ = quiet(ctr().args(["task", "rm", "--force", name]));
        let _ = quiet(ctr().args(["container", "rm", name]));
    }

    /// Removes images and waits until what they were made of is gone.
    pub(crate) fn empty(references: &[String]) -> anyhow::Result<()> {
        let listed = ctr().args(["image", "ls", "--quiet"]).output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for reference in references.iter().filter(|one| listed.contains(one.as_str())) {
            quiet(ctr().args(["image", "rm", "--sync", reference]))?;
        }
        Ok(())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let pid = self.daemon.id().to_string();
        let _ = quiet(Command::new("kill").args(["-TERM", &pid]));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && matches!(self.daemon.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(50));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn ctr() -> Command {
    let mut command = Command::new("ctr");
    command.args(["--address", SOCKET]);
    command
}
