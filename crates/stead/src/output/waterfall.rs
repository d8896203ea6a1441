//! A Rollout's phases drawn as bars over its time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use stead_core::api::{Bar, Waterfall};
use stead_core::event::PhaseName;
use stead_core::time::Micros;

use super::{Table, human};

/// Width of the drawing, in characters.
const WIDTH: u64 = 40;

/// The drawing, one line per phase, with a heading and the total.
pub(crate) fn draw(waterfall: &Waterfall) -> String {
    let rollout = &waterfall.rollout;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "rollout {} ({}, release {}): {}",
        rollout.number,
        kind(rollout.kind),
        rollout.to.release,
        rollout.phase.name()
    );
    let end = |bar: &Bar| bar.offset.0 + bar.took.0;
    let span = waterfall.bars.iter().map(end).max().unwrap_or(0);
    let span = span.max(waterfall.total.map_or(0, |total| total.0)).max(1);
    for bar in &waterfall.bars {
        let who = bar.instance.map_or("-".to_owned(), |instance| instance.to_string());
        let _ = writeln!(
            out,
            "{who:>4}{} {:<8} {:>10} {:>10}  |{}|",
            if bar.critical { '*' } else { ' ' },
            bar.phase.as_str(),
            format!("+{}", bar.offset),
            bar.took.to_string(),
            cells(bar, span)
        );
    }
    match waterfall.total {
        Some(total) => {
            let _ = write!(out, "total {total}");
            if let Some(before) = waterfall.before {
                let _ = write!(out, ", the release before took {before}");
            }
            if waterfall.bars.iter().any(|bar| bar.critical) {
                out.push_str("\n* decided how long it took");
            }
        }
        None => out.push_str("still under way"),
    }
    if !waterfall.before_phases.is_empty() {
        out.push_str(&format!("\n\n{}", beside(waterfall)));
    }
    out
}

/// Each phase over all Instances, beside the same of the Release before.
fn beside(waterfall: &Waterfall) -> String {
    let now = sums(&waterfall.bars);
    let mut table = Table::new(["PHASE", "NOW", "BEFORE"], "");
    let before = &waterfall.before_phases;
    let phases: BTreeSet<_> = now.keys().chain(before.keys()).collect();
    for phase in phases {
        let (now, before) = (now.get(phase), before.get(phase));
        table.row([phase.as_str().to_owned(), human::or_dash(now), human::or_dash(before)]);
    }
    table.finish()
}

fn sums(bars: &[Bar]) -> BTreeMap<PhaseName, Micros> {
    let mut sums = BTreeMap::<PhaseName, Micros>::new();
    for bar in bars {
        sums.entry(bar.phase).or_default().0 += bar.took.0;
    }
    sums
}

fn kind(kind: stead_core::rollout::RolloutKind) -> &'static str {
    use stead_core::rollout::RolloutKind;
    match kind {
        RolloutKind::Deploy => "deploy",
        RolloutKind::Rollback => "rollback",
        RolloutKind::Restart => "restart",
        RolloutKind::Config => "config",
    }
}

/// One bar; however short, it has one cell.
fn cells(bar: &Bar, span: u64) -> String {
    let at = |micros: u64| usize::try_from(micros * WIDTH / span).unwrap_or(0);
    let width = usize::try_from(WIDTH).unwrap_or(0);
    let start = at(bar.offset.0).min(width - 1);
    let end = at(bar.offset.0 + bar.took.0).clamp(start + 1, width);
    format!("{}{}{}", " ".repeat(start), "#".repeat(end - start), " ".repeat(width - end))
}

/// The sum of each phase over all Instances, longest first, on one line.
pub(crate) fn summary(bars: &[Bar]) -> String {
    let mut sums: Vec<_> = sums(bars).into_iter().filter(|(_, took)| took.0 > 0).collect();
    sums.sort_by_key(|(phase, took)| (std::cmp::Reverse(*took), *phase));
    let parts: Vec<String> =
        sums.iter().map(|(phase, took)| format!("{} {took}", phase.as_str())).collect();
    human::plain(&parts.join(", "))
}

#[cfg(test)]
mod tests {
    use stead_core::event::PhaseName;
    use stead_core::fleet::Revision;
    use stead_core::ids::{Ordinal, ReleaseNo, RolloutNo};
    use stead_core::rollout::{Phase, Rollout, RolloutKind};
    use stead_core::time::Time;

    use super::*;

    fn bar(instance: Option<u32>, phase: PhaseName, offset: u64, took: u64) -> Bar {
        Bar {
            instance: instance.map(Ordinal),
            phase,
            offset: Micros::from_millis(offset),
            took: Micros::from_millis(took),
            critical: phase == PhaseName::Start,
        }
    }

    #[test]
    fn bars_stand_where_their_time_was() {
        let revision = Revision { release: ReleaseNo(2), run: 3, since: 0 };
        let waterfall = Waterfall {
            rollout: Rollout {
                number: RolloutNo(3),
                kind: RolloutKind::Deploy,
                from: None,
                before: None,
                again: Default::default(),
                paused: None,
                meanwhile: None,
                to: revision,
                only: None,
                phase: Phase::Done { at: Time(1) },
                started: Time(0),
                deadline: Micros::from_secs(1),
                auto_rollback: true,
                by: "root".into(),
                message: None,
            },
            bars: vec![
                bar(None, PhaseName::Pull, 0, 10),
                bar(Some(0), PhaseName::Prepare, 10, 10),
                bar(Some(0), PhaseName::Start, 39, 1),
            ],
            total: Some(Micros::from_millis(40)),
            before: Some(Micros::from_millis(80)),
            before_phases: [(PhaseName::Pull, Micros::from_millis(20))].into(),
        };
        let hashes = |from: usize, to: usize| {
            format!("|{}{}{}|", " ".repeat(from), "#".repeat(to - from), " ".repeat(40 - to))
        };
        let expected = format!(
            "rollout 3 (deploy, release 2): done\n   \
             -  pull          +0 µs    10.0 ms  {}\n   \
             0  prepare    +10.0 ms    10.0 ms  {}\n   \
             0* start      +39.0 ms     1.0 ms  {}\n\
             total 40.0 ms, the release before took 80.0 ms\n\
             * decided how long it took\n\n\
             PHASE    NOW      BEFORE\n\
             pull     10.0 ms  20.0 ms\n\
             prepare  10.0 ms  -\n\
             start    1.0 ms   -",
            hashes(0, 10),
            hashes(10, 20),
            hashes(39, 40)
        );
        assert_eq!(draw(&waterfall), expected);
        assert_eq!(summary(&waterfall.bars), "pull 10.0 ms, prepare 10.0 ms, start 1.0 ms");
    }
}
