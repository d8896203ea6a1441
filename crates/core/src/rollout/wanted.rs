//! What an App's state wants of the engine and of the gateway.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::stage::stages;
use super::{Phase, Reach};
use crate::app::App;
use crate::fleet::{Fleet, Lineup, ReleaseSpec};
use crate::ids::ReleaseNo;
use crate::manifest::{Http, Park, Span};
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
    let lineup = app.lineup();
    let base = lineup.as_ref().map(|lineup| lineup.base);
    let progressing = app.rollout.as_ref().filter(|rollout| {
        matches!(rollout.phase, Phase::Progressing { .. }) && rollout.only.is_none()
    });
    let heading = progressing.map(|rollout| rollout.to).or(base);
    let rules = heading
        .and_then(|heading| releases.get(&heading.release))
        .map(|spec| &spec.settings.rollout);
    let size = if app.stopped || app.deleted { 0 } else { app.instances };
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
            Some(Phase::Progressing { gate: None, .. }) if base.is_some() => {
                rules.map_or(0, |rules| rules.max_surge.of_rounded_up(size))
            }
            _ => 0,
        },
        paused: progressing.is_some_and(|rollout| rollout.paused.is_some()),
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
            }
        });
    Wanted { fleet, routing }
}

/// How the requests are shared out: as the batch asks that is under way or was last through.
fn split(app: &App, releases: &BTreeMap<ReleaseNo, ReleaseSpec>) -> Split {
    let Some(rollout) = &app.rollout else { return Split::default() };
    let same = |lineup: &Lineup| lineup.releases().any(|release| release == rollout.to.release);
    if matches!(rollout.phase, Phase::Undoing { .. }) && !rollout.from.iter().any(same) {
        // Clients leave the bad Release at once, wherever the old one serves already.
        return Split {
            weights: weights(&rollout.from, rollout.to.release, 0),
            ..Split::default()
        };
    }
    let Some(spec) = releases.get(&rollout.to.release) else { return Split::default() };
    let rules = &spec.settings.rollout;
    let mut split = Split {
        sticky: rules.sticky.map(|span| Sticky { max_age_ms: span.millis() }),
        ..Split::default()
    };
    let Phase::Progressing { batch, reach: Reach::Of(_), .. } = &rollout.phase else {
        return split;
    };
    let stages = stages(rules, app.instances);
    let Some(asked) = stages.get(*batch as usize).and_then(|stage| stage.batch) else {
        return split;
    };
    if !asked.matches.is_empty() {
        split.rules = vec![Rule { when: asked.matches.clone(), release: rollout.to.release }];
    }
    if let Some(weight) = asked.weight() {
        split.weights = weights(&rollout.meanwhile, rollout.to.release, u32::from(weight));
    }
    split
}

/// `share` per cent for the Release `to`, the rest for what `others` run.
fn weights(others: &Option<Lineup>, to: ReleaseNo, share: u32) -> Vec<Weight> {
    let mut others: Vec<ReleaseNo> = others.iter().flat_map(Lineup::releases).collect();
    others.sort_unstable();
    others.dedup();
    others.retain(|release| *release != to);
    let parts = u32::try_from(others.len()).unwrap_or(u32::MAX).max(1);
    // In shares that divide without a rest.
    let mut weights = vec![Weight { release: to, weight: share * parts }];
    weights.extend(others.into_iter().map(|release| Weight { release, weight: 100 - share }));
    weights
}
