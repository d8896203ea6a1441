//! Batches: in which steps the Instances change, and who is served by the new Release
//! meanwhile.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::health::described_by;
use super::matching::Match;
use super::problem::BadValue;
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

impl FromStr for Batches {
    type Err = BadValue;

    /// Reads what a command line says: `4`, or sizes such as `1,25%,100%`.
    fn from_str(text: &str) -> Result<Self, BadValue> {
        if let Ok(count) = text.parse() {
            return Ok(Self::Count(count));
        }
        let sizes = text.split(',').map(|size| size.trim().parse().map(Batch::of));
        sizes.collect::<Result<_, _>>().map(Self::List)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::manifest::parse;

    fn rollout(batches: &str) -> Rollout {
        let text = format!("app: web\nsource: web:1\ninstances: 12\nrollout: {{{batches}}}");
        parse(&text, "t").unwrap_or_else(|problems| panic!("{problems}")).rollout
    }

    #[test]
    fn batches_are_as_large_as_asked_for() {
        for (batches, instances, sizes) in [
            ("1", 3, &[3][..]),
            ("4", 12, &[3, 6, 9, 12]),
            ("4", 10, &[3, 6, 8, 10]),
            ("4", 2, &[1, 2, 2, 2]),
            ("2", 0, &[0, 0]),
            ("[1, 25%, 100%]", 12, &[1, 3, 12]),
            ("[1, 25%]", 12, &[1, 3, 12]),
            ("[1, 25%]", 1, &[1, 1, 1]),
            ("[10%, 50%]", 5, &[1, 3, 5]),
            ("[3, 20]", 5, &[3, 5, 5]),
            ("[100%]", 5, &[5]),
        ] {
            let rollout = rollout(&format!("batches: {batches}"));
            assert_eq!(rollout.batch_sizes(instances), sizes, "{batches} of {instances}");
        }
    }

    #[test]
    fn a_batch_says_who_is_served_and_what_is_waited_for() {
        let rollout = rollout(
            "pause: 5s, batches: [{instances: 1, match: [{cookie: {name: c}}], pause: manual}, \
             {instances: 50%, weight: 10}, 75%]",
        );
        let weights = [0, 1, 2, 3].map(|nth| rollout.batch(nth).and_then(Batch::weight));
        assert_eq!(weights, [Some(0), Some(10), None, None]);
        let five = Pause::For(crate::manifest::Span::from_secs(5));
        let pauses = [0, 1, 2, 3].map(|nth| rollout.pause_after(nth));
        assert_eq!(pauses, [Pause::Manual, five, five, five]);
    }

    fn some_amount() -> impl Strategy<Value = Amount> {
        prop_oneof![(0_u32..1200).prop_map(Amount::Count), (0_u8..=100).prop_map(Amount::Percent)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sizes_of_a_list_rise_to_all(
            list in prop::collection::vec(some_amount(), 0..20),
            instances in 0_u32..=1000,
        ) {
            let batches = Batches::List(list.iter().copied().map(Batch::of).collect());
            let sizes = Rollout { batches, ..Rollout::default() }.batch_sizes(instances);
            prop_assert!(sizes.is_sorted());
            prop_assert_eq!(sizes.last(), Some(&instances));
            prop_assert!((list.len()..=list.len() + 1).contains(&sizes.len()));
            for (size, asked) in sizes.iter().zip(&list) {
                prop_assert!(*size >= asked.of(instances).min(instances));
            }
        }

        #[test]
        fn equal_batches_differ_by_at_most_one(count in 1_u32..=1000, instances in 0_u32..=1000) {
            let batches = Batches::Count(count);
            let sizes = Rollout { batches, ..Rollout::default() }.batch_sizes(instances);
            prop_assert_eq!(sizes.len(), count as usize);
            prop_assert_eq!(sizes.last(), Some(&instances));
            let before = std::iter::once(&0).chain(&sizes);
            let steps: Vec<u32> = before.zip(&sizes).map(|(before, size)| size - before).collect();
            prop_assert!(steps.is_sorted_by(|a, b| a >= b), "the larger ones first: {steps:?}");
            prop_assert!(steps[0] - steps[steps.len() - 1] <= 1, "{steps:?}");
        }
    }
}
