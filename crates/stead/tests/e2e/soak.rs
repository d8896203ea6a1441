//! Zero failed requests, whatever happens: under a load that notices every failure.

use std::time::Duration;

use stead_testkit::load::{Mix, Plan, Report, Running};

use crate::platform::{Platform, eventually, image};

/// Enough requests that a lost one would have been seen.
const ENOUGH: u64 = 500;

struct Load {
    runtime: tokio::runtime::Runtime,
    running: Running,
}

impl Load {
    fn start(platform: &Platform, mix: Mix) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let plan = Plan::new(platform.http, "web.default.localhost")
            .mix(mix)
            .duration(Duration::from_secs(180));
        let running = runtime.block_on(async { plan.start() });
        Self { runtime, running }
    }

    /// Lets the load see the present state for a while.
    #[track_caller]
    fn more(&self, count: u64) {
        let more = async {
            tokio::time::timeout(Duration::from_secs(60), self.running.more_ok(count)).await
        };
        let came = self.runtime.block_on(more);
        assert_eq!(came, Ok(true), "{} of {} failed", self.running.failed(), self.running.sent());
    }

    fn stop(self) -> Report {
        self.runtime.block_on(self.running.stop())
    }
}

/// At least this many requests are in the ledgers, none is open and none failed. The load
/// counts each echo on a WebSocket, the gateway each connection.
#[track_caller]
fn ledgers_are_clean(platform: &Platform, least: u64) {
    // Gateways report once a second.
    let ledgers = eventually("every request is in a ledger", || {
        let ledgers = platform.json(&["ledger", "web"]);
        let sum = |field: &str| -> u64 {
            ledgers.as_array().into_iter().flatten().filter_map(|l| l[field].as_u64()).sum()
        };
        (sum("received") >= least && sum("in_flight") == 0).then_some(ledgers)
    });
    for ledger in ledgers.as_array().expect("a list") {
        let failed = ledger["failed"].as_object().expect("by reason");
        assert!(failed.values().all(|n| n == 0), "{ledger}");
    }
}

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
    ledgers_are_clean(&platform, ENOUGH / 2);
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
fn an_app_that_starts_slowly_has_its_requests_parked() {
    let platform = Platform::start();
    let slow = |version: &str| {
        vec![
            "deploy".to_owned(),
            image("trivial", version),
            "--app".into(),
            "web".into(),
            "--env".into(),
            "START_DELAY_MS=2000".into(),
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
    ledgers_are_clean(&platform, report.sent);
    let ledgers = platform.json(&["ledger", "web"]);
    let parked: u64 =
        ledgers.as_array().unwrap().iter().map(|l| l["parked"].as_u64().unwrap()).sum();
    assert!(parked > 0, "with one instance down, requests must have waited: {ledgers}");
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
    ledgers_are_clean(&platform, ENOUGH / 2);
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
    ledgers_are_clean(&platform, ENOUGH / 2);
}
