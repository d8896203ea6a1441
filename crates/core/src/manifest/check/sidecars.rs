//! Rules of sidecars, each by itself and beside the App.

use std::collections::BTreeSet;

use super::{Broken, files, mounts, probes, program, resources, twice, variables};
use crate::error::Code;
use crate::manifest::fields::Manifest;
use crate::manifest::health::Check;
use crate::manifest::problem::{BadValue, FieldPath};
use crate::manifest::sidecar::Sidecar;
use crate::manifest::suggest;

/// Most sidecars of one App: each is a Container in every Instance.
const MOST_SIDECARS: usize = 16;

/// Where the sidecar at `index` stands.
pub(super) fn path(index: usize) -> FieldPath {
    FieldPath::of(&["sidecars"]).index(index)
}

pub(super) fn check(manifest: &Manifest, broken: &mut Broken) {
    let count = manifest.sidecars.len();
    if count > MOST_SIDECARS {
        let expected = format!("at most {MOST_SIDECARS} sidecars");
        let bad = BadValue::new(Code::ManifestRange, expected, count.to_string());
        broken.add(FieldPath::of(&["sidecars"]), bad);
    }
    let mut names = BTreeSet::new();
    for (index, sidecar) in manifest.sidecars.iter().enumerate() {
        let base = path(index);
        if !names.insert(&sidecar.name) {
            let bad = twice("each sidecar once", sidecar.name.as_str());
            broken.add(base.key("name"), bad);
        }
        program(&base, &sidecar.source, &sidecar.command, &sidecar.args, broken);
        variables(&base, &sidecar.env, broken);
        resources(&base, &sidecar.resources, broken);
        probes(&base, &sidecar.health, broken);
        ports(&base, sidecar, broken);
        volumes(&base, sidecar, manifest, broken);
    }
}

/// A sidecar has no HTTP port of its own that a probe could mean.
fn ports(base: &FieldPath, sidecar: &Sidecar, broken: &mut Broken) {
    for (name, check, ..) in sidecar.health.checks() {
        if matches!(check, Check::Http { port: None, .. }) {
            let bad = BadValue::new(Code::ManifestMissingKey, "the key \"port\"", "nothing")
                .hint("a sidecar has no HTTP port: say which one is probed");
            broken.add(base.key("health").key(name).key("port"), bad);
        }
    }
}

fn volumes(base: &FieldPath, sidecar: &Sidecar, manifest: &Manifest, broken: &mut Broken) {
    let known = || manifest.volumes.iter().map(|volume| &volume.name);
    for (index, volume) in sidecar.volumes.iter().enumerate() {
        if !known().any(|name| *name == volume.name) {
            let name = volume.name.as_str();
            let near = suggest::nearest(name, known().map(|name| name.as_str()));
            let bad = BadValue::text(Code::ManifestConflict, "one of the App's volumes", name)
                .hint("declare it under volumes of the App as well")
                .nearest(near);
            broken.add(base.key("volumes").index(index).key("name"), bad);
        }
    }
    let places = || sidecar.volumes.iter().map(|volume| &volume.mount);
    mounts(base, places(), broken);
    files(base, &sidecar.files, places().collect(), broken);
}
