//! Where an Instance is on its way, in words. Pure, and for people only.

use stead_core::api::Doing;
use stead_core::fleet::{
    ContainerSeen, ContainerState, Fleet, FleetSeen, Health, Part, TrafficState, Way,
};
use stead_core::ids::Ordinal;
use stead_core::time::Time;

/// The step that the Instance is in; `None` for one that is as it shall be.
pub(super) fn doing(fleet: &Fleet, seen: &FleetSeen, ordinal: Ordinal) -> Option<Doing> {
    let say = |what: String, since: Option<Time>| Some(Doing { what, since });
    let Some(wanted) = fleet.wanted(ordinal) else {
        return say("it is going".to_owned(), None);
    };
    let Some(instance) = seen.instances.get(&ordinal) else {
        return say("it is to be made".to_owned(), None);
    };
    let old = instance.mains().find(|c| c.exists() && c.revision != wanted);
    let fresh = instance.mains().filter(|c| c.revision == wanted).last();
    let Some(fresh) = fresh else {
        // Nothing has begun: how it will change, unless others go first.
        return match fleet.way(seen, ordinal)? {
            Way::Create => say("it is being made".to_owned(), None),
            Way::Keep => None,
            Way::Update => say("its settings are about to change".to_owned(), None),
            Way::Handover => say("handover: it is its turn soon".to_owned(), None),
            Way::InPlace { because: None } => say("in place: it is its turn soon".to_owned(), None),
            Way::InPlace { because: Some(why) } => {
                say(format!("in place, because {why}: it is its turn soon"), None)
            }
            Way::Recreate { .. } => say("a new sandbox: it is its turn soon".to_owned(), None),
        };
    };
    let beside = old.is_some_and(|old| old.slot != fresh.slot);
    let how = match (old, beside) {
        (Some(_), true) => "handover: ",
        (Some(_), false) => "in place: ",
        (None, _) => "",
    };
    let slot = if beside { format!(" in slot {}", fresh.slot) } else { String::new() };
    let state = |what: &str, since| say(format!("{how}the new container {what}{slot}"), since);
    match (&fresh.state, fresh.traffic) {
        (ContainerState::Prepared, _) => state("is prepared", None),
        (ContainerState::Running { since, health: Health::Starting }, _) => {
            state("is starting", Some(*since))
        }
        (ContainerState::Running { since, health: Health::Ready }, TrafficState::Detached) => {
            state("is ready, and is about to get requests", Some(*since))
        }
        (ContainerState::Running { since, health: Health::Unready | Health::Dead }, _) => {
            say("its readiness probe fails".to_owned(), Some(*since))
        }
        (ContainerState::Exited(exit), _) => state("ended", Some(exit.at)),
        (ContainerState::Stopping { since }, _) => state("stops", Some(*since)),
        (ContainerState::Frozen { since }, _) => state("stands still, to be thawed", Some(*since)),
        (ContainerState::Running { .. }, _) => match old {
            Some(old) => leaving(old, how),
            None => sidecars(fleet, seen, ordinal),
        },
    }
}

/// What is still to happen with the old Container once the new one has the requests.
fn leaving(old: &ContainerSeen, how: &str) -> Option<Doing> {
    let say =
        |what: &str, since| Some(Doing { what: format!("{how}the old container {what}"), since });
    match (&old.state, old.traffic) {
        // It stands by; nothing more is to happen.
        (ContainerState::Frozen { .. }, _) => None,
        (ContainerState::Stopping { since }, _) => say("stops", Some(*since)),
        (_, TrafficState::Draining) => say("finishes what it has", None),
        _ => say("is about to stop", None),
    }
}

fn sidecars(fleet: &Fleet, seen: &FleetSeen, ordinal: Ordinal) -> Option<Doing> {
    let revision = fleet.wanted(ordinal)?;
    let spec = fleet.releases.get(&revision.release)?;
    let instance = seen.instances.get(&ordinal)?;
    let late = spec
        .parts()
        .filter(|part| !part.is_main())
        .find(|part| !instance.of(part).any(|c| c.revision == revision && c.ready()))?;
    let Part::Sidecar(name) = &late else { return None };
    let since = instance.of(&late).find_map(|c| match c.state {
        ContainerState::Running { since, .. } => Some(since),
        _ => None,
    });
    Some(Doing { what: format!("sidecar {name} is not ready yet"), since })
}
