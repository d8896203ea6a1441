//! The disk never fills: release after release goes through within a quota, and the one before
//! can come back.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use stead_testkit::images::{Catalogue, Image, LayerBuilder, Settings, TRIVIAL_PORT};

use crate::platform::{Platform, eventually, image, push};

#[test]
fn releases_go_through_within_a_quota() {
    within(64_000_000, 24, 6 << 20);
}

#[test]
#[ignore = "ten gigabytes: for a machine with time and room"]
fn a_hundred_releases_go_through_a_gigabyte() {
    within(1_000_000_000, 100, 100_000_000);
}

/// Deploys so many Releases of an image of `size` bytes to a platform that may keep `quota`.
fn within(quota: u64, releases: u32, size: usize) {
    let platform = Platform::start();
    // Also that a running platform takes the quota, and keeps it.
    let mut args = platform.up_args();
    args.extend(["--image-quota".to_owned(), format!("{quota}B")]);
    platform.stead(&args).expect(0);
    platform.up();
    // Another App, whose image is old and not to be removed.
    platform.stead(&["deploy", &image("trivial", "1"), "--app", "other"]).expect(0);

    let reference = |n: u32| push("disk", &n.to_string(), &release(n, size));
    let store = platform.dir.path().join("data/images");
    let mut most = 0;
    for n in 1..=releases {
        platform.stead(&["deploy", &reference(n), "--app", "web"]).expect(0);
        assert_eq!(platform.version("web"), n.to_string());
        most = most.max(used(&store));
        assert!(most <= quota, "release {n}: {most} bytes are more than {quota}");
    }
    assert!(most > quota / 2, "{most} of {quota}: it is kept while there is room");
    eprintln!("{releases} releases of {size} bytes: at most {most} of {quota} bytes");
    let came = |platform: &Platform, n: u32| {
        let images = platform.json(&["image", "ls"]);
        let ends = format!("disk:{n}");
        images.as_array().expect("a list").iter().any(|image| {
            let names = image["names"].as_array().expect("names");
            names.iter().any(|name| name.as_str().is_some_and(|name| name.ends_with(&ends)))
        })
    };
    let old = releases - 15;
    assert!(!came(&platform, 1) && !came(&platform, old), "what is old went");
    assert!(came(&platform, releases - 1), "the one before is needed");

    platform.stead(&["rollback", "web"]).expect(0);
    assert_eq!(platform.version("web"), (releases - 1).to_string());
    assert_eq!(platform.version("other"), "1");
    // One that is gone comes from its registry again.
    platform.stead(&["rollback", "web", &old.to_string()]).expect(0);
    assert_eq!(platform.version("web"), old.to_string());

    // Nothing that could go makes room for this one.
    let count = quota / size as u64 + 1;
    let too_large = stacked(u32::try_from(count).expect("a few"), size);
    let ran = platform.stead(&["deploy", &push("disk", "large", &too_large), "--app", "web"]);
    assert_eq!(ran.code, 1, "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("STEAD-I006"), "{}", ran.stderr);
    assert_eq!(platform.version("web"), old.to_string());
    assert_eq!(platform.version("other"), "1");
    assert!(used(&store) <= quota);
    eventually("what was begun is gone", || {
        std::fs::read_dir(store.join("tmp")).ok()?.next().is_none().then_some(())
    });

    platform.stead(&["delete", "other", "--yes"]).expect(0);
    eventually("other is gone", || (platform.stead(&["status", "other"]).code == 3).then_some(()));
    let refused = platform.stead(&["image", "rm", &reference(old)]).expect(1);
    assert!(refused.stderr.contains("STEAD-R003"), "it runs: {}", refused.stderr);
    platform.stead(&["image", "prune", "--older-than", "1h"]).expect(0);
    assert!(platform.json(&["image", "ls"]).as_array().expect("a list").len() > 2);
    platform.stead(&["image", "prune"]).expect(0);
    let left = platform.json(&["image", "ls"]).as_array().expect("a list").len();
    assert!((1..=3).contains(&left), "what web runs and may go back to: {left}");
}

/// A version of the sample service with so many bytes of its own.
fn release(version: u32, size: usize) -> Image {
    let mut image = Catalogue::new().image("trivial", &version.to_string()).expect("it is made");
    image.layers.push(Arc::new(noise(version, size)));
    Image::new(image.layers, &Settings::run(["/hello"]).port(TRIVIAL_PORT))
}

/// An image of so many layers.
fn stacked(layers: u32, size: usize) -> Image {
    let mut image = release(0, size);
    image.layers.extend((1..layers).map(|n| Arc::new(noise(1_000_000 + n, size))));
    Image::new(image.layers, &Settings::run(["/hello"]).port(TRIVIAL_PORT))
}

/// Bytes that compress to about a tenth: blocks of a multiplicative generator's upper bits,
/// each ten times.
fn noise(seed: u32, size: usize) -> stead_testkit::images::Layer {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(size);
    while content.len() < size {
        let block: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(2048)
        .collect();
        (0..10).for_each(|_| content.extend_from_slice(&block));
    }
    content.truncate(size);
    LayerBuilder::new().file(&format!("/noise-{seed}"), 0o644, &content).build()
}

/// Bytes of the disk that a folder takes.
fn used(folder: &Path) -> u64 {
    let mut seen = BTreeSet::new();
    let mut pending = vec![folder.to_owned()];
    let mut used = 0;
    while let Some(path) = pending.pop() {
        // What is removed meanwhile takes nothing.
        let Ok(meta) = path.symlink_metadata() else { continue };
        if seen.insert(meta.ino()) {
            used += meta.blocks() * 512;
        }
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|entry| entry.path()));
        }
    }
    used
}
