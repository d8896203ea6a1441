//! How a new Release replaces the old one, as a manifest asks for it.
//!
//! What follows from the Instances at hand is said elsewhere: the sizes of batches in
//! [`super::batches`], whose turn it is in [`super::order`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::batches::{Batches, BatchesText};
use super::choice::{Order, Strategy};
use super::quantity::{Amount, Pause, Span};
use crate::ids::Ordinal;

/// How long the old Container stays frozen after a handover, where nothing else is asked.
const KEPT_AFTER_HANDOVER: Span = Span::from_secs(60);

/// How a new Release replaces the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Rollout {
    /// How an Instance changes. Left out: stead chooses what loses no request and is safe
    /// for the App's volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// In how many equal steps the Instances change, or a list of steps.
    #[schemars(with = "BatchesText")]
    pub batches: Batches,
    /// What is waited for between batches, where a batch does not say: a time, or `manual`
    /// for a person. The analysis may end the wait by undoing the rollout.
    pub pause: Pause,
    /// How many Instances, or which share of them, stay on the old Release until a person
    /// promotes the new one. A share is rounded up.
    pub partition: Amount,
    /// Which Instances change first.
    pub order: Order,
    /// Instances that change before the others: ordinal to weight, the highest first. An
    /// Instance that is not named has weight 0.
    #[schema(value_type = BTreeMap<String, i32>)]
    #[schemars(with = "BTreeMap<u32, i32>")]
    pub priority: BTreeMap<Ordinal, i32>,
    /// How long a client stays with the Release it met, by a cookie. Left out: each request
    /// is shared out anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Span>,
    /// How many Instances, or which share of them, may be out of service at once. 0: an
    /// in-place change still takes one at a time, and requests wait where it was the last.
    pub max_unavailable: Amount,
    /// How many Instances, or which share of them, may run above the wanted number.
    pub max_surge: Amount,
    /// Whether the old Release comes back by itself when the new one fails.
    pub auto_rollback: bool,
    /// How long a rollout may go without progress before it counts as failed.
    pub progress_deadline: Span,
    /// How long the old Container stays frozen, so that a rollback is a thaw. Left out: 60s
    /// after a handover, else not at all. When its time is over it is thawed for `pre_stop` and
    /// the stop signal; where a volume that is not shared or a sidecar allows only one at a
    /// time, it is killed as it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_previous: Option<Span>,
    /// How long the new Release is watched after the last batch: until then the analysis or
    /// crashes still undo it.
    pub watch: Span,
    /// How the new Release is compared with the old one while both, or the new one, serve.
    /// `false`: not at all.
    #[serde(deserialize_with = "switchable")]
    #[schema(value_type = AnalysisForm)]
    #[schemars(with = "AnalysisForm")]
    pub analysis: Analysis,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: None,
            batches: Batches::default(),
            pause: Pause::For(Span::ZERO),
            partition: Amount::Count(0),
            order: Order::default(),
            priority: BTreeMap::new(),
            sticky: None,
            max_unavailable: Amount::Count(0),
            max_surge: Amount::Count(0),
            auto_rollback: true,
            progress_deadline: Span::from_secs(600),
            keep_previous: None,
            watch: Span::from_secs(120),
            analysis: Analysis::default(),
        }
    }
}

impl Rollout {
    /// How an Instance changes: what is asked for, else the default.
    ///
    /// Only an explicit wish is refused where it cannot be had; the default may fall back.
    pub fn strategy(&self) -> Strategy {
        self.strategy.unwrap_or_default()
    }

    /// How long the old Container stays frozen after an Instance changed by `strategy`, which
    /// need not be the one asked for.
    pub fn keep_previous(&self, strategy: Strategy) -> Span {
        self.keep_previous.unwrap_or(match strategy {
            Strategy::Handover => KEPT_AFTER_HANDOVER,
            Strategy::InPlace | Strategy::Recreate => Span::ZERO,
        })
    }
}

/// What the gateway's figures are compared for. The new Release is undone when it is clearly
/// worse than the old one in any of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Analysis {
    /// Whether the share of errors counts: answers from 500 on, and requests the App failed.
    pub errors: bool,
    /// Whether the time to answer counts.
    pub latency: bool,
    /// How many requests the new Release must have had before it is judged.
    #[schemars(range(min = 1))]
    pub min_requests: u32,
}

impl Analysis {
    /// Nothing is compared.
    pub const OFF: Self = Self { errors: false, latency: false, min_requests: 50 };

    /// Whether anything is compared.
    pub fn is_on(self) -> bool {
        self.errors || self.latency
    }

    /// What a plain `true` or `false` means.
    pub(super) fn switched(on: bool) -> Self {
        if on { Self::default() } else { Self::OFF }
    }
}

impl Default for Analysis {
    fn default() -> Self {
        Self { errors: true, latency: true, ..Self::OFF }
    }
}

/// An analysis as it is written.
#[derive(Deserialize, ToSchema, JsonSchema)]
#[serde(untagged, expecting = "expected true, false or {errors, latency, min_requests}")]
#[schemars(inline)]
enum AnalysisForm {
    /// The usual comparison, or none.
    Switch(bool),
    /// What is compared.
    Rules(Analysis),
}

fn switchable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Analysis, D::Error> {
    Ok(match AnalysisForm::deserialize(deserializer)? {
        AnalysisForm::Switch(on) => Analysis::switched(on),
        AnalysisForm::Rules(rules) => rules,
    })
}
