//! What Containers do by themselves or have done to them: they answer, fail, end.

use stead_core::error::UserError;
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{
    ContainerState, Exit, Health, Part, Revision, Step, TrafficState, Trouble,
};
use stead_core::ids::{ContainerId, Ordinal};
use stead_core::name::AppKey;
use stead_core::time::{Micros, Time};

use super::{Fault, Node, WELL_AFTER};
use crate::sim::trouble::exited;

/// How a Container failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Failed {
    /// For how long it had run, when it ended by itself.
    pub(super) ran: Option<Micros>,
    /// Whether it had been ready.
    pub(super) was_ready: bool,
}

impl Node {
    /// Something happens to the running Container of an Instance. False: there is none.
    pub fn fault(&mut self, app: &AppKey, ordinal: Ordinal, fault: Fault, now: Time) -> bool {
        self.advance(now);
        let mut running: Vec<(ContainerId, Health)> = Vec::new();
        if let Some(held) = self.apps.get(app)
            && let Some(instance) = held.seen.instances.get(&ordinal)
        {
            let started = |id| held.processes.get(id).is_some_and(|process| process.started);
            running.extend(instance.containers.iter().filter_map(|c| match c.state {
                ContainerState::Running { health, .. } if started(&c.id) => {
                    Some((c.id.clone(), health))
                }
                _ => None,
            }));
        }
        running.retain(|(_, health)| match fault {
            Fault::Unready => *health == Health::Ready,
            Fault::Recover => *health == Health::Unready,
            Fault::Crash | Fault::Oom | Fault::Dead => true,
        });
        if running.is_empty() {
            return false;
        }
        // Any of its Containers: the old one, the new one, a sidecar.
        let which = self.chance.below(running.len() as u64) as usize;
        let (id, health) = running.swap_remove(which);
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

    /// The readiness probe succeeded for the first time.
    pub(super) fn answered(&mut self, app: &AppKey, id: &ContainerId) {
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
    pub(super) fn ended(&mut self, app: &AppKey, id: &ContainerId, code: i32, oom_killed: bool) {
        let now = self.now;
        let Some(ordinal) = self.ordinal_of(app, id) else { return };
        let Some(container) = self.container_mut(app, id) else { return };
        let (intended, failed) = match container.state {
            ContainerState::Running { since, health } => {
                let was_ready = health != Health::Starting;
                (false, Failed { ran: Some(now.since(since)), was_ready })
            }
            ContainerState::Stopping { .. } => (true, Failed { ran: None, was_ready: false }),
            ContainerState::Prepared
            | ContainerState::Frozen { .. }
            | ContainerState::Exited(_) => return,
        };
        let of = (container.part.clone(), container.revision);
        let attached = container.traffic == TrafficState::Attached;
        let exit = Exit { at: now, code, oom_killed, intended };
        container.state = ContainerState::Exited(exit);
        self.stop_landed(app, ordinal, id);
        self.event(app, Some(ordinal), Some(id), Fact::Exited { exit });
        if !intended {
            let error = exited(code, oom_killed);
            self.trouble(app, ordinal, Some(of), error, failed);
        }
        if attached && self.up {
            self.cut(app, ordinal, id.clone());
        }
        self.dirty.insert(app.clone());
    }

    /// Ends the step that asked a Container to stop.
    fn stop_landed(&mut self, app: &AppKey, ordinal: Ordinal, id: &ContainerId) {
        let Some(held) = self.apps.get_mut(app) else { return };
        let ours = |step: &Step| matches!(step, Step::Stop { container, .. } if container == id);
        let flight = held.flights.iter().find(|(_, f)| ours(&f.step)).map(|(flight, _)| *flight);
        if let Some(landed) = flight.and_then(|flight| held.flights.remove(&flight)) {
            self.timed(app, ordinal, Some(id), PhaseName::Stop, landed.begun);
        }
    }

    /// No gateway shall send requests to what has ended.
    pub(super) fn cut(&mut self, app: &AppKey, ordinal: Ordinal, container: ContainerId) {
        let Some(fleet) = self.fleet(app).cloned() else { return };
        self.begin(app, &fleet, Step::Detach { ordinal, container, drain: Micros(0) });
    }

    pub(super) fn trouble(
        &mut self,
        app: &AppKey,
        ordinal: Ordinal,
        of: Option<(Part, Revision)>,
        error: UserError,
        Failed { ran, was_ready }: Failed,
    ) {
        let now = self.now;
        let Some((part, revision)) = of else { return };
        let Some(held) = self.apps.get_mut(app) else { return };
        let instance = held.seen.instances.entry(ordinal).or_default();
        let count = match instance.trouble_of(&part) {
            Some(before)
                if before.revision == revision && ran.is_none_or(|ran| ran < WELL_AFTER) =>
            {
                before.count + 1
            }
            _ => 1,
        };
        if ran.is_some() && part.is_main() {
            instance.crashes += 1;
        }
        let was_ready = was_ready && part.is_main();
        let trouble = Trouble { revision, error: error.clone(), at: now, count, was_ready };
        match part {
            Part::Main => instance.trouble = Some(trouble),
            Part::Sidecar(name) => drop(instance.sidecar_trouble.insert(name, trouble)),
        }
        self.event(app, Some(ordinal), None, Fact::Trouble { error });
    }
}
