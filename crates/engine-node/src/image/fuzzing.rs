//! What must hold for any bytes of an image; see `stead_core::fuzzing` for who calls it.
//!
//! Whatever needs a disk gets one in memory, beside something that nothing may touch.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use reqwest::header::HeaderValue;
use stead_core::ids::Digest;

use super::error::LayerError;
use super::layer::{Expected, unpack_layer};
use super::manifest::{Document, Platform, choose, read_config};
use super::reference::Reference;
use super::scratch::Scratch;
use super::unpack::{Limits, unpack};
use super::{ImageStore, StoreOptions, import, registry, resolve_user, retar};

/// A target: its name, and what shall hold for any bytes.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// The targets.
pub const TARGETS: &[Target] = &[
    ("reference", reference),
    ("image-documents", documents),
    ("image-archive", archive),
    ("tar", tar),
    ("layer", layer),
    ("passwd", passwd),
    ("challenge", challenge),
];

const LIMITS: Limits = Limits { bytes: 1 << 20, entries: 64, ratio: 50, ratio_from: 64 << 10 };
/// Nobody inside an image has this name.
const STRANGER: &str = "stranger";

/// A reference reads what it writes, and can be put into a path.
fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(reference) = text.parse::<Reference>() else { return };
    let written = reference.to_string();
    assert_eq!(written.parse::<Reference>().expect("it was written so").to_string(), written);
    let parts =
        [reference.host().as_str(), reference.repository(), reference.tag().unwrap_or_default()];
    for part in parts.iter().flat_map(|part| part.split('/')) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-:[]".contains(c);
        assert!(part.chars().all(plain) && part != ".." && part != ".", "{part:?}");
    }
}

/// Indexes, manifests and configs.
fn documents(bytes: &[u8]) {
    let platform = Platform::host();
    match Document::parse("a document", bytes) {
        Ok(Document::Index(entries)) => {
            let _ = choose(&entries, &platform);
        }
        Ok(Document::Manifest(manifest)) => {
            let written = serde_json::to_vec(&manifest).expect("its keys are strings");
            Document::parse("again", &written).expect("it was written so");
        }
        Err(_) => {}
    }
    for layers in 0..3 {
        if let Ok((_, diff_ids)) = read_config("a config", bytes, &platform, layers) {
            assert_eq!(diff_ids.len(), layers);
        }
    }
}

/// An OCI archive, or what `docker save` writes: what it names lies within it.
fn archive(bytes: &[u8]) {
    let home = Home::new();
    let options = StoreOptions { limits: LIMITS, ..StoreOptions::default() };
    let store = ImageStore::open(&home.path("store"), options).expect("memory has room");
    let file = home.path("archive");
    fs::write(&file, bytes).expect("memory has room");
    let Ok((local, digest)) = import::find_any(&store, &file) else { return };
    let Ok(manifest) = local.manifest(&digest) else { return };
    if let Ok(Document::Manifest(manifest)) = Document::parse("manifest", &manifest) {
        for layer in manifest.layers {
            let _ = local.small_blob("layer", &layer.digest, layer.size);
        }
    }
}

/// A layer's archive stays within its folder and its limits, whatever it holds.
fn tar(bytes: &[u8]) {
    let _ = unpacks(bytes, &LIMITS);
}

/// An archive of our own making is a good layer.
pub(crate) fn assert_unpacks(archive: &[u8]) {
    unpacks(archive, &Limits::default()).expect("it was made as a layer");
}

fn unpacks(bytes: &[u8], limits: &Limits) -> Result<(), LayerError> {
    let home = Home::new();
    let folder = home.folder("layer");
    let unpacked = unpack(bytes, &folder, &home.folder("trash"), limits);
    home.assert_untouched();
    let summary = unpacked?;
    assert!(summary.entries <= limits.entries && summary.bytes <= limits.bytes);
    let tree = tree(&folder);
    assert!(tree.len() as u64 <= limits.entries, "{} entries", tree.len());
    for path in &tree {
        let stat = fs::symlink_metadata(path).expect("it was just listed");
        let kind = stat.mode() & libc::S_IFMT;
        let device = kind == libc::S_IFBLK || (kind == libc::S_IFCHR && stat.rdev() != 0);
        assert!(!device, "{path:?} is a device");
        assert!(stat.uid() < 65_536 && stat.gid() < 65_536, "{path:?} has an owner out of range");
    }
    // Given out and taken in again it is the same.
    let (mut first, mut second) = (Vec::new(), Vec::new());
    if retar::write(&folder, &mut first).is_ok() {
        let again = home.folder("again");
        unpack(&first[..], &again, &home.folder("more-trash"), &Limits::default())
            .expect("it was made as a layer");
        retar::write(&again, &mut second).expect("it was read like this before");
        assert!(first == second, "it has become another layer");
    }
    // Who runs a container is looked up in files that the layer may have made links.
    assert!(resolve_user(&[folder], STRANGER).is_err());
    Ok(())
}

/// A layer as stored, compressed or not, of which nobody knows what it should hold.
fn layer(bytes: &[u8]) {
    let home = Home::new();
    let folder = home.folder("layer");
    let blob = (super::digest_of(bytes), bytes.len() as u64);
    // The right one where nothing is compressed; else the digest refuses it at the end.
    let expected = Expected { diff_id: blob.0.clone(), blob: Some(blob) };
    let trash = home.folder("trash");
    let _ = unpack_layer(bytes, &expected, &folder, &trash, &LIMITS, |_| Ok(()));
    home.assert_untouched();
    // What is announced is a promise: nothing beyond it is read.
    let short =
        Expected { blob: Some((Digest::from_sha256([0; 32]), bytes.len() as u64 / 2)), ..expected };
    let again = unpack_layer(bytes, &short, &folder, &trash, &LIMITS, |_| Ok(()));
    assert!(bytes.is_empty() || again.is_err());
}

/// `USER[:GROUP]`, a line's end, and the content of passwd and group.
fn passwd(bytes: &[u8]) {
    let end = bytes.iter().position(|&b| b == b'\n').unwrap_or(bytes.len());
    let (user, files) = bytes.split_at(end);
    let home = Home::new();
    let etc = home.folder("layer").join("etc");
    fs::create_dir(&etc).expect("the folder is new");
    for name in ["passwd", "group"] {
        fs::write(etc.join(name), files).expect("memory has room");
    }
    if let Ok(user) = resolve_user(&[home.path("layer")], &String::from_utf8_lossy(user)) {
        let ids = [user.uid, user.gid].into_iter().chain(user.groups);
        assert!(ids.max() < Some(65_536));
    }
}

/// How a registry asks for credentials.
fn challenge(bytes: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(bytes) else { return };
    registry::read_challenge(value);
}

/// Where everything of this process lies.
fn place() -> PathBuf {
    let place = PathBuf::from(format!("/dev/shm/stead-fuzz-{}", std::process::id()));
    fs::create_dir_all(&place).expect("memory has room");
    place
}

/// A folder for one run, with a neighbour.
pub(crate) struct Home(Scratch);

impl Home {
    const PASSWD: &str = "stranger:x:7:7:::";

    pub(crate) fn new() -> Self {
        let home = Self(Scratch::new(&place()).expect("memory has room"));
        let etc = home.folder("etc");
        fs::write(etc.join("passwd"), Self::PASSWD).expect("memory has room");
        home
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.0.folder(name).expect("each is made once")
    }

    fn assert_untouched(&self) {
        let passwd = fs::read_to_string(self.path("etc/passwd")).expect("nobody removed it");
        assert_eq!(passwd, Self::PASSWD);
        let mut names: Vec<_> = fs::read_dir(self.0.path())
            .expect("nobody removed it")
            .map(|entry| entry.expect("nobody else is here").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["etc", "layer", "trash"]);
        assert_eq!(fs::read_dir(self.path("etc")).expect("nobody removed it").count(), 1);
    }
}

/// Everything below `folder`.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        // A path may be longer than the kernel takes at once: what cannot be named is not seen.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found
}

/// Feeds each target its seeds, as a test.
#[cfg(test)]
pub(crate) fn feed_seeds(targets: &[Target]) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for (name, target) in targets {
        let mut fed = 0;
        for seed in fs::read_dir(seeds.join(name)).unwrap() {
            target(&fs::read(seed.unwrap().path()).unwrap());
            fed += 1;
        }
        assert!(fed > 0, "{name} has no seeds");
    }
    // Empty, unless another test of this process is at it.
    let _ = fs::remove_dir(place());
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_target_holds_for_its_seeds() {
        super::feed_seeds(super::TARGETS);
    }
}
