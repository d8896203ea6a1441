//! The least surroundings an engine needs: a gateway without requests, and a list of Events.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use stead_core::engine::{Backend, Drained, Traffic};
use stead_core::event::{Event, Events};
use stead_core::ids::ContainerId;
use stead_core::name::AppKey;

/// A traffic layer without requests: each attach and detach is acknowledged at once.
#[derive(Debug, Default)]
pub struct OpenRoad {
    backends: Mutex<BTreeMap<ContainerId, Backend>>,
}

impl OpenRoad {
    /// What is attached now.
    pub fn backends(&self) -> Vec<Backend> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ContainerId, Backend>> {
        self.backends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Traffic for OpenRoad {
    async fn attach(&self, _app: &AppKey, backend: Backend) {
        self.lock().insert(backend.container.clone(), backend);
    }

    async fn detach(&self, _app: &AppKey, container: &ContainerId, _drain: Duration) -> Drained {
        self.lock().remove(container);
        Drained { clean: true }
    }
}

/// Events in the order they came.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Vec<Event>>);

impl Notes {
    /// All so far.
    pub fn all(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Events for Notes {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}
