//! The load generator sees every failure a server can commit, and none where there is none.

#![expect(clippy::unwrap_used, reason = "a test ends when its setting cannot be made")]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stead_testkit::images::trivial_program;
use stead_testkit::load::{FailureKind, Mix, Plan, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const GOOD: &str = "HTTP/1.1 200 OK\r\nX-Version: 1\r\nContent-Length: 2\r\n\r\nok";

/// The sample service on a port of its own, ended when dropped.
struct Sample {
    process: Child,
    address: SocketAddr,
}

impl Sample {
    fn start() -> Self {
        let mut process = Command::new(trivial_program().unwrap())
            .env("PORT", "0")
            .env("VERSION", "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the server below does with the n-th request.
#[derive(Clone, Copy)]
enum Deed {
    Answer(&'static str),
    AnswerAndClose(&'static str),
    Close,
    Hang,
}

/// Decides by the number of the request.
type Plot = fn(u64) -> Deed;

/// Reads request heads and does `deed(n)`, where n counts all requests from 1.
async fn server(deed: Plot) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, deed, Arc::clone(&counter)));
        }
    });
    (address, count)
}

async fn connection(mut stream: TcpStream, deed: Plot, counter: Arc<AtomicU64>) {
    let mut received = Vec::new();
    loop {
        while !received.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => received.push(byte),
                Err(_) => return,
            }
        }
        received.clear();
        match deed(counter.fetch_add(1, Ordering::SeqCst) + 1) {
            Deed::Answer(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Deed::AnswerAndClose(text) => {
                let _ = stream.write_all(text.as_bytes()).await;
                return;
            }
            Deed::Close => return,
            Deed::Hang => std::future::pending().await,
        }
    }
}

fn plan(address: SocketAddr) -> Plan {
    let mix = Mix { keep_alive: 2, one_shot: 2, ..Mix::default() };
    Plan { most: 200, ..Plan::new(address, "test").mix(mix).duration(Duration::from_secs(20)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_server_loses_nothing_in_any_role() {
    let sample = Sample::start();
    let load = Plan::new(sample.address, "test").mix(Mix::EVERYTHING).start();
    assert!(load.version("1").await);
    assert!(load.more_ok(300).await);
    let report = load.stop().await;
    report.assert_lossless(300);
    assert_eq!(report.of_version("1"), report.ok);
    // The slow roles answered too: an upload, a long request and a stream take about a second.
    assert!(report.latency.max_ms > 900.0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_streams_of_grpc_lose_nothing() {
    let sample = Sample::start();
    let load = Plan::new(sample.address, "test").mix(Mix::RPC).start();
    assert!(load.more_ok(300).await);
    let report = load.stop().await;
    report.assert_lossless(300);
    assert_eq!(report.of_version("1"), report.ok);
    assert!(report.latency.max_ms > 800.0, "a stream takes about a second: {report}");
    assert!(report.slowest_between(0.0, report.elapsed_ms) > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dropped_request_is_counted_once() {
    let (address, count) =
        server(|n| if n % 10 == 0 { Deed::Close } else { Deed::Answer(GOOD) }).await;
    let report = plan(address).start().finish().await;
    let served = count.load(Ordering::SeqCst);
    assert_eq!(report.sent, served);
    assert_eq!(report.failed.len() as u64, served / 10, "{report}");
    assert!(report.failed.iter().all(|failure| failure.kind == FailureKind::Closed), "{report}");
    assert!(report.lossless(1).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_failure_is_named() {
    const ERROR: &str = "HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nbusy";
    const SHORT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok";
    const CUT: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
    let cases: [(Plot, FailureKind); 6] = [
        (|_| Deed::Answer(ERROR), FailureKind::Status(503)),
        (|_| Deed::AnswerAndClose(SHORT), FailureKind::Body),
        (|_| Deed::AnswerAndClose(CUT), FailureKind::Body),
        (|_| Deed::AnswerAndClose("nonsense\r\n\r\n"), FailureKind::Protocol),
        (|_| Deed::Close, FailureKind::Closed),
        (|_| Deed::Hang, FailureKind::Timeout),
    ];
    for (deed, expected) in cases {
        let (address, _) = server(deed).await;
        let plan = Plan { most: 8, timeout: Duration::from_millis(300), ..plan(address) };
        let report = plan.start().finish().await;
        assert!(!report.failed.is_empty() && report.ok == 0, "{report}");
        for failure in &report.failed {
            assert_eq!(failure.kind, expected, "{report}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let report = Plan { most: 8, ..plan(address) }.start().finish().await;
    assert!(report.failed.iter().all(|failure| failure.kind == FailureKind::Connect), "{report}");
    assert_eq!(report.failed.len() as u64, report.sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_announced_to_end_is_no_failure() {
    const LAST: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let (address, _) = server(|_| Deed::AnswerAndClose(LAST)).await;
    plan(address).start().finish().await.assert_lossless(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_early_is_a_failure() {
    const EVENTS: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\ndata: one\n\ndata: two\n\n.\n";
    let (address, _) = server(|_| Deed::Answer(EVENTS)).await;
    let mix = Mix { events: 1, ..Mix::default() };
    let report = Plan { most: 3, ..plan(address).mix(mix) }.start().finish().await;
    assert_eq!(report.failed.len(), 3, "{report}");
    assert!(report.failed.iter().all(|failure| failure.role == Role::Events));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_is_cut_is_a_failure() {
    const UPGRADE: &str = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let (address, _) = server(|_| Deed::AnswerAndClose(UPGRADE)).await;
    let mix = Mix { websockets: 1, ..Mix::default() };
    let report = Plan { most: 4, ..plan(address).mix(mix) }.start().finish().await;
    assert!(!report.failed.is_empty(), "{report}");
    assert!(report.failed.iter().all(|failure| failure.kind == FailureKind::Closed), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paced_load_keeps_its_rate_and_counts_the_wait() {
    let (address, _) = server(|_| Deed::Answer(GOOD)).await;
    let plan = Plan { per_second: Some(200.0), most: u64::MAX, ..plan(address) };
    let report = plan.duration(Duration::from_secs(2)).start().finish().await;
    report.assert_lossless(1);
    // Never more than asked for; much less only on a machine that stands still.
    assert!((200..=404).contains(&report.sent), "{report}");
}
