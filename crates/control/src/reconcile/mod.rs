//! The reconciler: brings what runs to what is wanted, App by App.
//!
//! # Expected flow
//! A wake-up names an App: a commit to the store, a hint of the engine, figures of a Release
//! that is tried out, a moment the last pass asked for, or the scan each [`SCAN`]. The App's loop then makes a [`pass`]: it loads
//! everything again and does what follows from it.
//!
//! # Guarantees
//! - One pass per App at a time; a wake-up during a pass causes another one after it.
//! - The same code serves a new change, recovery after a crash, and the scan.
//! - An App whose pass fails is tried again with growing pauses and stops no other.
//!
//! # Assumptions
//! - One reconciler per store. Commits of others are welcome at any time.
//!
//! # Caveats
//! - An App that the engine holds and the store does not know is left alone and reported: a
//!   lost store must not cost the workloads too.

pub(crate) mod board;
mod pass;
mod site;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use stead_core::app::App;
use stead_core::engine::Engine;
use stead_core::event::{Event, Events, Fact};
use stead_core::fleet::{ContainerState, FleetSeen, Health};
use stead_core::name::AppKey;
use stead_core::time::Time;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, oneshot};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::Instant;

use crate::clock;
use crate::events::EventLog;
use crate::figures::Figures;
use crate::ledger::Ledgers;
use crate::store::{Kind, Store, StoreError};
use crate::traffic::Publisher;
use board::Board;
use pass::{Memory, Next};
pub(crate) use site::Sites;

/// Every App is looked at this often, whatever wake-ups were lost.
pub(crate) const SCAN: Duration = Duration::from_secs(30);
/// Longest pause between attempts at an App whose pass fails.
const BACKOFF_CAP: Duration = Duration::from_secs(30);
/// Shortest pause after a pass that failed, whatever wakes the loop.
const RETRY_FLOOR: Duration = Duration::from_millis(50);
/// How long a new `serve` waits for the engine to attach what is ready before it publishes.
const HOLD_CAP: Duration = Duration::from_secs(5);

/// What the reconciler works with.
pub(crate) struct Reconciler {
    pub(crate) store: Arc<Store>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) ledgers: Arc<Ledgers>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) sites: Sites,
    pub(crate) events: Arc<EventLog>,
    pub(crate) board: Arc<Board>,
    /// Broken invariants seen since the start.
    pub(crate) violations: AtomicU64,
    /// When this `serve` began.
    pub(crate) began: Time,
    /// Fires when a Rollout is through, and when an App is gone.
    pub(crate) settled: Notify,
}

impl Reconciler {
    /// Runs until dropped. Publishing begins once every App was passed over and what is
    /// ready is attached again.
    pub(crate) async fn run(self: Arc<Self>) {
        // Before the first scan, so that nothing falls between the two.
        let mut changes = self.store.watch();
        let mut hints = self.engine.hints();
        let mut figures = self.figures.wakes();
        let mut sites = self.sites.wakes();
        let mut loops = Loops::default();
        let first = self.scan(&mut loops);
        let mut release = std::pin::pin!(self.release_when_settled(first));
        let mut held = true;
        self.report_strangers().await;
        let mut scan = tokio::time::interval(SCAN);
        scan.tick().await;
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Ok(change) if change.kind == Kind::App => {
                        if let Ok(key) = change.key.parse() {
                            self.wake(&mut loops, key);
                        }
                    }
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => drop(self.scan(&mut loops)),
                    Err(RecvError::Closed) => return,
                },
                Some(key) = hints.next() => {
                    // What the store does not know is nobody's wish.
                    if let Some(wake) = loops.wakes.get(&key) {
                        wake.notify_one();
                    }
                }
                Some(key) = sites.recv() => {
                    if let Some(wake) = loops.wakes.get(&key) {
                        wake.notify_one();
                    }
                }
                Some(key) = figures.recv() => {
                    if let Some(wake) = loops.wakes.get(&key) {
                        wake.notify_one();
                    }
                }
                Some(ended) = loops.tasks.join_next_with_id() => self.ended(&mut loops, ended),
                _ = scan.tick() => drop(self.scan(&mut loops)),
                () = &mut release, if held => held = false,
            }
        }
    }

    /// Wakes every App of the store. Gives a signal per App that was not known before, which
    /// fires after its first pass.
    fn scan(self: &Arc<Self>, loops: &mut Loops) -> Vec<oneshot::Receiver<()>> {
        let keys = match self.store.keys(Kind::App, "") {
            Ok(keys) => keys,
            Err(error) => {
                tracing::error!(error = ?error, "apps cannot be listed");
                return Vec::new();
            }
        };
        keys.into_iter()
            .filter_map(|key| key.parse().ok())
            .filter_map(|key| self.wake(loops, key))
            .collect()
    }

    fn wake(self: &Arc<Self>, loops: &mut Loops, key: AppKey) -> Option<oneshot::Receiver<()>> {
        if let Some(wake) = loops.wakes.get(&key) {
            wake.notify_one();
            return None;
        }
        let (passed, first) = oneshot::channel();
        let wake = Arc::new(Notify::new());
        loops.wakes.insert(key.clone(), Arc::clone(&wake));
        let task = loops.tasks.spawn(Arc::clone(self).tend(key.clone(), wake, passed));
        loops.keys.insert(task.id(), key);
        Some(first)
    }

    fn ended(self: &Arc<Self>, loops: &mut Loops, ended: Result<(task::Id, ()), JoinError>) {
        let (id, well) = match ended {
            Ok((id, ())) => (id, true),
            Err(error) => {
                tracing::error!(%error, "an app's loop ended by a panic; the next scan begins it anew");
                (error.id(), false)
            }
        };
        let Some(key) = loops.keys.remove(&id) else { return };
        loops.wakes.remove(&key);
        // It may have been made again since its loop found it gone.
        if well && matches!(self.store.get::<App>(&key.to_string()), Ok(Some(_))) {
            self.wake(loops, key);
        }
    }

    /// One App's loop, until the App is gone.
    async fn tend(self: Arc<Self>, key: AppKey, wake: Arc<Notify>, passed: oneshot::Sender<()>) {
        let mut memory = Memory::default();
        let mut passed = Some(passed);
        let mut failures = 0u32;
        loop {
            let mut floor = Duration::ZERO;
            let pause = match self.pass(&key, &mut memory).await {
                Ok(Next::Gone) => return,
                Ok(Next::At(at)) => {
                    failures = 0;
                    at.map_or(SCAN, |at| at.since(clock::now()).duration())
                }
                Err(error) => {
                    failures += 1;
                    // What woke it may be the failure itself.
                    floor = RETRY_FLOOR;
                    let pause = Duration::from_millis(125) * (1 << failures.min(8));
                    tracing::warn!(app = %key, %error, failures, "pass failed; it is tried again");
                    if failures == 1 {
                        self.note(&key, Fact::Trouble { error: error.into() });
                    }
                    pause.min(BACKOFF_CAP)
                }
            };
            // The first pass has been made, also when it failed.
            if let Some(passed) = passed.take() {
                let _ = passed.send(());
            }
            tokio::time::sleep(floor).await;
            let _ = tokio::time::timeout(pause, wake.notified()).await;
        }
    }

    /// Releases the publisher once every App was passed over and everything ready is
    /// attached again, or after [`HOLD_CAP`].
    async fn release_when_settled(&self, first: Vec<oneshot::Receiver<()>>) {
        let settled = async {
            for passed in first {
                let _ = passed.await;
            }
            self.publisher
                .attached_until(|holds| {
                    self.board.all().iter().all(|snapshot| {
                        ready(&snapshot.seen).all(|container| holds(&snapshot.app.key, container))
                    })
                })
                .await;
        };
        let begun = Instant::now();
        if tokio::time::timeout(HOLD_CAP, settled).await.is_err() {
            tracing::warn!("not everything that is ready was attached in time; publishing begins");
        }
        tracing::debug!(took = ?begun.elapsed(), "publishing begins");
        self.publisher.release();
    }

    async fn report_strangers(&self) {
        let held = match self.engine.apps().await {
            Ok(held) => held,
            Err(error) => {
                tracing::error!(%error, "engine cannot say what it holds");
                return;
            }
        };
        for key in held {
            if matches!(self.store.get::<App>(&key.to_string()), Ok(None)) {
                tracing::error!(app = %key, "engine holds an app that the store does not know; it is left alone");
            }
        }
    }

    /// Notes a fact about a whole App.
    pub(super) fn note(&self, app: &AppKey, fact: Fact) {
        note(&self.events, app, fact);
    }

    /// Counts broken invariants.
    pub(crate) fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }
}

/// Notes a fact about a whole App.
pub(crate) fn note(events: &EventLog, app: &AppKey, fact: Fact) {
    events.emit(Event {
        at: clock::now(),
        app: app.clone(),
        instance: None,
        container: None,
        revision: None,
        fact,
    });
}

/// The loops of the Apps.
#[derive(Default)]
struct Loops {
    wakes: BTreeMap<AppKey, Arc<Notify>>,
    tasks: JoinSet<()>,
    /// Whose loop a task is: a panic does not say.
    keys: HashMap<task::Id, AppKey>,
}

/// Containers that could take requests.
fn ready(seen: &FleetSeen) -> impl Iterator<Item = &stead_core::ids::ContainerId> {
    seen.instances
        .values()
        .flat_map(|instance| &instance.containers)
        .filter(|c| matches!(c.state, ContainerState::Running { health: Health::Ready, .. }))
        .map(|container| &container.id)
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Engine(#[from] stead_core::engine::EngineError),
}

impl From<PassError> for stead_core::error::UserError {
    fn from(error: PassError) -> Self {
        use stead_core::engine::EngineError;
        use stead_core::error::{Code, UserError};
        match error {
            PassError::Store(error) => error.into(),
            PassError::Engine(EngineError::User(error)) => error,
            PassError::Engine(error @ EngineError::Stale { .. }) => UserError::new(
                Code::EngineFailed,
                error.to_string(),
                "it is tried again with a newer generation",
            ),
        }
    }
}
