//! crun and runc, given a bundle: the usual namespaces, a cgroup and a small seccomp list.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use super::{CGROUP, quiet};

/// What a container may not call: a small deny-list costs a runtime far less than Docker's
/// profile does, so this is to their advantage.
const DENIED: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "delete_module",
    "finit_module",
    "init_module",
    "kexec_load",
    "keyctl",
    "mount",
    "open_by_handle_at",
    "perf_event_open",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "reboot",
    "request_key",
    "setns",
    "swapoff",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// A container to run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job<'a> {
    /// Its id, unique at the time.
    pub(crate) id: &'a str,
    /// `NAME=value` for the App.
    pub(crate) env: &'a [String],
    /// A new network namespace; without one it shares ours, so that it can be asked.
    pub(crate) own_network: bool,
}

/// crun or runc.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    program: &'static str,
    rootfs: PathBuf,
    folder: PathBuf,
    state: PathBuf,
}

impl Runtime {
    /// `program` with its own state below `folder`.
    pub(crate) fn new(program: &'static str, rootfs: &Path, folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.join(program);
        let state = PathBuf::from("/run").join(format!("stead-bench-{program}"));
        fs::create_dir_all(&folder)?;
        fs::create_dir_all(&state)?;
        Ok(Self { program, rootfs: rootfs.to_owned(), folder, state })
    }

    /// Writes the bundle of a container, apart from running it.
    pub(crate) fn bundle(&self, job: Job<'_>) -> anyhow::Result<PathBuf> {
        let bundle = self.folder.join(job.id);
        fs::create_dir_all(&bundle)?;
        let config = serde_json::to_vec(&config(&self.rootfs, job))?;
        fs::write(bundle.join("config.json"), config).context("config.json")?;
        Ok(bundle)
    }

    /// Runs a container to its end and removes it.
    pub(crate) fn run(&self, id: &str, bundle: &Path) -> anyhow::Result<()> {
        quiet(self.command().args(["run", "--bundle"]).arg(bundle).arg(id))
    }

    /// Starts a container and leaves it running.
    pub(crate) fn start(&self, id: &str, bundle: &Path) -> anyhow::Result<()> {
        // Its output must not be a pipe of ours: it would outlive the call and block it.
        let status = self
            .command()
            .args(["run", "--detach", "--bundle"])
            .arg(bundle)
            .arg(id)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        anyhow::ensure!(status.success(), "{} run --detach: {status}", self.program);
        Ok(())
    }

    /// Kills and removes a container.
    pub(crate) fn stop(&self, id: &str) -> anyhow::Result<()> {
        // `delete --force` would do it all, but runc's looks only every hundred milliseconds.
        quiet(self.command().args(["kill", id, "KILL"]))?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match quiet(self.command().args(["delete", id])) {
                Err(_) if Instant::now() < deadline => {}
                outcome => return outcome,
            }
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        command.arg("--root").arg(&self.state);
        command
    }
}

fn config(rootfs: &Path, job: Job<'_>) -> Value {
    let mut namespaces: Vec<_> =
        ["pid", "ipc", "uts", "mount", "cgroup"].iter().map(|kind| json!({"type": kind})).collect();
    if job.own_network {
        namespaces.push(json!({"type": "network"}));
    }
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/hello"],
            "env": job.env,
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_NET_BIND_SERVICE"],
                "effective": ["CAP_NET_BIND_SERVICE"],
                "permitted": ["CAP_NET_BIND_SERVICE"],
            },
            "noNewPrivileges": true,
        },
        "root": {"path": rootfs, "readonly": true},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
        ],
        "linux": {
            "cgroupsPath": format!("{CGROUP}/{}", job.id),
            "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": DENIED, "action": "SCMP_ACT_ERRNO"}],
            },
        },
    })
}
