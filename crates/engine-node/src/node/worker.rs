//! One worker per App: plan, start what is not under way, wait for a report, plan again.
//!
//! # Guarantees
//! - Two acts never work on the same Sandbox or Container at the same time, nor one on a
//!   Sandbox beside one on something in it.
//! - A plan is made from the latest report; steps of an older plan that are under way end
//!   and are then seen by the next plan.
//!
//! # Caveats
//! - What an act does once is for the act to ensure; the worker may ask again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stead_core::engine::{EngineError, Usage};
use stead_core::event::{Event, Fact, PhaseName};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Fleet, FleetSeen, Health, ImageSeen, InstanceSeen, Part,
    Revision, Step, TrafficState, plan,
};
use stead_core::ids::{ContainerId, Digest, Ordinal};
use stead_core::manifest::Span;
use stead_core::name::AppKey;
use stead_core::time::{Micros, Time};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Shared;
use super::model::{Model, Subject};
use super::{act, ends, hooks, java, memory, serving, spec};
use crate::clock::now;
use crate::image::Image;
use crate::probe::{self, Target, Watched};
use crate::sandbox::{self, Sandbox, ViewState};

/// The worker of one App.
pub(super) struct Worker {
    pub(super) app: AppKey,
    pub(super) shared: Arc<Shared>,
    model: Mutex<Model>,
    changed: Notify,
    /// Images that are not to be removed: the Fleet's and the Containers'.
    images: Mutex<BTreeMap<Digest, Arc<Image>>>,
    /// The loop and the acts under way. They end with the worker, as in a crash.
    tasks: Mutex<JoinSet<()>>,
}

impl Worker {
    pub(super) fn start(app: AppKey, model: Model, shared: Arc<Shared>) -> Arc<Self> {
        let worker = Arc::new(Self {
            app,
            shared,
            model: Mutex::new(model),
            changed: Notify::new(),
            images: Mutex::default(),
            tasks: Mutex::default(),
        });
        // Before the first plan: it must not take out what no gateway was told of.
        worker.settle_in();
        worker.look_for_images();
        worker.watch_unwatched();
        worker.spawn(worker.clone().run());
        worker
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Tells what a recovery found: who may get requests, so that gateways and this engine
    /// agree before anything is planned, and how Containers ended meanwhile.
    fn settle_in(self: &Arc<Self>) {
        let found: Vec<(Ordinal, ContainerSeen)> = {
            let model = self.model();
            let instances = model.seen.instances.iter();
            instances.flat_map(|(o, i)| i.containers.iter().map(|c| (*o, c.clone()))).collect()
        };
        for (ordinal, container) in found {
            let exited = matches!(container.state, ContainerState::Exited(_));
            if let ContainerState::Exited(exit) = container.state {
                let (id, revision) = (&container.id, container.revision);
                self.emit(Some(ordinal), Some(id), Some(revision), Fact::Exited { exit });
            }
            if container.traffic != TrafficState::Attached {
                continue;
            }
            let subject = Subject::Container(ordinal, container.id.clone());
            if self.model().take(&subject) {
                let (worker, id) = (self.clone(), container.id);
                self.carry_out(subject, async move {
                    match exited {
                        true => serving::detach(&worker, ordinal, &id, Micros(0)).await,
                        // Which of two is current is for the planner to say.
                        false => serving::publish(&worker, ordinal, &id).await,
                    }
                });
            }
        }
    }

    /// Takes in what Sandboxes know and nobody was told: Containers that ended, holders that
    /// are gone.
    pub(super) fn catch_up(self: &Arc<Self>) {
        let sandboxes: Vec<Arc<Sandbox>> = self.model().sandboxes.values().cloned().collect();
        for view in sandboxes.iter().flat_map(|sandbox| sandbox.containers()) {
            if let ViewState::Exited(exit) = view.state {
                self.ended(ContainerId(view.id), &exit);
            }
        }
        self.look_again();
    }

    /// Takes in a Container's end.
    pub(super) fn ended(self: &Arc<Self>, id: ContainerId, exit: &sandbox::Exit) {
        let (worker, exit) = (self.clone(), spec::exit(exit, false));
        self.spawn(async move { ends::crashed(&worker, &id, exit).await });
    }

    /// Plans again, because something outside the model has changed.
    pub(super) fn look_again(&self) {
        self.changed.notify_one();
    }

    /// Stops planning and watching. What runs goes on.
    pub(super) fn end(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        for watch in std::mem::take(&mut self.model().watches).into_values() {
            watch.abort();
        }
    }

    async fn run(self: Arc<Self>) {
        loop {
            let wake = self.step();
            let timer = async {
                match wake {
                    Some(at) => tokio::time::sleep(at.since(now()).duration()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = timer => {}
            }
        }
    }

    /// Plans, and starts every step whose subject is free. Gives the time to plan again.
    fn step(self: &Arc<Self>) -> Option<Time> {
        let mut model = self.model();
        for ordinal in model.lost() {
            let subject = Subject::Sandbox(ordinal);
            if model.take(&subject) {
                let worker = self.clone();
                let clear = async move { ends::lost(&worker, ordinal).await };
                self.carry_out(subject, clear);
            }
        }
        let fleet = model.fleet.clone()?;
        let now = now();
        let well = model.forget_trouble(now);
        model.seen.memory = self.shared.memory.seen();
        // What stands still goes when its memory is needed.
        let pressed = model.has_frozen().then(|| now + memory::FRESH);
        let plan = plan(&fleet, &model.seen, now);
        for step in plan.steps {
            let subject = Model::subject(&step);
            if !model.take(&subject) {
                continue;
            }
            tracing::debug!(app = %self.app, %step, "begins");
            if let Step::Prepare { ordinal, part: Part::Main, revision, .. } = &step
                && let Some(because) = model.fallback(*ordinal, *revision)
            {
                self.emit(Some(*ordinal), None, Some(*revision), Fact::Fallback { because });
            }
            model.begin(&step, now);
            let worker = self.clone();
            let act = async move { act::carry_out(&worker, &step).await };
            self.carry_out(subject, act);
        }
        plan.wake.into_iter().chain(well).chain(pressed).min()
    }

    /// Starts an act whose subject was taken, and gives the subject free at its end.
    fn carry_out(
        self: &Arc<Self>,
        subject: Subject,
        act: impl Future<Output = ()> + Send + 'static,
    ) {
        let worker = self.clone();
        self.spawn(async move {
            act.await;
            worker.report(|model| model.busy.remove(&subject));
        });
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report in, and lets everybody look again.
    pub(super) fn report<T>(&self, take_in: impl FnOnce(&mut Model) -> T) -> T {
        let result = take_in(&mut self.model());
        self.changed.notify_one();
        // Nobody may be listening.
        let _ = self.shared.hints.send(self.app.clone());
        result
    }

    pub(super) fn apply(self: &Arc<Self>, fleet: Fleet) -> Result<(), EngineError> {
        self.report(|model| {
            let known = model.seen.generation;
            if fleet.generation < known {
                return Err(EngineError::Stale { given: fleet.generation, known });
            }
            // Before anybody else may bring a newer one.
            if let Err(error) = self.shared.intents.keep(&fleet) {
                // It costs the engine its memory over a restart, no more.
                tracing::warn!(app = %self.app, %error, "fleet is not kept");
            }
            model.seen.generation = fleet.generation;
            model.fleet = Some(fleet);
            Ok(())
        })?;
        self.look_for_images();
        self.watch_unwatched();
        Ok(())
    }

    /// Looks which of the Fleet's images are on the machine. Holds them, and those of the
    /// Containers, for as long as they are needed.
    pub(super) fn look_for_images(&self) {
        let mut model = self.model();
        let releases = model.fleet.iter().flat_map(|fleet| fleet.releases.values());
        let wanted = releases.flat_map(|release| release.images());
        let wanted: BTreeSet<Digest> = wanted.map(|(image, _)| image.clone()).collect();
        let running = model.kept.values().map(|kept| &kept.image);
        let needed = wanted.iter().chain(running);
        // From here on: what comes meanwhile is held after this.
        let mut images = self.images();
        let held: BTreeMap<Digest, Arc<Image>> =
            needed.filter_map(|d| Some((d.clone(), self.shared.images.get(d)?))).collect();
        model.seen.images.retain(|digest, _| wanted.contains(digest));
        for digest in wanted {
            if held.contains_key(&digest) {
                model.image_present(digest);
            } else if model.seen.images.get(&digest) == Some(&ImageSeen::Present) {
                model.seen.images.remove(&digest);
            }
        }
        drop(model);
        let before = std::mem::replace(&mut *images, held);
        let gone: Vec<Digest> =
            before.into_keys().filter(|digest| !images.contains_key(digest)).collect();
        drop(images);
        for digest in &gone {
            // It was in use until now, whenever it came.
            if let Err(error) = self.shared.images.used(digest) {
                tracing::warn!(app = %self.app, %digest, %error, "last use is not noted");
            }
        }
        self.changed.notify_one();
    }

    /// Holds an image that the Fleet needs, and that has come.
    pub(super) fn hold(&self, image: Arc<Image>) {
        self.images().insert(image.digest.clone(), image);
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Image>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches running Containers that nobody watches: after a recovery.
    fn watch_unwatched(self: &Arc<Self>) {
        let found: Vec<(Ordinal, ContainerId)> = {
            let model = self.model();
            let instances = model.seen.instances.iter();
            let all = instances.flat_map(|(o, i)| i.containers.iter().map(move |c| (*o, c)));
            let unwatched = |ordinal: Ordinal, c: &ContainerSeen| match c.state {
                // What is being started or thawed is watched by whoever does that.
                ContainerState::Running { health: Health::Starting, .. } => {
                    !model.busy.contains(&Subject::Container(ordinal, c.id.clone()))
                }
                ContainerState::Running { .. } => true,
                _ => false,
            };
            all.filter(|(ordinal, c)| unwatched(*ordinal, c))
                .filter(|(_, c)| !model.watches.contains_key(&c.id))
                .map(|(ordinal, c)| (ordinal, c.id.clone()))
                .collect()
        };
        for (ordinal, id) in found {
            if self.post_start(&id).is_none() {
                self.watch(&id);
                continue;
            }
            let subject = Subject::Container(ordinal, id.clone());
            if self.model().take(&subject) {
                let worker = self.clone();
                let begin = async move { hooks::begin_life(&worker, ordinal, &id).await };
                self.carry_out(subject, begin);
            }
        }
    }

    /// What is still to be run after a Container's start, before it counts as ready, and how
    /// long it may take.
    pub(super) fn post_start(&self, id: &ContainerId) -> Option<(Vec<String>, Span)> {
        let model = self.model();
        let (_, container) = model.container(id)?;
        let kept = model.kept.get(id)?;
        if !container.part.is_main() || kept.post_started || kept.been_ready {
            return None;
        }
        let spec = model.fleet.as_ref()?.releases.get(&container.revision.release)?;
        let argv = spec.settings.lifecycle.post_start.clone();
        (!argv.is_empty()).then(|| (argv, spec.settings.health.startup_timeout()))
    }

    /// A Container, to be asked something.
    pub(super) fn target(&self, id: &ContainerId) -> Option<Target> {
        let model = self.model();
        let (ordinal, container) = model.container(id)?;
        Some(Target {
            sandbox: model.sandboxes.get(&ordinal)?.clone(),
            container: id.0.clone(),
            slot: container.slot,
            port: model.port(id),
        })
    }

    /// Begins to watch a running Container.
    pub(super) fn watch(self: &Arc<Self>, id: &ContainerId) {
        let Some(target) = self.target(id) else { return };
        let mut model = self.model();
        if model.watches.contains_key(id) {
            return;
        }
        let Some((ordinal, container)) = model.container(id) else { return };
        let ContainerState::Running { health, since } = container.state else { return };
        let revision = container.revision;
        let fleet = model.fleet.as_ref();
        let release = fleet.and_then(|fleet| fleet.releases.get(&revision.release));
        let Some(asked) = release.and_then(|release| spec::health(release, &container.part)) else {
            return;
        };
        let known = match health {
            // It goes on after a freeze: its start is long over.
            Health::Starting if model.been_ready(id) => Health::Unready,
            health => health,
        };
        let watched = Watched { target, health: asked.clone() };
        let (worker, watched_id) = (self.clone(), id.clone());
        let task = tokio::spawn(probe::watch(watched, known, move |health, why| {
            worker.told(ordinal, &watched_id, since, health, why);
        }));
        model.watches.insert(id.clone(), task.abort_handle());
    }

    /// Takes in what a probe saw.
    fn told(
        self: &Arc<Self>,
        ordinal: Ordinal,
        id: &ContainerId,
        since: Time,
        health: Health,
        why: String,
    ) {
        let Some((revision, first)) = self.model().container(id).map(|(_, c)| {
            let starting = ContainerState::Running { since, health: Health::Starting };
            (c.revision, c.state == starting)
        }) else {
            return;
        };
        let never = !self.model().been_ready(id);
        if !self.report(|model| model.health(id, health)) {
            return;
        }
        if health == Health::Ready && never {
            java::ready(self, ordinal, id);
        }
        if health == Health::Ready && first {
            self.timed(Some(ordinal), Some(id), Some(revision), PhaseName::Ready, since);
        }
        let fact = match health {
            Health::Ready => Fact::Ready,
            Health::Starting | Health::Unready | Health::Dead => Fact::Unready { why },
        };
        self.emit(Some(ordinal), Some(id), Some(revision), fact);
    }

    pub(super) fn emit(
        &self,
        instance: Option<Ordinal>,
        container: Option<&ContainerId>,
        revision: Option<Revision>,
        fact: Fact,
    ) {
        self.shared.events.emit(Event {
            at: now(),
            app: self.app.clone(),
            instance,
            container: container.cloned(),
            revision,
            fact,
        });
    }

    /// Notes a phase that began at `begun` and ends now.
    pub(super) fn timed(
        &self,
        instance: Option<Ordinal>,
        container: Option<&ContainerId>,
        revision: Option<Revision>,
        phase: PhaseName,
        begun: Time,
    ) {
        let took = now().since(begun);
        self.emit(instance, container, revision, Fact::Phase { phase, begun, took });
    }

    pub(super) fn seen(&self) -> FleetSeen {
        self.model().seen.clone()
    }

    /// Whether nothing of the App is there, and nothing is being made.
    pub(super) fn is_empty(&self) -> bool {
        self.model().is_empty()
    }

    pub(super) fn images_in_use(&self) -> Vec<Digest> {
        let model = self.model();
        let releases = model.fleet.iter().flat_map(|fleet| fleet.releases.values());
        // A Container that is still to be replaced may be of a Release that nobody wants.
        let wanted = releases.flat_map(|release| release.images()).map(|(image, _)| image);
        wanted.chain(model.kept.values().map(|kept| &kept.image)).cloned().collect()
    }

    /// The main Container of an Instance, or of the first Instance that has one that runs: where
    /// there are two, the one that serves.
    pub(super) fn running(&self, which: Option<Ordinal>) -> Option<(Arc<Sandbox>, ContainerId)> {
        let model = self.model();
        let mut instances = model.seen.instances.iter();
        instances.find_map(|(ordinal, instance)| {
            if which.is_some_and(|wanted| wanted != *ordinal) {
                return None;
            }
            let container = running_main(instance)?;
            Some((model.sandboxes.get(ordinal)?.clone(), container.id.clone()))
        })
    }

    /// What each Instance uses, all its Containers together.
    pub(super) async fn usage(&self) -> Vec<Usage> {
        let held: Vec<(Ordinal, Arc<Sandbox>, Vec<ContainerId>)> = {
            let model = self.model();
            let instances = model.seen.instances.iter();
            instances
                .filter_map(|(ordinal, instance)| {
                    let alive = instance.containers.iter().filter(|c| c.exists());
                    let ids: Vec<ContainerId> = alive.map(|c| c.id.clone()).collect();
                    let sandbox = model.sandboxes.get(ordinal)?.clone();
                    (!ids.is_empty()).then_some((*ordinal, sandbox, ids))
                })
                .collect()
        };
        let mut all = Vec::new();
        for (instance, sandbox, containers) in held {
            let mut sum = Usage { instance, cpu_micros: 0, memory: 0, pids: 0 };
            for container in containers {
                // One that ended in between uses nothing.
                let Ok(usage) = sandbox.usage(container.as_str()).await else { continue };
                sum.cpu_micros += u64::try_from(usage.cpu.as_micros()).unwrap_or(u64::MAX);
                sum.memory += usage.memory;
                sum.pids += usage.pids;
            }
            all.push(sum);
        }
        all
    }
}

fn running_main(instance: &InstanceSeen) -> Option<&ContainerSeen> {
    let running = |c: &&ContainerSeen| matches!(c.state, ContainerState::Running { .. });
    instance.serving().or_else(|| instance.mains().find(running))
}
