//! Requests of all kinds pass, both ways, unharmed and unbuffered.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use stead_core::routes::{Protocol, ToServe};

use crate::kit::*;

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_serves_many_requests_and_so_does_one_to_the_app() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    for _ in 0..50 {
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, app.container.as_str()));
        assert!(!answer.headers.contains_key("connection"));
    }
    let connections = app.state.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!(connections < 5, "{connections} connections for 50 requests in a row");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_hosts_and_missing_routes_are_told_apart() {
    let control = Control::new();
    let mut config = control.config();
    config.limits.table_time = Duration::from_millis(200);
    let gateway = control.gateway_with(config).await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    let began = Instant::now();
    let answer = client.get("/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(began.elapsed() >= Duration::from_millis(200), "it waits for the first table");
    control.listen();
    control.heard("hello", |m| matches!(m, ToServe::Ack { .. })).await;
    let answer = client.get("/").await;
    assert_eq!(answer.status, 404);
    assert!(answer.body.contains(HOST), "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_sees_its_client_and_the_host_and_no_hop_by_hop_fields() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client
        .send(format!(
            "GET /headers?q=1 HTTP/1.1\r\nHost: {}:8080\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Forwarded: for=6.6.6.6\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\n\
             TE: trailers\r\nX-Kept: yes\r\n\r\n",
            HOST.to_uppercase()
        ))
        .await;
    let seen = client.answer().await.body;
    assert!(seen.starts_with("GET /headers?q=1 HTTP/1.1\n"), "{seen}");
    for line in [
        &format!("host: {}:8080\n", HOST.to_uppercase()),
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-proto: http\n",
        "te: trailers\n",
        "x-kept: yes\n",
    ] {
        assert!(seen.contains(line), "{line:?} not in {seen}");
    }
    for gone in ["6.6.6.6", "x-private", "connection"] {
        assert!(!seen.contains(gone), "{gone:?} in {seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways_at_once() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client
        .send(format!("POST /echo HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n"))
        .await;
    client.send("3\r\none\r\n").await;
    assert_eq!(client.head().await.unwrap().status, 200);
    assert_eq!(client.chunk().await.unwrap(), "one");
    client.send("3\r\ntwo\r\n").await;
    assert_eq!(client.chunk().await.unwrap(), "two");
    client.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await.unwrap(), "");
    assert_eq!(client.line().await.unwrap(), "");
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_arrive_whole() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let body = vec![b'x'; 8 << 20];
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client
        .send(format!(
            "POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        ))
        .await;
    client.send(&body).await;
    assert_eq!(client.answer().await.body, body.len().to_string());

    let mut sender = h2_client(gateway.http_addrs()[0]).await;
    let response = within(sender.send_request(h2_request("/echo", full(body.clone())))).await;
    let echoed = within(response.unwrap().into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(echoed.len(), body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_one_by_one() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("GET /sse HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(client.head().await.unwrap().headers["content-type"], "text/event-stream");
    for count in 0..3 {
        app.go(); // the next event exists only after the one before has arrived
        assert_eq!(client.chunk().await.unwrap(), format!("data: {count}\n\n"));
    }
    assert_eq!(client.chunk().await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn head_and_expect_work_as_the_protocol_says() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let head = client.head().await.unwrap();
    assert_eq!(head.headers["content-length"], app.container.as_str().len().to_string());
    client
        .send(format!(
            "POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        ))
        .await;
    assert_eq!(client.head().await.unwrap().status, 100);
    client.send("ab").await;
    assert_eq!(client.answer().await.body, "2");
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn http10_gets_an_answer_that_ends_with_the_connection() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    app.state.go.add_permits(3);
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("GET /sse HTTP/1.0\r\nHost: {HOST}\r\n\r\n")).await;
    let all = client.rest().await.unwrap();
    assert!(!all.contains("chunked") && all.ends_with("data: 2\n\n"), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_reach_the_client_over_every_mix_of_protocols() {
    let control = Control::start();
    let (old, new) = (TestApp::start(1).await, TestApp::h2c(1).await);
    control.put(APP, routes([old.open()])).await;
    let gateway = control.gateway().await;
    for (app, protocol) in [(&old, Protocol::Http1), (&new, Protocol::H2c)] {
        control.put(APP, stead_core::routes::AppRoutes { protocol, ..routes([app.open()]) }).await;
        let mut sender = h2_client(gateway.http_addrs()[0]).await;
        let mut request = h2_request("/trailers", full("ask"));
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        let response = within(sender.send_request(request)).await.unwrap();
        let body = within(response.into_body().collect()).await.unwrap();
        assert_eq!(body.trailers().expect("trailers")["grpc-status"], "0", "{protocol:?}");
        assert_eq!(body.to_bytes(), app.container.as_str());

        let mut client = Raw::connect(gateway.http_addrs()[0]).await;
        client
            .send(format!("GET /trailers HTTP/1.1\r\nHost: {HOST}\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n"))
            .await;
        let all = client.rest().await.unwrap();
        assert!(all.contains("grpc-status: 0"), "{protocol:?}: {all}");
    }
    assert!(old.requests() == 2 && new.requests() == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_h2c_app_sees_the_host_and_many_requests_share_a_connection() {
    let control = Control::start();
    let app = TestApp::h2c(1).await;
    let h2c = stead_core::routes::AppRoutes { protocol: Protocol::H2c, ..routes([app.open()]) };
    control.put(APP, h2c).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    for _ in 0..20 {
        let seen = client.get("/headers").await.body;
        assert!(seen.starts_with(&format!("GET http://{HOST}/headers HTTP/2.0")), "{seen}");
    }
    assert_eq!(app.state.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_a_tunnel_after_the_apps_101_only() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let ask = |path: &str, protocol: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        )
    };
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    // Not answered with 101: it stays HTTP, and the next request is vetted again.
    client.send(ask("/", "websocket")).await;
    assert_eq!(client.answer().await.status, 200);
    // Frames right behind the request wait for the decision.
    client.send(ask("/chat", "websocket") + "early\n\n\0").await;
    let head = client.head().await.unwrap();
    assert_eq!((head.status, head.headers["upgrade"].as_str()), (101, "websocket"));
    assert_eq!(client.exactly(8).await.unwrap(), "early\n\n\0");
    for text in ["ping\n", "\r\n\r\n", "GET / HTTP/1.0\nX\n\n"] {
        client.send(text).await;
        assert_eq!(client.exactly(text.len()).await.unwrap(), text);
    }
    // HTTP/2 is not reached through a tunnel, and nobody is upgraded unasked.
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(ask("/headers", "h2c")).await;
    let seen = client.answer().await;
    assert!(seen.status == 200 && !seen.body.contains("upgrade"), "{seen:?}");
    let answer = client.get("/unasked").await;
    assert_eq!((answer.status, answer.headers["x-stead-failed-by"].as_str()), (502, "app"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_app_breaks_is_the_apps_failure() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("GET /break HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    let all = client.rest().await.unwrap();
    assert!(!all.contains("\r\n0\r\n"), "a broken answer must not look complete: {all}");

    // An App that hangs up, and one that does not speak HTTP.
    for (says, reason) in [("", "closed_early"), ("hello\r\n\r\n", "bad_response")] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(says.as_bytes()).await;
            }
        });
        let backend = stead_core::routes::Backend { addr, ..app.open() };
        control.put(APP, routes([backend])).await;
        let mut client = Raw::connect(gateway.http_addrs()[0]).await;
        let answer = client.get("/").await;
        assert_eq!((answer.status, answer.headers["x-stead-reason"].as_str()), (502, reason));
    }
    let failed = |gateway: &stead_gateway::Gateway| {
        gateway.report().apps[0].releases[0].outcomes.failed.values().sum::<u64>()
    };
    until("failures counted", || failed(&gateway) == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_is_asked_for_has_every_request_that_was_answered() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    for requests in 1..=20 {
        assert_eq!(client.get("/").await.status, 200);
        let report = control.ask_for_report(requests).await;
        let release = &report.apps[0].releases[0];
        assert_eq!((release.received, release.outcomes.completed), (requests, requests));
        assert_eq!(release.in_flight, 0);
    }
}
