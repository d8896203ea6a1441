//! An App's whole intent in one record, and the verbs that change it.
//!
//! One record means one compare-and-set: a change of a person is committed whole, and there
//! is at most one active Rollout by construction. Each verb is pure: it takes the App and
//! gives the App that shall be committed, with its generation raised.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Code, UserError};
use crate::fleet::Revision;
use crate::ids::{Digest, Generation, Ordinal, ReleaseNo, RolloutNo};
use crate::manifest::Manifest;
use crate::name::AppKey;
use crate::rollout::{Phase, Rollout, RolloutKind};
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
    /// What ran when the last Rollout ended well.
    pub stable: Option<Revision>,
    /// The Release before the stable one: what `rollback` without a number means.
    pub before: Option<ReleaseNo>,
    /// The last Release made.
    pub last_release: ReleaseNo,
    /// The last run given out.
    pub last_run: u32,
    /// The current Rollout, or the last one.
    pub rollout: Option<Rollout>,
    /// Instances that were restarted by themselves, by the run they shall have once the
    /// Rollout progresses. [`App::reruns_in_force`] says what holds now.
    pub reruns: BTreeMap<Ordinal, u32>,
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
    /// Everything else.
    pub settings: Manifest,
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
            stable: None,
            before: None,
            last_release: ReleaseNo(0),
            last_run: 0,
            rollout: None,
            reruns: BTreeMap::new(),
        }
    }

    /// What Instances shall run now.
    pub fn target(&self) -> Option<Revision> {
        match &self.rollout {
            Some(rollout) => rollout.target(),
            None => self.stable,
        }
    }

    /// What Instances shall run in the end: a Release that is still being fetched included.
    pub fn heading(&self) -> Option<Revision> {
        match &self.rollout {
            Some(Rollout { phase: Phase::Pulling, to, .. }) => Some(*to),
            _ => self.target(),
        }
    }

    /// Instances that run again apart from the others now, by their run.
    pub fn reruns_in_force(&self) -> &BTreeMap<Ordinal, u32> {
        match &self.rollout {
            Some(rollout) => match rollout.phase {
                Phase::Pulling
                | Phase::Undoing { .. }
                | Phase::Undone { .. }
                | Phase::Superseded { .. } => &rollout.from_reruns,
                Phase::Progressing { .. } | Phase::Done { .. } | Phase::Held { .. } => &self.reruns,
            },
            None => &self.reruns,
        }
    }

    /// The Rollout that is under way.
    pub fn active(&self) -> Option<&Rollout> {
        self.rollout.as_ref().filter(|rollout| !rollout.phase.is_final())
    }

    /// Releases that an engine must know: what runs, what is coming, what may come back.
    pub fn releases_needed(&self) -> Vec<ReleaseNo> {
        let rollout = self.rollout.as_ref();
        let mut needed: Vec<ReleaseNo> = [
            self.target().map(|r| r.release),
            self.stable.map(|r| r.release),
            self.before,
            rollout.and_then(|r| r.from).map(|r| r.release),
            self.active().and_then(|r| r.meanwhile).map(|r| r.release),
            rollout.filter(|r| !r.phase.is_final()).map(|r| r.to.release),
        ]
        .into_iter()
        .flatten()
        .collect();
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

    /// Runs the same Release again: on every Instance, or on one.
    pub fn restart(
        &mut self,
        only: Option<Ordinal>,
        settings: &Manifest,
        change: Change,
    ) -> Result<RolloutNo, UserError> {
        let Some(current) = self.target().filter(|_| !self.stopped) else {
            return Err(not_running(&self.key));
        };
        if let Some(ordinal) = only.filter(|o| o.0 >= self.instances) {
            return Err(UserError::new(
                Code::NotFound,
                format!("app {} has no instance {ordinal}", self.key),
                format!("it has the instances 0 to {}", self.instances.saturating_sub(1)),
            ));
        }
        if let Some(rollout) = self.active() {
            return Err(UserError::new(
                Code::Conflict,
                format!("rollout {} of app {} is under way", rollout.number, self.key),
                "wait for it, or end it with `stead rollout abort`",
            ));
        }
        Ok(self.begin(current.release, settings, only, change))
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
        let meanwhile = self.target();
        let in_force = self.reruns_in_force().clone();
        let (mut from, from_reruns) = match self.rollout.take() {
            // What it was going to is not to go back to. A restart of one Instance changes no
            // Release, so what it did stays.
            Some(old) if old.only.is_none() && !old.phase.is_settled() => {
                (old.from, old.from_reruns)
            }
            _ => (self.stable, in_force.clone()),
        };
        let to = match only {
            // The others keep what they run; the one is asked to run again.
            Some(ordinal) => {
                from = meanwhile;
                self.reruns = in_force;
                self.reruns.insert(ordinal, run);
                meanwhile.unwrap_or(Revision { release, run })
            }
            None => {
                self.reruns.clear();
                Revision { release, run }
            }
        };
        let number = RolloutNo(self.last_run);
        // Where nothing runs there is nothing to protect: Sandboxes are made beside the pull.
        let phase = if change.image_here || from.is_none() || self.stopped {
            Phase::Progressing { done: 0, since: change.now }
        } else {
            Phase::Pulling
        };
        self.rollout = Some(Rollout {
            number,
            kind: change.kind,
            from,
            from_reruns,
            meanwhile,
            to,
            only,
            phase,
            started: change.now,
            deadline: Micros::from_millis(settings.rollout.progress_deadline.millis()),
            auto_rollback: settings.rollout.auto_rollback,
            by: change.by,
            message: change.message,
        });
        number
    }

    /// Commits what [`crate::rollout::advance`] found.
    pub fn enter(&mut self, phase: Phase) {
        self.generation = self.generation.next();
        let Some(rollout) = &mut self.rollout else { return };
        // A restart of one Instance says nothing of the others.
        if matches!(phase, Phase::Done { .. }) && rollout.only.is_none() {
            if let Some(from) = self.stable.filter(|from| from.release != rollout.to.release) {
                self.before = Some(from.release);
            }
            self.stable = Some(rollout.to);
        }
        rollout.phase = phase;
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
        self.instances = instances;
        self.count_anew(now);
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
        if let Some(Rollout { phase: Phase::Progressing { done, since }, .. }) = &mut self.rollout {
            (*done, *since) = (0, now);
        }
    }

    /// Deletes it. Its record goes once nothing of it is left.
    pub fn delete(&mut self) {
        self.generation = self.generation.next();
        self.deleted = true;
    }
}

fn not_running(key: &AppKey) -> UserError {
    UserError::new(
        Code::NoInstance,
        format!("app {key} is not running"),
        "start it with `stead start`, or deploy it",
    )
}
