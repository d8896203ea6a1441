//! Batches: in which steps the Instances change, and who is served by the new Release
//! meanwhile.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::health::described_by;
use super::matching::Match;
use super::quantity::{Amount, Pause};
use super::rollout::Rollout;

/// In which steps the Instances change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BatchesText", into = "BatchesText")]
pub enum Batches {
    /// So many, as equal as can be: 1 to 1000.
    Count(u32),
    /// One by one, each larger than the one before. A last one of 100% is added where it is
    /// left out.
    List(Vec<Batch>),
}

impl Default for Batches {
    fn default() -> Self {
        Self::Count(1)
    }
}

/// One step of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Batch {
    /// How many Instances, or which share of them, run the new Release once this batch is
    /// through, those of earlier batches included. A share is rounded up.
    pub instances: Amount,
    /// Share of the requests for the new Release, in per cent, for those that `match`
    /// says nothing of. Left out: none if there is a `match`, else each Instance gets as
    /// many as any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub weight: Option<u8>,
    /// Requests that go to the new Release whatever the weight: those that any of these
    /// fits.
    #[serde(default, rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// What is waited for after this batch: a time, or `manual` for a person. Left out: the
    /// `pause` of the rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

impl Batch {
    /// A batch of which only the size is given.
    pub fn of(instances: Amount) -> Self {
        Self { instances, weight: None, matches: Vec::new(), pause: None }
    }

    /// The new Release's share of the requests that no rule of `match` fits, in per cent.
    /// `None`: it follows from the number of Instances.
    pub fn weight(&self) -> Option<u8> {
        self.weight.or((!self.matches.is_empty()).then_some(0))
    }

    /// Whether it asks for all Instances, however many there are.
    fn is_whole(&self) -> bool {
        self.instances == Amount::Percent(100)
    }
}

impl Rollout {
    /// How many of `instances` run the new Release after each batch. The numbers never fall,
    /// and the last is `instances`; there is always at least one.
    ///
    /// A number of batches makes them as equal as can be, the larger ones first; there may
    /// be more of them than Instances, then the last ones change nothing. Shares are rounded
    /// up.
    pub fn batch_sizes(&self, instances: u32) -> Vec<u32> {
        match &self.batches {
            Batches::Count(count) => {
                let count = (*count).max(1);
                let (each, more) = (instances / count, instances % count);
                (1..=count).map(|done| done * each + done.min(more)).collect()
            }
            Batches::List(list) => {
                let mut sizes = Vec::with_capacity(list.len() + 1);
                let mut done = 0;
                for batch in list {
                    done = batch.instances.of_rounded_up(instances).clamp(done, instances);
                    sizes.push(done);
                }
                if list.last().is_none_or(|last| !last.is_whole()) {
                    sizes.push(instances);
                }
                sizes
            }
        }
    }

    /// What is asked of the batch at `index`, from 0. `None` where only its size is known:
    /// it is one of equal ones, or was added to complete a list.
    pub fn batch(&self, index: usize) -> Option<&Batch> {
        match &self.batches {
            Batches::Count(_) => None,
            Batches::List(list) => list.get(index),
        }
    }

    /// What is waited for after the batch at `index`, from 0, if another follows.
    pub fn pause_after(&self, index: usize) -> Pause {
        self.batch(index).and_then(|batch| batch.pause).unwrap_or(self.pause)
    }
}

/// In how many equal steps the Instances change, or each step by itself.
#[derive(Clone, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(untagged, expecting = "expected a number of batches, or a list of them")]
#[schema(as = Batches)]
#[schemars(inline)]
pub(super) enum BatchesText {
    /// So many, as equal as can be.
    Count(#[schemars(range(min = 1, max = 1000))] u32),
    /// Each says how many Instances run the new Release once it is through. A last one of
    /// 100% is added where it is left out.
    List(#[schemars(length(min = 1, max = 1000))] Vec<BatchText>),
}

/// A batch: only its size, or all about it.
#[derive(Clone, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a batch such as 1, \"25%\" or {instances, weight, match, pause}"
)]
#[schemars(inline)]
pub(super) enum BatchText {
    /// How many Instances, or which share of them, run the new Release once it is through.
    Size(Amount),
    /// All about it.
    Whole(Batch),
}

impl From<BatchesText> for Batches {
    fn from(text: BatchesText) -> Self {
        let batch = |text| match text {
            BatchText::Size(instances) => Batch::of(instances),
            BatchText::Whole(batch) => batch,
        };
        match text {
            BatchesText::Count(count) => Self::Count(count),
            BatchesText::List(list) => Self::List(list.into_iter().map(batch).collect()),
        }
    }
}

impl From<Batches> for BatchesText {
    fn from(batches: Batches) -> Self {
        let text = |batch: Batch| match Batch::of(batch.instances) == batch {
            true => BatchText::Size(batch.instances),
            false => BatchText::Whole(batch),
        };
        match batches {
            Batches::Count(count) => Self::Count(count),
            Batches::List(list) => Self::List(list.into_iter().map(text).collect()),
        }
    }
}

described_by!(Batches, BatchesText);
