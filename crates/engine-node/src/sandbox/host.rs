//! The host: where Sandboxes are made, found and removed.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stead_holder::wire::Command;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

use super::held::Sandbox;
use super::launch::{self, Held, launch};
use super::pool::Pool;
use super::recover::{self, Recovered};
use super::trash::Trash;
use super::{Exit, SandboxError, SandboxSpec, binary, identity, seccomp};
use crate::cgroup::Cgroups;
use crate::network::{Connection, Network, Second};

/// Links that go within this time go together.
const GATHER: Duration = Duration::from_millis(50);

/// How long what is left of a Sandbox may stay busy.
const PATIENCE: Duration = Duration::from_secs(10);

/// Marks that this platform, and nobody before it, asked for quick changes of control groups.
const FAVOURED: &str = "favordynmods";

/// How a host is set up.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// State that survives `serve` but not a restart of the machine: on a tmpfs such as `/run`.
    pub run_dir: PathBuf,
    /// Writable layers of Containers, and the holder's program.
    pub data_dir: PathBuf,
    /// Names the control groups, the nftables table and the links: one to eight lower-case
    /// letters and digits, unique on the machine.
    pub name: String,
    /// The /16 of Sandboxes. If it is taken, the next one that is free is used.
    pub subnet: Ipv4Addr,
    /// Sandboxes made in advance.
    pub pool: usize,
    /// Rotation of logs.
    pub log: LogPolicy,
    /// Ports of the host, at [`Host::gateway`], that Sandboxes may reach.
    pub host_ports: Vec<u16>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            run_dir: "/run/stead".into(),
            data_dir: "/var/lib/stead".into(),
            name: "stead".into(),
            subnet: Ipv4Addr::new(10, 88, 0, 0),
            pool: 4,
            log: LogPolicy::default(),
            host_ports: Vec::new(),
        }
    }
}

/// When log files are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPolicy {
    /// A file's size in bytes.
    pub max_bytes: u64,
    /// Files kept, the current one included.
    pub files: u32,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { max_bytes: 10 * 1024 * 1024, files: 3 }
    }
}

/// Something happened to a Sandbox.
#[derive(Debug, Clone)]
pub enum SandboxEvent {
    /// A Container ended, wanted or not.
    Exited {
        /// The Sandbox's id.
        sandbox: String,
        /// The Container's id.
        container: String,
        /// How it ended.
        exit: Exit,
    },
    /// The holder ended, and with it every Container. The Sandbox can only be removed.
    HolderLost {
        /// The Sandbox's id.
        sandbox: String,
    },
}

/// What Sandboxes are made with. Shared by the host and its Sandboxes.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) run_dir: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) holder: PathBuf,
    pub(crate) filter: PathBuf,
    pub(crate) log: LogPolicy,
    pub(crate) network: Network,
    pub(crate) cgroups: Cgroups,
    pub(crate) trash: Trash,
    pub(crate) events: broadcast::Sender<SandboxEvent>,
    /// Takes what is left of Sandboxes whose holder has ended.
    pub(crate) remains: mpsc::UnboundedSender<Remains>,
}

/// What is left of a Sandbox whose holder has ended.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) connection: Connection,
    pub(crate) second: Second,
    /// If it was anybody's.
    pub(crate) namespace: Option<String>,
}

impl Remains {
    /// Those of a Sandbox that was never assigned, or that nobody knows.
    pub(crate) fn of_nobody(connection: Connection) -> Self {
        Self { connection, second: Second::default(), namespace: None }
    }
}

/// Where Sandboxes are made, found and removed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    means: Arc<Means>,
    sandboxes: Mutex<HashMap<String, Arc<Sandbox>>>,
    pool: Arc<Pool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Host {
    /// Sets this machine up, and finds every Sandbox again that an earlier `serve` made.
    ///
    /// # Errors
    /// [`SandboxError::Unfit`] says what the machine lacks.
    pub async fn open(config: HostConfig) -> Result<(Self, Vec<Recovered>), SandboxError> {
        check_name(&config.name)?;
        let unfit = |what| move |source| SandboxError::Unfit { what, source };
        let restarted = recover::is_new_boot(&config.run_dir).map_err(unfit("boot id"))?;
        let subnet =
            recover::subnet(&config.run_dir, config.subnet, restarted).map_err(unfit("network"))?;
        let network =
            Network::open(&config.name, subnet, &config.host_ports).map_err(unfit("network"))?;
        let cgroups = Cgroups::open(&config.name).map_err(unfit("control groups"))?;
        favour_changes(&cgroups, &config.run_dir);
        let programs = config.data_dir.join("bin");
        let holder = binary::install(&programs).map_err(unfit("holder"))?;
        let filter = binary::install_as(&programs, "seccomp", &seccomp::compile(), 0o400)
            .map_err(unfit("system call filter"))?;
        // What Containers write and are told is nobody else's business.
        for folder in [config.run_dir.join("sb"), config.data_dir.join("upper")] {
            fs::create_dir_all(&folder)
                .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)))
                .map_err(unfit("folders"))?;
        }
        let trash = Trash::open(config.data_dir.join("trash")).map_err(unfit("folders"))?;
        let (remains, mut dying) = mpsc::unbounded_channel();
        let means = Arc::new(Means {
            run_dir: config.run_dir,
            data_dir: config.data_dir,
            holder,
            filter,
            log: config.log,
            network,
            cgroups,
            trash,
            events: broadcast::channel(4096).0,
            remains,
        });

        let found = recover::find(&means).await?;
        let pool = Pool::new(config.pool, found.unused.into());
        let filler = tokio::spawn(pool.clone().fill(means.clone()));
        let undertaker = tokio::spawn({
            let means = Arc::downgrade(&means);
            async move {
                while let Some(first) = dying.recv().await {
                    tokio::time::sleep(GATHER).await;
                    let mut all = vec![first];
                    while let Ok(next) = dying.try_recv() {
                        all.push(next);
                    }
                    let Some(means) = means.upgrade() else { return };
                    let _ = tokio::task::spawn_blocking(move || bury(&means, &all)).await;
                }
            }
        });
        let sandboxes = found
            .recovered
            .iter()
            .map(|recovered| (recovered.sandbox.id().to_owned(), recovered.sandbox.clone()))
            .collect();
        let tasks = vec![filler, undertaker];
        let inner = Inner { means, sandboxes: Mutex::new(sandboxes), pool, tasks };
        Ok((Self { inner: Arc::new(inner) }, found.recovered))
    }

    /// Makes a Sandbox, from the pool if that has one.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] if there is one of that id.
    pub async fn create(&self, spec: SandboxSpec) -> Result<Arc<Sandbox>, SandboxError> {
        spec.check()?;
        let begun = Instant::now();
        let taken = || SandboxError::WrongState {
            what: format!("sandbox {}", spec.id),
            state: "exists already",
        };
        if self.lock().contains_key(&spec.id) {
            return Err(taken());
        }
        let means = &self.inner.means;
        let pooled = self.inner.pool.take(spec.wanted_ip);
        let from_pool = pooled.is_some();
        let held = match pooled {
            Some(held) => held,
            None => launch(means, spec.wanted_ip).await?,
        };
        let connected = begun.elapsed();
        let connection = held.connection;
        let sandbox = match assign(means, held, spec.clone()).await {
            Ok(sandbox) => sandbox,
            Err((held, error)) => {
                self.end_unused(&held).await;
                return Err(error);
            }
        };
        let replaced = {
            let mut sandboxes = self.lock();
            match sandboxes.contains_key(&spec.id) {
                true => true,
                false => {
                    sandboxes.insert(spec.id.clone(), sandbox.clone());
                    false
                }
            }
        };
        if replaced {
            self.bury_sandbox(&sandbox).await;
            return Err(taken());
        }
        tracing::debug!(
            sandbox = %spec.id,
            ip = %connection.ips.v4,
            from_pool,
            network_us = connected.as_micros() as u64,
            total_us = begun.elapsed().as_micros() as u64,
            "sandbox created"
        );
        Ok(sandbox)
    }

    /// The Sandbox of this id.
    pub fn get(&self, id: &str) -> Option<Arc<Sandbox>> {
        self.lock().get(id).cloned()
    }

    /// Every Sandbox.
    pub fn all(&self) -> Vec<Arc<Sandbox>> {
        self.lock().values().cloned().collect()
    }

    /// How many Sandboxes are ready in the pool.
    pub fn pooled(&self) -> usize {
        self.inner.pool.ready()
    }

    /// The host's address as Sandboxes see it.
    pub fn gateway(&self) -> Ipv4Addr {
        self.inner.means.network.gateway().v4
    }

    /// The same with IPv6, if the host has that.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.inner.means.network.gateway().v6
    }

    /// Removes a Sandbox with everything in it. Its writable layers are deleted in the
    /// background, and its address is free when its link is gone. Does nothing if there is none.
    ///
    /// # Errors
    /// None at present: what cannot be removed at once is removed later.
    pub async fn remove(&self, id: &str) -> Result<(), SandboxError> {
        let removed = self.lock().remove(id);
        if let Some(sandbox) = removed {
            self.bury_sandbox(&sandbox).await;
        }
        Ok(())
    }

    /// What happens to Sandboxes from now on.
    pub fn events(&self) -> broadcast::Receiver<SandboxEvent> {
        self.inner.means.events.subscribe()
    }

    /// Lets go of everything and leaves it running.
    pub async fn shutdown(self) {
        for task in &self.inner.tasks {
            task.abort();
        }
        self.lock().clear();
    }

    /// Removes every Sandbox, the pool, the links, the rules and the control groups.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn destroy_all(&self) -> Result<(), SandboxError> {
        for held in self.inner.pool.close().await {
            self.end_unused(&held).await;
        }
        let all: Vec<_> = self.lock().drain().map(|(_, sandbox)| sandbox).collect();
        for sandbox in all {
            self.bury_sandbox(&sandbox).await;
        }
        let means = self.inner.means.clone();
        tokio::task::spawn_blocking(move || destroy(&means))
            .await
            .map_err(io::Error::other)
            .and_then(|done| done)
            .map_err(SandboxError::step("removing everything"))
    }

    async fn bury_sandbox(&self, sandbox: &Sandbox) {
        sandbox.leave();
        self.end(sandbox.held()).await;
        let means = &self.inner.means;
        let connection = sandbox.held().connection;
        let namespace = Some(sandbox.namespace().to_owned());
        let second = sandbox.second();
        let _ = means.remains.send(Remains { connection, second, namespace });
    }

    /// Ends a holder and everything it holds.
    async fn end(&self, held: &Held) {
        // It answers after it has killed and reaped all; one that does not answer is killed.
        let asked = held.link.ask(Command::Quit, &[]);
        if tokio::time::timeout(PATIENCE, asked).await.is_err() {
            held.process.kill();
        }
        self.clean(held).await;
    }

    /// Ends a holder that is nobody's: there is nothing in it to be lost.
    async fn end_unused(&self, held: &Held) {
        held.process.kill();
        self.clean(held).await;
        let _ = self.inner.means.remains.send(Remains::of_nobody(held.connection));
    }

    async fn clean(&self, held: &Held) {
        held.process.ended().await;
        let means = self.inner.means.clone();
        let (folder, index) = (held.folder.clone(), held.connection.index);
        let _ = tokio::task::spawn_blocking(move || {
            recover::sweep(&means, index);
            let _ = fs::remove_dir_all(folder);
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Sandbox>>> {
        self.inner.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a holder somebody's.
async fn assign(
    means: &Arc<Means>,
    held: Held,
    spec: SandboxSpec,
) -> Result<Arc<Sandbox>, (Held, SandboxError)> {
    let record = recover::Record::new(spec.clone(), crate::clock::now());
    let written = record.clone();
    let (folder, connection) = (held.folder.clone(), held.connection);
    let network = means.clone();
    let done = tokio::task::spawn_blocking(move || {
        let owner = launch::first_user(connection.index);
        identity::write(&folder.join("etc"), &spec, connection.ips, owner)?;
        network.network.admit(connection, &spec.namespace)?;
        // Last: from now on the Sandbox is found again.
        written.write(&folder)
    })
    .await
    .map_err(io::Error::other)
    .and_then(|done| done);
    match done {
        Ok(()) => {
            Ok(Sandbox::take_over(means.clone(), held, record, Second::default(), Vec::new()))
        }
        Err(error) => Err((held, SandboxError::step("assigning a sandbox")(error))),
    }
}

/// Deletes links and gives their addresses back.
fn bury(means: &Means, all: &[Remains]) {
    for remains in all {
        if let Some(namespace) = &remains.namespace
            && let Err(error) = means.network.expel(remains.connection, remains.second, namespace)
        {
            tracing::warn!(ip = %remains.connection.ips.v4, %error, "rules keep an address");
        }
    }
    let links = |remains: &Remains| [Some(remains.connection.link), remains.second.link];
    let links: Vec<_> = all.iter().flat_map(links).flatten().collect();
    match means.network.delete_links(&links) {
        Ok(()) => {
            for remains in all {
                means.network.release(remains.connection.index);
            }
        }
        // Their addresses stay taken, until the next start finds and deletes them.
        Err(error) => tracing::warn!(%error, "links are not deleted"),
    }
}

fn destroy(means: &Means) -> io::Result<()> {
    means.network.destroy()?;
    // The last processes leave their groups a moment after they were reaped.
    let begun = Instant::now();
    while let Err(error) = means.cgroups.destroy() {
        if begun.elapsed() > PATIENCE {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    means.trash.throw(&means.data_dir.join("upper"))?;
    let mark = means.run_dir.join(FAVOURED);
    if mark.exists() {
        means.cgroups.favour_changes(false)?;
        fs::remove_file(mark)?;
    }
    recover::forget(&means.run_dir)
}

/// Asks the kernel for quick changes of control groups, and notes where it did, so that the
/// end of the platform takes it back. Without it everything works, only slower.
fn favour_changes(cgroups: &Cgroups, run_dir: &Path) {
    let favoured = cgroups.favour_changes(true).and_then(|changed| match changed {
        true => fs::write(run_dir.join(FAVOURED), b""),
        false => Ok(()),
    });
    if let Err(error) = favoured {
        tracing::info!(%error, "control groups change slowly on this host");
    }
}

fn check_name(name: &str) -> Result<(), SandboxError> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if (1..=8).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(SandboxError::BadSpec(format!(
        "{name:?} cannot name this platform: expected one to eight lower-case letters and digits"
    )))
}
