//! What must hold in every state of the world. Used by property tests, by the simulator
//! after each step, and by `serve` as an alarm in production.

use std::fmt;

use crate::fleet::{ContainerState, Fleet, FleetSeen, Health, Plan, Step, TrafficState};
use crate::ids::Ordinal;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub rule: &'static str,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.seen)
    }
}

fn broken(rule: &'static str, seen: impl fmt::Display) -> Violation {
    Violation { rule, seen: seen.to_string() }
}

/// Checks a plan against the world it was made for.
pub fn check_plan(fleet: &Fleet, seen: &FleetSeen, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    if plan.generation != fleet.generation {
        found.push(broken("a plan carries its Fleet's generation", plan.generation));
    }
    floor(fleet, seen, plan, &mut found);
    for step in &plan.steps {
        match step {
            Step::Stop { ordinal, container, .. } => {
                let open = container_of(seen, *ordinal, container.as_str())
                    .is_some_and(|c| c.traffic != TrafficState::Detached);
                if open {
                    found.push(broken("nothing is stopped that may get requests", step));
                }
            }
            Step::Attach { ordinal, container } => {
                let ready = container_of(seen, *ordinal, container.as_str()).is_some_and(|c| {
                    matches!(c.state, ContainerState::Running { health: Health::Ready, .. })
                });
                if !ready {
                    found.push(broken("only what is ready gets requests", step));
                }
            }
            Step::Start { ordinal, container } => {
                let other = seen
                    .instances
                    .get(ordinal)
                    .is_some_and(|i| i.containers.iter().any(|c| c.alive() && c.id != *container));
                if other {
                    found.push(broken("one Container of an Instance runs at a time", step));
                }
            }
            Step::RemoveSandbox { ordinal } => {
                let alive = seen
                    .instances
                    .get(ordinal)
                    .is_some_and(|i| i.containers.iter().any(|c| c.alive()));
                if alive {
                    found.push(broken("no Sandbox is removed under a running Container", step));
                }
            }
            Step::Pull { .. }
            | Step::CreateSandbox { .. }
            | Step::Prepare { .. }
            | Step::Detach { .. }
            | Step::Discard { .. } => {}
        }
    }
    found
}

/// Draining leaves at least the floor in service, counting what serves of the wanted size.
fn floor(fleet: &Fleet, seen: &FleetSeen, plan: &Plan, found: &mut Vec<Violation>) {
    let serving = |ordinal: &Ordinal| ordinal.0 < fleet.instances && seen.serves(*ordinal);
    let now = seen.instances.keys().filter(|o| serving(o)).count();
    let leaving = plan
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Detach { ordinal, container, .. } => Some((ordinal, container)),
            _ => None,
        })
        .filter(|(ordinal, container)| {
            // One whose probe failed is out of service already.
            serving(ordinal)
                && container_of(seen, **ordinal, container.as_str()).is_some_and(|c| c.serves())
        })
        .count();
    if leaving > 0 && now - leaving < fleet.floor() as usize {
        found.push(broken(
            "our decisions leave at least the floor in service",
            format!("{now} serving, {leaving} leaving, floor {}", fleet.floor()),
        ));
    }
}

fn container_of<'a>(
    seen: &'a FleetSeen,
    ordinal: Ordinal,
    id: &str,
) -> Option<&'a crate::fleet::ContainerSeen> {
    seen.instances.get(&ordinal)?.containers.iter().find(|c| c.id.as_str() == id)
}

/// Checks the world itself.
pub fn check_world(seen: &FleetSeen) -> Vec<Violation> {
    let mut found = Vec::new();
    for (ordinal, instance) in &seen.instances {
        let running = instance.containers.iter().filter(|c| c.alive()).count();
        if running > 1 {
            found.push(broken(
                "one Container of an Instance runs at a time",
                format!("instance {ordinal} has {running}"),
            ));
        }
        for container in &instance.containers {
            let gone = !matches!(container.state, ContainerState::Running { .. });
            if container.traffic == TrafficState::Attached
                && gone
                && !matches!(container.state, ContainerState::Exited(exit) if !exit.intended)
            {
                found.push(broken("nothing gets requests after its stop began", &container.id));
            }
        }
    }
    found
}
