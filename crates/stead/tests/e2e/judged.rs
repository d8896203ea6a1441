//! A new Release is compared with the old one, and undone by itself when it proves worse.

use stead_testkit::load::{FailureKind, Mix};

use crate::load::Load;
use crate::platform::{Platform, eventually, image};

/// Clients of plain requests alone: the analysis has something to count.
const MIX: Mix = Mix { keep_alive: 8, one_shot: 2, ..Mix::NOBODY };

/// Version 1 under load, long enough that it is known.
fn known(settings: &str) -> (Platform, Load) {
    let platform = Platform::start();
    platform.deploy("web", &image("trivial", "1"), settings).expect(0);
    let load = Load::start(&platform, MIX);
    load.more(1000);
    // Gateways report once a second: what nobody has heard of is nothing to compare with.
    eventually("what version 1 did is known", || {
        let ledgers = platform.json(&["ledger", "web"]);
        let received = ledgers.as_array()?.iter().filter_map(|one| one["received"].as_u64());
        (received.sum::<u64>() >= 1000).then_some(())
    });
    (platform, load)
}

/// Version 1 answers again, by no deed of ours, and it is said why.
#[track_caller]
fn undone(platform: &Platform, why: &str) {
    let rollout = platform.phase("web", "undone");
    eventually("the old version serves", || {
        (platform.get("web", "/").ok()?.1 == "1").then_some(())
    });
    assert_eq!(rollout["why"]["code"], why, "{rollout:#}");
    let status = platform.stead(&["rollout", "status", "web"]).expect(0).stdout;
    assert!(status.contains(why), "{status}");
}

#[test]
fn a_release_with_five_percent_errors_is_undone() {
    let (platform, load) = known("");
    platform.begin("web", &image("trivial", "2"), "env: {ERROR_SHARE: \"0.05\"}");
    undone(&platform, "STEAD-E008");
    load.more(100);
    let report = load.stop();
    assert!(!report.failed.is_empty(), "{report}");
    // What failed were the new version's own answers.
    assert!(report.failed.iter().all(|f| f.kind == FailureKind::Status(500)), "{report}");
}

#[test]
fn a_release_three_times_slower_is_undone() {
    let (platform, load) = known("env: {LATENCY_MS: \"10\"}");
    platform.begin("web", &image("trivial", "2"), "env: {LATENCY_MS: \"30\"}");
    undone(&platform, "STEAD-E008");
    load.more(100);
    load.stop().assert_lossless(1000);
}

#[test]
fn a_release_that_crashes_later_is_undone() {
    let (platform, load) = known("");
    platform.begin("web", &image("trivial", "2"), "env: {EXIT_AFTER_MS: \"5000\"}");
    platform.phase("web", "watching");
    platform.phase("web", "undone");
    eventually("the old version serves", || {
        (platform.get("web", "/").ok()?.1 == "1").then_some(())
    });
    load.more(100);
    let report = load.stop();
    assert!(report.of_version("2") > 0, "{report}");
}

#[test]
fn a_healthy_release_stays() {
    let (platform, load) = known("");
    platform.deploy("web", &image("trivial", "2"), "rollout: {watch: 5s}").expect(0);
    load.more(500);
    platform.phase("web", "done");
    assert_eq!(platform.version("web"), "2");
    load.stop().assert_lossless(1500);
}
