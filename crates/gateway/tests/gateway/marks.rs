//! Every connection to a Backend carries its mark, whatever it is for: the mark chooses the slot.
//!
//! A network namespace of its own passes marks on to whoever accepts (`tcp_fwmark_accept`), which
//! shows them as they were on the wire. The test program starts itself again in it.

use std::process::Command;

use stead_core::routes::{AppRoutes, Backend, Protocol};
use tokio::net::TcpListener;

use crate::kit::*;

const INSIDE: &str = "STEAD_TEST_MARKS";
const MARK: u32 = 0x57ead;

fn marked(app: &TestApp) -> Backend {
    Backend { mark: Some(MARK), ..app.open() }
}

/// Whether each connection so far was marked; there were at least `least`.
fn all_marked(app: &TestApp, least: usize) {
    let marks = app.state.marks.lock().unwrap().clone();
    assert!(marks.len() >= least && marks.iter().all(|mark| *mark == MARK), "{marks:x?}");
}

#[test]
fn every_connection_carries_the_mark() {
    let program = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .arg("--net")
        .arg(program)
        .args(["--exact", "marks::inside", "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("all marked"), "{text}");
}

/// Not a test by itself: what [`every_connection_carries_the_mark`] runs.
#[tokio::test(flavor = "multi_thread")]
async fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    std::fs::write("/proc/sys/net/ipv4/tcp_fwmark_accept", "1").unwrap();

    let control = Control::start();
    let app = TestApp::alone(1).await;
    let addr = app.addr;
    control.put(APP, routes([marked(&app)])).await;
    let gateway = control.gateway().await;
    let http = gateway.http_addrs()[0];
    let mut tunnel = Raw::connect(http).await;
    tunnel
        .send(format!(
            "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        ))
        .await;
    assert_eq!(tunnel.head().await.unwrap().status, 101);
    let mut client = Raw::connect(http).await;
    assert_eq!(client.get("/").await.status, 200);
    all_marked(&app, 2);
    drop(tunnel);

    // Trials, after it refused a connection.
    app.kill().await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("parked", || gateway.report().apps[0].parked == 1).await;
    let app = TestApp::serve(TcpListener::bind(addr).await.unwrap(), 1, Protocol::Http1);
    assert_eq!(client.answer().await.status, 200);
    all_marked(&app, 2);

    let app = TestApp::h2c(2).await;
    let h2c = AppRoutes { protocol: Protocol::H2c, ..routes([marked(&app)]) };
    control.put(APP, h2c).await;
    assert_eq!(client.get("/").await.body, app.container.as_str());
    all_marked(&app, 1);
    println!("all marked");
}
