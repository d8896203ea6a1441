//! The route table in force.
//!
//! Promises: readers never wait; a generation is in force when [`Routes::apply`] returns,
//! and from then on no drained Backend grants a claim; Apps and Backends live on over
//! generations, with their queues, gates and connections.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use stead_core::ids::{ContainerId, Generation};
use stead_core::name::AppKey;
use stead_core::routes::{
    AppRoutes, BackendState, HostIndex, RouteChange, RouteTable, StaleGeneration,
};
use tokio::sync::{Notify, watch};

use crate::app::{App, AppState, View};
use crate::backend::{Backend, Hints};
use crate::split::Shares;

/// What a request is routed by.
#[derive(Default)]
pub(crate) struct Table {
    /// A route table was received or loaded.
    pub(crate) loaded: bool,
    pub(crate) hosts: HostIndex<Arc<App>>,
}

/// The route table in force, and everything that outlives a generation.
pub(crate) struct Routes {
    table: ArcSwap<Table>,
    world: Mutex<World>,
    /// Told after each change.
    pub(crate) changed: Notify,
    /// Whether there is a table.
    loaded: watch::Sender<bool>,
    hints: Hints,
}

#[derive(Default)]
struct World {
    routes: RouteTable,
    loaded: bool,
    /// Apps that are routed, and those that are gone while requests of theirs are not.
    apps: BTreeMap<AppKey, Arc<App>>,
    backends: HashMap<ContainerId, Arc<Backend>>,
}

impl Routes {
    pub(crate) fn new(hints: Hints) -> Self {
        Self {
            table: ArcSwap::default(),
            world: Mutex::default(),
            changed: Notify::new(),
            loaded: watch::Sender::new(false),
            hints,
        }
    }

    /// What requests are routed by now.
    pub(crate) fn table(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Waits until there is a table.
    pub(crate) async fn loaded(&self) {
        // Fails only without a sender, which is ours.
        let _ = self.loaded.subscribe().wait_for(|loaded| *loaded).await;
    }

    /// The generation in force.
    pub(crate) fn generation(&self) -> Generation {
        self.world().routes.generation
    }

    /// The routes in force, `None` when there were none yet.
    pub(crate) fn snapshot(&self) -> Option<RouteTable> {
        let world = self.world();
        world.loaded.then(|| world.routes.clone())
    }

    /// Puts `change` in force.
    pub(crate) fn apply(&self, change: RouteChange) -> Result<Generation, StaleGeneration> {
        let mut world = self.world();
        let one = match &change {
            RouteChange::Table(_) => None,
            RouteChange::Put { app, .. } => Some(app.clone()),
        };
        let hosts_before = one.as_ref().map(|key| world.hosts(key));
        world.routes.apply(change)?;
        world.loaded = true;
        let keys = match &one {
            Some(key) => vec![key.clone()],
            None => world.routes.apps.keys().chain(world.apps.keys()).cloned().collect(),
        };
        for key in &keys {
            world.renew(key, &self.hints);
        }
        if one.is_none() || hosts_before != one.as_ref().map(|key| world.hosts(key)) {
            let hosts = HostIndex::build(&world.routes, |key| world.apps[key].clone());
            self.table.store(Arc::new(Table { loaded: true, hosts }));
        }
        world.forget();
        let generation = world.routes.generation;
        drop(world);
        self.loaded.send_if_modified(|loaded| !std::mem::replace(loaded, true));
        self.changed.notify_one();
        Ok(generation)
    }

    /// The generation in force, if `container` is closed and empty in it.
    pub(crate) fn confirm_drained(&self, container: &ContainerId) -> Option<Generation> {
        let world = self.world();
        let drained = world.backends.get(container).is_none_or(|backend| backend.is_drained());
        drained.then_some(world.routes.generation)
    }

    /// Every Backend that is closed and empty, with the generation in force.
    pub(crate) fn drained(&self) -> (Generation, Vec<ContainerId>) {
        let world = self.world();
        let drained = world.backends.values().filter(|backend| backend.is_drained());
        (world.routes.generation, drained.map(|backend| backend.container.clone()).collect())
    }

    /// The Apps with requests, or that had some.
    pub(crate) fn apps(&self) -> Vec<Arc<App>> {
        self.world().apps.values().cloned().collect()
    }

    /// Open connections to Backends, by App.
    pub(crate) fn connections(&self) -> BTreeMap<AppKey, usize> {
        use std::sync::atomic::Ordering::Relaxed;
        let world = self.world();
        let open = |routes: &AppRoutes| {
            let backends = routes.backends.iter().filter_map(|b| world.backends.get(&b.container));
            backends.map(|backend| backend.pool.open.load(Relaxed)).sum()
        };
        world.routes.apps.iter().map(|(key, routes)| (key.clone(), open(routes))).collect()
    }

    /// Closes connections that were idle for too long, and forgets what is over.
    pub(crate) fn tidy(&self, now: Instant) {
        let mut world = self.world();
        for backend in world.backends.values() {
            backend.pool.expire(now);
        }
        world.forget();
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    fn hosts(&self, app: &AppKey) -> Option<Vec<stead_core::routes::HostRule>> {
        self.routes.apps.get(app).map(|routes| routes.hosts.clone())
    }

    /// Brings one App in line with the routes.
    fn renew(&mut self, key: &AppKey, hints: &Hints) {
        let new = || Arc::new(App::new(key.clone(), hints.clone()));
        let app = self.apps.entry(key.clone()).or_insert_with(new).clone();
        let Some(routes) = self.routes.apps.get(key) else {
            let gone = app.set_view(View { state: AppState::Gone, ..View::default() }, Vec::new());
            gone.iter().for_each(|backend| backend.close());
            return;
        };
        let (mut open, mut closed) = (Vec::new(), Vec::new());
        for spec in &routes.backends {
            let known = self.backends.get(&spec.container);
            let backend = match known {
                Some(known) if known.is(spec, routes.protocol) => known.clone(),
                _ => {
                    let counters = app.counters.release(spec.release);
                    let backend =
                        Arc::new(Backend::new(spec, routes.protocol, counters, hints.clone()));
                    // Another Backend under the same id is closed below, as one that is gone.
                    self.backends.insert(spec.container.clone(), backend.clone());
                    backend
                }
            };
            match spec.state {
                BackendState::Open => {
                    backend.reopen();
                    open.push(backend);
                }
                BackendState::Draining => closed.push(backend),
            }
        }
        let view = View {
            shares: Shares::new(&routes.split, open.clone()),
            park: routes.park,
            state: if routes.stopped { AppState::Stopped } else { AppState::Running },
        };
        // First the new way, then the old one closed: who is refused finds the new one.
        let known = open.into_iter().chain(closed.iter().cloned()).collect();
        let gone = app.set_view(view, known);
        closed.iter().chain(&gone).for_each(|backend| backend.close());
    }

    /// Forgets Backends and Apps that are neither routed nor in use.
    fn forget(&mut self) {
        let Self { routes, apps, backends, .. } = self;
        apps.retain(|key, app| routes.apps.contains_key(key) || app.in_flight() > 0);
        // A routed Backend is held by its App too, one in use by its claims.
        backends.retain(|_, backend| !backend.is_drained() || Arc::strong_count(backend) > 1);
    }
}
