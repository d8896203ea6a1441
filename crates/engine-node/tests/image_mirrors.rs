//! Logins and mirrors, as the operator wrote them into the book, and as docker wrote them into
//! its own; and images in every form that registries keep.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use image_support::hostile::{Hostile, Reply, Request, honest};
use image_support::registry::Registry;
use image_support::{
    Home, Layer, Tar, TestImage, descriptor, digest, large, options, pull, quick, web,
};
use stead_core::error::{Code, UserError};
use stead_core::registry::{Login, Mirror, RegistryBook, RegistryChecked, RegistryHost};
use stead_core::secret::Secret;
use stead_engine_node::image::{ImageError, ImageStore, StoreOptions};

/// What an operator wrote, and may write while a store is open.
#[derive(Debug, Default)]
struct Book {
    logins: Mutex<HashMap<String, Login>>,
    mirrors: Mutex<HashMap<String, Vec<Mirror>>>,
}

impl Book {
    fn log_in(&self, host: &str, password: &str) {
        self.logins.lock().unwrap().insert(host.to_owned(), login(password));
    }

    fn mirror(&self, host: &str, mirror: &str, tags: bool) {
        let mirror = Mirror { address: mirror.parse().unwrap(), tags };
        self.mirrors.lock().unwrap().entry(host.to_owned()).or_default().push(mirror);
    }
}

impl RegistryBook for Book {
    fn login(&self, host: &RegistryHost) -> Result<Option<Login>, UserError> {
        Ok(self.logins.lock().unwrap().get(host.as_str()).cloned())
    }

    fn mirrors(&self, host: &RegistryHost) -> Result<Vec<Mirror>, UserError> {
        Ok(self.mirrors.lock().unwrap().get(host.as_str()).cloned().unwrap_or_default())
    }
}

fn login(password: &str) -> Login {
    Login { user: "user".into(), password: Secret::new(password.into()).unwrap() }
}

fn with_book(home: &Home, book: &Arc<Book>) -> ImageStore {
    let mut options = quick();
    options.registry.book = Arc::clone(book) as Arc<dyn RegistryBook>;
    options.registry.stall_timeout = Duration::from_millis(500);
    home.open_with(options)
}

/// Serves the image to who gives this `Authorization`.
async fn guarded(image: &TestImage, authorization: &'static str) -> Hostile {
    let served = image.clone();
    Hostile::start(image, move |request| {
        let admitted = request.header("authorization") == Some(authorization);
        let challenge = || Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"");
        Some(if admitted { honest(&served, request) } else { challenge() })
    })
    .await
}

const SECRET: &str = "Basic dXNlcjpzM2NyZXQ="; // user:s3cret

#[tokio::test]
async fn a_login_holds_at_once_and_for_its_registry_alone() {
    let image = web();
    let (first, second) = (guarded(&image, SECRET).await, guarded(&image, SECRET).await);
    let (home, book) = (Home::new(), Arc::new(Book::default()));
    let store = with_book(&home, &book);
    let denied = async |server: &Hostile| {
        let error = store.resolve(&server.reference()).await.unwrap_err();
        assert_eq!(error.code(), Code::RegistryDenied, "{error}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("s3cret") && !text.contains("dXNlc"), "{text}");
    };
    denied(&first).await;
    book.log_in(&first.host, "s3cret");
    pull(&store, &first.reference()).await.unwrap();
    denied(&second).await;
    let sent: Vec<_> =
        second.asked("").iter().map(|r| r.headers.contains_key("authorization")).collect();
    assert!(!sent.contains(&true), "another registry was given the login");
    // A login that is taken away is not remembered.
    book.logins.lock().unwrap().clear();
    denied(&first).await;
}

#[tokio::test]
async fn a_login_is_tried_before_it_is_kept() {
    let image = web();
    let home = Home::new();
    let store = home.open_with(quick());
    let check = async |server: &Hostile, login: Option<&Login>| {
        store.check_registry(&server.host.parse().unwrap(), login).await
    };
    let with_password = Hostile::start(&image, |request| {
        Some(match request.header("authorization") == Some(SECRET) {
            true => Reply::new(200, "{}"),
            false => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""),
        })
    })
    .await;
    let (good, bad) = (login("s3cret"), login("wrong"));
    assert_eq!(check(&with_password, Some(&good)).await.unwrap(), RegistryChecked::Accepted);
    assert_eq!(check(&with_password, None).await.unwrap(), RegistryChecked::Accepted);
    let error = check(&with_password, Some(&bad)).await.unwrap_err();
    assert_eq!(error.code(), Code::RegistryDenied, "{error}");
    assert!(with_password.requests.lock().unwrap().iter().all(|r| r.path == "/v2/"));

    let with_tokens = Hostile::start(&image, |request| {
        let host = request.header("host").unwrap();
        // It names a scope of nobody's, as GitHub's does.
        let challenge = format!(
            "Bearer realm=\"http://{host}/token\",service=\"reg\",scope=\"repository:x/y:pull\""
        );
        Some(match request.header("authorization") {
            Some(SECRET) if !request.path.contains("scope") => Reply::new(200, r#"{"token":"t"}"#),
            Some("Bearer t") => Reply::new(200, "{}"),
            _ if request.path.starts_with("/token") => Reply::new(401, ""),
            _ => Reply::new(401, "").header("WWW-Authenticate", challenge),
        })
    })
    .await;
    assert_eq!(check(&with_tokens, Some(&good)).await.unwrap(), RegistryChecked::Accepted);
    assert_eq!(check(&with_tokens, Some(&bad)).await.unwrap_err().code(), Code::RegistryDenied);

    let open = Hostile::start(&image, |_| Some(Reply::new(200, "{}"))).await;
    assert_eq!(check(&open, Some(&good)).await.unwrap(), RegistryChecked::WantsNone);
    assert!(open.asked("").iter().all(|r| !r.headers.contains_key("authorization")));

    let stranger = Hostile::start(&image, |_| Some(Reply::new(200, r#"{"token":"t"}"#))).await;
    let port = stranger.host.rsplit(':').next().unwrap().to_owned();
    let thief = Hostile::start(&image, move |_| {
        let realm = format!("Bearer realm=\"http://localhost:{port}/token\"");
        Some(Reply::new(401, "").header("WWW-Authenticate", realm))
    })
    .await;
    let error = check(&thief, Some(&good)).await.unwrap_err();
    assert!(matches!(error, ImageError::ForeignRealm { .. }), "{error}");
    assert_eq!(stranger.asked("").len(), 0, "the password went to a stranger");

    let host = "127.0.0.1:9".parse().unwrap();
    let error = store.check_registry(&host, Some(&good)).await.unwrap_err();
    assert_eq!(error.code(), Code::RegistryUnavailable, "{error}");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_for_one_that_is_sent() {
    let image = web();
    let served = image.clone();
    let server = Hostile::start(&image, move |request| {
        let host = request.header("host").unwrap();
        if request.path.starts_with("/token") {
            let right = request.method == "POST"
                && request.body.contains("grant_type=refresh_token")
                && request.body.contains("refresh_token=id%2Btoken")
                && request.body.contains("scope=repository%3Aweb%3Apull")
                && !request.path.contains("token=");
            return Some(match right {
                true => Reply::new(200, r#"{"access_token": "t"}"#),
                false => Reply::new(400, request.body.clone()),
            });
        }
        if request.header("authorization") == Some("Bearer t") {
            return Some(honest(&served, request));
        }
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"reg\"");
        Some(Reply::new(401, "").header("WWW-Authenticate", challenge))
    })
    .await;
    let home = Home::new();
    let config = serde_json::json!({"auths": {&server.host: {"identitytoken": "id+token"}}});
    let store = home.open_with(with_config(&home, &config));
    pull(&store, &server.reference()).await.unwrap();
}

fn with_config(home: &Home, config: &serde_json::Value) -> StoreOptions {
    fs::create_dir_all(home.root()).unwrap();
    let file = home.root().join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    let mut options = quick();
    options.registry.credentials = Some(file);
    options
}

#[tokio::test]
async fn programs_that_keep_credentials_are_asked() {
    // Found by their name on the path, so this test's own name makes it unique.
    let name = format!("stead-test-{}", std::process::id());
    let program = format!("/usr/local/bin/docker-credential-{name}");
    struct Remove<'a>(&'a str);
    impl Drop for Remove<'_> {
        fn drop(&mut self) {
            let _ = fs::remove_file(self.0);
        }
    }
    let _remove = Remove(&program);
    let write = |script: &str| {
        let fresh = format!("{program}.new");
        fs::write(&fresh, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, &program).unwrap();
    };
    let server = guarded(&web(), SECRET).await;
    let host = server.host.clone();
    for config in [
        serde_json::json!({"credHelpers": {&host: &name}}),
        serde_json::json!({"auths": {&host: {}}, "credsStore": &name}),
    ] {
        let home = Home::new();
        let store = home.open_with(with_config(&home, &config));
        let told = async || store.resolve(&server.reference()).await.map_err(|e| e.to_string());
        write(&format!(
            r#"test "$1" = get && test "$(cat)" = "{host}" && echo '{{"Username": "user", "Secret": "s3cret"}}'"#
        ));
        told().await.unwrap();
    }
    for (script, reason) in [
        ("echo credentials not found in native keychain; exit 1", "wants credentials"),
        ("echo s3cret; exit 1", "it failed"),
        ("echo s3cret", "not the JSON"),
        ("yes s3cret", "too long"),
    ] {
        let home = Home::new();
        let config = serde_json::json!({"credHelpers": {&host: &name}});
        let store = home.open_with(with_config(&home, &config));
        write(script);
        let error = store.resolve(&server.reference()).await.unwrap_err();
        assert_eq!(error.code(), Code::RegistryDenied, "{script}: {error}");
        assert!(error.to_string().contains(reason), "{script}: {error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
}

#[tokio::test]
async fn a_mirror_serves_what_is_named_by_digest() {
    let image = web();
    let registry = guarded(&image, SECRET).await;
    let served = image.clone();
    let mirror = Hostile::start(&image, move |request| {
        // The same paths without the prefix.
        let path = request.path.replace("/proxy/hub", "");
        Some(honest(&served, &Request { path, ..request.clone() }))
    })
    .await;
    let (home, book) = (Home::new(), Arc::new(Book::default()));
    book.log_in(&registry.host, "s3cret");
    book.mirror(&registry.host, &format!("{}/proxy/hub", mirror.host), false);
    let store = with_book(&home, &book);
    pull(&store, &registry.reference()).await.unwrap();
    let of_mirror = mirror.asked("");
    assert!(of_mirror.iter().all(|r| r.path.starts_with("/v2/proxy/hub/web/")), "{of_mirror:?}");
    assert!(of_mirror.iter().all(|r| !r.headers.contains_key("authorization")));
    assert_eq!(registry.asked("/manifests/1").len(), 2, "the tag was asked of the registry");
    assert_eq!(registry.asked("sha256").len(), 0, "the mirror has everything else");
}

/// Pulls an image whose first mirror answers as told and whose registry is honest.
async fn past_a_mirror(
    image: &TestImage,
    handler: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
) -> (Hostile, Hostile) {
    let registry = Hostile::start(image, |_| None).await;
    let mirror = Hostile::start(image, handler).await;
    let (home, book) = (Home::new(), Arc::new(Book::default()));
    book.mirror(&registry.host, &mirror.host, false);
    let store = with_book(&home, &book);
    let pulled = pull(&store, &registry.reference()).await.unwrap();
    assert_eq!(pulled.digest, image.digest());
    assert_eq!(store.list().len(), 1);
    home.assert_untouched();
    (registry, mirror)
}

#[tokio::test]
async fn a_mirror_that_lacks_the_image_or_fails_is_passed_over() {
    for reply in [
        || Reply::new(404, ""),
        || Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""),
        || Reply::new(403, ""),
        || Reply::new(429, "").header("Retry-After", "3600"),
        || Reply::new(500, ""),
        || Reply::new(200, "<html>"),
        || Reply::new(200, vec![b'x'; 64 << 10]).endless(),
        || Reply::new(200, "xxxx").stall(1),
        || Reply::new(302, "").header("Location", "http://169.254.169.254/"),
    ] as [fn() -> Reply; 9]
    {
        let (_, mirror) = past_a_mirror(&web(), move |_| Some(reply())).await;
        let asked = mirror.asked("").len();
        assert!(asked <= 2, "a mirror that failed was asked {asked} times");
    }
    // One that is not there at all.
    let registry = Hostile::start(&web(), |_| None).await;
    let (home, book) = (Home::new(), Arc::new(Book::default()));
    book.mirror(&registry.host, "127.0.0.1:9", true);
    pull(&with_book(&home, &book), &registry.reference()).await.unwrap();
}

#[tokio::test]
async fn wrong_bytes_of_a_mirror_are_had_again_from_the_registry() {
    let image = large(300 << 10);
    let layer = digest(&image.layers[0].stored);
    let good = image.layers[0].stored.clone();
    let mut flipped = good.clone();
    flipped[200_000] ^= 1;
    let bomb = image_support::gzip(&Tar::new().file("zeros", vec![0; 200 << 20]).finish());
    let hostile = Tar::new().file("../../outside/canary", "dead").finish();
    for wrong in [flipped, good[..1000].to_vec(), [good.as_slice(), b"x"].concat(), bomb, hostile] {
        let part = layer.clone();
        let (registry, mirror) = past_a_mirror(&image, move |request| {
            request.path.ends_with(part.as_str()).then(|| Reply::new(200, wrong.clone()))
        })
        .await;
        let of_registry = registry.asked(layer.as_str());
        assert!(!of_registry.is_empty() && !mirror.asked(layer.as_str()).is_empty());
    }
}

#[tokio::test]
async fn a_mirror_that_breaks_is_taken_over_from_in_the_middle() {
    let image = large(3 << 20);
    let (served, layer) = (image.clone(), digest(&image.layers[0].stored));
    let part = layer.clone();
    let (registry, _mirror) = past_a_mirror(&image, move |request| {
        request.path.ends_with(part.as_str()).then(|| match request.earlier {
            0 => honest(&served, request).cut(700_000),
            _ => Reply::new(503, ""),
        })
    })
    .await;
    let of_registry = registry.asked(layer.as_str());
    assert_eq!(of_registry.len(), 1);
    assert_eq!(of_registry[0].header("range"), Some("bytes=700000-"));
}

#[tokio::test]
async fn only_a_mirror_that_may_says_what_a_tag_names() {
    let (old, new) = (web(), large(1000));
    for tags in [false, true] {
        let (registry, mirror) =
            (Hostile::start(&new, |_| None).await, Hostile::start(&old, |_| None).await);
        let (home, book) = (Home::new(), Arc::new(Book::default()));
        book.mirror(&registry.host, &mirror.host, tags);
        let store = with_book(&home, &book);
        let named = store.resolve(&registry.reference()).await.unwrap();
        assert_eq!(named, if tags { old.digest() } else { new.digest() });
        assert_eq!(mirror.asked("").is_empty(), !tags);
        assert_eq!(registry.asked("").is_empty(), tags);
        // Whatever was named is had, wherever it is.
        store.pull(&registry.reference(), &named, &()).await.unwrap();
    }
    // The registry is out of reach: only the mirror that may can stand in.
    for tags in [false, true] {
        let mirror = Hostile::start(&old, |_| None).await;
        let (home, book) = (Home::new(), Arc::new(Book::default()));
        book.mirror("127.0.0.1:9", &mirror.host, tags);
        let pulled = pull(&with_book(&home, &book), &"127.0.0.1:9/web:1".parse().unwrap()).await;
        assert_eq!(pulled.is_ok(), tags, "{pulled:?}");
    }
}

#[tokio::test]
async fn every_form_of_image_and_layer_is_had_from_a_real_registry() {
    let registry = Registry::start().await;
    let tar = |name: &str| Tar::new().file(name, name).finish();
    let layers = vec![
        Layer::plain(tar("plain")),
        Layer::gzip(&tar("gzip")),
        Layer::zstd(&tar("zstd")),
        // Called plain, and is not: media types are wrong often enough.
        Layer { media_type: "application/vnd.oci.image.layer.v1.tar", ..Layer::gzip(&tar("lie")) },
    ];
    let oci = TestImage::new(layers.clone());
    registry.push("web", "oci", &oci).await;
    let docker_layers = layers.iter().map(|layer| {
        descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", &layer.stored)
    });
    let manifest = |layers: Vec<serde_json::Value>| {
        serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": descriptor("application/vnd.docker.container.image.v1+json", &oci.config),
            "layers": layers,
        })
        .to_string()
        .into_bytes()
    };
    let docker = manifest(docker_layers.collect());
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    registry.push_manifest("web", "docker", kind, &docker).await;
    let index = |kind: &str, entry_kind: &str, entry: &[u8]| {
        let mut entry = descriptor(entry_kind, entry);
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": "amd64"});
        serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]})
            .to_string()
            .into_bytes()
    };
    let list_kind = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = index(list_kind, kind, &docker);
    registry.push_manifest("web", "list", list_kind, &list).await;
    let index_kind = "application/vnd.oci.image.index.v1+json";
    let nested = index(index_kind, list_kind, &list);
    registry.push_manifest("web", "nested", index_kind, &nested).await;
    for name in ["oci", "docker", "list"] {
        let home = Home::new();
        let store = home.open_with(options());
        let image = pull(&store, &registry.reference(&format!("web:{name}"))).await.unwrap();
        let found: Vec<_> =
            image.layers.iter().flat_map(|layer| image_support::names(layer)).collect();
        assert_eq!(found, ["plain", "gzip", "zstd", "lie"], "{name}");
    }
    let home = Home::new();
    let nested = pull(&home.open_with(quick()), &registry.reference("web:nested")).await;
    let error = nested.unwrap_err();
    assert_eq!(error.code(), Code::ImageRefused);
    assert!(error.to_string().contains("index within an index"), "{error}");
    home.assert_clean();
}

#[tokio::test]
async fn a_slow_mirror_costs_its_own_patience_and_no_more() {
    let began = Instant::now();
    let image = web();
    let served = image.clone();
    past_a_mirror(&image, move |request| {
        Some(honest(&served, request).drip(Duration::from_millis(100)))
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}
