//! What must hold in every state of the world. Used by property tests, by the simulator
//! after each step, and by `serve` as an alarm in production.

use std::collections::BTreeSet;
use std::fmt;

use crate::app::App;
use crate::fleet::{
    ContainerSeen, ContainerState, Fallback, Fleet, FleetSeen, Health, Part, Plan, ReleaseSpec,
    Slot, Step, TrafficState,
};
use crate::ids::{Ordinal, ReleaseNo};
use crate::rollout::Wanted;

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
        if let Some(ordinal) = step.ordinal() {
            if let Step::CreateSandbox { .. } | Step::Prepare { .. } = step
                && fleet.wanted(ordinal).is_none()
            {
                found.push(broken("there are no more Instances than wanted and surge", step));
            }
            if fleet.paused && begins_change(fleet, seen, ordinal, step) {
                found.push(broken("a paused Rollout begins nothing", step));
            }
        }
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
            Step::Start { ordinal, container } | Step::Thaw { ordinal, container, .. } => {
                if let Some(clash) = start_clash(fleet, seen, *ordinal, container.as_str()) {
                    found.push(broken(clash, step));
                }
            }
            Step::Prepare { ordinal, part: Part::Main, slot, revision } => {
                let frozen = seen.instances.get(ordinal).is_some_and(|instance| {
                    instance.mains().any(|c| c.slot == *slot && c.is_frozen())
                });
                if frozen {
                    found.push(broken("nothing is put where something stands", step));
                }
                let alone = fleet.releases.get(&revision.release).and_then(ReleaseSpec::alone);
                if alone == Some(Fallback::Sidecars) && *slot != Slot::A {
                    found.push(broken("the app stands beside its sidecars", step));
                }
            }
            Step::Freeze { ordinal, container } => {
                let open = container_of(seen, *ordinal, container.as_str())
                    .is_none_or(|c| c.traffic != TrafficState::Detached || !c.part.is_main());
                if open {
                    found.push(broken("only a main container without requests is frozen", step));
                }
            }
            Step::Discard { ordinal, container } => {
                let open = container_of(seen, *ordinal, container.as_str())
                    .is_some_and(|c| c.exists() || c.traffic != TrafficState::Detached);
                if open {
                    found.push(broken("nothing is discarded that may get requests", step));
                }
            }
            Step::RemoveSandbox { ordinal } => {
                let used = |c: &ContainerSeen| c.exists() || c.traffic != TrafficState::Detached;
                let instance = seen.instances.get(ordinal);
                if instance.is_some_and(|i| i.containers.iter().any(used)) {
                    found.push(broken("no Sandbox is removed under a Container in use", step));
                }
            }
            Step::Pull { .. }
            | Step::CreateSandbox { .. }
            | Step::Prepare { .. }
            | Step::Update { .. }
            | Step::Hook { .. }
            | Step::Detach { .. } => {}
        }
    }
    found
}

/// Whether a step begins to change an Instance that serves well, and of which nothing new is
/// there yet.
fn begins_change(fleet: &Fleet, seen: &FleetSeen, ordinal: Ordinal, step: &Step) -> bool {
    let Some(revision) = fleet.wanted(ordinal) else { return false };
    let Some(instance) = seen.instances.get(&ordinal) else {
        return fleet.surplus().any(|surplus| surplus == ordinal);
    };
    let untouched = instance.serving().is_some_and(|c| c.revision != revision)
        && instance.mains().all(|c| c.revision != revision || c.is_frozen())
        // Of two that run, one takes over from the other.
        && instance.mains().filter(|c| c.alive()).count() == 1;
    let serves = step.container().is_some_and(|id| instance.serving().is_some_and(|c| c.id == *id));
    untouched
        && match step {
            Step::Prepare { part: Part::Main, .. } | Step::Thaw { .. } => true,
            Step::Update { .. } | Step::Detach { .. } | Step::Hook { .. } => serves,
            _ => false,
        }
}

/// Checks what an App's intent was made into.
pub fn check_wanted(app: &App, wanted: &Wanted) -> Vec<Violation> {
    let mut found = Vec::new();
    let fleet = &wanted.fleet;
    let runs: BTreeSet<ReleaseNo> =
        fleet.ordinals().filter_map(|ordinal| Some(fleet.wanted(ordinal)?.release)).collect();
    if let Some(missing) = runs.iter().find(|release| !fleet.releases.contains_key(release)) {
        found.push(broken("an engine knows every Release that it shall run", missing));
    }
    if wanted.site.is_some() && fleet.instances + fleet.surge > 0 {
        found.push(broken("a site has no Instances", &app.key));
    }
    let site = wanted.site.iter().flat_map(|site| std::iter::once(site.now).chain(site.before));
    for release in site.filter(|release| !fleet.releases.contains_key(release)) {
        found.push(broken("an engine keeps the files of every Release that is served", release));
    }
    let splits = wanted.routing.iter().map(|routing| &routing.split);
    let weighed = splits.clone().flat_map(|split| &split.weights);
    for weight in weighed.filter(|weight| weight.weight > 0) {
        if !fleet.releases.contains_key(&weight.release) {
            found.push(broken("weights name Releases that an engine knows", weight.release));
        }
    }
    // A gateway falls back where a Release has no Backend, but not where nothing is weighed.
    let split = splits.filter(|split| !split.weights.is_empty());
    if split.into_iter().any(|split| split.weights.iter().all(|weight| weight.weight == 0)) {
        found.push(broken("some Release has a weight", &app.key));
    }
    found
}

/// Why a Container may not run beside what runs already.
fn start_clash(
    fleet: &Fleet,
    seen: &FleetSeen,
    ordinal: Ordinal,
    id: &str,
) -> Option<&'static str> {
    let instance = seen.instances.get(&ordinal)?;
    let starting = container_of(seen, ordinal, id)?;
    let beside: Vec<&ContainerSeen> =
        instance.of(&starting.part).filter(|c| c.alive() && c.id.as_str() != id).collect();
    if beside.iter().any(|c| c.slot == starting.slot) {
        return Some("one Container of a part runs in a slot at a time");
    }
    let release = fleet.wanted(ordinal).unwrap_or(starting.revision).release;
    let alone = fleet.releases.get(&release).and_then(ReleaseSpec::alone);
    (alone.is_some() && !beside.is_empty()).then_some("what cannot run twice does not run twice")
}

/// Draining leaves at least the floor in service, counting what serves of what is wanted.
fn floor(fleet: &Fleet, seen: &FleetSeen, plan: &Plan, found: &mut Vec<Violation>) {
    let leaves = |ordinal: &Ordinal, id: &str| {
        plan.steps.iter().any(|step| {
            matches!(step, Step::Detach { ordinal: of, container, .. }
                if of == ordinal && container.as_str() == id)
        })
    };
    let serving = |ordinal: &Ordinal| fleet.wanted(*ordinal).is_some() && seen.serves(*ordinal);
    let now = seen.instances.keys().filter(|ordinal| serving(ordinal)).count();
    // One whose probe failed is out of service already, and one that is replaced by another of
    // its Instance is not missed.
    let stays = |ordinal: &&Ordinal| {
        seen.instances[*ordinal].mains().any(|c| c.serves() && !leaves(ordinal, c.id.as_str()))
    };
    let then = seen.instances.keys().filter(|ordinal| serving(ordinal)).filter(stays).count();
    if then < now && then < fleet.floor() as usize {
        found.push(broken(
            "our decisions leave at least the floor in service",
            format!("{now} serving, {then} after this plan, floor {}", fleet.floor()),
        ));
    }
}

fn container_of<'a>(seen: &'a FleetSeen, ordinal: Ordinal, id: &str) -> Option<&'a ContainerSeen> {
    seen.instances.get(&ordinal)?.containers.iter().find(|c| c.id.as_str() == id)
}

/// Checks the world itself.
pub fn check_world(seen: &FleetSeen) -> Vec<Violation> {
    let mut found = Vec::new();
    for (ordinal, instance) in &seen.instances {
        for container in instance.containers.iter().filter(|c| c.exists()) {
            let twin = instance.of(&container.part).find(|other| {
                other.id > container.id && other.exists() && other.slot == container.slot
            });
            if let Some(twin) = twin {
                found.push(broken(
                    "one Container of a part runs in a slot at a time",
                    format!("instance {ordinal} has {} and {}", container.id, twin.id),
                ));
            }
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
