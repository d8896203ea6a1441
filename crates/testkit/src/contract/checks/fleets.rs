//! Checks of Fleets: what becomes of Instances, Containers and their traffic.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use stead_core::engine::EngineError;
use stead_core::error::Code;
use stead_core::fleet::{Fleet, FleetSeen, Revision, Trouble, backoff};
use stead_core::ids::{Generation, Ordinal, ReleaseNo};
use stead_core::manifest::{Amount, Manifest, Span, Strategy};

use super::super::stage::{Stage, Verdict, sandbox, serving};
use super::super::witness::Seen;
use super::{different, equal};

fn as_is(_: &mut Manifest) {}

fn in_place(settings: &mut Manifest) {
    settings.rollout.strategy = Some(Strategy::InPlace);
}

fn recreate(settings: &mut Manifest) {
    settings.rollout.strategy = Some(Strategy::Recreate);
}

pub(super) async fn an_unknown_app_is_empty(stage: &mut Stage) -> Verdict {
    let seen = stage.look().await?;
    equal("what is seen of an unknown app", &seen, &FleetSeen::default())
}

pub(super) async fn hints_arrive(stage: &mut Stage) -> Verdict {
    let mut hints = stage.engine().hints();
    let releases = [(1, stage.release(&stage.images.good, as_is).await?)];
    let fleet = stage.fleet(1, 1, (1, 1), &releases);
    stage.settle(&fleet).await?;
    let app = stage.app.clone();
    let hint = async { hints.by_ref().any(|hint| std::future::ready(hint == app)).await };
    let wait = Duration::from_secs(5);
    if tokio::time::timeout(wait, hint).await != Ok(true) {
        return Err("no hint named the app while it came up".into());
    }
    Ok(())
}

pub(super) async fn applying_again_changes_nothing(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.good, as_is).await?)];
    let mut fleet = stage.fleet(1, 2, (1, 1), &releases);
    let before = stage.settle(&fleet).await?;
    stage.apply(&fleet).await?;
    // The machine's memory goes up and down by itself.
    let same = |seen: &FleetSeen| FleetSeen { memory: before.memory, ..seen.clone() } == before;
    stage.quiet("the same fleet", same).await?;
    fleet.generation = Generation(2);
    stage.apply(&fleet).await?;
    let instances = before.instances;
    stage.quiet("the same fleet of a newer generation", |s| s.instances == instances).await
}

pub(super) async fn a_stale_generation_is_refused(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.good, as_is).await?)];
    let new = stage.fleet(7, 1, (1, 1), &releases);
    let before = stage.settle(&new).await?;
    match stage.try_apply(&stage.fleet(6, 0, (1, 1), &releases)).await {
        Err(EngineError::Stale { given: Generation(6), known: Generation(7) }) => {}
        other => return Err(format!("an older generation was answered with {other:?}")),
    }
    stage.quiet("the newer fleet", |seen| *seen == before).await
}

pub(super) async fn instances_come_and_go_with_the_scale(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.good, as_is).await?)];
    let one = stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    let three = stage.settle(&stage.fleet(2, 3, (1, 1), &releases)).await?;
    equal(
        "instance 0 after scaling up",
        &three.instances[&Ordinal(0)],
        &one.instances[&Ordinal(0)],
    )?;
    let mut addresses = vec![sandbox(&three, 0)?.1, sandbox(&three, 1)?.1, sandbox(&three, 2)?.1];
    addresses.sort();
    addresses.dedup();
    equal("different addresses", &addresses.len(), &3)?;
    let down = stage.settle(&stage.fleet(3, 1, (1, 1), &releases)).await?;
    equal(
        "instance 0 after scaling down",
        &down.instances[&Ordinal(0)],
        &one.instances[&Ordinal(0)],
    )?;
    equal("backends after scaling down", &stage.witness.open().len(), &1)
}

pub(super) async fn in_place_keeps_sandbox_and_address(stage: &mut Stage) -> Verdict {
    let releases = [
        (1, stage.release(&stage.images.good, in_place).await?),
        (2, stage.release(&stage.images.second, in_place).await?),
    ];
    let old = stage.settle(&stage.fleet(1, 2, (1, 1), &releases[..1])).await?;
    let new = stage.settle(&stage.fleet(2, 2, (2, 2), &releases)).await?;
    for ordinal in 0..2 {
        equal("sandbox and address", &sandbox(&new, ordinal)?, &sandbox(&old, ordinal)?)?;
        different("container", &serving(&new, ordinal)?.id, &serving(&old, ordinal)?.id)?;
    }
    Ok(())
}

pub(super) async fn recreate_makes_another_sandbox(stage: &mut Stage) -> Verdict {
    let releases = [
        (1, stage.release(&stage.images.good, as_is).await?),
        (2, stage.release(&stage.images.second, recreate).await?),
    ];
    let old = stage.settle(&stage.fleet(1, 1, (1, 1), &releases[..1])).await?;
    let new = stage.settle(&stage.fleet(2, 1, (2, 2), &releases)).await?;
    different("sandbox", &sandbox(&new, 0)?.0, &sandbox(&old, 0)?.0)
}

pub(super) async fn a_restart_of_one_touches_one(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.good, as_is).await?)];
    let mut fleet = stage.fleet(1, 3, (1, 1), &releases);
    let before = stage.settle(&fleet).await?;
    fleet.generation = Generation(2);
    let again = Revision { release: ReleaseNo(1), run: 2, since: 2 };
    fleet.lineup = fleet.lineup.map(|lineup| lineup.with([Ordinal(1)], again));
    let after = stage.settle(&fleet).await?;
    for untouched in [0, 2] {
        let ordinal = Ordinal(untouched);
        equal("another instance", &after.instances[&ordinal], &before.instances[&ordinal])?;
    }
    equal("its sandbox", &sandbox(&after, 1)?, &sandbox(&before, 1)?)?;
    different("its container", &serving(&after, 1)?.id, &serving(&before, 1)?.id)
}

pub(super) async fn an_intended_restart_is_no_crash(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.good, as_is).await?)];
    stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    let seen = stage.settle(&stage.fleet(2, 1, (1, 2), &releases)).await?;
    let instance = &seen.instances[&Ordinal(0)];
    equal("crashes", &instance.crashes, &0)?;
    equal("trouble", &instance.trouble, &None)
}

pub(super) async fn an_undo_brings_the_old_revision_back(stage: &mut Stage) -> Verdict {
    let releases = [
        (1, stage.release(&stage.images.good, as_is).await?),
        (2, stage.release(&stage.images.second, as_is).await?),
    ];
    stage.settle(&stage.fleet(1, 3, (1, 1), &releases)).await?;
    stage.apply(&stage.fleet(2, 3, (2, 2), &releases)).await?;
    let new = Revision { release: ReleaseNo(2), run: 2, since: 2 };
    stage
        .until("one instance runs the new revision", |seen| {
            seen.instances.values().any(|i| i.serving().is_some_and(|c| c.revision == new))
        })
        .await?;
    stage.settle(&stage.fleet(3, 3, (1, 1), &releases)).await.map(drop)
}

pub(super) async fn one_of_two_stays_in_service(stage: &mut Stage) -> Verdict {
    let none_out = |settings: &mut Manifest| {
        in_place(settings);
        settings.rollout.max_unavailable = Amount::Count(0);
    };
    let releases = [
        (1, stage.release(&stage.images.good, none_out).await?),
        (2, stage.release(&stage.images.second, none_out).await?),
    ];
    stage.settle(&stage.fleet(1, 2, (1, 1), &releases)).await?;
    let mut open = 2_usize;
    let mut least = 2_usize;
    let begin = stage.witness.seen().len();
    stage.settle(&stage.fleet(2, 2, (2, 2), &releases)).await?;
    for seen in stage.witness.seen().into_iter().skip(begin) {
        match seen {
            Seen::Attached(_) => open += 1,
            Seen::Draining(_) => open = open.saturating_sub(1),
            Seen::Detached(_) | Seen::Exited(..) => {}
        }
        least = least.min(open);
    }
    equal("backends in service at the least", &least, &1)
}

pub(super) async fn a_drain_ends_before_a_stop(stage: &mut Stage) -> Verdict {
    let releases = [
        (1, stage.release(&stage.images.good, as_is).await?),
        (2, stage.release(&stage.images.second, as_is).await?),
    ];
    let old = stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    stage.settle(&stage.fleet(2, 1, (2, 2), &releases)).await?;
    stage.settle(&stage.fleet(3, 0, (2, 2), &releases)).await?;
    let id = serving(&old, 0)?.id.clone();
    let seen = stage.witness.seen();
    let at = |what: Seen| seen.iter().position(|s| *s == what);
    let (drained, exited) = (
        at(Seen::Detached(id.clone())),
        seen.iter().position(|s| matches!(s, Seen::Exited(ended, _) if *ended == id)),
    );
    match (drained, exited) {
        (Some(drained), Some(exited)) if drained < exited => Ok(()),
        _ => Err(format!("the order of container {id} was {seen:?}")),
    }
}

pub(super) async fn a_crash_restarts_with_growing_back_off(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.crashing, as_is).await?)];
    stage.apply(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    let mut before: Option<Trouble> = None;
    for count in 2..=4 {
        let what = format!("failure {count}");
        let seen = stage
            .until(&what, |seen| trouble(seen).is_some_and(|trouble| trouble.count >= count))
            .await?;
        let Some(now) = trouble(&seen).cloned() else { continue };
        equal("failures counted one by one", &now.count, &count)?;
        if let Some(before) = before {
            let (gap, least) = (now.at.since(before.at), backoff(count - 1));
            if gap < least {
                return Err(format!(
                    "attempt {count} came {gap} after the one before, not {least}"
                ));
            }
        }
        before = Some(now);
    }
    let crashes = stage.look().await?.instances[&Ordinal(0)].crashes;
    if crashes < 4 { Err(format!("4 crashes were counted as {crashes}")) } else { Ok(()) }
}

pub(super) async fn exit_codes_are_reported(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.crashing, as_is).await?)];
    stage.apply(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    stage.until("it fails", |seen| trouble(seen).is_some()).await?;
    let wanted = stage.images.crash_code;
    let reported = |seen: &Seen| {
        matches!(seen, Seen::Exited(_, exit)
            if exit.code == wanted && !exit.intended && !exit.oom_killed)
    };
    let witness = stage.witness.clone();
    let what = format!("an exit with code {wanted} is reported");
    stage.until(&what, |_| witness.seen().iter().any(reported)).await.map(drop)
}

pub(super) async fn what_is_never_ready_gets_no_requests(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.never_ready, as_is).await?)];
    stage.apply(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    let seen = stage.until("it fails", |seen| trouble(seen).is_some()).await?;
    let code = trouble(&seen).map(|trouble| trouble.error.code);
    equal("the trouble's code", &code, &Some(Code::NeverReady))?;
    if stage.witness.attached_any() {
        return Err("it was attached before it was ready".into());
    }
    Ok(())
}

pub(super) async fn a_restarted_engine_finds_everything(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.good, as_is).await?)];
    let fleet = stage.fleet(1, 2, (1, 1), &releases);
    let before = stage.settle(&fleet).await?;
    stage.restart_engine().await;
    equal("apps", &apps(stage).await?.contains(&stage.app.to_string()), &true)?;
    stage.apply(&fleet).await?;
    let after = stage.reach(&fleet).await?;
    for ordinal in 0..2 {
        equal("sandbox and address", &sandbox(&after, ordinal)?, &sandbox(&before, ordinal)?)?;
        let (old, new) = (serving(&before, ordinal)?, serving(&after, ordinal)?);
        equal("container", &new.id, &old.id)?;
    }
    Ok(())
}

pub(super) async fn a_restart_amid_an_upgrade_still_drains(stage: &mut Stage) -> Verdict {
    let releases = [
        (1, stage.release(&stage.images.good, in_place).await?),
        (2, stage.release(&stage.images.second, in_place).await?),
    ];
    stage.settle(&stage.fleet(1, 2, (1, 1), &releases)).await?;
    let upgrade = stage.fleet(2, 2, (2, 2), &releases);
    stage.apply(&upgrade).await?;
    stage.restart_engine().await;
    // The order of stops and drains is looked at in the verdict of every check.
    stage.settle(&upgrade).await?;
    // The last of the old ones may still be drained.
    let witness = stage.witness.clone();
    stage.until("two backends are left", move |_| witness.open().len() == 2).await.map(drop)
}

pub(super) async fn a_restarted_engine_goes_on_unasked(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.crashing, as_is).await?)];
    stage.apply(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    stage.until("it fails", |seen| trouble(seen).is_some_and(|t| t.count >= 2)).await?;
    stage.restart_engine().await;
    let begin = stage.witness.seen().len();
    let witness = stage.witness.clone();
    let again = move |_: &FleetSeen| {
        witness.seen().iter().skip(begin).any(|seen| matches!(seen, Seen::Exited(..)))
    };
    stage.until("it is started again, and ends again", again).await.map(drop)
}

pub(super) async fn what_is_forgotten_is_gone(stage: &mut Stage) -> Verdict {
    let releases = [(1, stage.release(&stage.images.good, as_is).await?)];
    stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    if stage.engine().forget(&stage.app, false).await.is_ok() {
        return Err("an app with an instance was forgotten".into());
    }
    stage.settle(&stage.fleet(2, 0, (1, 1), &releases)).await?;
    equal("backends", &stage.witness.open().len(), &0)?;
    let forgotten = stage.engine().forget(&stage.app, false).await;
    forgotten.map_err(|error| format!("forget fails: {error}"))?;
    equal("apps", &apps(stage).await?.contains(&stage.app.to_string()), &false)?;
    // A new App of this name starts from nothing.
    stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await.map(drop)
}

/// The new Container gets requests before the old one loses them, at the same address.
pub(super) async fn a_handover_leaves_no_gap(stage: &mut Stage) -> Verdict {
    let releases = [
        (1, stage.release(&stage.images.good, as_is).await?),
        (2, stage.release(&stage.images.second, as_is).await?),
    ];
    let old = stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    let begin = stage.witness.seen().len();
    let new = stage.settle(&stage.fleet(2, 1, (2, 2), &releases)).await?;
    equal("sandbox and address", &sandbox(&new, 0)?, &sandbox(&old, 0)?)?;
    let (old, new) = (serving(&old, 0)?, serving(&new, 0)?);
    different("container", &new.id, &old.id)?;
    different("slot", &new.slot, &old.slot)?;
    let seen = stage.witness.seen();
    let at = |what: Seen| seen.iter().skip(begin).position(|s| *s == what);
    let (opened, closed) = (at(Seen::Attached(new.id.clone())), at(Seen::Draining(old.id.clone())));
    match (opened, closed) {
        (Some(opened), Some(closed)) if opened < closed => Ok(()),
        (Some(_), None) => Ok(()),
        _ => Err(format!("{} was to take over from {}: {seen:?}", new.id, old.id)),
    }
}

pub(super) async fn the_old_one_serves_until_the_new_one_is_ready(stage: &mut Stage) -> Verdict {
    let releases = [
        (1, stage.release(&stage.images.good, as_is).await?),
        (2, stage.release(&stage.images.never_ready, as_is).await?),
    ];
    let before = stage.settle(&stage.fleet(1, 1, (1, 1), &releases[..1])).await?;
    let old = serving(&before, 0)?.id.clone();
    stage.apply(&stage.fleet(2, 1, (2, 2), &releases)).await?;
    let gap = AtomicBool::new(false);
    let seen = stage
        .until("the new one fails", |seen| {
            let serves = serving(seen, 0).is_ok_and(|serving| serving.id == old);
            gap.fetch_or(!serves, Ordering::Relaxed);
            trouble(seen).is_some()
        })
        .await?;
    equal("a time without the old container", &gap.into_inner(), &false)?;
    equal("container in service", &serving(&seen, 0)?.id, &old)?;
    // And going back touches nothing of it.
    let after = stage.settle(&stage.fleet(3, 1, (1, 1), &releases)).await?;
    equal("container after going back", &serving(&after, 0)?.id, &old)
}

pub(super) async fn an_exclusive_volume_never_has_two_writers(stage: &mut Stage) -> Verdict {
    let exclusive = |settings: &mut Manifest| {
        let volume = serde_json::json!({"name": "data", "mount": "/data"});
        settings.volumes = vec![serde_json::from_value(volume).expect("it is a volume")];
    };
    let releases = [
        (1, stage.release(&stage.images.good, exclusive).await?),
        (2, stage.release(&stage.images.second, exclusive).await?),
    ];
    let old = stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    let upgrade = stage.fleet(2, 1, (2, 2), &releases);
    stage.apply(&upgrade).await?;
    let most = AtomicUsize::new(0);
    let wanted = upgrade.wanted(Ordinal(0));
    let new = stage
        .until("the new one serves", |seen| {
            let alive = seen.instances.values().flat_map(|i| i.mains()).filter(|c| c.alive());
            most.fetch_max(alive.count(), Ordering::Relaxed);
            serving(seen, 0).ok().map(|c| c.revision) == wanted
        })
        .await?;
    equal("sandbox and address", &sandbox(&new, 0)?, &sandbox(&old, 0)?)?;
    equal("containers that ran at once", &most.into_inner(), &1)
}

pub(super) async fn a_thaw_brings_the_same_container_back(stage: &mut Stage) -> Verdict {
    let kept = |settings: &mut Manifest| {
        settings.rollout.keep_previous = Some(Span::from_secs(60));
    };
    let releases = [
        (1, stage.release(&stage.images.good, kept).await?),
        (2, stage.release(&stage.images.second, kept).await?),
    ];
    let before = stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    let old = serving(&before, 0)?.id.clone();
    stage.settle(&stage.fleet(2, 1, (2, 2), &releases)).await?;
    let frozen = |seen: &FleetSeen| {
        seen.instances[&Ordinal(0)].containers.iter().any(|c| c.id == old && c.is_frozen())
    };
    stage.until("the old one stands still", frozen).await?;
    let back = stage.settle(&stage.fleet(3, 1, (1, 1), &releases)).await?;
    equal("container", &serving(&back, 0)?.id, &old)
}

pub(super) async fn an_update_keeps_the_container(stage: &mut Stage) -> Verdict {
    let more = |settings: &mut Manifest| {
        settings.resources.memory = Some("96Mi".parse().expect("it is an amount of memory"));
    };
    let releases = [
        (1, stage.release(&stage.images.good, as_is).await?),
        (2, stage.release(&stage.images.good, more).await?),
    ];
    let old = stage.settle(&stage.fleet(1, 1, (1, 1), &releases)).await?;
    let new = stage.settle(&without_restart(stage.fleet(2, 1, (2, 2), &releases))).await?;
    equal("container", &serving(&new, 0)?.id, &serving(&old, 0)?.id)
}

pub(super) async fn a_sidecar_changes_alone(stage: &mut Stage) -> Verdict {
    let source = stage.images.good.clone();
    let with = |mode: &str| {
        // The main Container has the usual port.
        let env = serde_json::json!({"MODE": mode, "PORT": "8081"});
        let sidecar = serde_json::json!({"name": "proxy", "source": source, "env": env});
        serde_json::from_value(sidecar).expect("it is a sidecar")
    };
    let mut releases = Vec::new();
    for (number, mode) in [(1, "a"), (2, "b")] {
        let beside = |settings: &mut Manifest| settings.sidecars = vec![with(mode)];
        let mut spec = stage.release(&stage.images.good, beside).await?;
        spec.sidecars.insert("proxy".to_owned(), spec.image.clone());
        releases.push((number, spec));
    }
    let sidecar = |seen: &FleetSeen| {
        let instance = seen.instances.get(&Ordinal(0))?;
        let ready = instance.containers.iter().find(|c| !c.part.is_main() && c.ready())?;
        Some((ready.id.clone(), ready.revision))
    };
    let fleet = stage.fleet(1, 1, (1, 1), &releases);
    stage.apply(&fleet).await?;
    let old = stage.until("both run", |s| serving(s, 0).is_ok() && sidecar(s).is_some()).await?;
    let next = without_restart(stage.fleet(2, 1, (2, 2), &releases));
    stage.apply(&next).await?;
    let wanted = next.wanted(Ordinal(0));
    let new = stage
        .until("both are brought to the new release", |seen| {
            let main = serving(seen, 0).ok().map(|c| c.revision);
            main == wanted && sidecar(seen).map(|(_, revision)| revision) == wanted
        })
        .await?;
    equal("main container", &serving(&new, 0)?.id, &serving(&old, 0)?.id)?;
    different("sidecar", &sidecar(&new).map(|(id, _)| id), &sidecar(&old).map(|(id, _)| id))
}

/// The same Fleet, where what fits need not be started again.
fn without_restart(mut fleet: Fleet) -> Fleet {
    if let Some(lineup) = &mut fleet.lineup {
        lineup.base.since = 1;
    }
    fleet
}

fn trouble(seen: &FleetSeen) -> Option<&Trouble> {
    seen.instances.get(&Ordinal(0))?.trouble.as_ref()
}

async fn apps(stage: &Stage) -> Result<Vec<String>, String> {
    let apps = stage.engine().apps().await.map_err(|error| format!("apps fails: {error}"))?;
    Ok(apps.iter().map(ToString::to_string).collect())
}
