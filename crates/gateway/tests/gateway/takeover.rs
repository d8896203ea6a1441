//! A gateway ends, is replaced or is killed, and clients do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use stead_core::routes::ToServe;
use stead_gateway::{AccessLogTarget, Gateway};

use crate::kit::*;

#[tokio::test(flavor = "multi_thread")]
async fn five_takeovers_under_load_fail_no_request() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let mut gateway = Arc::new(control.gateway().await);
    let mut config = control.config();
    config.http = gateway.http_addrs();
    let addr = config.http[0];
    let over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for kind in 0..9 {
        let (over, served) = (over.clone(), served.clone());
        clients.push(tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                match kind % 3 {
                    0 => one_by_one(addr, &served).await,
                    1 => keep_alive(addr, &over, &served).await,
                    _ => over_h2(addr, &over, &served).await,
                }
            }
        }));
    }
    let mut old = Vec::new();
    for _ in 0..5 {
        let before = served.load(Ordering::SeqCst);
        until("load", || served.load(Ordering::SeqCst) > before + 100).await;
        let next = Arc::new(control.gateway_with(config.clone()).await);
        let last = std::mem::replace(&mut gateway, next);
        old.push(tokio::spawn(async move { last.ended().await }));
    }
    let before = served.load(Ordering::SeqCst);
    until("load", || served.load(Ordering::SeqCst) > before + 100).await;
    over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    for old in old {
        within(old).await.unwrap();
    }
    let served = served.load(Ordering::SeqCst);
    assert!(served > 600);
    assert_eq!(app.requests(), served, "a request reached the app and its answer no client");
    control
        .heard("an old one's last report", |m| {
            matches!(m, ToServe::Report(report) if report.draining
            && report.apps.iter().all(|app| app.in_flight == 0 && app.received > 0))
        })
        .await;
}

/// A new connection for each request.
async fn one_by_one(addr: std::net::SocketAddr, served: &AtomicUsize) {
    let mut client = Raw::connect(addr).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(client.answer().await.status, 200);
    served.fetch_add(1, Ordering::SeqCst);
}

/// One connection until the gateway asks to connect anew. It may not do so in between.
async fn keep_alive(addr: std::net::SocketAddr, over: &AtomicBool, served: &AtomicUsize) {
    let mut client = Raw::connect(addr).await;
    while !over.load(Ordering::SeqCst) {
        let answer = client.get("/").await;
        assert_eq!(answer.status, 200);
        served.fetch_add(1, Ordering::SeqCst);
        if answer.headers.get("connection").is_some_and(|value| value == "close") {
            return;
        }
    }
}

/// One HTTP/2 connection until the gateway says GOAWAY. A request that meets it was not taken
/// up (RFC 9113, 6.8), and the client may send it again: the count at the App will tell.
async fn over_h2(addr: std::net::SocketAddr, over: &AtomicBool, served: &AtomicUsize) {
    let mut sender = h2_client(addr).await;
    while !over.load(Ordering::SeqCst) && sender.ready().await.is_ok() {
        match sender.send_request(h2_request("/", empty())).await {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                served.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                let text = format!("{error:?}");
                assert!(error.is_canceled() || text.contains("NO_ERROR, Remote"), "{text}");
                return;
            }
        }
    }
}

/// One HTTP/2 connection with several requests at a time, until the gateway says GOAWAY.
///
/// By h2 itself: hyper's client (1.12) gives a request up that it has just sent when GOAWAY
/// comes at that moment, although it is below the last one that is answered.
async fn many_over_h2(
    addr: std::net::SocketAddr,
    over: &Arc<AtomicBool>,
    served: &Arc<AtomicUsize>,
) {
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let streams: Vec<_> = (0..8)
        .map(|_| {
            let (mut sender, over, served) = (sender.clone(), over.clone(), served.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let Ok(mut ready) = sender.ready().await else { return };
                    let request = h2_request("/", ());
                    let Ok((response, _)) = ready.send_request(request, true) else { return };
                    sender = ready;
                    match response.await {
                        Ok(response) => {
                            assert_eq!(response.status(), 200);
                            let mut body = response.into_body();
                            while let Some(data) = body.data().await {
                                data.unwrap();
                            }
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                        // It was not taken up.
                        Err(error) => {
                            assert!(error.is_go_away() && error.is_remote(), "{error:?}");
                            return;
                        }
                    }
                }
            })
        })
        .collect();
    drop(sender);
    for stream in streams {
        within(stream).await.unwrap();
    }
    let _ = within(connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn takeovers_lose_no_stream_of_a_connection_with_several() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let mut gateway = Arc::new(control.gateway().await);
    let mut config = control.config();
    config.http = gateway.http_addrs();
    let addr = config.http[0];
    let over = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (over, served) = (over.clone(), served.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    many_over_h2(addr, &over, &served).await;
                }
            })
        })
        .collect();
    for _ in 0..10 {
        let before = served.load(Ordering::SeqCst);
        until("load", || served.load(Ordering::SeqCst) > before + 200).await;
        let next = Arc::new(control.gateway_with(config.clone()).await);
        let last = std::mem::replace(&mut gateway, next);
        within(last.ended()).await;
    }
    over.store(true, Ordering::SeqCst);
    for client in clients {
        within(client).await.unwrap();
    }
    assert_eq!(app.requests(), served.load(Ordering::SeqCst), "an answer reached no client");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_under_way_stays_with_the_old_gateway() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let old = control.gateway().await;
    let mut config = control.config();
    config.http = old.http_addrs();
    let addr = config.http[0];
    let mut idle = Raw::connect(addr).await;
    assert_eq!(idle.get("/").await.status, 200);
    let mut stream = Raw::connect(addr).await;
    stream.send(format!("GET /sse HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    stream.head().await.unwrap();

    let new = control.gateway_with(config).await;
    let ended = tokio::spawn(async move { old.ended().await });
    let answer = idle.get("/").await;
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (200, "close"));
    assert_eq!(idle.rest().await.unwrap(), "");
    // The old one still hears of changes and reports its drains.
    let next = TestApp::start(2).await;
    let generation = control.put(APP, routes([app.draining(), next.open()])).await;
    control.acked_by(2).await;
    assert_eq!(Raw::connect(addr).await.get("/").await.body, next.container.as_str());
    app.state.go.add_permits(3);
    for _ in 0..4 {
        stream.chunk().await.unwrap();
    }
    control.heard_drained(&app, generation).await;
    drop((idle, stream));
    within(ended).await.unwrap();
    assert_eq!(new.report().apps[0].received, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_gateway_is_followed_by_one_that_serves_from_its_disk() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    let app_backend = app.open();
    control.put(APP, routes([app_backend])).await;
    let config = control.config();
    // A gateway with a runtime of its own, which ends as abruptly as a process does.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let first: Gateway = {
        let config = config.clone();
        runtime.spawn(async move { Gateway::start(config).await.unwrap() }).await.unwrap()
    };
    let kept = control.dir.path().join("state/routes.json");
    until("kept on disk", || exists(&kept) && first.generation().0 == 1).await;
    until("kept whole", || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains(HOST)))
        .await;
    runtime.shutdown_background();
    // And without a control plane.
    std::fs::remove_file(control.dir.path().join("gateway-link.sock")).unwrap();
    let second = within(async {
        loop {
            // The first one's takeover socket closes with its runtime, at some time.
            match Gateway::start(config.clone()).await {
                Ok(gateway) => break gateway,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    assert_eq!(second.generation().0, 1);
    let answer = Raw::connect(second.http_addrs()[0]).await.get("/").await;
    assert_eq!(answer.body, app.container.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_gateway_answers_what_it_has_and_cuts_the_rest() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let mut config = control.config();
    config.stop_drain = Duration::from_millis(500);
    let log = control.dir.path().join("access.log");
    config.access_log = AccessLogTarget::File(log.clone());
    let gateway = Arc::new(control.gateway_with(config).await);
    let addr = gateway.http_addrs()[0];
    let mut idle = Raw::connect(addr).await;
    assert_eq!(idle.get("/").await.status, 200);
    let mut answered = Raw::connect(addr).await;
    answered.send(format!("GET /wait HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    app.got(2).await;
    let mut cut = Raw::connect(addr).await;
    cut.send(format!("GET /sse?secret=1 HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    cut.head().await.unwrap();

    gateway.stop();
    let ended = {
        let gateway = gateway.clone();
        tokio::spawn(async move { gateway.ended().await })
    };
    assert_eq!(idle.rest().await.unwrap(), "");
    until("refused", || std::net::TcpStream::connect(addr).is_err()).await;
    app.go();
    assert_eq!(answered.answer().await.status, 200);
    within(ended).await.unwrap();
    let _ = cut.rest().await;
    let release = gateway.report().apps[0].releases[0].clone();
    assert_eq!((release.in_flight, release.outcomes.completed), (0, 2));
    let reasons: Vec<_> = release.outcomes.failed.keys().map(|reason| reason.as_str()).collect();
    assert_eq!(reasons, ["cut"]);

    let lines: Vec<serde_json::Value> = std::fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    let cut = lines.iter().find(|line| line["outcome"] == "failed").unwrap();
    assert_eq!(
        (&cut["failed_by"], &cut["reason"], &cut["path"]),
        (&"stead".into(), &"cut".into(), &"/sse".into())
    );
    assert_eq!(
        (&cut["app"], &cut["release"], &cut["status"]),
        (&APP.into(), &1.into(), &200.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_the_ledger_knows() {
    let control = Control::start();
    let app = TestApp::start(3).await;
    control.put(APP, routes([app.open()])).await;
    let mut config = control.config();
    config.metrics = Some("127.0.0.1:0".parse().unwrap());
    let gateway = control.gateway_with(config).await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    assert_eq!(client.get("/").await.status, 200);
    client.send("GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 404);
    let page = Raw::connect(gateway.metrics_addr().unwrap()).await.get("/metrics").await.body;
    for line in [
        "stead_gateway_route_generation 1\n",
        "stead_gateway_refused_total{code=\"404\"} 1\n",
        "stead_requests_received_total{namespace=\"default\",app=\"web\"} 1\n",
        "stead_requests_ended_total{namespace=\"default\",app=\"web\",release=\"3\",outcome=\"completed\",reason=\"\"} 1\n",
        "stead_responses_total{namespace=\"default\",app=\"web\",release=\"3\",code=\"2xx\"} 1\n",
        "stead_response_seconds_count{namespace=\"default\",app=\"web\",release=\"3\"} 1\n",
        "stead_backend_connections{namespace=\"default\",app=\"web\"} 1\n",
    ] {
        assert!(page.contains(line), "{line:?} not in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_is_known_to_the_control_plane_before_it_serves() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut config = control.config();
    config.http = gateway.http_addrs();
    let _next = Gateway::start(config).await.unwrap();
    assert_eq!(control.connected(), 2);
}
