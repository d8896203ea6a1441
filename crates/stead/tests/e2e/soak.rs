//! Zero failed requests, whatever happens: under a load that notices every failure.

use stead_testkit::load::Mix;

use crate::load::{Load, ledgers_are_clean};
use crate::platform::{Platform, eventually, image};

/// Enough requests that a lost one would have been seen.
const ENOUGH: u64 = 500;

fn change_under_load(name: &str, first: &str, second: &str, mix: Mix) {
    let platform = Platform::start();
    platform.stead(&["deploy", &image(name, first), "--app", "web"]).expect(0);
    let ip = platform.ip("web", 0);
    let load = Load::start(&platform, mix);
    load.more(200);
    platform.stead(&["deploy", &image(name, second), "--app", "web"]).expect(0);
    load.more(100);
    platform.stead(&["rollback", "web"]).expect(0);
    load.more(100);
    platform.stead(&["restart", "web"]).expect(0);
    load.more(100);
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    assert!(report.of_version(first) > 0 && report.of_version(second) > 0, "{report:?}");
    assert_eq!(platform.ip("web", 0), ip);
    ledgers_are_clean(&platform, "web", ENOUGH / 2);
}

#[test]
fn nginx_with_one_instance_loses_nothing() {
    change_under_load("nginx", "1", "2", Mix::SIXTEEN);
}

#[test]
fn the_sample_service_with_streams_loses_nothing() {
    change_under_load("trivial", "1", "2", Mix::EVERYTHING);
}

#[test]
fn an_app_that_starts_slowly_has_its_requests_parked_in_place() {
    let platform = Platform::start();
    let slow = |version: &str| {
        vec![
            "deploy".to_owned(),
            image("trivial", version),
            "--app".into(),
            "web".into(),
            "--env".into(),
            "START_DELAY_MS=2000".into(),
            "--strategy".into(),
            "in-place".into(),
        ]
    };
    platform.stead(&slow("1")).expect(0);
    let load = Load::start(&platform, Mix::SIXTEEN);
    load.more(200);
    platform.stead(&slow("2")).expect(0);
    load.more(200);
    platform.stead(&["rollback", "web"]).expect(0);
    load.more(200);
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    let parked = ledgers_are_clean(&platform, "web", report.sent);
    assert!(parked > 0, "with one instance down, requests must have waited");
}

#[test]
fn three_instances_scale_and_change_without_a_loss() {
    let platform = Platform::start();
    let deploy = |version: &str| {
        platform
            .stead(&["deploy", &image("trivial", version), "--app", "web", "--instances", "3"])
            .expect(0);
    };
    deploy("1");
    let load = Load::start(&platform, Mix::EVERYTHING);
    load.more(200);
    deploy("2");
    platform.stead(&["scale", "web", "5"]).expect(0);
    load.more(100);
    platform.stead(&["restart", "web", "--instance", "0"]).expect(0);
    platform.stead(&["scale", "web", "2"]).expect(0);
    load.more(100);
    platform.stead(&["rollback", "web"]).expect(0);
    load.more(100);
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    ledgers_are_clean(&platform, "web", ENOUGH / 2);
}

#[test]
fn the_gateway_is_replaced_under_load() {
    let platform = Platform::start();
    platform.stead(&["deploy", &image("trivial", "1"), "--app", "web"]).expect(0);
    let load = Load::start(&platform, Mix::EVERYTHING);
    load.more(200);
    let before = platform.pids("gateway");
    // As with a newer binary: `up` over a running platform replaces every role.
    platform.up();
    load.more(300);
    let now = platform.pids("gateway");
    assert!(now.iter().any(|pid| !before.contains(pid)), "{before:?} was not replaced: {now:?}");
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    ledgers_are_clean(&platform, "web", ENOUGH / 2);
}

/// What `peer` has seen on raw TCP to `web`: sent, answered, failed; and all of it, for people.
#[track_caller]
fn raw(platform: &Platform) -> (u64, u64, u64, String) {
    let (_, report) = platform.page("peer", "/tcp/report");
    let mut numbers = report.lines().next().unwrap_or_default().split(' ');
    let mut number = || numbers.next().and_then(|n| n.parse().ok()).expect("three numbers");
    (number(), number(), number(), report)
}

/// HTTP/1.1, HTTP/2, WebSocket and SSE to `web`, gRPC to `rpc`, raw TCP from `peer` to `web`.
#[test]
fn every_protocol_passes_through_everything_that_may_happen_to_a_release() {
    const WEB: &str = "env: {TCP_PORT: \"7000\"}";
    const RPC: &str = "http: {port: 8080, protocol: h2c}";
    let steps = |pause: &str| {
        format!("{WEB}\ninstances: 2\nrollout: {{batches: 2, pause: {pause}, analysis: false}}")
    };
    let platform = Platform::start();
    let version = |tag| image("trivial", tag);
    platform.deploy("web", &version("1"), &steps("0s")).expect(0);
    platform.deploy("rpc", &version("1"), RPC).expect(0);
    platform.deploy("peer", &version("1"), "").expect(0);
    let ip = platform.ip("web", 0);
    let web = Load::start(&platform, Mix::EVERYTHING);
    let rpc = Load::on(&platform, "rpc", Mix::RPC);
    platform.page("peer", &format!("/tcp/load?to={ip}:7000"));
    platform.page("peer", &format!("/tcp/load?to={ip}:7000"));
    let some = || {
        web.more(60);
        rpc.more(60);
    };

    some();
    platform.deploy("web", &version("2"), &steps("0s")).expect(0);
    platform.deploy("rpc", &version("2"), RPC).expect(0);
    some();
    // Frozen ones are thawed.
    platform.stead(&["rollback", "web"]).expect(0);
    platform.stead(&["rollback", "rpc"]).expect(0);
    some();
    // Half out, and back.
    platform.begin("web", &version("3"), &steps("manual"));
    platform.gate("web", 0);
    some();
    platform.stead(&["rollout", "abort", "web"]).expect(0);
    platform.phase("web", "undone");
    some();
    // `serve` dies while one hands over, the gateway is replaced while another does. In this
    // order: a gateway's last words are stored some seconds after they were heard.
    platform.begin("web", &version("4"), &steps("0s"));
    let killed = platform.kill("serve");
    eventually("another serve", || platform.pid("serve").filter(|pid| *pid != killed));
    eventually("the fourth is there", || {
        let app = platform.app("web")?;
        (app["rollout"]["phase"] == "watching" && app["release"] == 4).then_some(())
    });
    some();
    platform.begin("web", &version("5"), &steps("0s"));
    platform.begin("rpc", &version("5"), RPC);
    platform.up();
    platform.phase("web", "watching");
    platform.phase("rpc", "watching");
    assert_eq!((platform.version("web"), platform.version("rpc")), ("5".into(), "5".into()));
    some();
    platform.stead(&["restart", "web"]).expect(0);
    some();

    let (sent, _, failed, report) = raw(&platform);
    assert_eq!(failed, 0, "{report}");
    assert!(sent > 100, "{report}");
    for version in ["1 ", "2 ", "5 "] {
        assert!(report.lines().any(|line| line.starts_with(version)), "{version}: {report}");
    }
    assert_eq!(platform.ip("web", 0), ip);
    web.stop().assert_lossless(400);
    rpc.stop().assert_lossless(400);
    ledgers_are_clean(&platform, "web", 200);
    ledgers_are_clean(&platform, "rpc", 200);
}
