//! Pulling: from Debian's docker-registry, and from registries that misbehave.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use image_support::hostile::{Hostile, Reply, honest};
use image_support::registry::Registry;
use image_support::{
    Home, Layer, Tar, TestImage, descriptor, digest, large, names, pull, quick, web,
};
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;
use stead_engine_node::image::{
    Image, ImageError, LayerStep, PlannedLayer, Progress, Reference, StoreOptions, TrustedRegistry,
};

fn with_credentials(home: &Home, host: &str, user: &str, password: &str) -> StoreOptions {
    let mut options = quick();
    let auth = serde_json::json!({"auths": {host: {"username": user, "password": password}}});
    fs::create_dir_all(home.root()).unwrap();
    let file = home.root().join("config.json");
    fs::write(&file, auth.to_string()).unwrap();
    options.registry.credentials = Some(file);
    options
}

/// Pulls `image` from a registry that answers as `handler` says.
async fn pull_hostile(
    image: &TestImage,
    options: StoreOptions,
    handler: impl Fn(&image_support::hostile::Request) -> Option<Reply> + Send + Sync + 'static,
) -> (Result<Arc<Image>, ImageError>, Hostile, Home) {
    let home = Home::new();
    let server = Hostile::start(image, handler).await;
    let store = home.open_with(options);
    let result = pull(&store, &server.reference()).await;
    if result.is_err() {
        home.assert_nothing_but_layers();
    }
    (result, server, home)
}

fn code_of(result: &Result<Arc<Image>, ImageError>) -> Code {
    result.as_ref().expect_err("it should have been refused").code()
}

#[derive(Default)]
struct Log(Mutex<Vec<(Digest, LayerStep)>>, Mutex<Vec<PlannedLayer>>);

impl Progress for Log {
    fn plan(&self, layers: &[PlannedLayer]) {
        self.1.lock().unwrap().extend_from_slice(layers);
    }
    fn layer(&self, layer: &Digest, step: LayerStep) {
        self.0.lock().unwrap().push((layer.clone(), step));
    }
}

#[tokio::test]
async fn an_image_is_pulled_once_and_then_needs_no_registry() {
    let registry = Registry::start().await;
    let image = web();
    registry.push("team/web", "1", &image).await;
    let home = Home::new();
    let store = home.open();
    let reference = registry.reference("team/web:1");
    let resolved = store.resolve(&reference).await.unwrap();
    assert_eq!(resolved, image.digest());
    assert!(store.get(&resolved).is_none());

    let log = Log::default();
    let pulled = store.pull(&reference, &resolved, &log).await.unwrap();
    assert_eq!(pulled.config.entrypoint, ["/bin/web"]);
    assert_eq!((pulled.config.user.as_str(), pulled.config.working_dir.as_str()), ("web", "/srv"));
    assert_eq!(pulled.config.exposed_ports, ["8080/tcp"]);
    assert_eq!(pulled.config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(pulled.config.cmd, [""; 0]);
    assert_eq!(fs::read_to_string(pulled.layers[0].join("bin/web")).unwrap(), "v1");
    assert_eq!(fs::read_to_string(pulled.layers[1].join("bin/web")).unwrap(), "v2");
    for (layer, planned) in image.layers.iter().zip(&*log.1.lock().unwrap()) {
        let steps: Vec<_> = log
            .0
            .lock()
            .unwrap()
            .iter()
            .filter(|(d, _)| *d == planned.digest)
            .map(|(_, s)| *s)
            .collect();
        let total = layer.stored.len() as u64;
        assert_eq!((planned.size, steps[0]), (total, LayerStep::Fetching { done: 0, total }));
        let end =
            [LayerStep::Fetching { done: total, total }, LayerStep::Unpacking, LayerStep::Done];
        assert_eq!(steps[steps.len() - 3..], end);
    }
    store.settled().await;
    drop((store, pulled, registry));

    // The registry is gone: what is complete is complete, also for a new process.
    let store = home.open_with(quick());
    let again = store.pull(&reference, &resolved, &()).await.unwrap();
    assert_eq!(again.digest, resolved);
    let list = store.list();
    assert_eq!(list[0].names, [reference.to_string()]);
    assert_eq!(list[0].created.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert!(matches!(pull(&store, &reference).await, Err(ImageError::Unreachable { .. })));
}

#[tokio::test]
async fn a_new_version_fetches_only_its_own_layers() {
    let registry = Registry::start().await;
    let first = web();
    let next = Layer::gzip(&Tar::new().file("bin/web", "v3").finish());
    let second = TestImage::new(vec![first.layers[0].clone(), next]);
    registry.push("web", "latest", &first).await;
    let home = Home::new();
    let store = home.open();
    let reference = registry.reference("web");
    let old = pull(&store, &reference).await.unwrap();
    registry.push("web", "latest", &second).await;
    let log = Log::default();
    let digest = store.resolve(&reference).await.unwrap();
    let new = store.pull(&reference, &digest, &log).await.unwrap();
    assert_eq!(old.layers[0], new.layers[0]);
    let present = (image_support::digest(&first.layers[0].stored), LayerStep::Present);
    assert!(log.0.lock().unwrap().contains(&present));
    // The name went over to the new one; both share a layer.
    let list = store.list();
    assert_eq!((list[0].digest.clone(), list[0].names.len()), (second.digest(), 1));
    assert_eq!((list[1].digest.clone(), list[1].names.len()), (first.digest(), 0));
    assert!(list[0].shared > 0 && list[0].shared < list[0].size);

    // Held, in use, or neither.
    drop(old);
    let held = store.prune(&HashSet::from([first.digest()]), None).unwrap();
    assert_eq!(held.images, []);
    let pruned = store.prune(&HashSet::new(), None).unwrap();
    assert_eq!((pruned.images, pruned.layers), (vec![first.digest()], 1));
    assert!(new.layers.iter().all(|layer| layer.is_dir()));
    drop(new);
    // What the store did not make stays.
    fs::create_dir(home.root().join("layers/notes")).unwrap();
    store.prune(&HashSet::new(), None).unwrap();
    assert_eq!(names(&home.root().join("layers")), ["notes"]);
    assert_eq!(names(&home.root().join("blobs/sha256")), [""; 0]);
}

#[tokio::test]
async fn indexes_lead_to_this_machine_s_platform() {
    let registry = Registry::start().await;
    let ours = web();
    let theirs = TestImage::for_platform(web().layers, "s390x");
    for image in [&ours, &theirs] {
        registry.push("web", "part", image).await;
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let entry = |image: &TestImage, platform: serde_json::Value| {
        let mut entry = descriptor(media_type, &image.manifest);
        entry["platform"] = platform;
        entry
    };
    let index = |entries: &[serde_json::Value]| {
        serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
        })
        .to_string()
        .into_bytes()
    };
    let foreign = entry(&theirs, serde_json::json!({"os": "linux", "architecture": "s390x"}));
    let own = entry(&ours, serde_json::json!({"os": "linux", "architecture": "amd64"}));
    let both = index(&[foreign.clone(), own]);
    let index_type = "application/vnd.oci.image.index.v1+json";
    registry.push_manifest("web", "both", index_type, &both).await;
    registry.push_manifest("web", "foreign", index_type, &index(&[foreign])).await;
    let home = Home::new();
    let store = home.open_with(quick());
    let image = pull(&store, &registry.reference("web:both")).await.unwrap();
    assert_eq!(image.digest, digest(&both));
    let error = pull(&store, &registry.reference("web:foreign")).await.unwrap_err();
    assert_eq!(error.to_string(), "image has no variant for linux/amd64, only for linux/s390x");
    // Without an index the config says what it is for.
    let by_digest = registry.reference(&format!("web@{}", theirs.digest()));
    assert!(matches!(pull(&store, &by_digest).await, Err(ImageError::NoPlatform { .. })));
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let registry = Registry::start().await;
    registry.push("web", "1", &web()).await;
    let home = Home::new();
    let store = home.open_with(quick());
    for (name, what) in [("web:2", "web:2"), ("none:1", "none:1")] {
        let error = pull(&store, &registry.reference(name)).await.unwrap_err();
        assert_eq!(error.code(), Code::ImageNotFound);
        assert_eq!(error.to_string(), format!("{what} does not exist in {}", registry.host));
    }
    let unknown = registry.reference(&format!("web@{}", digest(b"nothing")));
    assert_eq!(pull(&store, &unknown).await.unwrap_err().code(), Code::ImageNotFound);
    home.assert_clean();
}

#[tokio::test]
async fn passwords_are_given_when_asked_for() {
    let home = Home::new();
    fs::create_dir_all(home.root()).unwrap();
    let htpasswd = home.root().join("htpasswd");
    // "secret", by bcrypt.
    fs::write(&htpasswd, "user:$2y$04$Xmx4hvIe8QC.eGL6gWZWTOBX/6aiAs7wwt2R1uJPWcE1iVOlHuNjS\n")
        .unwrap();
    let registry = Registry::start_with_password(&htpasswd).await;
    let reference = registry.reference("web:1");
    let error = pull(&home.open_with(quick()), &reference).await.unwrap_err();
    assert_eq!(error.code(), Code::RegistryDenied, "{error}");
    assert!(error.to_string().contains("wants credentials"), "{error}");
    let wrong = with_credentials(&home, &registry.host, "user", "wrong");
    let error = pull(&home.open_with(wrong), &reference).await.unwrap_err();
    assert!(error.to_string().contains("does not accept"), "{error}");
    // Let in, it says that the image is not there.
    let right = with_credentials(&home, &registry.host, "user", "secret");
    let error = pull(&home.open_with(right), &reference).await.unwrap_err();
    assert_eq!(error.code(), Code::ImageNotFound, "{error}");
}

#[tokio::test]
async fn certificates_are_checked() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs::write(&certificate, signed.cert.pem()).unwrap();
    fs::write(&key, signed.signing_key.serialize_pem()).unwrap();
    let registry = Registry::start_tls(&certificate, &key).await;
    registry.push("web", "1", &web()).await;
    let home = Home::new();
    let mut options = quick();
    options.registry.trusted =
        vec![TrustedRegistry { host: registry.host.clone(), plain_http: false }];
    let error =
        pull(&home.open_with(options.clone()), &registry.reference("web:1")).await.unwrap_err();
    assert!(matches!(error, ImageError::Tls { .. }), "{error}");
    options.registry.authorities = Some(certificate);
    pull(&home.open_with(options), &registry.reference("web:1")).await.unwrap();
    // Speaking TLS to a server without it, and the other way round.
    let plain = Hostile::start(&web(), |_| None).await;
    let mut options = quick();
    options.registry.trusted =
        vec![TrustedRegistry { host: plain.host.clone(), plain_http: false }];
    let home = Home::new();
    let error = pull(&home.open_with(options), &plain.reference()).await.unwrap_err();
    assert_eq!(error.code(), Code::RegistryUnavailable, "{error}");
    let home = Home::new();
    let error = pull(&home.open_with(quick()), &registry.reference("web:1")).await.unwrap_err();
    assert_eq!(error.code(), Code::RegistryUnavailable, "{error}");
}

#[tokio::test]
async fn a_token_is_fetched_once_and_sent_to_the_registry_alone() {
    let image = web();
    let served = image.clone();
    // Blobs are on another port: as on a storage service.
    let storage = Hostile::start(&image, |_| None).await;
    let elsewhere = storage.host.clone();
    let home = Home::new();
    let server = Hostile::start(&image, move |request| {
        let host = request.header("host").unwrap();
        if request.path.starts_with("/token") {
            let right = request.header("authorization") == Some("Basic dXNlcjpzM2NyZXQ=")
                && request.path.contains("service=reg")
                && request.path.contains("scope=repository%3Aweb%3Apull");
            return Some(match right {
                true => Reply::new(200, r#"{"token": "t0ken", "expires_in": 60}"#),
                false => Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#),
            });
        }
        if request.header("authorization") != Some("Bearer t0ken") {
            let challenge = format!(
                r#"Bearer realm="http://{host}/token",service="reg",scope="repository:web:pull""#
            );
            return Some(Reply::new(401, "").header("WWW-Authenticate", challenge));
        }
        if request.path.contains("/blobs/") {
            let there = format!("http://{elsewhere}{}", request.path);
            return Some(Reply::new(307, "").header("Location", there));
        }
        Some(honest(&served, request))
    })
    .await;
    let store = home.open_with(with_credentials(&home, &server.host, "user", "s3cret"));
    pull(&store, &server.reference()).await.unwrap();
    assert_eq!(server.asked("/token").len(), 1);
    let redirected = storage.asked("/blobs/");
    assert_eq!(redirected.len(), 3);
    assert!(redirected.iter().all(|request| request.header("authorization").is_none()));
    drop(store);
    let home = Home::new();
    let store = home.open_with(with_credentials(&home, &server.host, "user", "wrong"));
    let error = pull(&store, &server.reference()).await.unwrap_err();
    assert_eq!(error.code(), Code::RegistryDenied, "{error}");
    assert!(!format!("{error:?}").contains("wrong"));
    // Corrected while the store is open.
    with_credentials(&home, &server.host, "user", "s3cret");
    pull(&store, &server.reference()).await.unwrap();
}

#[tokio::test]
async fn an_expired_token_is_replaced() {
    let image = large(200 << 10);
    let served = image.clone();
    let issued = Arc::new(AtomicUsize::new(0));
    let (result, server, _home) = pull_hostile(&image, quick(), move |request| {
        if request.path.starts_with("/token") {
            let number = issued.fetch_add(1, Ordering::SeqCst);
            return Some(Reply::new(200, format!(r#"{{"access_token": "t{number}"}}"#)));
        }
        // Each token is good for manifests; blobs need the second.
        let good = match request.path.contains("/blobs/") {
            true => request.header("authorization") == Some("Bearer t1"),
            false => request.header("authorization").is_some(),
        };
        if !good {
            let host = request.header("host").unwrap();
            let challenge = format!(r#"Bearer realm="http://{host}/token""#);
            return Some(Reply::new(401, "").header("WWW-Authenticate", challenge));
        }
        Some(honest(&served, request))
    })
    .await;
    result.unwrap();
    assert_eq!(server.asked("/token").len(), 2);
}

#[tokio::test]
async fn a_foreign_realm_gets_nothing() {
    let stranger = Hostile::start(&web(), |_| Some(Reply::new(200, r#"{"token": "x"}"#))).await;
    let port = stranger.host.rsplit(':').next().unwrap().to_owned();
    for realm in [
        // Another name for the same machine is another host.
        format!("http://localhost:{port}/token"),
        "https://auth.example.com/token".to_owned(),
        "ftp://127.0.0.1/token".to_owned(),
        "not a url".to_owned(),
    ] {
        let home = Home::new();
        let server = Hostile::start(&web(), move |_| {
            Some(
                Reply::new(401, "")
                    .header("WWW-Authenticate", format!(r#"Bearer realm="{realm}""#)),
            )
        })
        .await;
        let store = home.open_with(with_credentials(&home, &server.host, "user", "s3cret"));
        let error = pull(&store, &server.reference()).await.unwrap_err();
        assert!(matches!(error, ImageError::ForeignRealm { .. }), "{error}");
    }
    assert_eq!(stranger.requests.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn redirects_lead_neither_inside_nor_in_circles() {
    for (location, reason) in [
        ("http://10.0.0.1/x", "address"),
        ("http://169.254.169.254/latest/meta-data", "address"),
        ("http://[fd00:ec2::254]/", "address"),
        ("http://[::ffff:192.168.0.1]/", "address"),
        ("http://0.0.0.0/", "address"),
        ("file:///etc/passwd", "not https"),
        ("/v2/web/blobs/again", "more than 5"),
        ("http://[broken", "IPv6"),
    ] {
        let (result, server, _home) = pull_hostile(&web(), quick(), move |request| {
            request
                .path
                .contains("/blobs/")
                .then(|| Reply::new(302, "").header("Location", location))
        })
        .await;
        assert_eq!(code_of(&result), Code::RegistryUnavailable);
        let error = result.unwrap_err().to_string();
        assert!(error.contains(reason), "{location}: {error}");
        assert!(server.asked("/blobs/").len() < 20, "{location} was tried again");
    }
}

#[tokio::test]
async fn a_public_registry_cannot_be_on_this_machine() {
    let server = Hostile::start(&web(), |_| None).await;
    let home = Home::new();
    let store = home.open_with(quick());
    for host in ["10.1.2.3", "192.168.1.1:5000", "169.254.169.254", "[fe80::1]:80", "100.64.0.1"] {
        let reference: Reference = format!("{host}/web:1").parse().unwrap();
        let error = store.resolve(&reference).await.unwrap_err();
        assert!(matches!(error, ImageError::AddressRefused { .. }), "{host}: {error}");
    }
    // Loopback is spoken to without TLS only since it is loopback.
    assert!(store.resolve(&server.reference()).await.is_ok());
}

#[tokio::test]
async fn broken_connections_are_resumed_where_they_broke() {
    let image = large(3 << 20);
    let layer = digest(&image.layers[0].stored);
    let served = image.clone();
    let path = format!("/blobs/{layer}");
    let broken = path.clone();
    let (result, server, _home) = pull_hostile(&image, quick(), move |request| {
        let reply = honest(&served, request);
        // More breaks than one request has tries: each comes after progress.
        (request.path.ends_with(&broken) && request.earlier < 8).then(|| reply.cut(300 << 10))
    })
    .await;
    let image = result.unwrap();
    assert_eq!(fs::metadata(image.layers[0].join("noise")).unwrap().len(), 3 << 20);
    let ranges: Vec<_> =
        server.asked(&path).iter().map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges.len(), 9);
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[1].as_deref(), Some("bytes=307200-"));
}

#[tokio::test]
async fn a_server_that_cannot_resume_repeats() {
    let image = large(1 << 20);
    let served = image.clone();
    let (result, ..) = pull_hostile(&image, quick(), move |request| {
        let mut whole = request.clone();
        whole.headers.remove("range");
        let reply = honest(&served, &whole);
        match request.path.contains("/blobs/") && request.earlier < 2 {
            true => Some(reply.cut(400_000 * (request.earlier + 1))),
            false => Some(reply),
        }
    })
    .await;
    result.unwrap();
}

#[tokio::test]
async fn silence_counts_as_a_break() {
    let image = large(1 << 20);
    let served = image.clone();
    let mut options = quick();
    options.registry.stall_timeout = Duration::from_millis(200);
    let (result, server, _home) = pull_hostile(&image, options, move |request| {
        (request.path.contains("/blobs/") && request.earlier == 0)
            .then(|| honest(&served, request).stall(100))
    })
    .await;
    result.unwrap();
    assert!(server.asked("/blobs/").iter().any(|request| request.header("range").is_some()));
}

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_again() {
    let image = web();
    let (result, server, _home) = pull_hostile(&image, quick(), |request| match request.earlier {
        0 => Some(Reply::new(500, "oops")),
        1 => Some(Reply::new(503, "")),
        2 => Some(Reply::new(429, "").header("Retry-After", "0")),
        _ => None,
    })
    .await;
    result.unwrap();
    // Every path, HEAD included, took four tries.
    assert_eq!(server.asked("/manifests/1").len(), 4);

    let started = Instant::now();
    let (result, ..) = pull_hostile(&image, quick(), |request| {
        (request.earlier == 0).then(|| Reply::new(429, "").header("Retry-After", "1"))
    })
    .await;
    result.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After was not respected");

    let (result, server, _home) =
        pull_hostile(&image, quick(), |_| Some(Reply::new(429, "").header("Retry-After", "3600")))
            .await;
    let error = result.unwrap_err();
    let wait = Some(Duration::from_secs(3600));
    assert!(
        matches!(&error, ImageError::RateLimited { retry_after, .. } if *retry_after == wait),
        "{error}"
    );
    assert!(UserError::from(error).message.contains("3600 s"));
    assert_eq!(server.asked("").len(), 1);

    let (result, server, _home) = pull_hostile(&image, quick(), |_| {
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"the disk\u001b[31m burns"}]}"#;
        Some(Reply::new(500, body))
    })
    .await;
    let error = result.unwrap_err();
    assert_eq!(error.code(), Code::RegistryUnavailable);
    // HEAD has no body to explain itself in.
    assert!(error.to_string().contains("500"), "{error}");
    assert_eq!(server.asked("").len(), 5);
}

#[tokio::test]
async fn registries_without_head_are_asked_with_get() {
    for status in [405, 400, 501] {
        let (result, ..) = pull_hostile(&web(), quick(), move |request| {
            (request.method == "HEAD").then(|| Reply::new(status, ""))
        })
        .await;
        assert_eq!(result.is_ok(), status != 501, "{status}");
    }
    let image = web();
    let served = image.clone();
    let (result, ..) = pull_hostile(&image, quick(), move |request| {
        // Without the header that names the digest.
        (request.method == "HEAD").then(|| Reply::new(200, served.manifest.clone()))
    })
    .await;
    result.unwrap();
}

#[tokio::test]
async fn wrong_bytes_are_found() {
    let image = web();
    for (number, part) in image.blobs().into_iter().enumerate() {
        let (wanted, mut wrong) = (digest(part), part.to_vec());
        let middle = wrong.len() / 2;
        wrong[middle] ^= 0x20;
        let (result, ..) = pull_hostile(&image, quick(), move |request| {
            request.path.contains(wanted.as_str()).then(|| Reply::new(200, wrong.clone()))
        })
        .await;
        assert_eq!(code_of(&result), Code::ImageCorrupt, "blob {number}");
        let error = result.unwrap_err();
        assert!(error.to_string().contains("digest"), "blob {number}: {error}");
    }
}

#[tokio::test]
async fn wrong_sizes_are_found_before_they_cost_anything() {
    let image = web();
    for (number, part) in image.blobs().into_iter().enumerate().skip(1) {
        let (wanted, part) = (digest(part), part.to_vec());
        for variant in 0..4 {
            let (wanted, part) = (wanted.clone(), part.clone());
            let (result, ..) = pull_hostile(&image, quick(), move |request| {
                let shorter = part[..part.len() - 1].to_vec();
                let longer = [part.as_slice(), b"x"].concat();
                let is_resumed = request.header("range").is_some();
                request.path.contains(wanted.as_str()).then(|| match variant {
                    0 if is_resumed => Reply::new(416, ""),
                    0 => Reply::new(200, shorter),
                    1 => Reply::new(200, longer),
                    2 => Reply::new(200, part.clone()).endless(),
                    // Resumes somewhere else than asked.
                    _ if is_resumed => {
                        Reply::new(206, part.clone()).header("Content-Range", "bytes 0-9/10")
                    }
                    _ => Reply::new(200, shorter),
                })
            })
            .await;
            let code = code_of(&result);
            let error = result.unwrap_err();
            assert!(
                matches!(code, Code::ImageCorrupt)
                    || (variant == 3 && code == Code::RegistryUnavailable),
                "blob {number}, variant {variant}: {error}"
            );
        }
    }
    let (result, ..) = pull_hostile(&image, quick(), |request| {
        let is_manifest = request.path.contains("/manifests/sha256:");
        is_manifest.then(|| Reply::new(200, vec![b' '; 64 << 10]).endless())
    })
    .await;
    assert_eq!(code_of(&result), Code::ImageCorrupt);
}

#[tokio::test]
async fn documents_that_make_no_sense_are_refused() {
    let good = web();
    let config = descriptor("application/vnd.oci.image.config.v1+json", &good.config);
    let layer = descriptor("application/vnd.oci.image.layer.v1.tar", &good.layers[0].stored);
    let with_type = |media_type: &str| {
        let mut layer = layer.clone();
        layer["mediaType"] = media_type.into();
        layer
    };
    let manifest = |config: &serde_json::Value, layers: Vec<serde_json::Value>| serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut both = manifest(&config, vec![layer.clone()]);
    both["manifests"] = serde_json::json!([]);
    let mut sha512 = layer.clone();
    sha512["digest"] = format!("sha512:{}", "0".repeat(128)).into();
    for (document, reason) in [
        (serde_json::json!({"schemaVersion": 1, "fsLayers": []}), "schema 1"),
        (serde_json::json!({"schemaVersion": 2}), "neither"),
        (serde_json::json!([]), "JSON"),
        (both, "at once"),
        (manifest(&layer, vec![]), "not a container image"),
        (manifest(&config, vec![layer.clone()]), "2 diff ids for 1 layers"),
        (manifest(&config, vec![sha512]), "sha256"),
        (
            manifest(
                &config,
                vec![with_type("application/vnd.oci.image.layer.v1.tar+gzip+encrypted")],
            ),
            "not supported",
        ),
        (manifest(&config, vec![with_type("text/plain")]), "not supported"),
        (manifest(&config, vec![layer.clone(); 501]), "more than 500"),
        (manifest(&config, vec![]), "no layers"),
        (serde_json::json!({"schemaVersion": 2, "manifests": []}), "no variant"),
    ] {
        let image = TestImage { manifest: document.to_string().into_bytes(), ..good.clone() };
        let (result, ..) = pull_hostile(&image, quick(), |_| None).await;
        assert_eq!(code_of(&result), Code::ImageRefused, "{reason}");
        let error = result.unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[tokio::test]
async fn foreign_urls_are_never_asked() {
    let stranger = Hostile::start(&web(), |_| None).await;
    let good = web();
    let layers: Vec<_> = good
        .layers
        .iter()
        .map(|layer| {
            let kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
            let mut entry = descriptor(kind, &layer.stored);
            entry["urls"] = serde_json::json!([format!("http://{}/blob", stranger.host)]);
            entry
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "layers": layers,
        "config": descriptor("application/vnd.docker.container.image.v1+json", &good.config),
    });
    let image = TestImage { manifest: manifest.to_string().into_bytes(), ..good };
    let (result, ..) = pull_hostile(&image, quick(), |_| None).await;
    result.unwrap();
    assert_eq!(stranger.requests.lock().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_pulls_fetch_a_shared_layer_once() {
    let image = large(2 << 20);
    let home = Home::new();
    let server = Hostile::start(&image, |_| None).await;
    let store = home.open_with(quick());
    let pulls: Vec<_> = (0..8)
        .map(|number| {
            // Different names, one image.
            let reference: Reference = format!("{}/web{number}:1", server.host).parse().unwrap();
            let (store, digest) = (store.clone(), image.digest());
            tokio::spawn(async move { store.pull(&reference, &digest, &()).await })
        })
        .collect();
    let mut layers = HashSet::<Vec<PathBuf>>::new();
    for pull in pulls {
        layers.insert(pull.await.unwrap().unwrap().layers.clone());
    }
    assert_eq!(layers.len(), 1);
    assert_eq!(server.asked(digest(&image.layers[0].stored).as_str()).len(), 1);
    assert_eq!(store.list()[0].names.len(), 8);
}

#[tokio::test]
async fn a_failed_pull_hands_its_turn_to_the_next() {
    let image = large(256 << 10);
    let served = image.clone();
    let home = Home::new();
    let server = Hostile::start(&image, move |request| {
        let is_bad = request.path.starts_with("/v2/bad/blobs/")
            && request.path.contains(digest(&served.layers[0].stored).as_str());
        is_bad.then(|| Reply::new(403, ""))
    })
    .await;
    let store = home.open_with(quick());
    let reference =
        |name: &str| -> Reference { format!("{}/{name}:1", server.host).parse().unwrap() };
    let (bad, good, digest) = (reference("bad"), reference("good"), image.digest());
    let (first, second) =
        tokio::join!(store.pull(&bad, &digest, &()), store.pull(&good, &digest, &()));
    // Whoever came first: the good one succeeds. The bad one may profit from it.
    second.unwrap();
    if let Err(error) = first {
        assert_eq!(error.code(), Code::RegistryDenied, "{error}");
    }
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_nothing() {
    let image = large(1 << 20);
    let served = image.clone();
    let home = Home::new();
    let server = Hostile::start(&image, move |request| {
        let is_layer = request.path.contains(digest(&served.layers[0].stored).as_str());
        is_layer.then(|| honest(&served, request).stall(500 << 10))
    })
    .await;
    let store = home.open_with(quick());
    let reference = server.reference();
    let started = Arc::new(tokio::sync::Notify::new());
    struct Signal(Arc<tokio::sync::Notify>);
    impl Progress for Signal {
        fn layer(&self, _: &Digest, step: LayerStep) {
            if matches!(step, LayerStep::Fetching { done: 1.., .. }) {
                self.0.notify_one();
            }
        }
    }
    let (digest, signal) = (image.digest(), Signal(Arc::clone(&started)));
    tokio::select! {
        result = store.pull(&reference, &digest, &signal) => panic!("{result:?}"),
        () = started.notified() => {}
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while names(&home.root().join("tmp")) != [""; 0] {
        assert!(Instant::now() < deadline, "the unpacking thread goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    home.assert_clean();
}
