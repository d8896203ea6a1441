//! What an engine asked of its gateway and told people, in one order.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use stead_core::engine::{Backend, Drained, Traffic};
use stead_core::event::{Event, Events, Fact};
use stead_core::fleet::Exit;
use stead_core::ids::ContainerId;
use stead_core::name::AppKey;

/// How long the last request of a Container takes while it is drained. An engine that does
/// not wait for the end of a drain stops the Container meanwhile.
const DRAIN: Duration = Duration::from_millis(40);

/// One thing the Witness saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A Container may get requests.
    Attached(ContainerId),
    /// A Container gets no new ones.
    Draining(ContainerId),
    /// A Container gets none any more.
    Detached(ContainerId),
    /// A Container ended.
    Exited(ContainerId, Exit),
}

/// A gateway that drains slowly and a listener for Events, in one.
#[derive(Debug, Default)]
pub struct Witness {
    seen: Mutex<Vec<Seen>>,
    events: Mutex<Vec<Event>>,
}

impl Witness {
    /// Everything so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().clone()
    }

    /// Every Event so far.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Containers that may have open requests: attached, and not drained since.
    pub fn open(&self) -> Vec<ContainerId> {
        let mut open: Vec<ContainerId> = Vec::new();
        for seen in self.lock().iter() {
            match seen {
                Seen::Attached(id) if !open.contains(id) => open.push(id.clone()),
                Seen::Detached(id) => open.retain(|other| other != id),
                _ => {}
            }
        }
        open
    }

    /// Whether anything was ever attached.
    pub fn attached_any(&self) -> bool {
        self.lock().iter().any(|seen| matches!(seen, Seen::Attached(_)))
    }

    /// A Container that ended because we wanted it while it may have had open requests.
    pub fn ended_while_open(&self) -> Option<ContainerId> {
        let mut open: Vec<ContainerId> = Vec::new();
        for seen in self.lock().iter() {
            match seen {
                Seen::Attached(id) => open.push(id.clone()),
                Seen::Detached(id) => open.retain(|other| other != id),
                Seen::Exited(id, exit) if exit.intended && open.contains(id) => {
                    return Some(id.clone());
                }
                Seen::Exited(..) | Seen::Draining(_) => {}
            }
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Traffic for Witness {
    async fn attach(&self, _app: &AppKey, backend: Backend) {
        self.lock().push(Seen::Attached(backend.container));
    }

    async fn detach(&self, _app: &AppKey, container: &ContainerId, drain: Duration) -> Drained {
        self.lock().push(Seen::Draining(container.clone()));
        tokio::time::sleep(DRAIN.min(drain)).await;
        self.lock().push(Seen::Detached(container.clone()));
        Drained { clean: DRAIN <= drain }
    }
}

impl Events for Witness {
    fn emit(&self, event: Event) {
        if let (Some(container), Fact::Exited { exit }) = (&event.container, &event.fact) {
            self.lock().push(Seen::Exited(container.clone(), *exit));
        }
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}
