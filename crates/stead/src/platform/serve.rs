//! The role `serve`: the control plane with the embedded engine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use stead_control::Control;
use stead_core::engine::{Backend, Drained, NoSecrets, Traffic};
use stead_core::error::UserError;
use stead_core::event::{Event, Events};
use stead_core::ids::ContainerId;
use stead_core::name::AppKey;
use stead_core::registry::{NoRegistryBook, RegistryBook};
use stead_engine_node::image::{RegistryOptions, StoreOptions, TrustedRegistry};
use stead_engine_node::sandbox::HostConfig;
use stead_engine_node::{NodeConfig, NodeEngine};
use tokio::signal::unix::{SignalKind, signal};

use super::layout::Layout;
use super::settings::Registries;
use super::{log_to_stderr, role};

/// What it is started with.
pub(crate) struct Config {
    pub(crate) layout: Layout,
    /// The API over TCP; `None` for the socket alone.
    pub(crate) listen: Option<SocketAddr>,
    /// The gateway's address, for the URLs shown.
    pub(crate) http: SocketAddr,
    pub(crate) registries: Registries,
    pub(crate) docker_config: Option<PathBuf>,
    /// Bytes that images may take of the disk.
    pub(crate) image_quota: Option<u64>,
}

/// Runs the control plane and the engine until SIGTERM or SIGINT. Containers go on.
pub(crate) fn run(config: Config) -> Result<()> {
    block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let Layout { data_dir, run_dir } = config.layout.clone();
        let (listen, http) = (config.listen, config.http);
        let control = stead_control::Config { data_dir, run_dir, listen, http };
        let control = Control::open(control).await.map_err(UserError::from)?;
        let (traffic, events, secrets) = (control.traffic(), control.events(), control.secrets());
        let node = node(config, control.registries());
        let engine = Arc::new(NodeEngine::open(node, traffic, events, secrets).await?);
        let ended = control.run(engine.clone(), shutdown).await;
        engine.close().await;
        Ok(ended.map_err(UserError::from)?)
    })
}

/// Removes every Container, network and control group of this platform, and ends. Images,
/// volumes and what is wanted stay: the next start brings the Apps back.
pub(crate) fn destroy(config: Config) -> Result<()> {
    block_on(async {
        // Nothing is prepared any more, so nobody asks for a value.
        let (traffic, events, secrets) = (Arc::new(Nobody), Arc::new(Nobody), Arc::new(NoSecrets));
        let node = node(config, Arc::new(NoRegistryBook));
        let engine = NodeEngine::open(node, traffic, events, secrets).await?;
        Ok(engine.destroy_all().await?)
    })
}

fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    role::leave_session(c"stead-serve");
    log_to_stderr();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

fn node(config: Config, book: Arc<dyn RegistryBook>) -> NodeConfig {
    let Config { layout, registries, docker_config, image_quota: quota, .. } = config;
    let trusted = registries.insecure.into_iter().map(|host| (host, true));
    let trusted = trusted.chain(registries.private.into_iter().map(|host| (host, false)));
    let registry = RegistryOptions {
        book,
        credentials: docker_config.or_else(own_docker_config),
        trusted: trusted.map(|(host, plain_http)| TrustedRegistry { host, plain_http }).collect(),
        ..RegistryOptions::default()
    };
    NodeConfig {
        host: HostConfig {
            run_dir: layout.run_dir.clone(),
            data_dir: layout.data_dir.clone(),
            name: layout.name(),
            ..HostConfig::default()
        },
        images: StoreOptions { registry, quota, ..StoreOptions::default() },
        data_dir: layout.data_dir,
        run_dir: layout.run_dir,
    }
}

/// The docker config of the user that the platform runs as.
fn own_docker_config() -> Option<PathBuf> {
    let folder = match std::env::var_os("DOCKER_CONFIG") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(folder.join("config.json"))
}

/// Stands in for the gateways and the event log while everything is removed.
struct Nobody;

#[async_trait]
impl Traffic for Nobody {
    async fn attach(&self, _: &AppKey, _: Backend) {}

    async fn detach(&self, _: &AppKey, _: &ContainerId, _: Duration) -> Drained {
        Drained { clean: true }
    }
}

impl Events for Nobody {
    fn emit(&self, _: Event) {}
}
