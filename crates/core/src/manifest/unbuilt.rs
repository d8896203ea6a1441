//! What a manifest may ask for one day but not yet. Whoever builds one of these deletes its
//! line here, and its mention in `docs/errors/STEAD-M015.md`; nothing else stands in the way.

use super::choice::{Isolation, Strategy};
use super::fields::Manifest;
use super::problem::{BadValue, FieldPath};
use super::quantity::{Amount, Span};
use crate::error::Code;

/// Keys of the whole manifest that have no type yet.
pub(super) const KEYS: [&str; 4] = ["ports", "sidecars", "init", "scale"];

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
    let rollout = &manifest.rollout;
    let some_surge = !matches!(rollout.max_surge, Amount::Count(0) | Amount::Percent(0));
    let asked: [(bool, &[&str], &str, &str); 7] = [
        (!manifest.secrets.is_empty(), &["secrets"], "a secret", "env, or a volume with a file"),
        (
            rollout.strategy == Strategy::Handover,
            &["rollout", "strategy"],
            "handover",
            "in-place or recreate",
        ),
        (rollout.batches > 1, &["rollout", "batches"], "more than one batch", "1"),
        (some_surge, &["rollout", "max_surge"], "a surge", "0"),
        (rollout.pause > Span::ZERO, &["rollout", "pause"], "a pause between batches", "0s"),
        (
            rollout.keep_previous > Span::ZERO,
            &["rollout", "keep_previous"],
            "a frozen predecessor",
            "0s",
        ),
        (
            manifest.isolation != Isolation::Process,
            &["isolation"],
            manifest.isolation.word(),
            "process",
        ),
    ];
    let refuse = |path: &[&str], found, instead| (FieldPath::of(path), refusal(found, instead));
    let asked = asked.into_iter().filter(|(asks, ..)| *asks);
    asked.map(|(_, path, found, instead)| refuse(path, found, instead)).collect()
}
