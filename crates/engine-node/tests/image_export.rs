//! Images on their way out, and in again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use image_support::{Home, Layer, Tar, TestImage, digest, large};
use stead_core::api::package::ArchiveFormat;
use stead_core::error::Code;
use stead_core::ids::Digest;
use stead_engine_node::image::{Image, ImageStore};

async fn exported(store: &ImageStore, digest: &Digest, format: ArchiveFormat) -> Vec<u8> {
    let stream = store.export(digest, format).unwrap();
    let pieces: Vec<_> = stream.try_collect().await.unwrap();
    pieces.concat()
}

/// Everything there is to know of each file of a layer, by its path.
fn tree(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    let mut inodes: BTreeMap<u64, usize> = BTreeMap::new();
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let content = if kind.is_dir() {
            let mut names: Vec<_> =
                fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            pending.extend(names);
            "folder".into()
        } else if kind.is_symlink() {
            format!("to {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_char_device() {
            format!("device {}", meta.rdev())
        } else if kind.is_fifo() {
            "pipe".into()
        } else {
            let count = inodes.len();
            let inode = inodes.entry(meta.ino()).or_insert(count);
            format!("file {} {inode} {}", digest(&fs::read(&path).unwrap()), meta.nlink())
        };
        let mut attributes = Vec::new();
        for name in ["user.note", "trusted.overlay.opaque", "security.capability"] {
            let mut value = vec![0; 1000];
            if let Ok(length) = rustix::fs::lgetxattr(&path, name, value.as_mut_slice()) {
                attributes.push((name, value[..length].to_vec()));
            }
        }
        let relative = path.strip_prefix(folder).unwrap().display().to_string();
        let owner = (meta.uid(), meta.gid(), meta.mode(), meta.mtime());
        found.insert(relative, format!("{content} {owner:?} {attributes:?}"));
    }
    found
}

fn trees(image: &Image) -> Vec<BTreeMap<String, String>> {
    image.layers.iter().map(|layer| tree(layer)).collect()
}

/// An image with everything that a layer may hold.
fn of_all_kinds() -> TestImage {
    let long = format!("{}/{}", "a-long-folder".repeat(12), "a-long-name".repeat(15));
    let capability =
        b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let base = Tar::new()
        .dir_with("./", |header| header.set_mode(0o711))
        .dir_with("etc/", |header| header.set_mtime(7))
        .file("etc/passwd", "root:x:0:0::/:\n")
        .file("etc/gone", "")
        .dir("var/")
        .file("var/cache", "")
        .file_with("bin/su", "#!", |header| header.set_mode(0o4755))
        .file_with("srv/mine", "x", |header| {
            header.set_uid(1000);
            header.set_gid(100);
            header.set_mode(0o600);
        })
        .hard_link("bin/doas", "bin/su")
        .symlink("lib", "usr/lib")
        .symlink("odd", "//usr/../lib/./x/")
        .raw(b'6', "run/pipe", "", b"", |_| {})
        .file("big", vec![9; 700_000])
        .file("empty", "")
        .pax(&[("path", long.as_bytes()), ("mtime", b"-5")])
        .file("short", "a long name")
        .pax(&[("linkpath", "far/".repeat(60).as_bytes())])
        .symlink("far", "away")
        .pax(&[
            ("SCHILY.xattr.user.note", b"a=b\n\0c"),
            ("SCHILY.xattr.security.capability", capability),
        ])
        .file_with("bin/ping", "#!", |header| header.set_mode(0o755));
    let top = Tar::new()
        .file("etc/.wh.gone", "")
        .dir("var/")
        .file("var/.wh..wh..opq", "")
        .file("var/new", "1")
        .file(".wh.lib", "");
    TestImage::new(vec![Layer::gzip(&base.finish()), Layer::zstd(&top.finish())])
}

#[tokio::test]
async fn what_goes_out_comes_in_as_it_was() {
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let home = Home::new();
        let store = home.open();
        of_all_kinds().write_layout(&home.path("layout"));
        let name = "team.example/web:7".parse().unwrap();
        let original = store.import(&home.path("layout"), Some(&name), &()).await.unwrap();
        let bytes = exported(&store, &original.digest, format).await;
        let again = exported(&store, &original.digest, format).await;
        assert!(bytes == again, "the same image gives the same archive");

        let file = home.path("outside/saved.tar");
        fs::write(&file, &bytes).unwrap();
        let elsewhere = Home::new();
        let other = elsewhere.open();
        let imported = other.import(&file, None, &()).await.unwrap();
        assert_eq!(other.list()[0].names, ["team.example/web:7"], "{format:?}");
        assert_eq!(imported.config, original.config);
        let (before, after) = (trees(&original), trees(&imported));
        assert_eq!(before.len(), 2);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before, after, "{format:?}");
            assert!(before.len() > 4);
        }
        // What was written once is written the same way for good.
        let third = exported(&other, &imported.digest, format).await;
        assert!(third == bytes, "{format:?}");
    }
}

#[tokio::test]
async fn an_opaque_root_hides_what_is_below_also_after_a_round() {
    let home = Home::new();
    let store = home.open();
    let layers = [
        Tar::new().file("hidden", "").finish(),
        Tar::new().file(".wh..wh..opq", "").file("shown", "").finish(),
    ];
    let image = TestImage::new(layers.iter().map(|tar| Layer::gzip(tar)).collect());
    image.write_layout(&home.path("layout"));
    let image = store.import(&home.path("layout"), None, &()).await.unwrap();
    assert_eq!(image.layers.len(), 1);
    let file = home.path("outside/saved.tar");
    fs::write(&file, exported(&store, &image.digest, ArchiveFormat::Oci).await).unwrap();
    let again = store.import(&file, None, &()).await.unwrap();
    assert_eq!(trees(&again), trees(&image));
}

#[tokio::test]
async fn an_image_of_several_names_keeps_them() {
    let home = Home::new();
    let store = home.open();
    let image = TestImage::new(vec![Layer::gzip(&Tar::new().file("a", "").finish())]);
    image.write_layout(&home.path("layout"));
    for name in ["reg.example/web:1", "reg.example/web:2"] {
        store.import(&home.path("layout"), Some(&name.parse().unwrap()), &()).await.unwrap();
    }
    let file = home.path("outside/saved.tar");
    fs::write(&file, exported(&store, &image.digest(), ArchiveFormat::Oci).await).unwrap();
    let other = Home::new();
    let other = other.open();
    let name = "reg.example/web:2".parse().unwrap();
    other.import(&file, Some(&name), &()).await.unwrap();
    assert_eq!(other.list()[0].names, ["reg.example/web:2"]);
    let Err(error) = store.export(&digest(b"no image"), ArchiveFormat::Oci) else {
        panic!("there is no such image")
    };
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn an_image_that_is_read_is_held() {
    let home = Home::new();
    let store = home.open();
    let large = TestImage::new(vec![Layer::gzip(&Tar::new().file("a", vec![7; 8 << 20]).finish())]);
    large.write_layout(&home.path("layout"));
    let digest = store.import(&home.path("layout"), None, &()).await.unwrap().digest.clone();
    let stream = store.export(&digest, ArchiveFormat::Oci).unwrap();
    assert!(store.prune(&Default::default(), None).unwrap().images.is_empty());
    let pieces: Vec<_> = stream.try_collect().await.unwrap();
    assert!(pieces.concat().len() > 8 << 20);
}

#[tokio::test]
async fn who_reads_nothing_keeps_no_more_than_a_few_threads() {
    let home = Home::new();
    let store = home.open();
    // More than may wait to be read.
    let large = large(4 << 20);
    large.write_layout(&home.path("layout"));
    store.import(&home.path("layout"), None, &()).await.unwrap();
    let export = || store.export(&large.digest(), ArchiveFormat::Oci);
    let mut idle: Vec<_> = (0..8).map(|_| export().unwrap()).collect();
    let refused = export().err().unwrap();
    assert_eq!(refused.code(), Code::Conflict, "{refused}");
    idle.pop();
    let deadline = Instant::now() + Duration::from_secs(20);
    let next = loop {
        match export() {
            Ok(next) => break next,
            Err(_) => assert!(Instant::now() < deadline, "one has ended"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert!(
        next.try_fold(0, |sum, piece| async move { Ok(sum + piece.len()) }).await.unwrap()
            > 4 << 20
    );
}
