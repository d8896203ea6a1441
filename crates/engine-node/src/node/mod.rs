//! The node engine: an [`Engine`] for one Linux machine, without a daemon beside it.
//!
//! Each App has a [`worker::Worker`] that plans with `core::fleet::plan` and carries the
//! steps out ([`act`]). What it knows lives in a [`model::Model`], fed only by what the
//! images, sandboxes, probes and the gateway report. After a restart the model is built from
//! what the holders still hold ([`recover`]).

mod act;
mod bases;
mod change;
mod ends;
mod exec;
mod hooks;
mod intent;
mod java;
mod labels;
mod memory;
mod model;
mod pulls;
mod recover;
mod serving;
mod site;
mod spec;
mod worker;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use stead_core::api::package::{
    ArchiveFormat, BaseName, ComposeRequest, Composed, UploadPart, UploadView,
};
use stead_core::engine::{
    ByteStream, Capabilities, Engine, EngineError, Exec, ExecRequest, HostRuntime, ImageInfo,
    LogLine, LogQuery, MadeBase, PullProgress, PullSeen, Secrets, Traffic, Usage,
};
use stead_core::error::{Code, UserError};
use stead_core::event::Events;
use stead_core::fleet::{Fleet, FleetSeen};
use stead_core::ids::{Digest, Ordinal};
use stead_core::manifest::Site;
use stead_core::name::AppKey;
use stead_core::registry::{Login, RegistryChecked, RegistryHost};
use stead_core::time::Micros;
use tokio::sync::broadcast;
use tokio::task::{AbortHandle, JoinSet};

use crate::clock::now;
use crate::image::{Image, ImageError, ImageStore, Made, Reference, StoreOptions};
use crate::jvm::{Archives, train};
use crate::logs;
use crate::package::base;
use crate::sandbox::{Host, HostConfig};
use worker::Worker;

/// Where the engine keeps what, and what it may use.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// State that survives a reboot: images, volumes, logs.
    pub data_dir: PathBuf,
    /// State that survives `serve` but not a reboot. Short: it holds socket paths.
    pub run_dir: PathBuf,
    /// Sandboxes, network and cgroups.
    pub host: HostConfig,
    /// Images.
    pub images: StoreOptions,
}

/// What workers share.
struct Shared {
    data_dir: PathBuf,
    run_dir: PathBuf,
    host: Host,
    images: ImageStore,
    traffic: Arc<dyn Traffic>,
    events: Arc<dyn Events>,
    secrets: Arc<dyn Secrets>,
    hints: broadcast::Sender<AppKey>,
    pulls: pulls::Pulls,
    intents: intent::Intents,
    memory: memory::Memory,
    java: java::Java,
    /// Sandboxes set up at the same time: more only wait for each other in the kernel.
    setups: tokio::sync::Semaphore,
}

/// The embedded engine.
pub struct NodeEngine {
    shared: Arc<Shared>,
    workers: Arc<Mutex<BTreeMap<AppKey, Arc<Worker>>>>,
    /// Ends with the engine.
    follower: JoinSet<()>,
    /// The one that records archives of Java programs.
    recorder: AbortHandle,
}

impl NodeEngine {
    /// Opens the engine and takes over every Sandbox that is still there.
    pub async fn open(
        config: NodeConfig,
        traffic: Arc<dyn Traffic>,
        events: Arc<dyn Events>,
        secrets: Arc<dyn Secrets>,
    ) -> Result<Self, UserError> {
        let (intents, archives) = folders(&config).map_err(|error| {
            UserError::new(
                Code::MachineUnfit,
                format!(
                    "folders under {} and {} cannot be made: {error}",
                    config.run_dir.display(),
                    config.data_dir.display()
                ),
                "run as root, or choose other folders with --run-dir and --data-dir",
            )
        })?;
        let images = ImageStore::open(&config.data_dir.join("images"), config.images)
            .map_err(UserError::from)?;
        let (java, wishes) = java::Java::new(archives);
        let (host, found) = Host::open(config.host).await.map_err(|error| error.user())?;
        let (training, found): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| train::is_training(found.sandbox.labels()));
        for left in training {
            // It fails never: what cannot be removed at once is removed later.
            let _ = host.remove(left.sandbox.id()).await;
        }
        let host_events = host.events();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let shared = Arc::new(Shared {
            data_dir: config.data_dir,
            run_dir: config.run_dir,
            host,
            images,
            traffic,
            events,
            secrets,
            hints: broadcast::channel(1024).0,
            pulls: pulls::Pulls::default(),
            intents,
            memory: memory::Memory::new(),
            java,
            setups: tokio::sync::Semaphore::new(cores * 2),
        });
        let mut follower = JoinSet::new();
        let recorder = follower.spawn(java::record(shared.clone(), wishes));
        let mut engine = Self { shared, workers: Arc::default(), follower, recorder };
        for (app, model) in recover::models(&engine.shared, found) {
            let worker = Worker::start(app.clone(), model, engine.shared.clone());
            java::recovered(&worker);
            engine.lock().insert(app, worker);
        }
        engine.follower.spawn(recover::follow(host_events, engine.workers.clone()));
        Ok(engine)
    }

    /// Ends what nobody would end without this engine: copies of Apps from which archives are
    /// recorded. Apps go on.
    pub async fn close(&self) {
        self.shared.java.close().await;
    }

    /// Removes every Sandbox, network and control group of this engine. Volumes and images
    /// stay.
    pub async fn destroy_all(&self) -> Result<(), UserError> {
        for worker in std::mem::take(&mut *self.lock()).into_values() {
            self.shared.intents.forget(&worker.app);
            worker.end();
        }
        self.recorder.abort();
        self.shared.host.destroy_all().await.map_err(|error| error.user())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<AppKey, Arc<Worker>>> {
        self.workers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn known(&self, app: &AppKey) -> Option<Arc<Worker>> {
        self.lock().get(app).cloned()
    }

    /// An image as people see it.
    fn info(&self, image: &Image) -> Result<ImageInfo, UserError> {
        let all = self.shared.images.list();
        let found = all.into_iter().find(|summary| summary.digest == image.digest);
        found.map(spec::image_info).ok_or_else(|| {
            let message = format!("image {} vanished as soon as it was here", image.digest);
            UserError::new(Code::Internal, message, "try again")
        })
    }

    fn worker(&self, app: &AppKey) -> Arc<Worker> {
        let start = || Worker::start(app.clone(), model::Model::default(), self.shared.clone());
        self.lock().entry(app.clone()).or_insert_with(start).clone()
    }
}

impl Drop for NodeEngine {
    /// Ends the work, not what runs: Sandboxes go on.
    fn drop(&mut self) {
        for worker in std::mem::take(&mut *self.lock()).into_values() {
            worker.end();
        }
    }
}

#[async_trait]
impl Engine for NodeEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities { in_place: true, handover: true, freeze: true, export: true }
    }

    async fn apply(&self, fleet: Fleet) -> Result<(), EngineError> {
        self.worker(&fleet.app).apply(fleet)
    }

    async fn observe(&self, app: &AppKey) -> Result<FleetSeen, EngineError> {
        Ok(self.known(app).map(|worker| worker.seen()).unwrap_or_default())
    }

    async fn apps(&self) -> Result<Vec<AppKey>, EngineError> {
        Ok(self.lock().keys().cloned().collect())
    }

    fn hints(&self) -> BoxStream<'static, AppKey> {
        let receiver = self.shared.hints.subscribe();
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(app) => return Some((app, receiver)),
                    // Hints may be lost: a periodic scan finds what they would have told.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }

    async fn forget(&self, app: &AppKey, volumes: bool) -> Result<(), EngineError> {
        if let Some(worker) = self.known(app) {
            if !worker.is_empty() {
                return Err(UserError::new(
                    Code::Conflict,
                    format!("app {app} still has instances"),
                    "scale it to none first",
                )
                .into());
            }
            worker.end();
            self.lock().remove(app);
        }
        self.shared.intents.forget(app);
        let (shared, app) = (self.shared.clone(), app.clone());
        blocking(move || spec::remove_data(&shared, &app, volumes))
            .await?
            .map_err(EngineError::User)
    }

    async fn resolve(&self, reference: &str) -> Result<Digest, EngineError> {
        let reference = parse(reference)?;
        self.shared.images.resolve(&reference).await.map_err(|e| UserError::from(e).into())
    }

    async fn check_registry(
        &self,
        host: &RegistryHost,
        login: Option<&Login>,
    ) -> Result<RegistryChecked, EngineError> {
        let checked = self.shared.images.check_registry(host, login).await;
        checked.map_err(|error| UserError::from(error).into())
    }

    async fn warm(&self, reference: &str, digest: &Digest) -> Result<(), EngineError> {
        act::pull(&self.shared, reference, digest).await.map(drop).map_err(EngineError::User)
    }

    async fn import(&self, path: PathBuf, name: Option<String>) -> Result<ImageInfo, EngineError> {
        let name = name.as_deref().map(parse).transpose()?;
        let imported = self.shared.images.import(&path, name.as_ref(), &()).await;
        let image = imported.map_err(UserError::from)?;
        Ok(self.info(&image)?)
    }

    fn pulling(&self, digest: &Digest) -> Option<PullProgress> {
        self.shared.pulls.progress(digest)
    }

    fn pulls(&self) -> Vec<PullSeen> {
        self.shared.pulls.all()
    }

    async fn site(&self, image: &Digest, rules: &Site) -> Result<Option<PathBuf>, EngineError> {
        let Some(image) = self.shared.images.get(image) else { return Ok(None) };
        let rules = rules.clone();
        Ok(blocking(move || site::check(&image, &rules)).await?.map(Some)?)
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, EngineError> {
        Ok(self.shared.images.list().into_iter().map(spec::image_info).collect())
    }

    async fn prune(&self, keep: &[Digest], unused_for: Micros) -> Result<u64, EngineError> {
        let before = (unused_for > Micros(0)).then(|| now() - unused_for);
        let mut in_use: std::collections::HashSet<Digest> = keep.iter().cloned().collect();
        for worker in self.lock().values() {
            in_use.extend(worker.images_in_use());
        }
        let images = self.shared.images.clone();
        images.keep(keep);
        let pruned =
            blocking(move || images.prune(&in_use, before)).await?.map_err(UserError::from)?;
        for worker in self.lock().values() {
            worker.look_for_images();
        }
        self.shared.java.tidy(|image| self.shared.images.get(image).is_some());
        Ok(pruned.bytes)
    }

    async fn keep(&self, needed: &[Digest]) -> Result<(), EngineError> {
        let (images, needed) = (self.shared.images.clone(), needed.to_vec());
        let tidying = move || {
            images.keep(&needed);
            images.tidy()
        };
        blocking(tidying).await?.map_err(|error| UserError::from(error).into())
    }

    async fn remove_image(&self, image: &Digest) -> Result<u64, EngineError> {
        if self.shared.images.get(image).is_none() {
            return Err(UserError::from(ImageError::NotHere { digest: image.clone() }).into());
        }
        let (images, digest) = (self.shared.images.clone(), image.clone());
        let removed = blocking(move || images.remove(&digest)).await?.map_err(UserError::from)?;
        let removed = removed.ok_or_else(|| {
            let message = format!("image {image} is in use");
            UserError::new(Code::Conflict, message, "delete or change the app that runs it first")
        })?;
        Ok(removed.bytes)
    }

    async fn export(
        &self,
        image: &Digest,
        format: ArchiveFormat,
    ) -> Result<ByteStream, EngineError> {
        let exported = self.shared.images.export(image, format);
        exported.map_err(|error| UserError::from(error).into())
    }

    async fn uploaded(&self, digest: &Digest) -> Result<UploadView, EngineError> {
        let view = self.shared.images.uploaded(digest).await;
        view.map_err(|error| UserError::from(error).into())
    }

    async fn upload(&self, part: UploadPart, bytes: ByteStream) -> Result<UploadView, EngineError> {
        let view = self.shared.images.upload(part, bytes).await;
        view.map_err(|error| UserError::from(error).into())
    }

    async fn compose(
        &self,
        request: &ComposeRequest,
        base: Option<&Digest>,
    ) -> Result<Composed, EngineError> {
        let made = self.shared.images.compose(request, base, &()).await;
        match made.map_err(UserError::from)? {
            Made::Image(image) => Ok(Composed::Image(self.info(&image)?)),
            Made::Missing(layers) => Ok(Composed::Missing(layers)),
        }
    }

    async fn host_runtimes(&self) -> Result<Vec<HostRuntime>, EngineError> {
        blocking(base::installed).await
    }

    async fn make_base(
        &self,
        name: &BaseName,
        path: Option<PathBuf>,
    ) -> Result<MadeBase, EngineError> {
        let (image, runtime, notes) = bases::make(&self.shared, name, path).await?;
        Ok(MadeBase { image: self.info(&image)?, runtime, notes })
    }

    async fn logs(
        &self,
        app: &AppKey,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, EngineError> {
        let folder = logs::folder(&self.shared.data_dir, app);
        blocking(move || logs::read(&folder, query)).await?.map_err(EngineError::User)
    }

    async fn exec(&self, app: &AppKey, request: ExecRequest) -> Result<Exec, EngineError> {
        let running = self.known(app).and_then(|worker| worker.running(request.instance));
        let Some((sandbox, container)) = running else {
            let which: Option<Ordinal> = request.instance;
            let message = match which {
                Some(ordinal) => format!("instance {ordinal} of app {app} is not running"),
                None => format!("app {app} has no running instance"),
            };
            return Err(UserError::new(Code::NoInstance, message, "look at `stead ps`").into());
        };
        exec::run(sandbox, &container, request).await.map_err(EngineError::User)
    }

    async fn usage(&self, app: &AppKey) -> Result<Vec<Usage>, EngineError> {
        match self.known(app) {
            Some(worker) => Ok(worker.usage().await),
            None => Ok(Vec::new()),
        }
    }
}

/// Makes the folders. What lies in them, or lets somebody into a Container, is for root alone:
/// a volume may hold a set-user-id program of a Container's root.
fn folders(config: &NodeConfig) -> std::io::Result<(intent::Intents, Archives)> {
    for folder in
        [config.run_dir.join("open"), config.data_dir.join("logs"), config.data_dir.join("volumes")]
    {
        private_folder(&folder)?;
    }
    let archives = Archives::open(&config.data_dir.join("jvm"))?;
    Ok((intent::Intents::open(&config.run_dir)?, archives))
}

fn private_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
}

/// Does work on the disk that may take long.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        let message = format!("work on the disk was broken off: {error}");
        UserError::new(Code::Internal, message, "try again").into()
    })
}

fn parse(reference: &str) -> Result<Reference, UserError> {
    reference.parse().map_err(ImageError::from).map_err(UserError::from)
}
