//! The planner: what is wanted, what is seen, what to do now.
//!
//! Steps of one plan are independent of each other. A sequence (prepare, drain, stop,
//! start, attach) is not written down anywhere: each step follows from what is seen after
//! the one before, so a crash between any two loses nothing.

use super::budget::{Budget, order};
use super::step::StopCause;
use super::{
    ContainerSeen, ContainerState, Exit, Fallback, Fleet, FleetSeen, Health, HookName, ImageSeen,
    InstanceSeen, Part, Plan, ReleaseSpec, Revision, Slot, Step, TrafficState, Way,
};
use crate::ids::{Digest, Ordinal};
use crate::time::{Micros, Time};

/// Longest wait before a crashed Container is started again.
pub const RESTART_BACKOFF_CAP: Micros = Micros::from_secs(300);

/// How long to wait before the next attempt after `count` failures in a row: none after the
/// first, then 250 ms doubled each time, up to [`RESTART_BACKOFF_CAP`].
pub fn backoff(count: u32) -> Micros {
    match count {
        0 | 1 => Micros(0),
        n => Micros(250_000u64.saturating_mul(1 << (n - 2).min(20)).min(RESTART_BACKOFF_CAP.0)),
    }
}

/// Plans the next steps towards `fleet`. A settled world gets an empty plan.
pub fn plan(fleet: &Fleet, seen: &FleetSeen, now: Time) -> Plan {
    let mut plan = Plan { generation: fleet.generation, ..Plan::default() };
    pull(fleet, seen, now, &mut plan);
    let mut budget = Budget::new(fleet, seen);
    for (ordinal, instance) in &seen.instances {
        let unwanted = fleet.wanted(*ordinal).is_none();
        if unwanted && !(instance.serving().is_some() && budget.stand_in()) {
            retire(fleet, *ordinal, instance, true, &mut plan);
        }
    }
    let nothing = InstanceSeen::default();
    for ordinal in order(fleet, seen) {
        let Some(revision) = fleet.wanted(ordinal) else { continue };
        let Some(spec) = fleet.releases.get(&revision.release) else { continue };
        let one = Instance {
            fleet,
            world: seen,
            spec,
            ordinal,
            revision,
            seen: seen.instances.get(&ordinal).unwrap_or(&nothing),
            now,
        };
        one.plan(&mut budget, &mut plan);
    }
    plan
}

/// Everything the Fleet names is fetched, also what is only wanted for a rollback.
fn pull(fleet: &Fleet, seen: &FleetSeen, now: Time, plan: &mut Plan) {
    let mut planned = Vec::new();
    for (release, spec) in &fleet.releases {
        let mut due_now = false;
        for (image, _) in spec.images() {
            let due = match seen.images.get(image) {
                Some(ImageSeen::Present) => continue,
                Some(ImageSeen::Failed { at, count, .. }) => *at + backoff(count + 1),
                None => now,
            };
            if planned.contains(&image) {
                continue;
            }
            if due <= now {
                planned.push(image);
                due_now = true;
            } else {
                plan.wake_at(due);
            }
        }
        if due_now {
            plan.add(Step::Pull { release: *release });
        }
    }
}

/// One step further in taking everything out of an Instance, and then its Sandbox away.
/// `forever`: no other Sandbox takes its place.
fn retire(
    fleet: &Fleet,
    ordinal: Ordinal,
    instance: &InstanceSeen,
    forever: bool,
    plan: &mut Plan,
) {
    // Sidecars serve the App until it has ended.
    let mains_first = instance.mains().any(ContainerSeen::exists);
    let mut ended = true;
    for container in instance.containers.iter().filter(|c| !c.exists()) {
        ended &= unrouted(ordinal, container, plan);
    }
    for container in instance.containers.iter().filter(|c| c.exists()) {
        ended = false;
        if mains_first && !container.part.is_main() {
            continue;
        }
        let release = fleet.releases.get(&container.revision.release);
        let hook = release.is_some_and(|spec| spec.hook(HookName::PreDelete).is_some());
        let run = container.revision.run;
        if forever && hook && container.serves() && !container.hooked(HookName::PreDelete, run) {
            plan.add(Step::Hook {
                ordinal,
                container: container.id.clone(),
                hook: HookName::PreDelete,
                revision: container.revision,
            });
        } else {
            take_out(fleet, ordinal, container, After::Stop(None), plan);
        }
    }
    if ended {
        plan.add(Step::RemoveSandbox { ordinal });
    }
}

/// Whether no gateway can send requests any more to a Container that does not run; else that
/// is seen to. Whatever was its end: an engine that was busy with it may have missed it.
fn unrouted(ordinal: Ordinal, container: &ContainerSeen, plan: &mut Plan) -> bool {
    if container.traffic == TrafficState::Attached {
        let (container, drain) = (container.id.clone(), Micros(0));
        plan.add(Step::Detach { ordinal, container, drain });
    }
    container.traffic == TrafficState::Detached
}

/// What becomes of a Container that gets no requests any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Stop(Option<StopCause>),
    /// It stands still for a while if it was well.
    Freeze,
}

/// One step further in ending a Container: drained first, stopped or frozen then.
fn take_out(
    fleet: &Fleet,
    ordinal: Ordinal,
    container: &ContainerSeen,
    after: After,
    plan: &mut Plan,
) {
    let spec = fleet.releases.get(&container.revision.release).or_else(|| fleet.heading_spec());
    let grace = spec.map_or(Micros::from_secs(30), ReleaseSpec::grace);
    let id = container.id.clone();
    match (container.traffic, &container.state) {
        (TrafficState::Attached, _) => {
            plan.add(Step::Detach { ordinal, container: id, drain: grace });
        }
        (TrafficState::Detached, ContainerState::Running { health: Health::Ready, .. })
            if after == After::Freeze =>
        {
            plan.add(Step::Freeze { ordinal, container: id });
        }
        (
            TrafficState::Detached,
            ContainerState::Running { .. } | ContainerState::Frozen { .. },
        ) => {
            let because = match after {
                After::Stop(because) => because,
                After::Freeze => None,
            };
            plan.add(Step::Stop { ordinal, container: id, grace, because });
        }
        // Its acknowledgement is awaited.
        (TrafficState::Draining, _) | (TrafficState::Detached, _) => {}
    }
}

/// One wanted Instance and what is known of it.
struct Instance<'a> {
    fleet: &'a Fleet,
    world: &'a FleetSeen,
    spec: &'a ReleaseSpec,
    ordinal: Ordinal,
    revision: Revision,
    seen: &'a InstanceSeen,
    now: Time,
}

/// The Containers of one part, by what they are to what is wanted.
#[derive(Default)]
struct Sorted<'a> {
    /// What is wanted, or can be brought to it.
    new: Option<&'a ContainerSeen>,
    /// What runs and shall not.
    old: Vec<&'a ContainerSeen>,
    /// What stands still beside.
    frozen: Vec<&'a ContainerSeen>,
}

impl<'a> Instance<'a> {
    fn plan(&self, budget: &mut Budget, plan: &mut Plan) {
        let ordinal = self.ordinal;
        let Some(sandbox) = &self.seen.sandbox else {
            // One above the wanted number is only there to help a change begin.
            let surplus = self.fleet.surplus().any(|surplus| surplus == ordinal);
            // Beside the pull, not after it.
            if !(self.fleet.paused && surplus) && self.rested(&Part::Main, plan) {
                plan.add(Step::CreateSandbox { ordinal, revision: self.revision });
            }
            return;
        };
        if self.spec.remake(sandbox, self.revision).is_some() {
            self.recreate(budget, plan);
            return;
        }
        let mut sidecars_up = true;
        for part in self.spec.parts().filter(|part| !part.is_main()) {
            sidecars_up &= self.sidecar(&part, budget, plan);
        }
        // What the Release has no more serves the old Container as long as that runs.
        let in_use = self.seen.mains().any(|c| c.alive() && !self.fits(c));
        for container in self.seen.containers.iter().filter(|c| !self.spec.has(&c.part)) {
            match container.state {
                _ if in_use => {}
                ContainerState::Exited(_) | ContainerState::Prepared => {
                    self.discard(container, plan);
                }
                _ => self.out(container, After::Stop(None), plan),
            }
        }
        self.main(sidecars_up, budget, plan);
    }

    /// A new Sandbox is wanted: what is in the old one goes first.
    fn recreate(&self, budget: &mut Budget, plan: &mut Plan) {
        let here = self.spec.images().all(|(image, _)| self.present(image));
        // Nothing is taken away for an image that is not there, nor while the Rollout is paused.
        let serving = self.seen.serving();
        if here && (serving.is_none() || (!self.fleet.paused && budget.take())) {
            if serving.is_some_and(|old| !self.asked_before(old, plan)) {
                return;
            }
            retire(self.fleet, self.ordinal, self.seen, false, plan);
        }
    }

    /// The Containers of `part`; what is of no use any more is discarded. `None`: what ended
    /// is what was wanted, and shall not run again.
    fn sort(&self, part: &'a Part, plan: &mut Plan) -> Option<Sorted<'a>> {
        let mut sorted = Sorted::default();
        for container in self.seen.of(part) {
            let fits = self.fits(container);
            match container.state {
                ContainerState::Exited(exit)
                    if container.revision == self.revision && self.stays_ended(exit) =>
                {
                    unrouted(self.ordinal, container, plan);
                    return None;
                }
                ContainerState::Exited(_) => self.discard(container, plan),
                ContainerState::Prepared if container.revision != self.revision => {
                    self.discard(container, plan);
                }
                _ if fits && sorted.new.is_none_or(|new| rank(container) >= rank(new)) => {
                    if let Some(lesser) = sorted.new.replace(container) {
                        self.shelve(lesser, &mut sorted, plan);
                    }
                }
                _ => self.shelve(container, &mut sorted, plan),
            }
        }
        Some(sorted)
    }

    /// Puts a Container to those that shall not run.
    fn shelve(&self, container: &'a ContainerSeen, sorted: &mut Sorted<'a>, plan: &mut Plan) {
        match container.state {
            ContainerState::Frozen { .. } => sorted.frozen.push(container),
            ContainerState::Running { .. } | ContainerState::Stopping { .. } => {
                sorted.old.push(container);
            }
            ContainerState::Prepared | ContainerState::Exited(_) => self.discard(container, plan),
        }
    }

    /// The Sandbox stays; the App's Container in it is brought to the wanted revision.
    fn main(&self, sidecars_up: bool, budget: &mut Budget, plan: &mut Plan) {
        let Some(Sorted { new, old, frozen }) = self.sort(&Part::Main, plan) else { return };
        for container in &frozen {
            self.thaw_out(container, plan);
        }
        let serving = self.seen.serving();
        let way = self.spec.change(budget.free);
        let beside = way == Way::Handover && !old.is_empty();
        // What has begun is finished, and what is out of service comes back.
        let may_begin = |beside: bool, budget: &mut Budget| match serving {
            None => true,
            Some(_) if self.fleet.paused => false,
            Some(_) if beside => budget.begin_beside(self.spec),
            Some(_) => budget.take(),
        };
        let Some(new) = new else {
            if self.present_of(&Part::Main)
                && self.rested(&Part::Main, plan)
                && may_begin(beside, budget)
            {
                self.prepare_main(beside, &old, &frozen, plan);
            }
            self.stand_in(None, &old, plan);
            return;
        };
        match new.state {
            ContainerState::Prepared | ContainerState::Frozen { .. } => {
                // One that was prepared where the old one is takes it out, whatever was wanted.
                let beside = beside && old.iter().all(|old| old.slot != new.slot);
                let begun = new.state == ContainerState::Prepared && beside;
                if old.is_empty() {
                    if sidecars_up {
                        self.run(new, plan);
                    }
                } else if (begun || may_begin(beside, budget))
                    && self.rested(&Part::Main, plan)
                    // What serves is not taken out for one that its sidecars are not there for.
                    && (beside || sidecars_up || serving.is_none())
                    && serving.is_none_or(|old| self.asked_before(old, plan))
                {
                    if beside {
                        self.run(new, plan);
                        self.stand_in(Some(new), &old, plan);
                    } else {
                        self.all_out(new, &old, plan);
                    }
                } else {
                    self.stand_in(Some(new), &old, plan);
                }
            }
            ContainerState::Running { since, health } => {
                self.running(new, since, health, plan);
                if new.serves() && self.seen.slot == new.slot {
                    self.all_out(new, &old, plan);
                } else {
                    self.stand_in(Some(new), &old, plan);
                }
            }
            ContainerState::Stopping { .. } | ContainerState::Exited(_) => {
                self.stand_in(Some(new), &old, plan);
            }
        }
    }

    /// Sets the App's next Container up, in a slot where nothing stands.
    fn prepare_main(
        &self,
        beside: bool,
        old: &[&ContainerSeen],
        frozen: &[&ContainerSeen],
        plan: &mut Plan,
    ) {
        let keep = self.keeps();
        // What serves keeps its place; whatever else there is may be in the way.
        let holder = old.iter().find(|c| c.serves()).or(old.first());
        let held = holder.map_or(self.seen.slot, |holder| holder.slot);
        let fixed = !self.spec.settings.sidecars.is_empty();
        let wanted = if fixed {
            Slot::A
        } else if holder.is_some() && (beside || keep) {
            held.other()
        } else {
            held
        };
        let others = || frozen.iter().chain(old.iter().filter(|c| Some(*c) != holder));
        let stands = |slot: Slot| others().find(|c| c.slot == slot);
        let slot = match stands(wanted) {
            None => wanted,
            // Where nothing runs the other slot will do as well.
            Some(_) if holder.is_none() && !fixed && stands(wanted.other()).is_none() => {
                wanted.other()
            }
            // There is no third place: what is of no use, or kept for convenience, goes.
            Some(other) => return self.out(other, After::Stop(None), plan),
        };
        let (ordinal, revision) = (self.ordinal, self.revision);
        plan.add(Step::Prepare { ordinal, part: Part::Main, revision, slot });
    }

    /// Starts or thaws a Container.
    fn run(&self, container: &ContainerSeen, plan: &mut Plan) {
        let (ordinal, id) = (self.ordinal, container.id.clone());
        plan.add(if container.is_frozen() {
            Step::Thaw { ordinal, container: id, revision: self.revision }
        } else {
            Step::Start { ordinal, container: id }
        });
    }

    /// The hook before a change: whether it was run, or there is none. `old` is what serves.
    fn asked_before(&self, old: &ContainerSeen, plan: &mut Plan) -> bool {
        self.hooked(old, HookName::BeforeUpdate, self.revision.run, plan)
    }

    /// The hook after a change: a Container has it once in its life, whatever it is brought to.
    fn asked_after(&self, new: &ContainerSeen, plan: &mut Plan) -> bool {
        new.hooks.iter().any(|seen| seen.hook == HookName::AfterUpdate)
            || self.hooked(new, HookName::AfterUpdate, self.revision.run, plan)
    }

    /// Whether `hook` was run for this run, or there is none; else it is to be run now.
    fn hooked(&self, on: &ContainerSeen, hook: HookName, run: u32, plan: &mut Plan) -> bool {
        if self.spec.hook(hook).is_none() || on.hooked(hook, run) {
            return true;
        }
        if self.rested(&Part::Main, plan) {
            let (ordinal, container, revision) = (self.ordinal, on.id.clone(), self.revision);
            plan.add(Step::Hook { ordinal, container, hook, revision });
        }
        false
    }

    /// What the new Container replaces goes; for a while it may be kept, where it is not in
    /// the way.
    fn all_out(&self, new: &ContainerSeen, old: &[&ContainerSeen], plan: &mut Plan) {
        let keep = self.keeps() && !self.pressed();
        for container in old {
            let keep = keep && container.slot != new.slot;
            self.out(container, if keep { After::Freeze } else { After::Stop(None) }, plan);
        }
    }

    /// Whether what is replaced stays frozen for a while. Where two do not fit into the memory
    /// it would be in the way.
    fn keeps(&self) -> bool {
        let way = self.spec.change(self.world.memory.map(|memory| memory.free));
        let full = matches!(way, Way::InPlace { because: Some(Fallback::Memory { .. }) });
        self.spec.keep_previous() > Micros(0) && !full
    }

    /// Until the new Container serves, the old one does if it can.
    fn stand_in(&self, new: Option<&ContainerSeen>, old: &[&ContainerSeen], plan: &mut Plan) {
        let mut served = self.seen.serving().is_some();
        // Connections go to the new one from the moment it takes over until it fails.
        let failed = !new.is_some_and(ContainerSeen::ready);
        for container in old {
            let ContainerState::Running { health, .. } = container.state else { continue };
            let (ordinal, id) = (self.ordinal, container.id.clone());
            match (health, container.traffic) {
                (Health::Ready, TrafficState::Detached) if !served && !plan.acts_on(&id) => {
                    served = true;
                    plan.add(Step::Attach { ordinal, container: id });
                }
                (Health::Ready, TrafficState::Attached)
                    if failed && self.seen.slot != container.slot =>
                {
                    plan.add(Step::Attach { ordinal, container: id });
                }
                (Health::Unready, TrafficState::Attached) => {
                    let drain = self.spec.grace();
                    plan.add(Step::Detach { ordinal, container: id, drain });
                }
                (Health::Dead, _) => {
                    self.out(container, After::Stop(Some(StopCause::NotAlive)), plan);
                }
                _ => {}
            }
        }
    }

    /// A frozen Container that is not wanted now: it goes when its time is over, or when the
    /// memory is needed.
    fn thaw_out(&self, container: &ContainerSeen, plan: &mut Plan) {
        let ContainerState::Frozen { since } = container.state else { return };
        let until = since + self.spec.keep_previous();
        if until <= self.now || self.pressed() {
            self.out(container, After::Stop(None), plan);
        } else {
            plan.wake_at(until);
        }
    }

    /// One step further with a sidecar. Whether it is up.
    fn sidecar(&self, part: &Part, budget: &mut Budget, plan: &mut Plan) -> bool {
        let Some(Sorted { new, old, .. }) = self.sort(part, plan) else { return true };
        let Some(new) = new else {
            // Where the App serves it is a change like any other; else the App waits for it.
            let begin = old.is_empty()
                || self.seen.serving().is_none()
                || (!self.fleet.paused && budget.begin());
            if begin && self.present_of(part) && self.rested(part, plan) {
                let (ordinal, part, revision) = (self.ordinal, part.clone(), self.revision);
                plan.add(Step::Prepare { ordinal, part, revision, slot: Slot::A });
            }
            return false;
        };
        match new.state {
            ContainerState::Prepared if old.is_empty() => self.run(new, plan),
            ContainerState::Prepared => {
                for container in old {
                    self.out(container, After::Stop(None), plan);
                }
            }
            ContainerState::Running { since, health } => {
                self.running(new, since, health, plan);
                return health == Health::Ready;
            }
            _ => {}
        }
        false
    }

    fn running(&self, container: &ContainerSeen, since: Time, health: Health, plan: &mut Plan) {
        let (ordinal, id) = (self.ordinal, container.id.clone());
        if container.revision != self.revision
            && !self.fleet.paused
            && self.rested(&container.part, plan)
        {
            let revision = self.revision;
            plan.add(Step::Update { ordinal, container: id, revision });
            return;
        }
        let main = container.part.is_main();
        match (health, container.traffic) {
            (Health::Ready, TrafficState::Detached) if main => {
                if self.asked_after(container, plan) {
                    plan.add(Step::Attach { ordinal, container: id });
                }
            }
            (Health::Ready, TrafficState::Attached) if self.seen.slot != container.slot => {
                plan.add(Step::Attach { ordinal, container: id });
            }
            (Health::Unready, TrafficState::Attached) => {
                plan.add(Step::Detach { ordinal, container: id, drain: self.spec.grace() });
            }
            (Health::Starting, _) => {
                let deadline = since + self.spec.startup_timeout(&container.part);
                if deadline <= self.now {
                    self.out(container, After::Stop(Some(StopCause::NeverReady)), plan);
                } else {
                    plan.wake_at(deadline);
                }
            }
            (Health::Dead, _) => {
                self.out(container, After::Stop(Some(StopCause::NotAlive)), plan);
            }
            (Health::Ready | Health::Unready, _) => {}
        }
    }

    fn fits(&self, container: &ContainerSeen) -> bool {
        self.fleet.fits(container, self.revision, self.spec)
    }

    fn out(&self, container: &ContainerSeen, after: After, plan: &mut Plan) {
        take_out(self.fleet, self.ordinal, container, after, plan);
    }

    /// Whether a main Container or a sidecar of the wanted Release that ended by itself like
    /// this is not started again.
    fn stays_ended(&self, exit: Exit) -> bool {
        !exit.intended && !self.spec.runs_again_after(exit)
    }

    fn discard(&self, container: &ContainerSeen, plan: &mut Plan) {
        if unrouted(self.ordinal, container, plan) {
            let container = container.id.clone();
            plan.add(Step::Discard { ordinal: self.ordinal, container });
        }
    }

    fn pressed(&self) -> bool {
        self.world.memory.is_some_and(|memory| memory.pressed)
    }

    fn present(&self, image: &Digest) -> bool {
        matches!(self.world.images.get(image), Some(ImageSeen::Present))
    }

    fn present_of(&self, part: &Part) -> bool {
        self.spec.image_of(part).is_some_and(|(image, _)| self.present(image))
    }

    /// Whether the back-off after the last trouble with this revision is over.
    fn rested(&self, part: &Part, plan: &mut Plan) -> bool {
        let due = match self.seen.trouble_of(part) {
            Some(trouble) if trouble.revision == self.revision => {
                trouble.at + backoff(trouble.count)
            }
            _ => return true,
        };
        if due > self.now {
            plan.wake_at(due);
        }
        due <= self.now
    }
}

/// Of several that fit, the one nearest to serving.
fn rank(container: &ContainerSeen) -> u8 {
    match container.state {
        ContainerState::Running { health: Health::Ready, .. } if container.serves() => 6,
        ContainerState::Running { health: Health::Ready, .. } => 5,
        ContainerState::Running { .. } => 4,
        ContainerState::Stopping { .. } => 3,
        ContainerState::Frozen { .. } => 2,
        ContainerState::Prepared => 1,
        ContainerState::Exited(_) => 0,
    }
}
