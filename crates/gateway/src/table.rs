//! The route table in force.
//!
//! Promises: readers never wait; a generation is in force when [`Routes::apply`] returns,
//! and from then on no drained Backend grants a claim; Apps and Backends live on over
//! generations, with their queues, gates and connections.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use stead_core::ids::{ContainerId, Generation};
use stead_core::name::AppKey;
use stead_core::routes::{
    AppRoutes, BackendState, HostIndex, RouteChange, RouteTable, StaleGeneration,
};
use tokio::sync::{Notify, watch};

use crate::app::{App, AppState, View};
use crate::backend::{Backend, Hints};
use crate::site::{Library, Prepared, Site};
use crate::split::Shares;

/// Containers that are remembered when they are gone.
const VETERANS: usize = 1_024;

/// Between two reports at least, whatever is asked for.
const SHORTEST_REPORT: Duration = Duration::from_millis(50);

/// What a request is routed by.
#[derive(Default)]
struct Table {
    /// A route table was received or loaded.
    loaded: bool,
    hosts: HostIndex<Arc<App>>,
}

/// Why a request belongs to no App.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unrouted {
    /// No App has its host and path.
    NoApp,
    /// No route table was received or loaded yet.
    NoTable,
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
    library: Library,
}

#[derive(Default)]
struct World {
    routes: RouteTable,
    loaded: bool,
    /// Apps that are routed, and those that are gone while requests of theirs are not.
    apps: BTreeMap<AppKey, Arc<App>>,
    /// What each Container is, and what it was as long as requests of that time have not ended:
    /// it is drained when all of these are.
    backends: HashMap<ContainerId, Vec<Arc<Backend>>>,
    /// Containers that were open and are forgotten, the last of them: one that comes back, as
    /// after it was frozen, has been warm.
    veterans: VecDeque<ContainerId>,
}

impl Routes {
    pub(crate) fn new(hints: Hints) -> Self {
        Self {
            table: ArcSwap::default(),
            world: Mutex::default(),
            changed: Notify::new(),
            loaded: watch::Sender::new(false),
            hints,
            library: Library::new(),
        }
    }

    /// The App that a request for `path` at `host` belongs to now.
    pub(crate) fn find(&self, host: &str, path: &str) -> Result<Arc<App>, Unrouted> {
        let table = self.table.load();
        let unrouted = if table.loaded { Unrouted::NoApp } else { Unrouted::NoTable };
        table.hosts.find(host, path).cloned().ok_or(unrouted)
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

    /// Reads what `change` needs of the disk, beside the event loop. To be held until it is in
    /// force.
    pub(crate) async fn prepare(&self, change: &RouteChange) -> Prepared {
        self.library.prepare(change).await
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
        let first = !std::mem::replace(&mut world.loaded, true);
        let keys = match &one {
            Some(key) => vec![key.clone()],
            None => world.routes.apps.keys().chain(world.apps.keys()).cloned().collect(),
        };
        for key in &keys {
            world.renew(key, first, &self.hints, &self.library);
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
        let drained = world.backends.get(container).is_none_or(|known| all_drained(known));
        drained.then_some(world.routes.generation)
    }

    /// Every Container that is closed and empty, with the generation in force.
    pub(crate) fn drained(&self) -> (Generation, Vec<ContainerId>) {
        let world = self.world();
        let drained = world.backends.iter().filter(|(_, known)| all_drained(known));
        (world.routes.generation, drained.map(|(container, _)| container.clone()).collect())
    }

    /// The Apps with requests, or that had some.
    pub(crate) fn apps(&self) -> Vec<Arc<App>> {
        self.world().apps.values().cloned().collect()
    }

    /// How often the Apps are reported that are to be reported more often than all.
    pub(crate) fn report_every(&self) -> Option<Duration> {
        let shortest =
            self.world().routes.apps.values().filter_map(|routes| routes.report_ms).min();
        shortest.map(|millis| Duration::from_millis(millis).max(SHORTEST_REPORT))
    }

    /// Open connections to Backends, by App.
    pub(crate) fn connections(&self) -> BTreeMap<AppKey, usize> {
        use std::sync::atomic::Ordering::Relaxed;
        let world = self.world();
        let open = |routes: &AppRoutes| {
            let known = routes.backends.iter().filter_map(|b| world.backends.get(&b.container));
            known.flatten().map(|backend| backend.pool.open.load(Relaxed)).sum()
        };
        world.routes.apps.iter().map(|(key, routes)| (key.clone(), open(routes))).collect()
    }

    /// Closes connections that were idle for too long, and forgets what is over.
    pub(crate) fn tidy(&self, now: Instant) {
        let mut world = self.world();
        for backend in world.backends.values().flatten() {
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

    /// Brings one App in line with the routes. Those of the `first` table were there before us.
    fn renew(&mut self, key: &AppKey, first: bool, hints: &Hints, library: &Library) {
        let new = || Arc::new(App::new(key.clone(), hints.clone()));
        let app = self.apps.entry(key.clone()).or_insert_with(new).clone();
        let Some(routes) = self.routes.apps.get(key) else {
            let gone = app.set_view(View { state: AppState::Gone, ..View::default() }, Vec::new());
            gone.iter().for_each(|backend| backend.close());
            return;
        };
        let (mut open, mut closed) = (Vec::new(), Vec::new());
        for spec in &routes.backends {
            let known = self.backends.entry(spec.container.clone()).or_default();
            let backend = match known.iter().find(|known| known.is(spec, routes.protocol)) {
                Some(same) => same.clone(),
                None => {
                    let counters = app.counters.release(spec.release);
                    let warm =
                        first || !known.is_empty() || self.veterans.contains(&spec.container);
                    let opened = (!warm).then(Instant::now);
                    let backend =
                        Backend::new(spec, routes.protocol, counters, opened, hints.clone());
                    let backend = Arc::new(backend);
                    // What the Container was until now is closed below, as one that is gone.
                    known.push(backend.clone());
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
        let slow_start = Duration::from_millis(routes.slow_start_ms);
        let mut prefixes: Vec<Box<str>> =
            routes.hosts.iter().map(|rule| rule.path_prefix.trim_end_matches('/').into()).collect();
        prefixes.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
        let view = View {
            shares: Shares::new(&routes.split, slow_start, open.clone()),
            site: routes
                .site
                .as_ref()
                .map(|site| Arc::new(Site::new(site, library, &app.counters))),
            prefixes,
            park: routes.park,
            watched: routes.report_ms.is_some(),
            state: if routes.stopped { AppState::Stopped } else { AppState::Running },
        };
        // First the new way, then the old one closed: who is refused finds the new one.
        let known = open.into_iter().chain(closed.iter().cloned()).collect();
        let gone = app.set_view(view, known);
        closed.iter().chain(&gone).for_each(|backend| backend.close());
    }

    /// Forgets Backends and Apps that are neither routed nor in use.
    fn forget(&mut self) {
        let Self { routes, apps, backends, veterans, .. } = self;
        apps.retain(|key, app| routes.apps.contains_key(key) || app.in_flight() > 0);
        // A routed Backend is held by its App too, one in use by its claims.
        backends.retain(|container, known| {
            known.retain(|backend| !backend.is_drained() || Arc::strong_count(backend) > 1);
            if known.is_empty() {
                veterans.push_back(container.clone());
            }
            !known.is_empty()
        });
        veterans.drain(..veterans.len().saturating_sub(VETERANS));
    }
}

fn all_drained(known: &[Arc<Backend>]) -> bool {
    known.iter().all(|backend| backend.is_drained())
}
