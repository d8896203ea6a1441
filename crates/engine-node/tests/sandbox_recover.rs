//! A restart of `serve`, and holders that die.

mod sandbox_harness;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use sandbox_harness::{PATIENCE, Platform, processes, sandbox_spec, shell};
use stead_engine_node::sandbox::{Host, HostConfig, SandboxError, SandboxEvent, Status, ViewState};

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_goes_on_and_what_ended_meanwhile_is_told() {
    let mut all = Platform::open("rec1", 2).await;
    let sandbox = all.sandbox("a").await;
    let (ip, created) = (sandbox.ip(), sandbox.created_at());
    let waits = "echo up; while [ ! -e /go ]; do sleep 0.01; done; echo bye; exit 6";
    let mut spec = all.container("ends", &shell(waits));
    spec.labels = [("role".to_owned(), "main".to_owned())].into();
    all.start(&sandbox, spec).await;
    all.start(&sandbox, all.container("stays", &shell("sleep 1000"))).await;
    sandbox.prepare(all.container("next", &shell("exit 1"))).await.unwrap();
    all.logged("ends", "up").await;
    let main = all.main_process(&sandbox, "ends");
    all.until("the pool is full", async || all.host().pooled() == 2).await;
    drop(sandbox);
    all.crash();

    std::fs::write(format!("/proc/{main}/root/go"), "").unwrap();
    all.logged("ends", "bye").await;

    let found = all.reopen().await;
    assert_eq!(found.len(), 1);
    let sandbox = found[0].sandbox.clone();
    assert_eq!((sandbox.id(), sandbox.ip(), sandbox.created_at()), ("a", ip, created));
    assert_eq!(sandbox.labels()["of"], "a");
    all.until("its end is told", async || {
        sandbox.containers().iter().any(|view| matches!(view.state, ViewState::Exited(_)))
    })
    .await;
    let views = sandbox.containers();
    let state = |id: &str| views.iter().find(|view| view.id == id).unwrap();
    let ViewState::Exited(exit) = &state("ends").state else { panic!("{views:?}") };
    assert_eq!(exit.status, Status::Code(6));
    assert_eq!(state("ends").labels["role"], "main");
    assert!(matches!(state("stays").state, ViewState::Running { .. }));
    assert_eq!(state("next").state, ViewState::Prepared);
    assert_eq!(all.host().pooled(), 2, "the pool is taken over too");

    // All of it can be worked with.
    sandbox.discard("ends").await.unwrap();
    sandbox.start("next").await.unwrap();
    assert_eq!(sandbox.wait("next").await.unwrap().status, Status::Code(1));
    assert_eq!(all.output(&sandbox, "stays", "hostname").await, (0, "host-a\n".to_owned()));
    let other = all.sandbox("b").await;
    assert_ne!(other.ip(), ip);
    drop((sandbox, other, found));
    all.close().await;
}

/// Not a test: what the next test runs in a process of its own, to be killed.
#[tokio::test(flavor = "multi_thread")]
async fn a_serve_to_be_killed() {
    let Ok(folder) = std::env::var("STEAD_TEST_FOLDER") else { return };
    let name = std::env::var("STEAD_TEST_NAME").unwrap();
    let subnet = std::env::var("STEAD_TEST_SUBNET").unwrap().parse().unwrap();
    let folder = std::path::PathBuf::from(folder);
    let config = HostConfig {
        run_dir: folder.join("run"),
        data_dir: folder.join("data"),
        name,
        subnet,
        pool: 1,
        ..HostConfig::default()
    };
    let (host, _) = Host::open(config).await.unwrap();
    let sandbox = host.create(sandbox_spec("a", "default")).await.unwrap();
    let spec = stead_engine_node::sandbox::ContainerSpec {
        id: "one".into(),
        layers: vec![folder.join("image")],
        argv: shell("while :; do echo tick; sleep 0.01; done"),
        env: vec![("PATH".into(), "/bin".into())],
        log: folder.join("logs/one.log"),
        ..Default::default()
    };
    sandbox.prepare(spec).await.unwrap();
    sandbox.start("one").await.unwrap();
    println!("\nREADY {}", sandbox.ip());
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_a_serve_killed_in_cold_blood() {
    let mut all = Platform::open("rec2", 0).await;
    all.crash();
    let mut serve = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_serve_to_be_killed", "--nocapture"])
        .env("STEAD_TEST_FOLDER", all.folder())
        .env("STEAD_TEST_NAME", &all.config().name)
        .env("STEAD_TEST_SUBNET", all.config().subnet.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(serve.stdout.take().unwrap()).lines();
    let ip =
        lines.map_while(Result::ok).find_map(|line| line.strip_prefix("READY ").map(str::to_owned));
    serve.kill().unwrap();
    serve.wait().unwrap();
    let ip = ip.expect("it was ready");

    let ticks = |all: &Platform| all.log("one").matches("tick").count();
    let before = ticks(&all);
    all.until("it goes on writing", async || ticks(&all) > before + 3).await;
    let found = all.reopen().await;
    assert_eq!(found.len(), 1);
    let sandbox = &found[0].sandbox;
    assert_eq!(sandbox.ip().to_string(), ip);
    let exit = sandbox.stop("one", libc::SIGTERM, PATIENCE).await.unwrap();
    assert_eq!(exit.status, Status::Signal(libc::SIGTERM));
    drop(found);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_holder_takes_its_containers_along_and_is_told() {
    let all = Platform::open("rec3", 0).await;
    let sandbox = all.sandbox("a").await;
    all.start(&sandbox, all.container("one", &shell("sleep 1000"))).await;
    let main = all.main_process(&sandbox, "one");
    let mut events = all.host().events();
    let run = all.config().run_dir.to_str().unwrap().to_owned();
    let holder = processes()
        .into_iter()
        .find(|(pid, env)| {
            env.contains(&run)
                && std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| line.starts_with("stead-holder"))
                && std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| name.trim() != "stead-init")
        })
        .unwrap()
        .0;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(holder).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let event = tokio::time::timeout(PATIENCE, events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, SandboxEvent::HolderLost { sandbox } if sandbox == "a"));
    all.until("the program has ended", async || {
        !std::path::Path::new(&format!("/proc/{main}/exe")).exists()
    })
    .await;
    let waited = tokio::time::timeout(PATIENCE, sandbox.wait("one")).await.unwrap();
    assert!(matches!(waited, Err(SandboxError::HolderLost { .. })), "{waited:?}");
    let stopped = sandbox.stop("one", libc::SIGTERM, Duration::from_secs(1)).await;
    assert!(matches!(stopped, Err(SandboxError::HolderLost { .. })), "{stopped:?}");
    all.host().remove("a").await.unwrap();
    all.host().remove("a").await.unwrap();
    assert!(all.host().get("a").is_none());
    drop(sandbox);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_holds_is_cleaned_up_at_the_next_start() {
    let mut all = Platform::open("rec4", 1).await;
    let sandbox = all.sandbox("a").await;
    let ip = sandbox.ip();
    all.start(&sandbox, all.container("one", &shell("sleep 1000"))).await;
    all.until("the pool is full", async || all.host().pooled() == 1).await;
    drop(sandbox);
    all.crash();
    let run = all.config().run_dir.to_str().unwrap().to_owned();
    for (pid, _) in processes().into_iter().filter(|(_, env)| env.contains(&run)) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    all.config_mut().pool = 0;
    let found = all.reopen().await;
    assert!(found.is_empty());
    all.until("nothing but the platform's own is left", async || {
        let uppers = std::fs::read_dir(all.config().data_dir.join("upper")).unwrap().count();
        let folders = std::fs::read_dir(all.config().run_dir.join("sb")).unwrap().count();
        let left = all.left();
        let groups = left.iter().filter(|line| line.contains("/sys/fs/cgroup"));
        let groups = groups.flat_map(|group| std::fs::read_dir(group).into_iter().flatten());
        let sandboxes = groups
            .flatten()
            .filter(|entry| entry.file_type().unwrap().is_dir() && entry.file_name() != "holders");
        let links = left.iter().any(|line| line.starts_with(&format!("{}-", all.config().name)));
        uppers + folders + sandboxes.count() == 0 && !links
    })
    .await;
    // The address is free again, for whoever had it.
    let wanted = stead_engine_node::sandbox::SandboxSpec {
        wanted_ip: match ip {
            std::net::IpAddr::V4(ip) => Some(ip),
            std::net::IpAddr::V6(_) => None,
        },
        ..sandbox_spec("a", "default")
    };
    all.until("the address is given again", async || {
        let sandbox = all.host().create(wanted.clone()).await.unwrap();
        let same = sandbox.ip() == ip;
        if !same {
            all.host().remove("a").await.unwrap();
        }
        same
    })
    .await;
    all.close().await;
}
