//! Requests wait for a Backend, in order and within limits, and nothing is sent twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stead_core::routes::{AppRoutes, ParkPolicy, ToServe};
use tokio::net::TcpListener;

use crate::kit::*;

fn parked(gateway: &stead_gateway::Gateway) -> u64 {
    gateway.report().apps.first().map_or(0, |app| app.parked)
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_requests_go_on_in_order_when_a_backend_opens() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.draining()])).await;
    let gateway = control.gateway().await;
    let mut clients = Vec::new();
    for count in 1..=5 {
        let mut client = Raw::connect(gateway.http_addrs()[0]).await;
        // The body of a parked request is not asked for.
        client
            .send(format!(
                "POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {count}\r\nExpect: 100-continue\r\n\r\n"
            ))
            .await;
        until("parked", || parked(&gateway) == count).await;
        clients.push(client);
    }
    control.heard("parked", |m| *m == ToServe::Parked { app: APP.parse().unwrap() }).await;
    assert_eq!(app.requests(), 0);
    control.put(APP, routes([app.open()])).await;
    for (count, client) in (1..=5).zip(&mut clients) {
        assert_eq!(client.head().await.unwrap().status, 100);
        client.send("x".repeat(count)).await;
        assert_eq!(client.answer().await.body, count.to_string());
    }
    until("queue is empty", || parked(&gateway) == 0).await;
    assert_eq!(gateway.report().apps[0].releases[0].parked, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parked_client_that_leaves_gives_its_place_up() {
    let control = Control::start();
    let park = ParkPolicy { max_requests: 1, ..Default::default() };
    control.put(APP, AppRoutes { park, ..routes([]) }).await;
    let gateway = control.gateway().await;
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    for (fields, count) in ["", upgrade, ""].into_iter().zip(1..) {
        let mut client = Raw::connect(gateway.http_addrs()[0]).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await;
        until("parked", || parked(&gateway) == 1).await;
        drop(client);
        until("left", || parked(&gateway) == 0).await;
        assert_eq!(gateway.report().apps[0].unsent.client_aborted, count);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn caps_deadlines_and_hopeless_waits_answer_503_with_retry_after() {
    let control = Control::start();
    let park = ParkPolicy { max_wait_ms: 300, max_requests: 1, ..Default::default() };
    control.put(APP, AppRoutes { park, ..routes([]) }).await;
    let gateway = control.gateway().await;
    let addr = gateway.http_addrs()[0];
    let mut waits = Raw::connect(addr).await;
    let began = Instant::now();
    waits.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("parked", || parked(&gateway) == 1).await;
    let full = Raw::connect(addr).await.get("/").await;
    assert_eq!((full.status, full.headers["x-stead-reason"].as_str()), (503, "park_full"));
    assert!(full.headers.contains_key("retry-after"));
    let late = waits.answer().await;
    assert_eq!((late.status, late.headers["x-stead-reason"].as_str()), (503, "park_timeout"));
    assert!(began.elapsed() >= Duration::from_millis(300));

    let park = ParkPolicy { expected_wait_ms: Some(60_000), ..park };
    control.put(APP, AppRoutes { park, ..routes([]) }).await;
    let hopeless = Raw::connect(addr).await.get("/").await;
    assert_eq!(hopeless.headers["x-stead-reason"], "wait_too_long");
    assert!(hopeless.headers["retry-after"].parse::<u64>().unwrap() > 30, "{hopeless:?}");

    control.put(APP, AppRoutes { stopped: true, ..routes([]) }).await;
    let stopped = Raw::connect(addr).await.get("/").await;
    assert_eq!((stopped.status, stopped.headers["x-stead-reason"].as_str()), (503, "stopped"));
    let unsent = gateway.report().apps[0].unsent.clone();
    assert_eq!(unsent.total(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_refuses_is_left_for_another_and_taken_back() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    let down = TestApp::alone(1).await;
    let (addr, backend) = (down.addr, down.open());
    down.kill().await;
    control.put(APP, routes([app.open(), backend.clone()])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    for _ in 0..30 {
        assert_eq!(client.get("/").await.body, app.container.as_str());
    }
    // It comes up again at the same place.
    let listener = TcpListener::bind(addr).await.unwrap();
    let back = TestApp::serve(listener, 1, Default::default());
    until("it takes requests again", || {
        back.requests() > 0 || {
            let _ = std::net::TcpStream::connect(gateway.http_addrs()[0]).map(|mut stream| {
                use std::io::{Read, Write};
                let ask = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
                stream.write_all(ask.as_bytes()).and_then(|()| stream.read_to_end(&mut Vec::new()))
            });
            false
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_place_delays_requests_and_fails_none() {
    let control = Control::start();
    let first = TestApp::alone(1).await;
    let (addr, backend) = (first.addr, first.open());
    control.put(APP, routes([backend])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    assert_eq!(client.get("/").await.status, 200);
    first.kill().await; // pooled connections are closed, new ones refused
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("parked", || parked(&gateway) == 1).await;
    let listener = TcpListener::bind(addr).await.unwrap();
    let second = TestApp::serve(listener, 1, Default::default());
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.body.as_str()), (200, second.container.as_str()));
    assert_eq!(second.requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_app_lets_its_parked_requests_go() {
    let control = Control::start();
    control.put(APP, routes([])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("parked", || parked(&gateway) == 1).await;
    control.remove(APP).await;
    assert_eq!(client.answer().await.headers["x-stead-reason"], "gone");
    assert_eq!(client.get("/").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_place_upgrades_under_load_fail_no_request() {
    const ROUNDS: u32 = 10;
    let control = Control::start();
    let mut app = TestApp::alone(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let addr = gateway.http_addrs()[0];
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let over = over.clone();
            tokio::spawn(async move {
                let mut client = Raw::connect(addr).await;
                let mut served = 0_u64;
                while !over.load(Ordering::SeqCst) {
                    let answer = client.get("/").await;
                    assert_eq!(answer.status, 200, "{answer:?}");
                    served += 1;
                }
                served
            })
        })
        .collect();
    for round in 1..=ROUNDS {
        app.got(50).await;
        let generation = control.put(APP, routes([app.draining()])).await;
        control.heard_drained(&app, generation).await;
        until("somebody waits", || parked(&gateway) > 0).await;
        app.kill().await; // the only one: from here to the next line the App is down
        app = TestApp::alone(round + 1).await;
        control.put(APP, routes([app.open()])).await;
    }
    over.store(true, Ordering::SeqCst);
    let mut served = 0;
    for client in clients {
        served += within(client).await.unwrap();
    }
    let report = gateway.report().apps[0].clone();
    assert_eq!((report.received, report.unsent.total()), (served, 0));
    assert_eq!(report.releases.len(), ROUNDS as usize + 1);
    for release in report.releases {
        assert_eq!(release.outcomes.completed, release.received - release.moved);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_before_the_first_table_wait_for_it() {
    let control = Control::new(); // not up yet, and nothing is kept on disk
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = stead_gateway::Gateway::start(control.config()).await.unwrap();
    let addr = gateway.http_addrs()[0];
    let (mut known, mut unknown) = (Raw::connect(addr).await, Raw::connect(addr).await);
    known.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    unknown.send("GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n").await;
    let mut sender = h2_client(addr).await;
    let second = tokio::spawn(sender.send_request(h2_request("/", empty())));
    let acknowledged = gateway.acknowledged();
    assert!(futures_util::FutureExt::now_or_never(acknowledged).is_none());
    assert_eq!(gateway.generation().0, 0);
    control.listen();
    assert_eq!(known.answer().await.body, app.container.as_str());
    assert_eq!(unknown.answer().await.status, 404);
    assert_eq!(within(second).await.unwrap().unwrap().status(), 200);
    within(gateway.acknowledged()).await;
}
