//! A simulated machine with an engine on it: Sandboxes, processes, images, and a worker that
//! carries out the steps of [`stead_core::fleet::plan`].
//!
//! It promises the semantics of [`stead_core::engine::Engine`], step by step and from a seed
//! alone. It waits for nothing and knows no clock: whoever drives it hands the time in, does
//! the [`Effect`]s it asks for, and reports back. Time and traffic are thus real in
//! [`super::SimEngine`] and invented in [`super::World`].
//!
//! What survives a crash of the engine is what the holders and the disk of a real machine
//! keep: processes, their exits, images, the last Fleet, the trouble of an Instance, and
//! which Containers may get requests. What is under way at that moment is lost, or is done
//! and seen by nobody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stead_core::engine::{Backend, EngineError};
use stead_core::error::{Code, UserError};
use stead_core::event::{Event, Fact, PhaseName};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Exit, Fleet, FleetSeen, Health, ImageSeen, InstanceSeen,
    ReleaseSpec, Revision, Step, TrafficState, Trouble, plan,
};
use stead_core::ids::{ContainerId, Digest, Ordinal};
use stead_core::invariants::{Violation, check_plan, check_world};
use stead_core::name::AppKey;
use stead_core::time::{Micros, Time};

use super::chance::Chance;
use super::script::{Script, script};

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

/// What two acts must not work on at the same time.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Image(Digest),
    /// The preparation of one Container in a Sandbox.
    Preparation(Ordinal),
    Container(Ordinal, ContainerId),
    /// The Sandbox with all that is in it.
    Sandbox(Ordinal),
}

impl Subject {
    fn meets(&self, other: &Subject) -> bool {
        self == other || self.is_inside(other) || other.is_inside(self)
    }

    fn is_inside(&self, sandbox: &Subject) -> bool {
        match (self, sandbox) {
            (Subject::Preparation(a) | Subject::Container(a, _), Subject::Sandbox(b)) => a == b,
            _ => false,
        }
    }
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
    images: BTreeSet<Digest>,
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
            images: BTreeSet::new(),
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
                held.seen.images.remove(&spec.image);
            }
        }
        held.seen.images.retain(|digest, _| fleet.releases.values().any(|r| r.image == *digest));
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
            if self.images.contains(&spec.image) {
                seen.images.insert(spec.image.clone(), ImageSeen::Present);
            }
        }
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

    /// Puts an image on the machine.
    pub fn add_image(&mut self, digest: Digest) {
        self.images.insert(digest);
        self.dirty.extend(self.apps.keys().cloned());
        self.settle();
    }

    /// Takes an image off the machine. False: there was none.
    pub fn remove_image(&mut self, digest: &Digest) -> bool {
        self.images.remove(digest)
    }

    /// Images on the machine.
    pub fn images(&self) -> impl Iterator<Item = &Digest> {
        self.images.iter()
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

    /// The engine's process ends at once. Processes of Containers go on.
    pub fn crash(&mut self) {
        self.up = false;
        self.effects.clear();
        for app in self.apps() {
            let flights = self.apps.get_mut(&app).map(|held| std::mem::take(&mut held.flights));
            for flight in flights.unwrap_or_default().into_values() {
                // Done and seen by nobody, or never done.
                if self.chance.one_in(2) {
                    self.finish(&app, &flight);
                }
            }
        }
        self.effects.clear();
    }

    /// The engine starts again and finds what is there.
    pub fn restart(&mut self, now: Time) {
        self.advance(now);
        self.up = true;
        self.restarts += 1;
        for app in self.apps() {
            self.recover(&app);
            self.dirty.insert(app);
        }
        self.settle();
    }

    /// How often the engine was started again.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// What a defective engine loses: which Containers may get requests.
    pub(crate) fn forget_traffic(&mut self) {
        for process in self.apps.values_mut().flat_map(|held| held.processes.values_mut()) {
            process.may_get_requests = false;
        }
    }

    /// What a defective engine loses: what it works towards.
    pub(crate) fn forget_fleets(&mut self) {
        for held in self.apps.values_mut() {
            held.fleet = None;
        }
    }

    /// Whether the engine runs.
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Something happens to the running Container of an Instance. False: there is none.
    pub fn fault(&mut self, app: &AppKey, ordinal: Ordinal, fault: Fault, now: Time) -> bool {
        self.advance(now);
        let Some((id, health)) = self.apps.get(app).and_then(|held| {
            let instance = held.seen.instances.get(&ordinal)?;
            instance.containers.iter().find_map(|c| match c.state {
                ContainerState::Running { health, .. } if held.processes.get(&c.id)?.started => {
                    Some((c.id.clone(), health))
                }
                _ => None,
            })
        }) else {
            return false;
        };
        match (fault, health) {
            (Fault::Crash, _) => self.ended(app, &id, 9, false),
            (Fault::Oom, _) => self.ended(app, &id, 137, true),
            // Probes belong to the engine.
            _ if !self.up => return false,
            (Fault::Dead, _) => self.set_health(app, ordinal, &id, Health::Dead),
            (Fault::Unready, Health::Ready) => self.set_health(app, ordinal, &id, Health::Unready),
            (Fault::Recover, Health::Unready) => self.set_health(app, ordinal, &id, Health::Ready),
            _ => return false,
        }
        self.settle();
        true
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

    /// Starts a step, unless something under way is in its way.
    fn begin(&mut self, app: &AppKey, fleet: &Fleet, step: Step) {
        let Some(subject) = subject(fleet, &step) else { return };
        let now = self.now;
        let Some(held) = self.apps.get_mut(app) else { return };
        if held.flights.values().any(|flight| flight.subject.meets(&subject)) {
            return;
        }
        self.serial += 1;
        let id = self.serial;
        held.flights.insert(id, Flight { step: step.clone(), subject, begun: now });
        match step {
            Step::Attach { ordinal, container } => self.attach(app, id, ordinal, container),
            Step::Detach { container, drain, .. } => {
                self.set_traffic(app, &container, TrafficState::Draining);
                let (app, drain) = (app.clone(), drain.duration());
                self.effects.push_back(Effect::Detach { app, flight: id, container, drain });
            }
            Step::Stop { ordinal, container, grace, because } => {
                if let Some(cause) = because {
                    let revision = self.container(app, &container).map(|c| c.revision);
                    let error = super::trouble::stopped(cause);
                    self.trouble(app, ordinal, revision, error, None);
                }
                self.stop(app, &container, grace);
            }
            step => {
                if let Step::Start { container, .. } = &step {
                    // It may run from now on: the next plan must not start another one, nor
                    // take it for one that never ran.
                    self.set_state(app, container, ContainerState::Running {
                        since: now,
                        health: Health::Starting,
                    });
                }
                let after = self.chance.length(self.pace.shortest, self.pace.longest);
                self.schedule(now + after, Due::Done { app: app.clone(), flight: id });
            }
        }
    }

    fn attach(&mut self, app: &AppKey, flight: u64, ordinal: Ordinal, container: ContainerId) {
        self.process(app, &container, |process| process.may_get_requests = true);
        let ip = self.instance(app, ordinal).and_then(|i| Some(i.sandbox.as_ref()?.ip));
        let revision = self.container(app, &container).map(|c| c.revision);
        let (Some(ip), Some(revision)) = (ip, revision) else { return };
        let addr = SocketAddr::new(ip, PORT);
        let backend = Backend { container, instance: ordinal, revision, addr };
        self.effects.push_back(Effect::Attach { app: app.clone(), flight, backend });
    }

    fn stop(&mut self, app: &AppKey, id: &ContainerId, grace: Micros) {
        let now = self.now;
        let Some(container) = self.container_mut(app, id) else { return };
        container.state = ContainerState::Stopping { since: now };
        let takes = self.apps.get(app).and_then(|h| h.processes.get(id)?.script.stop_takes);
        // 143: ended by SIGTERM. 137: by SIGKILL, after the grace.
        let (after, code) = match takes {
            Some(takes) if takes <= grace => (takes, 143),
            _ => (grace, 137),
        };
        let due =
            Due::Ends { app: app.clone(), container: id.clone(), code, oom_killed: false };
        self.schedule(now + after, due);
        self.dirty.insert(app.clone());
    }

    /// A step's effect. Also called for what a crashed engine had begun.
    fn finish(&mut self, app: &AppKey, flight: &Flight) {
        let now = self.now;
        self.dirty.insert(app.clone());
        match &flight.step {
            Step::Pull { release } => {
                if let Subject::Image(digest) = &flight.subject {
                    self.pulled(app, *release, digest.clone(), flight.begun);
                }
            }
            Step::CreateSandbox { ordinal, revision } => {
                self.serial += 1;
                let serial = self.serial;
                let shape = self.spec(app, *revision).map(ReleaseSpec::shape).unwrap_or_default();
                let Some(held) = self.apps.get_mut(app) else { return };
                let instance = held.seen.instances.entry(*ordinal).or_default();
                if instance.sandbox.is_some() {
                    return;
                }
                instance.sandbox = Some(stead_core::fleet::SandboxSeen {
                    id: stead_core::ids::SandboxId(format!("sb-{serial}")),
                    ip: address(serial),
                    shape,
                    made_for: *revision,
                    created: now,
                });
                self.timed(app, *ordinal, None, PhaseName::Network, flight.begun);
            }
            Step::Prepare { ordinal, revision } => {
                self.prepared(app, *ordinal, *revision);
                self.timed(app, *ordinal, None, PhaseName::Prepare, flight.begun);
            }
            Step::Start { ordinal, container } => {
                self.started(app, *ordinal, container);
                self.timed(app, *ordinal, Some(container), PhaseName::Start, flight.begun);
            }
            Step::Discard { ordinal, container } => {
                let Some(held) = self.apps.get_mut(app) else { return };
                held.processes.remove(container);
                if let Some(instance) = held.seen.instances.get_mut(ordinal) {
                    instance.containers.retain(|c| c.id != *container);
                }
            }
            Step::RemoveSandbox { ordinal } => self.removed(app, *ordinal),
            // These land in `attached`, `detached` and `ended`.
            Step::Attach { .. } | Step::Detach { .. } | Step::Stop { .. } => {}
        }
    }

    fn pulled(
        &mut self,
        app: &AppKey,
        release: stead_core::ids::ReleaseNo,
        digest: Digest,
        begun: Time,
    ) {
        let now = self.now;
        let Some(held) = self.apps.get_mut(app) else { return };
        let spec = held.fleet.as_ref().and_then(|fleet| fleet.releases.get(&release));
        let Some(reference) = spec.map(|spec| spec.reference.clone()) else { return };
        let Some(code) = script(&reference).pull_fails else {
            self.images.insert(digest);
            self.dirty.extend(self.apps.keys().cloned());
            self.event(app, None, None, Fact::Phase {
                phase: PhaseName::Pull,
                begun,
                took: now.since(begun),
            });
            return;
        };
        let count = match held.seen.images.get(&digest) {
            Some(ImageSeen::Failed { count, .. }) => count + 1,
            _ => 1,
        };
        let error = super::trouble::not_pulled(code, &reference);
        held.seen.images.insert(digest, ImageSeen::Failed { error: error.clone(), at: now, count });
        self.event(app, None, None, Fact::Trouble { error });
    }

    fn prepared(&mut self, app: &AppKey, ordinal: Ordinal, revision: Revision) {
        self.serial += 1;
        let id = ContainerId(format!("c-{}", self.serial));
        let Some(reference) = self.spec(app, revision).map(|spec| spec.reference.clone()) else {
            return;
        };
        let Some(held) = self.apps.get_mut(app) else { return };
        let Some(instance) = held.seen.instances.get_mut(&ordinal) else { return };
        let script = script(&reference);
        let process =
            Process { script, started: false, ready_at: None, may_get_requests: false };
        held.processes.insert(id.clone(), process);
        instance.containers.push(ContainerSeen {
            id,
            revision,
            state: ContainerState::Prepared,
            traffic: TrafficState::Detached,
        });
    }

    fn started(&mut self, app: &AppKey, ordinal: Ordinal, id: &ContainerId) {
        let now = self.now;
        let Some(script) = self.apps.get(app).and_then(|h| Some(h.processes.get(id)?.script))
        else {
            return;
        };
        let Some(revision) = self.container(app, id).map(|c| c.revision) else { return };
        if !script.starts {
            let exit = Exit { at: now, code: 127, oom_killed: false, intended: false };
            self.set_state(app, id, ContainerState::Exited(exit));
            let error = super::trouble::cannot_start();
            self.trouble(app, ordinal, Some(revision), error, None);
            return;
        }
        self.process(app, id, |process| process.started = true);
        let state = ContainerState::Running { since: now, health: Health::Starting };
        self.set_state(app, id, state);
        if let Some(after) = script.ready_after {
            self.process(app, id, |process| process.ready_at = Some(now + after));
            let due = Due::Ready { app: app.clone(), container: id.clone() };
            self.schedule(now + after, due);
        }
        if let Some(ends) = script.ends {
            self.schedule(now + ends.after, Due::Ends {
                app: app.clone(),
                container: id.clone(),
                code: ends.code,
                oom_killed: ends.oom_killed,
            });
        }
    }

    fn removed(&mut self, app: &AppKey, ordinal: Ordinal) {
        let Some(held) = self.apps.get_mut(app) else { return };
        let wanted = held.fleet.as_ref().is_some_and(|fleet| fleet.wanted(ordinal).is_some());
        let Some(instance) = held.seen.instances.get_mut(&ordinal) else { return };
        for container in std::mem::take(&mut instance.containers) {
            held.processes.remove(&container.id);
        }
        instance.sandbox = None;
        // Its trouble is what the back-off is counted from; without one nothing is left.
        if !wanted || instance.trouble.is_none() {
            held.seen.instances.remove(&ordinal);
        }
    }

    /// The readiness probe succeeded for the first time.
    fn answered(&mut self, app: &AppKey, id: &ContainerId) {
        if !self.up {
            return;
        }
        let starting = self.container(app, id).is_some_and(|c| {
            matches!(c.state, ContainerState::Running { health: Health::Starting, .. })
        });
        let ordinal = self.ordinal_of(app, id);
        if let Some(ordinal) = ordinal.filter(|_| starting) {
            self.set_health(app, ordinal, id, Health::Ready);
        }
    }

    fn set_health(&mut self, app: &AppKey, ordinal: Ordinal, id: &ContainerId, told: Health) {
        let now = self.now;
        let Some(container) = self.container_mut(app, id) else { return };
        let ContainerState::Running { since, health } = &mut container.state else { return };
        let (first, since) = (*health == Health::Starting, *since);
        *health = told;
        self.dirty.insert(app.clone());
        match told {
            Health::Ready => {
                if first {
                    let took = now.since(since);
                    let fact = Fact::Phase { phase: PhaseName::Ready, begun: since, took };
                    self.event(app, Some(ordinal), Some(id), fact);
                }
                self.event(app, Some(ordinal), Some(id), Fact::Ready);
            }
            Health::Starting => {}
            Health::Unready | Health::Dead => {
                let fact = Fact::Unready { why: "the simulated probe fails".into() };
                self.event(app, Some(ordinal), Some(id), fact);
            }
        }
    }

    /// A process ended.
    fn ended(&mut self, app: &AppKey, id: &ContainerId, code: i32, oom_killed: bool) {
        let now = self.now;
        let Some(ordinal) = self.ordinal_of(app, id) else { return };
        let Some(container) = self.container_mut(app, id) else { return };
        let (intended, ran) = match container.state {
            ContainerState::Running { since, .. } => (false, Some(now.since(since))),
            ContainerState::Stopping { .. } => (true, None),
            ContainerState::Prepared | ContainerState::Exited(_) => return,
        };
        let (revision, attached) =
            (container.revision, container.traffic == TrafficState::Attached);
        let exit = Exit { at: now, code, oom_killed, intended };
        container.state = ContainerState::Exited(exit);
        if let Some(held) = self.apps.get_mut(app) {
            let ours = |step: &Step| matches!(step, Step::Stop { container, .. } if container == id);
            let stops: Vec<u64> =
                held.flights.iter().filter(|(_, f)| ours(&f.step)).map(|(id, _)| *id).collect();
            for flight in stops {
                let begun = held.flights.remove(&flight).map(|flight| flight.begun);
                let fact = Fact::Phase {
                    phase: PhaseName::Stop,
                    begun: begun.unwrap_or(now),
                    took: now.since(begun.unwrap_or(now)),
                };
                self.effects.push_back(event(now, app, Some(ordinal), Some(id), fact));
                break;
            }
        }
        self.event(app, Some(ordinal), Some(id), Fact::Exited { exit });
        if !intended {
            let error = super::trouble::exited(code, oom_killed);
            self.trouble(app, ordinal, Some(revision), error, ran);
        }
        if attached && self.up {
            self.cut(app, ordinal, id.clone());
        }
        self.dirty.insert(app.clone());
    }

    /// No gateway shall send requests to what has ended.
    fn cut(&mut self, app: &AppKey, ordinal: Ordinal, container: ContainerId) {
        let Some(fleet) = self.fleet(app).cloned() else { return };
        self.begin(app, &fleet, Step::Detach { ordinal, container, drain: Micros(0) });
    }

    /// Builds what the engine knows from what is there.
    fn recover(&mut self, app: &AppKey) {
        let now = self.now;
        let Some(held) = self.apps.get_mut(app) else { return };
        let Held { seen, processes, .. } = held;
        let mut again = Vec::new();
        let mut probes = Vec::new();
        for (ordinal, instance) in &mut seen.instances {
            for container in &mut instance.containers {
                let Some(process) = processes.get(&container.id) else { continue };
                let known = process.may_get_requests;
                container.traffic =
                    if known { TrafficState::Attached } else { TrafficState::Detached };
                match &mut container.state {
                    state @ ContainerState::Running { .. } if !process.started => {
                        *state = ContainerState::Prepared;
                    }
                    ContainerState::Running { health, .. } if known => *health = Health::Ready,
                    ContainerState::Running { since, health } => {
                        *health = Health::Starting;
                        // The startup timeout begins anew: nobody asked it meanwhile.
                        *since = now;
                        probes.extend(process.ready_at.map(|at| (at, container.id.clone())));
                    }
                    _ => {}
                }
                if known {
                    again.push((*ordinal, container.id.clone(), container.alive()));
                }
            }
        }
        for (at, container) in probes {
            self.schedule(at, Due::Ready { app: app.clone(), container });
        }
        let Some(fleet) = self.fleet(app).cloned() else { return };
        for (ordinal, container, alive) in again {
            if alive {
                self.begin(app, &fleet, Step::Attach { ordinal, container });
            } else {
                self.cut(app, ordinal, container);
            }
        }
    }

    fn trouble(
        &mut self,
        app: &AppKey,
        ordinal: Ordinal,
        revision: Option<Revision>,
        error: UserError,
        ran: Option<Micros>,
    ) {
        let now = self.now;
        let Some(revision) = revision else { return };
        let Some(held) = self.apps.get_mut(app) else { return };
        let instance = held.seen.instances.entry(ordinal).or_default();
        let count = match &instance.trouble {
            Some(before)
                if before.revision == revision && ran.is_none_or(|ran| ran < WELL_AFTER) =>
            {
                before.count + 1
            }
            _ => 1,
        };
        if ran.is_some() {
            instance.crashes += 1;
        }
        instance.trouble = Some(Trouble { revision, error: error.clone(), at: now, count });
        self.event(app, Some(ordinal), None, Fact::Trouble { error });
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
        ordinal: Option<Ordinal>,
        container: Option<&ContainerId>,
        fact: Fact,
    ) {
        if self.up {
            self.effects.push_back(event(self.now, app, ordinal, container, fact));
        }
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

/// What a step works on; `None` when the Fleet does not know it.
fn subject(fleet: &Fleet, step: &Step) -> Option<Subject> {
    Some(match step {
        Step::Pull { release } => Subject::Image(fleet.releases.get(release)?.image.clone()),
        Step::CreateSandbox { ordinal, .. } | Step::RemoveSandbox { ordinal } => {
            Subject::Sandbox(*ordinal)
        }
        Step::Prepare { ordinal, .. } => Subject::Preparation(*ordinal),
        Step::Start { ordinal, container }
        | Step::Attach { ordinal, container }
        | Step::Detach { ordinal, container, .. }
        | Step::Stop { ordinal, container, .. }
        | Step::Discard { ordinal, container } => {
            Subject::Container(*ordinal, container.clone())
        }
    })
}

fn event(
    at: Time,
    app: &AppKey,
    instance: Option<Ordinal>,
    container: Option<&ContainerId>,
    fact: Fact,
) -> Effect {
    let container = container.cloned();
    Effect::Event(Event { at, app: app.clone(), instance, container, revision: None, fact })
}

fn address(serial: u64) -> IpAddr {
    let [.., b, c, d] = serial.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, b, c, d))
}
