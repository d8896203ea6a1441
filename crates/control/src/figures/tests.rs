use stead_core::fleet::{Lineup, Revision};
use stead_core::ids::Generation;
use stead_core::rollout::{Phase, Reach, RolloutKind};
use stead_core::routes::{AppReport, LATENCY_BOUNDS_MICROS, Latency, Outcomes, ReleaseReport};

use super::*;

fn app() -> AppKey {
    "default/web".parse().unwrap()
}

fn at(secs: u64) -> Time {
    Time(secs * 1_000_000)
}

/// A gateway's report: requests and errors per Release.
fn report(started: Time, counts: &[(u32, u64, u64)]) -> Report {
    let releases = counts.iter().map(|(release, requests, errors)| {
        let mut buckets = vec![0; LATENCY_BOUNDS_MICROS.len() + 1];
        buckets[10] = *requests;
        ReleaseReport {
            release: ReleaseNo(*release),
            received: *requests,
            parked: 0,
            moved: 0,
            in_flight: 0,
            outcomes: Outcomes { completed: *requests, ..Outcomes::default() },
            answered: [0, requests - errors, 0, 0, *errors],
            latency: Latency { buckets, sum_micros: requests * 1_000 },
        }
    });
    let one = AppReport {
        app: app(),
        received: counts.iter().map(|count| count.1).sum(),
        in_flight: 0,
        parked: 0,
        unsent: Outcomes::default(),
        releases: releases.collect(),
    };
    Report { started, generation: Generation(1), draining: false, partial: false, apps: vec![one] }
}

fn rollout(started: Time) -> Rollout {
    let revision = |n| Revision { release: ReleaseNo(n), run: n, since: 0 };
    Rollout {
        number: RolloutNo(2),
        kind: RolloutKind::Deploy,
        from: Some(Lineup::all(revision(1))),
        meanwhile: Some(Lineup::all(revision(1))),
        before: None,
        to: revision(2),
        only: None,
        again: BTreeMap::new(),
        paused: None,
        phase: Phase::Progressing {
            batch: 0,
            reach: Reach::All,
            done: 0,
            since: started,
            gate: None,
        },
        started,
        deadline: Micros::from_secs(600),
        auto_rollback: true,
        by: "ann".into(),
        message: None,
    }
}

fn verdict(figures: &Figures, rollout: &Rollout, now: Time, base: &Sample) -> Option<Verdict> {
    let (rules, seen) = (manifest::Analysis::default(), FleetSeen::default());
    figures.verdict(&app(), rollout, rules, &seen, now, || Some(base.clone()))
}

fn old() -> BTreeSet<ReleaseNo> {
    [ReleaseNo(1)].into()
}

#[test]
fn figures_never_go_backwards() {
    let figures = Figures::new(at(100));
    let lately = |now| figures.lately(&app(), &old(), at(now)).requests;
    // It counts since long before: what it had is not known to be recent.
    figures.report(7, &report(at(1), &[(1, 5_000, 0)]), at(101));
    assert_eq!(lately(101), 0);
    figures.report(7, &report(at(1), &[(1, 5_010, 0)]), at(102));
    assert_eq!(lately(102), 10);
    // A successor beside it, then it alone, begins at zero.
    figures.report(8, &report(at(103), &[(1, 3, 0)]), at(104));
    figures.report(7, &report(at(1), &[(1, 5_011, 0)]), at(105));
    figures.report(8, &report(at(103), &[(1, 5, 0)]), at(106));
    assert_eq!(lately(106), 16);
    // The same pid, another process; and one that lost its App and counts anew.
    figures.report(8, &report(at(107), &[(1, 2, 0)]), at(108));
    figures.report(8, &report(at(107), &[(1, 1, 0)]), at(109));
    assert_eq!(lately(109), 19);
    // Only the last minutes are recent.
    assert_eq!(lately(109 + 301), 0);
    figures.report(8, &report(at(107), &[(1, 4, 0)]), at(109 + 302));
    assert_eq!(lately(109 + 302), 3);
}

#[test]
fn a_bad_release_is_told_and_its_app_woken() {
    let figures = Figures::new(at(0));
    let mut wakes = figures.wakes();
    figures.report(7, &report(at(1), &[(1, 2_000, 0)]), at(10));
    let base = figures.lately(&app(), &old(), at(10));
    assert_eq!(base.requests, 2_000);
    let tried = rollout(at(11));
    assert_eq!(verdict(&figures, &tried, at(11), &base), None, "it has had no request");
    figures.report(7, &report(at(1), &[(1, 2_000, 0), (2, 300, 0)]), at(12));
    assert_eq!(wakes.try_recv().unwrap(), app());
    let well = verdict(&figures, &tried, at(12), &base).unwrap();
    assert!(!matches!(well, Verdict::Worse { .. }), "{well:?}");
    figures.report(7, &report(at(1), &[(1, 2_000, 0), (2, 600, 300)]), at(13));
    assert_eq!(wakes.try_recv().unwrap(), app());
    let bad = figures.last_verdict(&app(), RolloutNo(2)).unwrap();
    assert!(matches!(bad, Verdict::Worse { .. }), "{bad:?}");
    // Another Rollout is another trial.
    let next = Rollout { number: RolloutNo(3), ..tried };
    assert_eq!(verdict(&figures, &next, at(14), &base), None);
    assert_eq!(figures.last_verdict(&app(), RolloutNo(2)), None);
    figures.rest(&app());
    figures.report(7, &report(at(1), &[(1, 2_000, 0), (2, 900, 600)]), at(15));
    assert!(wakes.try_recv().is_err(), "nothing is tried out any more");
}

#[test]
fn what_was_lost_with_serve_condemns_nobody() {
    let figures = Figures::new(at(100));
    let nothing = Sample::default();
    let tried = rollout(at(50));
    verdict(&figures, &tried, at(101), &nothing);
    // The new Release always had 20 % errors here, and so had the old one: nobody knows.
    figures.report(7, &report(at(1), &[(2, 1_000, 200)]), at(102));
    figures.report(7, &report(at(1), &[(2, 2_000, 400)]), at(103));
    let resumed = verdict(&figures, &tried, at(103), &nothing).unwrap();
    assert!(matches!(resumed, Verdict::Undecided { .. }), "{resumed:?}");
    // What it did before was kept: that is evidence.
    let figures = Figures::new(at(100));
    let base = Sample { requests: 5_000, errors: 0, ..Sample::default() };
    verdict(&figures, &tried, at(101), &base);
    figures.report(7, &report(at(1), &[(2, 1_000, 200)]), at(102));
    figures.report(7, &report(at(1), &[(2, 2_000, 400)]), at(103));
    let known = verdict(&figures, &tried, at(103), &base).unwrap();
    assert!(matches!(known, Verdict::Worse { .. }), "{known:?}");
}
