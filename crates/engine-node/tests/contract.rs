//! The node engine keeps the contract of every engine: with real Sandboxes, real Containers
//! and a real registry.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use stead_core::engine::{Engine, NoSecrets};
use stead_core::manifest::{Manifest, Startup};
use stead_core::registry::{Login, RegistryHost};
use stead_core::secret::Secret;
use stead_engine_node::image::StoreOptions;
use stead_engine_node::sandbox::HostConfig;
use stead_engine_node::{NodeConfig, NodeEngine};
use stead_testkit::contract::{self, Images, Registries, Subject, Witness};
use stead_testkit::images::Catalogue;
use stead_testkit::registry::Registry;
use tempfile::NamedTempFile;

/// What the engines of all checks share: nothing of it changes.
#[derive(Clone)]
struct Around {
    images: Images,
    registries: Registries,
}

/// One engine on this machine, with a folder and names of its own.
struct NodeSubject {
    engine: Option<Arc<NodeEngine>>,
    config: NodeConfig,
    witness: Arc<Witness>,
    around: Around,
    _dir: tempfile::TempDir,
}

/// Opens the engine; one before it may need a moment to let go of its locks.
async fn open(config: &NodeConfig, witness: &Arc<Witness>) -> Arc<NodeEngine> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (traffic, events, secrets) = (witness.clone(), witness.clone(), Arc::new(NoSecrets));
        match NodeEngine::open(config.clone(), traffic, events, secrets).await {
            Ok(engine) => return Arc::new(engine),
            Err(error) if error.message.contains("another") && Instant::now() < deadline => {
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("the machine cannot hold Sandboxes: {error}"),
        }
    }
}

impl NodeSubject {
    async fn new(witness: Arc<Witness>, around: Around) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed) % 36;
        let dir = tempfile::Builder::new().prefix("stead-node-").tempdir().expect("a folder");
        let data_dir = dir.path().join("data");
        let run_dir = dir.path().join("run");
        let config = NodeConfig {
            host: HostConfig {
                run_dir: run_dir.clone(),
                data_dir: data_dir.clone(),
                name: format!("n{}x{unique}", std::process::id() % 10_000),
                pool: 1,
                ..HostConfig::default()
            },
            images: StoreOptions::default(),
            data_dir,
            run_dir,
        };
        let engine = Some(open(&config, &witness).await);
        Self { engine, config, witness, around, _dir: dir }
    }
}

#[async_trait]
impl Subject for NodeSubject {
    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone().expect("it is only gone at the end")
    }

    async fn restart(&mut self) {
        let old = self.engine.take().expect("it is only gone at the end");
        assert_eq!(Arc::strong_count(&old), 1, "nobody else holds the engine");
        drop(old);
        self.engine = Some(open(&self.config, &self.witness).await);
    }

    fn images(&self) -> Images {
        self.around.images.clone()
    }

    fn registries(&self) -> Registries {
        self.around.registries.clone()
    }

    fn fit(&self, settings: &mut Manifest) {
        let probe = serde_json::json!({"http": "/healthz", "timeout": "3s"});
        let startup: Startup = serde_json::from_value(probe).expect("a probe");
        settings.health.startup = Some(startup);
    }

    async fn end(mut self: Box<Self>) {
        let engine = self.engine.take().expect("it is only gone at the end");
        engine.destroy_all().await.expect("everything goes");
    }
}

/// A registry with the images, one beside it that wants a login, and the file that says which.
fn surroundings() -> (Around, [Registry; 2], NamedTempFile) {
    let registry = Registry::start().expect("docker-registry starts");
    let mut catalogue = Catalogue::new();
    let mut push = |tag: &str| {
        let image = catalogue.image("trivial", tag).expect("the catalogue makes it");
        registry.push("trivial", tag, &image).expect("the registry takes it");
        registry.reference("trivial", tag)
    };
    let images = Images {
        good: push("1"),
        second: push("2"),
        crashing: push("exits"),
        crash_code: 3,
        never_ready: push("never-ready"),
    };
    // "secret", by bcrypt.
    let line = "user:$2y$04$Xmx4hvIe8QC.eGL6gWZWTOBX/6aiAs7wwt2R1uJPWcE1iVOlHuNjS\n";
    let htpasswd = NamedTempFile::new().expect("a file");
    std::fs::write(htpasswd.path(), line).expect("it can be written");
    let guarded = registry.guarded(htpasswd.path()).expect("docker-registry starts");
    let host =
        |address: SocketAddr| -> RegistryHost { address.to_string().parse().expect("a host") };
    let registries = Registries {
        guarded: host(guarded.address()),
        login: Login {
            user: "user".into(),
            password: Secret::new("secret".into()).expect("a password"),
        },
        open: host(registry.address()),
        // Nobody listens on the port of "discard".
        away: "127.0.0.1:9".parse().expect("a host"),
    };
    (Around { images, registries }, [registry, guarded], htpasswd)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_engine_keeps_the_contract() {
    let started = tokio::task::spawn_blocking(surroundings).await;
    let (around, servers, _htpasswd) = started.expect("it does not panic");
    let report = contract::run(|witness| {
        let around = around.clone();
        async move { Box::new(NodeSubject::new(witness, around).await) as Box<dyn Subject> }
    })
    .await;
    drop(servers);
    println!("{report}");
    report.assert_passed();
    assert_eq!(report.lacking, [], "it can do everything");
}
