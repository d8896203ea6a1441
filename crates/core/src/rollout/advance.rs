//! Whether a Rollout has come further, has failed, or is through.

use super::stage::{Stage, stage_before_last};
use super::{Gate, Phase, Reach, Rollout};
use crate::analysis::Verdict;
use crate::app::App;
use crate::error::{Code, UserError};
use crate::fleet::{
    ContainerState, Exit, Fleet, FleetSeen, ImageSeen, InstanceSeen, Part, ReleaseSpec, Revision,
    SiteSeen,
};
use crate::ids::Ordinal;
use crate::manifest::{self, Pause};
use crate::time::{Micros, Time};

/// How often in a row a new Revision may fail to start on one Instance before the Rollout
/// fails. A first failure may be a dependency that is not up yet.
pub const START_ATTEMPTS: u32 = 3;

/// What [`advance`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The phase to commit; `None` when it stays.
    pub phase: Option<Phase>,
    /// When time alone may change it.
    pub wake: Option<Time>,
    /// Why, for people.
    pub why: String,
}

fn stay(wake: Option<Time>, why: impl Into<String>) -> Advance {
    Advance { phase: None, wake, why: why.into() }
}

fn go(phase: Phase, why: impl Into<String>) -> Advance {
    Advance { phase: Some(phase), wake: None, why: why.into() }
}

/// The next phase of the App's Rollout, given the Fleet that its present phase wants, what is
/// seen of it, and what the gateway's figures say of the new Release against the old one.
pub fn advance(
    app: &App,
    fleet: &Fleet,
    seen: &FleetSeen,
    verdict: Option<&Verdict>,
    now: Time,
) -> Advance {
    let Some(rollout) = &app.rollout else { return stay(None, "no rollout yet") };
    if app.deleted {
        return stay(None, "the app is being deleted");
    }
    let one = Journey { rollout, fleet, seen, now };
    match &rollout.phase {
        Phase::Pulling => one.pulling(),
        Phase::Progressing { since, .. } | Phase::Undoing { since, .. }
            if one.is_site() && !app.stopped =>
        {
            one.site(*since)
        }
        // Without Instances nothing can be learnt of the new Revision.
        Phase::Progressing { .. } | Phase::Undoing { .. }
            if app.stopped || fleet.instances == 0 =>
        {
            stay(None, "no instance is wanted")
        }
        Phase::Progressing { batch, reach, done, since, gate } => {
            let at = Leg { batch: *batch, reach, done: *done, since: *since };
            one.progressing(&at, gate.as_ref(), verdict)
        }
        Phase::Watching { until, .. } => one.watching(*until, verdict),
        Phase::Undoing { since, why, .. } => one.undoing(*since, why),
        Phase::Done { .. }
        | Phase::Undone { .. }
        | Phase::Held { .. }
        | Phase::Superseded { .. } => stay(None, "it is over"),
    }
}

/// A Rollout under way, and what is known of it.
struct Journey<'a> {
    rollout: &'a Rollout,
    fleet: &'a Fleet,
    seen: &'a FleetSeen,
    now: Time,
}

/// Where it is between two batches.
struct Leg<'a> {
    batch: u32,
    reach: &'a Reach,
    done: u32,
    since: Time,
}

impl Journey<'_> {
    fn pulling(&self) -> Advance {
        if self.images_here() {
            let phase = self.rollout.begin(self.rules(), &self.ordinals(), self.now);
            return go(phase, "the image is here");
        }
        if let Some(why) = self.pull_failure() {
            return go(self.rollout.give_up(why, self.now), "the image cannot be fetched");
        }
        let deadline = self.rollout.started + self.rollout.deadline;
        if deadline <= self.now {
            let phase = self.rollout.give_up(timed_out(self.rollout), self.now);
            return go(phase, "the image took too long");
        }
        stay(Some(deadline), "the image is being fetched")
    }

    fn progressing(&self, at: &Leg<'_>, gate: Option<&Gate>, verdict: Option<&Verdict>) -> Advance {
        if self.seen.generation < self.fleet.generation {
            return stay(None, "the engine has not taken it up yet");
        }
        if let Some(bad) = self.bad(verdict) {
            return bad;
        }
        if let Some(reached) = self.reach_further(at) {
            return reached;
        }
        let scope = self.scope();
        let ready = self.count_done(&scope);
        let wanted = count(scope.len());
        if let Some(paused) = &self.rollout.paused {
            return stay(None, format!("{} paused it; {ready} of {wanted} done", paused.by));
        }
        if let Some(gate) = gate {
            return self.at_gate(at.batch, gate, ready == wanted);
        }
        if ready == wanted && self.nothing_to_remove() {
            return self.through(at);
        }
        if ready > at.done {
            let phase = Phase::Progressing {
                batch: at.batch,
                reach: at.reach.clone(),
                done: ready,
                since: self.now,
                gate: None,
            };
            return go(phase, "another instance is done");
        }
        if self.all_serve(&scope) {
            // What open requests of the old Containers take is bounded by their grace.
            return stay(None, format!("{ready} of {wanted} instances done, the others drain"));
        }
        let deadline = at.since + self.rollout.deadline;
        if deadline <= self.now {
            return go(self.fail(timed_out(self.rollout)), "no progress in time");
        }
        stay(Some(deadline), format!("{ready} of {wanted} instances done"))
    }

    fn is_site(&self) -> bool {
        let spec = self.fleet.releases.get(&self.rollout.to.release);
        spec.is_some_and(ReleaseSpec::is_site)
    }

    /// A site has no Instances that could change: it has changed once every gateway serves what
    /// is wanted, which is known to be whole before any does.
    fn site(&self, since: Time) -> Advance {
        if self.seen.generation < self.fleet.generation {
            return stay(None, "the engine has not taken it up yet");
        }
        let wanted = self.fleet.heading.map(|heading| heading.release);
        let undone = match &self.rollout.phase {
            Phase::Undoing { why, .. } => Some(why.clone()),
            _ => None,
        };
        let fail = |why: UserError| match &undone {
            Some(first) => self.rollout.hold(first.clone(), self.now),
            None => self.fail(why),
        };
        match &self.seen.site {
            Some(SiteSeen::Served(release)) if Some(*release) == wanted => {
                let at = self.now;
                return match undone {
                    Some(why) => go(Phase::Undone { at, why }, "the old release is served again"),
                    None => go(Phase::Done { at }, "every gateway serves the new release"),
                };
            }
            Some(SiteSeen::Unfit { release, error }) if Some(*release) == wanted => {
                return go(fail(error.clone()), "the site cannot be served");
            }
            _ => {}
        }
        if let Some(why) = self.pull_failure().filter(|_| undone.is_none()) {
            return go(fail(why), "the image cannot be fetched");
        }
        let deadline = since + self.rollout.deadline;
        if deadline <= self.now {
            return go(fail(timed_out(self.rollout)), "no progress in time");
        }
        stay(Some(deadline), "not every gateway serves it yet")
    }

    /// Every Instance had come to run the new Release; at the end of the watch all must.
    fn watching(&self, until: Time, verdict: Option<&Verdict>) -> Advance {
        if let Some(bad) = self.bad(verdict) {
            return bad;
        }
        let all = self.ordinals();
        let deadline = until + self.rollout.deadline;
        if self.now < until {
            stay(Some(until), "every instance runs the new release; it is watched")
        } else if self.all_done(&all) {
            go(Phase::Done { at: self.now }, "it went well for as long as it was watched")
        } else if self.now < deadline {
            stay(Some(deadline), "not every instance serves any more")
        } else {
            go(self.fail(timed_out(self.rollout)), "instances did not come back in time")
        }
    }

    /// After a change of size the present batch may have to reach more Instances.
    fn reach_further(&self, at: &Leg<'_>) -> Option<Advance> {
        let ordinals = self.ordinals();
        let reach = self.stage(at)?.reach(self.rules()?, &ordinals, at.reach);
        if reach == *at.reach {
            return None;
        }
        // What is waited for after the batch is waited for again once these are done.
        let (batch, done, since) = (at.batch, at.done, self.now);
        let phase = Phase::Progressing { batch, reach, done, since, gate: None };
        Some(go(phase, "the number of instances has changed"))
    }

    /// A batch is through: on to the gate, or to the end.
    fn through(&self, at: &Leg<'_>) -> Advance {
        if *at.reach == Reach::All {
            let watch =
                self.rules().map_or(Micros(0), |rules| Micros::from_millis(rules.watch.millis()));
            if self.rollout.is_trial() && self.rollout.only.is_none() && watch > Micros(0) {
                let phase = Phase::Watching { since: self.now, until: self.now + watch };
                return go(phase, "every instance runs the new release");
            }
            return go(Phase::Done { at: self.now }, "every instance runs the new revision");
        }
        let pause = self.stage(at).map(|stage| stage.pause);
        let until = match pause.or(self.rules().map(|rules| rules.pause)) {
            Some(Pause::Manual) => None,
            Some(Pause::For(span)) if span.millis() > 0 => {
                Some(self.now + Micros::from_millis(span.millis()))
            }
            _ => return self.next_batch("the batch is through"),
        };
        let phase = Phase::Progressing {
            batch: at.batch,
            reach: at.reach.clone(),
            done: at.done,
            since: self.now,
            gate: Some(Gate { since: self.now, until }),
        };
        go(phase, format!("batch {} is through", at.batch + 1))
    }

    /// The stage that it is at; `None` for one that reaches all.
    fn stage(&self, at: &Leg<'_>) -> Option<Stage<'_>> {
        let Reach::Of(_) = at.reach else { return None };
        stage_before_last(self.rules()?, at.batch, self.fleet.instances)
    }

    fn at_gate(&self, batch: u32, gate: &Gate, well: bool) -> Advance {
        let batch = batch + 1;
        match gate.until {
            Some(until) if until <= self.now && !well => {
                let deadline = until + self.rollout.deadline;
                match deadline <= self.now {
                    true => go(self.fail(timed_out(self.rollout)), "the batch did not come back"),
                    false => stay(Some(deadline), format!("batch {batch} does not serve any more")),
                }
            }
            None => stay(None, format!("batch {batch} is through; a person promotes it")),
            Some(until) if until <= self.now => self.next_batch("the pause is over"),
            Some(until) => stay(Some(until), format!("batch {batch} is through; it is paused")),
        }
    }

    fn next_batch(&self, why: &str) -> Advance {
        match self.rollout.next_batch(self.rules(), &self.ordinals(), self.now) {
            Some(phase) => go(phase, why),
            None => stay(None, "there is no further batch"),
        }
    }

    fn undoing(&self, since: Time, why: &UserError) -> Advance {
        let all = self.ordinals();
        let settled = self.seen.generation >= self.fleet.generation
            && self.all_done(&all)
            && self.nothing_to_remove();
        if settled {
            let phase = Phase::Undone { at: self.now, why: why.clone() };
            return go(phase, "every instance runs the old revision again");
        }
        if self.all_serve(&all) {
            return stay(None, "the old revision serves again; the new one drains");
        }
        let deadline = since + self.rollout.deadline;
        if deadline <= self.now {
            let phase = self.rollout.hold(why.clone(), self.now);
            return go(phase, "the old revision does not come back in time");
        }
        stay(Some(deadline), "going back")
    }

    /// What ends the Rollout because the new Revision is bad.
    fn bad(&self, verdict: Option<&Verdict>) -> Option<Advance> {
        if let Some(why) = self.trouble() {
            return Some(go(self.fail(why), "the new revision fails"));
        }
        match verdict {
            Some(Verdict::Worse { why, .. }) => {
                let why = UserError::new(
                    Code::ReleaseWorse,
                    format!(
                        "release {} is worse than the one before: {why}",
                        self.rollout.to.release
                    ),
                    "see the figures with `stead rollout status`, and what it logs with `stead logs`",
                );
                Some(go(self.fail(why), "the new release is measurably worse"))
            }
            _ => None,
        }
    }

    fn rules(&self) -> Option<&manifest::Rollout> {
        let spec = self.fleet.releases.get(&self.rollout.to.release)?;
        Some(&spec.settings.rollout)
    }

    fn ordinals(&self) -> Vec<Ordinal> {
        self.fleet.ordinals().collect()
    }

    fn images_here(&self) -> bool {
        let spec = self.fleet.releases.get(&self.rollout.to.release);
        spec.is_some_and(|spec| {
            spec.images().all(|(image, _)| self.seen.images.get(image) == Some(&ImageSeen::Present))
        })
    }

    /// Why a pull that failed fails the Rollout too. A failure from before is not its own, and
    /// a registry that was away may be back at the next attempt.
    fn pull_failure(&self) -> Option<UserError> {
        let spec = self.fleet.releases.get(&self.rollout.to.release)?;
        spec.images().find_map(|(image, _)| match self.seen.images.get(image)? {
            ImageSeen::Failed { error, at, count } => {
                let lasting = error.code != Code::RegistryUnavailable || *count >= START_ATTEMPTS;
                (lasting && *at >= self.rollout.started).then(|| error.clone())
            }
            ImageSeen::Present => None,
        })
    }

    /// Instances that the Rollout has reached.
    fn scope(&self) -> Vec<Ordinal> {
        let release = self.rollout.to.release;
        let reached = |ordinal: &Ordinal| match (self.rollout.only, &self.rollout.phase) {
            (Some(only), _) => only == *ordinal,
            (None, Phase::Progressing { reach, .. }) => reach.covers(*ordinal),
            (None, _) => self.fleet.wanted(*ordinal).is_some_and(|w| w.release == release),
        };
        self.fleet.ordinals().filter(reached).collect()
    }

    /// A restart of one Instance has nothing to go back to: it runs the same Release.
    fn fail(&self, why: UserError) -> Phase {
        if self.rollout.auto_rollback && self.rollout.only.is_none() {
            self.rollout.give_up(why, self.now)
        } else {
            self.rollout.hold(why, self.now)
        }
    }

    /// A failure of the new Revision that time will not heal.
    fn trouble(&self) -> Option<UserError> {
        if let Some(why) = self.pull_failure() {
            return Some(why);
        }
        // Those above the wanted number run it first.
        let surplus = self.fleet.surplus().filter(|_| self.rollout.only.is_none());
        self.scope().into_iter().chain(surplus).find_map(|ordinal| self.trouble_of(ordinal))
    }

    fn trouble_of(&self, ordinal: Ordinal) -> Option<UserError> {
        let instance = self.seen.instances.get(&ordinal)?;
        let revision = self.fleet.wanted(ordinal)?;
        if let Some(exit) = self.ended_for_good(instance, revision) {
            let why = instance.trouble.as_ref().filter(|trouble| trouble.revision == revision);
            let why = why.map(|trouble| trouble.error.clone());
            return Some(why.unwrap_or_else(|| ended(self.rollout, ordinal, exit)));
        }
        let all = instance.trouble.iter().chain(instance.sidecar_trouble.values());
        all.filter(|trouble| trouble.revision == revision).find_map(|trouble| {
            let lasting = trouble.count >= START_ATTEMPTS
                || trouble.was_ready
                || matches!(
                    trouble.error.code,
                    Code::NeverReady
                        | Code::CannotStart
                        | Code::DiskFull
                        | Code::ImageRefused
                        | Code::HookFailed
                );
            lasting.then(|| trouble.error.clone())
        })
    }

    /// How what is wanted ended by itself, when it is not started again.
    fn ended_for_good(&self, instance: &InstanceSeen, revision: Revision) -> Option<Exit> {
        let spec = self.fleet.releases.get(&revision.release)?;
        instance.mains().find_map(|container| match container.state {
            ContainerState::Exited(exit) if container.revision == revision => {
                (!exit.intended && !spec.runs_again_after(exit)).then_some(exit)
            }
            _ => None,
        })
    }

    /// Instances in `scope` that run exactly what is wanted, and take traffic.
    fn count_done(&self, scope: &[Ordinal]) -> u32 {
        count(scope.iter().filter(|ordinal| self.is_done(**ordinal)).count())
    }

    fn all_done(&self, scope: &[Ordinal]) -> bool {
        scope.iter().all(|ordinal| self.is_done(*ordinal))
    }

    /// Whether what is wanted serves everywhere, be there something else still or not.
    fn all_serve(&self, scope: &[Ordinal]) -> bool {
        scope.iter().all(|ordinal| {
            let serving = self.seen.instances.get(ordinal).and_then(InstanceSeen::serving);
            serving.map(|container| container.revision) == self.fleet.wanted(*ordinal)
        }) && self.nothing_to_remove()
    }

    fn is_done(&self, ordinal: Ordinal) -> bool {
        let Some(revision) = self.fleet.wanted(ordinal) else { return false };
        let spec = self.fleet.releases.get(&revision.release);
        let (Some(instance), Some(spec)) = (self.seen.instances.get(&ordinal), spec) else {
            return false;
        };
        let mut alive = instance.containers.iter().filter(|c| c.alive());
        let well = |part: &Part| {
            instance.of(part).any(|c| {
                c.revision == revision && if part.is_main() { c.serves() } else { c.ready() }
            })
        };
        spec.parts().all(|part| well(&part)) && alive.all(|c| c.revision == revision)
    }

    fn nothing_to_remove(&self) -> bool {
        self.seen.instances.keys().all(|ordinal| self.fleet.wanted(*ordinal).is_some())
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn timed_out(rollout: &Rollout) -> UserError {
    UserError::new(
        Code::RolloutTimedOut,
        format!("rollout {} made no progress for {}", rollout.number, rollout.deadline),
        "look at `stead status` and `stead logs`; raise rollout.progress_deadline if it needs longer",
    )
}

fn ended(rollout: &Rollout, ordinal: Ordinal, exit: Exit) -> UserError {
    UserError::new(
        Code::ExitedAtOnce,
        format!(
            "instance {ordinal} ended with exit code {} in rollout {}, and `restart` says that it \
             is not started again",
            exit.code, rollout.number
        ),
        "an app serves until it is stopped; see why it ended with `stead logs`",
    )
}
