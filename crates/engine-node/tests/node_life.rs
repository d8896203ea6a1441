//! What the node engine makes of Containers and holders that end, and of what they leave.
#![allow(clippy::unwrap_used)]

mod node_harness;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use node_harness::{Node, PATIENCE, health, patch};
use stead_core::engine::{Engine, ExecRequest};
use stead_core::event::Fact;
use stead_core::fleet::{ContainerState, Fleet, Health, InstanceSeen, Lineup, Revision};
use stead_core::ids::Generation;
use stead_core::manifest::{Manifest, Probe, Startup};
use stead_engine_node::NodeConfig;
use stead_testkit::contract::Seen;
use stead_testkit::sim::fleet;

#[tokio::test(flavor = "multi_thread")]
async fn an_end_while_serve_is_away_is_told_counted_and_made_good() {
    let mut node = Node::new('a').await;
    node.run("1", |_| {}).await;
    let first = node.serving(None).await.serving().unwrap().id.clone();
    node.engine = None;
    node.kill(first.as_str());
    node.open().await;
    let now = node.serving(Some(&first)).await;
    assert_eq!((now.crashes, now.trouble.map(|t| t.count)), (1, Some(1)));
    let told = |event: &stead_core::event::Event| match &event.fact {
        Fact::Exited { exit } => event.container.as_ref() == Some(&first) && exit.code == 137,
        _ => false,
    };
    assert_eq!(node.witness.events().iter().filter(|event| told(event)).count(), 1);
    assert!(node.witness.seen().contains(&Seen::Detached(first.clone())), "gateways are told");
    let mark = node.config.run_dir.join("open").join(first.as_str());
    assert!(!mark.exists());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_holder_is_replaced_and_counted() {
    let node = Node::new('b').await;
    node.run("1", |_| {}).await;
    let mut before = node.serving(None).await;
    for round in 1..=2 {
        node.kill("/holders");
        let now = node.serving(before.serving().map(|c| &c.id)).await;
        assert_ne!(now.sandbox, before.sandbox);
        assert_eq!(now.trouble.as_ref().map(|t| t.count), Some(round));
        assert_eq!(now.containers.len(), 1);
        before = now;
    }
    let open = std::fs::read_dir(node.config.run_dir.join("open")).unwrap().count();
    assert_eq!(open, 1, "only what is there has a mark");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_started_but_is_not_ready_gets_no_requests() {
    let mut node = Node::new('c').await;
    node.run("never-ready", |settings| {
        let (startup, ready) = (r#"{"tcp": 8080, "timeout": "1s"}"#, r#"{"http": "/healthz"}"#);
        let startup: Startup = serde_json::from_str(startup).unwrap();
        let readiness: Probe = serde_json::from_str(ready).unwrap();
        settings.health.startup = Some(startup);
        settings.health.readiness = Some(readiness);
    })
    .await;
    let unready = |i: &InstanceSeen| health(i) == Some(Health::Unready);
    let first = node.until("it is not ready", unready).await;
    // A restart of `serve` long after the start does not take it for one that never started.
    let ContainerState::Running { since, .. } = first.containers[0].state else { panic!() };
    let is_old = || since.0 + 1_100_000 < now_micros();
    while !is_old() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.engine = None;
    node.open().await;
    let second = node.until("it is not ready", unready).await;
    assert_eq!(first.containers[0].id, second.containers[0].id);
    assert!(second.trouble.is_none() && !node.witness.attached_any());
    node.end().await;
}

fn now_micros() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_micros()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn however_often_serve_ends_amid_its_work_nothing_is_left_over() {
    let mut node = Node::new('e').await;
    let brief = |settings: &mut Manifest| {
        patch(settings, serde_json::json!({"rollout": {"keep_previous": "100ms"}}));
    };
    let releases = [(1, node.release("1", brief).await), (2, node.release("2", brief).await)];
    let mut wanted = fleet(&node.app, 1, 1, (1, 0), &releases);
    for round in 0..24 {
        wanted.generation = Generation(u64::from(round) + 1);
        // Now another Release, now the same one run anew, once a scale to none.
        wanted.lineup = match round % 3 {
            0 => fleet(&node.app, 1, 1, (1 + round / 3 % 2, round), &releases).lineup,
            _ => wanted
                .lineup
                .map(|was| Lineup::all(Revision { run: round, since: round, ..was.base })),
        };
        wanted.heading = wanted.lineup.as_ref().map(|lineup| lineup.base);
        wanted.instances = u32::from(round != 11);
        node.engine().apply(wanted.clone()).await.unwrap();
        // Each round ends a little later in the work, up to its end.
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 7)).await;
        node.engine = None;
        node.open().await;
    }
    let target = wanted.heading.unwrap();
    let good = |i: &InstanceSeen| match i.containers.as_slice() {
        [only] => only.serves() && only.revision == target,
        _ => false,
    };
    let now = node.until("only what is wanted is there", good).await;
    let id = now.containers[0].id.as_str();
    // The one before is gone for everybody before its group and its folder are.
    let others = || {
        let groups = node.groups(".").into_iter().filter(|group| !group.ends_with(id));
        let groups = groups.map(|group| group.display().to_string());
        let uppers = std::fs::read_dir(node.config.data_dir.join("upper")).unwrap().flatten();
        let layers = uppers
            .flat_map(|sandbox| std::fs::read_dir(sandbox.path()).unwrap().flatten())
            .map(|layer| layer.file_name().into_string().unwrap())
            .filter(|layer| layer != id);
        groups.chain(layers).collect::<Vec<_>>()
    };
    let begun = Instant::now();
    while !others().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "left over: {:?}", others());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(std::fs::read_dir(node.config.run_dir.join("open")).unwrap().count(), 1);
    assert_eq!((now.crashes, now.trouble), (0, None));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_command_ends_with_its_caller() {
    let node = Node::new('f').await;
    // The sample service, main or not, is silent for as long as this.
    node.run("1", |settings| {
        let env: Manifest = serde_json::from_str(
            r#"{"app": "x", "source": "y", "env": {"START_DELAY_MS": "600000"}}"#,
        )
        .unwrap();
        settings.env = env.env;
        let startup = r#"{"http": "/healthz", "timeout": "60s"}"#;
        settings.health.startup = Some(serde_json::from_str(startup).unwrap());
    })
    .await;
    let now = node.until("it runs", |i| health(i) == Some(Health::Starting)).await;
    let folder = node.groups(now.containers[0].id.as_str()).pop().unwrap();
    let processes =
        || std::fs::read_to_string(folder.join("cgroup.procs")).unwrap().lines().count();
    for tty in [None, Some((24, 80))] {
        let argv = vec!["/hello".to_owned()];
        let request = ExecRequest { instance: None, argv, tty, stdin: true };
        let begun = Instant::now();
        let exec = loop {
            match node.engine().exec(&node.app, request.clone()).await {
                Ok(exec) => break exec,
                // The model runs ahead of the holder by a moment.
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
            }
        };
        assert_eq!(processes(), 3, "init, main, command");
        drop(exec);
        node.until("it has ended", |_| processes() == 2).await;
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_are_private_and_go_with_the_app() {
    let node = Node::new('d').await;
    let fleet = node.run("1", |_| {}).await;
    node.serving(None).await;
    let NodeConfig { data_dir, run_dir, .. } = &node.config;
    for folder in [
        run_dir.join("open"),
        run_dir.join("fleets"),
        data_dir.join("logs"),
        data_dir.join("volumes"),
    ] {
        let mode = std::fs::metadata(&folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", folder.display());
    }
    let logs = data_dir.join("logs").join(node.app.namespace.as_str()).join(node.app.app.as_str());
    assert!(logs.exists());
    let none = Fleet { instances: 0, generation: fleet.generation.next(), ..fleet };
    node.engine().apply(none).await.unwrap();
    let begun = Instant::now();
    while let Err(error) = node.engine().forget(&node.app, true).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!logs.exists());
    node.end().await;
}
