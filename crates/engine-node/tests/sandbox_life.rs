//! Containers in real Sandboxes: start, exit, stop, output, limits, confinement.

mod sandbox_harness;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use sandbox_harness::{Platform, shell};
use stead_engine_node::sandbox::{
    ContainerSpec, ExecSpec, FileMount, LogPolicy, Resources, RunRefusal, SandboxError, Status,
    TmpfsMount, ViewState, VolumeMount,
};

const GRACE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_when_its_gate_opens_and_its_code_is_told() {
    let all = Platform::open("life1", 0).await;
    let sandbox = all.sandbox("a").await;
    let mut events = all.host().events();
    let timings =
        sandbox.prepare(all.container("one", &shell("echo begun; exit 7"))).await.unwrap();
    assert!(timings.total > Duration::ZERO);
    assert_eq!(sandbox.containers()[0].state, ViewState::Prepared);
    assert_eq!(all.log("one"), "", "nothing runs before the gate opens");
    // Preparing again changes nothing.
    sandbox.prepare(all.container("one", &shell("exit 9"))).await.unwrap();

    sandbox.start("one").await.unwrap();
    let exit = sandbox.wait("one").await.unwrap();
    assert_eq!(exit.status, Status::Code(7));
    assert!(!exit.out_of_memory);
    assert!(exit.started > 0 && exit.finished >= exit.started);
    let told = tokio::time::timeout(GRACE, events.recv()).await.unwrap().unwrap();
    assert!(format!("{told:?}").contains("Exited"), "{told:?}");
    assert!(all.log("one").ends_with(" stdout F begun\n"), "{}", all.log("one"));

    let again = sandbox.prepare(all.container("one", &shell("exit 0"))).await;
    assert!(matches!(again, Err(SandboxError::WrongState { .. })));
    sandbox.discard("one").await.unwrap();
    sandbox.discard("one").await.unwrap();
    assert!(sandbox.containers().is_empty());
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sandbox_keeps_its_address_through_many_containers() {
    let all = Platform::open("life2", 1).await;
    let sandbox = all.sandbox("a").await;
    let ip = sandbox.ip();
    for id in ["one", "two", "three"] {
        let script = "ip -4 addr show dev eth0; hostname; cat /etc/hosts /etc/hostname";
        all.run(&sandbox, all.container(id, &shell(script))).await;
        let log = all.log(id);
        assert!(log.contains(&format!("inet {ip}/32")), "{log}");
        assert!(log.contains(" stdout F host-a\n"), "{log}");
        assert!(log.contains(&format!(" stdout F {ip}\thost-a\n")), "{log}");
    }
    assert_eq!(sandbox.ip(), ip);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_told_with_its_reason() {
    let all = Platform::open("life3", 0).await;
    let sandbox = all.sandbox("a").await;
    let cases = [
        ("missing", vec!["no-such-program"], RunRefusal::NotFound),
        ("absolute", vec!["/no/such"], RunRefusal::NotFound),
        ("folder", vec!["/bin"], RunRefusal::NotPermitted),
        ("data", vec!["/etc/data"], RunRefusal::WrongFormat),
    ];
    for (id, argv, expected) in cases {
        let argv: Vec<String> = argv.into_iter().map(str::to_owned).collect();
        sandbox.prepare(all.container(id, &argv)).await.unwrap();
        match sandbox.start(id).await {
            Err(SandboxError::CannotRun { reason, .. }) => assert_eq!(reason, expected, "{id}"),
            other => panic!("{id}: {other:?}"),
        }
        sandbox.discard(id).await.unwrap();
    }
    let bad =
        ContainerSpec { layers: vec!["/no/such/layer".into()], ..all.container("x", &shell("")) };
    let error = sandbox.prepare(bad).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/layer"), "{error}");
    // Nothing of it is left in the way.
    all.run(&sandbox, all.container("x", &shell("true"))).await;
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_a_program_and_its_end_is_told() {
    let all = Platform::open("life4", 0).await;
    let sandbox = all.sandbox("a").await;
    // One that handles SIGTERM, one that has no handler, one that ignores it.
    let polite = shell("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done");
    all.start(&sandbox, all.container("polite", &polite)).await;
    all.logged("polite", "up").await;
    let exit = sandbox.stop("polite", libc::SIGTERM, GRACE).await.unwrap();
    assert_eq!(exit.status, Status::Code(3));
    assert!(all.log("polite").contains("bye"));

    let plain = vec!["sleep".to_owned(), "1000".to_owned()];
    all.start(&sandbox, all.container("plain", &plain)).await;
    let exit = sandbox.stop("plain", libc::SIGTERM, GRACE).await.unwrap();
    assert_eq!(exit.status, Status::Signal(libc::SIGTERM));

    let deaf = shell("trap '' TERM; echo up; while :; do sleep 1000; done");
    all.start(&sandbox, all.container("deaf", &deaf)).await;
    all.logged("deaf", "up").await;
    let exit = sandbox.stop("deaf", libc::SIGTERM, Duration::from_millis(50)).await.unwrap();
    assert_eq!(exit.status, Status::Signal(libc::SIGKILL));
    // Stopping what has ended tells how it ended.
    let again = sandbox.stop("deaf", libc::SIGTERM, GRACE).await.unwrap();
    assert_eq!(again, exit);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_successor_starts_in_place_of_its_predecessor() {
    let all = Platform::open("life5", 0).await;
    let sandbox = all.sandbox("a").await;
    let serve = |text: &str| {
        shell(&format!("mkdir /www; echo {text} > /www/index.html; exec httpd -f -p 80 -h /www"))
    };
    all.start(&sandbox, all.container("old", &serve("old"))).await;
    assert_eq!(all.fetch(sandbox.ip()).await, "old\n");
    sandbox.prepare(all.container("new", &serve("new"))).await.unwrap();
    assert_eq!(all.fetch(sandbox.ip()).await, "old\n");
    sandbox.stop("old", libc::SIGTERM, GRACE).await.unwrap();
    sandbox.start("new").await.unwrap();
    assert_eq!(all.fetch(sandbox.ip()).await, "new\n");
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_is_nobody_outside_and_can_do_no_harm() {
    let all = Platform::open("life6", 0).await;
    let sandbox = all.sandbox("a").await;
    let script = "\
        id -u; touch /made; \
        mknod /dev/sda b 8 0 2>/dev/null && echo HARM mknod; \
        mount -t tmpfs none /tmp 2>/dev/null && echo HARM mount; \
        mount -o remount,rw /sys 2>/dev/null && echo HARM remount; \
        unshare -U true 2>/dev/null && echo HARM unshare; \
        (echo x > /proc/sys/kernel/domainname) 2>/dev/null && echo HARM sysctl; \
        (cat /proc/1/environ || ls -l /proc/1/fd/0 || cat /proc/1/exe) >/dev/null 2>&1 && echo HARM init; \
        head -c 1 /proc/kcore 2>/dev/null | grep . && echo HARM kcore; \
        ip link set eth0 down 2>/dev/null && echo HARM link; \
        ls /proc/self/fd; \
        grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd|CapInh|CapAmb):' /proc/self/status; \
        cat /proc/self/uid_map; ps -o pid,comm; exec sleep 1000";
    all.start(&sandbox, all.container("one", &shell(script))).await;
    all.logged("one", "PID").await;
    let log = all.log("one");
    assert!(!log.contains("HARM"), "{log}");
    for expected in [
        "F 0\n",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "CapEff:\t00000000000405fb",
        "CapBnd:\t00000000000405fb",
    ] {
        assert!(log.contains(expected), "{expected:?} in {log}");
    }
    let main = all.main_process(&sandbox, "one");
    let status = std::fs::read_to_string(format!("/proc/{main}/status")).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
    let uid: u32 = uid.split('\t').next().unwrap().parse().unwrap();
    assert!(uid >= 16_777_216, "{uid}");
    let made = std::fs::metadata(format!("/proc/{main}/root/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (uid, uid));
    // Only standard input and output, and what `ls` itself opens.
    assert!(!log.contains("stdout F 4\n"), "{log}");
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_privileges_has_no_capabilities() {
    let all = Platform::open("life7", 0).await;
    let sandbox = all.sandbox("a").await;
    let script = "id; grep CapEff /proc/self/status; echo note > /dev/stderr; pwd; \
                  touch /forbidden 2>/dev/null || echo refused";
    let spec = ContainerSpec {
        uid: 33,
        gid: 34,
        groups: vec![35],
        cwd: "/made/for/me".into(),
        ..all.container("one", &shell(script))
    };
    all.run(&sandbox, spec).await;
    let log = all.log("one");
    for expected in [
        "uid=33 gid=34 groups=35",
        "CapEff:\t0000000000000000",
        "stderr F note",
        "/made/for/me",
        "refused",
    ] {
        assert!(log.contains(expected), "{expected:?} in {log}");
    }
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_files_and_scratch_are_where_they_were_asked_for() {
    let all = Platform::open("life8", 0).await;
    let sandbox = all.sandbox("a").await;
    let volume = all.folder().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("given"), "given\n").unwrap();
    std::os::unix::fs::chown(&volume, Some(33), Some(33)).unwrap();
    let script = "cat /data/given /etc/app/config; echo new > /data/new; \
                  echo x > /etc/app/config 2>/dev/null || echo read-only; \
                  echo y > /ro/new 2>/dev/null || echo read-only too; \
                  echo z > /new 2>/dev/null || echo root read-only; \
                  echo s > /scratch/s && stat -f -c %T /scratch; cat /link/through";
    let spec = ContainerSpec {
        uid: 33,
        gid: 33,
        volumes: vec![
            VolumeMount { host: volume.clone(), mount: "/data".into(), read_only: false },
            VolumeMount { host: volume.clone(), mount: "/ro".into(), read_only: true },
            // The image has a link at this place; it leads out of any root.
            VolumeMount { host: volume.clone(), mount: "/escape/x".into(), read_only: false },
        ],
        files: vec![
            FileMount {
                path: "/etc/app/config".into(),
                content: b"secret\n".to_vec(),
                mode: 0o400,
            },
            FileMount { path: "/link/through".into(), content: b"linked\n".to_vec(), mode: 0o444 },
        ],
        tmpfs: vec![TmpfsMount { mount: "/scratch".into(), bytes: 1 << 20 }],
        read_only_root: true,
        ..all.container("one", &shell(script))
    };
    all.run(&sandbox, spec).await;
    let log = all.log("one");
    for expected in
        ["given", "secret", "F read-only\n", "read-only too", "root read-only", "tmpfs", "linked"]
    {
        assert!(log.contains(expected), "{expected:?} in {log}");
    }
    // User 33 inside is user 33 on the disk of a volume.
    let new = std::fs::metadata(volume.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (33, 33));
    assert!(!std::path::Path::new("/tmp/sandbox-escape").exists());
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_ends_a_container_and_is_told() {
    let all = Platform::open("life9", 0).await;
    let sandbox = all.sandbox("a").await;
    let resources = Resources { memory_bytes: Some(16 << 20), ..Resources::default() };
    // `tail` keeps what it reads until a line ends, which never happens.
    let spec = ContainerSpec {
        resources,
        ..all.container("greedy", &["tail".into(), "/dev/zero".into()])
    };
    all.start(&sandbox, spec).await;
    let exit = tokio::time::timeout(GRACE, sandbox.wait("greedy")).await.unwrap().unwrap();
    assert_eq!(exit.status, Status::Signal(libc::SIGKILL));
    assert!(exit.out_of_memory);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_and_change_in_place() {
    let all = Platform::open("life10", 0).await;
    let sandbox = all.sandbox("a").await;
    let resources =
        Resources { cpu_millis: Some(100), memory_bytes: Some(64 << 20), pids: Some(8) };
    let script = "(for n in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done) 2>/dev/null; \
                  while :; do :; done";
    let spec = ContainerSpec { resources, ..all.container("one", &shell(script)) };
    all.start(&sandbox, spec).await;
    all.until("the pids limit is reached", async || sandbox.usage("one").await.unwrap().pids >= 7)
        .await;
    assert!(sandbox.usage("one").await.unwrap().pids <= 8);
    let before = sandbox.usage("one").await.unwrap();
    assert!(before.memory > 0);
    let begun = std::time::Instant::now();
    all.until("it has used some processor", async || {
        sandbox.usage("one").await.unwrap().cpu > before.cpu + Duration::from_millis(50)
    })
    .await;
    assert!(begun.elapsed() > Duration::from_millis(150), "a tenth of a processor is slow");

    // A further program needs room for itself.
    let roomy = Resources { pids: Some(100), ..resources };
    sandbox.update_resources("one", &roomy).await.unwrap();
    // Visible inside, as a JVM would look for it.
    let seen = all
        .output(
            &sandbox,
            "one",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max",
        )
        .await;
    assert!(seen.0 == 0 && seen.1.trim() == (64 << 20).to_string(), "{seen:?}");

    let more = Resources { memory_bytes: Some(128 << 20), ..roomy };
    sandbox.update_resources("one", &more).await.unwrap();
    let seen = all
        .output(
            &sandbox,
            "one",
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max",
        )
        .await;
    assert_eq!(seen.1.trim(), (128 << 20).to_string());

    sandbox.freeze("one").await.unwrap();
    let frozen = sandbox.usage("one").await.unwrap().cpu;
    tokio::task::yield_now().await;
    assert_eq!(sandbox.usage("one").await.unwrap().cpu, frozen);
    let spec = ExecSpec { argv: shell("true"), ..ExecSpec::default() };
    let entered = sandbox.exec("one", spec).await;
    assert!(matches!(entered, Err(SandboxError::WrongState { .. })), "{entered:?}");
    sandbox.thaw("one").await.unwrap();
    all.until("it goes on", async || sandbox.usage("one").await.unwrap().cpu > frozen).await;
    // A frozen one can be stopped too.
    sandbox.freeze("one").await.unwrap();
    let exit = sandbox.stop("one", libc::SIGTERM, GRACE).await.unwrap();
    assert_eq!(exit.status, Status::Signal(libc::SIGTERM));
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_below_what_is_in_use_is_refused() {
    let all = Platform::open("life13", 0).await;
    let sandbox = all.sandbox("a").await;
    let resources = Resources { memory_bytes: Some(64 << 20), ..Resources::default() };
    let script = "head -c 33554432 /dev/zero > /dev/shm/full && echo filled; exec sleep 1000";
    all.start(&sandbox, ContainerSpec { resources, ..all.container("one", &shell(script)) }).await;
    all.logged("one", "filled").await;
    let tight = Resources { memory_bytes: Some(8 << 20), ..resources };
    assert!(sandbox.update_resources("one", &tight).await.is_err());
    // It goes on as before.
    assert_eq!(all.output(&sandbox, "one", "echo alive").await, (0, "alive\n".to_owned()));
    let exit = sandbox.stop("one", libc::SIGTERM, GRACE).await.unwrap();
    assert_eq!((exit.status, exit.out_of_memory), (Status::Signal(libc::SIGTERM), false));
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_lie_over_each_other() {
    let all = Platform::open("life11", 0).await;
    let sandbox = all.sandbox("a").await;
    let upper = all.folder().join("upper-layer");
    std::fs::create_dir_all(upper.join("etc")).unwrap();
    std::fs::write(upper.join("etc/data"), "from above\n").unwrap();
    let mut spec = all.container(
        "one",
        &shell("cat /etc/data; ls -ln /etc/data; chown 5 /etc/data; ls -ln /etc/data"),
    );
    spec.layers.push(upper.clone());
    all.run(&sandbox, spec).await;
    let log = all.log("one");
    assert!(log.contains("from above"), "{log}");
    assert!(log.contains(" 0        0 "), "owned by root inside: {log}");
    assert!(log.contains(" 5        0 "), "can be given away inside: {log}");
    assert_eq!(
        std::fs::metadata(upper.join("etc/data")).unwrap().uid(),
        0,
        "the layer is untouched"
    );
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_output_neither_stalls_nor_fills_the_disk() {
    const FILE: u64 = 256 * 1024;
    let mut all = Platform::open("life12", 0).await;
    all.crash();
    all.config_mut().log = LogPolicy { max_bytes: FILE, files: 2 };
    all.reopen().await;
    let sandbox = all.sandbox("a").await;
    all.start(&sandbox, all.container("loud", &["yes".into(), "x".repeat(100)])).await;
    let older = all.log_path("loud.log").with_file_name("loud.log.1");
    all.until("the log is rotated", async || older.exists()).await;
    // Others are heard all the same.
    all.run(&sandbox, all.container("quiet", &shell("echo here"))).await;
    assert!(all.log("quiet").contains("here"));
    sandbox.stop("loud", libc::SIGTERM, GRACE).await.unwrap();
    let files: Vec<_> = std::fs::read_dir(older.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("loud"))
        .collect();
    assert_eq!(files.len(), 2);
    for file in files {
        assert!(file.metadata().unwrap().len() <= FILE, "{file:?}");
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert!(text.lines().all(|line| line.ends_with('x')), "no line is torn");
    }
    all.close().await;
}
