//! How many Instances may still be taken out of service, and in which order.

use super::{Fleet, FleetSeen, InstanceSeen, Revision};
use crate::ids::Ordinal;

/// Instances that may still be taken out of service by this plan.
pub(super) struct Budget {
    left: u32,
}

impl Budget {
    /// Counts every wanted Instance out of service now, whoever caused it, so that a bad
    /// Release halts itself.
    pub(super) fn new(fleet: &Fleet, seen: &FleetSeen) -> Self {
        let serving = (0..fleet.instances).filter(|n| seen.serves(Ordinal(*n))).count();
        let out = fleet.instances - u32::try_from(serving).unwrap_or(fleet.instances);
        Self { left: fleet.may_be_out().saturating_sub(out) }
    }

    /// Asks to take one serving Instance out.
    pub(super) fn take(&mut self) -> bool {
        let granted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        granted
    }
}

/// The order in which Instances are looked at: what is under way or out of service first,
/// so that an upgrade begun is finished before the next one begins; then from the last to
/// the first.
pub(super) fn order(fleet: &Fleet, seen: &FleetSeen) -> Vec<Ordinal> {
    let mut ordinals: Vec<Ordinal> = (0..fleet.instances).rev().map(Ordinal).collect();
    ordinals.sort_by_key(|ordinal| {
        let Some(revision) = fleet.wanted(*ordinal) else { return 2 };
        match seen.instances.get(ordinal) {
            Some(instance) if instance.serving().is_none() => 0,
            Some(instance) if under_way(instance, revision) => 1,
            _ => 2,
        }
    });
    ordinals
}

fn under_way(instance: &InstanceSeen, wanted: Revision) -> bool {
    instance.serving().is_some_and(|c| c.revision != wanted)
        && instance.containers.iter().any(|c| c.revision == wanted)
}
