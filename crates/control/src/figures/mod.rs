//! What the gateways' reports say of a Release that is tried out, beside the old one.
//!
//! Promises: figures only grow, whatever becomes of the gateways: one that is started again or
//! replaced begins a count of its own, and what one had counted before this `serve` began is
//! left out. Each report of an App in trial is judged; the App is woken when the verdict changes.
//!
//! # Caveats
//! - Everything here is lost with the process. What the old Release did before a Rollout is in
//!   that Rollout's record; a trial that goes on after a restart without anything to compare
//!   with condemns nobody.
//!
//! Deliberately does not know: Rollout phases, and what is done about a verdict.

mod count;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stead_core::analysis::{Against, Sample, Settings, Verdict, WARMUP, Warmup, judge};
use stead_core::fleet::{FleetSeen, TrafficState};
use stead_core::ids::{ContainerId, ReleaseNo, RolloutNo};
use stead_core::manifest;
use stead_core::name::AppKey;
use stead_core::rollout::Rollout;
use stead_core::routes::Report;
use stead_core::time::{Micros, Time};
use tokio::sync::mpsc;

use count::Gateways;

/// Between two looks back that are kept.
const STEP: Micros = Micros::from_secs(10);
/// How far what the old Release did before a Rollout goes back.
const LOOK_BACK: Micros = Micros::from_secs(300);
/// An App in trial is woken this often for the figures alone.
const SHOWN: Micros = Micros::from_secs(1);

/// The totals of an App's Releases.
type Totals = BTreeMap<ReleaseNo, Sample>;

/// The figures of all Apps.
pub(crate) struct Figures {
    /// When this `serve` began.
    began: Time,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    gateways: Gateways,
    apps: BTreeMap<AppKey, OfApp>,
    wakes: Option<mpsc::UnboundedSender<AppKey>>,
}

#[derive(Default)]
struct OfApp {
    totals: Totals,
    /// What they were, oldest first.
    past: VecDeque<(Time, Totals)>,
    trial: Option<Trial>,
}

/// A new Release that is tried out.
struct Trial {
    rollout: RolloutNo,
    new: ReleaseNo,
    old: BTreeSet<ReleaseNo>,
    settings: Settings,
    base: Sample,
    /// It was under way before this `serve` began.
    resumed: bool,
    /// What the old Releases had when the new one began to take requests.
    beside: Option<Sample>,
    attached: BTreeSet<ContainerId>,
    warm_until: Time,
    warmup: Warmup,
    verdict: Option<Verdict>,
    woken: Time,
}

impl Figures {
    /// Nothing is known yet.
    pub(crate) fn new(began: Time) -> Self {
        Self { began, state: Mutex::default() }
    }

    /// Apps that are to be looked at. The last caller gets them.
    pub(crate) fn wakes(&self) -> mpsc::UnboundedReceiver<AppKey> {
        let (sender, wakes) = mpsc::unbounded_channel();
        self.lock().wakes = Some(sender);
        wakes
    }

    /// Takes a gateway's report in.
    pub(crate) fn report(&self, pid: u32, report: &Report, now: Time) {
        let mut state = self.lock();
        let State { gateways, apps, wakes } = &mut *state;
        for (key, came) in gateways.since_last(pid, report, self.began) {
            let app = apps.entry(key.clone()).or_default();
            if app.take(came, now) {
                // Nobody listens: `serve` ends.
                let _ = wakes.as_ref().map(|wakes| wakes.send(key));
            }
        }
    }

    /// What these Releases did in the last minutes.
    pub(crate) fn lately(&self, app: &AppKey, releases: &BTreeSet<ReleaseNo>, now: Time) -> Sample {
        let state = self.lock();
        let Some(app) = state.apps.get(app) else { return Sample::default() };
        let recent = app.past.iter().find(|(at, _)| *at + LOOK_BACK >= now);
        let earlier = recent.map(|(_, totals)| sum(totals, releases));
        earlier.map_or_else(Sample::default, |earlier| sum(&app.totals, releases).since(&earlier))
    }

    /// The verdict on the Release that a Rollout tries out, whose Instances are as seen.
    /// `base` is asked for once: what the old Release did before.
    pub(crate) fn verdict(
        &self,
        app: &AppKey,
        rollout: &Rollout,
        rules: manifest::Analysis,
        seen: &FleetSeen,
        now: Time,
        base: impl FnOnce() -> Option<Sample>,
    ) -> Option<Verdict> {
        let mut state = self.lock();
        let app = state.apps.entry(app.clone()).or_default();
        let OfApp { trial, totals, .. } = app;
        if trial.as_ref().is_none_or(|trial| trial.rollout != rollout.number) {
            let old = tried_against(rollout);
            *trial = Some(Trial {
                rollout: rollout.number,
                new: rollout.to.release,
                old,
                settings: Settings {
                    errors: rules.errors,
                    latency: rules.latency,
                    min_requests: rules.min_requests.into(),
                    ..Settings::default()
                },
                base: base().unwrap_or_default(),
                resumed: rollout.started < self.began,
                beside: None,
                attached: BTreeSet::new(),
                warm_until: Time(0),
                warmup: Warmup::default(),
                verdict: None,
                woken: now,
            });
        }
        let trial = trial.as_mut()?;
        trial.see(seen, totals, now);
        trial.verdict.clone()
    }

    /// The last verdict on what a Rollout tries out.
    pub(crate) fn last_verdict(&self, app: &AppKey, rollout: RolloutNo) -> Option<Verdict> {
        let state = self.lock();
        let trial = state.apps.get(app)?.trial.as_ref()?;
        trial.verdict.clone().filter(|_| trial.rollout == rollout)
    }

    /// Nothing is tried out (any more).
    pub(crate) fn rest(&self, app: &AppKey) {
        if let Some(app) = self.lock().apps.get_mut(app) {
            app.trial = None;
        }
    }

    /// Forgets a deleted App.
    pub(crate) fn forget(&self, app: &AppKey) {
        self.lock().apps.remove(app);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Figures that were taken in half are completed by the next report.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Releases that a Rollout's new one is compared with: what it goes back to.
pub(crate) fn tried_against(rollout: &Rollout) -> BTreeSet<ReleaseNo> {
    let from = rollout.from.iter().flat_map(|lineup| lineup.releases());
    from.filter(|release| *release != rollout.to.release).collect()
}

impl OfApp {
    /// Adds what came. Gives whether the App is to be woken.
    fn take(&mut self, came: Totals, now: Time) -> bool {
        if self.past.back().is_none_or(|(at, _)| *at + STEP <= now) {
            self.past.push_back((now, self.totals.clone()));
            self.past.retain(|(at, _)| *at + LOOK_BACK >= now);
        }
        if let Some(trial) = &mut self.trial
            && trial.beside.is_none()
            && came.contains_key(&trial.new)
        {
            // Requests are told of before the pass that sees what takes them.
            trial.begin(&self.totals, now);
        }
        for (release, more) in came {
            let total = self.totals.entry(release).or_default();
            *total = total.plus(&more);
        }
        self.trial.as_mut().is_some_and(|trial| trial.judge(&self.totals, now))
    }
}

impl Trial {
    fn begin(&mut self, totals: &Totals, now: Time) {
        self.beside.get_or_insert_with(|| sum(totals, &self.old));
        self.warm_until = now + WARMUP;
    }

    /// Notes Instances that began to take requests.
    fn see(&mut self, seen: &FleetSeen, totals: &Totals, now: Time) {
        let takes = seen
            .instances
            .values()
            .flat_map(|instance| instance.mains())
            .filter(|c| c.revision.release == self.new && c.traffic == TrafficState::Attached);
        let fresh: Vec<_> =
            takes.map(|c| c.id.clone()).filter(|id| !self.attached.contains(id)).collect();
        if !fresh.is_empty() {
            self.begin(totals, now);
            self.attached.extend(fresh);
        }
    }

    /// Judges after a report. Gives whether that is news.
    fn judge(&mut self, totals: &Totals, now: Time) -> bool {
        let Some(beside) = &self.beside else { return false };
        let old = sum(totals, &self.old).since(beside);
        let new = totals.get(&self.new).cloned().unwrap_or_default();
        let new = self.warmup.pass(&new, now < self.warm_until);
        self.settings.instances = u64::try_from(self.attached.len()).unwrap_or(u64::MAX).max(1);
        let verdict = match judge(&self.base, &old, &new, &self.settings) {
            Verdict::Worse { figures, .. }
                if self.resumed && figures.against == Against::Nothing =>
            {
                Verdict::Undecided { figures }
            }
            verdict => verdict,
        };
        let kind = |verdict: &Verdict| std::mem::discriminant(verdict);
        let turned = self.verdict.as_ref().map(kind) != Some(kind(&verdict));
        let news = turned || (self.woken + SHOWN <= now && self.verdict.as_ref() != Some(&verdict));
        if news {
            self.woken = now;
        }
        self.verdict = Some(verdict);
        news
    }
}

fn sum(totals: &Totals, releases: &BTreeSet<ReleaseNo>) -> Sample {
    let some = totals.iter().filter(|(release, _)| releases.contains(release));
    some.fold(Sample::default(), |sum, (_, sample)| sum.plus(sample))
}

#[cfg(test)]
mod tests;
