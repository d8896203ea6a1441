//! The publisher: owns the route table, gives each change a generation, and knows what every
//! gateway has acknowledged and drained.
//!
//! # Guarantees
//! - Changes of the table form one ordered log; a generation is never used twice, also not
//!   by an earlier `serve` (the upper half of a generation is the boot's epoch).
//! - [`Traffic::attach`] returns once every connected gateway acknowledged the change. Where
//!   none is connected the first to come is awaited, as long as one is missed.
//! - Once [`Traffic::detach`] has returned, no connected gateway sends the Container a new
//!   request, and none has one open unless the deadline passed.
//! - A new publisher is *held*: it publishes nothing until [`Publisher::release`], so that a
//!   `serve` that was started again never shows an emptier table than the gateway has.
//!
//! # Caveats
//! - A gateway that does not acknowledge within [`ACK_PATIENCE`] is cut off its connection,
//!   so that one stuck process does not stop every change. It comes back by connecting.
//! - Of a gateway that lost its connection nothing is known. Its return is awaited for
//!   [`GONE_PATIENCE`] before a Container is given up for drained, unless its process ended.

mod link;
mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use stead_core::engine::{Backend, Drained, Traffic};
use stead_core::ids::{ContainerId, Generation};
use stead_core::name::AppKey;
use stead_core::rollout::Routing;
use stead_core::routes::ToGateway;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use table::Table;

/// How long a connected gateway may take to acknowledge a change.
pub(crate) const ACK_PATIENCE: Duration = Duration::from_secs(10);
/// How long the return of a gateway is awaited that lost its connection, and at the start of
/// `serve` that of any.
pub(crate) const GONE_PATIENCE: Duration = Duration::from_secs(2);
/// How long gateways may take to report when they are asked.
const REPORT_PATIENCE: Duration = Duration::from_millis(200);

/// What gateways tell, apart from acknowledgements.
pub(crate) trait GatewayNews: Send + Sync {
    /// Counters.
    fn report(&self, pid: u32, report: stead_core::routes::Report);
    /// Requests wait for an App that has no Backend.
    fn parked(&self, app: &AppKey);
    /// A gateway has said all it will say.
    fn left(&self);
}

/// One connection of a gateway.
struct Gateway {
    pid: u32,
    version: String,
    /// Lines to it. Dropped to cut it off.
    lines: mpsc::UnboundedSender<Arc<str>>,
    /// Whether it was given the table of this `serve`.
    greeted: bool,
    acked: Generation,
    /// The last question for a report that it answered.
    told: u64,
    /// Containers it reported drained, with the generation in which it saw that.
    drained: BTreeMap<ContainerId, Generation>,
}

struct State {
    table: Table,
    held: bool,
    gateways: BTreeMap<u64, Gateway>,
    next_connection: u64,
    /// The last question for reports.
    asked: u64,
    /// Since when a gateway is missed: by its pid, or any at all at the start.
    missed: Vec<(Option<u32>, Instant)>,
}

/// The publisher.
pub(crate) struct Publisher {
    state: Mutex<State>,
    /// Something happened that a waiting attach or detach may wait for.
    moved: Notify,
    news: Arc<dyn GatewayNews>,
}

impl Publisher {
    /// A publisher for the boot `epoch`, held.
    pub(crate) fn new(epoch: u64, news: Arc<dyn GatewayNews>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                table: Table::starting_at(Generation(epoch << 32)),
                held: true,
                gateways: BTreeMap::new(),
                next_connection: 0,
                asked: 0,
                missed: vec![(None, Instant::now())],
            }),
            moved: Notify::new(),
            news,
        })
    }

    /// Awaits the return of gateways that an earlier `serve` knew, by their pids: one that hands
    /// over has connections of its own, and the first to return does not speak for it.
    pub(crate) fn expect(&self, pids: impl IntoIterator<Item = u32>) {
        let since = Instant::now();
        self.lock().missed.extend(pids.into_iter().map(|pid| (Some(pid), since)));
    }

    /// Begins to publish.
    pub(crate) fn release(&self) {
        let mut state = self.lock();
        if std::mem::take(&mut state.held) {
            state.flush();
            state.greet_all();
        }
        drop(state);
        self.moved.notify_waiters();
    }

    /// Sets what the gateways shall do with an App's requests. Does not wait.
    pub(crate) fn route(&self, app: &AppKey, routing: Option<Routing>) {
        let mut state = self.lock();
        if state.table.route(app, routing) {
            state.flush();
        }
    }

    /// Versions of the gateways that are connected.
    pub(crate) fn versions(&self) -> Vec<String> {
        self.lock().gateways.values().map(|gateway| gateway.version.clone()).collect()
    }

    /// Asks every gateway for a report now. When this returns, what those have counted is known
    /// that answered within [`REPORT_PATIENCE`].
    pub(crate) async fn ask_for_reports(&self) {
        let (asked, of) = {
            let mut state = self.lock();
            state.asked += 1;
            let question = line(&ToGateway::Tell { asked: state.asked });
            let greeted = state.gateways.iter().filter(|(_, gateway)| gateway.greeted);
            let mut of = Vec::new();
            for (connection, gateway) in greeted {
                // A connection that is ending is noticed by its reader.
                let _ = gateway.lines.send(question.clone());
                of.push(*connection);
            }
            (state.asked, of)
        };
        let told = self.until(|state| {
            let mut asked_and_here = of.iter().filter_map(|one| state.gateways.get(one));
            asked_and_here.all(|gateway| gateway.told >= asked)
        });
        // Late, or too old to know the question: its report of each second must do.
        let _ = tokio::time::timeout(REPORT_PATIENCE, told).await;
    }

    /// The generation of the table.
    pub(crate) fn generation(&self) -> Generation {
        self.lock().table.generation()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each critical section leaves the state whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done` is true of what is attached. It is asked again whenever something
    /// moved here, and after each [`Publisher::nudge`].
    pub(crate) async fn attached_until(
        &self,
        done: impl Fn(&dyn Fn(&AppKey, &ContainerId) -> bool) -> bool,
    ) {
        self.until(|state| done(&|app, container| state.table.holds(app, container))).await;
    }

    /// What a waiting question also looks at has changed.
    pub(crate) fn nudge(&self) {
        self.moved.notify_waiters();
    }

    /// Waits until `done` is true, looking again whenever something moved.
    async fn until(&self, mut done: impl FnMut(&State) -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Registered before the look, so that nothing is missed in between.
            moved.as_mut().enable();
            if done(&self.lock()) {
                return;
            }
            moved.await;
        }
    }

    /// Publishes what is pending of `app` and waits for the acknowledgements.
    async fn acknowledged(&self, app: &AppKey) {
        // Others that change the same App right now go out in the same line.
        tokio::task::yield_now().await;
        self.until(|state| !state.held || state.gateways.is_empty()).await;
        let generation = {
            let mut state = self.lock();
            state.flush();
            state.table.published(app)
        };
        let acked = self.until(|state| state.acked(generation));
        if tokio::time::timeout(ACK_PATIENCE, acked).await.is_err() {
            let mut state = self.lock();
            let State { gateways, missed, .. } = &mut *state;
            gateways.retain(|_, Gateway { pid, acked, .. }| {
                let acked = *acked >= generation;
                if !acked {
                    tracing::error!(pid, %generation, "gateway does not acknowledge; it is cut off");
                    missed.push((Some(*pid), Instant::now()));
                }
                acked
            });
            drop(state);
            self.moved.notify_waiters();
        }
    }

    /// Publishes what is pending of `app` and waits until every gateway that may send requests
    /// has acknowledged it, those included that had to connect again for it.
    pub(crate) async fn agreed(&self, app: &AppKey) {
        self.acknowledged(app).await;
        if !self.lock().missed.is_empty() {
            self.everyone_is_here().await;
            self.acknowledged(app).await;
        }
    }

    /// Waits until every gateway that may still send requests is connected or given up.
    async fn everyone_is_here(&self) {
        loop {
            let until = {
                let mut state = self.lock();
                let now = Instant::now();
                state.missed.retain(|(pid, since)| {
                    *since + GONE_PATIENCE > now && pid.is_none_or(process_lives)
                });
                state.missed.iter().map(|(_, since)| *since + GONE_PATIENCE).max()
            };
            let Some(until) = until else { return };
            let back = self.until(|state| state.missed.is_empty());
            let _ = tokio::time::timeout_at(until, back).await;
        }
    }
}

impl State {
    /// Gives pending changes their generations and sends them.
    fn flush(&mut self) {
        if self.held {
            return;
        }
        for change in self.table.changes() {
            let line = line(&change);
            for gateway in self.gateways.values().filter(|gateway| gateway.greeted) {
                // A connection that is ending is noticed by its reader.
                let _ = gateway.lines.send(line.clone());
            }
        }
    }

    /// A gateway has applied a generation that this `serve` does not know of: it goes on
    /// above that, and every gateway gets the table anew.
    fn overtake(&mut self, generation: Generation) {
        self.table.raise(generation.next());
        self.gateways.values_mut().for_each(|gateway| gateway.greeted = false);
    }

    /// Sends the whole table to every gateway that has not got it yet.
    fn greet_all(&mut self) {
        let mut table = None;
        for gateway in self.gateways.values_mut().filter(|gateway| !gateway.greeted) {
            let table = table.get_or_insert_with(|| line(&self.table.full()));
            gateway.greeted = true;
            let _ = gateway.lines.send(table.clone());
        }
    }

    fn acked(&self, generation: Generation) -> bool {
        self.gateways.values().all(|gateway| gateway.acked >= generation)
    }

    /// Whether no gateway has a request of a Container open, or it is not routed any more.
    fn drained(&self, app: &AppKey, container: &ContainerId) -> bool {
        let since = self.table.draining_since(app, container);
        let seen = |gateway: &Gateway| gateway.drained.get(container).copied();
        !self.table.holds(app, container)
            || self.gateways.values().all(|gateway| seen(gateway).is_some_and(|at| at >= since))
    }
}

fn line(message: &ToGateway) -> Arc<str> {
    let mut text = serde_json::to_string(message).expect("routes are plain data");
    text.push('\n');
    text.into()
}

/// Whether a process runs. One that ended and was not collected by its parent does not.
pub(crate) fn process_lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state stands behind the program's name, which may hold anything but is in brackets.
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

#[async_trait]
impl Traffic for Publisher {
    async fn attach(&self, app: &AppKey, backend: Backend) {
        self.lock().table.attach(app, backend);
        self.moved.notify_waiters();
        if self.lock().gateways.is_empty() {
            // Nobody would acknowledge, and a gateway that has yet to connect serves requests by then.
            self.everyone_is_here().await;
        }
        self.acknowledged(app).await;
    }

    async fn detach(&self, app: &AppKey, container: &ContainerId, drain: Duration) -> Drained {
        let deadline = Instant::now() + drain;
        if !self.lock().table.drain(app, container) {
            // Nothing was ever sent to it by this `serve`. An earlier one may have: what is
            // not in the table published since is known to no gateway once that is
            // acknowledged.
            self.agreed(app).await;
            return Drained { clean: true };
        }
        self.agreed(app).await;
        let drained = async {
            loop {
                // Of a gateway that is missed nothing is known, also when it is the only one.
                let mut drained = false;
                self.until(|state| {
                    drained = state.missed.is_empty() && state.drained(app, container);
                    drained || !state.missed.is_empty()
                })
                .await;
                if drained {
                    return;
                }
                self.everyone_is_here().await;
            }
        };
        let clean = tokio::time::timeout_at(deadline, drained).await.is_ok();
        let mut state = self.lock();
        state.table.gone(app, container);
        state.flush();
        for gateway in state.gateways.values_mut() {
            gateway.drained.remove(container);
        }
        Drained { clean }
    }
}

#[cfg(test)]
impl Publisher {
    /// As long after the start, when no gateway has ever come.
    pub(crate) fn miss_nobody(&self) {
        self.lock().missed.clear();
    }
}

#[cfg(test)]
mod tests;
