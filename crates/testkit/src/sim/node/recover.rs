//! The end of the engine's process, and what the next one makes of what is there.

use stead_core::fleet::{ContainerState, Health, Step, TrafficState};
use stead_core::name::AppKey;
use stead_core::time::Time;

use super::{Due, Held, Node};

impl Node {
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

    /// Whether the engine runs.
    pub fn is_up(&self) -> bool {
        self.up
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
}
