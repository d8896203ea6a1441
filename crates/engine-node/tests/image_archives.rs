//! What archives may do to a store, and what they may not. Runs as root: layers keep owners.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use image_support::{Home, Layer, Tar, TestImage, names, options};
use rustix::fs::lgetxattr;
use stead_core::error::Code;
use stead_engine_node::image::{Image, ImageError, ImageStore, StoreOptions};

async fn import_with(
    home: &Home,
    options: StoreOptions,
    layers: Vec<Layer>,
) -> Result<Arc<Image>, ImageError> {
    TestImage::new(layers).write_layout(&home.path("layout"));
    let store = home.open_with(options);
    let result = store.import(&home.path("layout"), None, &()).await;
    store.settled().await;
    result
}

async fn import(home: &Home, layers: Vec<Layer>) -> Result<Arc<Image>, ImageError> {
    import_with(home, options(), layers).await
}

/// Unpacks one layer and gives its folder.
async fn unpack(home: &Home, tar: Tar) -> PathBuf {
    let image = import(home, vec![Layer::gzip(&tar.finish())]).await.unwrap();
    home.assert_untouched();
    image.layers[0].clone()
}

/// A layer with this tar stream is refused, for a reason that mentions `reason`, and leaves
/// nothing behind; a good layer beside it makes no difference.
async fn assert_refused(tar: Vec<u8>, code: Code, reason: &str) {
    assert_refused_with(options(), tar, code, reason).await;
}

async fn assert_refused_with(options: StoreOptions, tar: Vec<u8>, code: Code, reason: &str) {
    let home = Home::new();
    let good = Layer::gzip(&Tar::new().file("good", "x").finish());
    let error = import_with(&home, options.clone(), vec![Layer::gzip(&tar)]).await.unwrap_err();
    assert_eq!((error.code(), error.to_string().contains(reason)), (code, true), "{error}");
    home.assert_clean();
    import_with(&home, options, vec![good, Layer::plain(tar)]).await.unwrap_err();
    home.assert_nothing_but_layers();
}

#[tokio::test]
async fn paths_that_climb_are_refused() {
    for path in ["../evil", "a/../../evil", "a/b/../evil", "..", "/../evil"] {
        assert_refused(Tar::new().file(path, "x").finish(), Code::ImageRefused, "..").await;
        let by_pax = Tar::new().pax(&[("path", path.as_bytes())]).file("a", "x").finish();
        assert_refused(by_pax, Code::ImageRefused, "..").await;
    }
    let by_long_name = Tar::new().long_name("../evil").file("a", "x").finish();
    assert_refused(by_long_name, Code::ImageRefused, "..").await;
    assert_refused(Tar::new().dir("../evil").finish(), Code::ImageRefused, "..").await;
    assert_refused(Tar::new().symlink("../evil", "x").finish(), Code::ImageRefused, "..").await;
    let zero = Tar::new().pax(&[("path", b"a\0b")]).file("a", "x").finish();
    assert_refused(zero, Code::ImageRefused, "zero byte").await;
}

#[tokio::test]
async fn links_never_lead_outside() {
    let home = Home::new();
    let outside = home.path("outside");
    let outside = outside.to_str().unwrap();
    // Through an absolute link, through one that climbs, through a chain.
    for tar in [
        Tar::new().symlink("l", outside).file("l/canary", "dead"),
        Tar::new().symlink("l", outside).file("l/new", "x"),
        Tar::new().symlink("l", "../../../outside").file("l/canary", "dead"),
        Tar::new().symlink("a", "b").symlink("b", outside).file("a/canary", "dead"),
        Tar::new().symlink("l", outside).hard_link("h", "l/canary").file("h", "dead"),
        Tar::new().symlink("l", outside).dir("l/made"),
        Tar::new().symlink("l", outside).symlink("l/made", "x"),
        Tar::new().symlink("l", outside).raw(b'6', "l/made", "", b"", |_| {}),
        Tar::new().symlink("l", outside).file("l/.wh.canary", ""),
        Tar::new().symlink("l", outside).file("l/.wh..wh..opq", ""),
        Tar::new().symlink("p", "/proc/self/root").file("p/evil", "x"),
        Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", "x"),
    ] {
        let error = import(&home, vec![Layer::plain(tar.finish())]).await.unwrap_err();
        assert_eq!(error.code(), Code::ImageRefused, "{error}");
        home.assert_clean();
    }
}

#[tokio::test]
async fn links_within_the_layer_work_as_in_the_container() {
    let home = Home::new();
    let outside = home.path("outside/canary");
    let tar = Tar::new()
        .dir("usr/")
        .dir("usr/lib/")
        .symlink("lib", "/usr/lib")
        .symlink("up", "../../../../../../..")
        .file("lib/a.so", "elf")
        .file("up/at-root", "x")
        // A link replaced by a file: the link's target stays what it was.
        .symlink("config", outside.to_str().unwrap())
        .file("config", "new")
        .symlink("dir", outside.parent().unwrap().to_str().unwrap())
        .dir("dir/")
        .file("dir/canary", "mine");
    let layer = unpack(&home, tar).await;
    assert_eq!(fs::read_to_string(layer.join("usr/lib/a.so")).unwrap(), "elf");
    assert_eq!(fs::read_link(layer.join("lib")).unwrap(), PathBuf::from("/usr/lib"));
    assert_eq!(fs::read_to_string(layer.join("at-root")).unwrap(), "x");
    assert!(layer.join("config").symlink_metadata().unwrap().is_file());
    assert_eq!(fs::read_to_string(layer.join("dir/canary")).unwrap(), "mine");
}

#[tokio::test]
async fn hard_links_stay_within_the_layer() {
    for (tar, reason) in [
        (Tar::new().hard_link("h", "../outside/canary"), ".."),
        (Tar::new().hard_link("h", "/etc/passwd"), "not in the layer"),
        (Tar::new().symlink("l", "/").hard_link("h", "l/etc/passwd"), "not in the layer"),
        (Tar::new().symlink("l", "/proc/self").hard_link("h", "l/exe"), "not in the layer"),
        (Tar::new().dir("d/").hard_link("h", "d"), "not a file"),
        (Tar::new().hard_link("h", ""), "not a file"),
        (Tar::new().file(".wh.gone", "").hard_link("h", "gone"), "not a file"),
    ] {
        assert_refused(tar.finish(), Code::ImageRefused, reason).await;
    }
    let home = Home::new();
    let tar = Tar::new()
        .file("a", "one")
        .hard_link("b", "./a")
        .hard_link("a", "a")
        .symlink("s", "a")
        .hard_link("t", "/s");
    let layer = unpack(&home, tar).await;
    let inode = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
    assert_eq!(inode("s"), inode("t"));
}

#[tokio::test]
async fn devices_are_refused() {
    for kind in [b'3', b'4'] {
        for (major, minor) in [(0, 0), (1, 3), (8, 0)] {
            let tar = Tar::new().raw(kind, "dev/x", "", b"", |header| {
                header.set_device_major(major).unwrap();
                header.set_device_minor(minor).unwrap();
            });
            assert_refused(tar.finish(), Code::ImageRefused, "device").await;
        }
    }
    let unknown = Tar::new().raw(b'M', "part", "", b"x", |_| {});
    assert_refused(unknown.finish(), Code::ImageRefused, "not supported").await;
}

#[tokio::test]
async fn whiteouts_that_name_nothing_are_refused() {
    for path in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh..."] {
        assert_refused(Tar::new().file(path, "").finish(), Code::ImageRefused, "names nothing")
            .await;
    }
    assert_refused(Tar::new().file(".wh.a/b", "").finish(), Code::ImageRefused, "no content").await;
    assert_refused(Tar::new().file("a/.wh.b/c", "").finish(), Code::ImageRefused, "no content")
        .await;
}

#[tokio::test]
async fn sizes_are_limited() {
    let mut small = options();
    small.limits.bytes = 1 << 20;
    small.limits.entries = 10;
    small.limits.ratio = 20;
    small.limits.ratio_from = 64 << 10;
    let refused = async |tar: Vec<u8>, reason| {
        assert_refused_with(small.clone(), tar, Code::ImageRefused, reason).await;
    };
    // The ratio can only be seen where there is compression.
    let home = Home::new();
    let bomb = Layer::gzip(&Tar::new().file("zeros", vec![0; 900 << 10]).finish());
    let error = import_with(&home, small.clone(), vec![bomb]).await.unwrap_err();
    assert!(error.to_string().contains("20 times"), "{error}");
    home.assert_clean();

    let many = (0..11).fold(Tar::new(), |tar, i| tar.file(&format!("f{i}"), "x"));
    refused(many.finish(), "10 entries").await;
    refused(Tar::new().file("a/b/c/d/e/f/g/h/i/j/k", "").finish(), "10 entries").await;
    let noise: Vec<u8> =
        (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    refused(Tar::new().file("big", noise).finish(), "1048576 bytes").await;
    // A file that is all hole takes no room, yet counts.
    let hole = Tar::new()
        .pax(&[("GNU.sparse.map", b"0,0"), ("GNU.sparse.size", b"99999999999")])
        .file("hole", "");
    refused(hole.finish(), "1048576 bytes").await;
    let absurd = Tar::new().pax(&[("size", b"18446744073709551615")]).file("a", "");
    assert_refused(absurd.finish(), Code::ImageCorrupt, "absurd").await;

    let huge = vec![b'x'; 2 << 20];
    assert_refused(
        Tar::new().pax(&[("comment", &huge)]).file("a", "").finish(),
        Code::ImageRefused,
        "exceed",
    )
    .await;
    let half = vec![b'x'; 600 << 10];
    let twice = Tar::new().pax(&[("comment", &half)]).pax(&[("comment", &half)]).file("a", "");
    assert_refused(twice.finish(), Code::ImageRefused, "exceed").await;
    let announced = Tar::new().raw(b'L', "x", "", b"", |header| header.set_size(1 << 40));
    assert_refused(announced.finish(), Code::ImageRefused, "exceed").await;
}

#[tokio::test]
async fn long_names_are_kept_up_to_the_kernel_s_limit() {
    let home = Home::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let deep = "a/".repeat(1000);
    let target = "t".repeat(300);
    let tar = Tar::new()
        .long_name(&long)
        .file("short", "gnu")
        .pax(&[("path", deep.as_bytes())])
        .dir("short/")
        .pax(&[("linkpath", target.as_bytes())])
        .symlink("link", "");
    let layer = unpack(&home, tar).await;
    assert_eq!(fs::read_to_string(layer.join(&long)).unwrap(), "gnu");
    assert!(layer.join(&deep).is_dir());
    assert_eq!(
        fs::read_link(layer.join("link")).unwrap().as_os_str().as_bytes(),
        target.as_bytes()
    );

    let name = "n".repeat(256);
    assert_refused(
        Tar::new().long_name(&name).file("x", "").finish(),
        Code::ImageRefused,
        "too long",
    )
    .await;
    let path = "p/".repeat(2100);
    assert_refused(
        Tar::new().long_name(&path).dir("x").finish(),
        Code::ImageRefused,
        "longer than",
    )
    .await;
    let target = "t".repeat(4096);
    let link = Tar::new().pax(&[("linkpath", target.as_bytes())]).symlink("link", "");
    assert_refused(link.finish(), Code::ImageRefused, "too long").await;
    assert_refused(Tar::new().symlink("link", "").finish(), Code::ImageRefused, "empty").await;
}

#[tokio::test]
async fn damaged_archives_are_told_from_wrong_ones() {
    let whole = Tar::new().file("a", "x".repeat(5000)).finish();
    assert_refused(whole[..2000].to_vec(), Code::ImageCorrupt, "middle").await;
    assert_refused(whole[..300].to_vec(), Code::ImageCorrupt, "middle").await;
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert_refused(flipped, Code::ImageCorrupt, "checksum").await;
    assert_refused(b"this is no archive".repeat(100), Code::ImageCorrupt, "checksum").await;
    for record in ["9 a", "x a=b\n", "99 a=b\n", "5 ab\n", "4 =\n\n", " a=b\n", "6a=bc\n"] {
        let tar = Tar::new().raw(b'x', "pax", "", record.as_bytes(), |_| {}).file("a", "");
        assert_refused(tar.finish(), Code::ImageCorrupt, "pax record").await;
    }
    for (key, value) in [("size", "-1"), ("uid", "x"), ("mtime", "soon"), ("gid", "")] {
        let tar = Tar::new().pax(&[(key, value.as_bytes())]).file("a", "");
        assert_refused(tar.finish(), Code::ImageCorrupt, "malformed").await;
    }
    for map in ["0", "1,2,3", "10,5,0,5", "0,99", "18446744073709551615,5"] {
        let records = [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", b"20")];
        assert_refused(
            Tar::new().pax(&records).file("a", "12345").finish(),
            Code::ImageCorrupt,
            "sparse",
        )
        .await;
    }

    // Compression cut short, bytes not those named, size not that announced.
    let home = Home::new();
    let layer = Layer::gzip(&whole);
    let refused = async |layer: Layer, declared: Option<&[u8]>, reason: &str| {
        let image = TestImage::new(vec![layer]);
        image.write_layout(&home.path("layout"));
        if let Some(bytes) = declared {
            let place = image_support::digest(&image.layers[0].stored);
            fs::write(home.path("layout/blobs/sha256").join(place.hex()), bytes).unwrap();
        }
        let store = home.open();
        let error = store.import(&home.path("layout"), None, &()).await.unwrap_err();
        assert_eq!(error.code(), Code::ImageCorrupt, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
        drop(store);
        home.assert_clean();
        fs::remove_dir_all(home.path("layout")).unwrap();
    };
    let cut = layer.stored[..layer.stored.len() - 10].to_vec();
    refused(Layer { stored: cut.clone(), ..layer.clone() }, None, "decompress").await;
    refused(layer.clone(), Some(&cut), "were announced").await;
    let longer = [layer.stored.as_slice(), b"more"].concat();
    refused(layer.clone(), Some(&longer), "were announced").await;
    let mut other = layer.stored.clone();
    other[20] ^= 0xff;
    refused(layer.clone(), Some(&other), "digest").await;
    let plain = Layer::plain(whole.clone());
    let mut other = plain.stored.clone();
    other[3] ^= 1;
    refused(plain, Some(&other), "digest").await;
    let wrong_id = Layer { diff_id: image_support::digest(b"else"), ..layer.clone() };
    refused(wrong_id, None, "digest").await;
}

#[tokio::test]
async fn what_files_are_is_kept() {
    let home = Home::new();
    // A valid version 2 capability: cap_net_bind_service, effective and permitted.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let tar = Tar::new()
        .dir_with("./", |header| header.set_mode(0o711))
        .dir_with("tmp/", |header| header.set_mode(0o1777))
        .file_with("bin/su", "elf", |header| {
            header.set_mode(0o4755);
            header.set_gid(42);
        })
        .dir_with("shared/", |header| {
            header.set_mode(0o2775);
            header.set_gid(42);
        })
        .file_with("shared/of-root", "x", |header| header.set_mode(0o666))
        .pax(&[
            ("uid", b"1000"),
            ("gid", b"65535"),
            ("mtime", b"1234567890.123456789"),
            ("SCHILY.xattr.user.note", b"line\nline=\0"),
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.whiteout", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
        ])
        .file("srv/web", "elf")
        .pax(&[("uid", b"4000000000")])
        .file_with("foreign", "x", |header| header.set_mode(0o6755))
        .raw(b'6', "pipe", "", b"", |header| header.set_mode(0o622))
        .symlink("l", "nowhere")
        .dir_with("late/", |header| header.set_mtime(77))
        .file("late/file", "changes the folder's time")
        .raw(b'1', "linked", "srv/web", b"", |header| header.set_size(512))
        .raw(0, "old-style/", "", b"", |_| {})
        .raw(b'g', "global", "", b"9 a=bcde\n", |_| {})
        .raw(b'7', "contiguous", "", b"yes", |_| {});
    let layer = unpack(&home, tar).await;
    let stat = |name: &str| fs::symlink_metadata(layer.join(name)).unwrap();
    assert_eq!(stat("").mode() & 0o7777, 0o711);
    assert_eq!(stat("tmp").mode() & 0o7777, 0o1777);
    assert_eq!((stat("bin/su").mode() & 0o7777, stat("bin/su").gid()), (0o4755, 42));
    // A file gets its group from such a folder, and no mode beyond the umask, unless told.
    let of_root = stat("shared/of-root");
    assert_eq!((stat("shared").mode() & 0o7777, stat("shared").gid()), (0o2775, 42));
    assert_eq!((of_root.mode() & 0o7777, of_root.gid()), (0o666, 0));
    // A folder that no entry names.
    assert_eq!((stat("bin").mode() & 0o7777, stat("bin").uid()), (0o755, 0));
    let web = stat("srv/web");
    assert_eq!((web.uid(), web.gid()), (1000, 65535));
    assert_eq!((web.mtime(), web.mtime_nsec()), (1_234_567_890, 123_456_789));
    let xattr = |path: &str, name: &str| {
        let mut value = vec![0; 100];
        let length = lgetxattr(layer.join(path), name, &mut value).ok()?;
        value.truncate(length);
        Some(value)
    };
    assert_eq!(xattr("srv/web", "user.note").unwrap(), b"line\nline=\0");
    assert_eq!(xattr("srv/web", "security.capability").unwrap(), capability);
    for dropped in ["trusted.overlay.opaque", "user.overlay.whiteout", "security.selinux"] {
        assert_eq!(xattr("srv/web", dropped), None, "{dropped}");
    }
    // An owner out of range becomes nobody, and gives nobody's rights to nobody.
    assert_eq!((stat("foreign").uid(), stat("foreign").mode() & 0o7777), (65534, 0o755));
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!(stat("pipe").mode() & 0o7777, 0o622);
    assert_eq!(stat("l").mtime(), 1_000_000_000);
    assert_eq!(stat("late").mtime(), 77);
    assert_eq!(stat("linked").ino(), web.ino());
    assert!(stat("old-style").is_dir() && stat("contiguous").is_file());
    assert_eq!(fs::metadata(home.root()).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[tokio::test]
async fn files_and_folders_replace_each_other() {
    let home = Home::new();
    let tar = Tar::new()
        .dir("a/")
        .dir("a/b/")
        .file("a/b/c", "x")
        .file("a", "now a file")
        .file("d", "x")
        .dir("d/")
        .file("d/e", "now a folder")
        .dir("f/")
        .file("f/old", "x")
        .symlink("f", "d")
        .file("f/through", "the link")
        .file("twice", "one")
        .file("twice", "two");
    let layer = unpack(&home, tar).await;
    assert_eq!(fs::read_to_string(layer.join("a")).unwrap(), "now a file");
    assert_eq!(names(&layer.join("d")), ["e", "through"]);
    assert_eq!(fs::read_to_string(layer.join("twice")).unwrap(), "two");
    assert_refused(Tar::new().file("a", "").file("a/b", "").finish(), Code::ImageRefused, "parent")
        .await;
}

#[tokio::test]
async fn whiteouts_become_overlayfs_s_own() {
    let home = Home::new();
    let tar = Tar::new()
        .file("etc/.wh.gone", "")
        .dir("var/")
        .file("var/.wh..wh..opq", "")
        .file("var/new", "x")
        // What the same layer has is not hidden by its own whiteouts, in either order.
        .file("kept", "x")
        .file(".wh.kept", "")
        .dir("dir/")
        .file("dir/mine", "x")
        .file(".wh.dir", "")
        .file(".wh.later", "")
        .dir("later/")
        .file(".wh.implied", "")
        .file("implied/mine", "x")
        .file(".wh.file", "")
        .file("file", "x")
        .symlink("link", "linked")
        .dir("linked/")
        .file("link/.wh..wh..opq", "")
        .file(".wh..wh.aufs", "")
        .file(".wh..wh.plnk/1.2", "");
    let layer = unpack(&home, tar).await;
    let opaque = |path: &str| {
        let mut value = [0; 8];
        lgetxattr(layer.join(path), "trusted.overlay.opaque", &mut value) == Ok(1)
            && value[0] == b'y'
    };
    let gone = fs::symlink_metadata(layer.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(opaque("var") && opaque("dir") && opaque("later") && opaque("implied"));
    assert!(opaque("linked") && !opaque("etc") && !opaque(""));
    assert!(layer.join("kept").is_file() && layer.join("dir/mine").is_file());
    assert!(layer.join("file").is_file() && layer.join("implied/mine").is_file());
    assert_eq!(
        names(&layer),
        ["dir", "etc", "file", "implied", "kept", "later", "link", "linked", "var"]
    );
}

/// A mounted overlay, unmounted also when an assertion fails.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn the_kernel_sees_the_image_as_its_author_did() {
    let home = Home::new();
    let base = Tar::new()
        .file("etc/keep", "base")
        .file("etc/gone", "base")
        .file("var/a/old", "base")
        .file("var/b/old", "base")
        .file("dir/old", "base")
        .file("becomes-file/x", "base");
    let middle = Tar::new().file("unused", "x");
    let top = Tar::new()
        .file("etc/.wh.gone", "")
        .file("etc/new", "top")
        .file("var/a/.wh..wh..opq", "")
        .file("var/a/new", "top")
        .file(".wh.dir", "")
        .file("dir/new", "top")
        .file("becomes-file", "top");
    let image = import(
        &home,
        vec![
            Layer::gzip(&base.finish()),
            Layer::zstd(&middle.clone().finish()),
            Layer::plain(top.finish()),
            // The same layer again: overlayfs would refuse its folder twice.
            Layer::zstd(&middle.finish()),
        ],
    )
    .await
    .unwrap();
    assert_eq!(image.layers.len(), 3);
    let target = tempfile::tempdir().unwrap();
    let lower: Vec<_> = image.layers.iter().rev().map(|layer| layer.to_str().unwrap()).collect();
    let lower = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
    let flags = rustix::mount::MountFlags::RDONLY;
    rustix::mount::mount("overlay", target.path(), "overlay", flags, lower.as_c_str()).unwrap();
    let mounted = Mounted(target.path().to_owned());
    let see = |path: &str| names(&mounted.0.join(path));
    assert_eq!(see(""), ["becomes-file", "dir", "etc", "unused", "var"]);
    assert_eq!(see("etc"), ["keep", "new"]);
    assert_eq!(see("var/a"), ["new"]);
    assert_eq!(see("var/b"), ["old"]);
    assert_eq!(see("dir"), ["new"]);
    assert_eq!(fs::read_to_string(mounted.0.join("becomes-file")).unwrap(), "top");
}

#[tokio::test]
async fn a_layer_that_hides_all_below_is_the_first() {
    let home = Home::new();
    let base = Layer::gzip(&Tar::new().file("old", "x").finish());
    let top = Layer::gzip(&Tar::new().file(".wh..wh..opq", "").file("new", "x").finish());
    let image = import(&home, vec![base, top]).await.unwrap();
    assert_eq!(image.layers.len(), 1);
    assert_eq!(names(&image.layers[0]), ["new"]);
}

#[tokio::test]
async fn gnu_tar_s_archives_are_read_in_all_its_formats() {
    let home = Home::new();
    let tree = tempfile::tempdir_in("/dev/shm").unwrap();
    let sparse = fs::File::create(tree.path().join("sparse")).unwrap();
    // More extents than fit into a header, and a hole at the end.
    for extent in 0..40u64 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", extent * (64 << 10)).unwrap();
    }
    sparse.set_len(4 << 20).unwrap();
    let long = "l".repeat(150);
    fs::create_dir(tree.path().join(&long)).unwrap();
    fs::write(tree.path().join(&long).join(&long), "long").unwrap();
    std::os::unix::fs::symlink(&long, tree.path().join("link")).unwrap();
    for format in [
        ["--format=gnu", "--sparse"].as_slice(),
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix"],
        &["--format=gnu", "--blocking-factor=100"],
    ] {
        let mut tar = std::process::Command::new("tar");
        let output = tar
            .args(format)
            .args(["-C", tree.path().to_str().unwrap(), "-cf", "-", "."])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let image = import(&home, vec![Layer::zstd(&output.stdout)]).await.unwrap();
        let layer = &image.layers[0];
        let (original, unpacked) = (tree.path().join("sparse"), layer.join("sparse"));
        assert!(fs::read(&original).unwrap() == fs::read(&unpacked).unwrap(), "{format:?}");
        assert_eq!(
            fs::read_to_string(layer.join(&long).join(&long)).unwrap(),
            "long",
            "{format:?}"
        );
        assert_eq!(fs::read_link(layer.join("link")).unwrap(), PathBuf::from(&long));
        assert_eq!(names(layer), ["link", &long, "sparse"]);
        if format.contains(&"--sparse") {
            assert!(
                fs::metadata(&unpacked).unwrap().blocks() * 512 < 1 << 20,
                "{format:?} fills holes"
            );
        }
    }
}

#[tokio::test]
async fn compression_is_recognised_whatever_the_media_type_says() {
    let home = Home::new();
    let tar = Tar::new().file("a", "x").finish();
    // Several gzip members and zstd frames are one stream.
    let members = [image_support::gzip(&tar[..700]), image_support::gzip(&tar[700..])].concat();
    let frames = [image_support::zstd(&tar[..700]), image_support::zstd(&tar[700..])].concat();
    for stored in [members, frames, tar.clone(), image_support::gzip(&tar)] {
        for media_type in [
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            let diff_id = image_support::digest(&tar);
            let layer = Layer { media_type, stored: stored.clone(), diff_id };
            let image = import(&home, vec![layer]).await.unwrap();
            assert_eq!(names(&image.layers[0]), ["a"]);
            drop(image);
            home.open().prune(&Default::default(), None).unwrap();
        }
    }
    // No entries, no bytes at all.
    for empty in [Tar::new().finish(), Vec::new()] {
        assert_eq!(
            names(&import(&home, vec![Layer::plain(empty)]).await.unwrap().layers[0]),
            [""; 0]
        );
    }
}

#[tokio::test]
async fn a_full_disk_is_called_that() {
    let mount = tempfile::tempdir().unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", mount.path(), "tmpfs", flags, c"size=1m").unwrap();
    let mounted = Mounted(mount.path().to_owned());
    let home = Home::new();
    let noise: Vec<u8> =
        (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    TestImage::new(vec![Layer::plain(Tar::new().file("big", noise).finish())])
        .write_layout(&home.path("layout"));
    let store = ImageStore::open(&mounted.0.join("store"), options()).unwrap();
    let error = store.import(&home.path("layout"), None, &()).await.unwrap_err();
    assert_eq!(error.code(), Code::DiskFull, "{error}");
    assert_eq!(names(&mounted.0.join("store/tmp")), [""; 0]);
    assert_eq!(names(&mounted.0.join("store/layers")), [""; 0]);
}
