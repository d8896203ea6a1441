//! One App while the gateway knows it: where its requests go now, its queue, its counters.
//!
//! Promises: [`App::claim`] grants a claim as soon as a Backend can take one, or says why not;
//! requests that wait are served in the order they came. Lives on over route generations.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use stead_core::ids::ReleaseNo;
use stead_core::name::AppKey;
use stead_core::routes::{FailReason, ParkPolicy};

use crate::backend::{Backend, Claim, Hint, Hints};
use crate::ledger::AppCounters;
use crate::park::{Park, Place};
use crate::rules::Carried;
use crate::site::Site;
use crate::split::Shares;
use crate::sticky;

/// Between two trials of a Backend that refused a connection: from the first to the last.
const TRIAL_PACE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// Where an App's requests go, as of one route generation.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) shares: Shares,
    /// What answers in the place of Backends.
    pub(crate) site: Option<Arc<Site>>,
    /// Under which its hosts have paths, the longest first, without trailing slash.
    pub(crate) prefixes: Vec<Box<str>>,
    pub(crate) park: ParkPolicy,
    /// Its counters are reported more often than those of others.
    pub(crate) watched: bool,
    pub(crate) state: AppState,
}

/// Whether an App takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum AppState {
    #[default]
    Running,
    Stopped,
    Gone,
}

/// Who answers a request.
pub(crate) enum Granted {
    /// A Backend.
    Claim(Claim),
    /// The gateway itself, from files.
    Site(Arc<Site>),
}

/// An App.
pub(crate) struct App {
    pub(crate) key: AppKey,
    pub(crate) counters: AppCounters,
    view: ArcSwap<View>,
    /// The Backends of the view, closed ones too.
    known: Mutex<Vec<Arc<Backend>>>,
    park: Arc<Park>,
    hints: Hints,
}

/// How long a request may wait for its claims, how long it has, and whom it would like.
pub(crate) struct Wait {
    /// The Release that its client has met, where that matters.
    met: Option<ReleaseNo>,
    /// When the request is given up.
    deadline: Instant,
    /// For how many bytes it counts.
    bytes: u64,
    /// Claims asked for.
    pub(crate) tries: u32,
    /// Time spent in the queue.
    pub(crate) parked: Duration,
}

impl App {
    pub(crate) fn new(key: AppKey, hints: Hints) -> Self {
        Self {
            key,
            counters: AppCounters::default(),
            view: ArcSwap::default(),
            known: Mutex::default(),
            park: Arc::default(),
            hints,
        }
    }

    /// Puts `view` in force, which knows `backends`, closed ones too. Returns those that only
    /// the view before knew. Called by one at a time.
    pub(crate) fn set_view(&self, view: View, backends: Vec<Arc<Backend>>) -> Vec<Arc<Backend>> {
        let running = view.state == AppState::Running;
        let (usable, site) = (view.shares.any_usable(), view.site.is_some());
        self.view.store(Arc::new(view));
        let before = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *known, backends.clone())
        };
        if !running || site {
            self.park.all_look();
        } else if usable {
            self.park.backend_came();
        }
        let kept = |one: &Arc<Backend>| backends.iter().any(|other| Arc::ptr_eq(one, other));
        before.into_iter().filter(|backend| !kept(backend)).collect()
    }

    /// Requests that have not ended.
    pub(crate) fn in_flight(&self) -> u64 {
        self.counters.in_flight.load(Relaxed)
    }

    /// Whether its counters are reported more often than those of others.
    pub(crate) fn is_watched(&self) -> bool {
        self.view.load().watched
    }

    /// Requests that wait.
    pub(crate) fn parked(&self) -> usize {
        self.park.waiting()
    }

    /// Whether requests have been without a Backend, and none has been there since.
    pub(crate) fn in_gap(&self) -> bool {
        self.park.in_gap()
    }

    /// The wait of a request that arrived at `now`, which `bytes` may be held for.
    pub(crate) fn wait(&self, now: Instant, bytes: u64, carried: &Carried<'_>) -> Wait {
        let view = self.view.load();
        let met = view.shares.sticky().and_then(|_| sticky::met(carried.headers));
        let longest = Duration::from_millis(view.park.max_wait_ms);
        Wait { met, deadline: now + longest, bytes, tries: 0, parked: Duration::ZERO }
    }

    /// What makes the client of a request for `path`, which `release` has answered, stay with
    /// it; `None` when it does already, or need not.
    pub(crate) fn keep_client(
        &self,
        wait: &Wait,
        release: ReleaseNo,
        path: &str,
        tls: bool,
    ) -> Option<HeaderValue> {
        let view = self.view.load();
        let age = view.shares.sticky().filter(|_| wait.met != Some(release))?;
        let covers = |prefix: &&str| {
            let rest = path.strip_prefix(*prefix);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let prefix = view.prefixes.iter().map(|prefix| &**prefix).find(covers);
        Some(sticky::keep(release, age, prefix.unwrap_or_default(), tls))
    }

    /// The site that answers now, of an App that is one. Its requests need no claim.
    ///
    /// # Errors
    /// Why it answers none.
    pub(crate) fn site(&self) -> Result<Option<Arc<Site>>, FailReason> {
        let view = self.view.load();
        match &view.site {
            None => Ok(None),
            Some(site) => check(view.state).map(|()| Some(site.clone())),
        }
    }

    /// A claim on a Backend, after waiting for one if need be; or the site that has come in the
    /// meantime.
    ///
    /// A request whose Backend refused it comes here again, until its deadline.
    pub(crate) async fn claim(
        &self,
        wait: &mut Wait,
        carried: &Carried<'_>,
    ) -> Result<Granted, FailReason> {
        if wait.tries > 0 && Instant::now() >= wait.deadline {
            return Err(FailReason::ParkTimeout);
        }
        wait.tries += 1;
        // Nobody passes those who wait already.
        if self.park.waiting() == 0 {
            let view = self.view.load();
            check(view.state)?;
            if let Some(claim) = view.shares.claim(carried, wait.met) {
                return Ok(Granted::Claim(claim));
            }
        }
        let began = Instant::now();
        let claim = self.queue(wait, carried, began).await;
        wait.parked += began.elapsed();
        claim
    }

    async fn queue(
        &self,
        wait: &Wait,
        carried: &Carried<'_>,
        now: Instant,
    ) -> Result<Granted, FailReason> {
        let place = match self.enter_queue(wait, now) {
            Ok(place) => place,
            // Passing those who wait is better than being refused while there is a Backend.
            Err(FailReason::ParkFull) => {
                let claim = self.view.load().shares.claim(carried, wait.met);
                return claim.map(Granted::Claim).ok_or(FailReason::ParkFull);
            }
            Err(reason) => return Err(reason),
        };
        loop {
            tokio::time::timeout_at(wait.deadline.into(), place.turn())
                .await
                .map_err(|_| FailReason::ParkTimeout)?;
            let view = self.view.load();
            check(view.state)?;
            if let Some(site) = &view.site {
                self.park.gap_ended();
                return Ok(Granted::Site(site.clone()));
            }
            if let Some(claim) = view.shares.claim(carried, wait.met) {
                self.park.gap_ended();
                return Ok(Granted::Claim(claim));
            }
        }
    }

    fn enter_queue(&self, wait: &Wait, now: Instant) -> Result<Place, FailReason> {
        let view = self.view.load();
        check(view.state)?;
        let gap = !view.shares.any_usable();
        let entry = self.park.enter(&view.park, wait.bytes, gap, now);
        if entry.first {
            // Nobody listens when the gateway ends.
            let _ = self.hints.send(Hint::Parked(self.key.clone()));
        }
        entry.place
    }

    /// Seconds after which a refused client may try again.
    pub(crate) fn retry_after(&self) -> u64 {
        let policy = self.view.load().park;
        let expected = self.park.expected_wait(&policy, Instant::now());
        expected.map_or(1, |wait| wait.as_secs_f64().ceil() as u64).max(1)
    }

    /// Leaves `backend`, which refused a connection, out of the choice until it accepts one.
    pub(crate) fn suspect(self: &Arc<Self>, backend: &Arc<Backend>, connect_time: Duration) {
        if !backend.set_suspect() {
            return;
        }
        let (app, backend) = (self.clone(), backend.clone());
        tokio::spawn(async move {
            let mut pace = TRIAL_PACE.0;
            while !backend.is_closed() {
                tokio::time::sleep(pace).await;
                if backend.accepts(connect_time).await {
                    break;
                }
                pace = (pace * 2).min(TRIAL_PACE.1);
            }
            backend.clear_suspect();
            if app.view.load().shares.any_usable() {
                app.park.backend_came();
            }
        });
    }
}

fn check(state: AppState) -> Result<(), FailReason> {
    match state {
        AppState::Running => Ok(()),
        AppState::Stopped => Err(FailReason::Stopped),
        AppState::Gone => Err(FailReason::Gone),
    }
}
