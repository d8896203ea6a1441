//! Podman with a store of its own and crun beneath.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CGROUP, STOP_SIGNAL, quiet};

/// Podman needs no daemon; clones share the store.
#[derive(Debug, Clone)]
pub(crate) struct Podman {
    store: PathBuf,
}

impl Podman {
    /// With a store in this folder.
    pub(crate) fn new(store: &Path) -> Self {
        Self { store: store.to_owned() }
    }

    /// Loads a `docker save` archive.
    pub(crate) fn load(&self, archive: &Path) -> anyhow::Result<()> {
        quiet(self.command().args(["load", "--quiet", "--input"]).arg(archive))
    }

    /// Runs the trivial App of a version, published at `address`.
    pub(crate) fn run(&self, name: &str, version: &str, address: SocketAddr) -> anyhow::Result<()> {
        self.run_slow(name, version, address, 0)
    }

    /// The same, of an App that takes so many milliseconds until it listens.
    pub(crate) fn run_slow(
        &self,
        name: &str,
        version: &str,
        address: SocketAddr,
        start_delay: u64,
    ) -> anyhow::Result<()> {
        quiet(
            self.command()
                .args(["run", "--detach", "--name", name, "--stop-signal", STOP_SIGNAL])
                // Without CAP_SYS_RESOURCE podman's own defaults cannot be set.
                .args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"])
                .args(["--cgroup-parent", CGROUP])
                .args(["--publish", &format!("{address}:8080")])
                .args(["--env", &format!("START_DELAY_MS={start_delay}")])
                .arg(format!("localhost/trivial:{version}")),
        )
    }

    /// Fetches an image from a registry without TLS.
    pub(crate) fn pull(&self, reference: &str) -> anyhow::Result<()> {
        quiet(self.command().args(["pull", "--quiet", "--tls-verify=false", reference]))
    }

    /// Fetches and runs an image, published at `address`, in the one call podman has for it.
    pub(crate) fn pull_and_run(
        &self,
        name: &str,
        reference: &str,
        address: SocketAddr,
    ) -> anyhow::Result<()> {
        quiet(
            self.command()
                .args(["run", "--detach", "--name", name, "--stop-signal", STOP_SIGNAL])
                .args(["--pull", "always", "--tls-verify=false"])
                .args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"])
                .args(["--cgroup-parent", CGROUP])
                .args(["--publish", &format!("{address}:8080"), reference]),
        )
    }

    /// Removes images, as far as they are there.
    pub(crate) fn empty(&self, references: &[String]) -> anyhow::Result<()> {
        quiet(self.command().args(["image", "rm", "--force", "--ignore"]).args(references))
    }

    /// Stops and removes a container, in the one call podman has for it.
    pub(crate) fn remove(&self, name: &str) -> anyhow::Result<()> {
        quiet(self.command().args(["rm", "--force", "--time", "0", name]))
    }

    /// Restarts a container.
    pub(crate) fn restart(&self, name: &str) -> anyhow::Result<()> {
        quiet(self.command().args(["restart", "--time", "0", name]))
    }

    /// Removes every container; errors have nobody left to care.
    pub(crate) fn remove_all(&self) {
        let _ = quiet(self.command().args(["rm", "--all", "--force", "--time", "0"]));
        // Its overlay root stays mounted otherwise, and the folder could not be removed.
        let _ = quiet(Command::new("umount").arg(self.store.join("overlay")));
    }

    fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(&self.store);
        command.args(["--runroot", "/run/stead-bench-podman", "--cgroup-manager", "cgroupfs"]);
        command.args(["--runtime", "crun", "--log-level", "error"]);
        command
    }
}
