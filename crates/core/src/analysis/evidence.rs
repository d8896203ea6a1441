//! How strongly two counts speak against a claim about the two shares behind them.
//!
//! Promises: each function returns the natural logarithm of an *e-value*, 0 at least. While
//! the claim is true, the chance that the value **ever** reaches `x`, at whichever moment one
//! looks and however often, is at most `exp(-x)`. Knows nothing of requests.
//!
//! Method: the likelihood of the counts, averaged over a prior for each share, divided by the
//! greatest likelihood that the claim allows. For the true shares that quotient is a
//! martingale of mean 1, whatever order the two sides take turns in and however unequal they
//! are (Robbins, "Statistical methods related to the law of the iterated logarithm", 1970), so
//! it stays below `1/a` for ever with a chance of `1 - a` (Ville's inequality); dividing by the
//! maximum keeps that for every pair of shares that the claim allows (Wasserman, Ramdas,
//! Balakrishnan, "Universal inference", PNAS 2020). The price of knowing neither share is a few
//! nats. Survey: Ramdas et al., "Game-theoretic statistics and safe anytime-valid inference",
//! 2023. The priors choose the speed, never the validity.

/// `hits` among `of` trials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    /// Trials that hit, at most `of`.
    pub(super) hits: u64,
    /// All trials.
    pub(super) of: u64,
}

impl Count {
    /// The share of hits; 0 of nothing.
    pub(super) fn share(self) -> f64 {
        if self.of == 0 { 0.0 } else { self.hits as f64 / self.of as f64 }
    }

    fn misses(self) -> f64 {
        (self.of - self.hits) as f64
    }
}

/// A share is worse than another when it is greater by both.
#[derive(Debug, Clone, Copy)]
pub(super) struct Margin {
    /// By so much, as a share of all.
    pub(super) difference: f64,
    /// So many times; 1 at least.
    pub(super) ratio: f64,
}

impl Margin {
    /// The greatest share that is not worse than `share`.
    pub(super) fn above(self, share: f64) -> f64 {
        (share + self.difference).max(share * self.ratio)
    }

    /// The two lines whose maximum [`Margin::above`] is, and where they cross. With a ratio of
    /// 1 the second is never above the first.
    fn lines(self) -> (Line, Option<(Line, f64)>) {
        let second = Line { slope: self.ratio, rise: 0.0 };
        let cross = self.difference / (self.ratio - 1.0);
        let first = Line { slope: 1.0, rise: self.difference };
        (first, (self.ratio > 1.0).then_some((second, cross)))
    }
}

/// The distribution Beta(a, 1) of a share: the smaller `a`, the more is expected near 0.
struct Prior {
    a: f64,
}

/// What fails or is slow is rare, and usually far below one in a hundred.
const RARE: Prior = Prior { a: 0.1 };
/// If something is wrong, it may be wrong to any degree.
const ANY: Prior = Prior { a: 0.5 };

/// Against the claim that `new` hits at most `margin` above `old`.
pub(super) fn worse(old: Count, new: Count, margin: Margin) -> f64 {
    if old.of == 0 || new.share() <= margin.above(old.share()) {
        return 0.0;
    }
    // The claim is the union of two half-planes that both exclude the counts' own shares, so
    // on each the likelihood is greatest on its edge.
    let (first, second) = margin.lines();
    let mut best = first.best(old, new, 0.0, 1.0);
    if let Some((second, _)) = second {
        best = best.max(second.best(old, new, 0.0, 1.0));
    }
    (RARE.mixture(old) + ANY.mixture(new) - best).max(0.0)
}

/// Against the claim that `new` hits at least `margin` above `old`.
pub(super) fn fine(old: Count, new: Count, margin: Margin) -> f64 {
    if old.of == 0 || new.share() >= margin.above(old.share()) {
        return 0.0;
    }
    // Here the claim is where the half-planes meet: its edge is the first line up to where
    // they cross and the second line from there.
    let (first, second) = margin.lines();
    let mut best = first.best(old, new, 0.0, second.as_ref().map_or(1.0, |(_, cross)| *cross));
    if let Some((second, cross)) = second {
        best = best.max(second.best(old, new, cross, 1.0));
    }
    (RARE.mixture(old) + RARE.mixture(new) - best).max(0.0)
}

/// Against the claim that `count` hits at most with chance `limit`.
pub(super) fn over(count: Count, limit: f64) -> f64 {
    if count.share() <= limit {
        return 0.0;
    }
    (ANY.mixture(count) - likelihood(count, limit)).max(0.0)
}

/// Against the claim that `count` hits at least with chance `limit`.
pub(super) fn under(count: Count, limit: f64) -> f64 {
    if count.share() >= limit {
        return 0.0;
    }
    (RARE.mixture(count) - likelihood(count, limit)).max(0.0)
}

/// The mean of e-values is one, however they depend on each other.
pub(super) fn mean(logs: &[f64]) -> f64 {
    let top = logs.iter().copied().fold(0.0, f64::max);
    let sum: f64 = logs.iter().map(|log| (log - top).exp()).sum();
    if logs.is_empty() { 0.0 } else { (top + (sum / logs.len() as f64).ln()).max(0.0) }
}

/// Shares of the new side that go with those of the old one: `slope * old + rise`.
struct Line {
    slope: f64,
    rise: f64,
}

impl Line {
    /// The greatest log-likelihood on the line while the old side's share lies in `from..to`.
    /// It is concave there: its top is at an end that it does not rise away from, or where
    /// Newton's method finds it, held within the bounds that the signs of the slope have shown.
    fn best(&self, old: Count, new: Count, from: f64, to: f64) -> f64 {
        let (mut low, mut high) = (from, to.min((1.0 - self.rise) / self.slope));
        if low > high {
            return f64::NEG_INFINITY;
        }
        let top = if self.climb(old, new, low).0 <= 0.0 {
            low
        } else if self.climb(old, new, high).0 >= 0.0 {
            high
        } else {
            let mut share = low.midpoint(high);
            for _ in 0..60 {
                let (climb, bend) = self.climb(old, new, share);
                if climb > 0.0 {
                    low = share
                } else {
                    high = share
                }
                // So much is missing to the top at most.
                if climb.abs() * (high - low) < 1e-6 || climb * climb < bend * 1e-9 {
                    break;
                }
                let next = share + climb / bend;
                share = if low < next && next < high { next } else { low.midpoint(high) };
            }
            share
        };
        likelihood(old, top) + likelihood(new, self.slope * top + self.rise)
    }

    /// First derivative of the log-likelihood along the line, and the second one's negative.
    fn climb(&self, old: Count, new: Count, share: f64) -> (f64, f64) {
        let over = |times: f64, chance: f64| if times == 0.0 { 0.0 } else { times / chance };
        let side = |count: Count, share: f64| {
            let (up, down) = (over(count.hits as f64, share), over(count.misses(), 1.0 - share));
            (up - down, over(up, share) + over(down, 1.0 - share))
        };
        let (old, new) = (side(old, share), side(new, self.slope * share + self.rise));
        (old.0 + self.slope * new.0, old.1 + self.slope * self.slope * new.1)
    }
}

/// The log-likelihood of the counts, in any one order.
fn likelihood(count: Count, share: f64) -> f64 {
    let term = |times: f64, chance: f64| if times == 0.0 { 0.0 } else { times * chance.ln() };
    term(count.hits as f64, share) + term(count.misses(), 1.0 - share)
}

impl Prior {
    /// The log-likelihood of the counts, averaged over the prior.
    fn mixture(&self, count: Count) -> f64 {
        let (hits, misses) = (count.hits as f64 + self.a, count.misses() + 1.0);
        // Beta(a, 1) has the norm 1/a.
        self.a.ln() + ln_gamma(hits) + ln_gamma(misses) - ln_gamma(hits + misses)
    }
}

/// Logarithm of the gamma function for `x > 0`: Stirling's series (Abramowitz and Stegun
/// 6.1.41) from 10 on, where its error is below 1e-10, and the recurrence below.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut product) = (x, 1.0);
    while x < 10.0 {
        product *= x;
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series = (1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse / 1260.0)) / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series - product.ln()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::Chance;
    use super::*;

    const MARGIN: Margin = Margin { difference: 0.01, ratio: 1.5 };

    #[test]
    fn gamma_is_right() {
        for (x, wanted) in [(0.5, 0.572_364_942_924_7), (1.0, 0.0), (5.0, 24f64.ln())] {
            assert!((ln_gamma(x) - wanted).abs() < 1e-9, "{x}: {}", ln_gamma(x));
        }
        assert!((ln_gamma(1e9) - 19_723_265_827.503_25).abs() < 1e-3, "{}", ln_gamma(1e9));
    }

    /// Slow and plain: the greatest likelihood on a grid over all shares that the claim allows.
    fn on_a_grid(old: Count, new: Count, allowed: impl Fn(f64, f64) -> bool) -> f64 {
        let mut best = f64::NEG_INFINITY;
        for x in 0..=500 {
            for y in 0..=500 {
                let (p, q) = (f64::from(x) / 500.0, f64::from(y) / 500.0);
                if allowed(p, q) {
                    best = best.max(likelihood(old, p) + likelihood(new, q));
                }
            }
        }
        best
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_share_that_the_claim_allows_is_likelier(
            a in 1u64..400, b in 1u64..400, x in 0.0..1f64, y in 0.0..1f64, ratio in 1.0..3f64,
        ) {
            let old = Count { hits: (a as f64 * x) as u64, of: a };
            let new = Count { hits: (b as f64 * y) as u64, of: b };
            let margin = Margin { difference: 0.05, ratio };
            let mixed = RARE.mixture(old) + ANY.mixture(new);
            let e = worse(old, new, margin);
            let grid = on_a_grid(old, new, |p, q| q <= margin.above(p));
            prop_assert!(e <= (mixed - grid).max(0.0) + 1e-6, "worse {e}, grid {}", mixed - grid);
            let mixed = RARE.mixture(old) + RARE.mixture(new);
            let e = fine(old, new, margin);
            let grid = on_a_grid(old, new, |p, q| q >= margin.above(p).min(1.0));
            prop_assert!(e <= (mixed - grid).max(0.0) + 1e-6, "fine {e}, grid {}", mixed - grid);
        }
    }

    proptest! {
        #[test]
        fn more_hits_of_the_new_side_never_speak_for_it(
            n in 1u64..5_000, m in 0u64..100_000, x in 0.0..1f64, y in 0.0..1f64,
        ) {
            let old = Count { hits: (m as f64 * x * x * x) as u64, of: m };
            let hits = (n as f64 * y) as u64;
            let new = Count { hits, of: n };
            // One that missed hits instead, and one more that hits.
            for more in [Count { hits: (hits + 1).min(n), of: n }, Count { hits: hits + 1, of: n + 1 }] {
                prop_assert!(worse(old, more, MARGIN) >= worse(old, new, MARGIN) - 1e-6);
                prop_assert!(over(more, 0.05) >= over(new, 0.05) - 1e-6);
            }
            // The same of the old side speaks for the new one.
            let more = Count { hits: (old.hits + 1).min(m), of: m };
            prop_assert!(worse(more, new, MARGIN) <= worse(old, new, MARGIN) + 1e-6);
        }
    }

    /// At the edge of the claim, where it is hardest to keep, looked at after every trial.
    #[test]
    fn a_true_claim_is_rejected_no_more_often_than_said() {
        let mut chance = Chance::new(7);
        for (p, per_new) in [(0.0, 1), (0.05, 1), (0.05, 11)] {
            let q = MARGIN.above(p);
            let (runs, alpha) = (300, 0.1f64);
            let (mut worse_wrong, mut fine_wrong) = (0, 0);
            for _ in 0..runs {
                let (mut old, mut new) = (Count { hits: 0, of: 0 }, Count { hits: 0, of: 0 });
                let (mut most_worse, mut most_fine) = (0f64, 0f64);
                for _ in 0..500 {
                    for _ in 0..per_new {
                        old.of += 1;
                        old.hits += u64::from(chance.even() < p);
                    }
                    new.of += 1;
                    new.hits += u64::from(chance.even() < q);
                    most_worse = most_worse.max(worse(old, new, MARGIN));
                    most_fine = most_fine.max(fine(old, new, MARGIN));
                }
                worse_wrong += u32::from(most_worse >= -alpha.ln());
                fine_wrong += u32::from(most_fine >= -alpha.ln());
            }
            let most = (f64::from(runs) * alpha) as u32;
            assert!(worse_wrong <= most, "{p}: {worse_wrong} of {runs} worse");
            assert!(fine_wrong <= most, "{p}: {fine_wrong} of {runs} fine");
        }
    }

    #[test]
    fn the_mean_of_e_values_neither_overflows_nor_exceeds_the_greatest() {
        assert_eq!(mean(&[]), 0.0);
        assert!((mean(&[900.0, 0.0]) - (900.0 - 2f64.ln())).abs() < 1e-9);
    }
}
