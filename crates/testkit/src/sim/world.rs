//! A whole simulated platform on invented time: people, control plane, engine and gateway.
//!
//! Everything follows from a [`Log`]: a seed and a list of actions. After each event the
//! invariants of [`stead_core::invariants`] are checked, and that no request was sent to, or
//! cut off by, something that we had stopped. At the end the world is left alone and must
//! come to rest.
//!
//! Messages between gateway and engine keep their order, as they do on a socket. Wake-ups of
//! the control plane do not, and may get lost or come twice.

use std::collections::{BTreeMap, VecDeque};

use stead_core::analysis::{Sample, Settings, Verdict, judge};
use stead_core::engine::Backend;
use stead_core::fleet::{ContainerState, MemorySeen, plan};
use stead_core::ids::{ContainerId, Generation, Ordinal, ReleaseNo, RolloutNo};
use stead_core::invariants::{check_wanted, check_world};
use stead_core::rollout::{Gate, Phase, advance};
use stead_core::time::{Micros, Time};

use super::action::{Action, Failure, Log};
use super::chance::Chance;
use super::desk::{Desk, Stored};
use super::fleets::app_key;
use super::gateway::{Counts, Gateway, RequestId};
use super::node::{Effect, Fault, Node, Pace};
use super::script::{digest_of, script};

/// How long the world may take to come to rest once it is left alone. The longest wait in
/// it is the back-off of a Container that crashed many times.
const REST_WITHIN: Micros = Micros::from_secs(30 * 60);
/// How long a request may wait for a Backend: the manifest's default.
const PATIENCE: Micros = Micros::from_secs(30);
/// Longest request. Shorter than the grace, so that a drain never has to cut one.
const LONGEST_REQUEST: Micros = Micros::from_millis(800);
/// The control plane looks at everything this often.
const SCAN: Micros = Micros::from_millis(500);
/// No action asks for more Instances.
const LARGEST: u32 = 16;
/// Lines of the trace that a failure shows.
const TRACE: usize = 60;

enum Due {
    Arrival,
    Answered(RequestId),
    Attach { flight: u64, backend: Backend },
    Detach { flight: u64, container: ContainerId, until: Time },
    Attached(u64),
    Drained(u64),
    Wake,
    Scan,
    Act { epoch: u64, stored: Box<Stored> },
    Enter { epoch: u64, loaded: Generation, phase: Phase },
    Forget { epoch: u64 },
    EngineUp,
    ControlUp,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What became of its requests.
    pub requests: Counts,
    /// Name of the last Rollout's phase.
    pub phase: Option<&'static str>,
    /// Events that happened.
    pub events: u64,
    /// How long it took in the world's time.
    pub took: Micros,
}

/// Runs a log from its beginning to rest.
pub fn run(log: &Log) -> Result<Outcome, Box<Failure>> {
    let mut world = World::new(log.seed);
    let result = world.live(&log.actions);
    result.map_err(|what| {
        let trace = std::mem::take(&mut world.trace).into();
        Box::new(Failure { what, at: Micros(world.now.0), log: log.clone(), trace })
    })
}

/// Repeats the run that a [`Failure`] prints.
///
/// # Panics
/// When `log` is not the text of a [`Log`].
pub fn replay(log: &str) -> Result<Outcome, Box<Failure>> {
    run(&serde_json::from_str(log).expect("the log of a run"))
}

/// A verdict that every request to the new Release fails, and none to the old one.
fn worse_verdict() -> Verdict {
    let old = Sample { requests: 1000, ..Sample::default() };
    let new = Sample { requests: 1000, errors: 1000, ..Sample::default() };
    let verdict = judge(&old, &old, &new, &Settings::default());
    assert!(matches!(verdict, Verdict::Worse { .. }), "nothing is worse than that");
    verdict
}

struct World {
    now: Time,
    chance: Chance,
    due: BTreeMap<(Time, u64), Due>,
    serial: u64,
    events: u64,
    node: Node,
    gateway: Gateway,
    desk: Desk,
    /// The control plane is between loading and committing, and was woken again meanwhile.
    busy: bool,
    again: bool,
    /// When the last message on the gateway's link arrives.
    link: Time,
    hints_lost_until: Time,
    arrivals_until: Time,
    /// The Rollout whose new Release is measurably worse.
    worse: Option<RolloutNo>,
    last_generation: Generation,
    trace: VecDeque<String>,
    broken: Option<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let pace = Pace { shortest: Micros(100), longest: Micros::from_millis(40) };
        let node = Node::new(chance.number(), pace);
        let mut world = Self {
            now: Time(0),
            chance,
            due: BTreeMap::new(),
            serial: 0,
            events: 0,
            node,
            gateway: Gateway::default(),
            desk: Desk::new(app_key("web")),
            busy: false,
            again: false,
            link: Time(0),
            hints_lost_until: Time(0),
            arrivals_until: Time(0),
            worse: None,
            last_generation: Generation(0),
            trace: VecDeque::new(),
            broken: None,
        };
        world.after(Micros(0), Due::Arrival);
        world.after(SCAN, Due::Scan);
        world
    }

    fn live(&mut self, actions: &[Action]) -> Result<Outcome, String> {
        for action in actions {
            self.act(action);
            self.check()?;
        }
        let calm = actions.iter().all(Action::is_calm);
        self.rest()?;
        let requests = self.gateway.counts;
        if calm && requests.timed_out > 0 {
            return Err(format!("{} requests waited too long", requests.timed_out));
        }
        if requests.received != requests.ended() {
            return Err(format!("not every request is accounted for: {requests:?}"));
        }
        let rollout = self.desk.stored().and_then(|stored| stored.app.rollout.as_ref());
        Ok(Outcome {
            requests,
            phase: rollout.map(|rollout| rollout.phase.name()),
            events: self.events,
            took: Micros(self.now.0),
        })
    }

    fn act(&mut self, action: &Action) {
        let now = self.now;
        self.note(|| format!("{action:?}"));
        let app = self.desk.key.clone();
        let changed = match action {
            Action::Wait(length) => {
                self.arrivals_until = now + *length;
                return self.pass(now + *length);
            }
            Action::Deploy(what) => {
                let here = self.node.images().contains_key(&digest_of(&what.reference()));
                self.desk.deploy(what, here, now)
            }
            Action::Rollback => self.desk.rollback(false, now),
            Action::Restart => self.desk.restart(None, now),
            Action::RestartOne(ordinal) => self.desk.restart(Some(*ordinal), now),
            Action::Scale(instances) => self.desk.scale(*instances, now),
            Action::Stop => self.desk.stop(),
            Action::Start => self.desk.start(now),
            Action::Abort => self.desk.abort(now),
            Action::Delete => self.desk.delete(),
            Action::Pause => self.desk.pause(now),
            Action::Resume => self.desk.resume(now),
            Action::Promote { all } => self.desk.promote(*all, now),
            Action::Remove(ordinal) => self.desk.remove(*ordinal, now),
            Action::Worse => {
                self.worse = self.rollout_number();
                self.worse.is_some()
            }
            Action::Memory(free) => {
                let pressed = *free < 32;
                self.node.set_memory(Some(MemorySeen { free: free << 20, pressed }));
                false
            }
            Action::Fault(ordinal, fault) => {
                self.node.fault(&app, Ordinal(*ordinal), *fault, now);
                false
            }
            Action::CrashServe(length) => {
                self.crash_control(*length);
                if self.node.is_up() {
                    self.node.crash();
                    self.drop_messages();
                    self.after(*length, Due::EngineUp);
                }
                false
            }
            Action::CrashControl(length) => {
                self.crash_control(*length);
                false
            }
            Action::LoseHints(length) => {
                self.hints_lost_until = now + *length;
                false
            }
        };
        if changed {
            if !self.desk.is_open() {
                self.gateway.refuse_waiting();
            }
            self.after(Micros(0), Due::Wake);
        }
        self.take_in();
    }

    fn rollout_number(&self) -> Option<RolloutNo> {
        Some(self.desk.stored()?.app.rollout.as_ref()?.number)
    }

    fn crash_control(&mut self, length: Micros) {
        if self.desk.up {
            self.desk.crash();
            (self.busy, self.again) = (false, false);
            self.after(length, Due::ControlUp);
        }
    }

    /// What an engine sends in its last moment may arrive or not.
    fn drop_messages(&mut self) {
        if self.chance.one_in(2) {
            self.due.retain(|_, due| !matches!(due, Due::Attach { .. } | Due::Detach { .. }));
        }
    }

    /// Lets time pass until `until`.
    fn pass(&mut self, until: Time) {
        while self.broken.is_none() {
            let mine = self.due.keys().next().map(|(at, _)| *at);
            let others = [self.node.next_due(), self.gateway.next_due()];
            let Some(at) = mine.into_iter().chain(others.into_iter().flatten()).min() else {
                break;
            };
            if at > until {
                break;
            }
            self.now = self.now.max(at);
            self.events += 1;
            match self.due.first_key_value() {
                Some((&key, _)) if key.0 <= self.now => {
                    if let Some(due) = self.due.remove(&key) {
                        self.happen(due);
                    }
                }
                _ => self.node.advance(self.now),
            }
            self.take_in();
            self.look();
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, due: Due) {
        let now = self.now;
        let app = self.desk.key.clone();
        match due {
            Due::Arrival => self.arrive(),
            Due::Answered(request) => self.gateway.complete(request),
            Due::Attach { flight, backend } => {
                self.note(|| format!("gateway attaches {}", backend.container));
                self.gateway.attach(backend.container);
                self.soon(Due::Attached(flight));
            }
            Due::Detach { flight, container, until } => {
                self.note(|| format!("gateway drains {container}"));
                self.gateway.detach(&container, flight, until);
            }
            Due::Attached(flight) => self.node.attached(&app, flight, now),
            Due::Drained(flight) => self.node.detached(&app, flight, now),
            Due::Wake => self.load(),
            Due::Scan => {
                self.load();
                self.after(SCAN, Due::Scan);
            }
            Due::Act { epoch, stored } if epoch == self.desk.epoch => self.reconcile(&stored),
            Due::Enter { epoch, loaded, phase } if epoch == self.desk.epoch => {
                self.note(|| format!("the rollout enters {phase:?}"));
                let wrong = self.wrong_end(&phase);
                if self.desk.enter(loaded, phase) {
                    self.broken = self.broken.take().or(wrong);
                }
                self.again = true;
                self.done();
            }
            Due::Forget { epoch } if epoch == self.desk.epoch => {
                self.desk.forget();
                self.done();
            }
            Due::Act { .. } | Due::Enter { .. } | Due::Forget { .. } => {}
            Due::EngineUp => {
                self.note(|| "the engine is back".into());
                self.node.restart(now);
            }
            Due::ControlUp => {
                self.desk.up = true;
                self.load();
            }
        }
    }

    /// What cannot become ready must never count as done.
    fn wrong_end(&self, phase: &Phase) -> Option<String> {
        let stored = self.desk.stored()?;
        // A restart of one Instance ends with it, whatever the others run.
        if stored.app.rollout.as_ref().is_some_and(|rollout| rollout.only.is_some()) {
            return None;
        }
        let fleet = stored.wanted().fleet;
        let reference = &fleet.heading_spec().filter(|_| fleet.instances > 0)?.reference;
        let script = script(reference);
        let can_serve =
            script.starts && script.ready_after.is_some() && script.pull_fails.is_none();
        let wrong = matches!(phase, Phase::Done { .. } | Phase::Watching { .. }) && !can_serve;
        wrong.then(|| format!("a rollout to {reference} is done"))
    }

    fn arrive(&mut self) {
        let id = RequestId(self.events);
        if self.now <= self.arrivals_until {
            self.gateway.arrive(id, self.desk.is_open(), self.now + PATIENCE);
        }
        let pause = self.chance.length(Micros::from_millis(5), Micros::from_millis(60));
        self.after(pause, Due::Arrival);
    }

    /// The control plane loads what it has stored.
    fn load(&mut self) {
        if self.busy || !self.desk.up {
            self.again = true;
            return;
        }
        let Some(stored) = self.desk.stored() else { return };
        let due = Due::Act { epoch: self.desk.epoch, stored: Box::new(stored.clone()) };
        self.busy = true;
        self.soon(due);
    }

    fn done(&mut self) {
        self.busy = false;
        if std::mem::take(&mut self.again) {
            self.soon(Due::Wake);
        }
    }

    /// Hands on what is wanted, looks, and decides.
    fn reconcile(&mut self, stored: &Stored) {
        if !self.node.is_up() {
            return self.done();
        }
        let now = self.now;
        let wanted = stored.wanted();
        if self.node.apply(wanted.fleet.clone(), now).is_err() {
            self.again = true;
            return self.done();
        }
        let seen = self.node.observe(&self.desk.key);
        let epoch = self.desk.epoch;
        if stored.app.deleted && seen.instances.is_empty() {
            if self.node.forget(&self.desk.key).is_ok() {
                self.last_generation = Generation(0);
            }
            return self.soon(Due::Forget { epoch });
        }
        let rollout = stored.app.rollout.as_ref().filter(|rollout| rollout.is_trial());
        let worse = self.worse.is_some() && rollout.map(|rollout| rollout.number) == self.worse;
        let verdict = worse.then(worse_verdict);
        let found = advance(&stored.app, &wanted.fleet, &seen, verdict.as_ref(), now);
        if let Some(phase) = found.phase {
            return self.soon(Due::Enter { epoch, loaded: stored.app.generation, phase });
        }
        if let Some(at) = found.wake {
            self.after(at.since(now), Due::Wake);
        }
        self.done();
    }

    /// Everything that follows at once from what just happened.
    fn take_in(&mut self) {
        let now = self.now;
        self.carry_claims();
        self.break_connections();
        self.gateway.give_up(now);
        for flight in self.gateway.drained(now) {
            self.soon(Due::Drained(flight));
        }
        for effect in self.node.take_effects() {
            match effect {
                Effect::Attach { flight, backend, .. } => {
                    self.send(Due::Attach { flight, backend });
                }
                Effect::Detach { flight, container, drain, .. } => {
                    let until = now + Micros::from(drain);
                    self.send(Due::Detach { flight, container, until });
                }
                Effect::Hint(_) if now < self.hints_lost_until => {}
                Effect::Hint(_) => {
                    self.soon(Due::Wake);
                    if self.chance.one_in(8) {
                        self.soon(Due::Wake);
                    }
                }
                Effect::Event(event) => self.note(|| {
                    let what = serde_json::to_string(&event.fact).unwrap_or_default();
                    format!("{:?} {:?} {what}", event.instance, event.container)
                }),
            }
        }
    }

    fn carry_claims(&mut self) {
        for (request, _) in self.gateway.take_claims() {
            let length = self.chance.length(Micros::from_millis(1), LONGEST_REQUEST);
            self.after(length, Due::Answered(request));
        }
    }

    /// Connections to what does not run any more break. Whose fault is it?
    fn break_connections(&mut self) {
        for container in self.gateway.busy() {
            match self.node.state(&self.desk.key, &container) {
                Some(ContainerState::Running { .. }) => {}
                Some(ContainerState::Exited(exit)) if !exit.intended => {
                    self.gateway.crashed(&container);
                }
                state => self.gateway.lose(&container, &format!("it is {state:?}")),
            }
        }
    }

    /// Looks for what is wrong.
    fn look(&mut self) {
        let seen = self.node.observe(&self.desk.key);
        let mut violations = self.node.take_violations();
        violations.append(&mut self.desk.violations);
        violations.extend(check_world(&seen));
        if let Some(stored) = self.desk.stored() {
            violations.extend(check_wanted(&stored.app, &stored.wanted()));
        }
        let found = violations.first().map(ToString::to_string);
        let found = found.or_else(|| self.gateway.lost.first().cloned());
        let fell = || format!("generation {} fell to {}", self.last_generation, seen.generation);
        let found = found.or_else(|| (seen.generation < self.last_generation).then(fell));
        self.last_generation = seen.generation;
        self.broken = self.broken.take().or(found);
    }

    fn check(&mut self) -> Result<(), String> {
        self.look();
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Leaves the world alone until nothing is to be done any more. Whoever is waited for is
    /// content.
    fn rest(&mut self) -> Result<(), String> {
        let deadline = self.now + REST_WITHIN;
        self.arrivals_until = self.now + Micros::from_secs(1);
        let app = self.desk.key.clone();
        for ordinal in (0..LARGEST).map(Ordinal) {
            while self.node.fault(&app, ordinal, Fault::Recover, self.now) {}
        }
        self.take_in();
        loop {
            self.pass(self.now + Micros::from_millis(250));
            self.check()?;
            self.content();
            match self.unrest() {
                None => return Ok(()),
                Some(why) if self.now >= deadline => {
                    return Err(format!("the world does not come to rest: {why}"));
                }
                Some(_) => {}
            }
        }
    }

    /// Where a Rollout waits for a person, one comes.
    fn content(&mut self) {
        let rollout = self.desk.stored().and_then(|stored| stored.app.rollout.as_ref());
        let Some(rollout) = rollout else { return };
        let waits = matches!(
            rollout.phase,
            Phase::Progressing { gate: Some(Gate { until: None, .. }), .. }
        );
        if rollout.is_paused() {
            self.act(&Action::Resume);
        } else if waits {
            self.act(&Action::Promote { all: false });
        }
    }

    /// What is still to be done.
    fn unrest(&self) -> Option<String> {
        if !self.node.is_up() || !self.desk.up {
            return Some("serve is down".into());
        }
        if self.now <= self.arrivals_until || self.gateway.under_way() > 0 {
            return Some("requests are under way".into());
        }
        let seen = self.node.observe(&self.desk.key);
        let Some(stored) = self.desk.stored() else {
            let left = self.node.apps().contains(&self.desk.key);
            return left.then(|| "the engine holds what was deleted".into());
        };
        if stored.app.deleted {
            return Some("it is being deleted".into());
        }
        let fleet = stored.wanted().fleet;
        if seen.generation != fleet.generation {
            return Some("the engine is behind".into());
        }
        // What keeps crashing is never at rest, and its Rollout may go back to it for ever.
        let works = |release: &ReleaseNo| {
            let spec = stored.releases.get(release);
            spec.is_some_and(|spec| spec.images().all(|(_, reference)| script(reference).works()))
        };
        let steps = plan(&fleet, &seen, self.now).steps;
        let mut runs = fleet.lineup.iter().flat_map(|lineup| lineup.releases());
        let target_works = runs.all(|release| works(&release));
        let all_work = fleet.releases.keys().all(works);
        if all_work && !steps.is_empty() {
            return Some(format!("the plan is not empty: {steps:?}"));
        }
        let serving = seen.instances.keys().filter(|ordinal| seen.serves(**ordinal)).count();
        if target_works && fleet.lineup.is_some() && serving != fleet.instances as usize {
            return Some(format!("{serving} of {} instances serve", fleet.instances));
        }
        let astray = |ordinal: &Ordinal| {
            let instance = &seen.instances[ordinal];
            instance.serving().is_some_and(|serving| serving.slot != instance.slot)
        };
        if target_works && let Some(ordinal) = seen.instances.keys().find(|o| astray(o)) {
            return Some(format!("connections to instance {ordinal} go to the wrong slot"));
        }
        let active = stored.app.active()?;
        // Without Instances nothing can be learnt of a Release.
        let idle = fleet.instances == 0;
        let may_go_on = idle || (!target_works && active.failure().is_some());
        (!may_go_on).then(|| format!("the rollout is {}", active.phase.name()))
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() == TRACE {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>12} {}", self.now.0, what()));
    }

    fn after(&mut self, length: Micros, due: Due) {
        self.serial += 1;
        self.due.insert((self.now + length, self.serial), due);
    }

    fn soon(&mut self, due: Due) {
        let delay = self.chance.length(Micros(50), Micros::from_millis(5));
        self.after(delay, due);
    }

    /// Sends on the gateway's link, which keeps the order.
    fn send(&mut self, due: Due) {
        let delay = self.chance.length(Micros(50), Micros::from_millis(5));
        self.link = self.link.max(self.now + delay);
        self.serial += 1;
        self.due.insert((self.link, self.serial), due);
    }
}
