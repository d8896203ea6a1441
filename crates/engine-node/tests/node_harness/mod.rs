//! An engine of its own for each test, with a registry, Apps, and a gateway that takes notes.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use stead_core::engine::{Backend, Drained, Engine, NoSecrets, Traffic};
use stead_core::event::{Event, Fact, PhaseName};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Fleet, FleetSeen, Health, InstanceSeen, Lineup, ReleaseSpec,
    Revision,
};
use stead_core::ids::{ContainerId, Digest, Ordinal, ReleaseNo};
use stead_core::manifest::Manifest;
use stead_core::name::AppKey;
use stead_engine_node::image::StoreOptions;
use stead_engine_node::sandbox::HostConfig;
use stead_engine_node::{NodeConfig, NodeEngine};
use stead_testkit::contract::Witness;
use stead_testkit::images::Catalogue;
use stead_testkit::registry::Registry;
use stead_testkit::sim::{app_key, fleet, release_of, settings};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway that remembers whom it was told of.
#[derive(Default)]
pub struct Gateway {
    witness: Arc<Witness>,
    backends: Mutex<Vec<Backend>>,
    /// It acknowledges no detach meanwhile.
    deaf: tokio::sync::watch::Sender<bool>,
    detaches: Mutex<Vec<ContainerId>>,
}

impl Gateway {
    /// What it was last told of a Container.
    pub fn backend(&self, container: &ContainerId) -> Backend {
        let backends = self.backends.lock().unwrap();
        backends.iter().rfind(|b| b.container == *container).unwrap().clone()
    }

    /// From now on it does, or does not, acknowledge that it sends nothing to a Container.
    pub fn be_deaf(&self, deaf: bool) {
        self.deaf.send_replace(deaf);
    }

    /// How often it was told to send nothing to a Container.
    pub fn detaches(&self, container: &ContainerId) -> usize {
        self.detaches.lock().unwrap().iter().filter(|id| *id == container).count()
    }
}

#[async_trait]
impl Traffic for Gateway {
    async fn attach(&self, app: &AppKey, backend: Backend) {
        self.backends.lock().unwrap().push(backend.clone());
        self.witness.attach(app, backend).await;
    }

    async fn detach(&self, app: &AppKey, container: &ContainerId, drain: Duration) -> Drained {
        self.detaches.lock().unwrap().push(container.clone());
        let drained = self.witness.detach(app, container, drain).await;
        self.deaf.subscribe().wait_for(|deaf| !deaf).await.unwrap();
        drained
    }
}

/// An engine with folders, names, a registry and an App of its own.
pub struct Node {
    pub engine: Option<NodeEngine>,
    pub config: NodeConfig,
    pub witness: Arc<Witness>,
    pub gateway: Arc<Gateway>,
    registry: Option<Registry>,
    pub app: AppKey,
    _dir: tempfile::TempDir,
}

impl Node {
    pub async fn new(letter: char) -> Self {
        let dir = tempfile::Builder::new().prefix("stead-life-").tempdir().unwrap();
        let (data_dir, run_dir) = (dir.path().join("data"), dir.path().join("run"));
        let pid = (std::process::id() % 4) as u8;
        let config = NodeConfig {
            host: HostConfig {
                run_dir: run_dir.clone(),
                data_dir: data_dir.clone(),
                name: format!("{letter}{}", std::process::id() % 1_000_000),
                subnet: Ipv4Addr::new(10, 20 + (letter as u8 - b'a') * 4 + pid, 0, 0),
                pool: 0,
                ..HostConfig::default()
            },
            images: StoreOptions::default(),
            data_dir,
            run_dir,
        };
        let registry = tokio::task::spawn_blocking(Registry::start).await.unwrap().unwrap();
        let (witness, app) = (Arc::new(Witness::default()), app_key("life"));
        let gateway = Gateway { witness: witness.clone(), ..Gateway::default() };
        let (gateway, registry) = (Arc::new(gateway), Some(registry));
        let mut node = Self { engine: None, config, witness, gateway, registry, app, _dir: dir };
        node.open().await;
        node
    }

    /// Opens the engine; one before it may need a moment to let go of its locks.
    pub async fn open(&mut self) {
        let begun = Instant::now();
        while self.engine.is_none() {
            let (gateway, witness) = (self.gateway.clone(), self.witness.clone());
            match NodeEngine::open(self.config.clone(), gateway, witness, Arc::new(NoSecrets)).await
            {
                Ok(engine) => self.engine = Some(engine),
                Err(error) if error.message.contains("another") => {
                    assert!(begun.elapsed() < PATIENCE, "{error}");
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn engine(&self) -> &NodeEngine {
        self.engine.as_ref().unwrap()
    }

    /// One Instance of an image of the catalogue.
    pub async fn run(&self, tag: &str, change: impl FnOnce(&mut Manifest)) -> Fleet {
        let release = self.release(tag, change).await;
        let fleet = fleet(&self.app, 1, 1, (1, 0), &[(1, release)]);
        self.engine().apply(fleet.clone()).await.unwrap();
        fleet
    }

    pub async fn release(&self, tag: &str, change: impl FnOnce(&mut Manifest)) -> ReleaseSpec {
        self.release_from("trivial", tag, change).await
    }

    /// A Release of an image of the catalogue.
    pub async fn release_from(
        &self,
        name: &str,
        tag: &str,
        change: impl FnOnce(&mut Manifest),
    ) -> ReleaseSpec {
        let (reference, digest) = self.image_of(name, tag).await;
        let mut settings = settings(&self.app, &reference);
        let startup = r#"{"http": "/healthz", "timeout": "10s"}"#;
        settings.health.startup = Some(serde_json::from_str(startup).unwrap());
        patch(&mut settings, serde_json::json!({"rollout": {"strategy": "handover"}}));
        change(&mut settings);
        release_of(settings, digest)
    }

    /// An image of the sample service, in the registry.
    pub async fn image(&self, tag: &str) -> (String, Digest) {
        self.image_of("trivial", tag).await
    }

    /// An image of the catalogue, in the registry.
    pub async fn image_of(&self, name: &str, tag: &str) -> (String, Digest) {
        let image = Catalogue::new().image(name, tag).unwrap();
        let registry = self.registry.as_ref().unwrap();
        registry.push(name, tag, &image).unwrap();
        let reference = registry.reference(name, tag);
        let digest = self.engine().resolve(&reference).await.unwrap();
        (reference, digest)
    }

    pub async fn until(&self, what: &str, good: impl Fn(&InstanceSeen) -> bool) -> InstanceSeen {
        self.until_of(&self.app, what, good).await
    }

    pub async fn until_of(
        &self,
        app: &AppKey,
        what: &str,
        good: impl Fn(&InstanceSeen) -> bool,
    ) -> InstanceSeen {
        let begun = Instant::now();
        loop {
            let seen: FleetSeen = self.engine().observe(app).await.unwrap();
            match seen.instances.get(&Ordinal(0)) {
                Some(instance) if good(instance) => return instance.clone(),
                _ => assert!(begun.elapsed() < PATIENCE, "not so: {what}; seen {seen:?}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn apply(&self, fleet: &Fleet) {
        self.engine().apply(fleet.clone()).await.unwrap();
    }

    pub async fn seen(&self) -> InstanceSeen {
        self.until("it is there", |_| true).await
    }

    /// How often a phase was told of.
    pub fn phases(&self, wanted: PhaseName) -> Vec<Event> {
        let is = |event: &Event| match event.fact {
            Fact::Phase { phase, .. } => phase == wanted,
            _ => false,
        };
        self.witness.events().into_iter().filter(is).collect()
    }

    /// `serve` ends without a warning, and a new one comes.
    pub async fn restart(&mut self) {
        self.engine = None;
        self.open().await;
    }

    pub async fn serving(&self, but: Option<&ContainerId>) -> InstanceSeen {
        self.until("it serves", |i| i.serving().is_some_and(|c| Some(&c.id) != but)).await
    }

    /// The control groups of this engine, on the v2 tree, whose path holds `part`.
    pub fn groups(&self, part: &str) -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let unified = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let unified = Path::new(unified.unwrap().split(' ').nth(1).unwrap());
        let mut folders: Vec<PathBuf> = vec![unified.join(&self.config.host.name)];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            let inside = std::fs::read_dir(&folder).unwrap().flatten();
            folders.extend(inside.filter(|e| e.path().is_dir()).map(|e| e.path()));
            if folder.to_str().unwrap().contains(part) {
                found.push(folder);
            }
        }
        found
    }

    /// What a file of a Container's control groups says, in whichever trees it is.
    pub fn limit(&self, container: &str, file: &str) -> Vec<String> {
        let files = self.limit_files(container, file).into_iter();
        files.map(|file| std::fs::read_to_string(file).unwrap().trim().to_owned()).collect()
    }

    /// Writes it.
    pub fn set_limit(&self, container: &str, file: &str, to: &str) {
        for file in self.limit_files(container, file) {
            std::fs::write(file, to).unwrap();
        }
    }

    fn limit_files(&self, container: &str, file: &str) -> Vec<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let trees = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let place = fields.next()?;
            fields.next()?.starts_with("cgroup").then_some(place)
        });
        let mut folders: Vec<PathBuf> =
            trees.map(|tree| Path::new(tree).join(&self.config.host.name)).collect();
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            let inside = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(inside.filter(|e| e.path().is_dir()).map(|e| e.path()));
            if folder.ends_with(container) && folder.join(file).exists() {
                found.push(folder.join(file));
            }
        }
        found
    }

    /// Kills everything in them.
    pub fn kill(&self, part: &str) {
        self.signal(part, rustix::process::Signal::KILL);
    }

    /// Sends a signal to everything in them.
    pub fn signal(&self, part: &str, signal: rustix::process::Signal) {
        let mut reached = 0;
        for folder in self.groups(part) {
            let processes = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap();
            for pid in processes.lines().map(|pid| pid.parse().unwrap()) {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, signal);
                reached += 1;
            }
        }
        assert!(reached > 0, "nothing of {part} runs");
    }

    pub async fn end(mut self) {
        self.engine().destroy_all().await.unwrap();
        let registry = self.registry.take();
        tokio::task::spawn_blocking(move || drop(registry)).await.unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Only after a failure; a test that went well has ended it.
        if let (true, Some(engine)) = (std::thread::panicking(), self.engine.take()) {
            let handle = tokio::runtime::Handle::current();
            let _ = tokio::task::block_in_place(|| handle.block_on(engine.destroy_all()));
        }
    }
}

pub fn health(instance: &InstanceSeen) -> Option<Health> {
    instance.containers.iter().find_map(|container| match container.state {
        ContainerState::Running { health, .. } => Some(health),
        _ => None,
    })
}

/// The Container of this id.
pub fn one<'a>(instance: &'a InstanceSeen, id: &ContainerId) -> &'a ContainerSeen {
    instance.containers.iter().find(|c| c.id == *id).unwrap()
}

/// Changes settings, by keys as a manifest has them.
pub fn patch(settings: &mut Manifest, change: serde_json::Value) {
    fn merge(into: &mut serde_json::Value, change: serde_json::Value) {
        match (into, change) {
            (serde_json::Value::Object(into), serde_json::Value::Object(change)) => {
                for (key, value) in change {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, change) => *into = change,
        }
    }
    let mut value = serde_json::to_value(&*settings).unwrap();
    merge(&mut value, change);
    *settings = serde_json::from_value(value).unwrap();
}

/// A Fleet of one Instance that runs a Release, in a run; no restart is asked for.
pub fn towards(
    app: &AppKey,
    generation: u64,
    (release, run): (u32, u32),
    releases: &[(u32, ReleaseSpec)],
) -> Fleet {
    let revision = Revision { release: ReleaseNo(release), run, since: 0 };
    let lineup = Some(Lineup::all(revision));
    let fleet = fleet(app, generation, 1, (release, run), releases);
    Fleet { lineup, heading: Some(revision), ..fleet }
}

/// A connection to the sample service's port for raw TCP.
pub struct Line(BufReader<TcpStream>);

impl Line {
    /// From this machine, to an address, and to one slot of it if a mark is given.
    pub fn open(addr: SocketAddr, mark: Option<u32>) -> Self {
        let begun = Instant::now();
        loop {
            match connect(addr, mark) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let mut line = Self(BufReader::new(stream));
                    line.read();
                    return line;
                }
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{addr}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn read(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "it has hung up");
        line.trim().to_owned()
    }

    /// Who answers: version, process and when it was started.
    pub fn ask(&mut self) -> String {
        self.0.get_mut().write_all(b"?\n").unwrap();
        self.read().trim_end_matches(" ?").to_owned()
    }

    /// The version that answers.
    pub fn version(&mut self) -> String {
        self.ask().split(' ').next().unwrap().to_owned()
    }
}

fn connect(addr: SocketAddr, mark: Option<u32>) -> std::io::Result<TcpStream> {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect_timeout(&addr.into(), Duration::from_secs(5))?;
    Ok(socket.into())
}

/// What an HTTP GET answers.
pub fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = connect(addr, None).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}
