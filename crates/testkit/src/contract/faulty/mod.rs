//! Engines with one defect each: what they do wrong with Fleets, their traffic and Events.

mod defect;
mod images;
mod subject;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use stead_core::api::package::{
    ArchiveFormat, BaseName, ComposeRequest, Composed, UploadPart, UploadView,
};
use stead_core::engine::{
    Backend, ByteStream, Capabilities, Drained, Engine, EngineError, Exec, ExecRequest,
    HostRuntime, ImageInfo, LogLine, LogQuery, MadeBase, PullProgress, Traffic, Usage,
};
use stead_core::event::{Event, Events, Fact};
use stead_core::fleet::{ContainerState, Fleet, FleetSeen, Health, Lineup};
use stead_core::ids::{ContainerId, Digest, Ordinal};
use stead_core::manifest::{Site, Strategy};
use stead_core::name::AppKey;
use stead_core::registry::{Login, RegistryChecked, RegistryHost};
use stead_core::time::{Micros, Time};

pub use self::defect::Defect;
pub use self::subject::SimSubject;
use super::Witness;
use crate::sim::{PORT, SimEngine, SimMachine};

/// A simulated engine with one defect.
pub struct FaultyEngine {
    inner: SimEngine,
    defect: Defect,
    road: Arc<Road>,
    /// How often each App's present Fleet was applied, and its highest run.
    applied: Mutex<BTreeMap<AppKey, (u32, Option<Fleet>)>>,
    /// How many images it was asked to make.
    made: AtomicU32,
}

impl FaultyEngine {
    /// An engine on `machine` with `defect`.
    pub fn open(machine: SimMachine, witness: Arc<Witness>, defect: Defect) -> Self {
        let road = Arc::new(Road { witness: witness.clone(), defect, deaf: Mutex::default() });
        let events = Arc::new(Told { witness, defect });
        let inner = SimEngine::open(machine, road.clone(), events);
        Self { inner, defect, road, applied: Mutex::default(), made: AtomicU32::new(0) }
    }

    /// The Fleet that this engine makes of what it was given.
    fn misread(&self, mut fleet: Fleet) -> Option<Fleet> {
        let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        let (times, before) = applied.entry(fleet.app.clone()).or_default();
        *times += 1;
        let given = fleet.clone();
        match self.defect {
            Defect::AlwaysRecreates => with_strategy(&mut fleet, Strategy::Recreate),
            Defect::NeverRecreates => with_strategy(&mut fleet, Strategy::InPlace),
            Defect::Restless => {
                if let Some(lineup) = &mut fleet.lineup {
                    lineup.base.run += *times - 1;
                    lineup.base.since = lineup.base.run;
                }
            }
            Defect::RestartsAll => {
                if let Some(lineup) = &mut fleet.lineup
                    && let Some(again) = lineup.each.values().copied().max()
                {
                    *lineup = Lineup::all(again);
                }
            }
            Defect::KeepsSurplus => {
                let most = before.as_ref().map_or(0, |before| before.instances);
                fleet.instances = fleet.instances.max(most);
            }
            Defect::CannotUndo => {
                let run = |fleet: &Fleet| fleet.lineup.as_ref().map_or(0, |lineup| lineup.base.run);
                if before.as_ref().is_some_and(|before| run(before) > run(&fleet)) {
                    return None;
                }
            }
            Defect::NeverHandsOver => with_strategy(&mut fleet, Strategy::InPlace),
            Defect::SharesVolumes => with(&mut fleet, |settings| {
                settings.volumes.iter_mut().for_each(|volume| volume.shared = true);
            }),
            Defect::NeverFreezes => with(&mut fleet, |settings| {
                settings.rollout.keep_previous = Some(stead_core::manifest::Span::ZERO);
            }),
            Defect::RestartsForLimits | Defect::RestartsWithSidecar => {
                if let Some(lineup) = &mut fleet.lineup {
                    lineup.base.since = lineup.base.run;
                }
            }
            Defect::TakesAllOut => with(&mut fleet, |settings| {
                settings.rollout.max_unavailable = stead_core::manifest::Amount::Percent(100);
            }),
            _ => {}
        }
        let kept = if self.defect == Defect::KeepsSurplus { fleet.clone() } else { given };
        *before = Some(kept);
        Some(fleet)
    }

    /// What this engine shows of what it saw.
    fn misreport(&self, app: &AppKey, mut seen: FleetSeen) -> FleetSeen {
        for (ordinal, instance) in &mut seen.instances {
            let starting = instance.containers.iter().find(|c| {
                matches!(c.state, ContainerState::Running { health: Health::Starting, .. })
            });
            match self.defect {
                Defect::ChangesAddress => {
                    let run = instance.containers.first().map_or(0, |c| c.revision.run);
                    if let Some(sandbox) = &mut instance.sandbox {
                        sandbox.ip = std::net::Ipv4Addr::new(10, 99, run as u8, 1).into();
                    }
                }
                Defect::DoubleStarts => {
                    let two = instance.containers.len() > 1;
                    for container in instance.containers.iter_mut().filter(|_| two) {
                        container.state =
                            ContainerState::Running { since: Time(0), health: Health::Starting };
                    }
                }
                Defect::CountsRestarts => {
                    instance.crashes += instance.containers.first().map_or(0, |c| c.revision.run);
                }
                Defect::NoBackoff => {
                    if let Some(trouble) = &mut instance.trouble {
                        trouble.at = Time(u64::from(trouble.count));
                    }
                }
                Defect::AttachesEarly => {
                    if let (Some(container), Some(sandbox)) = (starting, &instance.sandbox) {
                        let addr = std::net::SocketAddr::new(sandbox.ip, PORT);
                        self.road.attach_early(app, *ordinal, container.id.clone(), addr);
                    }
                }
                _ => {}
            }
        }
        seen
    }
}

fn with_strategy(fleet: &mut Fleet, strategy: Strategy) {
    with(fleet, |settings| settings.rollout.strategy = Some(strategy));
}

fn with(fleet: &mut Fleet, change: impl Fn(&mut stead_core::manifest::Manifest)) {
    for spec in fleet.releases.values_mut() {
        change(Arc::make_mut(&mut spec.settings));
    }
}

/// The way to the Witness, with what a defect does to it.
struct Road {
    witness: Arc<Witness>,
    defect: Defect,
    deaf: Mutex<Vec<ContainerId>>,
}

impl Road {
    fn attach_early(
        &self,
        app: &AppKey,
        instance: Ordinal,
        container: ContainerId,
        addr: std::net::SocketAddr,
    ) {
        let mut done = self.deaf.lock().unwrap_or_else(PoisonError::into_inner);
        if done.contains(&container) {
            return;
        }
        done.push(container.clone());
        let revision = stead_core::fleet::Revision {
            release: stead_core::ids::ReleaseNo(1),
            run: 1,
            since: 1,
        };
        let backend = Backend { container, instance, revision, addr, mark: None };
        let (witness, app) = (self.witness.clone(), app.clone());
        tokio::spawn(async move { witness.attach(&app, backend).await });
    }
}

#[async_trait]
impl Traffic for Road {
    async fn attach(&self, app: &AppKey, backend: Backend) {
        self.witness.attach(app, backend).await;
    }

    async fn detach(&self, app: &AppKey, container: &ContainerId, drain: Duration) -> Drained {
        if self.defect == Defect::StopsBeforeDetach {
            let (witness, app, container) = (self.witness.clone(), app.clone(), container.clone());
            tokio::spawn(async move { witness.detach(&app, &container, drain).await });
            return Drained { clean: true };
        }
        self.witness.detach(app, container, drain).await
    }
}

/// The way of Events to the Witness, with what a defect does to it.
struct Told {
    witness: Arc<Witness>,
    defect: Defect,
}

impl Events for Told {
    fn emit(&self, event: Event) {
        if self.defect != Defect::LosesExits || !matches!(event.fact, Fact::Exited { .. }) {
            self.witness.emit(event);
        }
    }
}

#[async_trait]
impl Engine for FaultyEngine {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn apply(&self, fleet: Fleet) -> Result<(), EngineError> {
        let Some(fleet) = self.misread(fleet) else { return Ok(()) };
        match self.inner.apply(fleet).await {
            Err(EngineError::Stale { .. }) if self.defect == Defect::TakesStale => Ok(()),
            other => other,
        }
    }

    async fn observe(&self, app: &AppKey) -> Result<FleetSeen, EngineError> {
        Ok(self.misreport(app, self.inner.observe(app).await?))
    }

    async fn apps(&self) -> Result<Vec<AppKey>, EngineError> {
        self.inner.apps().await
    }

    fn hints(&self) -> BoxStream<'static, AppKey> {
        if self.defect == Defect::NeverHints {
            return futures_util::stream::pending().boxed();
        }
        self.inner.hints()
    }

    async fn forget(&self, app: &AppKey, volumes: bool) -> Result<(), EngineError> {
        match self.inner.forget(app, volumes).await {
            Err(_) if self.defect == Defect::ForgetsTooMuch => Ok(()),
            other => other,
        }
    }

    async fn resolve(&self, reference: &str) -> Result<Digest, EngineError> {
        self.inner.resolve(reference).await
    }

    async fn check_registry(
        &self,
        host: &RegistryHost,
        login: Option<&Login>,
    ) -> Result<RegistryChecked, EngineError> {
        self.misjudge_login(self.inner.check_registry(host, login).await)
    }

    async fn warm(&self, reference: &str, digest: &Digest) -> Result<(), EngineError> {
        self.inner.warm(reference, digest).await
    }

    async fn import(&self, path: PathBuf, name: Option<String>) -> Result<ImageInfo, EngineError> {
        self.inner.import(path, name).await
    }

    fn pulling(&self, digest: &Digest) -> Option<PullProgress> {
        self.inner.pulling(digest)
    }

    async fn site(&self, image: &Digest, rules: &Site) -> Result<Option<PathBuf>, EngineError> {
        match self.defect {
            Defect::FindsNoSite => Ok(None),
            Defect::IgnoresPages => self.inner.site(image, &Site::default()).await,
            _ => self.inner.site(image, rules).await,
        }
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, EngineError> {
        Ok(self.misname(self.inner.images().await?))
    }

    async fn prune(&self, keep: &[Digest], unused_for: Micros) -> Result<u64, EngineError> {
        self.misprune(keep, unused_for).await
    }

    async fn keep(&self, needed: &[Digest]) -> Result<(), EngineError> {
        self.miskeep(needed).await
    }

    async fn remove_image(&self, image: &Digest) -> Result<u64, EngineError> {
        self.misremove(image).await
    }

    async fn export(
        &self,
        image: &Digest,
        format: ArchiveFormat,
    ) -> Result<ByteStream, EngineError> {
        match self.defect {
            Defect::PretendsToExport => Ok(futures_util::stream::empty().boxed()),
            _ => self.inner.export(image, format).await,
        }
    }

    async fn uploaded(&self, digest: &Digest) -> Result<UploadView, EngineError> {
        Ok(self.misremember(self.inner.uploaded(digest).await?))
    }

    async fn upload(&self, part: UploadPart, bytes: ByteStream) -> Result<UploadView, EngineError> {
        self.misreceive(part, bytes).await
    }

    async fn compose(
        &self,
        request: &ComposeRequest,
        base: Option<&Digest>,
    ) -> Result<Composed, EngineError> {
        self.miscompose(request.clone(), base).await
    }

    async fn host_runtimes(&self) -> Result<Vec<HostRuntime>, EngineError> {
        self.inner.host_runtimes().await
    }

    async fn make_base(
        &self,
        base: &BaseName,
        path: Option<PathBuf>,
    ) -> Result<MadeBase, EngineError> {
        self.mismake_base(base, path).await
    }

    async fn logs(
        &self,
        app: &AppKey,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, EngineError> {
        self.inner.logs(app, query).await
    }

    async fn exec(&self, app: &AppKey, request: ExecRequest) -> Result<Exec, EngineError> {
        self.inner.exec(app, request).await
    }

    async fn usage(&self, app: &AppKey) -> Result<Vec<Usage>, EngineError> {
        self.inner.usage(app).await
    }
}
