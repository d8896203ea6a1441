//! The last pass over each App, for those who watch: progress streams, lists, metrics.
//! Nothing is decided from it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stead_core::app::App;
use stead_core::fleet::{Fleet, FleetSeen};
use stead_core::name::AppKey;
use tokio::sync::watch;

/// An App as a pass found it.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) app: App,
    pub(crate) fleet: Fleet,
    pub(crate) seen: FleetSeen,
    /// Why the Rollout is where it is.
    pub(crate) why: String,
}

type Place = watch::Sender<Option<Arc<Snapshot>>>;

/// The board.
#[derive(Default)]
pub(crate) struct Board {
    places: Mutex<BTreeMap<AppKey, Place>>,
}

impl Board {
    /// Puts up what a pass found.
    pub(crate) fn put(&self, snapshot: Snapshot) {
        let key = snapshot.app.key.clone();
        self.lock().entry(key).or_default().send_replace(Some(Arc::new(snapshot)));
    }

    /// Takes an App down that is gone. Who watches it sees the end of the channel.
    pub(crate) fn remove(&self, app: &AppKey) {
        self.lock().remove(app);
    }

    /// Watches an App; it need not be there yet.
    pub(crate) fn watch(&self, app: &AppKey) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.lock().entry(app.clone()).or_default().subscribe()
    }

    /// The last pass over an App; `None` before the first.
    pub(crate) fn last(&self, app: &AppKey) -> Option<Arc<Snapshot>> {
        self.lock().get(app)?.borrow().clone()
    }

    /// Everything that is up.
    pub(crate) fn all(&self) -> Vec<Arc<Snapshot>> {
        self.lock().values().filter_map(|place| place.borrow().clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<AppKey, Place>> {
        // Each change is one call on the map.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
