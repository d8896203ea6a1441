//! Entering a running Container, with and without a terminal.

mod sandbox_harness;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use sandbox_harness::{PATIENCE, Platform, shell};
use stead_engine_node::sandbox::{ContainerSpec, ExecSpec, RunRefusal, SandboxError, Stdio};

const SLEEP: &str = "sleep 1000";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_runs_beside_the_main_one_with_its_surroundings() {
    let all = Platform::open("exec1", 0).await;
    let sandbox = all.sandbox("a").await;
    let spec = ContainerSpec {
        uid: 7,
        gid: 8,
        env: vec![("PATH".into(), "/bin".into()), ("COLOUR".into(), "red".into())],
        cwd: "/etc".into(),
        ..all.container("one", &shell(SLEEP))
    };
    all.start(&sandbox, spec).await;
    let (code, text) = all
        .output(
            &sandbox,
            "one",
            "id -u; pwd; echo $COLOUR; hostname; ps -o comm | grep -c sleep; \
             grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status; ls /proc/self/fd; exit 5",
        )
        .await;
    assert_eq!(code, 5);
    for expected in [
        "7\n/etc\nred\nhost-a\n",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000000405fb",
    ] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
    assert!(!text.contains("\n4\n"), "no descriptor of the holder: {text}");

    let spec = ExecSpec {
        argv: shell("id -u; pwd; echo $COLOUR; cat; echo err >&2"),
        env: vec![("COLOUR".into(), "blue".into())],
        cwd: Some("/bin".into()),
        user: Some((0, 0, vec![])),
        ..ExecSpec::default()
    };
    let mut handle = sandbox.exec("one", spec).await.unwrap();
    let Stdio::Pipes { stdin, stdout, stderr } = handle.take_stdio() else { panic!() };
    std::fs::File::from(stdin).write_all(b"typed\n").unwrap();
    let read = |file| {
        let mut text = String::new();
        std::fs::File::from(file).read_to_string(&mut text).unwrap();
        text
    };
    assert_eq!(read(stdout), "0\n/bin\nblue\ntyped\n");
    assert_eq!(read(stderr), "err\n");
    assert_eq!(handle.wait().await.unwrap(), 0);
    assert_eq!(handle.wait().await.unwrap(), 0, "its end can be asked for again");

    // Output that nobody takes does not hold it up.
    let spec = ExecSpec { argv: shell("seq 1 100000"), ..ExecSpec::default() };
    let mut handle = sandbox.exec("one", spec).await.unwrap();
    let code = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap().unwrap();
    assert_eq!(code, 0);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_a_size_and_carries_what_is_typed() {
    let all = Platform::open("exec2", 0).await;
    let sandbox = all.sandbox("a").await;
    all.start(&sandbox, all.container("one", &shell(SLEEP))).await;
    let script = "tty; stty size; read line; echo got $line; stty size; read end; exit 4";
    let spec = ExecSpec { argv: shell(script), tty: Some((30, 100)), ..ExecSpec::default() };
    let mut handle = sandbox.exec("one", spec).await.unwrap();
    let Stdio::Terminal(master) = handle.take_stdio() else { panic!() };
    let (sender, pieces) = std::sync::mpsc::channel();
    let mut reader = std::fs::File::from(master.as_fd().try_clone_to_owned().unwrap());
    std::thread::spawn(move || {
        let mut chunk = [0; 256];
        while let Ok(n @ 1..) = reader.read(&mut chunk) {
            sender.send(String::from_utf8_lossy(&chunk[..n]).into_owned()).unwrap();
        }
    });
    let mut seen = String::new();
    let mut expect = |text: &str| {
        while !seen.contains(text) {
            let piece = pieces.recv_timeout(PATIENCE);
            seen += &piece.unwrap_or_else(|_| panic!("{text:?} in {seen:?}"));
        }
    };
    expect("/dev/pts/0");
    expect("30 100");
    let size = rustix::termios::Winsize { ws_row: 50, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let mut writer = std::fs::File::from(master);
    writer.write_all(b"hello\n").unwrap();
    expect("got hello");
    expect("50 120");
    writer.write_all(b"\n").unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap().unwrap(), 4);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_entered_is_told() {
    let all = Platform::open("exec3", 0).await;
    let sandbox = all.sandbox("a").await;
    let spec = |argv: &[&str]| ExecSpec {
        argv: argv.iter().map(|part| part.to_string()).collect(),
        ..ExecSpec::default()
    };
    let missing = sandbox.exec("none", spec(&["true"])).await;
    assert!(matches!(missing, Err(SandboxError::NotFound { .. })), "{missing:?}");
    sandbox.prepare(all.container("one", &shell(SLEEP))).await.unwrap();
    let early = sandbox.exec("one", spec(&["true"])).await;
    assert!(matches!(early, Err(SandboxError::WrongState { .. })), "{early:?}");
    sandbox.start("one").await.unwrap();
    let absent = sandbox.exec("one", spec(&["no-such"])).await;
    let Err(SandboxError::CannotRun { reason, .. }) = absent else { panic!("{absent:?}") };
    assert_eq!(reason, RunRefusal::NotFound);
    let nowhere = ExecSpec { cwd: Some("/no/where".into()), ..spec(&["true"]) };
    let nowhere = sandbox.exec("one", nowhere).await.unwrap_err();
    assert!(nowhere.to_string().contains("working folder"), "{nowhere}");
    // Programs end with the Container they are in.
    let mut guest = sandbox.exec("one", spec(&["sleep", "1000"])).await.unwrap();
    sandbox.stop("one", libc::SIGTERM, PATIENCE).await.unwrap();
    let code = tokio::time::timeout(PATIENCE, guest.wait()).await.unwrap().unwrap();
    assert_eq!(code, 128 + libc::SIGKILL);
    all.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_nobody_waits_for_is_killed() {
    let all = Platform::open("exec9", 0).await;
    let sandbox = all.sandbox("a").await;
    all.start(&sandbox, all.container("one", &shell(SLEEP))).await;
    let spec = || ExecSpec { argv: shell("exec sleep 2000"), ..ExecSpec::default() };
    let given_up = sandbox.exec("one", spec()).await.unwrap();
    let kept = sandbox.exec("one", spec()).await.unwrap();
    let (gone, stays) = (given_up.pid(), kept.pid());
    drop(given_up);
    let lives = |pid: i32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    all.until("it is killed", async || !lives(gone)).await;
    assert!(lives(stays));
    let begun = std::time::Instant::now();
    all.host().remove("a").await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "it does not hold the Sandbox up");
    assert!(!lives(stays));
    drop(kept);
    all.close().await;
}
