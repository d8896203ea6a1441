//! The figures behind a verdict, as they are shown and kept.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::sample::{Sample, quantile};

/// What a verdict is based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// What the new Release was compared with.
    pub against: Against,
    /// What is called the old side.
    pub old: Side,
    /// The new Release.
    pub new: Side,
    /// How errors compare; `None` if they are not compared.
    pub errors: Option<ErrorFigures>,
    /// How speed compares; `None` if it is not compared, or one side has too few requests.
    pub latency: Option<LatencyFigures>,
}

/// What a new Release is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// The old Release's requests since the new one takes some too: the same world for both.
    Old,
    /// The old Release's requests before that: it has hardly any since.
    Base,
    /// Neither has enough requests; the old side is the few of both.
    Nothing,
}

/// One side's figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Side {
    /// Requests that the App answered or failed.
    pub requests: u64,
    /// Of these, how many failed by the App's fault or were answered with 5xx.
    pub errors: u64,
    /// Half of the answers came within this time, in microseconds; `None` of none.
    pub p50_micros: Option<u64>,
    /// Nine of ten answers came within this time, in microseconds; `None` of none.
    pub p90_micros: Option<u64>,
}

impl Side {
    pub(super) fn of(sample: &Sample) -> Self {
        Self {
            requests: sample.requests,
            errors: sample.errors,
            p50_micros: quantile(&sample.latency, 0.5),
            p90_micros: quantile(&sample.latency, 0.9),
        }
    }
}

/// How strong the evidence is, as odds in powers of ten: 4.7 means that while the contrary is
/// true, so much evidence ever comes up once in 10^4.7 Rollouts at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Proof {
    /// For the new Release being worse.
    pub worse: f64,
    /// What proves it.
    pub worse_needs: f64,
    /// For the new Release not being worse by as much as would matter.
    pub fine: f64,
    /// What proves it.
    pub fine_needs: f64,
}

// No figure is ever NaN: logarithms of e-values are finite, and shares lie in 0..=1.
impl Eq for Proof {}

impl Proof {
    /// From natural logarithms of e-values and the chances to be wrong. Cut to two decimals,
    /// to the cautious side: what is shown and kept is what was decided on.
    pub(super) fn new(worse: f64, fine: f64, alpha_worse: f64, alpha_fine: f64) -> Self {
        let shown = |nats: f64| (nats / std::f64::consts::LN_10 * 100.0).floor() / 100.0;
        let needs = |alpha: f64| (-alpha.log10() * 100.0).ceil() / 100.0;
        Self {
            worse: shown(worse),
            worse_needs: needs(alpha_worse),
            fine: shown(fine),
            fine_needs: needs(alpha_fine),
        }
    }

    /// Whether it is proven that the new Release is worse.
    pub fn is_worse(&self) -> bool {
        self.worse >= self.worse_needs
    }

    /// Whether it is proven that it is not worse by as much as would matter.
    pub fn is_fine(&self) -> bool {
        self.fine >= self.fine_needs
    }
}

/// How errors compare.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorFigures {
    /// Errors of all requests of the old side, 0 to 1.
    pub old_share: f64,
    /// Errors of all requests of the new Release, 0 to 1.
    pub new_share: f64,
    /// The evidence.
    #[serde(flatten)]
    pub proof: Proof,
    /// It is proven that there are more, and so many more that it matters.
    pub condemn: bool,
}

impl Eq for ErrorFigures {} // as for `Proof`

/// How speed compares, where it differs most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LatencyFigures {
    /// A time, in microseconds.
    pub old_bound_micros: u64,
    /// The share of the old side's requests that took longer than that, 0 to 1.
    pub old_share: f64,
    /// A time much longer than the other, in microseconds.
    pub new_bound_micros: u64,
    /// The share of the new Release's requests that took longer even than that, 0 to 1.
    pub new_share: f64,
    /// Requests of the new Release that were judged: without those that warmed it up.
    pub judged: u64,
    /// The evidence.
    #[serde(flatten)]
    pub proof: Proof,
    /// It is proven that more are slow, and so many more that it matters.
    pub condemn: bool,
}

impl Eq for LatencyFigures {} // as for `Proof`

impl Figures {
    /// Why the new Release is worse, in a sentence.
    pub(super) fn why(&self) -> String {
        let (old, new) = (&self.old, &self.new);
        let mut parts = Vec::new();
        if let Some(errors) = self.errors.as_ref().filter(|errors| errors.condemn) {
            let fails = format!(
                "{} of its {} requests failed ({})",
                new.errors,
                new.requests,
                percent(errors.new_share)
            );
            parts.push(match self.against {
                Against::Old => format!(
                    "{fails}; of the old Release's at the same time {} of {} ({})",
                    old.errors,
                    old.requests,
                    percent(errors.old_share)
                ),
                Against::Base => format!(
                    "{fails}; of the old Release's before {} of {} ({})",
                    old.errors,
                    old.requests,
                    percent(errors.old_share)
                ),
                Against::Nothing => fails,
            });
        }
        if let Some(slow) = self.latency.as_ref().filter(|latency| latency.condemn) {
            parts.push(format!(
                "{} of its {} requests took longer than {}; of the old Release's {} took longer \
                 than {}",
                percent(slow.new_share),
                slow.judged,
                millis(slow.new_bound_micros),
                percent(slow.old_share),
                millis(slow.old_bound_micros)
            ));
        }
        format!("The new Release does worse than the old one: {}.", parts.join(". Also, "))
    }
}

/// A share with as many decimals as are kept.
pub(super) fn shown(share: f64) -> f64 {
    (share * 1e6).round() / 1e6
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn millis(micros: u64) -> String {
    format!("{} ms", micros as f64 / 1_000.0)
}
