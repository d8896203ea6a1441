//! What goes wrong must leave the old version serving, and say what to do.

use std::sync::Arc;

use stead_testkit::images::{self, Catalogue, Image, LayerBuilder, Settings};

use crate::platform::{Platform, corrupt, eventually, image, push};

fn serving_one() -> Platform {
    let platform = Platform::start();
    platform.stead(&["deploy", &image("trivial", "1"), "--app", "web"]).expect(0);
    platform
}

#[track_caller]
fn refused(platform: &Platform, args: &[&str], code: i32, error: &str) {
    let ran = platform.stead(args).expect(code);
    assert!(ran.stderr.contains(error), "{error} is missing in: {}", ran.stderr);
    eventually("the old version serves", || {
        platform
            .get("web", "/")
            .ok()
            .filter(|(status, version, _)| *status == 200 && version == "1")
    });
}

#[test]
fn a_release_that_exits_at_once_is_undone() {
    let platform = serving_one();
    refused(&platform, &["deploy", &image("trivial", "exits"), "--app", "web"], 4, "STEAD-E002");
}

#[test]
fn a_release_that_never_gets_ready_is_undone() {
    let platform = serving_one();
    let file = platform.dir.path().join("app.yaml");
    let text = format!(
        "app: web\nsource: {}\nhealth: {{startup: {{http: /healthz, timeout: 2s}}}}\n",
        image("trivial", "never-ready")
    );
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    refused(&platform, &["deploy", "-f", &file], 4, "STEAD-E001");
}

#[test]
fn a_release_whose_program_is_missing_is_undone() {
    let platform = serving_one();
    let broken = image("broken", "missing-command");
    refused(&platform, &["deploy", &broken, "--app", "web"], 4, "STEAD-E003");
}

#[test]
fn an_image_that_does_not_exist_touches_nothing() {
    let platform = serving_one();
    let missing = image("trivial", "1").replace(":1", ":no-such-tag");
    let missing = if missing.ends_with("no-such-tag") {
        missing
    } else {
        format!("{}:no-such-tag", missing.rsplit_once(':').unwrap().0)
    };
    refused(&platform, &["deploy", &missing, "--app", "web"], 1, "STEAD-I001");
}

#[test]
fn an_image_that_lies_about_its_digest_touches_nothing() {
    let platform = serving_one();
    refused(&platform, &["deploy", &image("broken", "lying"), "--app", "web"], 1, "STEAD-I004");
    // A blob whose bytes changed in the registry.
    let reference = image("trivial", "spoiled");
    let spoiled = Catalogue::new().image("trivial", "spoiled").unwrap();
    corrupt(&images::digest(&spoiled.layers.last().unwrap().bytes));
    refused(&platform, &["deploy", &reference, "--app", "web"], 1, "STEAD-I004");
}

#[test]
fn an_image_for_which_the_disk_has_no_room_touches_nothing() {
    let platform = Platform::start_on(Some(48));
    platform.stead(&["deploy", &image("trivial", "1"), "--app", "web"]).expect(0);
    // Bytes that do not compress: a multiplicative generator's upper bits.
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(80 << 20)
    .collect();
    let layer = LayerBuilder::new().file("/noise", 0o644, &noise).build();
    let settings = Settings::run(["/hello"]).port(8080);
    let big = Image::new(vec![Arc::new(layer)], &settings);
    let big = push("trivial", "big", &big);
    refused(&platform, &["deploy", &big, "--app", "web"], 1, "STEAD-I006");
    // What was begun is gone again: there is room for the next one.
    platform.stead(&["deploy", &image("trivial", "2"), "--app", "web"]).expect(0);
}

#[test]
fn a_manifest_with_three_mistakes_shows_three_errors_with_lines() {
    let platform = serving_one();
    let file = platform.dir.path().join("app.yaml");
    std::fs::write(
        &file,
        "app: web\nsource: x\nreplicas: 3\nresources: {memory: lots}\nhttp:\n  port: 99999\n",
    )
    .unwrap();
    let ran = platform.stead(&["deploy", "-f", &file.display().to_string()]).expect(2);
    for place in ["app.yaml:3:", "app.yaml:4:", "app.yaml:6:"] {
        assert!(ran.stderr.contains(place), "{place} is missing in: {}", ran.stderr);
    }
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let platform = serving_one();
    for attack in images::attacks() {
        let file = platform.dir.path().join(format!("{}.tar", attack.name));
        attack.image.write_archive(&file, attack.name).unwrap();
        let ran = platform.stead(&["image", "import", &file.display().to_string()]);
        if attack.must_refuse {
            assert_eq!(ran.code, 1, "{}: {}{}", attack.name, ran.stdout, ran.stderr);
            assert!(ran.stderr.contains("STEAD-I"), "{}: {}", attack.name, ran.stderr);
        }
        std::fs::remove_file(&file).unwrap();
        let escaped = walk(platform.dir.path())
            .into_iter()
            .filter(|path| path.ends_with(images::ESCAPED))
            .filter(|path| !path.to_string_lossy().contains("/layers/"))
            .collect::<Vec<_>>();
        assert!(escaped.is_empty(), "{}: {escaped:?}", attack.name);
    }
    assert_eq!(platform.version("web"), "1");
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(walk(&entry.path()));
        }
    }
    found
}
