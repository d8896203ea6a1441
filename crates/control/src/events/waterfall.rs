//! Where a Rollout's time went, read from the events of its phases.

use std::collections::BTreeMap;

use stead_core::api::{Bar, Decision, Record, Waterfall};
use stead_core::event::{Event, Fact, PhaseName};
use stead_core::ids::Ordinal;
use stead_core::rollout::Phase;
use stead_core::time::{Micros, Time};

/// An engine may note the end of a phase a moment after the Rollout was seen to be over.
pub(crate) const SLACK: Micros = Micros::from_secs(2);

/// When a Rollout had changed every Instance, or ended otherwise; `None` while it goes on. How
/// long it was watched after that is not time it took.
pub(crate) fn ended(record: &Record) -> Option<Time> {
    match &record.rollout.phase {
        Phase::Watching { since, .. } => Some(*since),
        Phase::Done { at } => {
            let watching = |decision: &&Decision| decision.phase == "watching";
            Some(record.decisions.iter().find(watching).map_or(*at, |decision| decision.at))
        }
        Phase::Undone { at, .. } | Phase::Held { at, .. } | Phase::Superseded { at } => Some(*at),
        Phase::Pulling | Phase::Progressing { .. } | Phase::Undoing { .. } => None,
    }
}

/// How long a Rollout took; `None` while it goes on.
pub(crate) fn total(record: &Record) -> Option<Micros> {
    ended(record).map(|end| end.since(record.rollout.started))
}

/// The bars of a Rollout, from the Events noted while it went on.
pub(crate) fn bars(record: &Record, events: &[Event]) -> Vec<Bar> {
    let end = ended(record).unwrap_or(Time(u64::MAX));
    let started = record.rollout.started;
    let mut bars: Vec<Bar> = events
        .iter()
        .filter_map(|event| match &event.fact {
            Fact::Phase { phase, begun, took } if (started..=end).contains(begun) => Some(Bar {
                instance: event.instance,
                phase: *phase,
                offset: begun.since(started),
                took: *took,
                critical: false,
            }),
            _ => None,
        })
        .collect();
    bars.sort_by_key(|bar| (bar.offset, bar.instance, bar.phase));
    mark_critical(&mut bars, total(record));
    bars
}

/// The waterfall of a Rollout, beside the one `before` it with its bars.
pub(crate) fn build(
    record: &Record,
    bars: Vec<Bar>,
    before: Option<(&Record, &[Bar])>,
) -> Waterfall {
    let mut before_phases = BTreeMap::<PhaseName, Micros>::new();
    for bar in before.iter().flat_map(|(_, bars)| *bars) {
        before_phases.entry(bar.phase).or_default().0 += bar.took.0;
    }
    let before = before.and_then(|(before, _)| total(before));
    let rollout = record.rollout.clone();
    Waterfall { total: total(record), before, before_phases, bars, rollout }
}

/// Marks the chain that decided the end: the last bar to end, before it the last one that had
/// ended when it began, and so on. Of two, the one of the same Instance.
fn mark_critical(bars: &mut [Bar], total: Option<Micros>) {
    // What was noted a moment later had ended by then.
    const BLUR: u64 = 1_000;
    let end = |bar: &Bar| bar.offset.0 + bar.took.0;
    // What goes on after the end (the old Container stops) has not decided it.
    let within = |bar: &&mut Bar| total.is_none_or(|total| end(bar) <= total.0 + BLUR);
    let mut left: Vec<&mut Bar> = bars.iter_mut().filter(within).collect();
    let mut next: Option<(u64, Option<Ordinal>)> = None;
    loop {
        let fits = |bar: &Bar| {
            next.is_none_or(|(begun, _)| end(bar) <= begun + BLUR && bar.offset.0 < begun)
        };
        let same = |bar: &Bar| next.is_some_and(|(_, instance)| bar.instance == instance);
        let best = (0..left.len())
            .filter(|at| fits(left[*at]))
            .max_by_key(|at| (end(left[*at]) / BLUR, same(left[*at]), end(left[*at])));
        let Some(best) = best else { return };
        let bar = left.swap_remove(best);
        bar.critical = true;
        next = Some((bar.offset.0, bar.instance));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_critical_chain_leads_from_the_end_to_the_start() {
        let bar = |instance: Option<u32>, phase, offset, took| Bar {
            instance: instance.map(Ordinal),
            phase,
            offset: Micros::from_millis(offset),
            took: Micros::from_millis(took),
            critical: false,
        };
        let mut bars = [
            bar(None, PhaseName::Pull, 0, 100),
            bar(Some(0), PhaseName::Prepare, 100, 10),
            bar(Some(1), PhaseName::Prepare, 100, 5),
            bar(Some(1), PhaseName::Ready, 105, 20),
            bar(Some(0), PhaseName::Ready, 110, 90),
            bar(Some(0), PhaseName::Stop, 200, 900),
        ];
        mark_critical(&mut bars, Some(Micros::from_millis(200)));
        let marked: Vec<bool> = bars.iter().map(|bar| bar.critical).collect();
        assert_eq!(marked, [true, true, false, false, true, false]);
    }
}
