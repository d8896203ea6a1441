//! A simulated machine with an engine on it: Sandboxes, processes, images, and a worker that
//! carries out the steps of [`stead_core::fleet::plan`].
//!
//! It promises the semantics of [`stead_core::engine::Engine`], step by step and from a seed
//! alone. It waits for nothing and knows no clock: whoever drives it hands the time in, does
//! the [`Effect`]s it asks for, and reports back. Time and traffic are thus real in
//! [`super::SimEngine`] and invented in [`super::run`].
//!
//! What survives a crash of the engine is what the holders and the disk of a real machine
//! keep: processes, their exits, images, the last Fleet, the trouble of an Instance, and
//! which Containers may get requests. What is under way at that moment is lost, or is done
//! and seen by nobody.

mod act;
mod life;
mod recover;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stead_core::engine::{Backend, EngineError};
use stead_core::error::{Code, UserError};
use stead_core::event::{Event, Fact, PhaseName};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Fleet, FleetSeen, ImageSeen, InstanceSeen, MemorySeen,
    ReleaseSpec, Revision, Step, TrafficState, plan,
};
use stead_core::ids::{ContainerId, Digest, Ordinal};
use stead_core::invariants::{Violation, check_plan, check_world};
use stead_core::name::AppKey;
use stead_core::time::{Micros, Time};

use super::chance::Chance;
use super::script::Script;
use act::Subject;

/// A Container that ran so long before it ended starts its count of crashes anew.
pub const WELL_AFTER: Micros = Micros::from_secs(60);

/// The port that every simulated Container listens on.
pub const PORT: u16 = 8080;

/// What the Node asks of its surroundings.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Attach a Backend; answer with [`Node::attached`].
    Attach {
        /// The App.
        app: AppKey,
        /// What to answer with.
        flight: u64,
        /// The Backend.
        backend: Backend,
    },
    /// Detach a Container; answer with [`Node::detached`].
    Detach {
        /// The App.
        app: AppKey,
        /// What to answer with.
        flight: u64,
        /// The Container.
        container: ContainerId,
        /// How long open requests may go on.
        drain: Duration,
    },
    /// A fact for people.
    Event(Event),
    /// The App may have changed.
    Hint(AppKey),
}

/// How long the acts of the engine take: between the two, by chance.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// At least.
    pub shortest: Micros,
    /// At most.
    pub longest: Micros,
}

/// Something that happens to a running Container from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// It ends with exit code 9.
    Crash,
    /// The kernel ends it for lack of memory.
    Oom,
    /// Its readiness probe fails.
    Unready,
    /// Its readiness probe succeeds again.
    Recover,
    /// Its liveness probe gives up on it.
    Dead,
}

/// A step under way.
#[derive(Debug)]
struct Flight {
    step: Step,
    subject: Subject,
    begun: Time,
}

/// A process tree as its holder knows it.
#[derive(Debug)]
struct Process {
    script: Script,
    /// Whether its program was started.
    started: bool,
    /// When it answers. Survives the engine, unlike what the engine knows of it.
    ready_at: Option<Time>,
    /// Set before it is attached, cleared after it was detached: kept on disk, so that a
    /// restarted engine never stops what a gateway may still send requests to.
    may_get_requests: bool,
}

#[derive(Debug, Default)]
struct Held {
    fleet: Option<Fleet>,
    seen: FleetSeen,
    flights: BTreeMap<u64, Flight>,
    processes: BTreeMap<ContainerId, Process>,
}

#[derive(Debug)]
enum Due {
    Done { app: AppKey, flight: u64 },
    Ready { app: AppKey, container: ContainerId },
    Ends { app: AppKey, container: ContainerId, code: i32, oom_killed: bool },
    Wake { app: AppKey },
}

/// The machine and its engine.
#[derive(Debug)]
pub struct Node {
    now: Time,
    chance: Chance,
    pace: Pace,
    up: bool,
    restarts: u64,
    /// What is here, and when it was last used.
    images: BTreeMap<Digest, Time>,
    memory: Option<MemorySeen>,
    apps: BTreeMap<AppKey, Held>,
    due: BTreeMap<(Time, u64), Due>,
    serial: u64,
    dirty: BTreeSet<AppKey>,
    effects: VecDeque<Effect>,
    violations: Vec<Violation>,
}

impl Node {
    /// An empty machine.
    pub fn new(seed: u64, pace: Pace) -> Self {
        Self {
            now: Time(0),
            chance: Chance::new(seed),
            pace,
            up: true,
            restarts: 0,
            images: BTreeMap::new(),
            memory: None,
            apps: BTreeMap::new(),
            due: BTreeMap::new(),
            serial: 0,
            dirty: BTreeSet::new(),
            effects: VecDeque::new(),
            violations: Vec::new(),
        }
    }

    /// Takes up a Fleet, as [`stead_core::engine::Engine::apply`] does.
    pub fn apply(&mut self, fleet: Fleet, now: Time) -> Result<(), EngineError> {
        self.advance(now);
        let held = self.apps.entry(fleet.app.clone()).or_default();
        let known = held.seen.generation;
        if fleet.generation < known {
            return Err(EngineError::Stale { given: fleet.generation, known });
        }
        if held.fleet.as_ref() == Some(&fleet) {
            return Ok(());
        }
        // A Release named for the first time gets a first attempt, whatever failed before.
        let old = held.fleet.as_ref().map(|fleet| &fleet.releases);
        for (number, spec) in &fleet.releases {
            if old.is_none_or(|old| !old.contains_key(number)) {
                for (image, _) in spec.images() {
                    held.seen.images.remove(image);
                }
            }
        }
        let named =
            |digest: &Digest| fleet.releases.values().any(|r| r.images().any(|(i, _)| i == digest));
        held.seen.images.retain(|digest, _| named(digest));
        held.seen.generation = fleet.generation;
        let app = fleet.app.clone();
        held.fleet = Some(fleet);
        self.dirty.insert(app);
        self.settle();
        Ok(())
    }

    /// What is held of an App.
    pub fn observe(&self, app: &AppKey) -> FleetSeen {
        let Some(held) = self.apps.get(app) else { return FleetSeen::default() };
        let mut seen = held.seen.clone();
        for spec in held.fleet.iter().flat_map(|fleet| fleet.releases.values()) {
            for (image, _) in spec.images().filter(|(image, _)| self.images.contains_key(*image)) {
                seen.images.insert(image.clone(), ImageSeen::Present);
            }
        }
        seen.memory = self.memory;
        seen
    }

    /// The Fleet that is worked towards.
    pub fn fleet(&self, app: &AppKey) -> Option<&Fleet> {
        self.apps.get(app)?.fleet.as_ref()
    }

    /// Apps of which something is held.
    pub fn apps(&self) -> Vec<AppKey> {
        self.apps.keys().cloned().collect()
    }

    /// Forgets an App of which nothing is left.
    pub fn forget(&mut self, app: &AppKey) -> Result<(), EngineError> {
        let left = self.apps.get(app).is_some_and(|held| !held.seen.instances.is_empty());
        if left {
            return Err(UserError::new(
                Code::Conflict,
                format!("app {app} still has instances"),
                "scale it to none first",
            )
            .into());
        }
        self.apps.remove(app);
        Ok(())
    }

    /// Puts an image on the machine, or uses it again.
    pub fn add_image(&mut self, digest: Digest, now: Time) {
        self.images.insert(digest, now);
        self.dirty.extend(self.apps.keys().cloned());
        self.settle();
    }

    /// The machine's memory from now on.
    pub fn set_memory(&mut self, memory: Option<MemorySeen>) {
        self.memory = memory;
        self.dirty.extend(self.apps.keys().cloned());
        self.settle();
    }

    /// Takes an image off the machine. False: there was none.
    pub fn remove_image(&mut self, digest: &Digest) -> bool {
        self.images.remove(digest).is_some()
    }

    /// Images on the machine, and when each was last used.
    pub fn images(&self) -> &BTreeMap<Digest, Time> {
        &self.images
    }

    /// When something happens next without being asked for.
    pub fn next_due(&self) -> Option<Time> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Effects asked for since the last call.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        self.effects.drain(..).collect()
    }

    /// Invariants broken since the last call: plans and states are checked as they arise.
    pub fn take_violations(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.violations)
    }

    /// Lets time pass, and everything happen that is due.
    pub fn advance(&mut self, now: Time) {
        while let Some((&(at, serial), _)) = self.due.first_key_value() {
            if at > now {
                break;
            }
            self.now = self.now.max(at);
            if let Some(due) = self.due.remove(&(at, serial)) {
                self.happen(due);
            }
            self.settle();
        }
        self.now = self.now.max(now);
    }

    /// Every gateway acknowledged a Backend.
    pub fn attached(&mut self, app: &AppKey, flight: u64, now: Time) {
        self.advance(now);
        let Some(done) = self.land(app, flight) else { return };
        if let Step::Attach { ordinal, container } = &done.step {
            self.set_traffic(app, container, TrafficState::Attached);
            self.timed(app, *ordinal, Some(container), PhaseName::Attach, done.begun);
            if self.container(app, container).is_some_and(|c| !c.alive()) {
                self.cut(app, *ordinal, container.clone());
            }
        }
        self.settle();
    }

    /// No gateway sends a Container requests any more.
    pub fn detached(&mut self, app: &AppKey, flight: u64, now: Time) {
        self.advance(now);
        let Some(done) = self.land(app, flight) else { return };
        if let Step::Detach { ordinal, container, .. } = &done.step {
            self.set_traffic(app, container, TrafficState::Detached);
            self.process(app, container, |process| process.may_get_requests = false);
            self.timed(app, *ordinal, Some(container), PhaseName::Drain, done.begun);
        }
        self.settle();
    }

    /// Where a Container is in its life; `None` when nothing is left of it.
    pub fn state(&self, app: &AppKey, id: &ContainerId) -> Option<ContainerState> {
        self.container(app, id).map(|container| container.state.clone())
    }

    /// The engine plans for every App that changed, and tells the world.
    fn settle(&mut self) {
        for app in std::mem::take(&mut self.dirty) {
            if self.up {
                self.plan(&app);
            }
            self.effects.push_back(Effect::Hint(app));
        }
    }

    fn plan(&mut self, app: &AppKey) {
        let Some(fleet) = self.fleet(app).cloned() else { return };
        let seen = self.observe(app);
        let plan = plan(&fleet, &seen, self.now);
        self.violations.extend(check_plan(&fleet, &seen, &plan));
        self.violations.extend(check_world(&seen));
        for step in plan.steps {
            self.begin(app, &fleet, step);
        }
        if let Some(at) = plan.wake {
            self.schedule(at, Due::Wake { app: app.clone() });
        }
    }

    fn schedule(&mut self, at: Time, due: Due) {
        self.serial += 1;
        self.due.insert((at.max(self.now), self.serial), due);
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Done { app, flight } => {
                if let Some(flight) = self.land(&app, flight) {
                    self.finish(&app, &flight);
                }
            }
            Due::Ready { app, container } => self.answered(&app, &container),
            Due::Ends { app, container, code, oom_killed } => {
                self.ended(&app, &container, code, oom_killed);
            }
            Due::Wake { app } => {
                if self.up {
                    self.plan(&app);
                }
            }
        }
    }

    /// Ends a flight. `None`: a crash of the engine ended it before.
    fn land(&mut self, app: &AppKey, flight: u64) -> Option<Flight> {
        self.dirty.insert(app.clone());
        self.apps.get_mut(app)?.flights.remove(&flight)
    }

    fn timed(
        &mut self,
        app: &AppKey,
        ordinal: Ordinal,
        container: Option<&ContainerId>,
        phase: PhaseName,
        begun: Time,
    ) {
        let fact = Fact::Phase { phase, begun, took: self.now.since(begun) };
        self.event(app, Some(ordinal), container, fact);
    }

    fn event(
        &mut self,
        app: &AppKey,
        instance: Option<Ordinal>,
        container: Option<&ContainerId>,
        fact: Fact,
    ) {
        if !self.up {
            return;
        }
        let revision = container.and_then(|id| self.container(app, id)).map(|c| c.revision);
        let (app, container) = (app.clone(), container.cloned());
        let event = Event { at: self.now, app, instance, container, revision, fact };
        self.effects.push_back(Effect::Event(event));
    }

    fn spec(&self, app: &AppKey, revision: Revision) -> Option<&ReleaseSpec> {
        self.apps.get(app)?.fleet.as_ref()?.releases.get(&revision.release)
    }

    fn instance(&self, app: &AppKey, ordinal: Ordinal) -> Option<&InstanceSeen> {
        self.apps.get(app)?.seen.instances.get(&ordinal)
    }

    fn container(&self, app: &AppKey, id: &ContainerId) -> Option<&ContainerSeen> {
        let instances = self.apps.get(app)?.seen.instances.values();
        instances.flat_map(|instance| &instance.containers).find(|c| c.id == *id)
    }

    fn container_mut(&mut self, app: &AppKey, id: &ContainerId) -> Option<&mut ContainerSeen> {
        let instances = self.apps.get_mut(app)?.seen.instances.values_mut();
        instances.flat_map(|instance| &mut instance.containers).find(|c| c.id == *id)
    }

    fn ordinal_of(&self, app: &AppKey, id: &ContainerId) -> Option<Ordinal> {
        let mut instances = self.apps.get(app)?.seen.instances.iter();
        instances.find(|(_, i)| i.containers.iter().any(|c| c.id == *id)).map(|(o, _)| *o)
    }

    fn set_state(&mut self, app: &AppKey, id: &ContainerId, state: ContainerState) {
        if let Some(container) = self.container_mut(app, id) {
            container.state = state;
        }
    }

    fn set_traffic(&mut self, app: &AppKey, id: &ContainerId, state: TrafficState) {
        if let Some(container) = self.container_mut(app, id) {
            container.traffic = state;
        }
    }

    fn process(&mut self, app: &AppKey, id: &ContainerId, change: impl FnOnce(&mut Process)) {
        if let Some(process) = self.apps.get_mut(app).and_then(|h| h.processes.get_mut(id)) {
            change(process);
        }
    }
}
