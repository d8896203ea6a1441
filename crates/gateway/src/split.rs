//! Which Release a request goes to.
//!
//! Knows rules, what a client met before, weights, and whether a Release has a usable Backend.
//! One without gives way to the others, those of weight 0 at last, so that a request is neither
//! refused nor kept waiting for a rule or a ratio.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use stead_core::ids::ReleaseNo;
use stead_core::routes::Split;

use crate::backend::{Backend, Claim};
use crate::balance::Group;
use crate::random;
use crate::rules::{Carried, Rule};

/// The open Backends of an App, shared out.
#[derive(Default)]
pub(crate) struct Shares {
    rules: Vec<Rule>,
    /// Releases that a request may ask for, by a rule or for having met them.
    named: Vec<(ReleaseNo, Group)>,
    /// For how long a client stays with the Release it met, if there is a choice.
    sticky: Option<Duration>,
    weighted: Vec<(u32, Group)>,
    /// Those of the Releases without weight.
    others: Group,
}

impl Shares {
    /// The shares that `split` gives to `backends`, which are open.
    pub(crate) fn new(split: &Split, slow_start: Duration, backends: Vec<Arc<Backend>>) -> Self {
        let group = |backends| Group::new(backends, slow_start);
        let mut releases: BTreeMap<ReleaseNo, Vec<Arc<Backend>>> = BTreeMap::new();
        for backend in &backends {
            releases.entry(backend.release).or_default().push(backend.clone());
        }
        let sticky = split.sticky.filter(|_| releases.len() > 1);
        let may_be_asked_for = |release: ReleaseNo| {
            split.rules.iter().any(|rule| rule.release == release)
                || (sticky.is_some() && split.weight(release).is_none_or(|weight| weight > 0))
        };
        let named = releases.iter().filter(|(release, _)| may_be_asked_for(**release));
        let named = named.map(|(release, backends)| (*release, group(backends.clone()))).collect();
        let (mut weighted, mut others) = (Vec::new(), Vec::new());
        if split.weights.is_empty() {
            weighted.push((1, group(backends)));
        } else {
            for (release, backends) in releases {
                match split.weight(release) {
                    Some(weight) if weight > 0 => weighted.push((weight, group(backends))),
                    _ => others.extend(backends),
                }
            }
        }
        Self {
            rules: split.rules.iter().map(Rule::new).collect(),
            named,
            sticky: sticky.map(|sticky| Duration::from_millis(sticky.max_age_ms)),
            weighted,
            others: group(others),
        }
    }

    /// For how long a client stays with the Release it met, if there is a choice.
    pub(crate) fn sticky(&self) -> Option<Duration> {
        self.sticky
    }

    /// A claim on one of them for a request that carries this and whose client has `met` a
    /// Release, `None` when no one can take it.
    pub(crate) fn claim(&self, carried: &Carried<'_>, met: Option<ReleaseNo>) -> Option<Claim> {
        self.claim_named(carried, met)
            .or_else(|| self.claim_by_weight())
            .or_else(|| self.others.claim())
    }

    fn claim_named(&self, carried: &Carried<'_>, met: Option<ReleaseNo>) -> Option<Claim> {
        if self.named.is_empty() {
            return None;
        }
        let fitting = self.rules.iter().filter(|rule| rule.fits(carried)).map(|rule| rule.release);
        let met = met.filter(|_| self.sticky.is_some());
        fitting
            .chain(met)
            .find_map(|asked| self.named.iter().find(|(release, _)| *release == asked)?.1.claim())
    }

    fn claim_by_weight(&self) -> Option<Claim> {
        if let [(_, only)] = self.weighted.as_slice() {
            return only.claim();
        }
        let usable = || self.weighted.iter().filter(|(_, group)| group.any_usable());
        let total = usable().fold(0_u32, |sum, (weight, _)| sum.saturating_add(*weight));
        if total == 0 {
            return None;
        }
        let mut ticket = random::below(total);
        for (weight, group) in usable() {
            if ticket < *weight {
                if let Some(claim) = group.claim() {
                    return Some(claim);
                }
                break;
            }
            ticket -= weight;
        }
        // The chosen ones closed in between: any other will do.
        self.weighted.iter().find_map(|(_, group)| group.claim())
    }

    /// Whether somebody would take a claim now.
    pub(crate) fn any_usable(&self) -> bool {
        self.others.any_usable() || self.weighted.iter().any(|(_, group)| group.any_usable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Hint;
    use http::HeaderMap;
    use std::time::Instant;
    use stead_core::ids::{ContainerId, Ordinal};
    use stead_core::routes::{self, BackendState, Protocol, Sticky, Weight};
    use tokio::sync::mpsc;

    type Heard = mpsc::UnboundedReceiver<Hint>;

    fn backend(release: u32, name: &str) -> (Arc<Backend>, Heard) {
        opened(release, name, None)
    }

    fn opened(release: u32, name: &str, opened: Option<Instant>) -> (Arc<Backend>, Heard) {
        let spec = routes::Backend {
            container: ContainerId(name.into()),
            instance: Ordinal(0),
            release: ReleaseNo(release),
            addr: "127.0.0.1:1".parse().unwrap(),
            mark: None,
            state: BackendState::Open,
        };
        let (hints, heard) = mpsc::unbounded_channel();
        (Arc::new(Backend::new(&spec, Protocol::Http1, Arc::default(), opened, hints)), heard)
    }

    /// A claim of a request with the header `x-gray`, or without.
    fn ask(shares: &Shares, gray: bool, met: Option<u32>) -> Option<Claim> {
        let mut headers = HeaderMap::new();
        if gray {
            headers.insert("x-gray", "yes".parse().unwrap());
        }
        shares.claim(&Carried { headers: &headers, query: None }, met.map(ReleaseNo))
    }

    fn claim(shares: &Shares) -> Option<Claim> {
        ask(shares, false, None)
    }

    fn released(claim: Option<Claim>) -> u32 {
        claim.unwrap().backend().release.0
    }

    fn count(shares: &Shares, release: u32, of: usize) -> usize {
        (0..of).filter(|_| released(claim(shares)) == release).count()
    }

    fn weights(weights: &[(u32, u32)]) -> Split {
        let weight = |(release, weight): &(u32, u32)| Weight {
            release: ReleaseNo(*release),
            weight: *weight,
        };
        Split { weights: weights.iter().map(weight).collect(), ..Split::default() }
    }

    fn shares(split: &Split, backends: &[&Arc<Backend>]) -> Shares {
        Shares::new(split, Duration::ZERO, backends.iter().copied().cloned().collect())
    }

    #[test]
    fn weights_hold_and_a_release_without_backend_gives_way() {
        let ((old, _o), (new, mut heard), (off, _f)) =
            (backend(1, "a"), backend(2, "b"), backend(3, "c"));
        let shares = shares(&weights(&[(1, 90), (2, 10), (3, 0)]), &[&old, &new, &off]);
        let hits = count(&shares, 2, 20_000);
        assert!((1_500..2_500).contains(&hits), "{hits} of 20000 at weight 10 %");
        assert_eq!(count(&shares, 3, 1_000), 0);
        new.close();
        assert_eq!(heard.try_recv(), Ok(Hint::Drained(ContainerId("b".into()))));
        assert_eq!(count(&shares, 1, 100), 100);
        old.close();
        assert_eq!(count(&shares, 3, 100), 100, "weight 0 is better than to wait");
        off.close();
        assert!(claim(&shares).is_none() && !shares.any_usable());
        new.reopen();
        assert_eq!(count(&shares, 2, 100), 100);
    }

    #[test]
    fn rules_go_before_weights_and_give_way_to_them() {
        let ((old, _o), (new, _n)) = (backend(1, "a"), backend(2, "b"));
        let mut split = weights(&[(1, 100), (2, 0)]);
        let rule = r#"{"release": 2, "when": [{"header": {"name": "x-gray"}}]}"#;
        split.rules.push(serde_json::from_str(rule).unwrap());
        let shares = shares(&split, &[&old, &new]);
        assert_eq!(released(ask(&shares, true, None)), 2);
        assert_eq!(count(&shares, 1, 100), 100);
        assert!(new.set_suspect());
        assert_eq!(released(ask(&shares, true, None)), 1);
        new.clear_suspect();
        old.close();
        assert_eq!(released(ask(&shares, false, None)), 2);
    }

    #[test]
    fn a_client_stays_with_what_it_met_while_that_is_there() {
        let ((old, _o), (new, _n), (off, _f)) = (backend(1, "a"), backend(2, "b"), backend(3, "c"));
        let mut split = weights(&[(1, 99), (2, 1), (3, 0)]);
        split.sticky = Some(Sticky { max_age_ms: 1_000 });
        let shares = shares(&split, &[&old, &new, &off]);
        assert_eq!(shares.sticky(), Some(Duration::from_secs(1)));
        for _ in 0..100 {
            assert_eq!(released(ask(&shares, false, Some(2))), 2);
        }
        for stranger in [3, 4] {
            let hits = (0..100).filter(|_| released(ask(&shares, false, Some(stranger))) == 1);
            assert!(hits.count() > 80, "release {stranger} is not asked for");
        }
        new.close();
        assert_eq!(released(ask(&shares, false, Some(2))), 1);
        let alone = Shares::new(&split, Duration::ZERO, vec![old]);
        assert_eq!(alone.sticky(), None, "there is no choice");
    }

    #[test]
    fn without_weights_every_backend_counts_the_same_and_sticks() {
        let ((one, _o), (two, _t), (new, _n)) = (backend(1, "a"), backend(1, "b"), backend(2, "c"));
        let split = Split { sticky: Some(Sticky { max_age_ms: 1_000 }), ..Split::default() };
        let shares = shares(&split, &[&one, &two, &new]);
        let hits = count(&shares, 2, 3_000);
        assert!((800..1_200).contains(&hits), "{hits} of 3000 at a third");
        assert!((0..100).all(|_| released(ask(&shares, false, Some(2))) == 2));
    }

    #[test]
    fn a_fresh_backend_starts_slowly() {
        let begun = |ago| Instant::now().checked_sub(Duration::from_secs(ago));
        let measure = |ago: u64, warm: usize| {
            let fresh = opened(2, "fresh", begun(ago)).0;
            let mut backends = vec![fresh];
            backends.extend((0..warm).map(|at| backend(1, &format!("w{at}")).0));
            let shares = Shares::new(&Split::default(), Duration::from_secs(1_000), backends);
            count(&shares, 2, 20_000)
        };
        // A tenth of a share, of one share and a tenth.
        let cold = measure(0, 1);
        assert!((1_600..2_050).contains(&cold), "{cold} of 20000");
        let half = measure(444, 1); // 0.5 of 1.5
        assert!((6_300..7_050).contains(&half), "{half} of 20000");
        let among = measure(0, 4); // 0.1 of 4.1
        assert!((400..580).contains(&among), "{among} of 20000");
        let warm = measure(1_000, 1);
        assert!((9_500..10_500).contains(&warm), "{warm} of 20000");
        assert_eq!(measure(0, 0), 20_000, "alone it takes everything");
    }

    #[test]
    fn a_fresh_backend_takes_everything_when_the_others_go() {
        let (fresh, _f) = opened(2, "fresh", Some(Instant::now()));
        let (warm, _w) = backend(1, "warm");
        let backends = vec![fresh, warm.clone()];
        let shares = Shares::new(&Split::default(), Duration::from_secs(1_000), backends);
        warm.close();
        assert_eq!(count(&shares, 2, 100), 100);
    }

    #[test]
    fn the_less_loaded_is_chosen_and_a_suspect_left_out() {
        let ((busy, _b), (free, _f)) = (backend(1, "busy"), backend(1, "free"));
        let shares = shares(&Split::default(), &[&busy, &free]);
        let held: Vec<_> = (0..3).map(|_| busy.claim().unwrap()).collect();
        for _ in 0..100 {
            assert_eq!(claim(&shares).unwrap().backend().container, free.container);
        }
        assert!(free.set_suspect());
        assert!(!free.set_suspect(), "one trial at a time");
        assert_eq!(claim(&shares).unwrap().backend().container, busy.container);
        drop(held);
    }

    #[test]
    fn the_last_claim_of_a_closed_backend_announces_it() {
        let (backend, mut heard) = backend(1, "a");
        let claim = backend.claim().unwrap();
        backend.close();
        assert!(backend.claim().is_none());
        assert!(heard.try_recv().is_err());
        drop(claim);
        assert_eq!(heard.try_recv(), Ok(Hint::Drained(ContainerId("a".into()))));
    }
}
