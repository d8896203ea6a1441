//! Whole platforms on invented time, driven by generated actions.
//!
//! `STEAD_SIM_CASES=100000 cargo test -p stead-testkit --test sim_world` runs longer.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use stead_core::time::Micros;
use stead_testkit::sim::{Action, Deployment, Fault, Log, replay, run};

const IMAGES: [&str; 13] = [
    "ready",
    "ready",
    "ready",
    "slow",
    "slow-stop",
    "stubborn",
    "never-ready",
    "crash",
    "crash-later",
    "oom",
    "cannot-start",
    "bad-hook",
    "endless-hook",
];
const ABSENT: [&str; 2] = ["refused", "registry-down"];

/// Releases of some images; how they are to come, and what comes with them, is anything.
fn deployment(
    images: &'static [&'static str],
    sidecars: &'static [&'static str],
) -> impl Strategy<Value = Deployment> {
    use stead_core::manifest::Strategy::{Handover, InPlace, Recreate};
    let rare = || prop::bool::weighted(0.15);
    let often = prop::bool::weighted(0.8);
    let strategy = prop_oneof![
        6 => Just(Handover),
        2 => Just(InPlace),
        1 => Just(Recreate),
    ];
    let what = (prop::sample::select(images), 0..6u8, strategy, rare(), often, 0..3u32);
    let stages = prop_oneof![3 => Just(1u32), 2 => 2..5u32];
    let weight = prop::option::weighted(0.2, prop::sample::select(vec![0u8, 10, 50]));
    let partition = prop_oneof![5 => Just(0u32), 1 => 1..3u32];
    let how = (stages, rare(), partition, weight, prop_oneof![3 => Just(0u32), 1 => 1..3u32]);
    let keep = prop::sample::select(vec![0, 0, 500, 5000]).prop_map(Micros::from_millis);
    let watch = prop::sample::select(vec![0, 0, 400]).prop_map(Micros::from_millis);
    let sidecar = prop::option::weighted(0.2, (prop::sample::select(sidecars), 0..2u8));
    let with = (keep, watch, prop::bool::weighted(0.3), sidecar, 1..3u64);
    (what, how, with).prop_map(|(what, how, with)| {
        let (image, tag, strategy, volume, auto_rollback, max_unavailable) = what;
        let (batches, manual, partition, weight, max_surge) = how;
        let (keep, watch, hooks, sidecar, memory) = with;
        Deployment {
            image: image.into(),
            tag,
            strategy,
            volume,
            auto_rollback,
            max_unavailable,
            max_surge,
            batches,
            manual,
            partition,
            weight,
            keep,
            watch,
            hooks,
            sidecar: sidecar.map(|(image, tag)| format!("sim/{image}:s{tag}")),
            memory: memory * 64,
        }
    })
}

fn length(millis: std::ops::Range<u64>) -> impl Strategy<Value = Micros> {
    millis.prop_map(Micros::from_millis)
}

/// What people do while everything works.
fn calm() -> impl Strategy<Value = Action> {
    prop_oneof![
        12 => length(1..3000).prop_map(Action::Wait),
        8 => deployment(&IMAGES[..6], &IMAGES[..6]).prop_map(Action::Deploy),
        2 => Just(Action::Rollback),
        2 => Just(Action::Restart),
        2 => (0..4u32).prop_map(Action::RestartOne),
        3 => (1..5u32).prop_map(Action::Scale),
        2 => Just(Action::Abort),
        1 => Just(Action::Pause),
        2 => Just(Action::Resume),
        2 => prop::bool::weighted(0.3).prop_map(|all| Action::Promote { all }),
        1 => Just(Action::Worse),
        1 => prop::sample::select(vec![8, 40, 100, 4000]).prop_map(Action::Memory),
        1 => Just(Action::Stop),
        2 => Just(Action::Start),
        1 => length(1..2000).prop_map(Action::LoseHints),
    ]
}

/// Everything that can happen.
fn anything() -> impl Strategy<Value = Action> {
    let fault = prop::sample::select(vec![
        Fault::Crash,
        Fault::Oom,
        Fault::Unready,
        Fault::Recover,
        Fault::Dead,
    ]);
    prop_oneof![
        20 => calm(),
        4 => deployment(&IMAGES, &IMAGES[..11]).prop_map(Action::Deploy),
        1 => deployment(&ABSENT, &IMAGES[..1]).prop_map(Action::Deploy),
        2 => (0..5u32).prop_map(Action::Remove),
        4 => (0..4u32, fault).prop_map(|(ordinal, fault)| Action::Fault(ordinal, fault)),
        2 => length(1..1500).prop_map(Action::CrashServe),
        2 => length(1..1500).prop_map(Action::CrashControl),
        1 => Just(Action::Scale(0)),
        1 => Just(Action::Delete),
    ]
}

fn log(actions: impl Strategy<Value = Action>) -> impl Strategy<Value = Log> {
    (any::<u64>(), prop::collection::vec(actions, 2..24))
        .prop_map(|(seed, actions)| Log { seed, actions })
}

fn cases(default: u32) -> u32 {
    std::env::var("STEAD_SIM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Runs generated worlds; a failure is shrunk and shows the log that repeats it.
fn explore(cases: u32, actions: impl Strategy<Value = Action>) {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&log(actions), |log| {
        run(&log).map(drop).map_err(|failure| TestCaseError::fail(failure.to_string()))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn calm_worlds_lose_no_request() {
    explore(cases(700), calm());
}

#[test]
fn every_world_keeps_the_invariants_and_comes_to_rest() {
    explore(cases(1300), anything());
}

#[test]
fn a_log_repeats_itself() {
    let deploy = |tag| Action::Deploy(Deployment { tag, ..Deployment::default() });
    let wait = || Action::Wait(Micros::from_millis(2000));
    let log = Log { seed: 5, actions: vec![deploy(1), wait(), deploy(2), wait(), Action::Restart] };
    let outcome = run(&log).unwrap();
    assert_eq!(outcome.phase, Some("done"));
    assert!(outcome.requests.completed > 50, "{outcome:?}");
    assert_eq!(outcome.requests.received, outcome.requests.completed);
    assert_eq!(replay(&log.to_string()).unwrap(), outcome);
    assert_ne!(run(&Log { seed: 6, ..log }).unwrap(), outcome);
}
