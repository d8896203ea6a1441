//! What clients may not do. Payloads are spoken by hand.

use std::time::Duration;

use stead_gateway::Gateway;

use crate::kit::*;

async fn started(
    change: impl FnOnce(&mut stead_gateway::Limits),
) -> (std::sync::Arc<Control>, TestApp, Gateway) {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let mut config = control.config();
    change(&mut config.limits);
    let gateway = control.gateway_with(config).await;
    (control, app, gateway)
}

/// Sends `payload` on a new connection; returns all that comes until the connection closes.
async fn outcome(gateway: &Gateway, payload: &[u8]) -> String {
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    let _ = client.try_send(payload).await; // it may be refused before it is all sent
    client.rest().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_are_refused() {
    let (_control, app, gateway) = started(|_| {}).await;
    let with = |fields: &str| format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n");
    for head in [
        with("Content-Length: 4\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        with("Transfer-Encoding: chunked\r\nContent-Length: 4") + "0\r\n\r\n",
        with("Content-Length: 0\r\nContent-Length: 5"),
        with("Content-Length: 0, 0"),
        with("Content-Length: +0"),
        with("Content-Length: -1"),
        with("Transfer-Encoding: gzip, chunked") + "0\r\n\r\n",
        with("Transfer-Encoding: identity"),
        with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity") + "0\r\n\r\n",
        with("Transfer-Encoding : chunked") + "0\r\n\r\n",
        with("Transfer-Encoding: \x0bchunked") + "0\r\n\r\n",
        with("X: a\n b"),
        with("X: a\r\n b"),
        with("X: a\nContent-Length: 0"),
        with("X: a\rb"),
        with("X\0: a"),
        format!("POST / HTTP/1.0\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("GET / HTTP/1.1\nHost: {HOST}\n\n"),
        format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nHost: other\r\n\r\n"),
        format!("GET http://other/ HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: {HOST}/x\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: u@{HOST}\r\n\r\n"),
        format!("GET  / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        "GARBAGE\r\n\r\n".to_owned(),
    ] {
        let before = app.requests();
        let mut client = Raw::connect(gateway.http_addrs()[0]).await;
        client.send(&head).await;
        let answer = client.try_answer().await.unwrap_or_else(|e| panic!("{head:?}: {e}"));
        assert_eq!(answer.status, 400, "{head:?}");
        assert_eq!(app.requests(), before, "{head:?} reached the app");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_framing_closes_the_connection() {
    let (_control, app, gateway) = started(|_| {}).await;
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    for head in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
        "X: a\n\r\n",
    ] {
        let payload = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\n{head}{smuggled}");
        let all = outcome(&gateway, payload.as_bytes()).await;
        assert_eq!(all.matches("HTTP/1.1").count(), 1, "{head:?}: {all}");
    }
    // Inside a body as well: the App sees it broken off, and nothing of what follows.
    for body in [
        "1\nx\r\n0\r\n\r\n",
        "0;extension\n\r\n\r\n",
        "1;extension\nx\r\n0\r\n\r\n",
        "0\r\nX: y\n\r\n",
    ] {
        let before = app.requests();
        let head = format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked");
        let payload = format!("{head}\r\n\r\n{body}{smuggled}");
        let all = outcome(&gateway, payload.as_bytes()).await;
        assert!(all.starts_with("HTTP/1.1 400"), "{body:?}: {all}");
        assert_eq!(all.matches("HTTP/1.1").count(), 1, "{body:?}: {all}");
        assert!(app.requests() <= before + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_have_a_size_and_a_number_of_fields() {
    let (_control, app, gateway) = started(|limits| limits.head_bytes = 8_192).await;
    let large = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "a".repeat(20_000));
    let many = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "X: a\r\n".repeat(200));
    let long = format!("GET /{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", "a".repeat(70_000));
    for payload in [large, many, long] {
        let all = outcome(&gateway, payload.as_bytes()).await;
        assert!(all.starts_with("HTTP/1.1 431") || all.starts_with("HTTP/1.1 414"), "{all}");
    }
    assert_eq!(app.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_size_when_told_so() {
    let (_control, _app, gateway) = started(|limits| limits.body_bytes = Some(1_000)).await;
    for framing in [
        format!("Content-Length: 2000\r\n\r\n{}", "x".repeat(2_000)),
        format!("Transfer-Encoding: chunked\r\n\r\n7d0\r\n{}\r\n0\r\n\r\n", "x".repeat(2_000)),
    ] {
        let mut client = Raw::connect(gateway.http_addrs()[0]).await;
        client.send(format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\n{framing}")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.headers["x-stead-failed-by"].as_str()), (413, "client"));
    }
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    let fits = format!(
        "POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000\r\n\r\n{}",
        "x".repeat(1_000)
    );
    client.send(fits).await;
    assert_eq!(client.answer().await.body, "1000");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_silent_clients_are_let_go() {
    let (_control, _app, gateway) = started(|limits| {
        limits.head_time = Duration::from_millis(300);
        limits.idle_time = Duration::from_millis(600);
        limits.body_stall = Duration::from_millis(300);
    })
    .await;
    let addr = gateway.http_addrs()[0];
    // Silent from the start.
    assert_eq!(Raw::connect(addr).await.rest().await.unwrap(), "");
    // A head that never ends, though bytes keep coming.
    let mut client = Raw::connect(addr).await;
    let mut sent = 0;
    let drip = async {
        while client.try_send("X").await.is_ok() {
            sent += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(drip).await;
    assert!(sent < 200);
    // A body that stands still.
    let mut client = Raw::connect(addr).await;
    client
        .send(format!("POST /count HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 10\r\n\r\n1"))
        .await;
    let rest = client.rest().await.unwrap_or_default();
    assert!(!rest.contains(" 200 "), "{rest}");
    // Idle after a request. A long answer is not idleness.
    let mut client = Raw::connect(addr).await;
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(client.rest().await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_is_not_idleness() {
    let (_control, app, gateway) =
        started(|limits| limits.idle_time = Duration::from_millis(200)).await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("GET /wait HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    app.got(1).await;
    tokio::time::sleep(Duration::from_millis(600)).await; // three times the idle limit passes
    app.go();
    assert_eq!(client.answer().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_answer_is_given_up_when_told_so() {
    let (_control, _app, gateway) =
        started(|limits| limits.response_time = Some(Duration::from_millis(200))).await;
    let answer = Raw::connect(gateway.http_addrs()[0]).await.get("/wait").await;
    assert_eq!(
        (answer.status, answer.headers["x-stead-reason"].as_str()),
        (504, "response_timeout")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_resets_ends_the_connection() {
    let (_control, app, gateway) = started(|_| {}).await;
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    // GET http HOST /wait, from the static table of RFC 7541 and literals without indexing.
    let text = |name: u8, value: &str| [&[name, value.len() as u8], value.as_bytes()].concat();
    let head = [&[0x82, 0x86][..], &text(0x01, HOST), &text(0x04, "/wait")].concat();
    let mut flood = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    flood.extend(frame(4, 0, 0, &[])); // SETTINGS
    for stream in (1..20_001).step_by(2) {
        flood.extend(frame(1, 0x5, stream, &head)); // HEADERS, the whole request
        flood.extend(frame(3, 0, stream, &8_u32.to_be_bytes())); // RST_STREAM, CANCEL
    }
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    let _ = client.try_send(&flood).await; // it may be cut before it is all sent
    let _ = client.rest().await;
    assert!(app.requests() < 10_000);
    let served = Raw::connect(gateway.http_addrs()[0]).await.get("/").await;
    assert_eq!(served.status, 200, "others are served");
    until("nothing is left of it", || gateway.report().apps[0].in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_heads_have_a_size() {
    let (_control, app, gateway) = started(|limits| limits.head_bytes = 8_192).await;
    let mut sender = h2_client(gateway.http_addrs()[0]).await;
    let mut request = h2_request("/", empty());
    request.headers_mut().insert("x", "a".repeat(20_000).parse().unwrap());
    let status = within(sender.send_request(request)).await.map(|response| response.status());
    assert!(status.as_ref().is_err() || status.is_ok_and(|status| status == 431));
    assert_eq!(app.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_is_refused() {
    let (_control, app, gateway) = started(|_| {}).await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("CONNECT {HOST}:80 HTTP/1.1\r\nHost: {HOST}:80\r\n\r\n")).await;
    assert_eq!(client.answer().await.status, 405);
    assert_eq!(app.requests(), 0);
}
