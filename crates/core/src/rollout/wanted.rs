//! What an App's state wants of the engine and of the gateway.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stage::stage_before_last;
use super::{Phase, Rollout};
use crate::app::App;
use crate::fleet::{Fleet, ReleaseSpec, Revision};
use crate::ids::{Ordinal, ReleaseNo};
use crate::manifest::{Http, Park, Span};
use crate::routes::site::SiteRoute;
use crate::routes::{Rule, Split, Sticky, Weight};

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
    /// How requests are shared out between Releases.
    pub split: Split,
    /// Over how long the share of a fresh Container grows.
    pub slow_start: Span,
    /// A new Release is tried out: its figures are wanted often.
    pub trial: bool,
    /// A person stopped the App: requests get a 503 that says so, at once.
    pub stopped: bool,
    /// The files that answer, of an App that is a site. [`wanted`] leaves it empty: where they
    /// lie is known to the engine, of those that [`Wanted::site`] names.
    pub site: Option<SiteRoute>,
}

/// What follows from an App's state. Both parts carry the App's generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// For the engine.
    pub fleet: Fleet,
    /// For the gateway; `None` when the App shall be reachable no more.
    pub routing: Option<Routing>,
    /// Which files answer, of an App that is a site.
    pub site: Option<WantedSite>,
}

/// Which Releases of a site are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantedSite {
    /// What requests get.
    pub now: ReleaseNo,
    /// Where pages come from that clients may still have open.
    pub before: Option<ReleaseNo>,
}

/// What `app` wants now. `releases` holds at least those that [`App::releases_needed`] names.
pub fn wanted(app: &App, releases: &BTreeMap<ReleaseNo, ReleaseSpec>) -> Wanted {
    let lineup = app.lineup();
    let base = lineup.as_ref().map(|lineup| lineup.base);
    let progressing = app.rollout.as_ref().filter(|rollout| {
        matches!(rollout.phase, Phase::Progressing { .. }) && rollout.only.is_none()
    });
    let heading = progressing.map(|rollout| rollout.to).or(base);
    let rules = heading
        .and_then(|heading| releases.get(&heading.release))
        .map(|spec| &spec.settings.rollout);
    let site = site(app, releases, heading);
    let size = if app.stopped || app.deleted || site.is_some() { 0 } else { app.instances };
    let needed = app.releases_needed();
    let fleet = Fleet {
        app: app.key.clone(),
        generation: app.generation,
        // Before the first image is here there is nothing to hold.
        instances: if lineup.is_some() { size } else { 0 },
        absent: app.absent.clone(),
        lineup,
        heading,
        // While a batch changes, and not while it is waited for a gate.
        surge: match progressing.map(|rollout| &rollout.phase) {
            Some(Phase::Progressing { gate: None, .. }) if base.is_some() && size > 0 => {
                rules.map_or(0, |rules| rules.max_surge.of_rounded_up(size))
            }
            _ => 0,
        },
        paused: app.rollout.as_ref().is_some_and(Rollout::is_paused),
        returning: app
            .rollout
            .as_ref()
            .is_some_and(|rollout| matches!(rollout.phase, Phase::Undoing { .. })),
        releases: releases
            .iter()
            .filter(|(number, _)| needed.contains(number))
            .map(|(number, spec)| (*number, spec.clone()))
            .collect(),
    };
    // Before the first Release serves, requests may already be parked for it.
    let shown = base.map(|t| t.release).or_else(|| app.rollout.as_ref().map(|r| r.to.release));
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
                split: split(app, releases),
                slow_start: spec.settings.lifecycle.slow_start,
                trial: app
                    .active()
                    .is_some_and(|r| r.is_trial() && rules.is_some_and(|r| r.analysis.is_on())),
                stopped: app.stopped,
                site: None,
            }
        });
    Wanted { fleet, routing, site: site.filter(|_| !app.deleted) }
}

/// The Releases that are served, if `heading` is a site: what the App is going to, since there
/// are no Instances that could change one after the other.
fn site(
    app: &App,
    releases: &BTreeMap<ReleaseNo, ReleaseSpec>,
    heading: Option<Revision>,
) -> Option<WantedSite> {
    let now = heading?.release;
    releases.get(&now)?.settings.site.as_ref()?;
    let from = app.active().and_then(|rollout| rollout.from.as_ref());
    let earlier = [from.map(|from| from.base.release), app.before];
    let is_site = |release: &ReleaseNo| releases.get(release).is_some_and(ReleaseSpec::is_site);
    let before = earlier.into_iter().flatten().find(|release| *release != now && is_site(release));
    Some(WantedSite { now, before })
}

/// How the requests are shared out: as the batch asks that is under way or was last through.
fn split(app: &App, releases: &BTreeMap<ReleaseNo, ReleaseSpec>) -> Split {
    let Some(rollout) = &app.rollout else { return Split::default() };
    let Some(spec) = releases.get(&rollout.to.release) else { return Split::default() };
    let rules = &spec.settings.rollout;
    let mut split = Split {
        sticky: rules.sticky.map(|span| Sticky { max_age_ms: span.millis() }),
        ..Split::default()
    };
    let undoing = matches!(rollout.phase, Phase::Undoing { .. });
    if undoing {
        // Clients of what is given up shall not go back to it.
        split.sticky = None;
    }
    let Some(batch) = rollout.batch() else { return split };
    let Some(asked) = stage_before_last(rules, batch, app.instances).and_then(|stage| stage.batch)
    else {
        return split;
    };
    // What is given up gets no request that need not go there.
    if !asked.matches.is_empty() && !undoing {
        split.rules = vec![Rule { when: asked.matches.clone(), release: rollout.to.release }];
    }
    if let Some(weight) = asked.weight() {
        let share = if undoing { 0 } else { u32::from(weight) };
        split.weights = weights(rollout, &app.ordinals(), share);
    }
    split
}

/// `share` per cent for the new Release, the rest for what else runs: each of these by the
/// number of Instances that run it.
fn weights(rollout: &Rollout, ordinals: &[Ordinal], share: u32) -> Vec<Weight> {
    let to = rollout.to.release;
    let mut others: BTreeMap<ReleaseNo, u32> = BTreeMap::new();
    let lineup = rollout.lineup();
    for ordinal in ordinals {
        let runs = lineup.as_ref().map(|lineup| lineup.of(*ordinal).release);
        if let Some(release) = runs.filter(|release| *release != to) {
            *others.entry(release).or_default() += 1;
        }
    }
    // What was held before any Instance ran it needs no share.
    let held = matches!(rollout.phase, Phase::Held { .. });
    let absent = held && lineup.is_none_or(|lineup| lineup.releases().all(|r| r != to));
    if others.is_empty() || absent {
        return Vec::new();
    }
    // In shares that divide without a rest.
    let parts = others.values().sum::<u32>();
    let mut weights = vec![Weight { release: to, weight: share * parts }];
    weights.extend(
        others.into_iter().map(|(release, n)| Weight { release, weight: (100 - share) * n }),
    );
    weights
}
