//! Recording an archive: the App is started a few times in a Sandbox of its own that gets no
//! requests, once to write its classes down, and then in turns without and with the archive.
//!
//! Promises: nothing of the running App is touched; its data is not seen (its volumes are empty
//! here); it gets what processor time is left over; whatever happens, the Sandbox is removed, at
//! the latest by the next process, which knows it by its label. Does not know when to record.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stead_core::fleet::{ArchiveKept, ArchiveKind, Slot};
use stead_core::manifest::{self, Check, HttpPath};
use stead_core::time::Micros;

use super::flags;
use crate::clock::now;
use crate::probe::{self, Target, Watched};
use crate::sandbox::{
    ContainerSpec, Exit, Host, Resources, Sandbox, SandboxError, SandboxSpec, VolumeMount,
};

/// What a Sandbox of this kind is known by.
const LABEL: &str = "training";
/// Turns without and with the archive; the best of each counts.
const TURNS: u32 = 2;
/// Turns before it is found to bring nothing: on a busy machine one start alone says little.
const MOST_TURNS: u32 = 4;
/// Starts that take so long have one turn, if that is enough: the machine has better things to do.
const LONG: Duration = Duration::from_secs(20);
/// A start must take less than this share of one without the archive, in hundredths.
const WORTH: u64 = 95;
/// How long the virtual machine may take to write the archive when it ends.
const WRITING: Duration = Duration::from_secs(180);
/// How long the App may take to end after a start that was only measured.
const ENDING: Duration = Duration::from_secs(10);
/// How long one of the requests before the end may take.
const REQUEST: Duration = Duration::from_secs(10);
/// Requests before the end: their classes are of use, too.
const REQUESTS: u32 = 3;
/// Memory that writing needs beside the App's own.
const WRITING_MEMORY: u64 = 512 << 20;
/// The largest archive that is taken, in bytes.
const LARGEST: u64 = 1 << 30;

/// What is to be recorded.
pub(crate) struct Training {
    pub(crate) kind: ArchiveKind,
    pub(crate) sandbox: SandboxSpec,
    /// As the App's own Container, but for its volumes and its log; no archive is in its options.
    pub(crate) container: ContainerSpec,
    pub(crate) health: manifest::Health,
    pub(crate) port: Option<u16>,
    pub(crate) stop_signal: i32,
    /// How long a start may take.
    pub(crate) patience: Duration,
    /// Where the archive is written: empty.
    pub(crate) scratch: PathBuf,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Trained {
    /// The folder with the archive.
    pub(crate) scratch: PathBuf,
    pub(crate) kept: ArchiveKept,
}

/// The labels of a Sandbox for training.
pub(crate) fn labels() -> BTreeMap<String, String> {
    BTreeMap::from([(LABEL.into(), String::new())])
}

/// Whether a Sandbox was made for training. Left behind by a process that ended, it is of no use.
pub(crate) fn is_training(labels: &BTreeMap<String, String>) -> bool {
    labels.contains_key(LABEL)
}

/// Bytes of memory that a training may take in all. `None`: the App has no limit.
pub(crate) fn memory(limits: &Resources) -> Option<u64> {
    limits.memory_bytes.map(|bytes| bytes * 2 + WRITING_MEMORY)
}

/// Records and measures. Ended early by `over`, it cleans up and fails like any other.
///
/// # Errors
/// Why there is no archive, in a sentence.
pub(crate) async fn train(
    host: &Host,
    training: &Training,
    over: impl Future<Output = ()>,
) -> Result<Trained, String> {
    let user = (training.container.uid, training.container.gid);
    open_for(&training.scratch, user)
        .map_err(|error| format!("the folder for the archive cannot be made: {error}"))?;
    let sandbox = host.create(training.sandbox.clone()).await.map_err(|e| e.to_string())?;
    let trained = tokio::select! {
        trained = run(&sandbox, training) => trained,
        () = over => Err("the app is not wanted any more".to_owned()),
    };
    if let Err(error) = host.remove(sandbox.id()).await {
        tracing::warn!(sandbox = sandbox.id(), %error, "a training's sandbox is left over");
    }
    trained
}

/// The folder belongs to the App's user, who alone writes there.
fn open_for(scratch: &Path, (uid, gid): (u32, u32)) -> io::Result<()> {
    std::fs::set_permissions(scratch, std::fs::Permissions::from_mode(0o700))?;
    chown(scratch, Some(uid), Some(gid))
}

async fn run(sandbox: &Arc<Sandbox>, training: &Training) -> Result<Trained, String> {
    let shop = Shop { sandbox, training };
    shop.record().await?;
    let bytes = archive_size(training)?;
    let (kind, most) = (training.kind, Micros(u64::MAX));
    let mut kept = ArchiveKept { kind, bytes, plain: most, fast: most, made: now() };
    for turn in 1..=MOST_TURNS {
        let plain = shop.start(&format!("plain-{turn}"), Vec::new(), false).await?;
        kept.plain = kept.plain.min(plain.into());
        let fast = shop.start(&format!("fast-{turn}"), flags::using(kind), true).await?;
        kept.fast = kept.fast.min(fast.into());
        if is_worth_it(&kept) && (turn >= TURNS || plain > LONG) {
            break;
        }
    }
    Ok(Trained { scratch: training.scratch.clone(), kept })
}

/// Whether starts are so much faster that an archive is worth its place.
pub(crate) fn is_worth_it(kept: &ArchiveKept) -> bool {
    kept.fast.0 * 100 < kept.plain.0 * WORTH
}

/// The size of what the App's own process wrote: it may have written anything.
fn archive_size(training: &Training) -> Result<u64, String> {
    let path = training.scratch.join(flags::file_name(training.kind));
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && (1..=LARGEST).contains(&found.len()) => Ok(found.len()),
        Ok(found) if found.is_file() => Err(format!("the archive has {} bytes", found.len())),
        Ok(_) => Err("the archive is no file".into()),
        Err(_) => Err("the virtual machine wrote no archive when it ended".into()),
    }
}

/// Where one training goes on.
struct Shop<'a> {
    sandbox: &'a Arc<Sandbox>,
    training: &'a Training,
}

impl Shop<'_> {
    /// Starts the App once, has its classes written down and, where that is another run, made an
    /// archive of.
    async fn record(&self) -> Result<(), String> {
        let kind = self.training.kind;
        let mut spec = self.spec("record", flags::recording(kind), true);
        give_room(&mut spec);
        self.begin(&spec).await?;
        self.ready(&spec.id).await?;
        self.ask(&spec.id).await;
        let exit = self.stop(&spec.id, WRITING).await?;
        if exit.out_of_memory {
            return Err("there is too little memory to write the archive".into());
        }
        self.discard(&spec.id).await?;
        let Some(options) = flags::assembling(kind) else { return Ok(()) };
        let mut spec = self.spec("assemble", options, true);
        give_room(&mut spec);
        self.begin(&spec).await?;
        let ended = tokio::time::timeout(WRITING, self.sandbox.wait(&spec.id)).await;
        let exit = ended.map_err(|_| "making the archive takes too long")?.map_err(text)?;
        match exit.status.shell_code() {
            0 => self.discard(&spec.id).await,
            code => {
                Err(format!("making the archive ended with exit code {code}{}", self.said(&spec)))
            }
        }
    }

    /// Starts the App and gives how long it took to be ready. With the archive: proves that it
    /// was used.
    async fn start(
        &self,
        name: &str,
        options: Vec<String>,
        with_archive: bool,
    ) -> Result<Duration, String> {
        let spec = self.spec(name, options, false);
        self.begin(&spec).await?;
        let took = self.ready(&spec.id).await?;
        if with_archive && !is_mapped(self.sandbox, &spec.id, self.training.kind) {
            return Err("the virtual machine does not take the archive".into());
        }
        self.stop(&spec.id, ENDING).await?;
        self.discard(&spec.id).await?;
        Ok(took)
    }

    fn spec(&self, name: &str, options: Vec<String>, writes: bool) -> ContainerSpec {
        let mut spec = self.training.container.clone();
        spec.id = name.to_owned();
        spec.slot = Slot::A;
        flags::insert(&mut spec.argv, options);
        spec.volumes.push(VolumeMount {
            host: self.training.scratch.clone(),
            mount: flags::PLACE.into(),
            read_only: !writes,
        });
        spec
    }

    async fn begin(&self, spec: &ContainerSpec) -> Result<(), String> {
        self.sandbox.prepare(spec.clone()).await.map_err(text)?;
        if let Err(error) = self.sandbox.yield_processor(&spec.id) {
            tracing::warn!(%error, "a training competes with Apps for the processor");
        }
        self.sandbox.start(&spec.id).await.map_err(text)
    }

    fn target(&self, container: &str) -> Target {
        Target {
            sandbox: self.sandbox.clone(),
            container: container.to_owned(),
            slot: Slot::A,
            port: self.training.port,
        }
    }

    /// Waits until the App that was just started is ready.
    async fn ready(&self, container: &str) -> Result<Duration, String> {
        let begun = Instant::now();
        let health = self.training.health.clone();
        let watched = Watched { target: self.target(container), health };
        tokio::select! {
            () = probe::started(&watched) => Ok(begun.elapsed()),
            exit = self.sandbox.wait(container) => {
                let code = exit.map_err(text)?.status.shell_code();
                let spec = &self.training.container;
                Err(format!("a copy of the app ended with exit code {code}{}", self.said(spec)))
            }
            () = tokio::time::sleep(self.training.patience) => {
                Err("a copy of the app was not ready in time".into())
            }
        }
    }

    /// A few requests that every service must bear, so that what answers them is loaded, too.
    async fn ask(&self, container: &str) {
        let target = self.target(container);
        let health = &self.training.health;
        let http = |check: &Check| matches!(check, Check::Http { .. }).then(|| check.clone());
        let readiness = health.readiness.as_ref().and_then(|probe| http(&probe.check));
        let startup = || health.startup.as_ref().and_then(|startup| http(&startup.check));
        let root = || {
            let path: HttpPath = "/".parse().ok()?;
            self.training.port.map(|_| Check::Http { path, port: None })
        };
        let Some(check) = readiness.or_else(startup).or_else(root) else { return };
        for _ in 0..REQUESTS {
            // What it answers is its own business.
            let _ = target.ask(&check, REQUEST).await;
        }
    }

    async fn stop(&self, container: &str, grace: Duration) -> Result<Exit, String> {
        self.sandbox.stop(container, self.training.stop_signal, grace).await.map_err(text)
    }

    async fn discard(&self, container: &str) -> Result<(), String> {
        self.sandbox.discard(container).await.map_err(text)
    }

    /// The last words of a Container, where it had any.
    fn said(&self, spec: &ContainerSpec) -> String {
        let log = std::fs::read_to_string(&spec.log).unwrap_or_default();
        // The form of the log is `TIME STREAM F TEXT`.
        let last = log.lines().rev().filter_map(|line| line.splitn(4, ' ').nth(3));
        match last.map(str::trim).find(|text| !text.is_empty()) {
            Some(text) => format!(": {}", text.chars().take(200).collect::<String>()),
            None => String::new(),
        }
    }
}

/// Writing needs memory of its own, and is not to take as long as the App's share would have it.
fn give_room(spec: &mut ContainerSpec) {
    spec.resources.memory_bytes = memory(&spec.resources);
    spec.resources.cpu_millis = None;
}

/// Whether a process of a Container has the archive in its memory: the only proof that it is used
/// that every virtual machine gives.
pub(crate) fn is_mapped(sandbox: &Sandbox, container: &str, kind: ArchiveKind) -> bool {
    let name = format!("/{}", flags::file_name(kind));
    let maps = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let pids = sandbox.processes(container).unwrap_or_default();
    pids.iter().any(|pid| maps(pid).lines().any(|line| line.ends_with(&name)))
}

fn text(error: SandboxError) -> String {
    error.to_string()
}
