//! One Backend while the gateway knows it: its gate, its connections, its counters.
//!
//! Promises: lives on over route generations as long as all that is said of its Container is the
//! same; another takes its place when that changes, as its Release does by an update. A [`Claim`]
//! keeps the Backend from being drained until it is dropped, and the drop that leaves a closed
//! Backend empty is announced.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stead_core::ids::{ContainerId, Ordinal, ReleaseNo};
use stead_core::name::AppKey;
use stead_core::routes::{self, Protocol};
use tokio::sync::mpsc;

use crate::gate::Gate;
use crate::ledger::ReleaseCounters;
use crate::upstream::{Pool, Upstream, dial};

/// What the link should look at. Carries a key, never data: what is true may have changed
/// until somebody looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hint {
    Drained(ContainerId),
    Parked(AppKey),
}

/// Where hints go.
pub(crate) type Hints = mpsc::UnboundedSender<Hint>;

/// A Backend.
pub(crate) struct Backend {
    pub(crate) container: ContainerId,
    pub(crate) instance: Ordinal,
    pub(crate) release: ReleaseNo,
    pub(crate) protocol: Protocol,
    pub(crate) counters: Arc<ReleaseCounters>,
    pub(crate) pool: Pool,
    /// When it opened, if that was seen: it may have to start slowly.
    pub(crate) opened: Option<Instant>,
    addr: SocketAddr,
    mark: Option<u32>,
    gate: Gate,
    /// It refused a connection; [`crate::app::App::suspect`] is trying it.
    suspect: AtomicBool,
    hints: Hints,
}

impl Backend {
    pub(crate) fn new(
        spec: &routes::Backend,
        protocol: Protocol,
        counters: Arc<ReleaseCounters>,
        opened: Option<Instant>,
        hints: Hints,
    ) -> Self {
        Self {
            container: spec.container.clone(),
            instance: spec.instance,
            release: spec.release,
            protocol,
            counters,
            pool: Pool::default(),
            opened,
            addr: spec.addr,
            mark: spec.mark,
            gate: Gate::new(),
            suspect: AtomicBool::new(false),
            hints,
        }
    }

    /// Whether this is what `spec` describes, its state apart.
    pub(crate) fn is(&self, spec: &routes::Backend, protocol: Protocol) -> bool {
        (self.addr, self.mark, self.release, self.instance, self.protocol)
            == (spec.addr, spec.mark, spec.release, spec.instance, protocol)
    }

    /// Takes a claim, unless the Backend is draining.
    pub(crate) fn claim(self: &Arc<Self>) -> Option<Claim> {
        self.gate.enter().then(|| Claim(self.clone()))
    }

    /// Grants no more claims and closes idle connections.
    pub(crate) fn close(&self) {
        if self.gate.close() {
            self.announce_drained();
        }
        self.pool.clear();
    }

    pub(crate) fn reopen(&self) {
        self.gate.reopen();
    }

    pub(crate) fn is_drained(&self) -> bool {
        self.gate.is_drained()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.gate.is_closed()
    }

    pub(crate) fn claims(&self) -> u64 {
        self.gate.claims()
    }

    /// Whether it is worth asking for a claim.
    pub(crate) fn usable(&self) -> bool {
        !self.gate.is_closed() && !self.suspect.load(Ordering::Acquire)
    }

    /// Takes it out of the choice for having refused a connection. True: it was in.
    pub(crate) fn set_suspect(&self) -> bool {
        !self.suspect.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn clear_suspect(&self) {
        self.suspect.store(false, Ordering::Release);
    }

    /// A new connection.
    pub(crate) async fn connect(&self, time: Duration) -> io::Result<Upstream> {
        let stream = dial(self.addr, self.mark, time).await?;
        let upstream = match self.protocol {
            Protocol::Http1 => {
                Upstream::http1(stream, &self.pool.open).await.map_err(io::Error::other)
            }
            Protocol::H2c => Upstream::h2c(stream, &self.pool.open).await.map_err(io::Error::other),
        }?;
        self.pool.share(&upstream);
        if self.is_closed() {
            self.pool.clear(); // it closed in between, and could not see this one
        }
        Ok(upstream)
    }

    /// Whether it accepts connections.
    pub(crate) async fn accepts(&self, time: Duration) -> bool {
        dial(self.addr, self.mark, time).await.is_ok()
    }

    fn announce_drained(&self) {
        // Nobody listens when the gateway ends.
        let _ = self.hints.send(Hint::Drained(self.container.clone()));
    }
}

/// A request's or tunnel's hold on a Backend.
pub(crate) struct Claim(Arc<Backend>);

impl Claim {
    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }

    /// Keeps a connection for the next request, unless the Backend is draining.
    pub(crate) fn keep(&self, line: crate::upstream::Line) {
        if !self.0.is_closed() {
            self.0.pool.give(line, Instant::now());
            if self.0.is_closed() {
                self.0.pool.clear(); // it closed in between, and could not see this one
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.0.gate.leave() {
            self.0.announce_drained();
        }
    }
}
