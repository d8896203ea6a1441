//! How many Instances may change now, and in which order.

use super::{ContainerSeen, Fleet, FleetSeen, InstanceSeen, Part, ReleaseSpec};
use crate::ids::Ordinal;

/// What this plan may still begin.
pub(super) struct Budget {
    /// Serving Instances that may be taken out of service.
    out: u32,
    /// Instances that may begin to change beside what serves.
    beside: u32,
    /// Instances that are not wanted and may serve on, each in the place of one that is wanted
    /// and does not serve yet.
    stand_ins: u32,
    /// Bytes of memory that nothing of this plan has asked for; `None` where it is not known.
    pub(super) free: Option<u64>,
}

impl Budget {
    /// Counts every wanted Instance out of service now, whoever caused it, so that a bad
    /// Release halts itself.
    pub(super) fn new(fleet: &Fleet, seen: &FleetSeen) -> Self {
        let wanted = || fleet.ordinals().chain(fleet.surplus());
        let release = fleet.heading.map(|heading| heading.release);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let serving = count(wanted().filter(|ordinal| seen.serves(*ordinal)).count());
        // What is out of service counts too: a Release that does not become ready halts itself.
        // One that shall not change yet says nothing of it, and must not hold it up.
        let concerned = |o: &Ordinal| fleet.wanted(*o).map(|w| w.release) == release;
        let waits = fleet.ordinals().filter(|o| !seen.serves(*o) && concerned(o));
        let out_now = count(waits.count());
        let changing = count(wanted().filter(|o| under_way(fleet, seen, *o)).count());
        let beside = fleet.at_once().saturating_sub(changing.saturating_add(out_now));
        // What is known to be good comes back whatever else is out of service.
        let least = u32::from(fleet.returning && changing == 0);
        Self {
            out: serving.saturating_sub(fleet.floor()),
            beside: beside.max(least),
            stand_ins: fleet.instances.saturating_sub(serving),
            free: seen.memory.map(|memory| memory.free),
        }
    }

    /// Asks to take one serving Instance out.
    pub(super) fn take(&mut self) -> bool {
        spend(&mut self.out)
    }

    /// Asks to change one Instance that goes on serving meanwhile.
    pub(super) fn begin(&mut self) -> bool {
        spend(&mut self.beside)
    }

    /// The same for a second main Container, whose memory is then set aside.
    pub(super) fn begin_beside(&mut self, spec: &ReleaseSpec) -> bool {
        let granted = self.begin();
        if granted {
            let needed = spec.settings.resources.memory.map_or(0, |memory| memory.bytes());
            self.free = self.free.map(|free| free.saturating_sub(needed));
        }
        granted
    }

    /// Asks to let an Instance serve on that is not wanted any more.
    pub(super) fn stand_in(&mut self) -> bool {
        spend(&mut self.stand_ins)
    }
}

/// Takes one of what is left, if anything is.
fn spend(left: &mut u32) -> bool {
    let granted = *left > 0;
    *left = left.saturating_sub(1);
    granted
}

/// The order in which Instances are looked at: what is under way or out of service first,
/// so that an upgrade begun is finished before the next one begins; then as the Release
/// that the App is going to has it.
pub(super) fn order(fleet: &Fleet, seen: &FleetSeen) -> Vec<Ordinal> {
    let mut ordinals: Vec<Ordinal> = fleet.ordinals().collect();
    if let Some(spec) = fleet.heading_spec() {
        ordinals = spec.settings.rollout.order(&ordinals);
    }
    // What stands in for others comes first.
    ordinals.splice(0..0, fleet.surplus());
    ordinals.sort_by_key(|ordinal| {
        let serving = seen.instances.get(ordinal).and_then(InstanceSeen::serving);
        match serving {
            None if seen.instances.contains_key(ordinal) => 0,
            _ if under_way(fleet, seen, *ordinal) => 1,
            _ => 2,
        }
    });
    ordinals
}

/// Whether the Instance serves something else than what it shall run, which is there already;
/// or serves while one of its sidecars is on its way.
fn under_way(fleet: &Fleet, seen: &FleetSeen, ordinal: Ordinal) -> bool {
    let Some(revision) = fleet.wanted(ordinal) else { return false };
    let Some(instance) = seen.instances.get(&ordinal) else { return false };
    let Some(serving) = instance.serving() else { return false };
    // What stands still may be what is wanted, and is still to be begun with.
    let begun = |part: &Part| instance.of(part).any(|c| c.revision == revision && !c.is_frozen());
    let changes = serving.revision != revision && begun(&Part::Main);
    let parts = fleet.releases.get(&revision.release).into_iter().flat_map(ReleaseSpec::parts);
    let mut sidecars = parts.filter(|part| !part.is_main());
    let missing = |part: &Part| !instance.of(part).any(ContainerSeen::ready);
    changes || sidecars.any(|part| begun(&part) && missing(&part))
}
