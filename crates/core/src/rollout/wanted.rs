//! What an App's state wants of the engine and of the gateway.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::fleet::{Fleet, ReleaseSpec};
use crate::ids::ReleaseNo;
use crate::manifest::{Http, Park};

/// What the gateway shall do with an App's requests, apart from which Backends there are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Routing {
    /// Host names, the App's default one first.
    pub hosts: Vec<String>,
    /// Port and protocol of the App, and its own hosts. `None` for an App that takes no
    /// requests.
    pub http: Option<Http>,
    /// What to do while no Backend is ready.
    pub park: Park,
    /// A person stopped the App: requests get a 503 that says so, at once.
    pub stopped: bool,
}

/// What follows from an App's state. Both parts carry the App's generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// For the engine.
    pub fleet: Fleet,
    /// For the gateway; `None` when the App shall be reachable no more.
    pub routing: Option<Routing>,
}

/// What `app` wants now. `releases` holds at least those that [`App::releases_needed`] names.
pub fn wanted(app: &App, releases: &BTreeMap<ReleaseNo, ReleaseSpec>) -> Wanted {
    let target = app.target();
    let size = if app.stopped || app.deleted { 0 } else { app.instances };
    let needed = app.releases_needed();
    let fleet = Fleet {
        app: app.key.clone(),
        generation: app.generation,
        // Before the first image is here there is nothing to hold.
        instances: if target.is_some() { size } else { 0 },
        target,
        reruns: app.reruns_in_force().clone(),
        releases: releases
            .iter()
            .filter(|(number, _)| needed.contains(number))
            .map(|(number, spec)| (*number, spec.clone()))
            .collect(),
    };
    // Before the first Release serves, requests may already be parked for it.
    let shown = target.map(|t| t.release).or_else(|| app.rollout.as_ref().map(|r| r.to.release));
    let routing =
        shown.and_then(|number| releases.get(&number)).filter(|_| !app.deleted).map(|spec| {
            let mut hosts = vec![app.key.default_host()];
            let own = spec.settings.http.iter().flat_map(|http| &http.hosts);
            hosts.extend(own.map(|host| host.as_str().to_owned()));
            hosts.dedup();
            Routing {
                hosts,
                http: spec.settings.http.clone(),
                park: spec.settings.park.clone(),
                stopped: app.stopped,
            }
        });
    Wanted { fleet, routing }
}
