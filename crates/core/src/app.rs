//! An App's whole intent in one record, and the verbs that change it.
//!
//! One record means one compare-and-set: a change of a person is committed whole, and there
//! is at most one active Rollout by construction. Each verb is pure: it takes the App and
//! gives the App that shall be committed, with its generation raised.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Code, UserError};
use crate::fleet::{Lineup, Revision};
use crate::ids::{Digest, Generation, Ordinal, ReleaseNo, RolloutNo};
use crate::manifest::{self, EnvName, Manifest};
use crate::name::AppKey;
use crate::rollout::{Paused, Phase, Reach, Rollout, RolloutKind};
use crate::time::{Micros, Time};

/// What a person names inside a Namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct App {
    /// Its full name.
    pub key: AppKey,
    /// Rises with every committed change.
    pub generation: Generation,
    /// When it was first deployed.
    pub created: Time,
    /// Wanted number of Instances while it is not stopped.
    pub instances: u32,
    /// A person stopped it.
    pub stopped: bool,
    /// A person deleted it; the record goes once nothing of it is left.
    pub deleted: bool,
    /// Its volumes are to go with it.
    #[serde(default)]
    pub delete_volumes: bool,
    /// Ordinals of Instances that a person took away by name.
    #[serde(default)]
    pub absent: BTreeSet<Ordinal>,
    /// What ran when the last Rollout ended well.
    pub stable: Option<Lineup>,
    /// The Release before the stable one: what `rollback` without a number means.
    pub before: Option<ReleaseNo>,
    /// The last Release made.
    pub last_release: ReleaseNo,
    /// The last run given out.
    pub last_run: u32,
    /// The current Rollout, or the last one.
    pub rollout: Option<Rollout>,
}

/// A Release: immutable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Release {
    /// The App.
    pub app: AppKey,
    /// Its number within the App.
    pub number: ReleaseNo,
    /// The reference a person gave.
    pub reference: String,
    /// What it resolved to.
    pub image: Digest,
    /// The images of the sidecars, by their names.
    #[serde(default)]
    pub sidecars: BTreeMap<String, Digest>,
    /// Everything else.
    pub settings: Manifest,
    /// Versions of the secrets that the settings name. Values are kept elsewhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, u32>)]
    pub secrets: BTreeMap<EnvName, u32>,
    /// When it was made.
    pub created: Time,
    /// Who made it.
    pub by: String,
    /// Why, in that person's words.
    pub message: Option<String>,
}

/// Who changes an App, when and why.
#[derive(Debug, Clone)]
pub struct Change {
    /// What is asked for.
    pub kind: RolloutKind,
    /// When.
    pub now: Time,
    /// By whom.
    pub by: String,
    /// Why.
    pub message: Option<String>,
    /// The image is known to be on the machine: the phase of pulling is left out.
    pub image_here: bool,
}

impl App {
    /// An App before its first Release.
    pub fn new(key: AppKey, instances: u32, now: Time) -> Self {
        Self {
            key,
            generation: Generation(0),
            created: now,
            instances,
            stopped: false,
            deleted: false,
            delete_volumes: false,
            absent: BTreeSet::new(),
            stable: None,
            before: None,
            last_release: ReleaseNo(0),
            last_run: 0,
            rollout: None,
        }
    }

    /// What each Instance shall run now.
    pub fn lineup(&self) -> Option<Lineup> {
        match &self.rollout {
            Some(rollout) => rollout.lineup(),
            None => self.stable.clone(),
        }
    }

    /// What an Instance shall run now that no Rollout has reached and nobody restarted.
    pub fn target(&self) -> Option<Revision> {
        self.lineup().map(|lineup| lineup.base)
    }

    /// What Instances shall run in the end: a Release that is still being fetched, or that
    /// has not reached all of them, included.
    pub fn heading(&self) -> Option<Revision> {
        match &self.rollout {
            Some(Rollout { phase: Phase::Pulling | Phase::Progressing { .. }, to, .. }) => {
                Some(*to)
            }
            _ => self.target(),
        }
    }

    /// The Rollout that is under way.
    pub fn active(&self) -> Option<&Rollout> {
        self.rollout.as_ref().filter(|rollout| !rollout.phase.is_final())
    }

    /// Releases that an engine must know: what runs, what is coming, what may come back.
    pub fn releases_needed(&self) -> Vec<ReleaseNo> {
        let rollout = self.rollout.as_ref();
        let active = self.active();
        let lineups = [
            self.lineup(),
            self.stable.clone(),
            rollout.and_then(|r| r.from.clone()),
            active.and_then(|r| r.meanwhile.clone()),
        ];
        let mut needed: Vec<ReleaseNo> =
            lineups.iter().flatten().flat_map(|lineup| lineup.releases()).collect();
        needed.extend(self.before);
        needed.extend(active.map(|r| r.to.release));
        needed.sort_unstable();
        needed.dedup();
        needed
    }

    /// Starts a Rollout to `release`. One that is under way is superseded; what it came from
    /// is what this one goes back to.
    pub fn roll_out(
        &mut self,
        release: ReleaseNo,
        settings: &Manifest,
        change: Change,
    ) -> RolloutNo {
        let number = self.begin(release, settings, None, change);
        if release > self.last_release {
            self.last_release = release;
        }
        self.stopped = false;
        number
    }

    /// Runs the same Release again: on every Instance, or on one. While a Rollout is under way
    /// this is a part of it.
    pub fn restart(
        &mut self,
        only: Option<Ordinal>,
        settings: &Manifest,
        change: Change,
    ) -> Result<RolloutNo, UserError> {
        let Some(current) = self.target().filter(|_| !self.stopped) else {
            return Err(not_running(&self.key));
        };
        if settings.site.is_some() {
            return Err(UserError::new(
                Code::Conflict,
                format!("app {} is a site: nothing of it runs", self.key),
                "deploy it again to change what is served",
            ));
        }
        if let Some(ordinal) = only.filter(|ordinal| !self.has(*ordinal)) {
            return Err(self.no_instance(ordinal));
        }
        let ordinals = self.ordinals();
        // Each would have to run what it runs; only a Rollout under way knows what that is.
        if only.is_none()
            && self.active().is_none()
            && self.lineup().is_some_and(|lineup| lineup.is_mixed(&ordinals))
        {
            return Err(UserError::new(
                Code::Conflict,
                format!("instances of app {} run different releases", self.key),
                "deploy or roll back first, or restart them one by one with --instance",
            ));
        }
        if self.rollout.as_ref().is_some_and(|r| matches!(r.phase, Phase::Watching { .. })) {
            // It is a part of what is watched, which is watched anew after it.
            let (reach, since) = (Reach::All, change.now);
            self.enter(Phase::Progressing { batch: 0, reach, done: 0, since, gate: None });
        }
        if let Some(rollout) = &mut self.rollout
            && !rollout.phase.is_final()
        {
            self.last_run += 1;
            let run = self.last_run;
            let chosen = ordinals.into_iter().filter(|o| only.is_none_or(|only| only == *o));
            rollout.again.extend(chosen.map(|ordinal| (ordinal, run)));
            let number = rollout.number;
            self.generation = self.generation.next();
            self.count_anew(change.now);
            return Ok(number);
        }
        Ok(self.begin(current.release, settings, only, change))
    }

    /// The ordinals of its Instances, lowest first.
    pub fn ordinals(&self) -> Vec<Ordinal> {
        let present = (0..).map(Ordinal).filter(|ordinal| !self.absent.contains(ordinal));
        present.take(self.instances as usize).collect()
    }

    fn has(&self, ordinal: Ordinal) -> bool {
        self.ordinals().contains(&ordinal)
    }

    fn no_instance(&self, ordinal: Ordinal) -> UserError {
        let all: Vec<String> = self.ordinals().iter().map(ToString::to_string).collect();
        UserError::new(
            Code::NotFound,
            format!("app {} has no instance {ordinal}", self.key),
            format!("it has these: {}", all.join(", ")),
        )
    }

    fn begin(
        &mut self,
        release: ReleaseNo,
        settings: &Manifest,
        only: Option<Ordinal>,
        change: Change,
    ) -> RolloutNo {
        self.generation = self.generation.next();
        self.last_run += 1;
        let run = self.last_run;
        let meanwhile = self.lineup();
        let restart = change.kind == RolloutKind::Restart;
        let from = match self.rollout.take() {
            // What it was going to is not to go back to. A restart of one Instance changes no
            // Release, so what it did stays.
            Some(Rollout { only, phase, from, to, .. }) if !phase.is_settled() => {
                let kept = only.zip(meanwhile.as_ref()).map(|(only, now)| (only, now.of(only)));
                from.map(|from| match kept {
                    Some((only, now)) if from.of(only).release == to.release => {
                        from.with([only], now)
                    }
                    _ => from,
                })
            }
            _ if only.is_some() => meanwhile.clone(),
            _ => self.stable.clone(),
        };
        let current = meanwhile.as_ref().map(|lineup| only.map_or(lineup.base, |o| lineup.of(o)));
        let to = Revision {
            release: only.and(current).map_or(release, |current| current.release),
            run,
            since: if restart { run } else { current.map_or(0, |current| current.since) },
        };
        let number = RolloutNo(run);
        let waits = !change.image_here && from.is_some() && !self.stopped;
        let mut rollout = Rollout {
            number,
            kind: change.kind,
            from,
            meanwhile,
            before: self.before,
            to,
            only,
            again: BTreeMap::new(),
            paused: None,
            phase: Phase::Pulling,
            started: change.now,
            deadline: Micros::from_millis(settings.rollout.progress_deadline.millis()),
            auto_rollback: settings.rollout.auto_rollback,
            by: change.by,
            message: change.message,
        };
        // Where nothing runs there is nothing to protect: Sandboxes are made beside the pull.
        if !waits {
            rollout.phase = rollout.begin(Some(&settings.rollout), &self.ordinals(), change.now);
        }
        self.rollout = Some(rollout);
        number
    }

    /// Commits what [`crate::rollout::advance`] found.
    pub fn enter(&mut self, phase: Phase) {
        self.generation = self.generation.next();
        let Some(rollout) = &mut self.rollout else { return };
        let was_through = rollout.phase.is_through();
        rollout.phase = phase;
        if let Some(only) = rollout.only {
            // A restart of one Instance makes no Release stable, and says nothing of the one
            // before.
            if rollout.phase.is_through()
                && let Some(stable) = &mut self.stable
                && stable.of(only).release == rollout.to.release
            {
                *stable = stable.with([only], rollout.to);
            }
        } else if rollout.phase.is_through() {
            let from = self.stable.as_ref().map(|lineup| lineup.base.release);
            if let Some(from) = from.filter(|from| *from != rollout.to.release) {
                self.before = Some(from);
            }
            self.stable = rollout.lineup();
        } else if was_through {
            // It proved bad after all.
            self.before = rollout.before;
            self.stable = rollout.from.clone();
        }
    }

    /// Stops the Rollout where it is: what has begun is finished, no other Instance changes.
    pub fn pause(&mut self, by: &str, now: Time) -> Result<(), UserError> {
        let key = self.key.clone();
        let Some(rollout) = self
            .rollout
            .as_mut()
            .filter(|rollout| matches!(rollout.phase, Phase::Pulling | Phase::Progressing { .. }))
        else {
            return Err(nothing_under_way(&key, "only a rollout that changes instances is paused"));
        };
        if rollout.paused.is_none() {
            rollout.paused = Some(Paused { at: now, by: by.to_owned() });
            self.generation = self.generation.next();
        }
        Ok(())
    }

    /// Lets a paused Rollout go on, with its whole time again.
    pub fn resume(&mut self, now: Time) -> Result<(), UserError> {
        let key = self.key.clone();
        let Some(rollout) = self.rollout.as_mut().filter(|rollout| rollout.is_paused()) else {
            return Err(nothing_under_way(&key, "no rollout of it is paused"));
        };
        rollout.paused = None;
        self.generation = self.generation.next();
        self.count_anew(now);
        Ok(())
    }

    /// A person is content: the next batch begins without waiting, or with `all` everything
    /// that is left; a Release that is only watched any more is done.
    pub fn promote(
        &mut self,
        rules: &manifest::Rollout,
        all: bool,
        now: Time,
    ) -> Result<(), UserError> {
        let (key, ordinals) = (self.key.clone(), self.ordinals());
        let refused = |why: &str| Err(nothing_under_way(&key, why));
        let Some(rollout) = &mut self.rollout else { return refused("nothing was deployed yet") };
        let phase = match &rollout.phase {
            Phase::Watching { .. } => Phase::Done { at: now },
            Phase::Progressing { batch, .. } if all => Phase::Progressing {
                batch: batch + 1,
                reach: Reach::All,
                done: 0,
                since: now,
                gate: None,
            },
            Phase::Progressing { gate: Some(_), .. } => {
                match rollout.next_batch(Some(rules), &ordinals, now) {
                    Some(phase) => phase,
                    None => return refused("it has reached every instance already"),
                }
            }
            Phase::Progressing { .. } => {
                return refused("its batch is still under way; `--all` does not wait for it");
            }
            _ => return refused("no rollout of it waits for anybody"),
        };
        rollout.paused = None;
        self.enter(phase);
        Ok(())
    }

    /// Ends the Rollout that is under way and goes back to what was before.
    pub fn abort(&mut self, by: &str, now: Time) -> Result<(), UserError> {
        let Some(rollout) = self.active() else {
            return Err(UserError::new(
                Code::Conflict,
                format!("app {} has no rollout under way", self.key),
                "`stead rollback` goes back to an earlier release",
            ));
        };
        let why = UserError::new(
            Code::RolloutAborted,
            format!("rollout {} was aborted by {by}", rollout.number),
            "deploy again when the reason is gone",
        );
        if matches!(rollout.phase, Phase::Undoing { .. }) {
            return Ok(());
        }
        let phase = rollout.give_up(why, now);
        self.enter(phase);
        Ok(())
    }

    /// Sets the wanted number of Instances. A Rollout that is under way has its whole time
    /// again: those it had brought up may be the ones that go.
    pub fn scale(&mut self, instances: u32, now: Time) {
        self.generation = self.generation.next();
        // Those taken away by name come back first.
        for _ in self.instances..instances {
            self.absent.pop_first();
        }
        self.instances = instances;
        self.forget_absent();
        self.count_anew(now);
    }

    /// Takes Instances away by name; the others keep their ordinals.
    pub fn remove(&mut self, chosen: &BTreeSet<Ordinal>, now: Time) -> Result<(), UserError> {
        if let Some(missing) = chosen.iter().find(|ordinal| !self.has(**ordinal)) {
            return Err(self.no_instance(*missing));
        }
        self.generation = self.generation.next();
        self.instances -= u32::try_from(chosen.len()).unwrap_or(self.instances);
        self.absent.extend(chosen);
        self.forget_absent();
        self.count_anew(now);
        Ok(())
    }

    /// Above the highest Instance nothing is missing.
    fn forget_absent(&mut self) {
        let highest = self.ordinals().last().copied();
        self.absent.retain(|ordinal| highest.is_some_and(|highest| *ordinal < highest));
    }

    /// Stops it: no Instance, requests are refused. Volumes and Releases stay.
    pub fn stop(&mut self) {
        self.generation = self.generation.next();
        self.stopped = true;
    }

    /// Starts it again after [`App::stop`]. A Rollout that was under way goes on, and has its
    /// whole time again.
    pub fn start(&mut self, now: Time) {
        self.generation = self.generation.next();
        self.stopped = false;
        self.count_anew(now);
    }

    /// What a Rollout has come to is counted from here on.
    fn count_anew(&mut self, now: Time) {
        match self.rollout.as_mut().map(|rollout| &mut rollout.phase) {
            Some(Phase::Progressing { done, since, .. }) => (*done, *since) = (0, now),
            Some(Phase::Undoing { since, .. }) => *since = now,
            _ => {}
        }
    }

    /// Deletes it. Its record goes once nothing of it is left.
    pub fn delete(&mut self) {
        self.generation = self.generation.next();
        self.deleted = true;
    }
}

fn nothing_under_way(key: &AppKey, why: &str) -> UserError {
    UserError::new(
        Code::Conflict,
        format!("app {key}: {why}"),
        format!("`stead rollout status {}` shows where it is", key.app),
    )
}

fn not_running(key: &AppKey) -> UserError {
    UserError::new(
        Code::NoInstance,
        format!("app {key} is not running"),
        "start it with `stead start`, or deploy it",
    )
}
