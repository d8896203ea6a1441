//! What has been tried on unpackers of other systems, tried on this one: each case names where
//! it comes from. Those that `image_archives.rs` has are not repeated. Runs as root: layers
//! keep owners.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use image_support::{Home, Layer, Tar, TestImage, names};
use stead_core::error::Code;
use stead_engine_node::image::{Image, ImageError};

async fn import(home: &Home, tar: Tar) -> Result<Arc<Image>, ImageError> {
    TestImage::new(vec![Layer::gzip(&tar.finish())]).write_layout(&home.path("layout"));
    let store = home.open();
    let result = store.import(&home.path("layout"), None, &()).await;
    store.settled().await;
    home.assert_untouched();
    result
}

/// Unpacks one layer and gives its folder.
async fn unpack(home: &Home, tar: Tar) -> PathBuf {
    import(home, tar).await.unwrap().layers[0].clone()
}

/// Refused, with a reason that mentions `reason`, and nothing is left behind.
async fn assert_refused(tar: Tar, reason: &str) {
    let home = Home::new();
    let error = import(&home, tar).await.unwrap_err();
    assert_eq!(error.code(), Code::ImageRefused, "{error}");
    assert!(error.to_string().contains(reason), "{error}");
    home.assert_clean();
}

/// A tar archive in a tar archive: one file, whose bytes look like an entry.
fn nested() -> Vec<u8> {
    Tar::new().file("smuggled", "x").unfinished()
}

// CVE-2025-62518 (tokio-tar, "TARmageddon"): the header says 0 bytes, the pax record says how
// many there are; who believes the header reads the file's content as entries.
#[tokio::test]
async fn the_size_of_a_pax_record_counts_and_content_is_never_read_as_entries() {
    let home = Home::new();
    let hidden = nested();
    let length = hidden.len().to_string();
    // Without a size of its own: the content follows all the same.
    let tar = Tar::new().pax(&[("size", length.as_bytes())]).file("outer.tar", "");
    let layer = unpack(&home, tar.bytes(&hidden).file("last", "x")).await;
    assert_eq!(names(&layer), ["last", "outer.tar"]);
    assert_eq!(fs::read(layer.join("outer.tar")).unwrap(), hidden);

    // The other way round: the header announces content, the pax record says there is none. The
    // entry in the "content" is one then, for every reader that knows pax.
    let home = Home::new();
    let tar = Tar::new().pax(&[("size", b"0")]).raw(b'0', "outer.tar", "", b"", |header| {
        header.set_size(hidden.len() as u64);
    });
    let layer = unpack(&home, tar.bytes(&hidden).file("last", "x")).await;
    assert_eq!(names(&layer), ["last", "outer.tar", "smuggled"]);
    assert_eq!(fs::metadata(layer.join("outer.tar")).unwrap().len(), 0);
}

// The same trick with what carries no data: Go's and GNU's readers take none from links,
// folders and pipes, whatever their size says, and so must this one.
#[tokio::test]
async fn what_has_no_content_hides_none() {
    let home = Home::new();
    let mut tar = Tar::new();
    for (kind, path) in [(b'5', "folder"), (b'2', "link"), (b'6', "pipe")] {
        let size = nested().len().to_string();
        tar = tar.pax(&[("size", size.as_bytes())]).raw(kind, path, "x", b"", |_| {});
    }
    let layer = unpack(&home, tar.bytes(&nested())).await;
    assert_eq!(names(&layer), ["folder", "link", "pipe", "smuggled"]);
}

// A record of one entry must not reach the next one.
#[tokio::test]
async fn records_hold_for_one_entry() {
    let home = Home::new();
    let tar = Tar::new()
        .pax(&[("path", b"named"), ("uid", b"7"), ("SCHILY.xattr.user.x", b"y")])
        .file("a", "1")
        .file("b", "22")
        .long_name("named-too")
        .file("c", "")
        .file("d", "");
    let layer = unpack(&home, tar).await;
    assert_eq!(names(&layer), ["b", "d", "named", "named-too"]);
    assert_eq!(fs::metadata(layer.join("named")).unwrap().uid(), 7);
    assert_eq!(fs::metadata(layer.join("b")).unwrap().uid(), 0);
}

// Nomad CVE-2026-6959: a pipe first, then a file of the same name; who opens what is there
// waits for ever, or writes into the pipe.
#[tokio::test]
async fn a_pipe_is_replaced_and_never_opened() {
    let home = Home::new();
    let pipe = |tar: Tar, path: &str| tar.raw(b'6', path, "", b"", |_| {});
    let tar = pipe(Tar::new(), "p").file("p", "a file now");
    let tar = pipe(tar, "q").hard_link("r", "q").file("r", "a file now").dir("q/");
    let tar = pipe(tar.file("s", "x"), "s");
    let made = tokio::time::timeout(std::time::Duration::from_secs(30), unpack(&home, tar)).await;
    let layer = made.unwrap();
    assert_eq!(fs::read_to_string(layer.join("p")).unwrap(), "a file now");
    assert_eq!(fs::read_to_string(layer.join("r")).unwrap(), "a file now");
    assert!(layer.join("q").is_dir());
    assert!(fs::symlink_metadata(layer.join("s")).unwrap().file_type().is_fifo());
    assert_refused(pipe(Tar::new(), "p").file("p/x", ""), "parent").await;
    assert_refused(pipe(Tar::new(), "p").file("p/.wh.x", ""), "parent").await;
}

// Docker CVE-2018-15664, Kubernetes CVE-2019-1002101 and their like: links and what comes
// through them, one after the other, each harmless alone.
#[tokio::test]
async fn links_that_change_on_the_way_stay_inside() {
    let home = Home::new();
    let outside = home.path("outside");
    let outside = outside.to_str().unwrap();
    let tar = Tar::new()
        .dir("a/")
        .file("a/canary", "inside")
        // The folder that later entries were meant for becomes a link to the outside.
        .symlink("a", outside)
        .dir("a/")
        .file("a/canary", "mine")
        // A hard link to a link is the link, not what it leads to.
        .symlink("l", &format!("{outside}/canary"))
        .hard_link("h", "l")
        .file("h", "mine")
        // Times and owners of what a link leads to are not touched either.
        .symlink("t", outside)
        .raw(b'2', "u", outside, b"", |header| header.set_uid(5))
        .file("/absolute/path", "inside")
        .file("//double//slash/./dot", "inside");
    let before = fs::metadata(outside).unwrap();
    let layer = unpack(&home, tar).await;
    assert_eq!(fs::read_to_string(layer.join("a/canary")).unwrap(), "mine");
    assert!(fs::symlink_metadata(layer.join("h")).unwrap().is_file());
    assert!(fs::symlink_metadata(layer.join("l")).unwrap().is_symlink());
    assert_eq!(fs::symlink_metadata(layer.join("u")).unwrap().uid(), 5);
    assert_eq!(fs::read_to_string(layer.join("absolute/path")).unwrap(), "inside");
    assert_eq!(fs::read_to_string(layer.join("double/slash/dot")).unwrap(), "inside");
    let after = fs::metadata(outside).unwrap();
    assert_eq!((before.uid(), before.mtime()), (after.uid(), after.mtime()));
}

// Whiteouts as a tool: of parents, of links, as something else than a file.
#[tokio::test]
async fn whiteouts_hide_nothing_outside() {
    let home = Home::new();
    let outside = home.path("outside");
    let outside = outside.to_str().unwrap();
    let tar = Tar::new()
        .symlink("l", outside)
        .file(".wh.l", "")
        .raw(b'5', ".wh.folder", "", b"", |_| {})
        .raw(b'2', ".wh.link", outside, b"", |_| {})
        .raw(b'1', ".wh.hard", "l", b"", |_| {})
        .file("d/.wh..wh..opq", "content is not kept")
        .file(".wh.d", "");
    let layer = unpack(&home, tar).await;
    for hidden in ["folder", "link", "hard"] {
        let stat = fs::symlink_metadata(layer.join(hidden)).unwrap();
        assert!(stat.file_type().is_char_device() && stat.rdev() == 0, "{hidden}");
    }
    assert_eq!(names(&layer.join("d")), [""; 0]);
    assert_refused(Tar::new().symlink("l", outside).file("l/.wh.canary", ""), "parent").await;
}

// Names that fool people, shells and other systems are only names here.
#[tokio::test]
async fn odd_names_are_kept_as_they_are_and_shown_escaped() {
    let home = Home::new();
    let odd = ["a\\..\\b", "new\nline", "-rf", "C:", "\u{1b}[2J", "A", "a", " ", "~", "$(x)"];
    let tar = odd.iter().fold(Tar::new(), |tar, name| tar.file(name, name));
    let tar = tar.pax(&[("path", b"not\xffutf8")]).file("x", "");
    let layer = unpack(&home, tar).await;
    let mut found: Vec<_> = fs::read_dir(&layer)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
        .collect();
    let mut expected: Vec<_> = odd.iter().map(|name| name.as_bytes().to_vec()).collect();
    expected.push(b"not\xffutf8".to_vec());
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    // A layer that hides ANSI sequences in what it is refused for.
    let home = Home::new();
    let error = import(&home, Tar::new().file("../\u{1b}[2J\n", "")).await.unwrap_err();
    assert!(!error.to_string().chars().any(char::is_control), "{error}");
}

// Floods: of attributes on a file, of extents in one.
#[tokio::test]
async fn floods_are_refused_as_what_they_are() {
    let value = vec![b'x'; 200];
    let keys: Vec<_> = (0..4000).map(|i| format!("SCHILY.xattr.user.{i}")).collect();
    let records: Vec<_> = keys.iter().map(|key| (key.as_str(), value.as_slice())).collect();
    assert_refused(Tar::new().pax(&records).file("a", ""), "attributes").await;
    let large = vec![b'x'; 100 << 10];
    let tar = Tar::new().pax(&[("SCHILY.xattr.user.large", &large)]).file("a", "");
    assert_refused(tar, "attributes").await;
    let long = format!("SCHILY.xattr.user.{}", "n".repeat(300));
    assert_refused(Tar::new().pax(&[(&long, b"x")]).file("a", ""), "attributes").await;
    let zero = Tar::new().pax(&[("SCHILY.xattr.user.a\0b", b"x")]).file("a", "");
    assert_refused(zero, "file system cannot hold").await;
    let many = vec!["0"; 140_000].join(",");
    let tar = Tar::new()
        .pax(&[("GNU.sparse.map", many.as_bytes()), ("GNU.sparse.size", b"1")])
        .file("a", "");
    assert_refused(tar, "extents").await;
    // A map in front of the data that announces more than there can be.
    let map = format!("{:\0<512}", "99999999\n");
    let tar =
        Tar::new().pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"1")]).file("a", map);
    assert_refused(tar, "extents").await;
}

// Folders are remembered until the end, to set their times: their names must not fill memory.
#[tokio::test]
async fn a_flood_of_long_folder_names_is_refused() {
    let mut tar = Tar::new();
    let name = "d/".repeat(2000);
    let one = Tar::new().pax(&[("path", name.as_bytes())]).dir("x").unfinished();
    for _ in 0..20_000 {
        tar = tar.bytes(&one);
    }
    assert_refused(tar, "names of its folders").await;
}

// An archive of images is remembered by the names of its files: the same for these.
#[tokio::test]
async fn an_archive_of_names_without_end_is_refused() {
    let home = Home::new();
    let mut tar = Tar::new();
    for number in 0..40 {
        let name = format!("{number}{}", "n".repeat(1 << 19));
        tar = tar.pax(&[("path", name.as_bytes())]).file("x", "");
    }
    fs::write(home.path("layout"), image_support::gzip(&tar.finish())).unwrap();
    let error = home.open().import(&home.path("layout"), None, &()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotAnImage, "{error}");
    assert!(error.to_string().contains("names"), "{error}");
}

// Docker CVE-2014-9356 and its like: documents that name files elsewhere.
#[tokio::test]
async fn documents_name_nothing_outside_their_archive() {
    let home = Home::new();
    let secret = home.path("outside/canary");
    let secret = secret.to_str().unwrap();
    let climbing = "../outside/canary";
    for place in [secret, climbing, "link", "/link", "folder", "pipe"] {
        for (config, layer) in [(place, "layer.tar"), ("config.json", place)] {
            let manifest = serde_json::json!([{ "Config": config, "Layers": [layer] }]);
            let config = serde_json::json!({ "rootfs": { "diff_ids": [
                image_support::digest(b"alive").to_string()] } });
            let tar = Tar::new()
                .file("manifest.json", manifest.to_string())
                .file("config.json", config.to_string())
                .file("layer.tar", "x")
                .symlink("link", secret)
                .dir("folder/")
                .raw(b'6', "pipe", "", b"", |_| {});
            fs::write(home.path("layout"), tar.finish()).unwrap();
            let error = home.open().import(&home.path("layout"), None, &()).await.unwrap_err();
            assert_eq!(error.code(), Code::NotAnImage, "{place}: {error}");
            home.assert_clean();
        }
    }
}

// A layout is a folder that others may have filled: its blobs are files in it, or nothing.
#[tokio::test]
async fn a_layout_s_blobs_are_its_own_files() {
    let home = Home::new();
    let outside = home.path("outside/blob");
    for kind in ["absolute link", "climbing link", "pipe", "folder"] {
        let image = TestImage::new(vec![Layer::plain(Tar::new().file("a", "x").finish())]);
        image.write_layout(&home.path("layout"));
        let hex = image_support::digest(&image.config).hex().to_owned();
        let blob = home.path("layout/blobs/sha256").join(hex);
        fs::remove_file(&blob).unwrap();
        // What is outside is the very blob that is wanted: only its place is wrong.
        fs::write(&outside, &image.config).unwrap();
        match kind {
            "absolute link" => std::os::unix::fs::symlink(&outside, &blob).unwrap(),
            "climbing link" => {
                std::os::unix::fs::symlink("../../../outside/blob", &blob).unwrap();
            }
            "pipe" => {
                let mode = rustix::fs::Mode::RUSR;
                let fifo = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &blob, fifo, mode, 0).unwrap();
            }
            _ => fs::create_dir(&blob).unwrap(),
        }
        let (store, layout) = (home.open(), home.path("layout"));
        let importing = store.import(&layout, None, &());
        let made = tokio::time::timeout(std::time::Duration::from_secs(30), importing).await;
        let error = made.unwrap().unwrap_err();
        assert_eq!(error.code(), Code::NotAnImage, "{kind}: {error}");
        fs::remove_file(&outside).unwrap();
        drop(store);
        home.assert_nothing_but_layers();
        fs::remove_dir_all(layout).unwrap();
    }
}
