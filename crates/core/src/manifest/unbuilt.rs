//! What a manifest may ask for one day but not yet. Whoever builds one of these deletes its
//! line here, and its mention in `docs/errors/STEAD-M015.md`; nothing else stands in the way.

use super::choice::Isolation;
use super::fields::Manifest;
use super::problem::{BadValue, FieldPath};
use crate::error::Code;

/// Keys of the whole manifest that have no type yet.
pub(super) const KEYS: [&str; 3] = ["ports", "init", "scale"];

/// The refusal of one of [`KEYS`].
pub(super) fn key(key: &str) -> BadValue {
    let instead = match key {
        "ports" => "http for what speaks HTTP, and leave ports out",
        "scale" => "instances with a fixed number",
        _ => "one Container, and leave the key out",
    };
    refusal("this key", instead)
}

fn refusal(found: &str, instead: &str) -> BadValue {
    BadValue::new(Code::ManifestNotBuilt, instead, found)
}

/// What is typed already but asks for something to come.
pub(super) fn check(manifest: &Manifest) -> Vec<(FieldPath, BadValue)> {
    let asked: [(bool, &[&str], &str, &str); 1] = [(
        manifest.isolation != Isolation::Process,
        &["isolation"],
        manifest.isolation.word(),
        "process",
    )];
    let refuse = |path: &[&str], found, instead| (FieldPath::of(path), refusal(found, instead));
    let asked = asked.into_iter().filter(|(asks, ..)| *asks);
    asked.map(|(_, path, found, instead)| refuse(path, found, instead)).collect()
}
