//! Zero failed requests, whatever happens: under a load that notices every failure.

use std::time::Duration;

use stead_testkit::load::{Mix, Plan, Report, Running};

use crate::platform::{Platform, image};

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

/// Every request the gateway counted is accounted for, and none failed.
#[track_caller]
fn ledgers_are_clean(platform: &Platform) {
    let ledgers = platform.json(&["ledger", "web"]);
    let ledgers = ledgers.as_array().expect("a list");
    let mut received = 0;
    for ledger in ledgers {
        let failed = ledger["failed"].as_object().expect("by reason");
        assert!(failed.values().all(|n| n == 0), "{ledger}");
        received += ledger["received"].as_u64().expect("a number");
    }
    assert!(received >= ENOUGH, "{received} received");
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
    ledgers_are_clean(&platform);
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
    load.stop().assert_lossless(ENOUGH);
    let ledgers = platform.json(&["ledger", "web"]);
    let parked: u64 =
        ledgers.as_array().unwrap().iter().map(|l| l["parked"].as_u64().unwrap()).sum();
    assert!(parked > 0, "with one instance down, requests must have waited: {ledgers}");
    ledgers_are_clean(&platform);
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
    load.stop().assert_lossless(ENOUGH);
    ledgers_are_clean(&platform);
}

#[test]
fn the_gateway_is_replaced_under_load() {
    let platform = Platform::start();
    platform.stead(&["deploy", &image("trivial", "1"), "--app", "web"]).expect(0);
    let load = Load::start(&platform, Mix::EVERYTHING);
    load.more(200);
    let before = platform.pid("gateway").expect("a gateway runs");
    // As with a newer binary: `up` over a running platform replaces every role.
    platform.up();
    load.more(300);
    assert_ne!(platform.pid("gateway"), Some(before), "it was replaced");
    load.stop().assert_lossless(ENOUGH);
    ledgers_are_clean(&platform);
}
