//! Sites: folders of files that the gateway serves by itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use stead_testkit::load::{Mix, Plan};

use crate::load::{Load, ledgers_are_clean};
use crate::platform::{Platform, eventually, fetch, header, image};

const HOST: &str = "docs.default.localhost";

/// A folder whose files say of which version they are: small ones and one that is streamed.
fn folder(platform: &Platform, version: u8) -> PathBuf {
    let root = platform.dir.path().join("docs-site");
    let _ = std::fs::remove_dir_all(&root);
    let script = format!("assets/app.{version:08x}abcd.js");
    for (name, bytes) in [
        ("index.html", format!("<script src=/{script}></script>version {version}")),
        ("about/index.html", format!("about {version}")),
        ("404.html", format!("nothing here {version}")),
        (&script, format!("script {version};").repeat(100)),
        ("large.bin", char::from(b'0' + version).to_string().repeat(900_000)),
    ] {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("it is ours");
        std::fs::write(path, bytes).expect("it is ours");
    }
    root
}

fn deploy(platform: &Platform, version: u8) {
    let folder = folder(platform, version).display().to_string();
    platform.stead(&["deploy", &folder, "--app", "docs"]).expect(0);
}

fn ask(platform: &Platform, path: &str, lines: &str) -> (String, String) {
    fetch(platform.http, HOST, path, lines).expect("the gateway answers")
}

#[track_caller]
fn serves(platform: &Platform, version: u8) {
    let (head, body) = ask(platform, "/", "");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.ends_with(&format!("version {version}")), "{body}");
}

#[test]
fn browsers_get_what_they_ask_for() {
    let platform = Platform::start();
    deploy(&platform, 1);
    serves(&platform, 1);
    let (head, _) = ask(&platform, "/", "");
    assert_eq!(header(&head, "cache-control"), "no-cache");
    let etag = header(&head, "etag");
    let (head, body) = ask(&platform, "/", &format!("If-None-Match: {etag}\r\n"));
    assert!(head.starts_with("HTTP/1.1 304") && body.is_empty(), "{head}");
    let (head, body) = ask(&platform, "/large.bin", "Range: bytes=899998-\r\n");
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    assert_eq!(
        (body.as_str(), &*header(&head, "content-range")),
        ("11", "bytes 899998-899999/900000")
    );
    let (head, _) = ask(&platform, "/about?x=1", "");
    assert!(head.starts_with("HTTP/1.1 301"), "{head}");
    assert_eq!(header(&head, "location"), "/about/?x=1");
    let (head, body) = ask(&platform, "/missing", "");
    assert!(head.starts_with("HTTP/1.1 404") && body == "nothing here 1", "{head}\n{body}");
    let script = "/assets/app.00000001abcd.js";
    let (head, _) = ask(&platform, script, "Accept-Encoding: gzip, deflate, br\r\n");
    assert_eq!(header(&head, "content-encoding"), "br", "{head}");
    assert_eq!(header(&head, "cache-control"), "public, max-age=31536000, immutable");
    assert_eq!(header(&head, "vary"), "accept-encoding");

    // It is an App like others where it can be, and says so where it cannot.
    let status = platform.json(&["status", "docs"]);
    assert_eq!((&status["state"], &status["site"]), (&"running".into(), &true.into()));
    platform.stead(&["scale", "docs", "2"]).expect(1);
    platform.stead(&["restart", "docs"]).expect(1);
    let refused = platform.stead(&["deploy", &image("trivial", "1"), "--app", "docs"]).expect(1);
    assert!(refused.stderr.contains("STEAD-R003"), "{}", refused.stderr);
    let other = platform.manifest("other", &image("trivial", "1"), "health: {}\nsite: {}");
    let refused = platform.stead(&["deploy", "-f", &other]);
    assert!(refused.code != 0 && refused.stderr.contains("STEAD-I014"), "{}", refused.stderr);

    platform.stead(&["stop", "docs"]).expect(0);
    eventually("it refuses", || {
        ask(&platform, "/", "").0.starts_with("HTTP/1.1 503").then_some(())
    });
    platform.stead(&["start", "docs"]).expect(0);
    eventually("it serves", || ask(&platform, "/", "").0.starts_with("HTTP/1.1 200").then_some(()));
    platform.stead(&["delete", "docs", "--yes"]).expect(0);
    eventually("it is gone", || {
        ask(&platform, "/", "").0.starts_with("HTTP/1.1 404").then_some(())
    });
}

#[test]
fn upgrades_lose_nothing_and_mix_nothing() {
    let platform = Platform::start();
    deploy(&platform, 1);
    let mut plan = Plan::new(platform.http, HOST);
    plan.version_header = "etag".to_owned();
    let load = Load::with(plan.mix(Mix { keep_alive: 4, one_shot: 2, http2: 2, ..Mix::NOBODY }));
    let (stop, whole) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reader = {
        let (stop, whole, http) = (stop.clone(), whole.clone(), platform.http);
        std::thread::spawn(move || {
            let mut seen = std::collections::BTreeSet::new();
            while !stop.load(Ordering::SeqCst) {
                let (head, body) = fetch(http, HOST, "/large.bin", "").expect("it answers");
                assert!(head.starts_with("HTTP/1.1 200"), "{head}");
                assert_eq!(body.len(), 900_000);
                let first = body.as_bytes()[0];
                assert!(body.bytes().all(|byte| byte == first), "a mix of two releases");
                seen.insert(first);
                whole.fetch_add(1, Ordering::SeqCst);
            }
            seen
        })
    };
    for version in 2..=5 {
        load.more(100);
        let before = whole.load(Ordering::SeqCst);
        eventually("a large file in between", || {
            (whole.load(Ordering::SeqCst) > before + 1).then_some(())
        });
        deploy(&platform, version);
        serves(&platform, version);
        // A page of the version before still finds its script.
        let script = format!("/assets/app.{:08x}abcd.js", version - 1);
        assert!(ask(&platform, &script, "").1.starts_with(&format!("script {}", version - 1)));
    }
    platform.stead(&["image", "prune"]).expect(0);
    platform.stead(&["rollback", "docs"]).expect(0);
    serves(&platform, 4);
    load.more(100);
    stop.store(true, Ordering::SeqCst);
    let seen = reader.join().expect("every large file was whole");
    assert!(seen.len() >= 4, "{seen:?}");
    load.stop().assert_lossless(500);
    ledgers_are_clean(&platform, "docs", 500);
}

#[test]
fn a_gateway_alone_serves_what_was_deployed_last() {
    let platform = Platform::start();
    deploy(&platform, 1);
    deploy(&platform, 2);
    // Nobody tells the next gateway anything at first.
    platform.kill("serve");
    platform.kill("gateway");
    eventually("it serves again", || {
        let (head, body) = fetch(platform.http, HOST, "/", "").ok()?;
        (head.starts_with("HTTP/1.1 200") && body.ends_with("version 2")).then_some(())
    });
    // And the next `serve` goes on where the last one was.
    eventually("it can be deployed", || {
        let folder = folder(&platform, 3).display().to_string();
        (platform.stead(&["deploy", &folder, "--app", "docs"]).code == 0).then_some(())
    });
    serves(&platform, 3);
    let releases = platform.json(&["releases", "docs"]);
    assert_eq!(releases.as_array().expect("a list").len(), 3);
}
