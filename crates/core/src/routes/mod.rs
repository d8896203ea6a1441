//! Routes: which host and path belong to which App, and which Containers may take its
//! requests. The contract between the control plane, which decides, and the gateway.
//!
//! Promises: types that travel as JSON, and the pure rules on them: which change may be
//! applied after which ([`RouteTable::apply`]) and which App a request belongs to
//! ([`HostIndex`]). Knows nothing of sockets, health or how a Backend is chosen under load.
//!
//! Compatibility: a gateway and a control plane of neighbouring versions talk to each other
//! during an upgrade, so unknown fields are ignored and a new field needs a default.

mod index;
mod link;
pub mod site;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use index::{HostIndex, normal_host};
pub use link::{
    AppReport, Blame, FailReason, LATENCY_BOUNDS_MICROS, Latency, Outcomes, ReleaseReport, Report,
    ToGateway, ToServe,
};

use crate::ids::{ContainerId, Generation, Ordinal, ReleaseNo};
pub use crate::manifest::Match;
use crate::name::AppKey;

/// Everything the gateway needs to route.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RouteTable {
    /// How often the table has changed. Only rises.
    pub generation: Generation,
    /// The Apps that are routed.
    pub apps: BTreeMap<AppKey, AppRoutes>,
}

/// The routes of one App and the Containers behind them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AppRoutes {
    /// Where requests for the App come in. The default host of the App is one of these.
    pub hosts: Vec<HostRule>,
    /// The Containers that take its requests, and those that are being drained. A draining
    /// one stays here until every gateway has reported it drained.
    pub backends: Vec<Backend>,
    /// The files that answer its requests, of an App that is a site. It has no Backends.
    #[serde(default)]
    pub site: Option<site::SiteRoute>,
    /// How requests are shared out between Releases.
    #[serde(default)]
    pub split: Split,
    /// What happens to a request that finds no Backend.
    #[serde(default)]
    pub park: ParkPolicy,
    /// What the App speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// A person stopped the App: requests are refused at once, not parked, and wake nothing.
    #[serde(default)]
    pub stopped: bool,
    /// Time over which the share of requests of a Backend that has just opened grows to that of
    /// the others, in milliseconds; 0: it has it at once.
    #[serde(default)]
    pub slow_start_ms: u64,
    /// How often the gateway reports the App's counters, in milliseconds, where once a second is
    /// too seldom.
    #[serde(default)]
    pub report_ms: Option<u64>,
}

/// A host, and the part of its paths that belongs to the App.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostRule {
    /// Host name without port. Compared without regard to case or a trailing dot.
    pub host: String,
    /// Path prefix, matched by whole segments: `/api` matches `/api` and `/api/x`, not
    /// `/apix`. The longest match wins. `/` matches everything.
    #[serde(default = "root_prefix")]
    pub path_prefix: String,
}

fn root_prefix() -> String {
    "/".to_owned()
}

impl HostRule {
    /// The whole of `host`.
    pub fn whole(host: impl Into<String>) -> Self {
        Self { host: host.into(), path_prefix: root_prefix() }
    }
}

/// Address of one ready Container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The Container. Its gate, its claims and its connections are kept over generations
    /// by this id.
    pub container: ContainerId,
    /// The Instance it belongs to.
    pub instance: Ordinal,
    /// The Release it runs.
    pub release: ReleaseNo,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Mark (`SO_MARK`) for the gateway's sockets, which selects the slot of the Sandbox
    /// when two Containers share one address.
    #[serde(default)]
    pub mark: Option<u32>,
    /// Whether it takes new requests.
    pub state: BackendState,
}

/// Whether a Backend takes new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// Takes new requests.
    Open,
    /// Takes no new request; those it has are finished.
    Draining,
}

/// How requests are shared out between Releases: by rules first, then by what a client met
/// before, then by weights. A Release without a usable Backend is passed over in each.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Split {
    /// Weight of each Release. One that is not named, or has weight 0, gets by chance only what
    /// no weighted Release can take: a request is not kept waiting for a ratio.
    ///
    /// No weights means that every open Backend counts the same, whatever its Release.
    #[serde(default)]
    pub weights: Vec<Weight>,
    /// Requests that go to a certain Release. The first that fits and can be served wins.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// A client stays with the Release it met.
    #[serde(default)]
    pub sticky: Option<Sticky>,
}

/// Requests that go to a certain Release, whatever the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What marks them: any of these is enough.
    pub when: Vec<Match>,
    /// Where they go.
    pub release: ReleaseNo,
}

/// A client stays with the Release it met, by a cookie, while there is more than one.
///
/// The cookie holds the number of the Release, unsigned: it opens nothing that the rules and
/// weights do not, since it counts only for a Release that has a weight or a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sticky {
    /// For how long, in milliseconds.
    pub max_age_ms: u64,
}

impl Split {
    /// Everything goes to `release`.
    pub fn all_to(release: ReleaseNo) -> Self {
        Self { weights: vec![Weight { release, weight: 100 }], ..Self::default() }
    }

    /// The weight of `release`, `None` when the Split does not weigh at all.
    pub fn weight(&self, release: ReleaseNo) -> Option<u32> {
        if self.weights.is_empty() {
            return None;
        }
        Some(self.weights.iter().filter(|w| w.release == release).map(|w| w.weight).sum())
    }
}

/// A Release's share of the requests, relative to the sum of all weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weight {
    /// The Release.
    pub release: ReleaseNo,
    /// Its share.
    pub weight: u32,
}

/// How long and how many requests wait for a Backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ParkPolicy {
    /// Longest wait, in milliseconds.
    pub max_wait_ms: u64,
    /// Most requests of the App that wait at once, per gateway.
    pub max_requests: u32,
    /// Most bytes held for the App's waiting requests, per gateway.
    pub max_bytes: u64,
    /// How long a gap usually lasts, in milliseconds, as the control plane measured it. When
    /// what remains of it does not fit `max_wait_ms`, a request is refused at once.
    pub expected_wait_ms: Option<u64>,
}

impl Default for ParkPolicy {
    fn default() -> Self {
        Self {
            max_wait_ms: 30_000,
            max_requests: 1_000,
            max_bytes: 64 << 20,
            expected_wait_ms: None,
        }
    }
}

/// What an App speaks on its port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS, with prior knowledge.
    H2c,
}

/// A change of the table. See [`ToGateway`] for how it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one is made per change, and almost all are `Put`")]
pub enum RouteChange {
    /// The whole table.
    Table(RouteTable),
    /// The routes of one App; `None` takes the App away.
    Put {
        /// Generation of the table after this change.
        generation: Generation,
        /// The App that changes.
        app: AppKey,
        /// Its new routes.
        routes: Option<AppRoutes>,
    },
}

/// Why a change was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("route generation {offered} is refused: generation {applied} is already applied")]
pub struct StaleGeneration {
    /// The generation of the change.
    pub offered: Generation,
    /// The generation of the table.
    pub applied: Generation,
}

impl RouteTable {
    /// Applies `change`, unless it is older than what is applied.
    ///
    /// A whole table of the same generation is accepted: the control plane sends it again
    /// after each reconnect. A `Put` of the same generation is not.
    pub fn apply(&mut self, change: RouteChange) -> Result<(), StaleGeneration> {
        let applied = self.generation;
        let stale = |offered| StaleGeneration { offered, applied };
        match change {
            RouteChange::Table(table) if table.generation < applied => {
                return Err(stale(table.generation));
            }
            RouteChange::Table(table) => *self = table,
            RouteChange::Put { generation, .. } if generation <= applied => {
                return Err(stale(generation));
            }
            RouteChange::Put { generation, app, routes } => {
                self.generation = generation;
                match routes {
                    Some(routes) => self.apps.insert(app, routes),
                    None => self.apps.remove(&app),
                };
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(generation: u64, app: &str, routes: Option<AppRoutes>) -> RouteChange {
        RouteChange::Put { generation: Generation(generation), app: app.parse().unwrap(), routes }
    }

    #[test]
    fn an_older_change_is_refused_and_changes_nothing() {
        let mut table = RouteTable::default();
        table.apply(put(5, "default/web", Some(AppRoutes::default()))).unwrap();
        let before = table.clone();
        for stale in [
            put(5, "default/web", None),
            put(4, "default/web", None),
            RouteChange::Table(RouteTable { generation: Generation(4), ..Default::default() }),
        ] {
            let refused = table.apply(stale).unwrap_err();
            assert_eq!(refused.applied, Generation(5));
            assert_eq!(table, before);
        }
        table.apply(RouteChange::Table(before.clone())).unwrap();
        table.apply(put(9, "default/web", None)).unwrap();
        assert_eq!(table, RouteTable { generation: Generation(9), apps: BTreeMap::new() });
    }

    #[test]
    fn a_table_survives_its_json() {
        let routes = AppRoutes {
            hosts: vec![HostRule::whole("web.default.localhost")],
            backends: vec![Backend {
                container: ContainerId("c1".into()),
                instance: Ordinal(0),
                release: ReleaseNo(3),
                addr: "10.88.0.10:8080".parse().unwrap(),
                mark: Some(2),
                state: BackendState::Draining,
            }],
            split: Split::all_to(ReleaseNo(3)),
            ..Default::default()
        };
        let mut table = RouteTable::default();
        table.apply(put(1, "default/web", Some(routes))).unwrap();
        let text = serde_json::to_string(&table).unwrap();
        assert!(text.contains("\"default/web\""), "{text}");
        assert_eq!(serde_json::from_str::<RouteTable>(&text).unwrap(), table);
    }

    #[test]
    fn a_table_of_an_older_version_has_defaults() {
        let routes: AppRoutes = serde_json::from_str(r#"{"hosts": [], "backends": []}"#).unwrap();
        assert_eq!(routes, AppRoutes::default());
        let split: Split = serde_json::from_str(r#"{"weights": []}"#).unwrap();
        assert_eq!(split, Split::default());
    }

    #[test]
    fn rules_travel_as_people_write_them() {
        let text = r#"{"rules": [{"release": 2, "when": [
            {"header": {"name": "x-gray", "value": "yes"}},
            {"cookie": {"name": "gray"}},
            {"query": {"name": "gray", "value": "1"}}
        ]}], "sticky": {"max_age_ms": 60000}}"#;
        let split: Split = serde_json::from_str(text).unwrap();
        assert_eq!(split.rules[0].when.len(), 3);
        assert_eq!(split.rules[0].when[1].value(), None);
        let again = serde_json::to_string(&split).unwrap();
        assert_eq!(serde_json::from_str::<Split>(&again).unwrap(), split);
    }

    #[test]
    fn weights_name_the_releases_that_count() {
        assert_eq!(Split::default().weight(ReleaseNo(1)), None);
        assert_eq!(Split::all_to(ReleaseNo(2)).weight(ReleaseNo(1)), Some(0));
        assert_eq!(Split::all_to(ReleaseNo(2)).weight(ReleaseNo(2)), Some(100));
    }
}
