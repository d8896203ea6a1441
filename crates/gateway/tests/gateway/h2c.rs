//! An App that speaks HTTP/2 ends a connection, or refuses a request that was sent already.

use stead_core::routes::{AppRoutes, FailReason, Protocol, ReleaseReport};
use stead_gateway::Gateway;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::kit::*;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const REFUSED_STREAM: u32 = 7;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn goaway(last: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())
}

fn refusal() -> Vec<u8> {
    frame(RST_STREAM, 0, 1, &REFUSED_STREAM.to_be_bytes())
}

/// The next connection, on which a request and `bytes` of its body have come in, or all of it.
/// It is answered by `words`.
async fn answered_by(listener: &TcpListener, bytes: usize, words: &[u8]) -> TcpStream {
    let (mut stream, _) = within(listener.accept()).await.unwrap();
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let mut body = None;
    loop {
        let mut head = [0; 9];
        within(stream.read_exact(&mut head)).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await.unwrap();
        let (kind, flags) = (head[3], head[4]);
        match kind {
            SETTINGS if flags & 1 == 0 => {
                stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
            }
            HEADERS => body = Some(0),
            DATA => body = body.map(|sum| sum + length),
            _ => {}
        }
        let ended = matches!(kind, HEADERS | DATA) && flags & 1 == 1;
        if ended || body.is_some_and(|sum| sum >= bytes) {
            stream.write_all(words).await.unwrap();
            return stream;
        }
    }
}

/// A gateway, and an App behind it that has not said anything yet.
async fn begun() -> (std::sync::Arc<Control>, Gateway, TcpListener) {
    let control = Control::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut backend = TestApp::start(1).await.open();
    backend.addr = listener.local_addr().unwrap();
    let h2c = AppRoutes { protocol: Protocol::H2c, ..routes([backend]) };
    control.put(APP, h2c).await;
    let gateway = control.gateway().await;
    (control, gateway, listener)
}

fn post(path: &str, length: usize) -> String {
    let body = "x".repeat(length);
    format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn counted(gateway: &Gateway) -> ReleaseReport {
    let release = gateway.report().apps[0].releases[0].clone();
    assert_eq!(
        release.received,
        release.moved + release.in_flight + release.outcomes.total(),
        "{release:?}"
    );
    release
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_was_refused_unread_is_sent_again() {
    // The connection is good for another request after the latter, which is not what is tested.
    for refuse in [goaway(0), [refusal(), goaway(1)].concat()] {
        // Without a body; with one that came whole before it was refused; and half of it.
        for (length, before) in [(0, 0), (20_000, usize::MAX), (40_000, 10_000)] {
            let (_control, gateway, listener) = begun().await;
            let mut client = Raw::connect(gateway.http_addrs()[0]).await;
            client.send(post("/count", length)).await;
            let _kept = answered_by(&listener, before, &refuse).await;
            let app = TestApp::serve(listener, 1, Protocol::H2c);
            let answer = client.answer().await;
            assert_eq!((answer.status, answer.body), (200, length.to_string()));
            assert_eq!(app.requests(), 1);
            let release = counted(&gateway);
            assert!(release.moved >= 1);
            assert_eq!(release.outcomes.completed, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_been_taken_up_is_not_sent_again() {
    let (_control, gateway, listener) = begun().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(post("/count", 10)).await;
    drop(answered_by(&listener, usize::MAX, &goaway(1)).await);
    let app = TestApp::serve(listener, 1, Protocol::H2c);
    let answer = client.answer().await;
    assert_eq!((answer.status, &*answer.headers["x-stead-reason"]), (502, "closed_early"));
    assert_eq!(app.requests(), 0);
    // The next one goes to a new connection.
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(counted(&gateway).outcomes.failed[&FailReason::ClosedEarly], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_too_large_to_keep_is_not_sent_again() {
    let (_control, gateway, listener) = begun().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    // More than is kept, and not more than the window that an App gives unasked.
    let room = frame(8, 0, 0, &1_000_000_u32.to_be_bytes());
    let stream_room = frame(8, 0, 1, &1_000_000_u32.to_be_bytes());
    client.send(format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 300000\r\n\r\n")).await;
    let mut stream = answered_by(&listener, 0, &[room, stream_room].concat()).await;
    client.send("x".repeat(200_000)).await;
    let mut bytes = vec![0; 150_000];
    within(stream.read_exact(&mut bytes)).await.unwrap();
    stream.write_all(&goaway(0)).await.unwrap();
    let answer = client.answer().await;
    assert_eq!((answer.status, &*answer.headers["x-stead-reason"]), (502, "closed_early"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_refuses_again_and_again_is_to_blame() {
    let (_control, gateway, listener) = begun().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let mut open = Vec::new(); // closed with input unread, they could destroy their last words
    for _ in 0..4 {
        open.push(answered_by(&listener, 0, &goaway(0)).await);
    }
    let answer = client.answer().await;
    assert_eq!((answer.status, &*answer.headers["x-stead-reason"]), (502, "closed_early"));
    assert_eq!(counted(&gateway).moved, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn graceful_goaways_under_load_fail_no_request() {
    let (_control, gateway, listener) = begun().await;
    let addr = gateway.http_addrs()[0];
    // An App that says goodbye after every few requests, as servers do that limit the age of
    // connections, and answers what it has taken up.
    let served = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = served.clone();
    let app = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let served = count.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut taken = 0;
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    taken += 1;
                    if taken == 10 {
                        connection.graceful_shutdown();
                    }
                    served.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    tokio::spawn(async move {
                        tokio::task::yield_now().await;
                        let _ = respond.send_response(http::Response::new(()), true);
                    });
                }
            });
        }
    });
    let clients: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Raw::connect(addr).await;
                for _ in 0..200 {
                    let answer = client.get("/").await;
                    assert_eq!(answer.status, 200, "{answer:?}");
                }
            })
        })
        .collect();
    for client in clients {
        within(client).await.unwrap();
    }
    app.abort();
    assert_eq!(served.load(std::sync::atomic::Ordering::SeqCst), 1_600, "none was served twice");
    assert_eq!(counted(&gateway).outcomes.completed, 1_600);
}
