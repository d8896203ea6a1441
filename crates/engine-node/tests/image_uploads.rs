//! Uploads that break off, and images composed of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use image_support::{Home, Layer, Tar, TestImage, digest, gzip, names, options, zstd};
use stead_core::api::package::{
    ComposeRequest, KIND_LABEL, PackageKind, PackedConfig, PackedLayer, Upload, UploadPart,
    UploadView,
};
use stead_core::engine::ByteStream;
use stead_core::error::Code;
use stead_core::ids::Digest;
use stead_engine_node::image::{ImageError, ImageStore, Made};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// The bytes in pieces, and how they end.
fn sent(bytes: &[u8], end: Option<io::Error>) -> ByteStream {
    let pieces: Vec<_> = bytes.chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
    stream::iter(pieces.into_iter().chain(end.map(Err))).boxed()
}

/// Bytes that nobody may ask for.
fn unread() -> ByteStream {
    stream::once(async { panic!("these bytes are not needed") }).boxed()
}

fn part(bytes: &[u8], offset: usize) -> UploadPart {
    UploadPart { digest: digest(bytes), size: bytes.len() as u64, offset: offset as u64 }
}

fn here(offset: usize, complete: bool) -> UploadView {
    UploadView { offset: offset as u64, complete }
}

fn content() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}

async fn upload(store: &ImageStore, bytes: &[u8]) -> Result<UploadView, ImageError> {
    store.upload(part(bytes, 0), sent(bytes, None)).await
}

/// An upload whose bytes come as they are given to the sender.
fn begun(
    store: &ImageStore,
    bytes: &[u8],
) -> (mpsc::Sender<io::Result<Bytes>>, JoinHandle<Result<UploadView, ImageError>>) {
    let (sender, mut receiver) = mpsc::channel(1);
    let slow = stream::poll_fn(move |cx| receiver.poll_recv(cx)).boxed();
    let (store, part) = (store.clone(), part(bytes, 0));
    (sender, tokio::spawn(async move { store.upload(part, slow).await }))
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off() {
    let home = Home::new();
    let (all, store) = (content(), home.open());
    let name = digest(&all);
    assert_eq!(store.uploaded(&name).await.unwrap(), here(0, false));
    let cut = Some(io::Error::other("the cable was pulled"));
    let error = store.upload(part(&all, 0), sent(&all[..40_000], cut)).await.unwrap_err();
    assert!(matches!(error, ImageError::UploadBroken { arrived: 40_000, .. }), "{error}");

    // A restart of the platform is no reason to begin anew.
    drop(store);
    let store = home.open();
    assert_eq!(store.uploaded(&name).await.unwrap(), here(40_000, false));
    for wrong in [0, 39_000, 41_000] {
        let error = store.upload(part(&all, wrong), unread()).await.unwrap_err();
        assert_eq!(error.code(), Code::Conflict);
        assert!(error.to_string().contains("40000"), "it says where to go on: {error}");
    }
    let more = store.upload(part(&all, 40_000), sent(&all[40_000..90_000], None)).await.unwrap();
    assert_eq!(more, here(90_000, false));
    let done = store.upload(part(&all, 90_000), sent(&all[90_000..], None)).await.unwrap();
    assert_eq!(done, here(all.len(), true));
    assert_eq!(fs::read(home.root().join("uploads").join(name.hex())).unwrap(), all);
    assert_eq!(names(&home.root().join("uploads")), [name.hex()]);

    assert_eq!(store.upload(part(&all, 0), unread()).await.unwrap(), here(all.len(), true));
}

#[tokio::test]
async fn what_was_all_here_before_a_crash_needs_no_more_bytes() {
    let home = Home::new();
    let (all, store) = (content(), home.open());
    fs::write(home.root().join("uploads").join(format!("{}.part", digest(&all).hex())), &all)
        .unwrap();
    assert_eq!(store.uploaded(&digest(&all)).await.unwrap(), here(all.len(), false));
    let done = store.upload(part(&all, all.len()), sent(&[], None)).await.unwrap();
    assert_eq!(done, here(all.len(), true));
}

#[tokio::test]
async fn what_is_not_what_it_is_called_is_thrown_away() {
    let home = Home::new();
    let (all, store) = (content(), home.open());
    let mut wrong = all.clone();
    wrong[50_000] ^= 1;
    let error = store.upload(part(&all, 0), sent(&wrong, None)).await.unwrap_err();
    assert_eq!(error.code(), Code::ImageCorrupt, "{error}");
    let long = [all.as_slice(), b"and more"].concat();
    let error = store.upload(part(&all, 0), sent(&long, None)).await.unwrap_err();
    assert_eq!(error.code(), Code::ImageCorrupt, "{error}");
    assert_eq!(names(&home.root().join("uploads")), [""; 0]);
    // Somebody was wrong about the size before.
    let error = store.upload(part(&all, 0), sent(&all[..9_000], Some(io::Error::other("cut"))));
    assert!(error.await.is_err());
    let short = UploadPart { size: 5_000, ..part(&all, 0) };
    assert!(store.upload(short, sent(&all[..5_000], None)).await.is_err());
    assert_eq!(upload(&store, &all).await.unwrap(), here(all.len(), true));
}

#[tokio::test]
async fn an_upload_has_a_largest_size() {
    let home = Home::new();
    let mut small = options();
    small.largest_upload = 1_000;
    let store = home.open_with(small);
    let error = store.upload(part(&content(), 0), unread()).await.unwrap_err();
    assert_eq!(error.code(), Code::ImageRefused, "{error}");
    assert!(upload(&store, &content()[..1_000]).await.unwrap().complete);
}

#[tokio::test]
async fn one_sender_at_a_time_adds_to_an_upload() {
    let home = Home::new();
    let (all, store) = (content(), home.open());
    let (sender, first) = begun(&store, &all);
    sender.send(Ok(Bytes::copy_from_slice(&all[..7_000]))).await.unwrap();
    let second = tokio::spawn({
        let (store, all) = (store.clone(), all.clone());
        async move { upload(&store, &all).await }
    });
    sender.send(Ok(Bytes::copy_from_slice(&all[7_000..]))).await.unwrap();
    drop(sender);
    assert_eq!(first.await.unwrap().unwrap(), here(all.len(), true));
    // It waited, and then had nothing to do.
    assert_eq!(second.await.unwrap().unwrap(), here(all.len(), true));
    assert_eq!(fs::read(home.root().join("uploads").join(digest(&all).hex())).unwrap(), all);
}

#[tokio::test]
async fn a_sender_that_vanishes_leaves_what_it_sent() {
    let home = Home::new();
    let (all, store) = (content(), home.open());
    let (sender, first) = begun(&store, &all);
    for piece in [&all[..3_000], &all[3_000..7_000]] {
        sender.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
    }
    // Its handler is dropped, as when a client goes away, and then its connection ends.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    sender.send(Err(io::Error::other("gone"))).await.unwrap();
    // Waits for its turn; what it is told then is where to go on.
    let error = store.upload(part(&all, 1), unread()).await.unwrap_err();
    assert!(error.to_string().contains("7000"), "{error}");
    let done = store.upload(part(&all, 7_000), sent(&all[7_000..], None)).await.unwrap();
    assert!(done.complete);
}

#[tokio::test]
async fn what_nobody_asks_for_goes_after_a_day() {
    let home = Home::new();
    let store = home.open();
    let uploads = home.root().join("uploads");
    for (bytes, hours) in [(b"old", 25), (b"new", 23)] {
        upload(&store, bytes).await.unwrap();
        let cut = store.upload(part(&[bytes.as_slice(), b"more"].concat(), 0), sent(bytes, None));
        cut.await.unwrap();
        let then = SystemTime::now() - Duration::from_secs(hours * 3600);
        for file in fs::read_dir(&uploads).unwrap().map(|entry| entry.unwrap().path()) {
            if fs::read(&file).unwrap() == bytes {
                fs::File::open(file).unwrap().set_modified(then).unwrap();
            }
        }
    }
    fs::write(uploads.join("note"), "of the operator").unwrap();
    store.expire_uploads().unwrap();
    let mut left = ["note".to_owned(), digest(b"new").hex().to_owned()].to_vec();
    left.push(format!("{}.part", digest(b"newmore").hex()));
    left.sort();
    assert_eq!(names(&uploads), left);
}

/// A base of one layer, and a request for an image of two more on top.
struct Case {
    base: TestImage,
    layers: [Vec<u8>; 2],
}

impl Case {
    fn new() -> Self {
        let base = Tar::new().file("bin/java", "#!").file("version", "of the base").finish();
        let libraries = Tar::new().file("app/lib/a.jar", "a").finish();
        let app = Tar::new().file("app/app.jar", "one").file("version", "of the app").finish();
        Self { base: TestImage::new(vec![Layer::gzip(&base)]), layers: [libraries, app] }
    }

    fn request(&self, uploads: [Option<&[u8]>; 2]) -> ComposeRequest {
        let layer = |tar: &Vec<u8>, upload: Option<&[u8]>| PackedLayer {
            diff_id: digest(tar),
            size: tar.len() as u64,
            what: "a part".into(),
            upload: upload.map(|b| Upload { digest: digest(b), size: b.len() as u64 }),
        };
        ComposeRequest {
            name: "stead.local/pc:1".into(),
            kind: PackageKind::Jar,
            base: Some("java:17".parse().unwrap()),
            layers: self.layers.iter().zip(uploads).map(|(tar, up)| layer(tar, up)).collect(),
            config: PackedConfig {
                entrypoint: ["java", "-jar", "/app/app.jar"].map(str::to_owned).to_vec(),
                env: [("PATH".into(), "/opt".into()), ("PORT".into(), "9000".into())].into(),
                port: Some(9000),
                working_dir: "/app".into(),
                ..PackedConfig::default()
            },
            dry_run: false,
        }
    }

    async fn import_base(&self, home: &Home, store: &ImageStore) -> Digest {
        let layout = home.path("layout");
        self.base.write_layout(&layout);
        let base = store.import(&layout, None, &()).await.unwrap();
        fs::remove_dir_all(layout).unwrap();
        base.digest.clone()
    }
}

#[tokio::test]
async fn layers_on_a_base_make_an_image() {
    let home = Home::new();
    let (case, store) = (Case::new(), home.open());
    let base = case.import_base(&home, &store).await;
    let request = case.request([None, None]);
    let Made::Missing(missing) = store.compose(&request, Some(&base), &()).await.unwrap() else {
        panic!("nothing was uploaded")
    };
    assert_eq!(missing, case.layers.each_ref().map(|tar| digest(tar)));
    assert_eq!(store.list().len(), 1, "nothing was changed");

    let stored = [gzip(&case.layers[0]), zstd(&case.layers[1])];
    upload(&store, &stored[0]).await.unwrap();
    let request = case.request([Some(&stored[0]), Some(&stored[1])]);
    let Made::Missing(missing) = store.compose(&request, Some(&base), &()).await.unwrap() else {
        panic!("one layer was uploaded")
    };
    assert_eq!(missing, [digest(&case.layers[1])]);
    upload(&store, &stored[1]).await.unwrap();
    let Made::Image(image) = store.compose(&request, Some(&base), &()).await.unwrap() else {
        panic!("all is here")
    };
    let read = |layer: usize, path: &str| fs::read_to_string(image.layers[layer].join(path));
    assert_eq!(read(0, "bin/java").unwrap(), "#!");
    assert_eq!(read(1, "app/lib/a.jar").unwrap(), "a");
    assert_eq!(read(2, "version").unwrap(), "of the app");
    let config = &image.config;
    assert_eq!(config.entrypoint, ["java", "-jar", "/app/app.jar"]);
    assert_eq!(config.env, ["PATH=/opt", "PORT=9000"]);
    assert_eq!(config.exposed_ports, ["9000/tcp"]);
    assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("web", "/app"));
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    assert_eq!(config.labels[KIND_LABEL], "jar");
    assert_eq!(config.labels["team"], "x");
    assert_eq!(names(&home.root().join("uploads")), [""; 0], "they were used");

    // The same again sends nothing and makes nothing, by whatever name.
    let again = ComposeRequest { name: "stead.local/pc:2".into(), ..case.request([None, None]) };
    let Made::Image(same) = store.compose(&again, Some(&base), &()).await.unwrap() else {
        panic!("all layers are here")
    };
    assert_eq!(same.digest, image.digest);
    assert_eq!(store.list()[0].names, ["stead.local/pc:1", "stead.local/pc:2"]);
    // One changed layer: the other is here.
    let changed = Case {
        layers: [case.layers[0].clone(), Tar::new().file("app/app.jar", "two").finish()],
        ..Case::new()
    };
    let request = changed.request([None, None]);
    let Made::Missing(missing) = store.compose(&request, Some(&base), &()).await.unwrap() else {
        panic!("one layer is new")
    };
    assert_eq!(missing, [digest(&changed.layers[1])]);
    store.settled().await;
    drop((image, same, store));

    // It outlives a restart; elsewhere, packed otherwise, it has the same digest.
    let digest_here =
        home.open().list().iter().find(|i| i.names.len() == 2).unwrap().digest.clone();
    let (home, case) = (Home::new(), Case::new());
    let store = home.open();
    let base = case.import_base(&home, &store).await;
    let plain = [case.layers[0].as_slice(), case.layers[1].as_slice()];
    for bytes in plain {
        upload(&store, bytes).await.unwrap();
    }
    let request = case.request(plain.map(Some));
    let Made::Image(image) = store.compose(&request, Some(&base), &()).await.unwrap() else {
        panic!("all is here")
    };
    assert_eq!(image.digest, digest_here);
}

#[tokio::test]
async fn an_image_needs_no_base() {
    let home = Home::new();
    let (case, store) = (Case::new(), home.open());
    let stored = case.layers.each_ref().map(|tar| gzip(tar));
    for bytes in &stored {
        upload(&store, bytes).await.unwrap();
    }
    let request = case.request([Some(&stored[0]), Some(&stored[1])]);
    let request = ComposeRequest { base: None, kind: PackageKind::Program, ..request };
    let Made::Image(image) = store.compose(&request, None, &()).await.unwrap() else {
        panic!("all is here")
    };
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.config.user, "");
}

#[tokio::test]
async fn what_cannot_be_composed_is_told_and_leaves_nothing() {
    let home = Home::new();
    let (case, store) = (Case::new(), home.open());
    let absent = digest(b"no image");
    let error = store.compose(&case.request([None, None]), Some(&absent), &()).await.unwrap_err();
    assert_eq!(error.code(), Code::ImageNotFound, "{error}");
    let bad = ComposeRequest { name: "NO NAME".into(), ..case.request([None, None]) };
    assert_eq!(store.compose(&bad, None, &()).await.unwrap_err().code(), Code::BadReference);

    // An upload that holds another layer, one that holds none, one that is hostile.
    let hostile = Tar::new().file("../outside/canary", "dead").finish();
    let other = gzip(&Tar::new().file("other", "").finish());
    for (bytes, code) in [
        (other, Code::ImageCorrupt),
        (b"no archive".repeat(100), Code::ImageCorrupt),
        (hostile, Code::ImageRefused),
    ] {
        upload(&store, &gzip(&case.layers[0])).await.unwrap();
        upload(&store, &bytes).await.unwrap();
        let mut request = case.request([Some(&gzip(&case.layers[0])), Some(&bytes)]);
        if code == Code::ImageRefused {
            request.layers[1].diff_id = digest(&bytes);
        }
        let error = store.compose(&request, None, &()).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        let is_here = store.uploaded(&digest(&bytes)).await.unwrap().complete;
        assert_eq!(is_here, code == Code::ImageRefused, "what is damaged is sent again");
        home.assert_nothing_but_layers();
    }
}

#[tokio::test]
async fn more_layers_than_an_image_may_have_are_refused_at_once() {
    let home = Home::new();
    let (case, store) = (Case::new(), home.open());
    let one = case.request([None, None]).layers.remove(0);
    let layer = |n: usize| PackedLayer { diff_id: digest(&n.to_le_bytes()), ..one.clone() };
    let many = ComposeRequest { layers: (0..501).map(layer).collect(), ..case.request([None; 2]) };
    let error = store.compose(&many, None, &()).await.unwrap_err();
    assert!(error.to_string().contains("500"), "{error}");
    home.assert_clean();
}

#[tokio::test]
async fn an_upload_that_came_too_late_does_not_stay() {
    let home = Home::new();
    let (case, store) = (Case::new(), home.open());
    let stored = case.layers.each_ref().map(|tar| gzip(tar));
    let request = case.request([Some(&stored[0]), Some(&stored[1])]);
    // Two deploy the same at once: both were told that both layers are missing.
    for _ in 0..2 {
        for bytes in &stored {
            upload(&store, bytes).await.unwrap();
        }
        let made = store.compose(&request, None, &()).await.unwrap();
        assert!(matches!(made, Made::Image(_)));
        assert_eq!(names(&home.root().join("uploads")), [""; 0]);
    }
}

#[tokio::test]
async fn what_is_composed_is_safe_when_that_is_said() {
    let home = Home::new();
    let store = home.open();
    // Many: one alone may be synced in time by chance.
    for n in 0..50 {
        let layers = [n, n + 1000].map(|n| Tar::new().file("n", n.to_string()).finish());
        let case = Case { layers, ..Case::new() };
        let plain = case.layers.each_ref().map(Vec::as_slice);
        for bytes in plain {
            upload(&store, bytes).await.unwrap();
        }
        let made = store.compose(&case.request(plain.map(Some)), None, &()).await.unwrap();
        let Made::Image(image) = made else { panic!("all is here") };
        let record = home.root().join("images").join(format!("{}.json", image.digest.hex()));
        let record: serde_json::Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
        // Nobody could fetch it again: its uploads are gone.
        assert_eq!(record["boot"], serde_json::Value::Null, "image {n}");
    }
}
