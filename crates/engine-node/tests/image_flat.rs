//! Many layers as one folder: it shows what the kernel shows of the layers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_support::{Home, Layer, Tar, TestImage, digest, names, options};
use stead_engine_node::image::{Image, ImageStore, StoreOptions};

/// Enough layers for one folder to be worth it.
const MANY: usize = 14;

/// What programs see of each file, but for its inode and count of links.
fn tree(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        // The kernel lists whiteouts of a folder that only one layer has, though nothing is there.
        let Ok(meta) = path.symlink_metadata() else { continue };
        let kind = meta.file_type();
        let content = if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            "folder".into()
        } else if kind.is_symlink() {
            format!("to {}", fs::read_link(&path).unwrap().display())
        } else if kind.is_fifo() {
            "pipe".into()
        } else {
            assert!(kind.is_file(), "{}", path.display());
            format!("file {}", digest(&fs::read(&path).unwrap()))
        };
        let mut note = vec![0; 100];
        let note = rustix::fs::lgetxattr(&path, "user.note", note.as_mut_slice())
            .map(|length| note[..length].to_vec());
        let relative = path.strip_prefix(folder).unwrap().display().to_string();
        let owner = (meta.uid(), meta.gid(), meta.mode(), meta.mtime());
        found.insert(relative, format!("{content} {owner:?} {:?}", note.ok()));
    }
    found
}

/// The layers as the kernel stacks them.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(layers: &[PathBuf]) -> Self {
        let target = tempfile::tempdir().unwrap();
        let lower: Vec<_> = layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect();
        let lower = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
        let flags = rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount("overlay", target.path(), "overlay", flags, lower.as_c_str()).unwrap();
        Self(target)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

async fn import(home: &Home, store: &ImageStore, layers: Vec<Vec<u8>>) -> Arc<Image> {
    let layout = home.path("layout");
    TestImage::new(layers.iter().map(|tar| Layer::gzip(tar)).collect()).write_layout(&layout);
    let image = store.import(&layout, None, &()).await.unwrap();
    fs::remove_dir_all(layout).unwrap();
    image
}

/// A layer of a few names, with everything that hides and replaces. Numbers come from `next`.
fn layer(next: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    const NAMES: [&str; 3] = ["a", "b", "etc"];
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..next(12) {
        let depth = 1 + next(3);
        let path = (0..depth).map(|_| NAMES[next(3)]).collect::<Vec<_>>().join("/");
        let above = path.match_indices('/').map(|(end, _)| path[..end].to_owned());
        // Nothing lies in what is no folder, and no folder is in the way.
        if above.into_iter().all(|above| kinds.get(&above).is_none_or(|kind| *kind == 0))
            && !kinds.keys().any(|other| other.starts_with(&format!("{path}/")))
        {
            kinds.insert(path, next(6));
        }
    }
    let mut tar = Tar::new();
    for (path, kind) in kinds {
        let number = next(1000);
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let slash = if folder.is_empty() { "" } else { "/" };
        tar =
            match kind {
                0 => {
                    let tar = tar.dir_with(&format!("{path}/"), |header| {
                        header.set_mode(0o700 + number as u32 % 0o77);
                        header.set_mtime(number as u64);
                    });
                    if number.is_multiple_of(3) {
                        tar.file(&format!("{path}/.wh..wh..opq"), "")
                    } else {
                        tar
                    }
                }
                1 => tar.symlink(&path, &format!("to-{number}")),
                2 => tar.file(&format!("{folder}{slash}.wh.{name}"), ""),
                3 => tar.raw(b'6', &path, "", b"", |_| {}),
                _ => tar
                    .pax(&[("SCHILY.xattr.user.note", number.to_string().as_bytes())])
                    .file_with(&path, &format!("content {number}"), |header| {
                        header.set_uid(number as u64);
                        header.set_mode(0o4755);
                    }),
            };
    }
    tar.finish()
}

#[tokio::test]
async fn one_folder_shows_what_the_layers_show() {
    let mut compared = 0;
    for seed in 0..40u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) as usize) % below
        };
        let home = Home::new();
        let store = home.open();
        let layers = (0..MANY).map(|_| layer(&mut next)).collect();
        let image = import(&home, &store, layers).await;
        assert_eq!(image.stack(), image.layers);
        let before: Vec<_> = image.layers.iter().map(|layer| tree_of_layer(layer)).collect();
        store.tidy().unwrap();
        if image.layers.len() < 12 {
            // The same layer came twice.
            continue;
        }
        let [flat] = &image.stack()[..] else { panic!("seed {seed}: it has no flat folder") };
        let mounted = Mounted::new(&image.layers);
        let shown = tree(mounted.0.path());
        assert_eq!(tree(flat), shown, "seed {seed}");
        compared += shown.len();
        let after: Vec<_> = image.layers.iter().map(|layer| tree_of_layer(layer)).collect();
        assert!(before == after, "seed {seed}: the layers are as they were");
    }
    assert!(compared > 100, "there was something to compare: {compared}");
}

/// A layer's own files, whiteouts included.
fn tree_of_layer(folder: &Path) -> BTreeMap<PathBuf, (u32, i64, u64)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (meta.mode(), meta.mtime(), meta.size()));
    }
    found
}

fn many(name: &str) -> Vec<Vec<u8>> {
    let file = |n: usize| Tar::new().file(&format!("f{n}"), format!("{name} {n}"));
    let mut layers: Vec<_> = (0..MANY).map(|n| file(n).finish()).collect();
    layers.push(Tar::new().file("etc/crontab", name).file("usr/program", name).finish());
    layers
}

#[tokio::test]
async fn a_flat_folder_lives_as_long_as_its_image() {
    let home = Home::new();
    let store = home.open();
    let image = import(&home, &store, many("one")).await;
    let few = import(&home, &store, vec![Tar::new().file("few", "").finish()]).await;
    store.tidy().unwrap();
    assert_eq!(few.stack(), few.layers, "not worth it");
    let flat = image.stack().remove(0);
    assert_eq!(fs::read_to_string(flat.join("f3")).unwrap(), "one 3");
    let links = |path: &str| fs::metadata(flat.join(path)).unwrap().nlink();
    assert_eq!(links("usr/program"), 2, "it takes no room");
    assert_eq!(links("etc/crontab"), 1, "cron would not have it otherwise");
    store.settled().await;
    let digest = image.digest.clone();
    drop((image, few, store));

    // It is there after a restart; one that nobody names is not.
    let stray = home.root().join("flat").join(digest_of("stray"));
    fs::create_dir(&stray).unwrap();
    let store = home.open();
    assert_eq!(store.get(&digest).unwrap().stack(), std::slice::from_ref(&flat));
    store.tidy().unwrap();
    assert!(!stray.exists());
    store.prune(&Default::default(), None).unwrap();
    assert_eq!(names(&home.root().join("flat")), [""; 0]);
    assert_eq!(names(&home.root().join("tmp")), [""; 0]);

    // A record whose flat folder is gone counts no more than one whose layer is.
    let image = import(&home, &store, many("two")).await;
    store.tidy().unwrap();
    store.settled().await;
    fs::remove_dir_all(&image.stack()[0]).unwrap();
    drop((image, store));
    assert_eq!(home.open().list().len(), 0);
}

fn digest_of(text: &str) -> String {
    digest(text.as_bytes()).hex().to_owned()
}

#[tokio::test]
async fn what_it_takes_counts() {
    let home = Home::new();
    let store = home.open_with(StoreOptions { quota: Some(1 << 20), ..options() });
    let mut layers = many("one");
    layers.push(Tar::new().file("var/lib/large", vec![7; 900 << 10]).finish());
    let image = import(&home, &store, layers).await;
    store.keep(std::slice::from_ref(&image.digest));
    store.tidy().unwrap();
    // The copy of what lies in /var is more than fits.
    assert_eq!(image.stack(), image.layers);
    assert_eq!(names(&home.root().join("flat")), [""; 0]);
    assert_eq!(names(&home.root().join("tmp")), [""; 0]);
    drop(store);
}

#[tokio::test]
async fn it_costs_nobody_else_an_image() {
    let home = Home::new();
    let store = home.open_with(StoreOptions { quota: Some(4 << 20), ..options() });
    let other = vec![Tar::new().file("other", vec![7; 1 << 20]).finish()];
    let other = import(&home, &store, other).await.digest.clone();
    let mut layers = many("one");
    layers.push(Tar::new().file("var/lib/large", vec![7; 3 << 19]).finish());
    let image = import(&home, &store, layers).await;
    store.keep(std::slice::from_ref(&image.digest));
    store.tidy().unwrap();
    // It saves a little time, which is not worth what somebody may want to go back to.
    assert!(store.get(&other).is_some());
    assert_eq!(image.stack(), image.layers);
}

#[tokio::test]
async fn holes_are_not_made_files() {
    let home = Home::new();
    let store = home.open();
    let mut layers = many("one");
    let records = [("GNU.sparse.map", b"0,0".as_slice()), ("GNU.sparse.size", b"300000000")];
    layers.push(Tar::new().pax(&records).file("etc/holes", "").finish());
    let image = import(&home, &store, layers).await;
    store.tidy().unwrap();
    // The layer takes nothing of the disk; its copy would take all it pretends to have.
    assert_eq!(image.stack(), image.layers);
}
