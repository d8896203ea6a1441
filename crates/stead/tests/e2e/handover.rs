//! Handover: the new Container takes over behind the same address while the old one still
//! serves, and the old one stays frozen for a rollback.

use stead_testkit::load::Mix;

use crate::load::{Load, ledgers_are_clean};
use crate::platform::{Platform, eventually, image};

/// Enough requests that a lost one would have been seen.
const ENOUGH: u64 = 400;

/// Port of the sample's raw TCP.
const TCP: u16 = 7000;

/// A service that takes two seconds to start and speaks raw TCP too.
const LATE: &str = "env: {START_DELAY_MS: \"2000\", TCP_PORT: \"7000\"}";

/// What the App `peer` is answered on its kept connection of this name: the version.
#[track_caller]
fn peer_meets(platform: &Platform, name: &str, ip: &str) -> String {
    let (_, line) = platform.page("peer", &format!("/tcp/ask?name={name}&to={ip}:{TCP}"));
    line.split(' ').next().expect("split gives one").to_owned()
}

#[test]
fn nginx_is_handed_over_and_nobody_waits() {
    let platform = Platform::start();
    platform.deploy("web", &image("nginx", "1"), "").expect(0);
    let ip = platform.ip("web", 0);
    let load = Load::start(&platform, Mix::SIXTEEN);
    load.more(150);
    platform.deploy("web", &image("nginx", "2"), "").expect(0);
    load.more(150);
    platform.stead(&["rollback", "web"]).expect(0);
    load.more(150);
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    assert!(report.of_version("1") > 0 && report.of_version("2") > 0, "{report}");
    assert_eq!(platform.ip("web", 0), ip);
    assert_eq!(ledgers_are_clean(&platform, "web", ENOUGH), 0, "nothing had to be parked");
}

#[test]
fn a_late_starter_is_handed_over_with_its_raw_connections_and_thawed_again() {
    let platform = Platform::start();
    platform.deploy("web", &image("trivial", "1"), LATE).expect(0);
    platform.deploy("peer", &image("trivial", "1"), "").expect(0);
    let ip = platform.ip("web", 0);
    let old = platform.process("web");
    assert_eq!(peer_meets(&platform, "early", &ip), "1");

    let load = Load::start(&platform, Mix::EVERYTHING);
    load.more(150);
    platform.begin("web", &image("trivial", "2"), LATE);
    eventually("the new one serves", || (platform.version("web") == "2").then_some(()));
    // The gateway and the packet marks follow each other within milliseconds, in either order.
    eventually("a new connection reaches it too", || {
        let met = peer_meets(&platform, "late", &ip);
        if met != "2" {
            platform.page("peer", "/tcp/close?name=late");
        }
        (met == "2").then_some(())
    });
    assert_eq!(peer_meets(&platform, "early", &ip), "1", "an open connection stays");
    assert_eq!(platform.ip("web", 0), ip);
    load.more(150);
    // The old one may go as soon as everybody has hung up.
    platform.page("peer", "/tcp/close?name=early");
    platform.phase("web", "watching");
    load.more(100);

    platform.stead(&["rollback", "web"]).expect(0);
    assert_eq!(platform.version("web"), "1");
    assert_eq!(platform.process("web"), old, "the frozen one was thawed, not started again");
    load.more(100);
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    assert_eq!(ledgers_are_clean(&platform, "web", ENOUGH / 2), 0, "nothing had to be parked");
}

#[test]
fn what_may_not_run_twice_is_changed_in_place_and_says_why() {
    let platform = Platform::start();
    let alone = "volumes: [{name: data, mount: /data}]";
    platform.deploy("web", &image("trivial", "1"), alone).expect(0);
    let ip = platform.ip("web", 0);
    let load = Load::start(&platform, Mix::SIXTEEN);
    load.more(100);
    platform.deploy("web", &image("trivial", "2"), alone).expect(0);
    load.more(100);
    load.stop().assert_lossless(200);
    assert_eq!(platform.version("web"), "2");
    assert_eq!(platform.ip("web", 0), ip);
    let events = platform.stead(&["events", "web"]).expect(0).stdout;
    assert!(events.contains("volume data is not shared"), "{events}");
}

#[test]
fn serve_killed_in_a_handover_and_over_a_frozen_predecessor_loses_nothing() {
    let platform = Platform::start();
    platform.deploy("web", &image("trivial", "1"), LATE).expect(0);
    let (ip, old) = (platform.ip("web", 0), platform.process("web"));
    let load = Load::start(&platform, Mix::EVERYTHING);
    load.more(100);

    platform.begin("web", &image("trivial", "2"), LATE);
    platform.phase("web", "progressing");
    // The new one takes two seconds: now there are two.
    let killed = platform.kill("serve");
    eventually("another serve", || platform.pid("serve").filter(|pid| *pid != killed));
    platform.phase("web", "watching");
    assert_eq!(platform.version("web"), "2");
    load.more(100);

    let killed = platform.kill("serve");
    eventually("another serve", || platform.pid("serve").filter(|pid| *pid != killed));
    eventually("it knows the app", || platform.app("web"));
    platform.stead(&["rollback", "web"]).expect(0);
    assert_eq!(platform.process("web"), old, "the frozen one was thawed");
    load.more(100);
    load.stop().assert_lossless(ENOUGH);
    assert_eq!(platform.ip("web", 0), ip);
    ledgers_are_clean(&platform, "web", ENOUGH / 2);
}

#[test]
fn the_gateway_is_replaced_in_a_handover() {
    let platform = Platform::start();
    platform.deploy("web", &image("trivial", "1"), LATE).expect(0);
    let load = Load::start(&platform, Mix::EVERYTHING);
    load.more(100);
    platform.begin("web", &image("trivial", "2"), LATE);
    platform.phase("web", "progressing");
    let before = platform.pids("gateway");
    platform.up();
    platform.phase("web", "watching");
    assert_eq!(platform.version("web"), "2");
    assert!(platform.pids("gateway").iter().any(|pid| !before.contains(pid)));
    load.more(200);
    load.stop().assert_lossless(ENOUGH);
    ledgers_are_clean(&platform, "web", ENOUGH / 2);
}
