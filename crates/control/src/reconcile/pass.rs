//! One pass over one App: load, decide, act, observe, commit what was found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stead_core::analysis::Verdict;
use stead_core::app::{App, Release};
use stead_core::engine::EngineError;
use stead_core::event::{Fact, PhaseName};
use stead_core::fleet::{FleetSeen, ReleaseSpec};
use stead_core::ids::{Generation, ReleaseNo, RolloutNo};
use stead_core::invariants::{Violation, check_world};
use stead_core::name::AppKey;
use stead_core::rollout::{Phase, Wanted, advance, wanted};
use stead_core::time::Time;

use super::board::Snapshot;
use super::site::Known;
use super::{PassError, Reconciler};
use crate::clock;
use crate::record;
use crate::store::{Kind, StoreError, Versioned, Write, release_key};

/// When to look again if nothing wakes the loop before.
pub(super) enum Next {
    At(Option<Time>),
    /// The App is gone, and its loop with it.
    Gone,
}

/// What a loop remembers between passes. Losing it costs time only.
#[derive(Default)]
pub(super) struct Memory {
    /// The generation this process gave to the engine.
    applied: Option<Generation>,
    /// The Rollout whose time in the queue was noted.
    queued: Option<RolloutNo>,
    /// Releases never change once they are made.
    releases: BTreeMap<ReleaseNo, (ReleaseSpec, Time)>,
    violations: Vec<Violation>,
    site: Known,
}

impl Reconciler {
    pub(super) async fn pass(
        self: &Arc<Self>,
        key: &AppKey,
        memory: &mut Memory,
    ) -> Result<Next, PassError> {
        loop {
            let Some(stored) = self.store.get::<App>(&key.to_string())? else {
                self.publisher.route(key, None);
                self.sites.forget(key);
                self.board.remove(key);
                return Ok(Next::Gone);
            };
            let app = &stored.value;
            let releases = self.releases(app, memory)?;
            let mut wanted = wanted(app, &releases);
            let made = |number| memory.releases.get(&number).map(|(_, created)| *created);
            self.locate(&mut wanted, made, &mut memory.site).await?;
            // Before the engine acts: requests are parked, or refused, from the first moment.
            self.publisher.route(key, wanted.routing.clone());
            if let Some(release) = app.target() {
                self.ledgers.show(key, release.release);
            }
            match self.take_up(app, &wanted, memory).await {
                Err(PassError::Engine(EngineError::Stale { known, .. })) => {
                    self.overtake(stored, known).await?;
                    continue;
                }
                done => done?,
            }
            let mut seen = self.engine.observe(key).await?;
            seen.site = self.site_seen(key, &wanted, &memory.site);
            self.check(key, &seen, memory);
            if app.deleted {
                let left = !seen.instances.is_empty() || seen.generation < app.generation;
                if !left {
                    self.bury(app).await?;
                    continue;
                }
                self.show(stored.value, wanted, seen, "it is being deleted".into());
                return Ok(Next::At(None));
            }
            let verdict = self.judge(app, &wanted, &seen, clock::now())?;
            let found = advance(app, &wanted.fleet, &seen, verdict.as_ref(), clock::now());
            match found.phase {
                Some(phase) => {
                    self.show(app.clone(), wanted, seen, found.why.clone());
                    self.enter(stored, phase, found.why, verdict).await?;
                }
                None => {
                    self.show(stored.value, wanted, seen, found.why);
                    return Ok(Next::At(found.wake));
                }
            }
        }
    }

    /// Gives the engine what is wanted, unless this process did so before.
    async fn take_up(
        &self,
        app: &App,
        wanted: &Wanted,
        memory: &mut Memory,
    ) -> Result<(), PassError> {
        if memory.applied == Some(app.generation) {
            return Ok(());
        }
        self.engine.apply(wanted.fleet.clone()).await?;
        memory.applied = Some(app.generation);
        if let Some(rollout) = app.active()
            && rollout.started >= self.began
            && memory.queued.replace(rollout.number) != Some(rollout.number)
        {
            // A Release made on the way had its own phase until then.
            let made = memory.releases.get(&rollout.to.release).map(|(_, created)| *created);
            let begun = made.unwrap_or(rollout.started).max(rollout.started);
            let took = clock::now().since(begun);
            self.note(&app.key, Fact::Phase { phase: PhaseName::Queue, begun, took });
        }
        Ok(())
    }

    /// What the gateways' figures say of the Release that is tried out, if one is.
    fn judge(
        &self,
        app: &App,
        wanted: &Wanted,
        seen: &FleetSeen,
        now: Time,
    ) -> Result<Option<Verdict>, StoreError> {
        let tried = app.active().filter(|_| wanted.routing.as_ref().is_some_and(|r| r.trial));
        let rules = tried
            .and_then(|rollout| wanted.fleet.releases.get(&rollout.to.release))
            .map(|spec| spec.settings.rollout.analysis);
        let (Some(rollout), Some(rules)) = (tried, rules) else {
            self.figures.rest(&app.key);
            return Ok(None);
        };
        let mut failed = None;
        let base = || match record::load(&self.store, &app.key, rollout.number) {
            Ok(stored) => stored.and_then(|stored| stored.value.base),
            Err(error) => {
                failed = Some(error);
                None
            }
        };
        let verdict = self.figures.verdict(&app.key, rollout, rules, seen, now, base);
        failed.map_or(Ok(verdict), Err)
    }

    /// The Releases that the App needs. One that is damaged is left out: what runs goes on.
    fn releases(
        &self,
        app: &App,
        memory: &mut Memory,
    ) -> Result<BTreeMap<ReleaseNo, ReleaseSpec>, StoreError> {
        let needed = app.releases_needed();
        memory.releases.retain(|number, _| needed.contains(number));
        for number in needed {
            if memory.releases.contains_key(&number) {
                continue;
            }
            match self.store.get::<Release>(&release_key(&app.key, number)) {
                Ok(Some(Versioned { value, .. })) => {
                    let created = value.created;
                    memory.releases.insert(number, (record::spec(value), created));
                }
                Ok(None) => tracing::error!(app = %app.key, %number, "release is missing"),
                Err(StoreError::Damaged(damaged)) => {
                    tracing::error!(%damaged, "release is left out")
                }
                Err(error) => return Err(error),
            }
        }
        Ok(memory.releases.iter().map(|(n, (spec, _))| (*n, spec.clone())).collect())
    }

    /// Commits a phase. When somebody else was faster, the next pass finds out what holds.
    async fn enter(
        &self,
        stored: Versioned<App>,
        phase: Phase,
        why: String,
        verdict: Option<Verdict>,
    ) -> Result<(), StoreError> {
        let Versioned { generation, value: mut app, .. } = stored;
        let is_turn =
            app.rollout.as_ref().is_none_or(|before| record::is_turn(&before.phase, &phase));
        app.enter(phase);
        let mut writes = vec![Write::app(Some(generation), &app)?];
        let Some(rollout) = &app.rollout else { return Ok(()) };
        if is_turn {
            writes.push(record::turn(&self.store, &app.key, rollout, &why, None, verdict)?);
        }
        match self.store.commit(writes).await {
            Err(StoreError::Conflict { .. }) => return Ok(()),
            done => done?,
        }
        let (number, phase) = (rollout.number.0, rollout.phase.name().to_owned());
        tracing::info!(app = %app.key, rollout = number, phase, why, "rollout");
        self.note(&app.key, Fact::Rollout { number, phase, why });
        if rollout.phase.is_final() || rollout.phase.is_through() {
            self.settled.notify_one();
        }
        if rollout.phase.is_final() {
            self.finish_record(&app.key, rollout.number);
        }
        Ok(())
    }

    /// The engine knows a newer intent than the store: the store was set back. What the
    /// store says is what is wanted, so it goes on above that.
    async fn overtake(&self, stored: Versioned<App>, known: Generation) -> Result<(), StoreError> {
        tracing::error!(app = %stored.key, %known, "engine knows a newer generation than the store");
        let Versioned { generation, value: mut app, .. } = stored;
        app.generation = known.max(generation).next();
        match self.store.commit(vec![Write::app(Some(generation), &app)?]).await {
            Err(StoreError::Conflict { .. }) => Ok(()),
            done => done,
        }
    }

    /// Removes what is left of a deleted App: first from the engine, then from the store, so
    /// that a crash in between repeats the first.
    async fn bury(&self, app: &App) -> Result<(), PassError> {
        let key = &app.key;
        self.engine.forget(key, app.delete_volumes).await?;
        let mut writes = vec![Write::remove(Kind::App, key.to_string(), app.generation)];
        for kind in [Kind::Release, Kind::Rollout, Kind::Ledger, Kind::Secret] {
            let keys = self.store.keys(kind, &format!("{key}/"))?;
            writes.extend(keys.into_iter().map(|key| Write::clear(kind, key)));
        }
        self.ledgers.forget(key);
        self.figures.forget(key);
        self.store.commit(writes).await?;
        self.settled.notify_one();
        tracing::info!(app = %key, "app is gone");
        Ok(())
    }

    fn check(&self, key: &AppKey, seen: &FleetSeen, memory: &mut Memory) {
        let violations = check_world(seen);
        for violation in violations.iter().filter(|v| !memory.violations.contains(v)) {
            self.violations.fetch_add(1, Ordering::Relaxed);
            tracing::error!(app = %key, %violation, "ALARM: an invariant is broken");
        }
        memory.violations = violations;
    }

    fn show(&self, app: App, wanted: Wanted, seen: FleetSeen, why: String) {
        self.board.put(Snapshot { app, fleet: wanted.fleet, seen, why });
        self.publisher.nudge();
    }
}
