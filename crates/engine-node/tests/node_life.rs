//! What the node engine makes of Containers and holders that end, and of what they leave.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stead_core::engine::{Engine, ExecRequest};
use stead_core::event::Fact;
use stead_core::fleet::{
    ContainerState, Fleet, FleetSeen, Health, InstanceSeen, Lineup, ReleaseSpec, Revision,
};
use stead_core::ids::{ContainerId, Generation, Ordinal};
use stead_core::manifest::{Manifest, Probe, Startup};
use stead_core::name::AppKey;
use stead_engine_node::image::StoreOptions;
use stead_engine_node::sandbox::HostConfig;
use stead_engine_node::{NodeConfig, NodeEngine};
use stead_testkit::contract::{Seen, Witness};
use stead_testkit::images::Catalogue;
use stead_testkit::registry::Registry;
use stead_testkit::sim::{app_key, fleet, release_of, settings};

const PATIENCE: Duration = Duration::from_secs(30);

/// An engine with folders, names, a registry and an App of its own.
struct Node {
    engine: Option<NodeEngine>,
    config: NodeConfig,
    witness: Arc<Witness>,
    registry: Option<Registry>,
    app: AppKey,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn new(letter: char) -> Self {
        let dir = tempfile::Builder::new().prefix("stead-life-").tempdir().unwrap();
        let (data_dir, run_dir) = (dir.path().join("data"), dir.path().join("run"));
        let pid = (std::process::id() % 251) as u8;
        let config = NodeConfig {
            host: HostConfig {
                run_dir: run_dir.clone(),
                data_dir: data_dir.clone(),
                name: format!("{letter}{}", std::process::id() % 1_000_000),
                subnet: Ipv4Addr::new(10, 20 + (letter as u8 - b'a') * 12 + pid % 12, 0, 0),
                pool: 0,
                ..HostConfig::default()
            },
            images: StoreOptions::default(),
            data_dir,
            run_dir,
        };
        let registry = tokio::task::spawn_blocking(Registry::start).await.unwrap().unwrap();
        let (witness, app) = (Arc::new(Witness::default()), app_key("life"));
        let registry = Some(registry);
        let mut node = Self { engine: None, config, witness, registry, app, _dir: dir };
        node.open().await;
        node
    }

    /// Opens the engine; one before it may need a moment to let go of its locks.
    async fn open(&mut self) {
        let begun = Instant::now();
        while self.engine.is_none() {
            let (config, witness) = (self.config.clone(), self.witness.clone());
            match NodeEngine::open(config, witness.clone(), witness).await {
                Ok(engine) => self.engine = Some(engine),
                Err(error) if error.message.contains("another") => {
                    assert!(begun.elapsed() < PATIENCE, "{error}");
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn engine(&self) -> &NodeEngine {
        self.engine.as_ref().unwrap()
    }

    /// One Instance of an image of the catalogue.
    async fn run(&self, tag: &str, change: impl FnOnce(&mut Manifest)) -> Fleet {
        let release = self.release(tag, change).await;
        let fleet = fleet(&self.app, 1, 1, (1, 0), &[(1, release)]);
        self.engine().apply(fleet.clone()).await.unwrap();
        fleet
    }

    async fn release(&self, tag: &str, change: impl FnOnce(&mut Manifest)) -> ReleaseSpec {
        let image = Catalogue::new().image("trivial", tag).unwrap();
        let registry = self.registry.as_ref().unwrap();
        registry.push("trivial", tag, &image).unwrap();
        let reference = registry.reference("trivial", tag);
        let digest = self.engine().resolve(&reference).await.unwrap();
        let mut settings = settings(&self.app, &reference);
        let startup = r#"{"http": "/healthz", "timeout": "10s"}"#;
        settings.health.startup = Some(serde_json::from_str(startup).unwrap());
        change(&mut settings);
        release_of(settings, digest)
    }

    async fn until(&self, what: &str, good: impl Fn(&InstanceSeen) -> bool) -> InstanceSeen {
        let begun = Instant::now();
        loop {
            let seen: FleetSeen = self.engine().observe(&self.app).await.unwrap();
            match seen.instances.get(&Ordinal(0)) {
                Some(instance) if good(instance) => return instance.clone(),
                _ => assert!(begun.elapsed() < PATIENCE, "not so: {what}; seen {seen:?}"),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn serving(&self, but: Option<&ContainerId>) -> InstanceSeen {
        self.until("it serves", |i| i.serving().is_some_and(|c| Some(&c.id) != but)).await
    }

    /// The control groups of this engine, on the v2 tree, whose path holds `part`.
    fn groups(&self, part: &str) -> Vec<PathBuf> {
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

    /// Kills everything in them.
    fn kill(&self, part: &str) {
        let mut killed = 0;
        for folder in self.groups(part) {
            let processes = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap();
            for pid in processes.lines().map(|pid| pid.parse().unwrap()) {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                killed += 1;
            }
        }
        assert!(killed > 0, "nothing of {part} runs");
    }

    async fn end(mut self) {
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

fn health(instance: &InstanceSeen) -> Option<Health> {
    instance.containers.iter().find_map(|container| match container.state {
        ContainerState::Running { health, .. } => Some(health),
        _ => None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_while_serve_is_away_is_told_counted_and_made_good() {
    let mut node = Node::new('a').await;
    node.run("1", |_| {}).await;
    let first = node.serving(None).await.serving().unwrap().id.clone();
    node.engine = None;
    node.kill(first.as_str());
    node.open().await;
    let now = node.serving(Some(&first)).await;
    assert_eq!((now.crashes, now.trouble.map(|t| t.count)), (1, Some(1)));
    let told = |event: &stead_core::event::Event| match &event.fact {
        Fact::Exited { exit } => event.container.as_ref() == Some(&first) && exit.code == 137,
        _ => false,
    };
    assert_eq!(node.witness.events().iter().filter(|event| told(event)).count(), 1);
    assert!(node.witness.seen().contains(&Seen::Detached(first.clone())), "gateways are told");
    let mark = node.config.run_dir.join("open").join(first.as_str());
    assert!(!mark.exists());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_holder_is_replaced_and_counted() {
    let node = Node::new('b').await;
    node.run("1", |_| {}).await;
    let mut before = node.serving(None).await;
    for round in 1..=2 {
        node.kill("/holders");
        let now = node.serving(before.serving().map(|c| &c.id)).await;
        assert_ne!(now.sandbox, before.sandbox);
        assert_eq!(now.trouble.as_ref().map(|t| t.count), Some(round));
        assert_eq!(now.containers.len(), 1);
        before = now;
    }
    let open = std::fs::read_dir(node.config.run_dir.join("open")).unwrap().count();
    assert_eq!(open, 1, "only what is there has a mark");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_started_but_is_not_ready_gets_no_requests() {
    let mut node = Node::new('c').await;
    node.run("never-ready", |settings| {
        let (startup, ready) = (r#"{"tcp": 8080, "timeout": "1s"}"#, r#"{"http": "/healthz"}"#);
        let startup: Startup = serde_json::from_str(startup).unwrap();
        let readiness: Probe = serde_json::from_str(ready).unwrap();
        settings.health.startup = Some(startup);
        settings.health.readiness = Some(readiness);
    })
    .await;
    let unready = |i: &InstanceSeen| health(i) == Some(Health::Unready);
    let first = node.until("it is not ready", unready).await;
    // A restart of `serve` long after the start does not take it for one that never started.
    let ContainerState::Running { since, .. } = first.containers[0].state else { panic!() };
    let is_old = || since.0 + 1_100_000 < now_micros();
    while !is_old() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.engine = None;
    node.open().await;
    let second = node.until("it is not ready", unready).await;
    assert_eq!(first.containers[0].id, second.containers[0].id);
    assert!(second.trouble.is_none() && !node.witness.attached_any());
    node.end().await;
}

fn now_micros() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_micros()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn however_often_serve_ends_amid_its_work_nothing_is_left_over() {
    let mut node = Node::new('e').await;
    let releases = [(1, node.release("1", |_| {}).await), (2, node.release("2", |_| {}).await)];
    let mut wanted = fleet(&node.app, 1, 1, (1, 0), &releases);
    for round in 0..24 {
        wanted.generation = Generation(u64::from(round) + 1);
        // Now another Release, now the same one run anew, once a scale to none.
        wanted.lineup = match round % 3 {
            0 => fleet(&node.app, 1, 1, (1 + round / 3 % 2, round), &releases).lineup,
            _ => wanted
                .lineup
                .map(|was| Lineup::all(Revision { run: round, since: round, ..was.base })),
        };
        wanted.heading = wanted.lineup.as_ref().map(|lineup| lineup.base);
        wanted.instances = u32::from(round != 11);
        node.engine().apply(wanted.clone()).await.unwrap();
        // Each round ends a little later in the work, up to its end.
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 7)).await;
        node.engine = None;
        node.open().await;
    }
    let target = wanted.heading.unwrap();
    let good = |i: &InstanceSeen| match i.containers.as_slice() {
        [only] => only.serves() && only.revision == target,
        _ => false,
    };
    let now = node.until("only what is wanted is there", good).await;
    let id = now.containers[0].id.as_str();
    let container_groups: Vec<_> = node.groups(".").into_iter().collect();
    assert!(container_groups.iter().all(|group| group.ends_with(id)), "{container_groups:?}");
    let uppers = std::fs::read_dir(node.config.data_dir.join("upper")).unwrap().flatten();
    let layers: Vec<_> = uppers
        .flat_map(|sandbox| std::fs::read_dir(sandbox.path()).unwrap().flatten())
        .map(|layer| layer.file_name())
        .collect();
    assert_eq!(layers, [id]);
    assert_eq!(std::fs::read_dir(node.config.run_dir.join("open")).unwrap().count(), 1);
    assert_eq!((now.crashes, now.trouble), (0, None));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_command_ends_with_its_caller() {
    let node = Node::new('f').await;
    // The sample service, main or not, is silent for as long as this.
    node.run("1", |settings| {
        let env: Manifest = serde_json::from_str(
            r#"{"app": "x", "source": "y", "env": {"START_DELAY_MS": "600000"}}"#,
        )
        .unwrap();
        settings.env = env.env;
        let startup = r#"{"http": "/healthz", "timeout": "60s"}"#;
        settings.health.startup = Some(serde_json::from_str(startup).unwrap());
    })
    .await;
    let now = node.until("it runs", |i| health(i) == Some(Health::Starting)).await;
    let folder = node.groups(now.containers[0].id.as_str()).pop().unwrap();
    let processes =
        || std::fs::read_to_string(folder.join("cgroup.procs")).unwrap().lines().count();
    for tty in [None, Some((24, 80))] {
        let argv = vec!["/hello".to_owned()];
        let request = ExecRequest { instance: None, argv, tty, stdin: true };
        let begun = Instant::now();
        let exec = loop {
            match node.engine().exec(&node.app, request.clone()).await {
                Ok(exec) => break exec,
                // The model runs ahead of the holder by a moment.
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        };
        assert_eq!(processes(), 3, "init, main, command");
        drop(exec);
        node.until("it has ended", |_| processes() == 2).await;
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_private_and_go_with_the_app() {
    let node = Node::new('d').await;
    let fleet = node.run("1", |_| {}).await;
    node.serving(None).await;
    let NodeConfig { data_dir, run_dir, .. } = &node.config;
    for folder in [
        run_dir.join("open"),
        run_dir.join("fleets"),
        data_dir.join("logs"),
        data_dir.join("volumes"),
    ] {
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
    }
    let logs = data_dir.join("logs").join(node.app.namespace.as_str()).join(node.app.app.as_str());
    assert!(logs.exists());
    let none = Fleet { instances: 0, generation: fleet.generation.next(), ..fleet };
    node.engine().apply(none).await.unwrap();
    let begun = Instant::now();
    while let Err(error) = node.engine().forget(&node.app, true).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!logs.exists());
    node.end().await;
}
