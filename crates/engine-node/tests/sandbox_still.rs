//! Containers that stand still, that stand beside others, and that change their labels.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod sandbox_harness;

use std::time::Duration;

use sandbox_harness::{Platform, ask, shell};
use stead_engine_node::sandbox::{
    ContainerSpec, Resources, SandboxError, Status, ViewState, memory_available,
};

const GRACE: Duration = Duration::from_secs(5);

fn state(sandbox: &stead_engine_node::sandbox::Sandbox, id: &str) -> ViewState {
    sandbox.containers().into_iter().find(|view| view.id == id).unwrap().state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_container_is_known_as_such_by_the_next_serve() {
    let mut all = Platform::open("still1", 0).await;
    let sandbox = all.sandbox("a").await;
    // Several processes, all of them busy.
    let busy = "(while :; do echo tick; sleep 0.01; done) & while :; do :; done";
    all.start(&sandbox, all.container("one", &shell(busy))).await;
    all.start(&sandbox, all.container("other", &shell("exec sleep 1000"))).await;
    all.logged("one", "tick").await;
    let ViewState::Running { pid, started } = state(&sandbox, "one") else { panic!("it runs") };
    sandbox.freeze("one").await.unwrap();
    sandbox.freeze("one").await.unwrap();
    let ViewState::Frozen { pid: same, since, .. } = state(&sandbox, "one") else {
        panic!("{:?}", state(&sandbox, "one"))
    };
    assert_eq!(same, pid);
    assert!(since > started);
    let cpu = sandbox.usage("one").await.unwrap().cpu;
    sandbox.reclaim("one").await.unwrap();
    assert!(matches!(state(&sandbox, "other"), ViewState::Running { .. }));
    drop(sandbox);
    all.crash();

    all.reopen().await;
    let sandbox = all.host().get("a").unwrap();
    assert_eq!(state(&sandbox, "one"), ViewState::Frozen { pid, started, since });
    assert_eq!(sandbox.usage("one").await.unwrap().cpu, cpu);
    let ticks = || all.log("one").matches("tick").count();
    let before = ticks();
    sandbox.thaw("one").await.unwrap();
    assert_eq!(state(&sandbox, "one"), ViewState::Running { pid, started });
    all.until("all of it goes on", async || {
        ticks() > before + 2 && sandbox.usage("one").await.unwrap().cpu > cpu
    })
    .await;
    sandbox.freeze("one").await.unwrap();
    let exit = sandbox.stop("one", libc::SIGTERM, GRACE).await.unwrap();
    assert_eq!(exit.status, Status::Signal(libc::SIGTERM));
    let gone = sandbox.freeze("one").await;
    assert!(matches!(gone, Err(SandboxError::WrongState { .. })), "{gone:?}");
    // Deaf and frozen: it has to be killed.
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 0.01; done";
    all.start(&sandbox, all.container("deaf", &shell(deaf))).await;
    all.logged("deaf", "deaf").await;
    sandbox.freeze("deaf").await.unwrap();
    let exit = sandbox.stop("deaf", libc::SIGTERM, Duration::from_millis(50)).await.unwrap();
    assert_eq!(exit.status, Status::Signal(libc::SIGKILL));
    sandbox.freeze("other").await.unwrap();
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_replaced_for_good() {
    let mut all = Platform::open("still2", 0).await;
    let sandbox = all.sandbox("a").await;
    let labels = |text: &str| [("release".to_owned(), text.to_owned())].into();
    let spec = all.container("one", &shell("exec sleep 1000"));
    all.start(&sandbox, ContainerSpec { labels: labels("1"), ..spec }).await;
    sandbox.label("one", labels("2")).await.unwrap();
    assert_eq!(sandbox.containers()[0].labels, labels("2"));
    let unknown = sandbox.label("two", labels("2")).await;
    assert!(matches!(unknown, Err(SandboxError::NotFound { .. })), "{unknown:?}");
    drop(sandbox);
    all.crash();
    all.reopen().await;
    assert_eq!(all.host().get("a").unwrap().containers()[0].labels, labels("2"));
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_side_by_side_share_the_network_and_nothing_else() {
    let all = Platform::open("still3", 0).await;
    let sandbox = all.sandbox("a").await;
    let limited = |id: &str, megabytes: u64, script: &str| {
        let memory_bytes = Some(megabytes << 20);
        let resources = Resources { memory_bytes, ..Resources::default() };
        ContainerSpec { resources, ..all.container(id, &shell(script)) }
    };
    let web = "mkdir /www; echo served > /www/index.html; exec httpd -f -p 80 -h /www";
    all.start(&sandbox, limited("main", 64, web)).await;
    assert_eq!(all.fetch(sandbox.ip()).await, "served\n");
    let greedy = "echo up; while [ ! -e /go ]; do sleep 0.01; done; exec tail /dev/zero";
    all.start(&sandbox, limited("greedy", 16, greedy)).await;
    all.start(&sandbox, limited("proxy", 32, "exec sleep 1000")).await;
    all.logged("greedy", "up").await;
    // By loopback, as a sidecar would.
    assert_eq!(all.output(&sandbox, "proxy", &ask("127.0.0.1", 80)).await.1, "served\n");
    // Each sees its own processes and files only.
    let seen =
        all.output(&sandbox, "proxy", "ps -o comm; ls /www 2>/dev/null || echo none").await.1;
    assert!(!seen.contains("httpd") && seen.contains("none"), "{seen}");
    // One that goes beyond its limit takes nobody along.
    all.output(&sandbox, "greedy", "touch /go").await;
    let exit = tokio::time::timeout(GRACE, sandbox.wait("greedy")).await.unwrap().unwrap();
    assert!(exit.out_of_memory);
    for id in ["main", "proxy"] {
        assert!(matches!(state(&sandbox, id), ViewState::Running { .. }), "{id}");
    }
    // A sidecar is exchanged beside the main Container.
    sandbox.stop("proxy", libc::SIGTERM, GRACE).await.unwrap();
    all.start(&sandbox, limited("proxy-2", 32, "exec sleep 1000")).await;
    assert_eq!(all.output(&sandbox, "proxy-2", &ask("127.0.0.1", 80)).await.1, "served\n");
    assert_eq!(all.fetch(sandbox.ip()).await, "served\n");
    assert!(memory_available().unwrap() > 0);
    all.close().await;
}
