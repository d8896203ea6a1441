//! The route table as the control plane keeps it: what each App's routing says, and which
//! Containers are attached. Pure bookkeeping: no socket, no clock.

use std::collections::{BTreeMap, BTreeSet};

use stead_core::engine::Backend;
use stead_core::ids::{ContainerId, Generation};
use stead_core::manifest;
use stead_core::name::AppKey;
use stead_core::rollout::Routing;
use stead_core::routes::{
    self, AppRoutes, BackendState, HostRule, ParkPolicy, Protocol, RouteTable, ToGateway,
};

/// One App's part.
#[derive(Debug, Default)]
struct Entry {
    routing: Option<Routing>,
    backends: BTreeMap<ContainerId, Member>,
    /// What was last published, and in which generation.
    published: Option<AppRoutes>,
    generation: Generation,
}

#[derive(Debug)]
struct Member {
    backend: Backend,
    state: Membership,
    /// The generation that last began to drain it. A gateway that saw it empty in an older one
    /// says nothing about this drain; one that saw it then or later is not asked again.
    draining_since: Generation,
}

/// Whether an attached Container takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Membership {
    Open,
    Draining,
    /// Drained. It stays in the published routes until something else changes, so that its
    /// successor's arrival and its own removal are one change.
    Gone,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Table {
    generation: Generation,
    apps: BTreeMap<AppKey, Entry>,
    dirty: BTreeSet<AppKey>,
}

impl Table {
    /// A table whose generations lie above `generation`.
    pub(super) fn starting_at(generation: Generation) -> Self {
        Self { generation, ..Self::default() }
    }

    pub(super) fn generation(&self) -> Generation {
        self.generation
    }

    /// Goes on above `generation`, which a gateway has applied.
    pub(super) fn raise(&mut self, generation: Generation) {
        self.generation = self.generation.max(generation);
    }

    /// Sets what the gateway shall do with an App's requests. True if that is a change.
    pub(super) fn route(&mut self, app: &AppKey, routing: Option<Routing>) -> bool {
        match self.apps.get(app) {
            Some(entry) if entry.routing == routing => return false,
            None if routing.is_none() => return false,
            _ => {}
        }
        self.apps.entry(app.clone()).or_default().routing = routing;
        self.dirty.insert(app.clone());
        true
    }

    pub(super) fn attach(&mut self, app: &AppKey, backend: Backend) {
        let entry = self.apps.entry(app.clone()).or_default();
        // A successor takes the place of those that are gone: one change.
        entry.backends.retain(|_, member| member.state != Membership::Gone);
        let known = entry.backends.get(&backend.container);
        let draining_since = known.map_or(Generation(0), |member| member.draining_since);
        let member = Member { backend, state: Membership::Open, draining_since };
        entry.backends.insert(member.backend.container.clone(), member);
        self.dirty.insert(app.clone());
    }

    /// Whether a Container was attached and is not gone.
    pub(super) fn holds(&self, app: &AppKey, container: &ContainerId) -> bool {
        let member = self.apps.get(app).and_then(|entry| entry.backends.get(container));
        member.is_some_and(|member| member.state != Membership::Gone)
    }

    /// Sends a Container no new requests. False when it is not known, or gone.
    pub(super) fn drain(&mut self, app: &AppKey, container: &ContainerId) -> bool {
        let member = self.apps.get_mut(app).and_then(|entry| entry.backends.get_mut(container));
        let Some(member) = member else { return false };
        if member.state == Membership::Gone {
            return false;
        }
        if member.state == Membership::Open {
            member.state = Membership::Draining;
            self.dirty.insert(app.clone());
        }
        true
    }

    /// A Container is drained, or its time is up. It leaves the routes with the next change.
    /// One that was attached again in the meantime stays.
    pub(super) fn gone(&mut self, app: &AppKey, container: &ContainerId) {
        let Some(entry) = self.apps.get_mut(app) else { return };
        if let Some(member) = entry.backends.get_mut(container)
            && member.state == Membership::Draining
        {
            member.state = Membership::Gone;
        }
        if entry.routing.is_none() {
            // Nothing else will change: the App leaves the table with its last Container.
            entry.backends.retain(|_, member| member.state != Membership::Gone);
            self.dirty.insert(app.clone());
        }
    }

    /// The published generation that began to drain a Container.
    pub(super) fn draining_since(&self, app: &AppKey, container: &ContainerId) -> Generation {
        let member = self.apps.get(app).and_then(|entry| entry.backends.get(container));
        member.map_or(Generation(0), |member| member.draining_since)
    }

    /// Generation of the last published change of an App.
    pub(super) fn published(&self, app: &AppKey) -> Generation {
        self.apps.get(app).map_or(self.generation, |entry| entry.generation)
    }

    /// The changes since the last call, each with its generation.
    pub(super) fn changes(&mut self) -> Vec<ToGateway> {
        let mut changes = Vec::new();
        for app in std::mem::take(&mut self.dirty) {
            let Some(entry) = self.apps.get_mut(&app) else { continue };
            let routes = entry.routes();
            if routes == entry.published {
                continue;
            }
            self.generation = self.generation.next();
            entry.generation = self.generation;
            entry.note_drains(self.generation);
            entry.published.clone_from(&routes);
            if routes.is_none() {
                self.apps.remove(&app);
            }
            changes.push(ToGateway::Put { generation: self.generation, app, routes });
        }
        changes
    }

    /// Everything published so far.
    pub(super) fn full(&self) -> ToGateway {
        let apps = self
            .apps
            .iter()
            .filter_map(|(app, entry)| Some((app.clone(), entry.published.clone()?)))
            .collect();
        ToGateway::Table(RouteTable { generation: self.generation, apps })
    }
}

impl Entry {
    /// `generation` is about to be published: it begins to drain what was not published as
    /// draining before.
    fn note_drains(&mut self, generation: Generation) {
        let published = self.published.iter().flat_map(|routes| &routes.backends);
        let drains: BTreeSet<&ContainerId> = published
            .filter(|backend| backend.state == BackendState::Draining)
            .map(|backend| &backend.container)
            .collect();
        for (container, member) in &mut self.backends {
            if member.state != Membership::Open && !drains.contains(container) {
                member.draining_since = generation;
            }
        }
    }

    /// What the gateway shall know; `None` when nothing of the App is left to say.
    fn routes(&self) -> Option<AppRoutes> {
        let backends: Vec<routes::Backend> = self.backends.values().map(Member::routed).collect();
        let Some(routing) = &self.routing else {
            // Requests under way are still counted and drained; new ones find no host.
            let rest = AppRoutes { backends, stopped: true, ..AppRoutes::default() };
            return (!rest.backends.is_empty()).then_some(rest);
        };
        let protocol = match routing.http.as_ref().map_or_else(Default::default, |h| h.protocol) {
            manifest::Protocol::Http1 => Protocol::Http1,
            manifest::Protocol::H2c => Protocol::H2c,
        };
        Some(AppRoutes {
            hosts: routing.hosts.iter().map(HostRule::whole).collect(),
            backends,
            site: routing.site.clone(),
            split: routing.split.clone(),
            slow_start_ms: routing.slow_start.millis(),
            report_ms: routing.trial.then_some(TRIAL_REPORT_MS),
            park: ParkPolicy {
                max_wait_ms: routing.park.max_wait.millis(),
                max_requests: routing.park.max_requests,
                ..ParkPolicy::default()
            },
            protocol,
            stopped: routing.stopped,
        })
    }
}

/// How often gateways report on an App whose new Release is tried out: what is bad is to be
/// seen within seconds.
const TRIAL_REPORT_MS: u64 = 250;

impl Member {
    fn routed(&self) -> routes::Backend {
        routes::Backend {
            container: self.backend.container.clone(),
            instance: self.backend.instance,
            release: self.backend.revision.release,
            addr: self.backend.addr,
            mark: self.backend.mark,
            state: match self.state {
                Membership::Open => BackendState::Open,
                Membership::Draining | Membership::Gone => BackendState::Draining,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_core::fleet::Revision;
    use stead_core::ids::{Ordinal, ReleaseNo};
    use stead_core::routes::Split;

    fn app() -> AppKey {
        "default/web".parse().unwrap()
    }

    fn routing() -> Routing {
        Routing {
            hosts: vec!["web.default.localhost".into()],
            http: None,
            park: manifest::Park::default(),
            split: Split::default(),
            slow_start: manifest::Span::ZERO,
            trial: false,
            stopped: false,
            site: None,
        }
    }

    fn backend(container: &str) -> Backend {
        Backend {
            container: ContainerId(container.into()),
            instance: Ordinal(0),
            revision: Revision { release: ReleaseNo(1), run: 1, since: 0 },
            addr: "10.0.0.2:80".parse().unwrap(),
            mark: None,
        }
    }

    fn id(container: &str) -> ContainerId {
        ContainerId(container.into())
    }

    fn states(changes: &[ToGateway]) -> Vec<Vec<(String, BackendState)>> {
        let of = |change: &ToGateway| match change {
            ToGateway::Put { routes, .. } => routes
                .iter()
                .flat_map(|r| &r.backends)
                .map(|b| (b.container.to_string(), b.state))
                .collect(),
            _ => panic!("changes of one app each are expected"),
        };
        changes.iter().map(of).collect()
    }

    #[test]
    fn a_successor_and_the_removal_of_the_old_are_one_change() {
        let mut table = Table::starting_at(Generation(1 << 32));
        assert!(table.route(&app(), Some(routing())));
        table.attach(&app(), backend("old"));
        let first = table.changes();
        assert_eq!(states(&first), [[("old".to_owned(), BackendState::Open)]]);
        assert!(table.drain(&app(), &id("old")));
        assert_eq!(states(&table.changes()), [[("old".to_owned(), BackendState::Draining)]]);
        table.gone(&app(), &id("old"));
        assert!(table.changes().is_empty(), "it waits for its successor");
        table.attach(&app(), backend("new"));
        assert_eq!(states(&table.changes()), [[("new".to_owned(), BackendState::Open)]]);
        assert_eq!(table.generation(), Generation((1 << 32) + 3));
    }

    #[test]
    fn nothing_new_is_no_change() {
        let mut table = Table::default();
        table.route(&app(), Some(routing()));
        assert_eq!(table.changes().len(), 1);
        assert!(!table.route(&app(), Some(routing())));
        table.attach(&app(), backend("c"));
        assert_eq!(table.changes().len(), 1);
        table.attach(&app(), backend("c"));
        assert!(table.changes().is_empty());
    }

    #[test]
    fn a_deleted_app_goes_with_its_last_container() {
        let mut table = Table::default();
        table.route(&app(), Some(routing()));
        table.attach(&app(), backend("c"));
        table.changes();
        table.route(&app(), None);
        let ToGateway::Put { routes: Some(rest), .. } = table.changes().remove(0) else {
            panic!("the container must still be drained");
        };
        assert!(rest.hosts.is_empty() && rest.stopped);
        table.drain(&app(), &id("c"));
        table.changes();
        table.gone(&app(), &id("c"));
        assert!(matches!(table.changes()[..], [ToGateway::Put { routes: None, .. }]));
    }

    #[test]
    fn one_attached_again_while_it_drained_stays() {
        let mut table = Table::default();
        table.attach(&app(), backend("c"));
        table.drain(&app(), &id("c"));
        table.attach(&app(), backend("c"));
        table.gone(&app(), &id("c"));
        assert!(table.holds(&app(), &id("c")));
    }
}
