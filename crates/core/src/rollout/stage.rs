//! The stages of a Rollout: its batches, and the stop that a partition asks for.

use crate::ids::Ordinal;
use crate::manifest::{Batch, Pause, Rollout};

use super::Reach;

/// One stage: how far it goes, what is asked of it, and what is waited for after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage<'a> {
    /// So many Instances run the new Release once it is through.
    pub upto: u32,
    /// What the manifest asks of it.
    pub batch: Option<&'a Batch>,
    /// What is waited for before the next one.
    pub pause: Pause,
}

/// The stages of a Rollout of `instances` Instances by these rules; at least one, and the last
/// reaches all.
pub fn stages(rules: &Rollout, instances: u32) -> Vec<Stage<'_>> {
    let kept = rules.partition.of_rounded_up(instances);
    let line = instances.saturating_sub(kept);
    let mut stages: Vec<Stage<'_>> = Vec::new();
    for (index, size) in rules.batch_sizes(instances).into_iter().enumerate() {
        let (batch, pause) = (rules.batch(index), rules.pause_after(index));
        if kept > 0 && size >= line {
            stages.push(Stage { upto: line, batch, pause: Pause::Manual });
            break;
        }
        // One that changes nothing is left out.
        let last = stages.last().map(|stage| stage.upto);
        if last != Some(size) || batch.is_some() {
            stages.push(Stage { upto: size, batch, pause });
        }
    }
    if kept > 0 {
        stages.push(Stage { upto: instances, batch: None, pause: rules.pause });
    }
    stages
}

impl Stage<'_> {
    /// The Instances that it reaches: those in `already`, then as the rules have it.
    pub(crate) fn reach(&self, rules: &Rollout, ordinals: &[Ordinal], already: &Reach) -> Reach {
        let Reach::Of(already) = already else { return Reach::All };
        let mut reached = already.clone();
        let mut missing = (self.upto as usize)
            .saturating_sub(ordinals.iter().filter(|ordinal| already.contains(ordinal)).count());
        for ordinal in rules.order(ordinals) {
            if missing > 0 && reached.insert(ordinal) {
                missing -= 1;
            }
        }
        Reach::Of(reached)
    }
}

/// The stage at `index` of a Rollout that was not at its last one when it came to it. After a
/// change of size there may be fewer: it does not become the last one by that, so that nothing
/// that is to be waited for is left out. `None` where there is only one.
pub(crate) fn stage_before_last(rules: &Rollout, index: u32, instances: u32) -> Option<Stage<'_>> {
    let mut stages = stages(rules, instances);
    let before_last = stages.len().checked_sub(2)?;
    Some(stages.swap_remove((index as usize).min(before_last)))
}

/// The reach of the stage at `index`: everything for the last one.
pub(crate) fn reach_at(
    rules: &Rollout,
    index: u32,
    ordinals: &[Ordinal],
    already: &Reach,
) -> Reach {
    let count = u32::try_from(ordinals.len()).unwrap_or(u32::MAX);
    let stages = stages(rules, count);
    match stages.get(index as usize) {
        Some(stage) if (index as usize) + 1 < stages.len() => stage.reach(rules, ordinals, already),
        _ => Reach::All,
    }
}
