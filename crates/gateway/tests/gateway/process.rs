//! The gateway as processes of their own: signals, kills, and descriptors across processes.
//!
//! The test program starts itself again; [`gateway_process`] is what the children run.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use stead_gateway::GatewayConfig;

use crate::kit::*;

const DIR: &str = "STEAD_TEST_GATEWAY_DIR";
const ADDR: &str = "STEAD_TEST_GATEWAY_ADDR";

/// Not a test by itself: without the variables there is nothing to do.
#[test]
fn gateway_process() {
    let (Some(dir), Ok(addr)) = (std::env::var_os(DIR), std::env::var(ADDR)) else { return };
    let dir = PathBuf::from(dir);
    let mut config = GatewayConfig::new(&dir, dir.join("state"));
    config.http = vec![addr.parse().unwrap()];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(stead_gateway::run(config)).unwrap();
}

/// A child, killed when the test fails before it has ended.
struct Process(Child);

impl Process {
    fn start(dir: &Path, addr: SocketAddr) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process::gateway_process"])
            .envs([(DIR, dir.as_os_str()), (ADDR, addr.to_string().as_ref())])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process has ended", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An address nobody else uses, free again when this returns.
async fn free_addr() -> SocketAddr {
    TestApp::alone(1).await.addr
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_take_over_from_each_other_are_stopped_and_killed() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let (dir, addr) = (control.dir.path().to_owned(), free_addr().await);
    until("the address is free", || std::net::TcpListener::bind(addr).is_ok()).await;
    let serves = || std::net::TcpStream::connect(addr).is_ok();

    let mut first = Process::start(&dir, addr);
    until("the first serves", serves).await;
    control.acked_by(1).await;
    let mut stream = Raw::connect(addr).await;
    stream.send(format!("GET /sse HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    stream.head().await.unwrap();

    let mut second = Process::start(&dir, addr);
    control.acked_by(2).await;
    // The first serves what it had, and then ends by itself.
    assert_eq!(Raw::connect(addr).await.get("/").await.body, app.container.as_str());
    assert_eq!(first.0.try_wait().unwrap(), None);
    app.state.go.add_permits(3);
    for _ in 0..4 {
        stream.chunk().await.unwrap();
    }
    drop(stream);
    assert!(first.ended().await.success());

    // Killed: the next one needs neither it nor the control plane.
    let kept = dir.join("state/routes.json");
    until("kept", || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains(HOST))).await;
    std::fs::remove_file(dir.join("gateway-link.sock")).unwrap();
    second.signal(rustix::process::Signal::KILL);
    assert_eq!(second.ended().await.signal(), Some(9));
    let mut third = Process::start(&dir, addr);
    until("the third serves", serves).await;
    assert_eq!(Raw::connect(addr).await.get("/").await.body, app.container.as_str());

    // Stopped: what is under way is finished.
    let mut slow = Raw::connect(addr).await;
    let before = app.requests();
    slow.send(format!("GET /wait HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    app.got(before + 1).await;
    third.signal(rustix::process::Signal::TERM);
    until("it accepts no more", || !serves()).await;
    app.go();
    assert_eq!(slow.answer().await.status, 200);
    assert!(third.ended().await.success());
}
