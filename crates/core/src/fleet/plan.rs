//! The planner: what is wanted, what is seen, what to do now.
//!
//! Steps of one plan are independent of each other. A sequence (prepare, drain, stop,
//! start, attach) is not written down anywhere: each step follows from what is seen after
//! the one before, so a crash between any two loses nothing.

use super::budget::{Budget, order};
use super::step::StopCause;
use super::{
    ContainerSeen, ContainerState, Exit, Fleet, FleetSeen, Health, ImageSeen, InstanceSeen, Plan,
    ReleaseSpec, Revision, Step, TrafficState,
};
use crate::ids::Ordinal;
use crate::manifest::Strategy;
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
    for (ordinal, instance) in &seen.instances {
        if fleet.wanted(*ordinal).is_none() {
            retire(fleet, *ordinal, instance, &mut plan);
        }
    }
    let mut budget = Budget::new(fleet, seen);
    let nothing = InstanceSeen::default();
    for ordinal in order(fleet, seen) {
        let Some(revision) = fleet.wanted(ordinal) else { continue };
        let Some(spec) = fleet.releases.get(&revision.release) else { continue };
        let one = Instance {
            fleet,
            spec,
            ordinal,
            revision,
            seen: seen.instances.get(&ordinal).unwrap_or(&nothing),
            image: matches!(seen.images.get(&spec.image), Some(ImageSeen::Present)),
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
        let due = match seen.images.get(&spec.image) {
            Some(ImageSeen::Present) => continue,
            Some(ImageSeen::Failed { at, count, .. }) => *at + backoff(count + 1),
            None => now,
        };
        if planned.contains(&&spec.image) {
            continue;
        }
        if due <= now {
            planned.push(&spec.image);
            plan.steps.push(Step::Pull { release: *release });
        } else {
            plan.wake_at(due);
        }
    }
}

/// One step further in taking an Instance away that is not wanted any more.
fn retire(fleet: &Fleet, ordinal: Ordinal, instance: &InstanceSeen, plan: &mut Plan) {
    let mut ended = true;
    for container in &instance.containers {
        if container.alive() {
            ended = false;
            take_out(fleet, ordinal, container, None, plan);
        }
    }
    if ended {
        plan.steps.push(Step::RemoveSandbox { ordinal });
    }
}

/// One step further in ending a running Container: drained first, stopped then.
fn take_out(
    fleet: &Fleet,
    ordinal: Ordinal,
    container: &ContainerSeen,
    because: Option<StopCause>,
    plan: &mut Plan,
) {
    let spec = fleet.releases.get(&container.revision.release).or_else(|| fleet.target_spec());
    let grace = spec.map_or(Micros::from_secs(30), ReleaseSpec::grace);
    match (container.traffic, &container.state) {
        (TrafficState::Attached, _) => {
            plan.steps.push(Step::Detach { ordinal, container: container.id.clone(), drain: grace })
        }
        (TrafficState::Detached, ContainerState::Running { .. }) => {
            plan.steps.push(Step::Stop { ordinal, container: container.id.clone(), grace, because })
        }
        // Its acknowledgement is awaited.
        (TrafficState::Draining, _) | (TrafficState::Detached, _) => {}
    }
}

/// One wanted Instance and what is known of it.
struct Instance<'a> {
    fleet: &'a Fleet,
    spec: &'a ReleaseSpec,
    ordinal: Ordinal,
    revision: Revision,
    seen: &'a InstanceSeen,
    image: bool,
    now: Time,
}

impl Instance<'_> {
    fn plan(&self, budget: &mut Budget, plan: &mut Plan) {
        let ordinal = self.ordinal;
        let Some(sandbox) = &self.seen.sandbox else {
            // Beside the pull, not after it.
            if self.rested(plan) {
                plan.steps.push(Step::CreateSandbox { ordinal, revision: self.revision });
            }
            return;
        };
        let replace = sandbox.shape != self.spec.shape()
            || (self.fleet.strategy() == Strategy::Recreate && sandbox.made_for != self.revision);
        if replace {
            self.recreate(budget, plan);
        } else {
            self.in_place(budget, plan);
        }
    }

    /// A new Sandbox is wanted: what is in the old one goes first.
    fn recreate(&self, budget: &mut Budget, plan: &mut Plan) {
        // Nothing is taken away for an image that is not there.
        if !self.image || (self.seen.serving().is_some() && !budget.take()) {
            return;
        }
        retire(self.fleet, self.ordinal, self.seen, plan);
    }

    /// The Sandbox stays; its Container is brought to the wanted revision.
    fn in_place(&self, budget: &mut Budget, plan: &mut Plan) {
        let ordinal = self.ordinal;
        let mut new = None;
        let mut old = Vec::new();
        for container in &self.seen.containers {
            match container.state {
                ContainerState::Exited(exit) if self.stays_ended(container, exit) => return,
                ContainerState::Exited(_) => self.discard(container, plan),
                _ if container.revision == self.revision => new = Some(container),
                ContainerState::Prepared => self.discard(container, plan),
                _ => old.push(container),
            }
        }
        let Some(new) = new else {
            let free = self.seen.serving().is_none() || budget.take();
            if free && self.image && self.rested(plan) {
                plan.steps.push(Step::Prepare { ordinal, revision: self.revision });
            }
            return;
        };
        match new.state {
            ContainerState::Prepared if old.is_empty() => {
                plan.steps.push(Step::Start { ordinal, container: new.id.clone() });
            }
            ContainerState::Prepared => {
                if self.seen.serving().is_none() || budget.take() {
                    for container in old {
                        take_out(self.fleet, ordinal, container, None, plan);
                    }
                }
            }
            ContainerState::Running { since, health } => self.running(new, since, health, plan),
            ContainerState::Stopping { .. } | ContainerState::Exited(_) => {}
        }
    }

    fn running(&self, container: &ContainerSeen, since: Time, health: Health, plan: &mut Plan) {
        let (ordinal, id) = (self.ordinal, container.id.clone());
        match (health, container.traffic) {
            (Health::Ready, TrafficState::Detached) => {
                plan.steps.push(Step::Attach { ordinal, container: id });
            }
            (Health::Unready, TrafficState::Attached) => {
                plan.steps.push(Step::Detach { ordinal, container: id, drain: self.spec.grace() });
            }
            (Health::Starting, _) => {
                let deadline = since + self.spec.startup_timeout();
                if deadline <= self.now {
                    let because = Some(StopCause::NeverReady);
                    take_out(self.fleet, ordinal, container, because, plan);
                } else {
                    plan.wake_at(deadline);
                }
            }
            (Health::Dead, _) => {
                let because = Some(StopCause::NotAlive);
                take_out(self.fleet, ordinal, container, because, plan);
            }
            (Health::Ready | Health::Unready, _) => {}
        }
    }

    /// Whether the Container ran what is wanted, ended by itself, and shall not run again.
    fn stays_ended(&self, container: &ContainerSeen, exit: Exit) -> bool {
        let again = self.spec.runs_again_after(exit);
        container.revision == self.revision && !exit.intended && !again
    }

    fn discard(&self, container: &ContainerSeen, plan: &mut Plan) {
        let container = container.id.clone();
        plan.steps.push(Step::Discard { ordinal: self.ordinal, container });
    }

    /// Whether the back-off after the last trouble with this revision is over.
    fn rested(&self, plan: &mut Plan) -> bool {
        let due = match &self.seen.trouble {
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
