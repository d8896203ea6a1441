//! What an App does itself at turns of an Instance's life, and the sidecars beside it.
#![allow(clippy::unwrap_used)]

mod node_harness;

use std::time::Instant;

use futures_util::StreamExt;
use node_harness::{Line, Node, PATIENCE, get, patch, towards};
use serde_json::json;
use stead_core::engine::{Engine, ExecOutput, ExecRequest, LogQuery};
use stead_core::error::Code;
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{ContainerSeen, ContainerState, Fleet, InstanceSeen, Part, ReleaseSpec};
use stead_core::ids::ContainerId;
use stead_core::manifest::Manifest;
use stead_testkit::contract::Seen;

fn serves_run(run: u32) -> impl Fn(&InstanceSeen) -> bool {
    move |i| i.serving().is_some_and(|c| c.revision.run == run)
}

fn sidecar(instance: &InstanceSeen) -> Option<&ContainerSeen> {
    instance.containers.iter().find(|c| c.part == Part::Sidecar("proxy".into()) && c.ready())
}

fn address(instance: &InstanceSeen, port: u16) -> std::net::SocketAddr {
    (instance.sandbox.as_ref().unwrap().ip, port).into()
}

/// Every line that the App's Containers wrote, in order of time.
async fn output(node: &Node) -> Vec<String> {
    let lines = node.engine().logs(&node.app, LogQuery::default()).await.unwrap();
    let mut lines: Vec<_> = lines.collect().await;
    lines.sort_by(|a, b| a.time.cmp(&b.time));
    lines.into_iter().map(|line| line.text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_asked_in_their_order_and_of_the_right_container() {
    let node = Node::new('m').await;
    let hooks = json!({"lifecycle": {"hooks": {
        "before_update": {"http": "/hook/before"},
        "after_update": {"http": "/hook/after"},
        // Where the App is gone from: it keeps nobody.
        "pre_delete": {"http": "/no/such/page"},
    }}});
    let with = |settings: &mut Manifest| patch(settings, hooks.clone());
    let releases = [(1, node.release("1", with).await), (2, node.release("2", with).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    node.until("the first serves", serves_run(1)).await;
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let second = node.until("the second serves", serves_run(2)).await;
    let asked: Vec<String> =
        output(&node).await.into_iter().filter(|line| line.starts_with("/hook")).collect();
    assert_eq!(asked, ["/hook/after on 1", "/hook/before on 1", "/hook/after on 2"]);
    let new = second.serving().unwrap().id.clone();
    assert!(node.witness.seen().contains(&Seen::Attached(new)));

    let fleet = towards(&node.app, 3, (2, 2), &releases);
    node.apply(&Fleet { instances: 0, ..fleet }).await;
    let begun = Instant::now();
    while !node.engine().observe(&node.app).await.unwrap().instances.is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    let told = |code| {
        let events = node.witness.events();
        let is = |fact: &Fact| matches!(fact, Fact::Trouble { error } if error.code == code);
        events.iter().filter(|event| is(&event.fact)).count()
    };
    assert_eq!((told(Code::HookFailed), node.phases(PhaseName::Hook).len()), (1, 4));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_stops_the_change_and_the_old_goes_on() {
    let node = Node::new('n').await;
    let first = node.release("1", |_| {}).await;
    let bad = |hooks: serde_json::Value| {
        // Or the one that was given up would do for the next Release as it is.
        let env = json!({"TRY": hooks.to_string()});
        let change = json!({"env": env, "lifecycle": {"hooks": hooks}});
        move |settings: &mut Manifest| patch(settings, change)
    };
    let after = bad(json!({"after_update": {"http": "/no/such/page"}}));
    let late = bad(json!({"before_update": {"http": "/slow?ms=60000", "deadline": "100ms"}}));
    let missing = bad(json!({"after_update": {"exec": ["/no/such/program"]}}));
    let releases = [
        (1, first),
        (2, node.release("2", after).await),
        (3, node.release("2", late).await),
        (4, node.release("2", missing).await),
    ];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let before = node.until("the first serves", serves_run(1)).await;
    for target in 2..=4 {
        node.apply(&towards(&node.app, target.into(), (target, target), &releases)).await;
        let failed = |i: &InstanceSeen| {
            i.trouble.as_ref().is_some_and(|t| t.revision.run == target && t.count > 1)
        };
        let now = node.until("the hook has failed twice", failed).await;
        let trouble = now.trouble.as_ref().unwrap();
        assert_eq!((trouble.error.code, trouble.was_ready), (Code::HookFailed, false));
        assert_eq!(now.serving().map(|c| &c.id), before.serving().map(|c| &c.id));
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_over_when_the_apps_own_program_has_ended_well() {
    let node = Node::new('o').await;
    let env = json!({"TCP_PORT": "9000"});
    // A second one cannot listen where the first does, and ends with an error.
    let good = json!({"env": env, "command": ["/hello"]});
    let bad = json!({"env": env, "lifecycle": {"post_start": ["/hello"]}});
    let releases = [
        (1, node.release("1", |s| patch(s, good)).await),
        (2, node.release("2", |s| patch(s, bad)).await),
    ];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let before = node.until("the first serves", serves_run(1)).await;
    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let failed = |i: &InstanceSeen| i.trouble.as_ref().is_some_and(|t| t.revision.run == 2);
    let now = node.until("its start has failed", failed).await;
    assert_eq!(now.trouble.unwrap().error.code, Code::HookFailed);
    let stopped = |i: &InstanceSeen| !i.mains().any(|c| c.revision.run == 2 && c.alive());
    let now = node.until("it is stopped", stopped).await;
    assert_eq!(now.serving().map(|c| &c.id), before.serving().map(|c| &c.id));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_start_is_done_once() {
    let mut node = Node::new('s').await;
    let (source, digest) = node.image_of("python3", "1").await;
    let python = |program: &str| json!(["/usr/bin/python3", "-c", program]);
    let change = json!({
        "source": source,
        "lifecycle": {"post_start": python("open('/tmp/starts', 'a').write('x')")},
        // Asked for the first time, it finds what was to be done before.
        "health": {"startup": {"http": null, "exec": python("open('/tmp/starts')"), "timeout": "20s"}},
    });
    let mut release = node.release("1", |settings| patch(settings, change)).await;
    (release.image, release.reference) = (digest, source);
    node.apply(&towards(&node.app, 1, (1, 1), &[(1, release)])).await;
    node.until("it serves", serves_run(1)).await;
    node.restart().await;
    node.until("it serves", serves_run(1)).await;
    let argv = serde_json::from_value(python("print(open('/tmp/starts').read())")).unwrap();
    let request = ExecRequest { argv, instance: None, tty: None, stdin: false };
    let exec = node.engine().exec(&node.app, request).await.unwrap();
    let output: Vec<ExecOutput> = exec.output.collect().await;
    assert_eq!(output, [ExecOutput::Stdout(b"x\n".to_vec()), ExecOutput::Exit(0)]);
    node.end().await;
}

/// The sample service, with another as its sidecar.
async fn with_sidecar(node: &Node, tag: &str, env: serde_json::Value) -> ReleaseSpec {
    let (source, digest) = node.image("side").await;
    let proxy = json!({
        "name": "proxy",
        "source": source,
        "env": env,
        "health": {"readiness": {"tcp": 8081}},
        "volumes": [{"name": "data", "mount": "/shown"}],
    });
    let change = json!({
        "sidecars": [proxy],
        "env": {"TCP_PORT": "9000"},
        "volumes": [{"name": "data", "mount": "/data"}],
    });
    let mut release = node.release(tag, |settings| patch(settings, change)).await;
    release.sidecars.insert("proxy".into(), digest);
    release
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_starts_changes_and_restarts_by_itself() {
    let mut node = Node::new('p').await;
    let env = |version: &str| json!({"PORT": "8081", "VERSION": version});
    let releases = [
        (1, with_sidecar(&node, "1", env("s1")).await),
        (2, with_sidecar(&node, "1", env("s2")).await),
    ];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("all serve", |i| serves_run(1)(i) && sidecar(i).is_some()).await;
    let who = Line::open(address(&first, 9000), None).ask();
    let version = |i: &InstanceSeen| get(address(i, 8081), "/version").trim().to_owned();
    assert_eq!(version(&first), "s1");
    assert!(sidecar(&first).unwrap().id.as_str().contains(".proxy."));
    let usage = node.engine().usage(&node.app).await.unwrap();
    assert!(usage.len() == 1 && usage[0].pids >= 4, "{usage:?}");

    node.apply(&towards(&node.app, 2, (2, 2), &releases)).await;
    let changed =
        |i: &InstanceSeen| serves_run(2)(i) && sidecar(i).is_some_and(|c| c.revision.run == 2);
    let second = node.until("the sidecar is the second", changed).await;
    assert_eq!(version(&second), "s2");
    let main = |i: &InstanceSeen| i.serving().unwrap().id.clone();
    assert_eq!(
        (main(&second), Line::open(address(&second, 9000), None).ask()),
        (main(&first), who)
    );

    // It crashes: that is its own trouble, and nobody else's.
    let crashed: ContainerId = sidecar(&second).unwrap().id.clone();
    node.kill(crashed.as_str());
    let again = |i: &InstanceSeen| sidecar(i).is_some_and(|c| c.id != crashed);
    let third = node.until("the sidecar is back", again).await;
    let trouble = &third.sidecar_trouble["proxy"];
    assert!(trouble.error.message.contains("sidecar proxy of instance 0"), "{trouble:?}");
    assert_eq!((trouble.count, trouble.was_ready), (1, false));
    assert_eq!((third.trouble.is_none(), third.crashes, main(&third)), (true, 0, main(&first)));

    node.restart().await;
    let known = node.until("all is known", |i| serves_run(2)(i) && sidecar(i).is_some()).await;
    let ids = |i: &InstanceSeen| -> Vec<ContainerId> {
        let running = |c: &&ContainerSeen| matches!(c.state, ContainerState::Running { .. });
        i.containers.iter().filter(running).map(|c| c.id.clone()).collect()
    };
    assert_eq!((ids(&known).len(), ids(&known)), (2, ids(&third)));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_what_was_ready_is_told_as_such() {
    let node = Node::new('q').await;
    let releases = [(1, node.release("1", |_| {}).await)];
    node.apply(&towards(&node.app, 1, (1, 1), &releases)).await;
    let first = node.until("it serves", serves_run(1)).await;
    node.kill(first.serving().unwrap().id.as_str());
    let ill = node.until("it has crashed", |i| i.trouble.is_some()).await.trouble.unwrap();
    assert!(ill.was_ready, "{ill:?}");
    let back = node.until("it serves again", serves_run(1)).await;
    // What its holder takes with it is no fault of the App.
    node.kill("/holders");
    let other = |i: &InstanceSeen| serves_run(1)(i) && i.sandbox != back.sandbox;
    let ill = node.until("it serves in another Sandbox", other).await.trouble.unwrap();
    assert!(!ill.was_ready, "{ill:?}");
    node.end().await;
}
