//! What is asked for, and what is told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use stead_core::fleet::Slot;
use stead_core::secret::Secret;
use stead_core::time::Time;
use stead_holder::wire;

use super::{Exit, Resources, SandboxError};

/// A Sandbox to be made.
#[derive(Debug, Clone, Default)]
pub struct SandboxSpec {
    /// Unique on this host, for ever.
    pub id: String,
    /// What its Containers see as their host name.
    pub hostname: String,
    /// Its Sandboxes reach each other, and no others.
    pub namespace: String,
    /// Name servers.
    pub dns: Vec<IpAddr>,
    /// Further lines of `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, IpAddr)>,
    /// Given if it is free: the address it had before the machine was restarted.
    pub wanted_ip: Option<Ipv4Addr>,
    /// Kept, and given back after a restart of `serve`.
    pub labels: BTreeMap<String, String>,
}

/// A Container to be prepared.
#[derive(Debug, Clone, Default)]
pub struct ContainerSpec {
    /// Unique in its Sandbox: letters, digits, `.`, `_`, `-`.
    pub id: String,
    /// Kept, and given back after a restart of `serve`.
    pub labels: BTreeMap<String, String>,
    /// Its place in the Sandbox. Containers in the same slot share its network.
    pub slot: Slot,
    /// Unpacked layers, base first.
    pub layers: Vec<PathBuf>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Further variables, whose values show nowhere.
    pub secrets: Vec<(String, Secret)>,
    /// Working folder; made when missing. Empty is `/`.
    pub cwd: String,
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Further groups inside.
    pub groups: Vec<u32>,
    /// Folders of the host.
    pub volumes: Vec<VolumeMount>,
    /// Single read-only files.
    pub files: Vec<FileMount>,
    /// Scratch folders in memory.
    pub tmpfs: Vec<TmpfsMount>,
    /// Limits.
    pub resources: Resources,
    /// Refuse writes outside volumes and scratch folders.
    pub read_only_root: bool,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A folder of the host in a Container. User 0 inside is user 0 on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeMount {
    /// On the host.
    pub host: PathBuf,
    /// In the Container, absolute.
    pub mount: String,
    /// Refuse writes.
    pub read_only: bool,
}

/// A single read-only file in a Container, owned by the Container's user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileMount {
    /// In the Container, absolute.
    pub path: String,
    /// What it holds. It is kept in memory, never on the disk.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// A scratch folder in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TmpfsMount {
    /// In the Container, absolute.
    pub mount: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A further program in a running Container. What is not given is as for the main process.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Further variables.
    pub env: Vec<(String, String)>,
    /// Working folder.
    pub cwd: Option<String>,
    /// User, group and further groups.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// Rows and columns of a terminal, if it is to have one.
    pub tty: Option<(u16, u16)>,
}

/// A Container as it is now.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its id.
    pub id: String,
    /// As given, or as replaced since.
    pub labels: BTreeMap<String, String>,
    /// Its place in the Sandbox.
    pub slot: Slot,
    /// How far it is.
    pub state: ViewState,
}

/// How far a Container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewState {
    /// Set up; waiting to be started.
    Prepared,
    /// It runs.
    Running {
        /// Its init, in the host's numbers.
        pid: i32,
        /// When its program began.
        started: Time,
    },
    /// It keeps its memory and uses no processor.
    Frozen {
        /// Its init, in the host's numbers.
        pid: i32,
        /// When its program began.
        started: Time,
        /// When it was frozen.
        since: Time,
    },
    /// It ended.
    Exited(Exit),
}

impl From<wire::State> for ViewState {
    fn from(state: wire::State) -> Self {
        match state {
            wire::State::Prepared => Self::Prepared,
            wire::State::Running { pid, started } => {
                Self::Running { pid, started: Time(started / 1_000) }
            }
            wire::State::Exited(exit) => Self::Exited(exit),
        }
    }
}

/// What a Container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Processor time since it was prepared.
    pub cpu: Duration,
    /// Bytes of memory in use that cannot be dropped at once.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// How long the phases of a preparation took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Making the slot, if it is the first one in slot B.
    pub slot: Duration,
    /// Folders, control groups and files.
    pub folders: Duration,
    /// Mapping the layers and making the root file system.
    pub root: Duration,
    /// Opening and mapping volumes and files.
    pub volumes: Duration,
    /// From the clone to the gate.
    pub process: Duration,
    /// All of it, as the caller saw it.
    pub total: Duration,
}

impl SandboxSpec {
    pub(crate) fn check(&self) -> Result<(), SandboxError> {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        if self.id.is_empty() {
            return Err(SandboxError::BadSpec("a sandbox needs an id".into()));
        }
        if self.hostname.is_empty() || self.hostname.len() > 64 || !self.hostname.chars().all(name)
        {
            return Err(SandboxError::BadSpec(format!(
                "{:?} is no host name: expected up to 64 letters, digits, dots and hyphens",
                self.hostname
            )));
        }
        let hosts = self.extra_hosts.iter().map(|(host, _)| host);
        for host in hosts {
            if host.is_empty() || !host.chars().all(name) {
                return Err(SandboxError::BadSpec(format!("{host:?} is no host name")));
            }
        }
        Ok(())
    }
}

impl ContainerSpec {
    pub(crate) fn check(&self) -> Result<(), SandboxError> {
        let bad = |text: String| Err(SandboxError::BadSpec(text));
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.id.is_empty()
            || self.id.len() > 200
            || self.id.starts_with('.')
            || !self.id.chars().all(fits)
        {
            return bad(format!("{:?} is no container id", self.id));
        }
        if self.layers.is_empty() {
            return bad(format!("container {} has no layers", self.id));
        }
        if self.argv.first().is_none_or(String::is_empty) {
            return bad(format!("container {} has no command", self.id));
        }
        let targets = self.volumes.iter().map(|volume| &volume.mount);
        let targets = targets.chain(self.files.iter().map(|file| &file.path));
        for target in targets.chain(self.tmpfs.iter().map(|tmpfs| &tmpfs.mount)) {
            let inner = target.trim_start_matches('/');
            if !target.starts_with('/')
                || inner.is_empty()
                || inner.split('/').any(|part| part == "..")
            {
                return bad(format!(
                    "{target:?} is no place for a mount: expected a path like /data"
                ));
            }
        }
        for id in [self.uid, self.gid].iter().chain(&self.groups) {
            if *id >= 65_536 {
                return bad(format!("user or group {id} is too high: at most 65535"));
            }
        }
        let names = self.env.iter().map(|(name, _)| name);
        let mut names = names.chain(self.secrets.iter().map(|(name, _)| name));
        match names.find(|name| name.is_empty() || name.contains('=')) {
            Some(name) => bad(format!("{name:?} is no name of a variable")),
            None => Ok(()),
        }
    }
}

impl ContainerSpec {
    /// All variables, as the kernel wants them. With the values: not to be kept or shown.
    pub(crate) fn environment(&self) -> Vec<String> {
        let secret = |(name, value): &(String, Secret)| format!("{name}={}", value.expose());
        let secrets = self.secrets.iter().map(secret);
        joined(&self.env).into_iter().chain(secrets).collect()
    }
}

/// `NAME=value`, as the kernel wants it.
pub(crate) fn joined(env: &[(String, String)]) -> Vec<String> {
    env.iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> ContainerSpec {
        ContainerSpec {
            id: "main-1".into(),
            layers: vec!["/l".into()],
            argv: vec!["sh".into()],
            ..ContainerSpec::default()
        }
    }

    #[test]
    fn hostile_names_and_places_are_refused() {
        assert!(good().check().is_ok());
        for id in ["", "../x", "a/b", ".hidden", "a b"] {
            assert!(ContainerSpec { id: id.into(), ..good() }.check().is_err(), "{id:?}");
        }
        for mount in ["", "data", "/", "/a/../../etc"] {
            let volumes = vec![VolumeMount { mount: mount.into(), ..VolumeMount::default() }];
            assert!(ContainerSpec { volumes, ..good() }.check().is_err(), "{mount:?}");
        }
        assert!(ContainerSpec { uid: 65_536, ..good() }.check().is_err());
        assert!(
            ContainerSpec { env: vec![("A=B".into(), String::new())], ..good() }.check().is_err()
        );
    }

    #[test]
    fn a_host_name_cannot_smuggle_lines_into_etc_hosts() {
        let spec = |hostname: &str| SandboxSpec {
            id: "a".into(),
            hostname: hostname.into(),
            ..SandboxSpec::default()
        };
        assert!(spec("web-0").check().is_ok());
        assert!(spec("web\n127.0.0.1 bank").check().is_err());
    }
}
