//! Registries that misbehave: each gives the right error or the right retry, and nothing of
//! what they sent is ever used.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use image_support::hostile::{Hostile, Reply, Request, honest};
use image_support::{Home, Layer, Tar, TestImage, digest, large, pull, quick, web};
use stead_core::error::Code;
use stead_engine_node::image::{Image, ImageError, StoreOptions};

/// What came of pulling an image from a registry that answers as told.
struct Told {
    result: Result<Arc<Image>, ImageError>,
    server: Hostile,
    _home: Home,
}

impl Told {
    fn code(&self) -> Code {
        self.result.as_ref().expect_err("it should have been refused").code()
    }

    fn error(&self) -> String {
        self.result.as_ref().expect_err("it should have been refused").to_string()
    }
}

/// After a failure nothing is in the store but layers that were found right.
async fn told(
    image: &TestImage,
    options: StoreOptions,
    handler: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> Told {
    let home = Home::new();
    let server = Hostile::start(image, handler).await;
    let store = home.open_with(options);
    let result = pull(&store, &server.reference()).await;
    if result.is_err() {
        home.assert_nothing_but_layers();
        assert_eq!(store.list(), [], "an image is listed");
    }
    Told { result, server, _home: home }
}

fn impatient() -> StoreOptions {
    let mut options = quick();
    options.registry.stall_timeout = Duration::from_millis(200);
    options.registry.attempts = 2;
    options
}

#[tokio::test]
async fn a_connection_that_always_breaks_at_one_byte_is_given_up() {
    let image = large(1 << 20);
    let (served, layer) = (image.clone(), digest(&image.layers[0].stored));
    let told = told(&image, quick(), move |request| {
        let is_layer = request.path.ends_with(layer.as_str());
        // Whatever is asked for, it ends at the same byte.
        let from = request.header("range").map_or(0, |range| {
            range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
        });
        is_layer.then(|| honest(&served, request).cut(600_000usize.saturating_sub(from)))
    })
    .await;
    assert!(
        matches!(told.code(), Code::RegistryUnavailable | Code::ImageCorrupt),
        "{}",
        told.error()
    );
    let asked = told.server.asked(digest(&image.layers[0].stored).as_str());
    assert_eq!(asked.len(), 5, "as often as options say");
    assert_eq!(asked[1].header("range"), Some("bytes=600000-"));
}

#[tokio::test]
async fn odd_challenges_end_in_a_denial_that_says_why() {
    for (challenge, why) in [
        (None, "not how to authenticate"),
        (Some(""), "not how to authenticate"),
        (Some("Negotiate"), "not how to authenticate"),
        (Some("Digest realm=\"x\", nonce=\"y\""), "not how to authenticate"),
        (Some("Bearer"), "not how to authenticate"),
        (Some("Bearer service=\"x\""), "not how to authenticate"),
        (Some("Basic"), "wants credentials"),
        (Some("Bearer realm=\"\""), "for a token"),
        (Some("Bearer realm=\"unclosed"), "for a token"),
        (Some("\"\\\\\\\",=,,Bearer,,,=\""), "authenticate"),
    ] {
        let told = told(&web(), quick(), move |_| {
            let reply = Reply::new(401, "<html>no</html>");
            Some(challenge.iter().fold(reply, |r, value| r.header("WWW-Authenticate", *value)))
        })
        .await;
        assert_eq!(told.code(), Code::RegistryDenied, "{challenge:?}");
        assert!(told.error().contains(why), "{challenge:?}: {}", told.error());
        assert!(told.server.asked("").len() <= 2, "{challenge:?} was tried again");
    }
}

/// A registry whose tokens are answered as `token` says; what it serves takes `good`.
async fn with_tokens(
    options: StoreOptions,
    token: impl Fn() -> Reply + Send + Sync + 'static,
) -> Told {
    let image = web();
    let served = image.clone();
    told(&image, options, move |request| {
        if request.path.starts_with("/token") {
            return Some(token());
        }
        if request.header("authorization") == Some("Bearer good") {
            return Some(honest(&served, request));
        }
        let realm = format!("Bearer realm=\"http://{}/token\"", request.header("host").unwrap());
        Some(Reply::new(401, "").header("WWW-Authenticate", realm))
    })
    .await
}

#[tokio::test]
async fn token_services_that_misbehave_are_told_apart() {
    let good = || Reply::new(200, r#"{"token": "good"}"#);
    with_tokens(quick(), good).await.result.unwrap();
    let wrong = with_tokens(quick(), || Reply::new(200, r#"{"token": "bad"}"#)).await;
    assert_eq!(wrong.code(), Code::RegistryDenied, "{}", wrong.error());
    assert_eq!(wrong.server.asked("/token").len(), 1, "a token that is refused is not had again");
    for (reply, code) in [
        (|| Reply::new(401, "") as Reply, Code::RegistryDenied),
        (|| Reply::new(403, ""), Code::RegistryDenied),
        (|| Reply::new(500, ""), Code::RegistryUnavailable),
        (|| Reply::new(200, ""), Code::RegistryUnavailable),
        (|| Reply::new(200, "<html>"), Code::RegistryUnavailable),
        (|| Reply::new(200, r#"{"token": ""}"#), Code::RegistryUnavailable),
        (|| Reply::new(200, r#"{"token": 7}"#), Code::RegistryUnavailable),
        (|| Reply::new(200, r#"{"token": "a\r\nX-Evil: 1"}"#), Code::RegistryDenied),
        (
            || Reply::new(302, "").header("Location", "http://127.0.0.1:9/"),
            Code::RegistryUnavailable,
        ),
        (|| Reply::new(200, vec![b' '; 64 << 10]).endless(), Code::ImageCorrupt),
        (|| Reply::new(200, r#"{"token": "good"}"#).stall(3), Code::RegistryUnavailable),
        (
            || Reply::new(200, r#"{"token": "good"}"#).drip(Duration::from_millis(50)),
            Code::RegistryUnavailable,
        ),
    ] as [(fn() -> Reply, Code); 12]
    {
        let told = with_tokens(impatient(), reply).await;
        assert_eq!(told.code(), code, "{}", told.error());
    }
}

#[tokio::test]
async fn refusals_are_final_and_say_what_the_registry_said() {
    let body =
        r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
    for (status, code) in [(403, Code::RegistryDenied), (404, Code::ImageNotFound)] {
        // A HEAD carries no reason.
        let manifest = told(&web(), quick(), move |request| {
            request.path.contains("/manifests/sha256:").then(|| Reply::new(status, body))
        })
        .await;
        assert_eq!(manifest.code(), code, "{}", manifest.error());
        assert_eq!(manifest.server.asked("/manifests/sha256:").len(), 1, "{status} is tried again");
        let blob = told(&web(), quick(), move |request| {
            request.path.contains("/blobs/").then(|| Reply::new(status, body))
        })
        .await;
        assert_eq!(blob.code(), code, "{}", blob.error());
        if status == 403 {
            assert!(blob.error().contains("DENIED: requested access"), "{}", blob.error());
        }
    }
}

#[tokio::test]
async fn rate_limits_are_respected_as_far_as_they_make_sense() {
    let limited = async |value: &'static str, date: Option<&'static str>| {
        told(&web(), quick(), move |request| {
            let reply = Reply::new(429, "").header("Retry-After", value);
            let reply = date.iter().fold(reply, |reply, date| reply.header("Date", *date));
            (request.earlier == 0 && request.method == "HEAD").then_some(reply)
        })
        .await
    };
    let now = "Fri, 20 Nov 2026 12:00:00 GMT";
    // A date counts from the registry's own clock; what lies in the past is over.
    for (value, date, at_least) in [
        ("1", None, Duration::from_secs(1)),
        ("Fri, 20 Nov 2026 12:00:01 GMT", Some(now), Duration::from_secs(1)),
        ("Fri, 20 Nov 2026 11:00:00 GMT", Some(now), Duration::ZERO),
        ("soon", None, Duration::ZERO),
        ("-5", None, Duration::ZERO),
    ] {
        let began = Instant::now();
        limited(value, date).await.result.unwrap();
        let took = began.elapsed();
        assert!(took >= at_least, "{value}: {took:?}");
    }
    for (value, date) in [
        ("3600", None),
        ("99999999999999999999999999", None),
        ("Fri, 20 Nov 2026 13:00:00 GMT", Some(now)),
    ] {
        let told = limited(value, date).await;
        assert!(matches!(told.result, Err(ImageError::RateLimited { .. })), "{value}");
        assert_eq!(told.server.asked("").len(), 1, "{value} was not waited for");
    }
}

#[tokio::test]
async fn bodies_that_arrive_drop_by_drop_are_given_up() {
    let image = large(64 << 10);
    let parts = [image.digest(), digest(&image.config), digest(&image.layers[0].stored)];
    for part in parts {
        let served = image.clone();
        let began = Instant::now();
        let told = told(&image, impatient(), move |request| {
            let is_it = request.path.ends_with(part.as_str());
            is_it.then(|| honest(&served, request).drip(Duration::from_millis(20)))
        })
        .await;
        assert_eq!(told.code(), Code::RegistryUnavailable, "{}", told.error());
        // At that pace the layer alone would take twenty minutes.
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn lengths_that_are_not_those_of_the_body_are_found() {
    let image = web();
    let layer = digest(&image.layers[0].stored);
    for difference in [-3i64, -1, 1, 1 << 40] {
        let (served, part) = (image.clone(), layer.clone());
        let told = told(&image, impatient(), move |request| {
            let length = served.layers[0].stored.len() as i64 + difference;
            let length = u64::try_from(length).unwrap();
            let is_it = request.path.ends_with(part.as_str());
            let whole = Reply::new(200, served.layers[0].stored.clone());
            is_it.then(|| whole.announce(length))
        })
        .await;
        let code = told.code();
        assert!(
            matches!(code, Code::ImageCorrupt | Code::RegistryUnavailable),
            "{difference}: {}",
            told.error()
        );
    }
}

#[tokio::test]
async fn a_digest_in_a_header_is_not_believed() {
    let image = web();
    let served = image.clone();
    let other = digest(b"something else");
    let lie = other.clone();
    let lies = told(&image, quick(), move |request| {
        // For the tag, and for what is then asked for by that digest.
        let asked = request.path.contains("/manifests/");
        asked.then(|| {
            Reply::new(200, served.manifest.clone()).header("Docker-Content-Digest", lie.as_str())
        })
    })
    .await;
    assert_eq!(lies.code(), Code::ImageCorrupt, "{}", lies.error());
    let served = image.clone();
    let nonsense = told(&image, quick(), move |request| {
        let asked = request.path.ends_with("/manifests/1");
        asked.then(|| {
            Reply::new(200, served.manifest.clone()).header("Docker-Content-Digest", "sha256:zz")
        })
    })
    .await;
    nonsense.result.unwrap();
}

#[tokio::test]
async fn bombs_are_stopped_early() {
    let zeros = vec![0u8; 64 << 20];
    let tar = Tar::new().file("zeros", &zeros).finish();
    for layer in [Layer::gzip(&tar), Layer::zstd(&tar)] {
        let image = TestImage::new(vec![layer]);
        let mut options = quick();
        options.limits.ratio_from = 1 << 20;
        options.limits.ratio = 100;
        let told = told(&image, options, |_| None).await;
        assert_eq!(told.code(), Code::ImageRefused, "{}", told.error());
        assert!(told.error().contains("times its size"), "{}", told.error());
    }
    let image = TestImage::new(vec![Layer::gzip(&tar)]);
    let mut options = quick();
    options.limits.bytes = 1 << 20;
    let told = told(&image, options, |_| None).await;
    assert_eq!(told.code(), Code::ImageRefused, "{}", told.error());
}

#[tokio::test]
async fn documents_have_a_largest_size() {
    let mut huge = web();
    huge.manifest.resize((4 << 20) + 1, b' ');
    let told_huge = told(&huge, quick(), |_| None).await;
    assert_eq!(told_huge.code(), Code::ImageCorrupt, "{}", told_huge.error());
    let mut largest = web();
    largest.manifest.resize(4 << 20, b' ');
    told(&largest, quick(), |_| None).await.result.unwrap();
    // A config that is announced as larger than any is not even asked for.
    let mut manifest: serde_json::Value = serde_json::from_slice(&web().manifest).unwrap();
    manifest["config"]["size"] = (9u64 << 20).into();
    let image = TestImage { manifest: manifest.to_string().into_bytes(), ..web() };
    let told = told(&image, quick(), |_| None).await;
    assert_eq!(told.code(), Code::ImageRefused, "{}", told.error());
    assert_eq!(told.server.asked("/blobs/").len(), 0);
}

#[tokio::test]
async fn media_types_are_looked_at_in_the_document_alone() {
    // A proxy that calls everything HTML does no harm; one that sends HTML is found out.
    let image = web();
    let served = image.clone();
    let told_html = told(&image, quick(), move |request| {
        Some(honest(&served, request).header("Content-Type", "text/html"))
    })
    .await;
    told_html.result.unwrap();
    let page = told(&image, quick(), |request| {
        let is_page = request.path.contains("/manifests/") && request.method == "GET";
        is_page.then(|| Reply::new(200, "<html>Please log in to the hotel's network</html>"))
    })
    .await;
    assert_eq!(page.code(), Code::ImageCorrupt, "{}", page.error());
    // The same where nothing but the page itself says what it is.
    let page = told(&image, quick(), |request| {
        let is_page = request.path.contains("/manifests/1");
        is_page.then(|| Reply::new(200, "<html>Please log in to the hotel's network</html>"))
    })
    .await;
    assert!(page.result.is_err());
    let old = TestImage {
        manifest: serde_json::json!({
            "schemaVersion": 1, "name": "web", "tag": "1", "architecture": "amd64",
            "fsLayers": [{"blobSum": digest(b"x")}], "history": [], "signatures": [],
        })
        .to_string()
        .into_bytes(),
        ..web()
    };
    let served = old.clone();
    let told_old = told(&old, quick(), move |request| {
        let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        Some(honest(&served, request).header("Content-Type", kind))
    })
    .await;
    assert_eq!(told_old.code(), Code::ImageRefused);
    assert!(told_old.error().contains("schema 1"), "{}", told_old.error());
}

#[tokio::test]
async fn a_layer_that_is_kept_elsewhere_alone_is_refused() {
    let stranger = Hostile::start(&web(), |_| None).await;
    let mut manifest: serde_json::Value = serde_json::from_slice(&web().manifest).unwrap();
    let layer = digest(&web().layers[0].stored);
    manifest["layers"][0]["urls"] =
        serde_json::json!([format!("http://{}/v2/web/blobs/{layer}", stranger.host)]);
    let image = TestImage { manifest: manifest.to_string().into_bytes(), ..web() };
    let lacking = layer.clone();
    let told = told(&image, quick(), move |request| {
        request.path.ends_with(lacking.as_str()).then(|| Reply::new(404, ""))
    })
    .await;
    assert_eq!(told.code(), Code::ImageRefused);
    assert!(told.error().contains("kept elsewhere"), "{}", told.error());
    assert!(told.error().contains(layer.as_str()), "{}", told.error());
    assert_eq!(stranger.requests.lock().unwrap().len(), 0, "a stranger was asked");
}
