//! What goes when room is needed, and what never does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::fs;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use image_support::{Home, Layer, Tar, TestImage, digest, gzip, names, options};
use stead_core::api::package::UploadPart;
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;
use stead_engine_node::image::{Image, ImageError, ImageStore, NoRoom, StoreOptions};

const MIB: usize = 1 << 20;

fn with_quota(mebibytes: usize) -> StoreOptions {
    StoreOptions { quota: Some((mebibytes * MIB) as u64), ..options() }
}

/// An image with a layer of about so many bytes, which compress to next to nothing.
fn image(name: &str, bytes: usize) -> TestImage {
    let content = name.as_bytes().repeat(bytes / name.len());
    TestImage::new(vec![Layer::gzip(&Tar::new().file("content", content).finish())])
}

async fn import(
    home: &Home,
    store: &ImageStore,
    image: &TestImage,
) -> Result<Arc<Image>, ImageError> {
    let layout = home.path("layout");
    image.write_layout(&layout);
    let imported = store.import(&layout, None, &()).await;
    fs::remove_dir_all(layout).unwrap();
    imported
}

fn digests(store: &ImageStore) -> Vec<Digest> {
    store.list().into_iter().map(|image| image.digest).collect()
}

#[tokio::test]
async fn what_was_used_least_recently_goes_first() {
    let home = Home::new();
    let store = home.open_with(with_quota(4));
    store.keep(&[]);
    let images: Vec<_> =
        ["one", "two", "three", "four", "five"].map(|name| image(name, MIB)).into();
    for image in &images[..3] {
        import(&home, &store, image).await.unwrap();
    }
    // Used again: now the second is the oldest.
    import(&home, &store, &images[0]).await.unwrap();
    import(&home, &store, &images[3]).await.unwrap();
    let left = [3, 0, 2].map(|n| images[n].digest());
    assert_eq!(digests(&store), left, "the fourth fits only without the second");
    assert_eq!(names(&home.root().join("layers")).len(), 3);

    store.used(&images[2].digest()).unwrap();
    import(&home, &store, &images[4]).await.unwrap();
    assert_eq!(digests(&store), [4, 2, 3].map(|n| images[n].digest()));
    // A hundred more go through.
    for n in 0..100 {
        import(&home, &store, &image(&format!("release {n}"), MIB)).await.unwrap();
        assert!(names(&home.root().join("layers")).len() <= 3);
    }
    store.settled().await;
    assert_eq!(names(&home.root().join("tmp")), [""; 0]);
}

#[tokio::test]
async fn what_is_held_or_kept_stays_and_nothing_goes_before_it_is_said() {
    let home = Home::new();
    let store = home.open_with(with_quota(4));
    let [one, two, three, four] = ["one", "two", "three", "four"].map(|name| image(name, MIB));
    for image in [&one, &two, &three] {
        import(&home, &store, image).await.unwrap();
    }
    // Nobody said yet what is needed: it could be any of them.
    let error = import(&home, &store, &four).await.unwrap_err();
    assert_eq!(error.code(), Code::DiskFull);
    let text = UserError::from(error).to_string();
    assert!(text.contains("3.0 MiB of the 4.0 MiB"), "{text}");
    assert_eq!(store.list().len(), 3);

    let held = store.get(&three.digest()).unwrap();
    store.keep(&[one.digest(), digest(b"not here")]);
    import(&home, &store, &four).await.unwrap();
    assert_eq!(digests(&store), [&four, &three, &one].map(TestImage::digest));

    store.keep(&[one.digest(), four.digest()]);
    let error = import(&home, &store, &image("five", MIB)).await.unwrap_err();
    assert!(matches!(error, ImageError::NoRoom(NoRoom::Quota { .. })), "{error}");
    assert_eq!(store.list().len(), 3, "what cannot go is there");
    drop(held);
    import(&home, &store, &image("five", MIB)).await.unwrap();
    assert!(store.get(&three.digest()).is_none());
    // What others say is in use they may not name here: it is held.
    let pruned = store.prune(&Default::default(), None).unwrap();
    assert_eq!(pruned.images, [image("five", MIB).digest()]);
    assert!(store.remove(&one.digest()).unwrap().is_none());
    store.keep(&[]);
    assert_eq!(store.remove(&one.digest()).unwrap().unwrap().layers, 1);
    assert!(store.remove(&one.digest()).unwrap().is_none(), "it is gone");
}

#[tokio::test]
async fn an_image_that_grows_beyond_the_quota_ends_in_the_middle() {
    let home = Home::new();
    let store = home.open_with(with_quota(4));
    store.keep(&[]);
    let small = image("small", MIB);
    let held = import(&home, &store, &small).await.unwrap();
    // What is sent would fit: only unpacking tells.
    let large = image("large", 8 * MIB);
    assert!(large.layers[0].stored.len() < MIB);
    let error = import(&home, &store, &large).await.unwrap_err();
    assert_eq!(error.code(), Code::DiskFull, "{error}");
    assert_eq!(fs::read(held.layers[0].join("content")).unwrap().len(), MIB / 5 * 5);
    assert_eq!(names(&home.root().join("layers")).len(), 1);
    assert_eq!(names(&home.root().join("tmp")), [""; 0]);
    // What it took was given back.
    import(&home, &store, &image("other", 2 * MIB)).await.unwrap();
}

#[tokio::test]
async fn layers_of_others_count_once_and_stay_for_them() {
    let home = Home::new();
    let store = home.open_with(with_quota(4));
    store.keep(&[]);
    let base = Layer::gzip(&Tar::new().file("base", vec![7; 2 * MIB]).finish());
    let on_base = |name: &str| {
        let top = Tar::new().file("top", name.repeat(MIB / 2 / name.len())).finish();
        TestImage::new(vec![base.clone(), Layer::gzip(&top)])
    };
    for n in 0..10 {
        import(&home, &store, &on_base(&format!("release {n}"))).await.unwrap();
    }
    assert_eq!(digests(&store), [9, 8, 7].map(|n| on_base(&format!("release {n}")).digest()));
    let list = store.list();
    assert!(list.iter().all(|image| image.shared == 2 * MIB as u64), "{list:?}");
    // A layer that an image has twice is on the disk once.
    let twice = TestImage::new(vec![base.clone(), base.clone()]);
    let image = import(&home, &store, &twice).await.unwrap();
    assert_eq!(image.size, 2 * MIB as u64);
}

#[tokio::test]
async fn uploads_take_room_too() {
    let home = Home::new();
    let store = home.open_with(with_quota(4));
    store.keep(&[]);
    for name in ["one", "two", "three"] {
        import(&home, &store, &image(name, MIB)).await.unwrap();
    }
    let bytes = vec![7; 2 * MIB];
    let part =
        |bytes: &[u8]| UploadPart { digest: digest(bytes), size: bytes.len() as u64, offset: 0 };
    let body = |bytes: &[u8]| stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed();
    assert!(store.upload(part(&bytes), body(&bytes)).await.unwrap().complete);
    assert_eq!(store.list().len(), 2, "one went for it");
    let error = store.upload(part(&[8; 3 * MIB]), stream::pending().boxed()).await.unwrap_err();
    assert_eq!(error.code(), Code::DiskFull, "nothing is read that cannot be kept: {error}");
}

#[tokio::test]
async fn nothing_goes_for_what_would_not_fit_even_then() {
    let home = Home::new();
    let store = home.open_with(with_quota(4));
    store.keep(&[]);
    let [one, two] = ["one", "two"].map(|name| image(name, MIB));
    let held = import(&home, &store, &one).await.unwrap();
    import(&home, &store, &two).await.unwrap();
    let claim = |size: usize| {
        let part = UploadPart { digest: digest(b"claimed"), size: size as u64, offset: 0 };
        store.upload(part, stream::once(async { Err(io::Error::other("gone")) }).boxed())
    };
    for size in [5 * MIB, 3 * MIB + MIB / 2] {
        let error = claim(size).await.unwrap_err();
        assert!(matches!(error, ImageError::NoRoom(NoRoom::Quota { .. })), "{error}");
        assert_eq!(store.list().len(), 2, "{size}");
    }
    // A manifest may claim anything, too.
    let mut lying = image("lying", 1000);
    let mut manifest: serde_json::Value = serde_json::from_slice(&lying.manifest).unwrap();
    manifest["layers"][0]["size"] = (1_u64 << 60).into();
    lying.manifest = manifest.to_string().into_bytes();
    let error = import(&home, &store, &lying).await.unwrap_err();
    assert_eq!((error.code(), store.list().len()), (Code::DiskFull, 2), "{error}");
    // What fits makes its room.
    drop(held);
    assert!(matches!(claim(3 * MIB).await, Err(ImageError::UploadBroken { .. })));
    assert_eq!(digests(&store), [two.digest()]);
}

#[tokio::test]
async fn a_smaller_quota_holds_from_the_next_start() {
    let home = Home::new();
    let store = home.open();
    let all: Vec<_> = (0..6).map(|n| image(&format!("release {n}"), MIB)).collect();
    for image in &all {
        import(&home, &store, image).await.unwrap();
    }
    store.settled().await;
    drop(store);
    // What a killed process left, and what is not ours.
    let stray = home.root().join("layers").join(digest(b"stray").hex());
    fs::create_dir(&stray).unwrap();
    fs::write(home.root().join("layers/note"), "of the operator").unwrap();
    let store = home.open_with(with_quota(3));
    store.tidy().unwrap();
    assert_eq!(store.list().len(), 6, "nobody said yet what is needed");
    assert!(!stray.exists());
    store.keep(&[all[0].digest()]);
    store.tidy().unwrap();
    assert_eq!(digests(&store), [5, 4, 0].map(|n| all[n].digest()));
    assert_eq!(names(&home.root().join("layers")).len(), 4, "three layers and a note");
}

#[tokio::test]
async fn pruning_by_age_leaves_what_is_young() {
    let home = Home::new();
    let store = home.open();
    let [old, young] = ["old", "young"].map(|name| image(name, 1000));
    import(&home, &store, &old).await.unwrap();
    let between = store.list()[0].last_used + stead_core::time::Micros(1);
    import(&home, &store, &young).await.unwrap();
    let pruned = store.prune(&Default::default(), Some(between)).unwrap();
    assert_eq!(pruned.images, [old.digest()]);
    assert_eq!(digests(&store), [young.digest()]);
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_is_as_a_quota() {
    let disk = tempfile::tempdir_in("/dev/shm").unwrap();
    let _mounted = Mounted::new(disk.path(), 128);
    let store = ImageStore::open(&disk.path().join("store"), options()).unwrap();
    store.keep(&[]);
    let layout = tempfile::tempdir_in("/dev/shm").unwrap();
    for n in 0..10 {
        let image = image(&format!("release {n}"), 24 * MIB);
        let folder = layout.path().join(n.to_string());
        image.write_layout(&folder);
        store.import(&folder, None, &()).await.unwrap();
    }
    assert!((4..=5).contains(&store.list().len()), "{}", store.list().len());
    // More than the disk could ever take, though it shrinks to nothing on the way.
    let folder = layout.path().join("large");
    image("large", 160 * MIB).write_layout(&folder);
    let error = store.import(&folder, None, &()).await.unwrap_err();
    assert!(matches!(error, ImageError::NoRoom(NoRoom::Disk { .. })), "{error}");
    let tar = gzip(&[]);
    assert!(fs::write(disk.path().join("of another"), tar).is_ok(), "the disk is not full");
    store.settled().await;
}

/// A small disk, gone when dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(path: &std::path::Path, mebibytes: u32) -> Self {
        let size = format!("size={mebibytes}m");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "stead-test"]).arg(path);
        assert!(mount.status().unwrap().success());
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["-l"]).arg(&self.0).status();
    }
}
