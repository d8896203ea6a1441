//! Whether a Rollout has come further, has failed, or is through.

use super::{Phase, Rollout};
use crate::app::App;
use crate::error::{Code, UserError};
use crate::fleet::TrafficState;
use crate::fleet::{ContainerState, Fleet, FleetSeen, Health, ImageSeen, InstanceSeen, Revision};
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
    let deadline = |since: Time| since + rollout.deadline;
    match &rollout.phase {
        Phase::Pulling => match image(rollout, fleet, seen) {
            Some(ImageSeen::Present) => {
                go(Phase::Progressing { done: 0, since: now }, "the image is here")
            }
            Some(ImageSeen::Failed { error, .. }) => {
                go(fail_untouched(rollout, error.clone(), now), "the image cannot be fetched")
            }
            None if deadline(rollout.started) <= now => {
                go(fail_untouched(rollout, timed_out(rollout), now), "the image took too long")
            }
            None => stay(Some(deadline(rollout.started)), "the image is being fetched".into()),
        },
        Phase::Progressing { done, since } => {
            if seen.generation < fleet.generation {
                return stay(Some(deadline(*since)), "the engine has not taken it up yet".into());
            }
            if let Some(why) = trouble(fleet, seen) {
                return go(fail(rollout, why, now), "the new revision fails");
            }
            let ready = count_done(fleet, seen);
            if ready == fleet.instances && no_surplus(fleet, seen) {
                return go(Phase::Done { at: now }, "every instance runs the new revision");
            }
            if ready > *done {
                let phase = Phase::Progressing { done: ready, since: now };
                return go(phase, "another instance is done");
            }
            if deadline(*since) <= now {
                return go(fail(rollout, timed_out(rollout), now), "no progress in time");
            }
            stay(Some(deadline(*since)), format!("{ready} of {} instances done", fleet.instances))
        }
        Phase::Undoing { why } => {
            let settled = seen.generation >= fleet.generation
                && count_done(fleet, seen) == fleet.instances
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

/// A failure before anything was touched: what ran before goes on.
fn fail_untouched(rollout: &Rollout, why: UserError, now: Time) -> Phase {
    match rollout.from {
        Some(_) => Phase::Undone { at: now, why },
        None => Phase::Held { at: now, why },
    }
}

fn fail(rollout: &Rollout, why: UserError, now: Time) -> Phase {
    if rollout.auto_rollback && rollout.from.is_some() {
        Phase::Undoing { why }
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
fn trouble(fleet: &Fleet, seen: &FleetSeen) -> Option<UserError> {
    let image = fleet.target_spec().and_then(|spec| seen.images.get(&spec.image));
    if let Some(ImageSeen::Failed { error, .. }) = image {
        return Some(error.clone());
    }
    seen.instances.iter().find_map(|(ordinal, instance)| {
        let trouble = instance.trouble.as_ref()?;
        let ours = Some(trouble.revision) == fleet.wanted(*ordinal);
        let lasting = trouble.count >= START_ATTEMPTS
            || matches!(
                trouble.error.code,
                Code::NeverReady | Code::CannotStart | Code::DiskFull | Code::ImageRefused
            );
        (ours && lasting).then(|| trouble.error.clone())
    })
}

/// Instances that run exactly what is wanted, and take traffic.
fn count_done(fleet: &Fleet, seen: &FleetSeen) -> u32 {
    let done = |n: &u32| {
        let ordinal = Ordinal(*n);
        match (seen.instances.get(&ordinal), fleet.wanted(ordinal)) {
            (Some(instance), Some(revision)) => is_done(instance, revision),
            _ => false,
        }
    };
    u32::try_from((0..fleet.instances).filter(done).count()).unwrap_or(u32::MAX)
}

fn is_done(instance: &InstanceSeen, revision: Revision) -> bool {
    let running = instance.containers.iter().filter(|c| c.alive());
    let mut good = 0;
    for container in running {
        let serves =
            matches!(container.state, ContainerState::Running { health: Health::Ready, .. })
                && container.traffic == TrafficState::Attached;
        if container.revision != revision || !serves {
            return false;
        }
        good += 1;
    }
    good == 1
}

fn no_surplus(fleet: &Fleet, seen: &FleetSeen) -> bool {
    seen.instances.keys().all(|ordinal| ordinal.0 < fleet.instances)
}
