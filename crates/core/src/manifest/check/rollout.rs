//! Rules of how a Release replaces another.

use super::{Broken, MOST_INSTANCES};
use crate::error::Code;
use crate::manifest::batches::{Batch, Batches};
use crate::manifest::choice::Strategy;
use crate::manifest::fields::Manifest;
use crate::manifest::problem::{BadValue, FieldPath};
use crate::manifest::quantity::{Amount, Span};

/// Longest value looked for in a request, in bytes: what a gateway takes as one header.
const LONGEST_VALUE: usize = 4096;

pub(super) fn check(manifest: &Manifest, broken: &mut Broken) {
    let rollout = &manifest.rollout;
    let path = |key: &str| FieldPath::of(&["rollout", key]);
    strategy(manifest, broken);
    match &rollout.batches {
        Batches::Count(count) => broken.range(path("batches"), *count, 1, MOST_INSTANCES),
        Batches::List(list) => batches(&path("batches"), list, manifest.instances, broken),
    }
    // A stopped App keeps what it says for the time when it runs again.
    if let Amount::Count(count) = rollout.partition
        && manifest.instances > 0
    {
        broken.range(path("partition"), count, 0, manifest.instances);
    }
    for ordinal in rollout.priority.keys().filter(|ordinal| ordinal.0 >= MOST_INSTANCES) {
        let expected = format!("the ordinal of an Instance, 0 to {}", MOST_INSTANCES - 1);
        let bad = BadValue::new(Code::ManifestRange, expected, ordinal.to_string());
        broken.add(path("priority").key(&ordinal.to_string()), bad);
    }
    if let Some(sticky) = rollout.sticky {
        broken.range(path("sticky"), sticky, Span::from_secs(1), Span::MAX);
    }
    let deadline = rollout.progress_deadline;
    broken.range(path("progress_deadline"), deadline, Span::from_secs(1), Span::MAX);
    let requests = rollout.analysis.min_requests;
    broken.range(path("analysis").key("min_requests"), requests, 1, u32::MAX);
}

/// Only an explicit wish can be wrong; the default falls back where it must.
fn strategy(manifest: &Manifest, broken: &mut Broken) {
    let rollout = &manifest.rollout;
    let path = FieldPath::of(&["rollout", "strategy"]);
    if rollout.strategy == Some(Strategy::Handover) {
        if let Some(volume) = manifest.volumes.iter().find(|volume| !volume.shared) {
            let expected = "a strategy in which only one Container writes to a volume at a time";
            let hint = format!(
                "use in-place, or say shared: true of volume {} if two Containers may write to it at once",
                volume.name
            );
            let found = "handover with an unshared volume";
            let bad = BadValue::new(Code::ManifestConflict, expected, found).hint(hint);
            broken.add(path, bad);
        } else if !manifest.sidecars.is_empty() {
            let expected = "a strategy in which the sidecars keep their network";
            let bad = BadValue::new(Code::ManifestConflict, expected, "handover with sidecars")
                .hint("use in-place: a sidecar shares the network of one Container, not of two");
            broken.add(path, bad);
        }
    }
    let kept = rollout.keep_previous.filter(|kept| *kept > Span::ZERO);
    if rollout.strategy == Some(Strategy::Recreate)
        && let Some(kept) = kept
    {
        let expected = "0s with the strategy recreate";
        let bad = BadValue::new(Code::ManifestConflict, expected, kept.to_string())
            .hint("recreate removes the Sandbox and the old Container with it");
        broken.add(FieldPath::of(&["rollout", "keep_previous"]), bad);
    }
}

fn batches(path: &FieldPath, list: &[Batch], instances: u32, broken: &mut Broken) {
    if list.is_empty() || list.len() > MOST_INSTANCES as usize {
        let expected = format!("1 to {MOST_INSTANCES} batches");
        let found = list.len().to_string();
        broken.add(path.clone(), BadValue::new(Code::ManifestRange, expected, found));
    }
    let mut before: Option<Amount> = None;
    for (index, batch) in list.iter().enumerate() {
        let path = path.index(index);
        let size = batch.instances;
        if matches!(size, Amount::Count(0) | Amount::Percent(0)) {
            let bad = BadValue::new(Code::ManifestRange, "at least one Instance", size.to_string());
            broken.add(size_path(&path, batch), bad);
        } else if let Some(before) = before
            && !rises(before, size, instances)
        {
            let expected = format!("more than {before}");
            let bad = BadValue::new(Code::ManifestConflict, expected, size.to_string());
            let hint = "count the Instances of the batches before in: a batch says how many run the new Release once it is through";
            broken.add(size_path(&path, batch), bad.hint(hint));
        }
        before = Some(size);
        if let Some(weight) = batch.weight {
            broken.range(path.key("weight"), weight, 0, 100);
        }
        for (nth, rule) in batch.matches.iter().enumerate() {
            let bad = |text: &str| text.len() > LONGEST_VALUE || text.contains(char::is_control);
            if let Some(value) = rule.value().filter(|value| bad(value)) {
                let expected = "at most 4096 bytes of text without control characters";
                let bad = BadValue::text(Code::ManifestText, expected, value);
                broken.add(path.key("match").index(nth), bad);
            }
        }
        if size == Amount::Percent(100) {
            whole(&path, batch, broken);
        }
    }
}

/// A batch of only a size is written as that size.
fn size_path(path: &FieldPath, batch: &Batch) -> FieldPath {
    if *batch == Batch::of(batch.instances) { path.clone() } else { path.key("instances") }
}

/// Whether more Instances run the new Release after `next` than after `before`, or as many
/// where that depends on how many there are.
fn rises(before: Amount, next: Amount, instances: u32) -> bool {
    match (before, next) {
        (Amount::Percent(100), _) => false,
        (Amount::Count(before), Amount::Count(next)) => before < next,
        (Amount::Percent(before), Amount::Percent(next)) => before < next,
        _ => {
            let size = |amount: Amount| amount.of_rounded_up(instances).min(instances);
            size(before) <= size(next)
        }
    }
}

/// Once all Instances run the new Release, nothing is left to share requests with, and
/// nothing to wait for.
fn whole(path: &FieldPath, batch: &Batch, broken: &mut Broken) {
    let mut refuse = |asked: bool, key: &str, expected: &str, hint: &str| {
        if asked {
            let bad = BadValue::new(Code::ManifestConflict, expected, "100%").hint(hint);
            broken.add(path.key(key), bad);
        }
    };
    let fewer = "a batch of less than 100%";
    refuse(
        batch.weight.is_some_and(|weight| weight < 100),
        "weight",
        fewer,
        "all Instances run the new Release then: ask for fewer, or leave out weight",
    );
    refuse(
        !batch.matches.is_empty(),
        "match",
        fewer,
        "all Instances run the new Release then: ask for fewer, or leave out match",
    );
    refuse(
        batch.pause.is_some(),
        "pause",
        "a batch that another follows",
        "use rollout.watch for how long the new Release is watched after the last batch",
    );
}
