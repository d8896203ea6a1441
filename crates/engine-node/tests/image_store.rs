//! What a store keeps, over crashes and damage; importing in all forms; users.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod image_support;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use image_support::{
    Home, Layer, Tar, TestImage, descriptor, digest, gzip, names, options, write_layout,
};
use stead_core::error::Code;
use stead_engine_node::image::{ImageError, ImageStore, Reference, User, resolve_user};

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn simple(content: &str) -> TestImage {
    let tar = Tar::new().file("version", content).finish();
    TestImage::new(vec![Layer::gzip(&tar)])
}

async fn import(store: &ImageStore, path: &Path) -> Result<String, ImageError> {
    let image = store.import(path, None, &()).await?;
    Ok(fs::read_to_string(image.layers[0].join("version")).unwrap())
}

/// The path of the only record.
fn record(home: &Home) -> PathBuf {
    let images = home.root().join("images");
    images.join(&names(&images)[0])
}

#[tokio::test]
async fn a_store_is_used_by_one_process_at_a_time() {
    let home = Home::new();
    let store = home.open();
    let error = ImageStore::open(&home.root(), options()).err().unwrap();
    assert!(error.to_string().contains("another process"), "{error}");
    drop(store);
    home.open();
}

#[tokio::test]
async fn what_was_unfinished_is_removed_at_open() {
    let home = Home::new();
    drop(home.open());
    fs::create_dir_all(home.root().join("tmp/7/layer/deep/er")).unwrap();
    std::os::unix::fs::symlink(home.path("outside"), home.root().join("tmp/7/layer/link")).unwrap();
    fs::write(home.root().join("tmp/file"), "x").unwrap();
    home.open();
    home.assert_clean();
}

#[tokio::test]
async fn a_crash_of_the_machine_takes_what_was_not_synced() {
    let home = Home::new();
    simple("1").write_layout(&home.path("layout"));
    let store = home.open();
    import(&store, &home.path("layout")).await.unwrap();
    store.settled().await;
    drop(store);
    let settled: serde_json::Value =
        serde_json::from_slice(&fs::read(record(&home)).unwrap()).unwrap();
    assert_eq!(settled["boot"], serde_json::Value::Null);

    // Not settled, but the same boot: only the process crashed.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let mut unsettled = settled.clone();
    unsettled["boot"] = boot.trim().into();
    fs::write(record(&home), unsettled.to_string()).unwrap();
    let store = home.open();
    assert_eq!(store.list().len(), 1);
    // Synced by whom comes next: else it would be lost with a restart in good order, years later.
    store.tidy().unwrap();
    drop(store);
    let again: serde_json::Value =
        serde_json::from_slice(&fs::read(record(&home)).unwrap()).unwrap();
    assert_eq!(again["boot"], serde_json::Value::Null);

    // Another boot: the layer's folder is there, and not to be trusted.
    unsettled["boot"] = "an earlier boot".into();
    fs::write(record(&home), unsettled.to_string()).unwrap();
    let layer = home.root().join("layers").join(&names(&home.root().join("layers"))[0]);
    fs::write(layer.join("version"), "").unwrap();
    let store = home.open();
    assert_eq!(store.list().len(), 0);
    assert_eq!(import(&store, &home.path("layout")).await.unwrap(), "1");
    store.settled().await;
    assert_eq!(names(&home.root().join("tmp")), [""; 0]);
}

#[tokio::test]
async fn damage_takes_one_image_and_no_other() {
    let home = Home::new();
    let store = home.open();
    for content in ["good", "bad", "gone", "mixed up"] {
        let image = simple(content);
        image.write_layout(&home.path("layout"));
        import(&store, &home.path("layout")).await.unwrap();
        fs::remove_dir_all(home.path("layout")).unwrap();
    }
    store.settled().await;
    let path = |content| {
        home.root().join("images").join(format!("{}.json", simple(content).digest().hex()))
    };
    drop(store);
    fs::write(path("bad"), &fs::read(path("bad")).unwrap()[..50]).unwrap();
    fs::remove_dir_all(home.root().join("layers").join(simple("gone").layers[0].diff_id.hex()))
        .unwrap();
    fs::copy(path("good"), path("mixed up")).unwrap();
    let store = home.open();
    assert!(store.get(&simple("good").digest()).is_some());
    assert_eq!(store.list().len(), 1);
    // What no record names is rubbish from then on.
    let pruned = store.prune(&HashSet::from([simple("good").digest()]), None).unwrap();
    assert_eq!((pruned.images.len(), pruned.layers), (0, 2));
    assert_eq!(names(&home.root().join("layers")), [simple("good").layers[0].diff_id.hex()]);
    assert_eq!(names(&home.root().join("tmp")), [""; 0]);
}

#[tokio::test]
async fn a_damaged_blob_is_fetched_again() {
    let home = Home::new();
    let image = simple("1");
    image.write_layout(&home.path("layout"));
    let store = home.open();
    import(&store, &home.path("layout")).await.unwrap();
    store.settled().await;
    drop(store);
    fs::remove_file(record(&home)).unwrap();
    for blob in names(&home.root().join("blobs/sha256")) {
        fs::write(home.root().join("blobs/sha256").join(blob), "{}").unwrap();
    }
    assert_eq!(import(&home.open(), &home.path("layout")).await.unwrap(), "1");
}

#[tokio::test]
async fn every_form_of_archive_is_read() {
    let home = Home::new();
    let store = home.open();
    let image = simple("1");
    let layout = tempfile::tempdir_in("/dev/shm").unwrap();
    let folder = layout.path().join("folder");
    image.write_layout(&folder);
    let tar = std::process::Command::new("tar")
        .args(["-C", folder.to_str().unwrap(), "-cf", "-", "."])
        .output()
        .unwrap();
    assert!(tar.status.success());
    let file = |name: &str, content: &[u8]| {
        let path = layout.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let archive = file("oci.tar", &tar.stdout);
    for path in [&folder, &archive, &file("oci.tar.gz", &gzip(&tar.stdout))] {
        assert_eq!(import(&store, path).await.unwrap(), "1");
        assert_eq!(store.list()[0].digest, image.digest());
    }
    let pruned = store.prune(&HashSet::new(), None).unwrap();
    assert_eq!(pruned.images.len(), 1);

    // What docker saves has no manifest of its own; the same image gets the same digest.
    let plain = TestImage::new(vec![Layer::plain(Tar::new().file("version", "2").finish())]);
    let saved = file("saved.tar", &plain.docker_save("team/web:7"));
    assert_eq!(import(&store, &saved).await.unwrap(), "2");
    assert_eq!(store.list()[0].names, ["docker.io/team/web:7"]);
    let compressed = file("saved.tar.gz", &gzip(&plain.docker_save("other:7")));
    assert_eq!(import(&store, &compressed).await.unwrap(), "2");
    assert_eq!((store.list().len(), store.list()[0].names.len()), (1, 2));
    let name = reference("reg.example/web:1");
    store.import(&saved, Some(&name), &()).await.unwrap();
    assert!(store.list()[0].names.contains(&name.to_string()));
    // A compressed layer, and one that is a link to another.
    let inner = file("inner.tar", &simple("3").docker_save("x:1"));
    assert_eq!(import(&store, &inner).await.unwrap(), "3");
    let layer = Layer::plain(Tar::new().file("version", "4").finish());
    let twice = TestImage::new(vec![layer.clone(), layer.clone()]);
    let manifest =
        r#"[{"Config":"c.json","RepoTags":null,"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    let linked = Tar::new()
        .symlink("b/layer.tar", "../a/layer.tar")
        .file("a/layer.tar", &layer.stored)
        .file("c.json", &twice.config)
        .file("manifest.json", manifest);
    assert_eq!(import(&store, &file("linked.tar", &linked.finish())).await.unwrap(), "4");
}

#[tokio::test]
async fn one_of_several_images_is_chosen_by_name() {
    let home = Home::new();
    let store = home.open();
    let (one, two) = (simple("1"), simple("2"));
    let entry = |image: &TestImage, key: &str, name: &str| {
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
        entry["annotations"] = serde_json::json!({key: name});
        entry
    };
    let entries = [
        entry(&one, "org.opencontainers.image.ref.name", "v1"),
        entry(&two, "io.containerd.image.name", "docker.io/team/web:v2"),
    ];
    let blobs: Vec<_> = one.blobs().into_iter().chain(two.blobs()).collect();
    write_layout(&home.path("layout"), &entries, &blobs);
    let error = import(&store, &home.path("layout")).await.unwrap_err();
    assert!(error.to_string().contains("v1, docker.io/team/web:v2"), "{error}");
    for (name, image) in [("web:v1", &one), ("team/web:v2", &two)] {
        let chosen = store.import(&home.path("layout"), Some(&reference(name)), &()).await.unwrap();
        assert_eq!(chosen.digest, image.digest());
    }
}

#[tokio::test]
async fn what_is_no_image_is_called_that() {
    let home = Home::new();
    let store = home.open();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = other.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let image = simple("1");
    let no_config = Tar::new().file("manifest.json", r#"[{"Config":"c.json","Layers":[]}]"#);
    for (path, reason) in [
        (other.path().join("missing"), "does not exist"),
        (other.path().to_owned(), "neither index.json nor"),
        (PathBuf::from("/dev/null"), "neither a file nor"),
        (file("empty", b""), "neither index.json nor"),
        (
            file("app.jar", b"PK\x03\x04 and much more of a zip archive".repeat(50).as_slice()),
            "tar archive",
        ),
        (file("cut.gz", &gzip(&image.docker_save("a:1"))[..200]), "decompressed"),
        (file("tree.tar", &Tar::new().file("etc/passwd", "").finish()), "neither index.json nor"),
        (file("none.tar", &Tar::new().file("manifest.json", "[]").finish()), "no image"),
        (file("odd.tar", &Tar::new().file("manifest.json", "{}").finish()), "docker's"),
        (file("part.tar", &no_config.finish()), "c.json is missing"),
    ] {
        let error = import(&store, &path).await.unwrap_err();
        assert_eq!(error.code(), Code::NotAnImage, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    drop(store);
    let mut small = options();
    (small.limits.ratio, small.limits.ratio_from) = (10, 1 << 20);
    let store = home.open_with(small);
    let bomb = file("bomb.gz", &gzip(&vec![0; 4 << 20]));
    let error = import(&store, &bomb).await.unwrap_err();
    assert!(error.to_string().contains("grows to more than 1048576"), "{error}");
    // Blobs that are links out of the layout, or pipes, are not followed nor waited for.
    image.write_layout(&home.path("layout"));
    let layer = digest(&image.layers[0].stored);
    let blob = home.path("layout/blobs/sha256").join(layer.hex());
    fs::write(home.path("outside/canary"), "alive").unwrap();
    fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink(home.path("outside/canary"), &blob).unwrap();
    let error = import(&store, &home.path("layout")).await.unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    fs::remove_file(&blob).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &blob,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let error = import(&store, &home.path("layout")).await.unwrap_err();
    assert!(error.to_string().contains("not a file"), "{error}");
    home.assert_clean();
}

#[tokio::test]
async fn users_are_found_in_the_image_s_own_files() {
    let home = Home::new();
    let base = Tar::new()
        .file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nold:x:7:7::/:\n")
        .file("etc/group", "root:x:0:\n")
        .file("hidden/passwd", "ghost:x:5:5::/:\n");
    let top = Tar::new()
        .file(
            "usr/share/passwd",
            "# users\nroot:x:0:0:root:/root:/bin/sh\nweb:x:1000:100:Web:/srv:/bin/sh\nbroken:x:no\nhuge:x:70000:1::/:\n7:x:8:8::/:\n",
        )
        .symlink("etc/passwd", "../usr/share/passwd")
        .file("etc/group", "web:x:100:\naudio:x:29:other, web\nvideo:x:44:web\nown:x:100:web\n");
    let layers = vec![Layer::gzip(&base.finish()), Layer::gzip(&top.finish())];
    TestImage::new(layers).write_layout(&home.path("layout"));
    let store = home.open();
    let image = store.import(&home.path("layout"), None, &()).await.unwrap();
    let resolve = |user: &str| resolve_user(&image.layers, user);
    let ids = |user: &str| resolve(user).map(|found| (found.uid, found.gid, found.groups)).unwrap();
    let root = User { uid: 0, gid: 0, groups: vec![], home: Some("/root".into()) };
    assert_eq!(resolve("").unwrap(), root);
    assert_eq!(ids("web"), (1000, 100, vec![29, 44]));
    assert_eq!(ids("1000"), (1000, 100, vec![29, 44]));
    assert_eq!(resolve("web").unwrap().home.as_deref(), Some("/srv"));
    assert_eq!(ids("web:audio"), (1000, 29, vec![]));
    assert_eq!(ids("web:12"), (1000, 12, vec![]));
    assert_eq!(ids("4242"), (4242, 0, vec![]));
    assert_eq!(ids("4242:video"), (4242, 44, vec![]));
    assert_eq!(ids("65535:65535"), (65535, 65535, vec![]));
    assert_eq!(ids("web:"), (1000, 100, vec![29, 44]));
    for (user, reason) in [
        // The top layer's file hides the base's.
        ("old", "not in the image's /etc/passwd"),
        ("nobody", "not in the image's /etc/passwd"),
        ("web:nogroup", "not in the image's /etc/group"),
        ("broken", "malformed"),
        ("huge", "larger than 65535"),
        ("65536", "larger than 65535"),
        ("0:70000", "larger than 65535"),
        ("-1", "not in the image's"),
        ("4294967296", "not in the image's"),
    ] {
        let error = resolve(user).unwrap_err();
        assert_eq!(error.code(), Code::ImageRefused);
        assert!(error.to_string().contains(reason), "{user}: {error}");
    }
}

#[tokio::test]
async fn users_are_seen_through_whiteouts_and_never_outside() {
    let base = Tar::new().file("etc/passwd", "web:x:1:1::/:\n");
    for (top, is_there) in [
        (Tar::new().file("etc/other", ""), true),
        (Tar::new().file("etc/.wh.passwd", ""), false),
        (Tar::new().dir("etc/").file("etc/.wh..wh..opq", ""), false),
        (Tar::new().file(".wh.etc", ""), false),
        (Tar::new().file("etc", "a file"), false),
        (Tar::new().dir("etc/").dir("etc/passwd/"), false),
        (Tar::new().raw(b'6', "etc/passwd", "", b"", |_| {}), false),
        (Tar::new().symlink("etc/passwd", "/etc/passwd"), false),
        (Tar::new().symlink("etc/passwd", "../../../../proc/self/root/etc/passwd"), false),
        (Tar::new().symlink("etc/passwd", "x/../../real").file("real", "web:x:1:1::/:\n"), false),
        (Tar::new().symlink("etc/passwd", "../../real").file("real", "web:x:1:1::/:\n"), true),
        (Tar::new().symlink("etc", "conf").file("conf/passwd", "web:x:1:1::/:\n"), true),
    ] {
        let home = Home::new();
        let layers = vec![Layer::gzip(&base.clone().finish()), Layer::gzip(&top.finish())];
        TestImage::new(layers).write_layout(&home.path("layout"));
        let image = home.open().import(&home.path("layout"), None, &()).await.unwrap();
        // Of the machine's users, root would be found outside.
        assert_eq!(resolve_user(&image.layers, "web").is_ok(), is_there);
        assert!(resolve_user(&image.layers, "root").is_err());
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 200, ..Default::default() })]

    /// Whatever entries come in whatever order: nothing is written outside, nothing
    /// unfinished stays, and what is accepted stays within its layer.
    #[test]
    fn no_sequence_of_entries_escapes(
        entries in proptest::collection::vec(
            (
                proptest::sample::select(b"0123456SVgxL\x00".as_slice()),
                "(\\.\\.|\\.|/|a|b|c|\\.wh\\.a|\\.wh\\.|\\.wh\\.\\.wh\\.\\.opq){1,5}(/(\\.\\.|a|b|c)){0,3}",
                "(/|\\.\\./){0,6}(dev/shm|a|b|c|outside|canary|store)?(/(a|b|canary|\\.\\.)){0,3}",
            ),
            1..12,
        ),
        damage in proptest::option::of((0usize..8000, proptest::num::u8::ANY)),
    ) {
        let home = Home::new();
        let outside = home.path("outside").to_str().unwrap().to_owned();
        let mut tar = Tar::new().symlink("c", &outside);
        for (kind, path, link) in &entries {
            let data = if matches!(kind, b'0' | 0) { "data" } else { "" };
            tar = tar.raw(*kind, path, link, data.as_bytes(), |_| {});
        }
        let mut bytes = tar.finish();
        if let Some((at, value)) = damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        TestImage::new(vec![Layer::plain(bytes)]).write_layout(&home.path("layout"));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = home.open();
            let result = store.import(&home.path("layout"), None, &()).await;
            store.settled().await;
            match result {
                Ok(_) => home.assert_untouched(),
                Err(error) => {
                    home.assert_clean();
                    assert_ne!(error.code(), Code::Internal, "{error:?}");
                }
            }
            assert_eq!(names(&home.root().join("tmp")), [""; 0]);
        });
    }
}

#[tokio::test]
async fn a_reference_with_a_digest_takes_no_name_from_another_image() {
    let home = Home::new();
    let store = home.open();
    let name = reference("registry.example/team/web:prod");
    let mut digests = Vec::new();
    for (content, name) in [("theirs", &name), ("mine", &reference("registry.example/mine:1"))] {
        let image = simple(content);
        let layout = home.path("layout");
        image.write_layout(&layout);
        store.import(&layout, Some(name), &()).await.unwrap();
        fs::remove_dir_all(layout).unwrap();
        digests.push(image.digest());
    }
    // Nobody but who wrote it says that the tag names this image.
    let claimed = reference(&format!("{name}@{}", digests[1]));
    assert_eq!(store.pull(&claimed, &digests[1], &()).await.unwrap().digest, digests[1]);
    let named = |digest: &_| store.list().into_iter().find(|i| i.digest == *digest).unwrap().names;
    assert_eq!(named(&digests[0]), ["registry.example/team/web:prod"]);
    assert_eq!(named(&digests[1]), ["registry.example/mine:1"]);
}
