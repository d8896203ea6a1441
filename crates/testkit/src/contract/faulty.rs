//! Engines with one defect each, and the simulated engine without any, as subjects.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use stead_core::engine::{
    Backend, Capabilities, Drained, Engine, EngineError, Exec, ExecRequest, ImageInfo, LogLine,
    LogQuery, PullProgress, Traffic, Usage,
};
use stead_core::event::{Event, Events, Fact};
use stead_core::fleet::{ContainerState, Fleet, FleetSeen, Health, Lineup};
use stead_core::ids::{ContainerId, Digest, Ordinal};
use stead_core::manifest::Strategy;
use stead_core::name::AppKey;
use stead_core::registry::{Login, RegistryChecked, RegistryHost};
use stead_core::time::{Micros, Time};

use super::{Images, Subject, Witness};
use crate::sim::{PORT, SimEngine, SimMachine};

/// What is wrong with a [`FaultyEngine`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// It takes an older generation without a word.
    TakesStale,
    /// It tells nobody of exits.
    LosesExits,
    /// It gives a Container another address in place.
    ChangesAddress,
    /// It recreates what could change in place.
    AlwaysRecreates,
    /// It never recreates.
    NeverRecreates,
    /// It stops while the drain goes on.
    StopsBeforeDetach,
    /// It starts the new Container beside the old one.
    DoubleStarts,
    /// It never hints.
    NeverHints,
    /// It runs everything again when a Fleet is applied again.
    Restless,
    /// It restarts every Instance when one is asked for.
    RestartsAll,
    /// It never takes an Instance away.
    KeepsSurplus,
    /// It cannot go back.
    CannotUndo,
    /// It takes a restart that was asked for as a crash.
    CountsRestarts,
    /// It starts what crashes again at once.
    NoBackoff,
    /// It attaches before anything is ready.
    AttachesEarly,
    /// It finds nothing after a restart.
    ForgetsAtRestart,
    /// It takes all Instances out at once.
    TakesAllOut,
    /// It forgets an App whose Instances run.
    ForgetsTooMuch,
    /// After a restart it stops without a drain what was attached before.
    ForgetsTraffic,
    /// After a restart it waits to be asked.
    WaitsToBeAsked,
    /// It stops the old one first where the new one could start beside it.
    NeverHandsOver,
    /// It lets two write to one volume.
    SharesVolumes,
    /// It keeps no Container frozen.
    NeverFreezes,
    /// It restarts for what needs no restart.
    RestartsForLimits,
    /// It restarts the App with its sidecar.
    RestartsWithSidecar,
}

impl Defect {
    /// Every defect, with the check that is for it.
    pub const ALL: &'static [(Defect, &'static str)] = &[
        (Defect::TakesStale, "a_stale_generation_is_refused"),
        (Defect::LosesExits, "exit_codes_are_reported"),
        (Defect::ChangesAddress, "in_place_keeps_sandbox_and_address"),
        (Defect::AlwaysRecreates, "in_place_keeps_sandbox_and_address"),
        (Defect::NeverRecreates, "recreate_makes_another_sandbox"),
        (Defect::StopsBeforeDetach, "a_drain_ends_before_a_stop"),
        (Defect::DoubleStarts, "in_place_keeps_sandbox_and_address"),
        (Defect::NeverHints, "hints_arrive"),
        (Defect::Restless, "applying_again_changes_nothing"),
        (Defect::RestartsAll, "a_restart_of_one_touches_one"),
        (Defect::KeepsSurplus, "instances_come_and_go_with_the_scale"),
        (Defect::CannotUndo, "an_undo_brings_the_old_revision_back"),
        (Defect::CountsRestarts, "an_intended_restart_is_no_crash"),
        (Defect::NoBackoff, "a_crash_restarts_with_growing_back_off"),
        (Defect::AttachesEarly, "what_is_never_ready_gets_no_requests"),
        (Defect::ForgetsAtRestart, "a_restarted_engine_finds_everything"),
        (Defect::TakesAllOut, "one_of_two_stays_in_service"),
        (Defect::ForgetsTooMuch, "what_is_forgotten_is_gone"),
        (Defect::ForgetsTraffic, "a_restart_amid_an_upgrade_still_drains"),
        (Defect::WaitsToBeAsked, "a_restarted_engine_goes_on_unasked"),
        (Defect::NeverHandsOver, "a_handover_leaves_no_gap"),
        (Defect::NeverHandsOver, "the_old_one_serves_until_the_new_one_is_ready"),
        (Defect::SharesVolumes, "an_exclusive_volume_never_has_two_writers"),
        (Defect::NeverFreezes, "a_thaw_brings_the_same_container_back"),
        (Defect::RestartsForLimits, "an_update_keeps_the_container"),
        (Defect::RestartsWithSidecar, "a_sidecar_changes_alone"),
    ];
}

/// A simulated engine with one defect.
pub struct FaultyEngine {
    inner: SimEngine,
    defect: Defect,
    road: Arc<Road>,
    /// How often each App's present Fleet was applied, and its highest run.
    applied: Mutex<BTreeMap<AppKey, (u32, Option<Fleet>)>>,
}

impl FaultyEngine {
    /// An engine on `machine` with `defect`.
    pub fn open(machine: SimMachine, witness: Arc<Witness>, defect: Defect) -> Self {
        let road = Arc::new(Road { witness: witness.clone(), defect, deaf: Mutex::default() });
        let events = Arc::new(Told { witness, defect });
        let inner = SimEngine::open(machine, road.clone(), events);
        Self { inner, defect, road, applied: Mutex::default() }
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
        self.inner.check_registry(host, login).await
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

    async fn images(&self) -> Result<Vec<ImageInfo>, EngineError> {
        self.inner.images().await
    }

    async fn prune(&self, keep: &[Digest], unused_for: Micros) -> Result<u64, EngineError> {
        self.inner.prune(keep, unused_for).await
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

/// A simulated engine, sound or with a defect, on a machine of its own.
pub struct SimSubject {
    machine: SimMachine,
    witness: Arc<Witness>,
    defect: Option<Defect>,
    engine: Option<Arc<dyn Engine>>,
}

impl SimSubject {
    /// Opens it. Must be called inside a tokio runtime.
    pub fn open(witness: Arc<Witness>, defect: Option<Defect>) -> Self {
        let machine = SimMachine::new();
        let mut subject = Self { machine, witness, defect, engine: None };
        subject.open_engine();
        subject
    }

    fn open_engine(&mut self) {
        let (machine, witness) = (self.machine.clone(), self.witness.clone());
        self.engine = Some(match self.defect {
            Some(defect) => Arc::new(FaultyEngine::open(machine, witness, defect)),
            None => Arc::new(SimEngine::open(machine, witness.clone(), witness)),
        });
    }
}

#[async_trait]
impl Subject for SimSubject {
    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone().expect("it is open between two calls")
    }

    async fn restart(&mut self) {
        self.engine = None;
        match self.defect {
            Some(Defect::ForgetsAtRestart) => self.machine = SimMachine::new(),
            Some(Defect::ForgetsTraffic) => self.machine.forget_traffic(),
            Some(Defect::WaitsToBeAsked) => self.machine.forget_fleets(),
            _ => {}
        }
        self.open_engine();
    }

    fn images(&self) -> Images {
        Images {
            good: "sim/ready:1".into(),
            second: "sim/ready:2".into(),
            crashing: "sim/crash:1".into(),
            crash_code: 3,
            never_ready: "sim/never-ready:1".into(),
        }
    }
}
