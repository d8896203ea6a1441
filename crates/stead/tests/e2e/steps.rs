//! Releases in steps: batches with gates, gray requests, changes of mind, and everything else that
//! may happen meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;
use stead_testkit::load::{Mix, Plan};

use crate::load::{Load, ledgers_are_clean};
use crate::platform::{Platform, eventually, fetch, header, image};

const HOST: &str = "web.default.localhost";
/// Clients of plain requests alone: streams are another test's.
const MIX: Mix = Mix { keep_alive: 4, one_shot: 2, ..Mix::NOBODY };

/// Four batches of twelve Instances; the first takes gray requests alone; a person decides.
const FOUR: &str = "instances: 12
rollout:
  pause: manual
  batches:
    - {instances: 3, match: [{header: {name: x-gray, value: \"yes\"}}]}
    - 6
    - 9
    - 12";

/// Looks at the App through the API all the time: the fewest Instances that take requests and
/// answer, those above the wanted number among them, and the most there are.
struct Watcher {
    stop: Arc<AtomicBool>,
    looking: JoinHandle<Extremes>,
}

#[derive(Debug, Clone, Copy)]
struct Extremes {
    ready: usize,
    instances: usize,
    looks: usize,
}

impl Watcher {
    fn start(platform: &Platform) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let api = platform.api();
        let looking = std::thread::spawn(move || {
            let mut seen = Extremes { ready: usize::MAX, instances: 0, looks: 0 };
            while !stopped.load(Ordering::Relaxed) {
                let instances = api.ask("/namespaces/default/apps/web/instances");
                if let Some(instances) = instances.as_ref().and_then(|all| all.as_array()) {
                    let serves =
                        |one: &&Value| one["state"] == "ready" && one["traffic"] == "attached";
                    seen.ready = seen.ready.min(instances.iter().filter(serves).count());
                    seen.instances = seen.instances.max(instances.len());
                    seen.looks += 1;
                }
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            seen
        });
        Self { stop, looking }
    }

    fn end(self) -> Extremes {
        self.stop.store(true, Ordering::Relaxed);
        let seen = self.looking.join().expect("it only looks");
        // A change of Instances that are ready at once takes some tens of milliseconds.
        assert!(seen.looks >= 5, "{seen:?}");
        seen
    }
}

/// Versions that a few requests meet, with or without the gray header.
fn met(platform: &Platform, gray: bool) -> BTreeSet<String> {
    let lines = if gray { "X-Gray: yes\r\n" } else { "" };
    let one = |_| {
        let (head, body) = fetch(platform.http, HOST, "/", lines).expect("the gateway answers");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        header(&head, "x-version")
    };
    (0..24).map(one).collect()
}

fn only(version: &str) -> BTreeSet<String> {
    BTreeSet::from([version.to_owned()])
}

/// Releases that the Instances run, by the API.
fn releases(platform: &Platform) -> BTreeSet<u64> {
    let instances = platform.json(&["ps", "web"]);
    let all = instances.as_array().expect("a list").iter();
    all.filter_map(|instance| instance["revision"]["release"].as_u64()).collect()
}

/// What `rollout status` says says this.
#[track_caller]
fn told(platform: &Platform, words: &[&str]) {
    let said = platform.stead(&["rollout", "status", "web"]).expect(0).stdout;
    for word in words {
        assert!(said.to_lowercase().contains(word), "{word:?} is missing in:\n{said}");
    }
}

#[test]
fn twelve_instances_in_four_batches_with_gates_and_a_change_of_mind() {
    let platform = Platform::start();
    platform.deploy("web", &image("trivial", "1"), "instances: 12").expect(0);
    let load = Load::start(&platform, MIX);
    let plan = Plan::new(platform.http, HOST).mix(Mix { keep_alive: 2, ..Mix::NOBODY });
    let gray = Load::with(plan.header("X-Gray", "yes"));
    load.more(100);
    let watcher = Watcher::start(&platform);

    platform.begin("web", &image("trivial", "2"), FOUR);
    platform.gate("web", 0);
    assert_eq!(met(&platform, false), only("1"), "only gray requests meet the first batch");
    assert_eq!(met(&platform, true), only("2"));
    told(&platform, &["batch", "promote"]);
    load.more(100);

    platform.stead(&["rollout", "promote", "web"]).expect(0);
    platform.gate("web", 1);
    assert_eq!(releases(&platform), BTreeSet::from([1, 2]));
    platform.stead(&["rollout", "pause", "web"]).expect(0);
    told(&platform, &["paused"]);
    load.more(100);
    platform.stead(&["rollout", "resume", "web"]).expect(0);
    platform.gate("web", 1);

    // Half is out when somebody thinks of something better.
    platform.begin("web", &image("trivial", "3"), FOUR);
    platform.gate("web", 0);
    eventually("the third release is the gray one", || {
        (met(&platform, true) == only("3")).then_some(())
    });
    told(&platform, &["release 3"]);
    load.more(100);

    platform.stead(&["rollout", "abort", "web"]).expect(0);
    platform.phase("web", "undone");
    assert_eq!(releases(&platform), BTreeSet::from([1]));
    assert_eq!(met(&platform, true), only("1"));
    load.more(100);

    let seen = watcher.end();
    assert_eq!((seen.ready, seen.instances), (12, 12), "never fewer than promised: {seen:?}");
    let (plain, gray) = (load.stop(), gray.stop());
    plain.assert_lossless(400);
    gray.assert_lossless(100);
    assert!(gray.of_version("2") > 0 && gray.of_version("3") > 0, "{gray}");
    ledgers_are_clean(&platform, "web", 500);
}

#[test]
fn a_gate_outlives_serve_and_scaling_and_a_restart_pass_through_it() {
    let platform = Platform::start();
    let half = "instances: 2\nrollout: {batches: 2, pause: manual}";
    platform.deploy("web", &image("trivial", "1"), "instances: 2").expect(0);
    let load = Load::start(&platform, Mix::EVERYTHING);
    load.more(100);
    platform.begin("web", &image("trivial", "2"), half);
    platform.gate("web", 0);

    let killed = platform.kill("serve");
    eventually("another serve", || platform.pid("serve").filter(|pid| *pid != killed));
    platform.gate("web", 0);
    assert_eq!(releases(&platform), BTreeSet::from([1, 2]));
    load.more(100);

    // Neither waits for the person at the gate.
    platform.stead(&["scale", "web", "4"]).expect(0);
    eventually("there are four", || (platform.app("web")?["ready"] == 4).then_some(()));
    let container = || platform.json(&["ps", "web"])[0]["container"].clone();
    let before = container();
    platform.stead(&["restart", "web", "--instance", "0", "--no-wait"]).expect(0);
    eventually("it was restarted", || {
        let app = platform.app("web")?;
        (container() != before && app["ready"] == 4).then_some(())
    });
    assert_eq!(platform.app("web").expect("serve answers")["rollout"]["phase"], "progressing");
    load.more(100);

    platform.stead(&["rollout", "promote", "--all", "web"]).expect(0);
    platform.phase("web", "watching");
    assert_eq!(releases(&platform), BTreeSet::from([2]));
    load.stop().assert_lossless(300);
    ledgers_are_clean(&platform, "web", 150);
}

#[test]
fn surge_keeps_capacity_where_instances_change_in_place() {
    let platform = Platform::start();
    let surge = "instances: 2\nrollout: {strategy: in-place, max_surge: 1}";
    platform.deploy("web", &image("trivial", "1"), surge).expect(0);
    let load = Load::start(&platform, MIX);
    load.more(100);
    let watcher = Watcher::start(&platform);
    platform.deploy("web", &image("trivial", "2"), surge).expect(0);
    let seen = watcher.end();
    assert_eq!((seen.ready >= 2, seen.instances), (true, 3), "{seen:?}");
    load.more(100);
    load.stop().assert_lossless(200);
    eventually("the third is gone", || {
        (platform.json(&["ps", "web"]).as_array()?.len() == 2).then_some(())
    });
    assert_eq!(releases(&platform), BTreeSet::from([2]));
}

#[test]
fn the_instance_that_goes_is_chosen() {
    let platform = Platform::start();
    platform.deploy("web", &image("trivial", "1"), "instances: 3").expect(0);
    let load = Load::start(&platform, MIX);
    load.more(100);
    platform.stead(&["scale", "web", "2", "--remove", "1"]).expect(0);
    eventually("it is gone", || {
        let instances = platform.json(&["ps", "web"]);
        let all = instances.as_array()?.iter();
        let left: Vec<_> = all.filter_map(|one| one["instance"].as_u64()).collect();
        (left == [0, 2]).then_some(())
    });
    load.more(100);
    load.stop().assert_lossless(200);
}
