//! Sandboxes made in advance: holder, namespaces, link and address, not yet anybody's.
//!
//! Guarantees: taking one never waits; the pool is filled up again in the background, as many at
//! a time as there are processors: more would only wait for each other in the kernel.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::host::Means;
use super::launch::{Held, launch};

/// After a failure, before the next attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// What is ready to be taken.
#[derive(Debug)]
pub(crate) struct Pool {
    size: usize,
    state: Mutex<State>,
    taken: Notify,
    landed: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Held>,
    coming: usize,
    closed: bool,
}

impl Pool {
    /// With those that were found again.
    pub(crate) fn new(size: usize, ready: VecDeque<Held>) -> Arc<Self> {
        let state = State { ready, ..State::default() };
        Arc::new(Self {
            size,
            state: Mutex::new(state),
            taken: Notify::new(),
            landed: Notify::new(),
        })
    }

    /// One that is ready: the one with the address wanted if an address is wanted.
    pub(crate) fn take(&self, wanted: Option<Ipv4Addr>) -> Option<Held> {
        let mut state = self.lock();
        let found = loop {
            let at = match wanted {
                None => (!state.ready.is_empty()).then_some(0),
                Some(ip) => state.ready.iter().position(|held| held.connection.ips.v4 == ip),
            };
            match at.and_then(|at| state.ready.remove(at)) {
                // It died in the pool. What is left of it is found at the next start.
                Some(held) if held.process.has_ended() => {}
                other => break other,
            }
        };
        drop(state);
        self.taken.notify_one();
        found
    }

    /// Takes all there are, also those still on the way, and lets nothing more come in. Needs
    /// somebody to [`fill`](Self::fill).
    pub(crate) async fn close(&self) -> VecDeque<Held> {
        self.lock().closed = true;
        loop {
            {
                let mut state = self.lock();
                if state.coming == 0 {
                    return std::mem::take(&mut state.ready);
                }
            }
            self.landed.notified().await;
        }
    }

    /// How many are ready.
    pub(crate) fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    /// Fills up the pool for ever.
    pub(crate) async fn fill(self: Arc<Self>, means: Arc<Means>) {
        let at_once = std::thread::available_parallelism().map_or(2, usize::from);
        let mut launches = JoinSet::new();
        loop {
            while launches.len() < at_once && self.reserve() {
                let (pool, means) = (self.clone(), means.clone());
                launches.spawn(async move { pool.add(&means).await });
            }
            if launches.is_empty() {
                self.taken.notified().await;
            } else if let Some(Ok(false)) = launches.join_next().await {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    fn reserve(&self) -> bool {
        let mut state = self.lock();
        let wanted = !state.closed && state.ready.len() + state.coming < self.size;
        state.coming += usize::from(wanted);
        wanted
    }

    /// Makes one more. `false` if that failed.
    async fn add(&self, means: &Arc<Means>) -> bool {
        let launched = launch(means, None).await;
        let mut state = self.lock();
        state.coming -= 1;
        self.landed.notify_one();
        match launched {
            Ok(held) => {
                state.ready.push_back(held);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "no Sandbox could be made in advance");
                false
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
