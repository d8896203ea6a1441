//! An Instance handed over from one Container to another: who answers when, on which
//! connection, and what is known after a crash in the middle.
#![allow(clippy::unwrap_used)]

mod node_harness;

use std::net::SocketAddr;
use std::time::Instant;

use node_harness::{Line, Node, PATIENCE, get, one, patch, towards};
use rustix::process::Signal;
use serde_json::json;
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{
    ContainerSeen, ContainerState, Fallback, Health, InstanceSeen, ReleaseSpec, Slot, TrafficState,
};
use stead_core::ids::ContainerId;
use stead_core::manifest::Manifest;
use stead_testkit::contract::Seen;
use stead_testkit::sim::app_key;

/// Where the sample service answers raw TCP.
const TCP: u16 = 9000;

/// Raw TCP, and more grace than a test needs.
fn patient(settings: &mut Manifest) {
    patch(settings, json!({"env": {"TCP_PORT": TCP.to_string()}, "lifecycle": {"grace": "60s"}}));
}

/// Two Releases of an App; the second with a change.
async fn two(node: &Node, change: serde_json::Value) -> [(u32, ReleaseSpec); 2] {
    let second = |settings: &mut Manifest| {
        patient(settings);
        patch(settings, change);
    };
    [(1, node.release("1", patient).await), (2, node.release("2", second).await)]
}

fn raw(instance: &InstanceSeen) -> SocketAddr {
    SocketAddr::new(instance.sandbox.as_ref().unwrap().ip, TCP)
}

fn http(instance: &InstanceSeen) -> SocketAddr {
    SocketAddr::new(instance.sandbox.as_ref().unwrap().ip, 8080)
}

fn serves_run(run: u32) -> impl Fn(&InstanceSeen) -> bool {
    move |i| i.serving().is_some_and(|c| c.revision.run == run && i.slot == c.slot)
}

fn frozen(instance: &InstanceSeen) -> Option<&ContainerSeen> {
    instance.containers.iter().find(|c| c.is_frozen())
}

fn serving_id(instance: &InstanceSeen) -> ContainerId {
    instance.serving().unwrap().id.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_serves_until_the_new_is_ready_and_keeps_its_connections() {
    let node = Node::new('g').await;
    let releases = two(&node, json!({"env": {"START_DELAY_MS": "700"}})).await;
    // Another App, whose connections go from Sandbox to Sandbox.
    let peer = app_key("peer");
    node.apply(&towards(&peer, 1, (1, 1), &releases)).await;
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let neighbour = http(&node.until_of(&peer, "the neighbour serves", serves_run(1)).await);
    let before = node.until("the first serves", serves_run(1)).await;
    let (old, to) = (serving_id(&before), raw(&before));
    let ask = |name: &str| get(neighbour, &format!("/tcp/ask?name={name}&to={to}"));
    assert!(ask("kept").starts_with("1 "));
    let mark = node.gateway.backend(&old).mark;
    assert!(mark.is_some(), "the gateway reaches this very Container from the beginning");

    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let starting = node
        .until("the new one starts beside it", |i| {
            let state = |c: &ContainerSeen| c.state.clone();
            i.mains().any(|c| {
                matches!(state(c), ContainerState::Running { health: Health::Starting, .. })
            })
        })
        .await;
    assert_eq!((serving_id(&starting), starting.slot), (old.clone(), Slot::A));
    assert!(ask("early").starts_with("1 "), "new connections, too, go to the old one");

    let after = node.until("the second serves", serves_run(2)).await;
    let new = after.serving().unwrap();
    assert_eq!((new.slot, &after.sandbox), (Slot::B, &before.sandbox), "at the same address");
    assert!(ask("late").starts_with("2 "));
    assert_eq!(Line::open(to, None).version(), "2");
    // The gateway's connections go where they are meant to, opened late or not.
    assert_eq!(Line::open(to, mark).version(), "1");
    assert_eq!(Line::open(to, node.gateway.backend(&new.id).mark).version(), "2");
    assert!(ask("kept").starts_with("1 "));
    // It waits for those that are connected, and for nobody else.
    assert_eq!(one(&node.seen().await, &old).traffic, TrafficState::Draining);
    for name in ["kept", "early"] {
        get(neighbour, &format!("/tcp/close?name={name}"));
    }
    let still = node.until("the old one stands still", |i| frozen(i).is_some()).await;
    assert_eq!(frozen(&still).unwrap().id, old);
    assert!(ask("late").starts_with("2 "));

    let seen = node.witness.seen();
    let at = |wanted: &Seen| seen.iter().position(|seen| seen == wanted).unwrap();
    assert!(at(&Seen::Attached(new.id.clone())) < at(&Seen::Draining(old)));
    assert_eq!(node.phases(PhaseName::Flip).len(), 1);
    assert_eq!(node.phases(PhaseName::Freeze).len(), 1);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_a_thaw_and_meets_the_same_process() {
    rolled_back(Node::new('h').await, json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_a_thaw_where_only_one_may_run_too() {
    let in_place = json!({"strategy": "in-place", "keep_previous": "60s"});
    rolled_back(Node::new('m').await, json!({"rollout": in_place})).await;
}

async fn rolled_back(mut node: Node, change: serde_json::Value) {
    let with = |settings: &mut Manifest| {
        patient(settings);
        patch(settings, change.clone());
    };
    let releases = [(1, node.release("1", with).await), (2, node.release("2", with).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("the first serves", serves_run(1)).await;
    let who = Line::open(raw(&first), None).ask();
    assert!(get(http(&first), "/count").starts_with("1 "));
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let both = |i: &InstanceSeen| serves_run(2)(i) && frozen(i).is_some();
    let still = node.until("the old one stands still", both).await;
    let ContainerState::Frozen { since } = frozen(&still).unwrap().state else { panic!() };

    node.restart().await;
    let known = node.until("it is known", both).await;
    let ContainerState::Frozen { since: noted } = frozen(&known).unwrap().state else { panic!() };
    assert!(noted <= since && since.since(noted).0 < 1_000_000, "{noted:?} {since:?}");

    node.apply(&towards(&node.app, 3, (1, 3), &releases)).await;
    let back = node.until("the first serves again", serves_run(3)).await;
    let container = back.serving().unwrap();
    assert_eq!((&container.id, container.born), (&serving_id(&first), 1));
    assert_eq!(back.slot, Slot::A);
    assert_eq!(Line::open(raw(&back), None).ask(), who);
    assert!(get(http(&back), "/count").starts_with("2 "), "it remembers");
    assert_eq!((node.phases(PhaseName::Thaw).len(), back.crashes), (1, 0));
    let ready = node.phases(PhaseName::Ready).pop().unwrap();
    assert_eq!(ready.revision.unwrap().run, 3, "told as a part of the rollback");
    // And there and back again: what stands still is another one each time.
    let second = node.until("the second stands still", |i| frozen(i).is_some()).await;
    assert_eq!(frozen(&second).unwrap().id, serving_id(&still));
    node.restart().await;
    let known = node.until("it is known", |i| i.serving().is_some()).await;
    assert_eq!(known.serving().unwrap().revision.run, 3, "its new name is written on it");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wanted_again_while_it_drains_goes_on_at_once() {
    let node = Node::new('i').await;
    let releases = two(&node, json!({})).await;
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("the first serves", serves_run(1)).await;
    let mut line = Line::open(raw(&first), None);
    let who = line.ask();
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    node.until("the second serves", serves_run(2)).await;
    let begun = Instant::now();
    node.apply(&towards(&node.app, 3, (1, 3), &releases)).await;
    node.until("the first serves again", serves_run(3)).await;
    assert!(begun.elapsed() < PATIENCE, "it does not wait for the end of its grace");
    assert_eq!([line.ask(), Line::open(raw(&first), None).ask()], [who.clone(), who]);
    node.end().await;
}

/// Changes a Release and asserts that at no time two run, and why people are told so.
async fn one_after_the_other(node: Node, change: serde_json::Value) -> Fallback {
    let with = |settings: &mut Manifest| patch(settings, change.clone());
    let releases = [(1, node.release("1", with).await), (2, node.release("2", with).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("the first serves", serves_run(1)).await;
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let mut most = 0;
    let alive = |i: &InstanceSeen| i.containers.iter().filter(|c| c.alive()).count();
    loop {
        let now = node.seen().await;
        most = most.max(alive(&now));
        if serves_run(2)(&now) {
            assert_eq!(now.sandbox, first.sandbox);
            break;
        }
    }
    assert_eq!(most, 1);
    let events = node.witness.events().into_iter();
    let mut told: Vec<Fallback> = events
        .filter_map(|event| match event.fact {
            Fact::Fallback { because } => Some(because),
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 1, "once, and not for the first start: {told:?}");
    node.end().await;
    told.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_never_write_to_one_disk() {
    let volume = json!({"volumes": [{"name": "data", "mount": "/data"}]});
    let because = one_after_the_other(Node::new('j').await, volume).await;
    assert_eq!(because, Fallback::ExclusiveVolume { name: "data".into() });
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_do_not_fit_into_the_memory_run_one_after_the_other() {
    let limit = json!({"resources": {"memory": "4096Gi"}});
    let because = one_after_the_other(Node::new('r').await, limit).await;
    assert!(matches!(because, Fallback::Memory { needed, free } if needed == 4 << 40 && free > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_in_the_midst_of_a_handover_changes_nothing() {
    let mut node = Node::new('k').await;
    // The hook holds the change up while the new one is prepared.
    let hook = json!({"http": "/slow?ms=1500", "deadline": "30s"});
    let change = json!({
        "env": {"START_DELAY_MS": "1500"},
        "lifecycle": {"hooks": {"before_update": hook}},
    });
    let releases = two(&node, change).await;
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("the first serves", serves_run(1)).await;
    let (old, to) = (serving_id(&first), raw(&first));
    let mut line = Line::open(to, None);
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;

    let is_new = |c: &&ContainerSeen| c.revision.run == 2;
    let in_b = |state: fn(&ContainerState) -> bool| {
        move |i: &InstanceSeen| {
            i.mains().find(is_new).is_some_and(|c| c.slot == Slot::B && state(&c.state))
        }
    };
    let prepared = in_b(|state| *state == ContainerState::Prepared);
    let new = node.until("it is prepared", &prepared).await;
    let new = new.mains().find(is_new).unwrap().id.clone();
    node.restart().await;
    let now = node.seen().await;
    assert!(prepared(&now), "{now:?}");
    assert_eq!(Line::open(to, None).version(), "1");

    let both = in_b(|state| matches!(state, ContainerState::Running { .. }));
    // The model says so a moment earlier than it is.
    let started = |_: &InstanceSeen| {
        node.phases(PhaseName::Start).iter().any(|e| e.container.as_ref() == Some(&new))
    };
    node.until("both run", |i| both(i) && started(i)).await;
    node.restart().await;
    let now = node.seen().await;
    assert!(both(&now) && serving_id(&now) == old, "{now:?}");
    assert_eq!(Line::open(to, None).version(), "1");

    // The open connection holds the end of the old one up.
    node.until("the new one serves", serves_run(2)).await;
    node.restart().await;
    let now = node.seen().await;
    assert_eq!(now.slot, Slot::B, "nobody takes the flip back");
    assert_eq!((Line::open(to, None).version(), line.version()), ("2".into(), "1".into()));
    drop(line);
    let end = node.until("the old one stands still", |i| frozen(i).is_some()).await;
    assert_eq!((serving_id(&end), &frozen(&end).unwrap().id), (new, &old));
    assert_eq!((end.crashes, end.trouble), (0, None));
    assert_eq!(node.phases(PhaseName::Flip).len(), 1);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_and_probes_change_without_a_restart() {
    let node = Node::new('l').await;
    let limits = json!({"resources": {"memory": "96Mi", "pids": 77}});
    let later = |settings: &mut Manifest| {
        patient(settings);
        patch(settings, limits);
    };
    let releases = [(1, node.release("1", patient).await), (2, node.release("1", later).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("the first serves", serves_run(1)).await;
    let who = Line::open(raw(&first), None).ask();
    let limit = |file: &str| node.limit(serving_id(&first).as_str(), file);
    assert_ne!(limit("pids.max"), ["77"]);
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let second = node.until("it is the second", serves_run(2)).await;
    assert_eq!((serving_id(&second), second.containers.len()), (serving_id(&first), 1));
    assert_eq!(Line::open(raw(&second), None).ask(), who);
    assert_eq!(limit("pids.max"), ["77"]);
    let memory = [limit("memory.limit_in_bytes"), limit("memory.max")].concat();
    assert!(memory.contains(&(96 << 20).to_string()), "{memory:?}");
    let backend = node.gateway.backend(&serving_id(&second));
    assert_eq!(backend.revision.release.0, 2, "its share of the requests is the new Release's");

    // The same again with a probe that fails: the new settings are those that hold.
    let deaf = |settings: &mut Manifest| {
        patient(settings);
        let liveness = json!({"tcp": 1, "period": "10ms", "failures": 2});
        patch(settings, json!({"health": {"liveness": liveness}}));
    };
    let releases = [(2, releases[1].1.clone()), (3, node.release("1", deaf).await)];
    node.apply(&towards(&node.app, 3, (3, 3), &releases)).await;
    let ill = node.until("it is given up", |i| i.trouble.is_some()).await;
    let trouble = ill.trouble.unwrap();
    assert!(trouble.was_ready && trouble.revision.run == 3, "{trouble:?}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_cannot_be_set_is_told_and_what_runs_goes_on() {
    let node = Node::new('n').await;
    let large = json!({"env": {"ALLOCATE_MB": "32"}});
    let small = json!({"resources": {"memory": "16Mi"}});
    let with = |change: serde_json::Value| {
        let large = large.clone();
        move |settings: &mut Manifest| {
            patient(settings);
            patch(settings, large);
            patch(settings, change);
        }
    };
    let releases =
        [(1, node.release("1", with(json!({}))).await), (2, node.release("1", with(small)).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("it serves", serves_run(1)).await;
    let who = Line::open(raw(&first), None).ask();
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let refused = |i: &InstanceSeen| i.trouble.as_ref().is_some_and(|t| t.count >= 2);
    let now = node.until("it is refused again and again", refused).await;
    let trouble = now.trouble.as_ref().unwrap();
    assert_eq!((trouble.revision.run, trouble.was_ready), (2, false));
    assert!(serves_run(1)(&now) && now.crashes == 0);
    assert_eq!(Line::open(raw(&now), None).ask(), who);
    node.end().await;
}

/// How the first of two Releases ends whose time to stand still is over, and whether its
/// farewell was run.
async fn end_of_the_kept(node: &Node, change: serde_json::Value) -> (i32, bool) {
    let woken = json!(["python3", "-c", "open('/data/woken', 'w')"]);
    let with = |settings: &mut Manifest| {
        let rollout = json!({"strategy": "in-place", "keep_previous": "200ms"});
        patch(settings, json!({"rollout": rollout, "lifecycle": {"pre_stop": {"exec": woken}}}));
        patch(settings, change.clone());
    };
    let release = |tag| node.release_from("python3", tag, with);
    let releases = [(1, release("1").await), (2, release("2").await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = serving_id(&node.until("the first serves", serves_run(1)).await);
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let alone = |i: &InstanceSeen| serves_run(2)(i) && i.containers.iter().all(|c| c.id != first);
    node.until("only the second is there", alone).await;
    assert_eq!(node.phases(PhaseName::Freeze).len(), 1);
    let events = node.witness.events().into_iter();
    let ends = events.filter(|event| event.container.as_ref() == Some(&first));
    let mut codes = ends.filter_map(|event| match event.fact {
        Fact::Exited { exit } => Some(exit.code),
        _ => None,
    });
    let code = codes.next().unwrap();
    let volumes = node.config.data_dir.join("volumes");
    (code, holds_file(&volumes, "woken"))
}

fn holds_file(folder: &std::path::Path, name: &str) -> bool {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_str() == Some(name) || holds_file(&entry.path(), name))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_still_never_moves_again_where_another_has_its_disk() {
    let node = Node::new('s').await;
    let exclusive = json!({"volumes": [{"name": "data", "mount": "/data"}]});
    let (code, woken) = end_of_the_kept(&node, exclusive).await;
    assert_eq!((code, woken), (128 + libc::SIGKILL, false));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_still_says_farewell_where_it_harms_nobody() {
    let node = Node::new('t').await;
    let shared = json!({"volumes": [{"name": "data", "mount": "/data", "shared": true}]});
    assert_eq!(end_of_the_kept(&node, shared).await, (0, true));
    node.end().await;
}

/// A readiness that a process that was stopped loses within a moment.
fn watched(settings: &mut Manifest) {
    patient(settings);
    let readiness =
        json!({"http": "/healthz", "period": "20ms", "timeout": "100ms", "failures": 2});
    patch(settings, json!({"health": {"readiness": readiness}}));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_that_drains_takes_over_again_when_the_new_fails() {
    let node = Node::new('u').await;
    let releases = [(1, node.release("1", watched).await), (2, node.release("2", watched).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("the first serves", serves_run(1)).await;
    let (old, to) = (serving_id(&first), raw(&first));
    let mut line = Line::open(to, None);
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let drains =
        |i: &InstanceSeen| serves_run(2)(i) && one(i, &old).traffic == TrafficState::Draining;
    let second = node.until("the second serves, the first drains", drains).await;
    let new = serving_id(&second);
    node.signal(new.as_str(), Signal::STOP);
    node.until("the first serves again", serves_run(1)).await;
    assert_eq!((Line::open(to, None).version(), line.version()), ("1".into(), "1".into()));
    node.signal(new.as_str(), Signal::CONT);
    node.until("the second serves again, the first drains", drains).await;
    assert_eq!(Line::open(to, None).version(), "2");
    drop(line);
    node.until("the first stands still", |i| frozen(i).is_some_and(|c| c.id == old)).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_what_was_unready_when_it_was_replaced_are_not_cut() {
    let node = Node::new('v').await;
    let releases = [(1, node.release("1", watched).await), (2, node.release("2", watched).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("the first serves", serves_run(1)).await;
    let old = serving_id(&first);
    let mut line = Line::open(raw(&first), None);
    node.signal(old.as_str(), Signal::STOP);
    let out = |i: &InstanceSeen| one(i, &old).traffic == TrafficState::Detached;
    node.until("it is taken out", out).await;
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let ends = |i: &InstanceSeen| {
        let state = i.containers.iter().find(|c| c.id == old).map(|c| &c.state);
        serves_run(2)(i) && matches!(state, Some(ContainerState::Stopping { .. }))
    };
    node.until("the second serves, the first is to end", ends).await;
    node.signal(old.as_str(), Signal::CONT);
    for _ in 0..20 {
        assert_eq!(line.version(), "1");
    }
    drop(line);
    node.until("it has ended", |i| i.containers.iter().all(|c| c.id != old)).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_change_that_was_cut_off_do_not_stay() {
    let mut node = Node::new('w').await;
    let limited = |settings: &mut Manifest| {
        patient(settings);
        patch(settings, json!({"resources": {"pids": 55}}));
    };
    let releases = [(1, node.release("1", limited).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let id = serving_id(&node.until("it serves", serves_run(1)).await);
    assert_eq!(node.limit(id.as_str(), "pids.max"), ["55"]);
    // As an update does first, whose `serve` is then killed and whose Rollout is aborted.
    node.set_limit(id.as_str(), "pids.max", "77");
    node.restart().await;
    assert_eq!(node.limit(id.as_str(), "pids.max"), ["55"]);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_crash_starts_when_no_request_can_reach_it_too_early() {
    let node = Node::new('x').await;
    let releases = [(1, node.release("1", patient).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = serving_id(&node.until("it serves", serves_run(1)).await);
    node.gateway.be_deaf(true);
    node.kill(first.as_str());
    let ended = |i: &InstanceSeen| matches!(one(i, &first).state, ContainerState::Exited(_));
    let told = |_: &InstanceSeen| node.gateway.detaches(&first) == 2;
    let now = node.until("its end is known, and the next waits", |i| ended(i) && told(i)).await;
    assert_eq!(one(&now, &first).traffic, TrafficState::Draining);
    assert_eq!(node.phases(PhaseName::Start).len(), 1);
    node.gateway.be_deaf(false);
    let next = |i: &InstanceSeen| serves_run(1)(i) && i.containers.iter().all(|c| c.id != first);
    node.until("the next serves", next).await;
    node.end().await;
}
