//! A Backend that drains takes nothing new, finishes what it has, and is reported then.

use std::sync::atomic::Ordering;

use stead_core::ids::ReleaseNo;
use stead_core::routes::{AppRoutes, Backend, FailReason, Protocol, Split, ToServe};

use crate::kit::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_waits_for_slow_uploads_streams_and_tunnels() {
    let control = Control::start();
    let (old, new) = (TestApp::start(1).await, TestApp::start(2).await);
    control.put(APP, routes([old.open()])).await;
    let gateway = control.gateway().await;
    let addr = gateway.http_addrs()[0];

    let mut upload = Raw::connect(addr).await;
    upload
        .send(format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\n12345"))
        .await;
    let mut stream = Raw::connect(addr).await;
    stream.send(format!("GET /sse HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    stream.head().await.unwrap();
    let mut tunnel = Raw::connect(addr).await;
    tunnel
        .send(format!(
            "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        ))
        .await;
    assert_eq!(tunnel.head().await.unwrap().status, 101);
    old.got(3).await;
    // An idle connection to the old one must not be used again.
    let mut other = Raw::connect(addr).await;
    assert_eq!(other.get("/").await.body, old.container.as_str());

    let generation = control.put(APP, routes([old.draining(), new.open()])).await;
    for _ in 0..20 {
        assert_eq!(other.get("/").await.body, new.container.as_str());
    }
    upload.send("67890").await;
    assert_eq!(upload.answer().await.body, "10");
    old.state.go.add_permits(3);
    for _ in 0..4 {
        stream.chunk().await.unwrap();
    }
    tunnel.send("still there").await;
    assert_eq!(tunnel.exactly(11).await.unwrap(), "still there");
    assert!(!control.has_heard_drained(&old), "the tunnel is open");
    drop(tunnel);
    control.heard_drained(&old, generation).await;
    assert_eq!(old.requests(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_backend_is_drained_at_once_and_told_again_to_a_new_control_plane() {
    let control = Control::start();
    let (old, new) = (TestApp::start(1).await, TestApp::start(2).await);
    control.put(APP, routes([old.open(), new.open()])).await;
    let gateway = control.gateway().await;
    let generation = control.put(APP, routes([old.draining(), new.open()])).await;
    control.heard_drained(&old, generation).await;

    // Undone: it is open again, and drained later once more.
    control.put(APP, routes([old.open()])).await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    assert_eq!(client.get("/").await.body, old.container.as_str());
    let generation = control.put(APP, routes([old.draining(), new.open()])).await;
    control.heard_drained(&old, generation).await;

    // A container that is simply gone from the table is closed as well.
    control.put(APP, routes([old.open()])).await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("GET /wait HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    old.got(2).await;
    let generation = control.put(APP, routes([new.open()])).await;
    assert_eq!(
        Raw::connect(gateway.http_addrs()[0]).await.get("/").await.body,
        new.container.as_str()
    );
    old.go();
    assert_eq!(client.answer().await.body, old.container.as_str());
    control.heard_drained(&old, generation).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_changed_its_release_or_mark_is_drained_of_what_it_had_before() {
    type Update = fn(Backend) -> Backend;
    let back: Update = |backend| backend;
    let release: Update = |backend| Backend { release: ReleaseNo(2), ..backend };
    let mark: Update = |backend| Backend { mark: Some(0x57ead), ..backend };
    for updates in [&[release][..], &[mark], &[release, mark], &[release, back]] {
        let control = Control::start();
        let (app, idle, next) =
            (TestApp::start(1).await, TestApp::start(1).await, TestApp::start(3).await);
        control.put(APP, routes([app.open()])).await;
        let gateway = control.gateway().await;
        let addr = gateway.http_addrs()[0];
        let mut tunnel = Raw::connect(addr).await;
        tunnel
            .send(format!(
                "GET /chat HTTP/1.1\r\nHost: {HOST}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            ))
            .await;
        assert_eq!(tunnel.head().await.unwrap().status, 101);

        let mut client = Raw::connect(addr).await;
        for update in updates {
            control.put(APP, routes([update(app.open())])).await;
            assert_eq!(client.get("/").await.body, app.container.as_str());
        }
        let update = updates.last().unwrap();
        let routes = routes([update(app.draining()), idle.draining(), next.open()]);
        let generation = control.put(APP, routes.clone()).await;
        // The word about it would have come before the one about `idle`.
        control.heard_drained(&idle, generation).await;
        assert!(!control.has_heard_drained(&app), "the tunnel is open");
        // To a new control plane both are said before anything new is acknowledged.
        control.hang_up();
        control.heard_drained_times(&idle, generation, 2).await;
        control.put(APP, routes).await;
        assert!(!control.has_heard_drained(&app), "the tunnel is open");
        tunnel.send("still there").await;
        assert_eq!(tunnel.exactly(11).await.unwrap(), "still there");

        drop(tunnel);
        control.heard_drained(&app, generation).await;
        let of_one = &gateway.report().apps[0].releases[0];
        assert_eq!((of_one.release, of_one.in_flight), (ReleaseNo(1), 0), "counted where it began");
        assert!(of_one.received > 0 && of_one.received == of_one.outcomes.completed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_never_lost_to_a_flip_and_the_ledger_adds_up() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 250;
    let control = Control::start();
    let (blue, green) = (TestApp::start(1).await, TestApp::start(2).await);
    control.put(APP, routes([blue.open()])).await;
    let gateway = control.gateway().await;
    let addr = gateway.http_addrs()[0];
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            tokio::spawn(async move {
                let mut client = Raw::connect(addr).await;
                for _ in 0..REQUESTS {
                    let answer = client.get("/").await;
                    assert_eq!(answer.status, 200, "{answer:?}");
                }
            })
        })
        .collect();
    let mut flips = 0;
    while !clients.iter().all(|client| client.is_finished()) {
        let (from, to) = if flips % 2 == 0 { (&blue, &green) } else { (&green, &blue) };
        let split = Split::all_to(ReleaseNo(to.release));
        let next = AppRoutes { split, ..routes([from.draining(), to.open()]) };
        let generation = control.put(APP, next).await;
        control.heard_drained(from, generation).await;
        flips += 1;
    }
    for client in clients {
        client.await.unwrap();
    }
    assert!(flips >= 4, "{flips} flips");
    let report = gateway.report();
    let app = &report.apps[0];
    let sent: u64 = app.releases.iter().map(|release| release.outcomes.total()).sum();
    assert_eq!(app.received, (CLIENTS * REQUESTS) as u64);
    assert_eq!((app.in_flight, app.unsent.total(), sent), (0, 0, app.received));
    for release in &app.releases {
        assert_eq!(release.received, release.moved + release.outcomes.total());
        assert_eq!(release.outcomes.completed, release.outcomes.total());
        assert_eq!(release.answered[1], release.outcomes.completed);
        assert_eq!(release.latency.buckets.iter().sum::<u64>(), release.outcomes.completed);
    }
    control.heard("report", |m| matches!(m, ToServe::Report(r) if r.apps == report.apps)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_give_up_are_not_failures() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut impatient = Raw::connect(gateway.http_addrs()[0]).await;
    impatient.send(format!("GET /wait HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    app.got(1).await;
    drop(impatient);
    let mut broken = Raw::connect(gateway.http_addrs()[0]).await;
    broken
        .send(format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\n12345"))
        .await;
    app.got(2).await;
    drop(broken);
    let mut away = Raw::connect(gateway.http_addrs()[0]).await;
    away.send(format!("GET /sse HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    away.head().await.unwrap();
    drop(away);
    let aborted = || gateway.report().apps[0].releases[0].outcomes.client_aborted;
    until("three aborts", || aborted() == 3).await;
    let release = gateway.report().apps[0].releases[0].clone();
    assert_eq!((release.received, release.in_flight), (3, 0));
    assert_eq!(release.outcomes.failed.get(&FailReason::ClosedEarly), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_closes_connections_that_are_idle_and_the_others_when_they_are_done() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let control = Control::start();
        let app = match protocol {
            Protocol::Http1 => TestApp::start(1).await,
            Protocol::H2c => TestApp::h2c(1).await,
        };
        let with = |backend| AppRoutes { protocol, ..routes([backend]) };
        let open = || app.state.open.load(Ordering::SeqCst);
        control.put(APP, with(app.open())).await;
        let gateway = control.gateway().await;
        let addr = gateway.http_addrs()[0];

        // Idle: closed at once, not when they would have been too old.
        let mut idle = Raw::connect(addr).await;
        assert_eq!(idle.get("/").await.status, 200);
        assert!(open() > 0);
        control.put(APP, with(app.draining())).await;
        let began = std::time::Instant::now();
        until("idle ones are closed", || open() == 0).await;
        assert!(began.elapsed() < std::time::Duration::from_millis(500), "{protocol:?}");

        // In use: closed with the end of the last request.
        control.put(APP, with(app.open())).await;
        let mut busy = [Raw::connect(addr).await, Raw::connect(addr).await];
        let before = app.requests();
        for client in &mut busy {
            client.send(format!("GET /wait HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        }
        app.got(before + 2).await;
        let generation = control.put(APP, with(app.draining())).await;
        assert!(open() > 0);
        app.state.go.add_permits(busy.len());
        for client in &mut busy {
            assert_eq!(client.answer().await.status, 200, "{protocol:?}");
        }
        control.heard_drained(&app, generation).await;
        let began = std::time::Instant::now();
        until("all are closed", || open() == 0).await;
        assert!(began.elapsed() < std::time::Duration::from_millis(500), "{protocol:?}");
    }
}
