//! Sites: files served by the gateway itself, over real sockets from a real folder.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stead_core::ids::{Digest, ReleaseNo};
use stead_core::routes::AppRoutes;
use stead_core::routes::site::{
    Coding, INDEX_FILE, SiteEntry, SiteFile, SiteIndex, SiteRelease, SiteRoute, VERSION, is_hashed,
    media_type,
};
use stead_gateway::Gateway;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::kit::*;
use crate::tls::Https;

/// When the Releases of these tests were made: 1 January 2025, 00:00:00.
const MADE: u64 = 1_735_689_600;
const MADE_DATE: &str = "Wed, 01 Jan 2025 00:00:00 GMT";

fn put_file(dir: &Path, name: &str, bytes: &[u8]) -> SiteFile {
    let path = dir.join("site").join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let sha256 = Digest::from_sha256(digest.as_ref().try_into().unwrap());
    SiteFile { file: format!("site/{name}"), size: bytes.len() as u64, sha256 }
}

/// A site's layer with these files. One that is called like another with `.br` or `.gz` at its
/// end is a variant of that.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut index = SiteIndex { version: VERSION, entries: Default::default() };
    for (name, bytes) in files {
        let plain = put_file(dir.path(), name, bytes);
        let variant = name.rsplit_once('.').and_then(|(of, ending)| {
            let coding = match ending {
                "br" => Coding::Brotli,
                "gz" => Coding::Gzip,
                _ => return None,
            };
            Some((index.entries.get_mut(&format!("/{of}"))?, coding))
        });
        if let Some((entry, coding)) = variant {
            entry.variants.insert(coding, plain);
            continue;
        }
        let entry = SiteEntry {
            plain,
            content_type: media_type(name).to_owned(),
            variants: Default::default(),
            immutable: is_hashed(name),
        };
        index.entries.insert(format!("/{name}"), entry);
    }
    index.check().unwrap();
    std::fs::write(dir.path().join(INDEX_FILE), serde_json::to_vec(&index).unwrap()).unwrap();
    dir
}

fn release(number: u32, dir: &TempDir) -> SiteRelease {
    let folder = dir.path().to_str().unwrap().to_owned();
    SiteRelease { release: ReleaseNo(number), folder, made: MADE }
}

fn site(now: SiteRelease, before: Option<SiteRelease>, rules: &str) -> AppRoutes {
    let rules = serde_json::from_str(rules).unwrap();
    AppRoutes { site: Some(SiteRoute { now, rules, before }), ..routes([]) }
}

/// A gateway that serves `dir` as Release 1.
async fn serving(dir: &TempDir, rules: &str) -> (Arc<Control>, Gateway) {
    let control = Control::start();
    control.put(APP, site(release(1, dir), None, rules)).await;
    let gateway = control.gateway().await;
    (control, gateway)
}

async fn ask(client: &mut Raw, method: &str, path: &str, fields: &str) -> Answer {
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await;
    if method == "HEAD" { client.head().await.unwrap() } else { client.answer().await }
}

fn field<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", String::as_str)
}

/// Everything that was asked for has ended, and the sums agree.
async fn adds_up(gateway: &Gateway) -> stead_core::routes::AppReport {
    until("nothing in flight", || gateway.report().apps.iter().all(|app| app.in_flight == 0)).await;
    let report = gateway.report().apps.remove(0);
    let ended: u64 = report.releases.iter().map(|release| release.outcomes.total()).sum();
    assert_eq!(report.received, ended + report.unsent.total(), "{report:?}");
    for release in &report.releases {
        assert_eq!(release.received, release.moved + release.outcomes.total(), "{release:?}");
    }
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_with_what_browsers_need_to_know() {
    let dir = folder(&[
        ("index.html", b"<h1>hello</h1>"),
        ("docs/index.html", b"docs"),
        ("404.html", b"not here"),
        ("empty.txt", b""),
        ("assets/app.1f3a9b2c.js", b"let a = 1;"),
        ("logo.svg", b"<svg/>"),
    ]);
    let rules = r#"{"cache": {"files": "1h"}, "headers": {"X-Frame-Options": "DENY"}}"#;
    let (_control, gateway) = serving(&dir, rules).await;
    let client = &mut Raw::connect(gateway.http_addrs()[0]).await;

    let page = client.get("/").await;
    assert_eq!((page.status, page.body.as_str()), (200, "<h1>hello</h1>"));
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", "14"),
        ("cache-control", "no-cache"),
        ("last-modified", MADE_DATE),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("vary", ""),
        ("x-stead-reason", ""),
    ] {
        assert_eq!(field(&page, name), value, "{name}");
    }
    let etag = field(&page, "etag").to_owned();
    assert_eq!(etag.len(), 34);
    assert_ne!(field(&page, "date"), "");
    let hashed = client.get("/assets/app.1f3a9b2c.js").await;
    assert_eq!(field(&hashed, "cache-control"), "public, max-age=31536000, immutable");
    let logo = client.get("/logo.svg").await;
    assert_eq!(field(&logo, "cache-control"), "public, max-age=3600");
    assert_eq!(field(&logo, "content-type"), "image/svg+xml");
    let empty = client.get("/empty.txt").await;
    assert_eq!((empty.status, field(&empty, "content-length")), (200, "0"));

    // The same without its body, on the same connection.
    let head = ask(client, "HEAD", "/", "").await;
    assert_eq!((head.status, field(&head, "content-length")), (200, "14"));
    assert_eq!(field(&head, "etag"), etag);

    let known = ask(client, "GET", "/", &format!("If-None-Match: \"x\", {etag}\r\n")).await;
    assert_eq!((known.status, known.body.as_str()), (304, ""));
    assert_eq!((field(&known, "etag"), field(&known, "cache-control")), (&*etag, "no-cache"));
    assert_eq!(field(&known, "content-type"), "");
    let fields = format!("If-Modified-Since: {MADE_DATE}\r\n");
    assert_eq!(ask(client, "GET", "/", &fields).await.status, 304);
    assert_eq!(ask(client, "GET", "/", "If-Match: \"x\"\r\n").await.status, 412);

    let part = ask(client, "GET", "/", "Range: bytes=4-8\r\n").await;
    assert_eq!((part.status, part.body.as_str()), (206, "hello"));
    assert_eq!(field(&part, "content-range"), "bytes 4-8/14");
    let fields = format!("Range: bytes=-5\r\nIf-Range: {etag}\r\n");
    assert_eq!(ask(client, "GET", "/", &fields).await.body, "</h1>");
    let fields = "Range: bytes=-5\r\nIf-Range: \"other\"\r\n";
    assert_eq!(ask(client, "GET", "/", fields).await.status, 200);
    let none = ask(client, "GET", "/", "Range: bytes=14-\r\n").await;
    assert_eq!((none.status, field(&none, "content-range")), (416, "bytes */14"));

    let moved = client.get("/docs?a=b").await;
    assert_eq!((moved.status, field(&moved, "location")), (301, "/docs/?a=b"));
    assert_eq!(client.get("/docs/").await.body, "docs");
    let missing = client.get("/nothing").await;
    assert_eq!((missing.status, missing.body.as_str()), (404, "not here"));
    assert_eq!((field(&missing, "etag"), field(&missing, "x-frame-options")), ("", "DENY"));
    assert_eq!(client.get("/%00").await.status, 400);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let refused = ask(client, method, "/", "Content-Length: 0\r\n").await;
        assert_eq!((refused.status, field(&refused, "allow")), (405, "GET, HEAD"), "{method}");
    }

    let report = adds_up(&gateway).await;
    assert_eq!((report.releases.len(), report.unsent.total()), (1, 0));
    let release = &report.releases[0];
    assert_eq!(release.outcomes.completed, report.received);
    assert_eq!(release.answered.iter().sum::<u64>(), report.received);
    assert_eq!(release.answered[4], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variant_is_one_that_the_client_takes() {
    let dir = folder(&[
        ("app.js", b"let something = long;"),
        ("app.js.gz", b"gzipped bytes"),
        ("app.js.br", b"brotli"),
    ]);
    let (_control, gateway) = serving(&dir, "{}").await;
    let client = &mut Raw::connect(gateway.http_addrs()[0]).await;
    let mut tags = std::collections::BTreeSet::new();
    for (accepted, coding, body) in [
        ("", "", "let something = long;"),
        ("Accept-Encoding: gzip\r\n", "gzip", "gzipped bytes"),
        ("Accept-Encoding: gzip\r\nAccept-Encoding: br\r\n", "br", "brotli"),
        ("Accept-Encoding: br;q=0.1, gzip\r\n", "gzip", "gzipped bytes"),
    ] {
        let answer = ask(client, "GET", "/app.js", accepted).await;
        assert_eq!((field(&answer, "content-encoding"), &*answer.body), (coding, body));
        assert_eq!(field(&answer, "vary"), "accept-encoding");
        assert_eq!(field(&answer, "content-type"), "text/javascript; charset=utf-8");
        tags.insert(field(&answer, "etag").to_owned());
        let known = format!("{accepted}If-None-Match: {}\r\n", field(&answer, "etag"));
        let known = ask(client, "GET", "/app.js", &known).await;
        assert_eq!((known.status, field(&known, "vary")), (304, "accept-encoding"));
    }
    assert_eq!(tags.len(), 3, "each variant has its own tag");
    let part = ask(client, "GET", "/app.js", "Accept-Encoding: br\r\nRange: bytes=0-2\r\n").await;
    assert_eq!((part.status, &*part.body, field(&part, "content-encoding")), (206, "bro", "br"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_for_every_path_but_not_for_files() {
    let dir = folder(&[("index.html", b"app")]);
    let (_control, gateway) = serving(&dir, r#"{"fallback": "index.html"}"#).await;
    let client = &mut Raw::connect(gateway.http_addrs()[0]).await;
    for path in ["/", "/users/7", "/deep/er/"] {
        let page = client.get(path).await;
        assert_eq!((page.status, page.body.as_str()), (200, "app"), "{path}");
    }
    assert_eq!(client.get("/app.js").await.status, 404);
}

/// More than is kept in memory, and no two chunks alike.
fn large() -> Vec<u8> {
    (0..3_000_000_u32)
        .flat_map(|n| [(n % 251) as u8, (n / 251) as u8])
        .map(|b| b % 64 + 32)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_are_streamed_over_both_protocols() {
    let bytes = large();
    let dir = folder(&[("large.txt", &bytes)]);
    let (_control, gateway) = serving(&dir, "{}").await;
    let addr = gateway.http_addrs()[0];
    let client = &mut Raw::connect(addr).await;
    assert!(client.get("/large.txt").await.body.as_bytes() == bytes);
    let part = ask(client, "GET", "/large.txt", "Range: bytes=1000000-3999999\r\n").await;
    assert!(part.body.as_bytes() == &bytes[1_000_000..4_000_000]);

    let mut h2 = h2_client(addr).await;
    let get = |path: &str, method| {
        let uri = format!("http://{HOST}{path}");
        http::Request::builder().method(method).uri(uri).body(empty()).unwrap()
    };
    let answer = within(h2.send_request(get("/large.txt", "GET"))).await.unwrap();
    assert_eq!(answer.headers()["content-length"], bytes.len().to_string());
    assert!(within(answer.into_body().collect()).await.unwrap().to_bytes() == bytes);
    let answer = within(h2.send_request(get("/large.txt", "HEAD"))).await.unwrap();
    assert_eq!(answer.headers()["content-length"], bytes.len().to_string());
    assert!(within(answer.into_body().collect()).await.unwrap().to_bytes().is_empty());

    // One that goes away in the middle is counted as gone; and a file that is removed while
    // it is sent is sent to its end.
    let mut leaving = Raw::connect(addr).await;
    leaving.send(format!("GET /large.txt HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    leaving.exactly(1000).await.unwrap();
    let mut staying = Raw::connect(addr).await;
    staying.send(format!("GET /large.txt HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    assert_eq!(staying.head().await.unwrap().status, 200);
    drop(leaving);
    std::fs::remove_dir_all(dir.path().join("site")).unwrap();
    assert!(staying.exactly(bytes.len()).await.unwrap().as_bytes() == bytes);
    let report = adds_up(&gateway).await;
    let outcomes = &report.releases[0].outcomes;
    assert_eq!((outcomes.client_aborted, outcomes.completed), (1, report.received - 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_response_is_of_one_release_while_the_routes_change() {
    // Each file says of which Release it is; one is kept in memory, the other is not.
    let of = |number: u8| {
        let old = format!("assets/app.{number:08x}abcd.js");
        folder(&[
            ("small.txt", &[b'0' + number; 500]),
            ("big.txt", &vec![b'0' + number; 700_000]),
            (&old, &[b'0' + number; 10]),
        ])
    };
    let dirs: Vec<TempDir> = (1..=9).map(of).collect();
    let (control, gateway) = serving(&dirs[0], "{}").await;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = (0..4).map(|n| {
        let (stop, asked, addr) = (stop.clone(), asked.clone(), gateway.http_addrs()[0]);
        tokio::spawn(async move {
            let mut client = Raw::connect(addr).await;
            let mut tags = std::collections::BTreeMap::new();
            while !stop.load(Ordering::SeqCst) {
                let path = if n % 2 == 0 { "/small.txt" } else { "/big.txt" };
                let answer = client.get(path).await;
                assert_eq!(answer.status, 200);
                let first = answer.body.as_bytes()[0];
                assert!(answer.body.bytes().all(|byte| byte == first), "a mix of two releases");
                let tag = field(&answer, "etag").to_owned();
                assert_eq!(tags.entry(tag).or_insert(first), &first);
                asked.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for number in 2..=9 {
        let before = asked.load(Ordering::SeqCst);
        until("requests between", || asked.load(Ordering::SeqCst) >= before + 20).await;
        let (now, earlier) = (&dirs[number - 1], &dirs[number - 2]);
        let earlier = release(number as u32 - 1, earlier);
        control.put(APP, site(release(number as u32, now), Some(earlier), "{}")).await;
        // From the acknowledgement on nobody gets the old one.
        let mut client = Raw::connect(gateway.http_addrs()[0]).await;
        assert_eq!(client.get("/small.txt").await.body.as_bytes()[0], b'0' + number as u8);
        // What a page of the Release before asks for is still there; of the one before, not.
        let script = |number: usize| format!("/assets/app.{number:08x}abcd.js");
        assert_eq!(client.get(&script(number - 1)).await.status, 200);
        assert_eq!(client.get(&script(number.wrapping_sub(2))).await.status, 404);
    }
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        within(client).await.unwrap();
    }
    let report = adds_up(&gateway).await;
    assert_eq!(report.releases.len(), 9);
    assert!(report.releases.iter().all(|release| release.outcomes.total() > 0));
    let completed: u64 = report.releases.iter().map(|r| r.outcomes.completed).sum();
    assert_eq!(completed, report.received);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_answered_500_and_nothing_else_is() {
    let dir = folder(&[("index.html", b"hello"), ("a.txt", b"aaa"), ("b.txt", b"bbb")]);
    std::fs::write(dir.path().join("site/a.txt"), "changed").unwrap();
    std::fs::remove_file(dir.path().join("site/b.txt")).unwrap();
    let (control, gateway) = serving(&dir, "{}").await;
    let client = &mut Raw::connect(gateway.http_addrs()[0]).await;
    for path in ["/a.txt", "/b.txt"] {
        let broken = client.get(path).await;
        assert_eq!((broken.status, field(&broken, "x-stead-reason")), (500, "site_broken"));
        assert!(broken.body.contains("STEAD-I014"), "{}", broken.body);
    }
    assert_eq!(client.get("/").await.status, 200);

    let index = std::fs::read(dir.path().join(INDEX_FILE)).unwrap();
    let other = folder(&[]);
    std::fs::write(other.path().join(INDEX_FILE), &index[..index.len() / 2]).unwrap();
    control.put(APP, site(release(2, &other), None, "{}")).await;
    assert_eq!(client.get("/").await.status, 500);
    // It is read again with the next generation, and what is whole is served.
    std::fs::write(other.path().join(INDEX_FILE), &index).unwrap();
    put_file(other.path(), "index.html", b"hello");
    control.put(APP, site(release(2, &other), None, r#"{"headers": {"x-a": "b"}}"#)).await;
    assert_eq!(client.get("/").await.body, "hello");
    let report = adds_up(&gateway).await;
    let failed: u64 = report.releases.iter().flat_map(|r| r.outcomes.failed.values()).sum();
    assert_eq!(failed, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_a_control_plane_serves_what_it_knew() {
    let dir = folder(&[("index.html", b"hello")]);
    let (control, gateway) = serving(&dir, "{}").await;
    let kept = control.config().state_dir.join("routes.json");
    let folder = dir.path().to_str().unwrap();
    until("routes on disk", || std::fs::read_to_string(&kept).is_ok_and(|t| t.contains(folder)))
        .await;
    gateway.stop();
    within(gateway.ended()).await;
    let mut alone = control.config();
    alone.run_dir = control.dir.path().join("elsewhere");
    let gateway = Gateway::start(alone).await.unwrap();
    let client = &mut Raw::connect(gateway.http_addrs()[0]).await;
    assert_eq!(client.get("/").await.body, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_the_first_release_gets_it() {
    let dir = folder(&[("index.html", b"hello")]);
    let control = Control::start();
    control.put(APP, routes([])).await;
    let gateway = control.gateway().await;
    let client = &mut Raw::connect(gateway.http_addrs()[0]).await;
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
    until("it is parked", || gateway.report().apps.iter().any(|app| app.parked == 1)).await;
    control.put(APP, site(release(1, &dir), None, "{}")).await;
    assert_eq!(client.answer().await.body, "hello");
    let report = adds_up(&gateway).await;
    assert_eq!((report.releases[0].received, report.releases[0].parked), (1, 1));

    control.put(APP, AppRoutes { stopped: true, ..site(release(1, &dir), None, "{}") }).await;
    let stopped = client.get("/").await;
    assert_eq!((stopped.status, field(&stopped, "x-stead-reason")), (503, "stopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_file_is_kept_by_no_cache() {
    let dir = folder(&[("assets/app.1f3a9b2c.js", b"let a = 1;")]);
    let (_control, gateway) = serving(&dir, r#"{"cache": {"files": "1h"}}"#).await;
    let client = &mut Raw::connect(gateway.http_addrs()[0]).await;
    let script = "/assets/app.1f3a9b2c.js";
    for (fields, status) in [("If-Match: \"x\"\r\n", 412), ("Range: bytes=10-\r\n", 416)] {
        let answer = ask(client, "GET", script, fields).await;
        assert_eq!(answer.status, status);
        // A cache that kept it would give it to those who asked for the file.
        assert_eq!(field(&answer, "cache-control"), "no-store", "{status}");
        assert_eq!(field(&answer, "content-length"), "0");
    }
    // Also where there is no file, HEAD says of the body what GET does, or nothing.
    for (path, status) in [("/nothing", 404), ("/assets", 404), ("/%2f", 400)] {
        let get = client.get(path).await;
        let head = ask(client, "HEAD", path, "").await;
        assert_eq!((get.status, head.status), (status, status), "{path}");
        let length = field(&head, "content-length");
        assert!(length.is_empty() || length == field(&get, "content-length"), "{path}: {length}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_over_tls_is_the_same_by_both_protocols() {
    let bytes = large();
    let dir = folder(&[
        ("index.html", b"<h1>hello</h1>"),
        ("index.html.br", b"brotli"),
        ("docs/index.html", b"docs"),
        ("large.txt", &bytes),
    ]);
    let control = Control::start();
    control.put(APP, site(release(1, &dir), None, "{}")).await;
    let https = Https::start(&control).await;
    let get = |path: &str, fields: &[(&str, &str)]| {
        let request = http::Request::get(format!("https://{HOST}{path}")).header("host", HOST);
        let add = |request: http::request::Builder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        fields.iter().fold(request, add).body(empty()).unwrap()
    };
    let h2 = https.h2().await;
    let (http1, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(https.connect("http/1.1").await))
            .await
            .unwrap();
    tokio::spawn(connection);
    let (mut h2_asks, mut http1_asks) = (h2.clone(), http1);
    for (path, fields, status, body) in [
        ("/", [("accept-encoding", "gzip, br")], 200, "brotli"),
        ("/", [("accept-encoding", "gzip")], 200, "<h1>hello</h1>"),
        ("/", [("range", "bytes=4-8")], 206, "hello"),
        ("/", [("if-modified-since", MADE_DATE)], 304, ""),
        ("/docs", [("accept", "*/*")], 301, "It has moved.\n"),
        ("/docs/", [("accept", "*/*")], 200, "docs"),
        ("/nothing", [("accept", "*/*")], 404, "There is no such file.\n"),
    ] {
        let by_h2 = within(h2_asks.send_request(get(path, &fields))).await.unwrap();
        // The answer before may be read, and its connection not know yet that it is.
        within(http1_asks.ready()).await.unwrap();
        let by_http1 = within(http1_asks.send_request(get(path, &fields))).await.unwrap();
        assert_eq!((by_h2.status().as_u16(), by_http1.status().as_u16()), (status, status));
        if status == 301 {
            // Of no scheme: it holds for whatever the client came by.
            assert_eq!(by_h2.headers()["location"], "/docs/");
        }
        let fields = |answer: &http::Response<_>| {
            let mut fields = answer.headers().clone();
            fields.remove("date");
            fields
        };
        assert_eq!(fields(&by_h2), fields(&by_http1), "{path} {status}");
        for answer in [by_h2, by_http1] {
            let got = within(answer.into_body().collect()).await.unwrap().to_bytes();
            assert_eq!(got, body, "{path} {status}");
        }
    }

    // Many at once over one connection, one of which the client gives up.
    let mut answers = Vec::new();
    for _ in 0..5 {
        let answer = within(h2_asks.send_request(get("/large.txt", &[]))).await.unwrap();
        assert_eq!(answer.headers()["content-length"], bytes.len().to_string());
        answers.push(answer);
    }
    drop(answers.remove(2));
    let whole =
        futures_util::future::join_all(answers.into_iter().map(|a| a.into_body().collect()));
    for got in within(whole).await {
        assert!(got.unwrap().to_bytes() == bytes);
    }
    within(http1_asks.ready()).await.unwrap();
    let answer = within(http1_asks.send_request(get("/large.txt", &[]))).await.unwrap();
    assert!(within(answer.into_body().collect()).await.unwrap().to_bytes() == bytes);
    let report = adds_up(&https.gateway).await;
    let outcomes = &report.releases[0].outcomes;
    assert_eq!((outcomes.client_aborted, outcomes.completed), (1, report.received - 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_open_once_for_all_who_read_it_slowly() {
    let bytes = large();
    let dir = folder(&[("large.txt", &bytes)]);
    let (_control, gateway) = serving(&dir, "{}").await;
    let file = std::fs::canonicalize(dir.path().join("site/large.txt")).unwrap();
    let open = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
        fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == file)).count()
    };
    // One connection of a stranger, who takes next to nothing of what was asked for.
    let stream = TcpStream::connect(gateway.http_addrs()[0]).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1000).initial_connection_window_size(1 << 20);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..100 {
        let get = http::Request::get(format!("http://{HOST}/large.txt")).body(empty()).unwrap();
        let answer = within(sender.send_request(get)).await.unwrap();
        assert_eq!(answer.status(), 200);
        answers.push(answer);
    }
    assert_eq!(open(), 1);
    // Each is at a place of its own.
    let last = answers.pop().unwrap();
    assert!(within(last.into_body().collect()).await.unwrap().to_bytes() == bytes);
    drop(answers);
    until("it is closed", || open() == 0).await;
}
