//! How an App's intent changes, how its Rollout goes on, and that going back goes back.

mod worlds;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use stead_core::app::{App, Change};
use stead_core::error::{Code, UserError};
use stead_core::fleet::{
    ContainerState, Exit, Fleet, FleetSeen, ImageSeen, Lineup, ReleaseSpec, Revision, TrafficState,
    Trouble,
};
use stead_core::ids::{Generation, Ordinal, ReleaseNo};
use stead_core::manifest::{Amount, Batch, Batches, Manifest, Pause, RestartPolicy};
use stead_core::rollout::{
    Gate, Phase, Reach, Rollout, RolloutKind, START_ATTEMPTS, advance, wanted,
};
use stead_core::time::{Micros, Time};
use worlds::*;

fn change(kind: RolloutKind) -> Change {
    Change { kind, image_here: false, now: NOW, by: "root".into(), message: None }
}

fn deploy(app: &mut App, release: u32) {
    app.roll_out(ReleaseNo(release), &manifest(), change(RolloutKind::Deploy));
}

fn restart_one(app: &mut App, ordinal: u32) {
    let restart = change(RolloutKind::Restart);
    app.restart(Some(Ordinal(ordinal)), &manifest(), restart).expect("it runs");
}

fn releases() -> BTreeMap<ReleaseNo, ReleaseSpec> {
    (1..=40).map(|n| (ReleaseNo(n), spec(n, |_| {}))).collect()
}

fn fleet(app: &App) -> Fleet {
    wanted(app, &releases()).fleet
}

/// Every Instance changes, and `done` of them have.
fn progressing(done: u32, since: Time) -> Phase {
    Phase::Progressing { batch: 0, reach: Reach::All, done, since, gate: None }
}

fn progress(app: &mut App) {
    app.enter(progressing(0, NOW));
}

fn finish(app: &mut App) {
    app.enter(Phase::Done { at: NOW });
}

/// An App whose first Release runs on `instances` Instances.
fn stable(instances: u32) -> App {
    let mut app = App::new(key(), instances, NOW);
    deploy(&mut app, 1);
    finish(&mut app);
    app
}

/// What `advance` finds with the world as it is wanted, after `change`.
fn found(app: &App, change: impl FnOnce(&mut FleetSeen)) -> Option<Phase> {
    found_at(app, NOW, change)
}

fn found_at(app: &App, now: Time, change: impl FnOnce(&mut FleetSeen)) -> Option<Phase> {
    let fleet = fleet(app);
    let mut seen = settled(&fleet);
    change(&mut seen);
    advance(app, &fleet, &seen, None, now).phase
}

fn name(phase: &Option<Phase>) -> &'static str {
    phase.as_ref().map_or("stays", Phase::name)
}

fn fail_image(seen: &mut FleetSeen, release: u32, code: Code, at: Time, count: u32) {
    let error = UserError::new(code, "it cannot be fetched", "look");
    seen.images.insert(digest(release), ImageSeen::Failed { error, at, count });
}

fn trouble(app: &App, seen: &mut FleetSeen, ordinal: u32, code: Code, count: u32) {
    let ordinal = Ordinal(ordinal);
    let revision = fleet(app).wanted(ordinal).expect("it is wanted");
    let instance = seen.instances.get_mut(&ordinal).expect("it was there");
    let error = UserError::new(code, "it failed", "look");
    instance.containers.clear();
    instance.trouble = Some(Trouble { revision, error, at: NOW, count, was_ready: false });
}

#[test]
fn a_first_release_progresses_beside_its_pull_and_a_later_one_after_it() {
    let mut app = App::new(key(), 2, NOW);
    deploy(&mut app, 1);
    assert_eq!(app.active().unwrap().phase.name(), "progressing");
    finish(&mut app);
    deploy(&mut app, 2);
    assert_eq!(app.active().unwrap().phase, Phase::Pulling);
    assert_eq!(app.target(), Some(revision(1, 1)), "nothing that runs is touched");
    assert!(fleet(&app).releases.contains_key(&ReleaseNo(2)), "it is fetched");
    let none = found(&app, |seen| drop(seen.images.remove(&digest(2))));
    assert_eq!(name(&none), "stays");
    assert_eq!(name(&found(&app, |_| {})), "progressing");
}

#[test]
fn a_pull_that_fails_leaves_everything_as_it_was() {
    let mut app = stable(2);
    deploy(&mut app, 2);
    let before = fleet(&app);
    let refused = found(&app, |seen| fail_image(seen, 2, Code::ImageRefused, NOW, 1));
    assert_eq!(name(&refused), "undone");
    app.enter(refused.unwrap());
    assert_eq!(fleet(&app).lineup, before.lineup);
}

#[test]
fn a_registry_that_is_away_and_a_failure_from_before_do_not_fail_a_pull() {
    let mut app = stable(1);
    deploy(&mut app, 2);
    let away = |count| {
        move |seen: &mut FleetSeen| {
            fail_image(seen, 2, Code::RegistryUnavailable, NOW, count);
        }
    };
    assert_eq!(name(&found(&app, away(1))), "stays");
    assert_eq!(name(&found(&app, away(START_ATTEMPTS))), "undone");
    let earlier = Time(NOW.0 - 1);
    let old = found(&app, |seen| fail_image(seen, 2, Code::ImageRefused, earlier, 9));
    assert_eq!(name(&old), "stays");
}

#[test]
fn a_rollout_is_done_when_every_instance_runs_it_and_there_is_no_other() {
    let mut app = stable(2);
    deploy(&mut app, 2);
    progress(&mut app);
    assert_eq!(name(&found(&app, |_| {})), "watching");
    let one_missing = found(&app, |seen| drop(seen.instances.remove(&Ordinal(1))));
    assert_eq!(one_missing, Some(progressing(1, NOW)));
    let surplus = found(&app, |seen| {
        let extra = seen.instances[&Ordinal(0)].clone();
        seen.instances.insert(Ordinal(2), extra);
    });
    assert_eq!(name(&surplus), "progressing");
    let behind = found(&app, |seen| seen.generation = Generation(0));
    assert_eq!(name(&behind), "stays", "the engine has not taken it up");
}

#[test]
fn a_failing_revision_is_undone_or_held() {
    let mut app = stable(2);
    deploy(&mut app, 2);
    progress(&mut app);
    for (code, count, expected) in [
        (Code::ExitedAtOnce, START_ATTEMPTS - 1, "progressing"),
        (Code::ExitedAtOnce, START_ATTEMPTS, "undoing"),
        (Code::NeverReady, 1, "undoing"),
        (Code::CannotStart, 1, "undoing"),
    ] {
        let found = found(&app, |seen| trouble(&app, seen, 0, code, count));
        assert_eq!(name(&found), expected, "{code} {count} times");
    }
    let manual = &mut app.clone();
    manual.rollout.as_mut().unwrap().auto_rollback = false;
    assert_eq!(name(&found(manual, |s| trouble(manual, s, 0, Code::NeverReady, 1))), "held");
    let mut first = App::new(key(), 1, NOW);
    deploy(&mut first, 1);
    assert_eq!(name(&found(&first, |s| trouble(&first, s, 0, Code::NeverReady, 1))), "held");
}

#[test]
fn a_rollout_without_progress_fails_and_progress_gives_it_time() {
    let mut app = stable(2);
    deploy(&mut app, 2);
    progress(&mut app);
    let late = NOW + app.active().unwrap().deadline;
    let stuck = |seen: &mut FleetSeen| seen.instances.clear();
    assert_eq!(name(&found_at(&app, late, stuck)), "undoing");
    let why = found_at(&app, late, stuck).unwrap();
    assert!(matches!(why, Phase::Undoing { why, .. } if why.code == Code::RolloutTimedOut));
    let moved = found_at(&app, late, |seen| drop(seen.instances.remove(&Ordinal(1))));
    assert_eq!(moved, Some(progressing(1, late)));
}

#[test]
fn scaling_gives_a_rollout_its_whole_time_again() {
    let mut app = stable(5);
    deploy(&mut app, 2);
    app.enter(progressing(3, NOW));
    let late = NOW + app.active().unwrap().deadline;
    app.scale(4, Time(late.0 - 1));
    // Two of the three that were done are left: the others go on.
    let found = found_at(&app, late, |seen| {
        seen.instances.remove(&Ordinal(0));
        seen.instances.remove(&Ordinal(1));
    });
    assert_eq!(found, Some(progressing(2, late)));
}

#[test]
fn what_ended_and_is_not_started_again_fails_a_rollout_at_once() {
    for (policy, code, fails) in [
        (RestartPolicy::Always, 0, false),
        (RestartPolicy::OnFailure, 0, true),
        (RestartPolicy::OnFailure, 1, false),
        (RestartPolicy::Never, 1, true),
    ] {
        let mut app = stable(1);
        deploy(&mut app, 2);
        progress(&mut app);
        let mut fleet = fleet(&app);
        fleet.releases.insert(ReleaseNo(2), spec(2, |settings| settings.restart = policy));
        let mut seen = settled(&fleet);
        let container = &mut seen.instances.get_mut(&Ordinal(0)).unwrap().containers[0];
        let exit = Exit { at: NOW, code, oom_killed: false, intended: false };
        container.state = ContainerState::Exited(exit);
        container.traffic = TrafficState::Detached;
        let phase = advance(&app, &fleet, &seen, None, NOW).phase;
        assert_eq!(name(&phase), if fails { "undoing" } else { "stays" }, "{policy:?} {code}");
    }
}

#[test]
fn a_stopped_app_is_not_judged_and_has_its_time_again() {
    let mut app = stable(1);
    deploy(&mut app, 2);
    progress(&mut app);
    app.stop();
    let late = NOW + Micros(app.active().unwrap().deadline.0 * 3);
    assert_eq!(name(&found_at(&app, late, |_| {})), "stays");
    app.start(late);
    assert_eq!(name(&found_at(&app, late, |seen| seen.instances.clear())), "stays");
}

#[test]
fn a_restart_of_one_is_judged_by_that_one() {
    let mut app = stable(3);
    restart_one(&mut app, 1);
    progress(&mut app);
    let wanted = fleet(&app);
    assert_eq!(wanted.wanted(Ordinal(0)), Some(revision(1, 1)));
    let again = Revision { since: 2, ..revision(1, 2) };
    assert_eq!(wanted.wanted(Ordinal(1)), Some(again));
    let others_fail = found(&app, |seen| {
        trouble(&app, seen, 0, Code::ExitedAtOnce, 9);
        seen.instances.remove(&Ordinal(2));
    });
    assert_eq!(name(&others_fail), "done");
    let fails = found(&app, |seen| trouble(&app, seen, 1, Code::NeverReady, 1));
    assert_eq!(name(&fails), "held", "there is nothing to go back to");
}

#[test]
fn a_rollout_over_another_keeps_what_runs_until_its_image_is_here() {
    let mut app = stable(2);
    deploy(&mut app, 2);
    progress(&mut app);
    deploy(&mut app, 3);
    assert_eq!(app.target(), Some(revision(2, 2)), "not back and forth");
    let failed = found(&app, |seen| fail_image(seen, 3, Code::ImageNotFound, NOW, 1)).unwrap();
    assert_eq!(failed.name(), "undoing", "some instances may run release 2");
    app.enter(failed);
    assert_eq!(app.target(), Some(revision(1, 1)));
}

#[test]
fn undoing_leaves_instances_alone_that_were_restarted_before() {
    let mut app = stable(3);
    restart_one(&mut app, 2);
    progress(&mut app);
    finish(&mut app);
    let before = fleet(&app);
    deploy(&mut app, 2);
    assert_eq!(fleet(&app).wanted(Ordinal(2)), before.wanted(Ordinal(2)), "while pulling");
    progress(&mut app);
    assert_eq!(fleet(&app).wanted(Ordinal(2)), Some(revision(2, 3)));
    app.abort("root", NOW).unwrap();
    assert_eq!(fleet(&app).wanted(Ordinal(2)), before.wanted(Ordinal(2)));
}

#[test]
fn restarting_one_of_a_held_release_stays_with_that_release() {
    let mut app = stable(2);
    deploy(&mut app, 2);
    progress(&mut app);
    let why = UserError::new(Code::NeverReady, "it failed", "look");
    app.enter(Phase::Held { at: NOW, why, lineup: app.lineup(), batch: None });
    restart_one(&mut app, 0);
    assert_eq!(fleet(&app).wanted(Ordinal(1)), Some(revision(2, 2)));
    progress(&mut app);
    finish(&mut app);
    assert_eq!(
        app.stable,
        Some(Lineup::all(revision(1, 1))),
        "one instance does not make it stable"
    );
}

#[test]
fn a_deleted_app_wants_nothing_and_is_not_judged() {
    let mut app = stable(2);
    deploy(&mut app, 2);
    progress(&mut app);
    app.delete();
    let wanted = wanted(&app, &releases());
    assert_eq!((wanted.fleet.instances, wanted.routing), (0, None));
    assert_eq!(name(&found(&app, |_| {})), "stays");
}

#[test]
fn a_stopped_app_wants_no_instance_and_says_so() {
    let mut app = stable(2);
    app.stop();
    let wanted = wanted(&app, &releases());
    assert_eq!(wanted.fleet.instances, 0);
    assert!(wanted.routing.unwrap().stopped);
    assert!(app.restart(None, &manifest(), change(RolloutKind::Restart)).is_err());
    app.start(NOW);
    assert_eq!(fleet(&app).instances, 2);
}

#[test]
fn rolling_back_knows_the_release_before() {
    let mut app = stable(1);
    deploy(&mut app, 2);
    finish(&mut app);
    assert_eq!(app.before, Some(ReleaseNo(1)));
    app.roll_out(ReleaseNo(1), &manifest(), change(RolloutKind::Rollback));
    finish(&mut app);
    assert_eq!((app.before, app.last_release), (Some(ReleaseNo(2)), ReleaseNo(2)));
    app.restart(None, &manifest(), change(RolloutKind::Restart)).unwrap();
    finish(&mut app);
    assert_eq!(app.before, Some(ReleaseNo(2)), "a restart is no other release");
}

/// Releases that come in three batches, and wait for a person after each.
fn three_batches(release: u32, first: Option<u8>) -> BTreeMap<ReleaseNo, ReleaseSpec> {
    let rules = |settings: &mut Manifest| {
        let rollout = &mut settings.rollout;
        rollout.pause = Pause::Manual;
        rollout.batches = Batches::Count(3);
        if first.is_some() {
            let gray = Batch { weight: first, ..Batch::of(Amount::Count(1)) };
            rollout.batches = Batches::List(vec![gray]);
        }
    };
    let mut releases = releases();
    releases.insert(ReleaseNo(release), spec(release, rules));
    releases
}

#[test]
fn scaling_down_leaves_no_gate_out() {
    let releases = three_batches(2, None);
    let mut app = stable(6);
    deploy(&mut app, 2);
    let reach = Reach::Of([5, 4, 3, 2].map(Ordinal).into());
    let gate = Some(Gate { since: NOW, until: None });
    app.enter(Phase::Progressing { batch: 1, reach, done: 4, since: NOW, gate });
    for instances in [2, 1] {
        app.scale(instances, NOW);
        let fleet = wanted(&app, &releases).fleet;
        let phase = advance(&app, &fleet, &settled(&fleet), None, NOW).phase;
        let all = matches!(&phase, Some(Phase::Progressing { reach: Reach::All, .. }));
        assert!(!all, "{instances}: a person promotes it, not its size: {phase:?}");
    }
    app.promote(&releases[&ReleaseNo(2)].settings.rollout, false, NOW).unwrap();
    assert_eq!(fleet(&app).wanted(Ordinal(0)).unwrap().release, ReleaseNo(2));
}

#[test]
fn what_is_given_up_loses_its_share_at_once() {
    let releases = three_batches(2, Some(10));
    let mut app = stable(4);
    deploy(&mut app, 2);
    let reach = Reach::Of([Ordinal(3)].into());
    app.enter(Phase::Progressing { batch: 0, reach, done: 1, since: NOW, gate: None });
    let share = |app: &App| {
        let weights = wanted(app, &releases).routing.unwrap().split.weights;
        let of = |new: bool| -> u32 {
            let some = weights.iter().filter(|w| !new || w.release == ReleaseNo(2));
            some.map(|w| w.weight).sum()
        };
        of(true) * 100 / of(false)
    };
    assert_eq!(share(&app), 10);
    app.abort("root", NOW).unwrap();
    assert_eq!(share(&app), 0, "others of the App had all but this share before");
}

#[test]
fn an_app_that_starts_again_has_its_time_to_go_back() {
    let mut app = stable(1);
    deploy(&mut app, 2);
    progress(&mut app);
    app.abort("root", NOW).unwrap();
    app.stop();
    let late = NOW + Micros(app.active().unwrap().deadline.0 * 3);
    app.start(late);
    assert_eq!(name(&found_at(&app, late, |seen| seen.instances.clear())), "stays");
}

#[test]
fn what_stands_in_for_others_fails_a_rollout_too() {
    let mut app = stable(2);
    deploy(&mut app, 2);
    progress(&mut app);
    let wanted = Fleet { surge: 1, ..fleet(&app) };
    let mut seen = settled(&wanted);
    let error = UserError::new(Code::NeverReady, "it failed", "look");
    let surplus = seen.instances.get_mut(&Ordinal(2)).expect("it is made");
    let revision = wanted.heading.expect("it is going there");
    surplus.trouble = Some(Trouble { revision, error, at: NOW, count: 1, was_ready: false });
    assert_eq!(name(&advance(&app, &wanted, &seen, None, NOW).phase), "undoing");
}

/// What people and the reconciler do to an App.
#[derive(Debug, Clone)]
enum Verb {
    Deploy,
    Restart,
    RestartOne(u32),
    Scale(u32),
    Remove(u32),
    Stop,
    Start,
    Pause,
    Resume,
    Promote {
        all: bool,
    },
    Abort,
    /// The Rollout goes on as it should.
    GoOn,
    /// It fails, and is not to go back by itself.
    Hold,
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![
        4 => Just(Verb::Deploy),
        1 => Just(Verb::Restart),
        2 => (0..4u32).prop_map(Verb::RestartOne),
        1 => (1..5u32).prop_map(Verb::Scale),
        1 => (0..5u32).prop_map(Verb::Remove),
        1 => Just(Verb::Stop),
        1 => Just(Verb::Start),
        1 => Just(Verb::Pause),
        1 => Just(Verb::Resume),
        2 => any::<bool>().prop_map(|all| Verb::Promote { all }),
        2 => Just(Verb::Abort),
        9 => Just(Verb::GoOn),
        1 => Just(Verb::Hold),
    ]
}

/// The manifest of every Release here: two batches, and a person between them.
fn in_batches() -> Manifest {
    let mut settings = manifest();
    settings.rollout.batches = Batches::Count(2);
    settings.rollout.pause = Pause::Manual;
    settings
}

fn do_to(app: &mut App, verb: &Verb) -> bool {
    match verb {
        Verb::Deploy => {
            let release = app.last_release.next();
            app.roll_out(release, &in_batches(), change(RolloutKind::Deploy));
            true
        }
        Verb::Restart => app.restart(None, &in_batches(), change(RolloutKind::Restart)).is_ok(),
        Verb::RestartOne(n) => {
            let only = Some(Ordinal(*n));
            app.restart(only, &in_batches(), change(RolloutKind::Restart)).is_ok()
        }
        Verb::Scale(instances) => {
            app.scale(*instances, NOW);
            true
        }
        Verb::Remove(n) => app.remove(&BTreeSet::from([Ordinal(*n)]), NOW).is_ok(),
        Verb::Stop => {
            app.stop();
            true
        }
        Verb::Start => {
            app.start(NOW);
            true
        }
        Verb::Pause => {
            let paused = app.rollout.as_ref().is_some_and(|r| r.paused.is_some());
            app.pause("root", NOW).is_ok() && !paused
        }
        Verb::Resume => app.resume(NOW).is_ok(),
        Verb::Promote { all } => app.promote(&in_batches().rollout, *all, NOW).is_ok(),
        Verb::Abort => {
            let undoing = app.rollout.as_ref().is_some_and(|r| r.phase.name() == "undoing");
            app.abort("root", NOW).is_ok() && !undoing
        }
        Verb::GoOn => {
            let Some(next) = app.active().and_then(goes_well) else { return false };
            app.enter(next);
            true
        }
        Verb::Hold => {
            let progressing =
                app.active().is_some_and(|rollout| rollout.phase.name() == "progressing");
            if progressing {
                let why = UserError::new(Code::NeverReady, "it failed", "look");
                app.enter(Phase::Held { at: NOW, why, lineup: app.lineup(), batch: None });
            }
            progressing
        }
    }
}

/// The phase after this one when everything works and every Instance has been reached.
fn goes_well(rollout: &Rollout) -> Option<Phase> {
    Some(match rollout.phase.clone() {
        Phase::Pulling => {
            let reach = Reach::Of(BTreeSet::from([Ordinal(0), Ordinal(1)]));
            let reach = if rollout.is_trial() { reach } else { Reach::All };
            Phase::Progressing { batch: 0, reach, done: 0, since: NOW, gate: None }
        }
        Phase::Progressing { batch, reach: reach @ Reach::Of(_), done, since, gate: None } => {
            let gate = Some(Gate { since: NOW, until: None });
            Phase::Progressing { batch, reach, done, since, gate }
        }
        Phase::Progressing { gate: Some(_), .. } => return None,
        Phase::Progressing { .. } if rollout.is_trial() => {
            Phase::Watching { since: NOW, until: NOW }
        }
        Phase::Progressing { .. } | Phase::Watching { .. } => Phase::Done { at: NOW },
        Phase::Undoing { why, .. } => Phase::Undone { at: NOW, why },
        _ => return None,
    })
}

fn is_settled(app: &App) -> bool {
    let phase = app.rollout.as_ref().map(|rollout| rollout.phase.name());
    matches!(phase, None | Some("watching" | "done" | "undone"))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn verbs_keep_an_app_in_order(verbs in prop::collection::vec(verb(), 1..30)) {
        let mut app = stable(3);
        // What proved itself last, and what the current Rollout came from.
        let mut good = app.lineup().expect("it runs");
        let mut back = good.clone();
        for verb in &verbs {
            let before = app.clone();
            if !do_to(&mut app, verb) {
                prop_assert_eq!(&app, &before, "what is refused changes nothing");
                continue;
            }
            prop_assert!(app.generation > before.generation, "{:?}", verb);
            prop_assert!(app.last_run >= before.last_run);
            let needed = app.releases_needed();
            for used in [app.lineup(), app.stable.clone()].into_iter().flatten() {
                prop_assert!(used.releases().all(|release| needed.contains(&release)));
                prop_assert!(used.base.run <= app.last_run && used.base.since <= used.base.run);
            }
            prop_assert_eq!(app.ordinals().len(), app.instances as usize);
            let text = serde_json::to_string(&app).unwrap();
            prop_assert_eq!(&serde_json::from_str::<App>(&text).unwrap(), &app);

            let (now, Some(rollout)) = (app.lineup().expect("it runs"), &app.rollout) else {
                continue;
            };
            let new = before.rollout.as_ref().is_none_or(|old| old.number != rollout.number);
            if new && is_settled(&before) {
                // A restart of one changes nothing else, whatever the others run.
                let present = before.lineup().filter(|_| rollout.only.is_some());
                back = present.unwrap_or_else(|| good.clone());
            }
            match rollout.phase.name() {
                "watching" | "done" if rollout.only.is_none() => good = now,
                // A restart takes what was watched back into what is tried out.
                "progressing" if !new && before.rollout.as_ref().is_some_and(|old| old.phase.is_through()) => {
                    good = back.clone();
                }
                "undoing" | "undone" => {
                    for ordinal in (0..8).map(Ordinal) {
                        let (now, then) = (now.of(ordinal), back.of(ordinal));
                        prop_assert_eq!(now.release, then.release, "undoing brings back what was");
                        // Of what it is not restarted: what was restarted meanwhile stays so.
                        prop_assert!(now.since >= then.since, "{:?} after {:?}", now, then);
                    }
                    if before.rollout.as_ref().is_some_and(|old| old.phase.is_through()) {
                        good = back.clone();
                    }
                    let stable = app.stable.clone().expect("it was stable before");
                    prop_assert_eq!(stable.base, good.base);
                }
                _ => {}
            }
        }
    }
}
