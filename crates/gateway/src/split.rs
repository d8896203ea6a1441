//! Which Release a request goes to.
//!
//! Knows weights and whether a Release has a usable Backend; a Release without one gives its
//! share to the others that have a weight, so that a request is not refused for a ratio.

use std::collections::BTreeMap;
use std::sync::Arc;

use stead_core::ids::ReleaseNo;
use stead_core::routes::Split;

use crate::backend::{Backend, Claim};
use crate::{balance, random};

/// The open Backends of an App by Release, with the Releases' weights.
#[derive(Default)]
pub(crate) struct Shares(Vec<Share>);

struct Share {
    weight: u32,
    backends: Vec<Arc<Backend>>,
}

impl Shares {
    /// The shares that `split` gives to `backends`, which are open.
    pub(crate) fn new(split: &Split, backends: Vec<Arc<Backend>>) -> Self {
        if split.weights.is_empty() {
            return Self(vec![Share { weight: 1, backends }]);
        }
        let mut releases: BTreeMap<ReleaseNo, Vec<Arc<Backend>>> = BTreeMap::new();
        for backend in backends {
            releases.entry(backend.release).or_default().push(backend);
        }
        let shares = releases.into_iter().filter_map(|(release, backends)| {
            let weight = split.weight(release).filter(|weight| *weight > 0)?;
            Some(Share { weight, backends })
        });
        Self(shares.collect())
    }

    /// A claim on one of them, `None` when no one can take it.
    pub(crate) fn claim(&self) -> Option<Claim> {
        if let [only] = self.0.as_slice() {
            return balance::claim(&only.backends);
        }
        let usable = |share: &&Share| share.backends.iter().any(|backend| backend.usable());
        let total = self.0.iter().filter(usable).fold(0_u32, |sum, s| sum.saturating_add(s.weight));
        if total == 0 {
            return None;
        }
        let mut ticket = random::below(total);
        for share in self.0.iter().filter(usable) {
            if ticket < share.weight {
                if let Some(claim) = balance::claim(&share.backends) {
                    return Some(claim);
                }
                break;
            }
            ticket -= share.weight;
        }
        // The chosen ones closed in between: any other will do.
        self.0.iter().find_map(|share| balance::claim(&share.backends))
    }

    /// Whether somebody would take a claim now.
    pub(crate) fn any_usable(&self) -> bool {
        self.0.iter().any(|share| share.backends.iter().any(|backend| backend.usable()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Hint;
    use stead_core::ids::{ContainerId, Ordinal};
    use stead_core::routes::{self, BackendState, Protocol, Weight};
    use tokio::sync::mpsc;

    fn backend(release: u32, name: &str) -> (Arc<Backend>, mpsc::UnboundedReceiver<Hint>) {
        let spec = routes::Backend {
            container: ContainerId(name.into()),
            instance: Ordinal(0),
            release: ReleaseNo(release),
            addr: "127.0.0.1:1".parse().unwrap(),
            mark: None,
            state: BackendState::Open,
        };
        let (hints, heard) = mpsc::unbounded_channel();
        (Arc::new(Backend::new(&spec, Protocol::Http1, Arc::default(), hints)), heard)
    }

    fn count(shares: &Shares, release: u32, of: usize) -> usize {
        let hit = |_: &usize| shares.claim().unwrap().backend().release == ReleaseNo(release);
        (0..of).filter(hit).count()
    }

    #[test]
    fn weights_hold_and_a_release_without_backend_gives_way() {
        let ((old, _o), (new, mut heard), (off, _f)) =
            (backend(1, "a"), backend(2, "b"), backend(3, "c"));
        let weights = [(1, 90), (2, 10), (3, 0)]
            .map(|(release, weight)| Weight { release: ReleaseNo(release), weight });
        let split = Split { weights: weights.to_vec() };
        let shares = Shares::new(&split, vec![old.clone(), new.clone(), off]);
        let hits = count(&shares, 2, 20_000);
        assert!((1_500..2_500).contains(&hits), "{hits} of 20000 at weight 10 %");
        new.close();
        assert_eq!(heard.try_recv(), Ok(Hint::Drained(ContainerId("b".into()))));
        assert_eq!(count(&shares, 1, 100), 100);
        old.close();
        assert!(shares.claim().is_none(), "weight 0 gets nothing");
        new.reopen();
        assert_eq!(count(&shares, 2, 100), 100);
    }

    #[test]
    fn the_less_loaded_is_chosen_and_a_suspect_left_out() {
        let ((busy, _b), (free, _f)) = (backend(1, "busy"), backend(1, "free"));
        let shares = Shares::new(&Split::default(), vec![busy.clone(), free.clone()]);
        let held: Vec<_> = (0..3).map(|_| busy.claim().unwrap()).collect();
        for _ in 0..100 {
            assert_eq!(shares.claim().unwrap().backend().container, free.container);
        }
        assert!(free.set_suspect());
        assert!(!free.set_suspect(), "one trial at a time");
        assert_eq!(shares.claim().unwrap().backend().container, busy.container);
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
