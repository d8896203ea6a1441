//! Whether a Rollout has come further, has failed, or is through.

use super::{Phase, Rollout};
use crate::app::App;
use crate::error::{Code, UserError};
use crate::fleet::{ContainerState, Exit, Fleet, FleetSeen, ImageSeen, InstanceSeen, Revision};
use crate::ids::Ordinal;
use crate::time::Time;

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

/// The next phase of the App's Rollout, given the Fleet that its present phase wants.
pub fn advance(app: &App, fleet: &Fleet, seen: &FleetSeen, now: Time) -> Advance {
    let stay = |wake, why: String| Advance { phase: None, wake, why };
    let go = |phase: Phase, why: &str| Advance { phase: Some(phase), wake: None, why: why.into() };
    let Some(rollout) = &app.rollout else { return stay(None, "no rollout yet".into()) };
    if app.deleted {
        return stay(None, "the app is being deleted".into());
    }
    let deadline = |since: Time| since + rollout.deadline;
    match &rollout.phase {
        Phase::Pulling => {
            let image = image(rollout, fleet, seen);
            if image == Some(&ImageSeen::Present) {
                return go(Phase::Progressing { done: 0, since: now }, "the image is here");
            }
            if let Some(why) = image.and_then(|image| pull_failure(rollout, image)) {
                return go(rollout.give_up(why, now), "the image cannot be fetched");
            }
            if deadline(rollout.started) <= now {
                return go(rollout.give_up(timed_out(rollout), now), "the image took too long");
            }
            stay(Some(deadline(rollout.started)), "the image is being fetched".into())
        }
        // Without Instances nothing can be learnt of the new Revision.
        Phase::Progressing { .. } if app.stopped => stay(None, "the app is stopped".into()),
        Phase::Progressing { done, since } => {
            if seen.generation < fleet.generation {
                return stay(None, "the engine has not taken it up yet".into());
            }
            let scope = scope(rollout, fleet);
            if let Some(why) = trouble(rollout, fleet, seen, &scope) {
                return go(fail(rollout, why, now), "the new revision fails");
            }
            let ready = count_done(fleet, seen, &scope);
            let wanted = u32::try_from(scope.len()).unwrap_or(u32::MAX);
            if ready == wanted && no_surplus(fleet, seen) {
                return go(Phase::Done { at: now }, "every instance runs the new revision");
            }
            if ready > *done {
                let phase = Phase::Progressing { done: ready, since: now };
                return go(phase, "another instance is done");
            }
            if deadline(*since) <= now {
                return go(fail(rollout, timed_out(rollout), now), "no progress in time");
            }
            stay(Some(deadline(*since)), format!("{ready} of {wanted} instances done"))
        }
        Phase::Undoing { why } => {
            let scope = scope(rollout, fleet);
            let settled = seen.generation >= fleet.generation
                && count_done(fleet, seen, &scope) as usize == scope.len()
                && no_surplus(fleet, seen);
            if settled {
                let phase = Phase::Undone { at: now, why: why.clone() };
                go(phase, "every instance runs the old revision again")
            } else {
                stay(None, "going back".into())
            }
        }
        Phase::Done { .. }
        | Phase::Undone { .. }
        | Phase::Held { .. }
        | Phase::Superseded { .. } => stay(None, "it is over".into()),
    }
}

fn image<'a>(rollout: &Rollout, fleet: &Fleet, seen: &'a FleetSeen) -> Option<&'a ImageSeen> {
    seen.images.get(&fleet.releases.get(&rollout.to.release)?.image)
}

/// Instances that the Rollout changes.
fn scope(rollout: &Rollout, fleet: &Fleet) -> Vec<Ordinal> {
    let all = (0..fleet.instances).map(Ordinal);
    all.filter(|ordinal| rollout.only.is_none_or(|only| only == *ordinal)).collect()
}

/// Why a pull that failed fails the Rollout too. A failure from before is not its own, and a
/// registry that was away may be back at the next attempt.
fn pull_failure(rollout: &Rollout, image: &ImageSeen) -> Option<UserError> {
    match image {
        ImageSeen::Failed { error, at, count } => {
            let lasting = error.code != Code::RegistryUnavailable || *count >= START_ATTEMPTS;
            (lasting && *at >= rollout.started).then(|| error.clone())
        }
        ImageSeen::Present => None,
    }
}

/// A restart of one Instance has nothing to go back to: it runs the same Release.
fn fail(rollout: &Rollout, why: UserError, now: Time) -> Phase {
    if rollout.auto_rollback && rollout.only.is_none() {
        rollout.give_up(why, now)
    } else {
        Phase::Held { at: now, why }
    }
}

fn timed_out(rollout: &Rollout) -> UserError {
    UserError::new(
        Code::RolloutTimedOut,
        format!("rollout {} made no progress for {}", rollout.number, rollout.deadline),
        "look at `stead status` and `stead logs`; raise rollout.progress_deadline if it needs longer",
    )
}

/// A failure of the new Revision that time will not heal.
fn trouble(
    rollout: &Rollout,
    fleet: &Fleet,
    seen: &FleetSeen,
    scope: &[Ordinal],
) -> Option<UserError> {
    let image = image(rollout, fleet, seen);
    if let Some(why) = image.and_then(|image| pull_failure(rollout, image)) {
        return Some(why);
    }
    scope.iter().find_map(|ordinal| {
        let instance = seen.instances.get(ordinal)?;
        let revision = fleet.wanted(*ordinal)?;
        let trouble = instance.trouble.as_ref().filter(|trouble| trouble.revision == revision);
        if let Some(exit) = ended_for_good(instance, revision, fleet) {
            let why = trouble.map(|trouble| trouble.error.clone());
            return Some(why.unwrap_or_else(|| ended(rollout, *ordinal, exit)));
        }
        let trouble = trouble?;
        let lasting = trouble.count >= START_ATTEMPTS
            || matches!(
                trouble.error.code,
                Code::NeverReady | Code::CannotStart | Code::DiskFull | Code::ImageRefused
            );
        lasting.then(|| trouble.error.clone())
    })
}

/// How what is wanted ended by itself, when it is not started again.
fn ended_for_good(instance: &InstanceSeen, revision: Revision, fleet: &Fleet) -> Option<Exit> {
    let spec = fleet.releases.get(&revision.release)?;
    instance.containers.iter().find_map(|container| match container.state {
        ContainerState::Exited(exit) if container.revision == revision => {
            (!exit.intended && !spec.runs_again_after(exit)).then_some(exit)
        }
        _ => None,
    })
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

/// Instances in `scope` that run exactly what is wanted, and take traffic.
fn count_done(fleet: &Fleet, seen: &FleetSeen, scope: &[Ordinal]) -> u32 {
    let done = |ordinal: &&Ordinal| match (seen.instances.get(ordinal), fleet.wanted(**ordinal)) {
        (Some(instance), Some(revision)) => is_done(instance, revision),
        _ => false,
    };
    u32::try_from(scope.iter().filter(done).count()).unwrap_or(u32::MAX)
}

fn is_done(instance: &InstanceSeen, revision: Revision) -> bool {
    let mut alive = instance.containers.iter().filter(|c| c.alive());
    let serves = alive.next().is_some_and(|c| c.revision == revision && c.serves());
    serves && alive.next().is_none()
}

fn no_surplus(fleet: &Fleet, seen: &FleetSeen) -> bool {
    seen.instances.keys().all(|ordinal| ordinal.0 < fleet.instances)
}
