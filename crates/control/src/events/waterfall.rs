//! Where a Rollout's time went, read from the events of its phases.

use stead_core::api::{Bar, Waterfall};
use stead_core::event::{Event, Fact};
use stead_core::rollout::{Phase, Rollout};
use stead_core::time::{Micros, Time};

/// An engine may note the end of a phase a moment after the Rollout was seen to be over.
pub(crate) const SLACK: Micros = Micros::from_secs(2);

/// When a Rollout ended; `None` while it goes on.
pub(crate) fn ended(rollout: &Rollout) -> Option<Time> {
    match &rollout.phase {
        // What is watched has reached every Instance.
        Phase::Watching { since: at, .. }
        | Phase::Done { at }
        | Phase::Undone { at, .. }
        | Phase::Held { at, .. }
        | Phase::Superseded { at } => Some(*at),
        Phase::Pulling | Phase::Progressing { .. } | Phase::Undoing { .. } => None,
    }
}

/// How long a Rollout took; `None` while it goes on.
pub(crate) fn total(rollout: &Rollout) -> Option<Micros> {
    ended(rollout).map(|end| end.since(rollout.started))
}

/// The waterfall of `rollout`, from the Events noted while it went on.
pub(crate) fn build(rollout: Rollout, events: &[Event], before: Option<&Rollout>) -> Waterfall {
    let end = ended(&rollout).unwrap_or(Time(u64::MAX));
    let mut bars: Vec<Bar> = events
        .iter()
        .filter_map(|event| match &event.fact {
            Fact::Phase { phase, begun, took } if (rollout.started..=end).contains(begun) => {
                Some(Bar {
                    instance: event.instance,
                    phase: *phase,
                    offset: begun.since(rollout.started),
                    took: *took,
                })
            }
            _ => None,
        })
        .collect();
    bars.sort_by_key(|bar| (bar.offset, bar.instance, bar.phase));
    Waterfall { total: total(&rollout), before: before.and_then(total), bars, rollout }
}
