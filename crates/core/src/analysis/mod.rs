//! Whether a new Release does worse than the old one, on the gateway's figures.
//!
//! Promises: [`judge`] may be asked after every report, for as long as one likes. A Release
//! that does no worse than the old one is called [`Verdict::Worse`] with a chance of at most
//! [`Settings::alpha`] **per Rollout**, not per look (see `evidence.rs`), and one that does
//! hardly worse practically never: beyond the proof, the difference seen must matter. State is
//! the caller's: cumulative Samples, and [`Warmup`].
//!
//! Assumes: requests to one Release fail, or are slow, independently of each other, with a
//! chance that stays as it is while they are compared. What befalls both Releases at the same
//! time (a database that is down) meets both counts and accuses neither. It breaks where one
//! client repeats one poisonous request, or where the old Release takes no traffic any more and
//! the world changes while the new one is compared with what was before.
//!
//! Deliberately does not know: Rollouts, gates, clocks, and what is done about a verdict.

mod evidence;
mod figures;
mod sample;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::evidence::{Count, Margin};
use self::figures::shown;
pub use self::figures::{Against, ErrorFigures, Figures, LatencyFigures, Proof, Side};
pub use self::sample::{Sample, Warmup};
use crate::routes::LATENCY_BOUNDS_MICROS;
use crate::time::Micros;

/// How long after its first request an Instance is not judged for speed: see [`Warmup`].
pub const WARMUP: Micros = Micros::from_secs(2);
/// Requests of each Instance whose slowness is forgiven in any case, be there ever so few of
/// them a second.
pub const WARMUP_REQUESTS: u64 = 20;

/// Errors beyond those of the old Release: none is proven until it exceeds `TOLERATED`, none
/// counts until the shares seen differ by `MATTERS`.
const ERRORS_TOLERATED: Margin = Margin { difference: 0.002, ratio: 1.5 };
const ERRORS_MATTER: Margin = Margin { difference: 0.01, ratio: 1.5 };
/// Errors that no Release may have of which nothing better was known.
const ERRORS_ALONE: f64 = 0.05;
/// Fewer are an accident, such as one client's bad request with its retries.
const ERRORS_AT_LEAST: u64 = 5;

/// A request is slow if it takes so many times what one of the old Release takes, and so much
/// longer, in microseconds.
const SLOWER_TIMES: f64 = 1.5;
const SLOWER_BY_MICROS: u64 = 2_000;
/// Requests that are slow, in the same sense as for errors.
const SLOW_TOLERATED: Margin = Margin { difference: 0.05, ratio: 1.0 };
const SLOW_MATTERS: Margin = Margin { difference: 0.1, ratio: 1.0 };

/// Comparisons that may condemn a Release: errors with each of three [`Against`], latency with
/// two. They share `alpha`.
const COMPARISONS: f64 = 5.0;
/// Chance of calling a Release fine that is worse. Higher than `alpha`: nothing is undone then.
const ALPHA_FINE: f64 = 0.05;
/// The old Release stands for itself until the new one has taken so many times its requests:
/// from then on what it did before the Rollout says more.
const OUTNUMBERED: u64 = 10;

/// What is compared and how surely.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Compare errors.
    pub errors: bool,
    /// Compare how long answers take.
    pub latency: bool,
    /// Requests that a side must have before its speed is compared, before it is compared with
    /// without taking traffic at the same time, and before a new Release is fine. Errors condemn
    /// on fewer: a Release that fails all of its first requests need not fail more.
    pub min_requests: u64,
    /// Instances of the new Release that have begun to take traffic: for each,
    /// [`WARMUP_REQUESTS`] are forgiven for being slow.
    pub instances: u64,
    /// The chance of condemning a Release that is no worse, over its whole Rollout.
    pub alpha: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { errors: true, latency: true, min_requests: 50, instances: 1, alpha: 1e-4 }
    }
}

/// What the figures say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing is proven, for the moment or for lack of requests.
    Undecided {
        /// On what it is based.
        figures: Figures,
    },
    /// It is proven that the new Release is not worse by as much as would matter.
    Fine {
        /// On what it is based.
        figures: Figures,
    },
    /// It is proven that the new Release is worse.
    Worse {
        /// A sentence for people.
        why: String,
        /// On what it is based.
        figures: Figures,
    },
}

impl Verdict {
    /// On what it is based.
    pub fn figures(&self) -> &Figures {
        match self {
            Self::Undecided { figures } | Self::Fine { figures } | Self::Worse { figures, .. } => {
                figures
            }
        }
    }
}

/// Compares the new Release with the old one.
///
/// `new` and `old` are cumulative since the new Release began to take traffic, `new` as
/// [`Warmup::pass`] left it. `base` is what the old Release did in the minutes before; it must
/// not grow any more. It stands in where `old` is too small to compare with. Without either,
/// nothing is known about speed, and only more errors than any Release may have condemn.
pub fn judge(base: &Sample, old: &Sample, new: &Sample, settings: &Settings) -> Verdict {
    let against = choose(base, old, new, settings.min_requests);
    let before = match against {
        Against::Old => old.clone(),
        Against::Base => base.clone(),
        Against::Nothing => base.plus(old),
    };
    let figures = Figures {
        against,
        old: Side::of(&before),
        new: Side::of(new),
        errors: settings.errors.then(|| errors(against, &before, old, new, settings)),
        latency: (settings.latency && against != Against::Nothing)
            .then(|| latency(&before, new, settings))
            .flatten(),
    };
    let by_errors = figures.errors.as_ref().filter(|errors| errors.condemn);
    let by_latency = figures.latency.as_ref().filter(|latency| latency.condemn);
    if by_errors.is_some() || by_latency.is_some() {
        return Verdict::Worse { why: figures.why(), figures };
    }
    let fine = |on: bool, proof: Option<&Proof>| !on || proof.is_some_and(Proof::is_fine);
    if new.requests >= settings.min_requests
        && (settings.errors || settings.latency)
        && fine(settings.errors, figures.errors.as_ref().map(|errors| &errors.proof))
        && fine(settings.latency, figures.latency.as_ref().map(|latency| &latency.proof))
    {
        return Verdict::Fine { figures };
    }
    Verdict::Undecided { figures }
}

/// What the new Release is compared with. Be they ever so few, requests at the same time are
/// preferred: only they tell a bad Release from a bad moment.
fn choose(base: &Sample, old: &Sample, new: &Sample, least: u64) -> Against {
    let stands = |sample: &Sample| sample.requests >= least.max(1);
    let beside = old.requests.saturating_mul(OUTNUMBERED) >= new.requests.max(1);
    match (stands(old), stands(base)) {
        _ if beside => Against::Old,
        (_, true) => Against::Base,
        (true, false) => Against::Old,
        (false, false) => Against::Nothing,
    }
}

fn errors(
    against: Against,
    before: &Sample,
    beside: &Sample,
    new: &Sample,
    settings: &Settings,
) -> ErrorFigures {
    let count =
        |sample: &Sample| Count { hits: sample.errors.min(sample.requests), of: sample.requests };
    let (old, beside, new) = (count(before), count(beside), count(new));
    let (worse, fine) = match against {
        Against::Nothing => (evidence::over(new, ERRORS_ALONE), evidence::under(new, ERRORS_ALONE)),
        Against::Old | Against::Base => {
            (evidence::worse(old, new, ERRORS_TOLERATED), evidence::fine(old, new, ERRORS_MATTER))
        }
    };
    let proof = Proof::new(worse, fine, settings.alpha / COMPARISONS, ALPHA_FINE);
    let condemn = proof.is_worse()
        && new.hits >= ERRORS_AT_LEAST
        // Also of the few that the old Release still takes, when those before are the measure:
        // if these fail too, the world has changed.
        && new.share() >= ERRORS_MATTER.above(old.share().max(beside.share()));
    ErrorFigures { old_share: shown(old.share()), new_share: shown(new.share()), proof, condemn }
}

/// Whether answers take longer. If the new Release is slower than the old one by no more than
/// `SLOWER_*` (each time stretched by so much, or less), then for every time `t` no more of its
/// requests exceed the stretched `t` than of the old one's exceed `t`. That is asked for every
/// `t` that bounds a bucket, where both numbers are known exactly, however the times are spread
/// within buckets. The bounds are coarse, so the slowness that shows is that much greater.
fn latency(before: &Sample, new: &Sample, settings: &Settings) -> Option<LatencyFigures> {
    let mut fresh = sample::buckets(&new.latency);
    // Those forgiven for being first are taken to have been the slowest: never too few.
    let mut forgiven = WARMUP_REQUESTS.saturating_mul(settings.instances);
    for bucket in fresh.iter_mut().rev() {
        let taken = forgiven.min(*bucket);
        *bucket -= taken;
        forgiven -= taken;
    }
    let before = sample::buckets(&before.latency);
    let (all_old, all_new) = (before.iter().sum::<u64>(), fresh.iter().sum::<u64>());
    if all_old.min(all_new) < settings.min_requests.max(1) {
        return None;
    }
    let slower =
        |buckets: &[u64], of, bound: usize| Count { hits: buckets[bound + 1..].iter().sum(), of };
    let asked: Vec<_> = stretched()
        .map(|(short, long)| {
            (short, long, slower(&before, all_old, short), slower(&fresh, all_new, long))
        })
        .collect();
    let worse: Vec<f64> =
        asked.iter().map(|(_, _, old, new)| evidence::worse(*old, *new, SLOW_TOLERATED)).collect();
    // Worse if it is anywhere; fine only if it is everywhere. Fine forgives the warm-up too.
    let fine = asked.iter().map(|(_, _, old, new)| evidence::fine(*old, *new, SLOW_MATTERS));
    let fine = fine.fold(f64::INFINITY, f64::min);
    let proof = Proof::new(evidence::mean(&worse), fine, settings.alpha / COMPARISONS, ALPHA_FINE);
    let gap = |old: &Count, new: &Count| new.share() - old.share();
    // Of equal gaps the one at the shortest times.
    let (short, long, old, new) = asked
        .iter()
        .rev()
        .max_by(|one, two| gap(&one.2, &one.3).total_cmp(&gap(&two.2, &two.3)))?;
    Some(LatencyFigures {
        old_bound_micros: LATENCY_BOUNDS_MICROS[*short],
        new_bound_micros: LATENCY_BOUNDS_MICROS[*long],
        old_share: shown(old.share()),
        new_share: shown(new.share()),
        judged: all_new,
        condemn: proof.is_worse() && new.share() >= SLOW_MATTERS.above(old.share()),
        proof,
    })
}

/// Every bound together with the first bound that is slow beside it, by index.
fn stretched() -> impl Iterator<Item = (usize, usize)> {
    let bounds = LATENCY_BOUNDS_MICROS.iter().enumerate();
    bounds.filter_map(|(short, bound)| {
        let slow = ((*bound as f64 * SLOWER_TIMES) as u64).max(bound + SLOWER_BY_MICROS);
        let long = LATENCY_BOUNDS_MICROS.partition_point(|bound| *bound < slow);
        (long < LATENCY_BOUNDS_MICROS.len()).then_some((short, long))
    })
}
