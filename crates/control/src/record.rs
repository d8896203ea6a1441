//! What is kept of each Rollout: every turn is written in the transaction of the change that it
//! tells of, so a record never says what was not committed.
//!
//! # Caveats
//! - The bars and the ledger of its time are added a moment after its end; should `serve` end in
//!   between they stay in the event log and in the Releases' ledgers only.

use std::collections::BTreeMap;
use std::sync::Arc;

use stead_core::analysis::Verdict;
use stead_core::api::{ChangePlan, Decision, LedgerView, Record};
use stead_core::app::{App, Release};
use stead_core::fleet::{FleetSeen, ReleaseSpec};
use stead_core::ids::{ReleaseNo, RolloutNo};
use stead_core::name::AppKey;
use stead_core::rollout::{Phase, Rollout, wanted};

use crate::clock;
use crate::events::waterfall;
use crate::figures::tried_against;
use crate::reconcile::Reconciler;
use crate::store::{Store, StoreError, Versioned, Write, release_key, rollout_key};

/// Most bars that are kept of one Rollout.
const MOST_BARS: usize = 5_000;

/// The record of a Rollout. One that cannot be read is as if there were none: what is on its
/// way goes on.
pub(crate) fn load(
    store: &Store,
    app: &AppKey,
    number: RolloutNo,
) -> Result<Option<Versioned<Record>>, StoreError> {
    match store.get::<Record>(&rollout_key(app, number)) {
        Err(StoreError::Damaged(damaged)) => {
            tracing::error!(%damaged, "a rollout's record begins anew");
            Ok(None)
        }
        found => found,
    }
}

/// The write that notes a turn: `rollout` as it is from then on, why, and by whom.
pub(crate) fn turn(
    store: &Store,
    app: &AppKey,
    rollout: &Rollout,
    why: &str,
    by: Option<&str>,
    verdict: Option<Verdict>,
) -> Result<Write, StoreError> {
    let stored = load(store, app, rollout.number)?;
    let mut record = stored.map_or_else(|| Record::of(rollout.clone()), |stored| stored.value);
    note(&mut record, rollout, why, by, verdict);
    Write::set(rollout_key(app, rollout.number), &record)
}

fn note(
    record: &mut Record,
    rollout: &Rollout,
    why: &str,
    by: Option<&str>,
    verdict: Option<Verdict>,
) {
    record.rollout = rollout.clone();
    record.decisions.push(Decision {
        at: clock::now(),
        phase: rollout.phase.name().to_owned(),
        batch: match rollout.phase {
            Phase::Progressing { batch, .. } => Some(batch + 1),
            _ => None,
        },
        why: why.to_owned(),
        by: by.map(str::to_owned),
        verdict,
    });
}

/// Whether the change from one phase to another is a turn of its own, and not just one more
/// Instance that is done.
pub(crate) fn is_turn(before: &Phase, after: &Phase) -> bool {
    match (before, after) {
        (
            Phase::Progressing { batch, reach, gate, .. },
            Phase::Progressing { batch: b, reach: r, gate: g, .. },
        ) => (batch, reach, gate) != (b, r, g),
        _ => true,
    }
}

/// What a Release asks of an engine.
pub(crate) fn spec(release: Release) -> ReleaseSpec {
    ReleaseSpec {
        image: release.image,
        reference: release.reference,
        sidecars: release.sidecars,
        settings: Arc::new(release.settings),
        secrets: release.secrets,
    }
}

/// What the Rollout that `after` has begun is going to do. `new` is its Release, which need not
/// be stored yet.
pub(crate) fn plan(
    store: &Store,
    before: Option<&App>,
    after: &App,
    new: Option<&Release>,
    seen: &FleetSeen,
) -> Result<ChangePlan, StoreError> {
    let Some(rollout) = &after.rollout else { return Ok(ChangePlan::default()) };
    let mut end = after.clone();
    end.enter(Phase::Done { at: clock::now() });
    let mut known = BTreeMap::<ReleaseNo, Release>::new();
    known.extend(new.map(|release| (release.number, release.clone())));
    let runs = before.and_then(App::target).map(|target| target.release);
    for number in end.releases_needed().into_iter().chain(runs) {
        if !known.contains_key(&number) {
            match store.get::<Release>(&release_key(&after.key, number)) {
                Ok(stored) => known.extend(stored.map(|stored| (number, stored.value))),
                Err(StoreError::Damaged(damaged)) => {
                    tracing::error!(%damaged, "a release cannot be compared with")
                }
                Err(error) => return Err(error),
            }
        }
    }
    let Some(new) = known.get(&rollout.to.release) else { return Ok(ChangePlan::default()) };
    let specs = known.iter().map(|(number, release)| (*number, spec(release.clone()))).collect();
    let fleet = wanted(&end, &specs).fleet;
    let old = runs.and_then(|number| known.get(&number));
    Ok(ChangePlan::of(old, new, &fleet, seen, rollout))
}

impl Reconciler {
    /// The write that begins the record of the Rollout that `after` has begun.
    pub(crate) fn begin_record(
        &self,
        before: Option<&App>,
        after: &App,
        new: Option<&Release>,
        by: &str,
    ) -> Result<Option<Write>, StoreError> {
        let Some(rollout) = &after.rollout else { return Ok(None) };
        let key = &after.key;
        // As the last pass saw it: nobody waits for another look.
        let last = self.board.last(key);
        let nothing = FleetSeen::default();
        let seen = last.as_deref().map_or(&nothing, |snapshot| &snapshot.seen);
        let mut record = Record::of(rollout.clone());
        record.plan = plan(&self.store, before, after, new, seen)?;
        if rollout.is_trial() {
            let base = self.figures.lately(key, &tried_against(rollout), clock::now());
            record.base = Some(base);
        }
        record.ledger_before = self.ledgers.of(key);
        let why = rollout.message.clone().unwrap_or_else(|| "it was asked for".to_owned());
        note(&mut record, rollout, &why, Some(by), None);
        Ok(Some(Write::set(rollout_key(key, rollout.number), &record)?))
    }

    /// Adds to the record of a Rollout that is over what became of requests, and where its time
    /// went. Nobody waits for it.
    pub(crate) fn finish_record(&self, app: &AppKey, number: RolloutNo) {
        let (store, ledgers) = (Arc::clone(&self.store), Arc::clone(&self.ledgers));
        let (events, publisher) = (Arc::clone(&self.events), Arc::clone(&self.publisher));
        let app = app.clone();
        tokio::spawn(async move {
            let finish = async {
                publisher.ask_for_reports().await;
                ledgers.persist(&store).await?;
                let Some(stored) = load(&store, &app, number)? else { return Ok(()) };
                let mut record = stored.value.clone();
                let begun = record.rollout.started;
                let seen = events.between(app.clone(), begun, clock::now()).await?;
                record.bars = waterfall::bars(&record, &seen);
                record.bars.truncate(MOST_BARS);
                record.ledger = since(&ledgers.of(&app), &record.ledger_before);
                store.commit(vec![Write::replace(&stored, &record)?]).await
            };
            match finish.await {
                // It was deleted with its App meanwhile, or begun anew.
                Ok(()) | Err(StoreError::Conflict { .. } | StoreError::Closed) => {}
                Err(error) => tracing::error!(error = ?error, "a rollout's record has no end"),
            }
        });
    }
}

fn since(now: &[LedgerView], before: &[LedgerView]) -> Vec<LedgerView> {
    let earlier = |release| before.iter().find(|view| view.release == release);
    let views = now.iter().map(|view| {
        let earlier = earlier(view.release).map(|view| view.ledger.clone()).unwrap_or_default();
        LedgerView { release: view.release, ledger: view.ledger.since(&earlier) }
    });
    views.filter(|view| view.ledger.received > 0).collect()
}
