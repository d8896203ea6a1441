//! What must hold for any bytes of a Package; see `stead_core::fuzzing` for who calls it.

use std::fs;
use std::path::Component;

use super::elf::Elf;
use super::error::PackError;
use super::libraries::{Content, closure};
use super::{PackOptions, pack};
use crate::hash::digest_of;
use crate::image::fuzzing::{Home, Target, assert_unpacks};

/// The targets.
pub const TARGETS: &[Target] = &[("jar", jar), ("war", war), ("elf", elf)];

/// Most of what a jar may become: a small one can grow a lot, and each run shall be short.
const LARGEST: u64 = 8 << 20;

fn jar(bytes: &[u8]) {
    packs(bytes, "app.jar");
}

fn war(bytes: &[u8]) {
    packs(bytes, "app.war");
}

/// What packs does so twice in the same way, and is a layer like any other.
fn packs(bytes: &[u8], name: &str) {
    let home = Home::new();
    let path = home.path(name);
    fs::write(&path, bytes).expect("memory has room");
    let options = PackOptions {
        runtime: None,
        site: false,
        known: Vec::new(),
        port: None,
        cache: home.path("nowhere"),
        progress: |_| {},
    };
    let Ok(made) = pack(&path, &options) else { return };
    assert!(made.config.entrypoint.iter().chain(&made.config.cmd).all(|it| !it.contains('\0')));
    for layer in &made.layers {
        if layer.size() > LARGEST {
            continue;
        }
        let mut archive = Vec::new();
        match layer.write(&mut archive) {
            Ok(()) => {
                let packed = layer.packed().expect("it was packed a moment ago");
                assert_eq!(packed.diff_id, digest_of(&archive));
                assert_unpacks(&archive);
            }
            // Data is looked at when it is written.
            Err(PackError::Refused { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Programs, and what they say that they need.
fn elf(bytes: &[u8]) {
    let home = Home::new();
    let path = home.path("program");
    fs::write(&path, bytes).expect("memory has room");
    if let Ok(Some(elf)) = Elf::read(&path) {
        let names = elf.needed.iter().chain(&elf.rpath).chain(&elf.runpath);
        assert!(names.map(String::len).max().unwrap_or(0) <= bytes.len());
    }
    if let Ok(libraries) = closure(&[&path]) {
        // Whatever it names, no file goes along that is no library.
        for library in libraries {
            let plain = library.path.components().all(|part| part != Component::ParentDir);
            assert!(library.path.is_absolute() && plain, "{library:?}");
            if let Content::File(of) = &library.content {
                assert!(matches!(Elf::read(of), Ok(Some(_))), "{library:?} is no library");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_target_holds_for_its_seeds() {
        crate::image::fuzzing::feed_seeds(super::TARGETS);
    }
}
