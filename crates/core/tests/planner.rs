//! What holds for every plan, whatever the world it is made for.

mod worlds;

use std::collections::BTreeSet;

use proptest::prelude::*;
use stead_core::fleet::{
    ContainerSeen, ContainerState, Exit, Fleet, FleetSeen, Health, HookSeen, ImageSeen,
    InstanceSeen, Lineup, Part, Plan, Revision, Slot, Step, StopCause, TrafficState, backoff, plan,
};
use stead_core::ids::{ContainerId, Ordinal, ReleaseNo};
use stead_core::invariants::{check_plan, check_world};
use stead_core::manifest::{Amount, Effect, RestartPolicy, Strategy as Change};
use stead_core::time::{Micros, Time};
use worlds::*;

/// An engine that carries a whole plan out at once, and whose Containers become ready.
struct Ideal {
    seen: FleetSeen,
    now: Time,
    made: u32,
}

impl Ideal {
    fn carry_out(&mut self, fleet: &Fleet, plan: &Plan) {
        for step in &plan.steps {
            self.step(fleet, step);
        }
        for instance in self.seen.instances.values_mut() {
            for container in &mut instance.containers {
                self_acting(container, self.now);
            }
        }
        self.now = match plan.wake {
            Some(wake) if plan.steps.is_empty() => wake,
            _ => self.now + Micros::from_millis(10),
        };
    }

    fn step(&mut self, fleet: &Fleet, step: &Step) {
        let now = self.now;
        let find = |instance: &InstanceSeen, id: &ContainerId| {
            instance.containers.iter().position(|c| c.id == *id).expect("a plan names what it saw")
        };
        match step {
            Step::Pull { release } => {
                let image = fleet.releases[release].image.clone();
                self.seen.images.insert(image, ImageSeen::Present);
            }
            Step::CreateSandbox { ordinal, revision } => {
                let instance = self.seen.instances.entry(*ordinal).or_default();
                assert!(instance.sandbox.is_none(), "{step}");
                instance.sandbox = Some(sandbox(fleet, *revision));
            }
            Step::Prepare { ordinal, part, revision, slot } => {
                self.made += 1;
                let id = format!("new-{}", self.made);
                let instance = self.seen.instances.get_mut(ordinal).expect("it has a sandbox");
                let id = ContainerId(id);
                instance.containers.push(ContainerSeen::prepared(
                    id,
                    part.clone(),
                    *slot,
                    *revision,
                ));
            }
            Step::Discard { ordinal, container } => {
                let instance = self.seen.instances.get_mut(ordinal).expect("it was seen");
                let at = find(instance, container);
                assert!(!instance.containers[at].exists(), "{step}");
                instance.containers.remove(at);
            }
            Step::RemoveSandbox { ordinal } => {
                self.seen.instances.remove(ordinal);
            }
            Step::Start { ordinal, container: id }
            | Step::Update { ordinal, container: id, .. }
            | Step::Freeze { ordinal, container: id }
            | Step::Thaw { ordinal, container: id, .. }
            | Step::Hook { ordinal, container: id, .. }
            | Step::Attach { ordinal, container: id }
            | Step::Detach { ordinal, container: id, .. }
            | Step::Stop { ordinal, container: id, .. } => {
                let instance = self.seen.instances.get_mut(ordinal).expect("it was seen");
                let at = find(instance, id);
                let container = &mut instance.containers[at];
                match step {
                    Step::Start { .. } => {
                        assert_eq!(container.state, ContainerState::Prepared, "{step}");
                        container.state =
                            ContainerState::Running { since: now, health: Health::Starting };
                    }
                    Step::Update { revision, .. } => container.revision = *revision,
                    Step::Freeze { .. } => container.state = ContainerState::Frozen { since: now },
                    Step::Thaw { revision, .. } => {
                        container.revision = *revision;
                        container.state =
                            ContainerState::Running { since: now, health: Health::Starting };
                    }
                    Step::Hook { hook, revision, .. } => {
                        container.hooks.push(HookSeen { hook: *hook, run: revision.run });
                    }
                    Step::Attach { .. } => {
                        container.traffic = TrafficState::Attached;
                        instance.slot = container.slot;
                    }
                    Step::Detach { .. } => container.traffic = TrafficState::Draining,
                    _ => container.state = ContainerState::Stopping { since: now },
                }
            }
        }
    }
}

/// What a Container does by itself: it becomes ready, is drained, ends when told.
fn self_acting(container: &mut ContainerSeen, now: Time) {
    match &mut container.state {
        ContainerState::Running { health, .. } => {
            if matches!(health, Health::Starting | Health::Unready) {
                *health = Health::Ready;
            }
        }
        ContainerState::Stopping { .. } => {
            container.state = ContainerState::Exited(Exit {
                at: now,
                code: 0,
                oom_killed: false,
                intended: true,
            });
        }
        ContainerState::Prepared | ContainerState::Frozen { .. } | ContainerState::Exited(_) => {}
    }
    if container.traffic == TrafficState::Draining {
        container.traffic = TrafficState::Detached;
    }
}

fn is_settled(fleet: &Fleet, seen: &FleetSeen) -> bool {
    let wanted: Vec<Ordinal> = fleet.ordinals().chain(fleet.surplus()).collect();
    let wanted: Vec<Ordinal> = wanted.into_iter().filter(|o| fleet.wanted(*o).is_some()).collect();
    let all_serve = wanted.iter().all(|ordinal| {
        let Some(instance) = seen.instances.get(ordinal) else { return false };
        let serving = instance.serving().map(|c| c.revision);
        serving == fleet.wanted(*ordinal)
            && instance.containers.iter().filter(|c| !c.is_frozen()).count() == 1
    });
    all_serve && seen.instances.len() == wanted.len()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("STEAD_SIM_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(3000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_plan_keeps_the_invariants((fleet, seen) in some_world()) {
        prop_assert_eq!(check_world(&seen), vec![], "the generator makes worlds that occur");
        let plan = plan(&fleet, &seen, NOW);
        prop_assert_eq!(check_plan(&fleet, &seen, &plan), vec![]);
        let distinct: BTreeSet<&Step> = plan.steps.iter().collect();
        prop_assert_eq!(distinct.len(), plan.steps.len(), "no step comes twice");
        prop_assert!(plan.wake.is_none_or(|wake| wake > NOW), "a wake lies ahead");
    }

    #[test]
    fn a_stop_is_only_for_what_gets_no_requests((fleet, seen) in some_world()) {
        for step in plan(&fleet, &seen, NOW).steps {
            if let Step::Stop { ordinal, container, .. } = step {
                let containers = &seen.instances[&ordinal].containers;
                let stopped = containers.iter().find(|c| c.id == container).unwrap();
                prop_assert_eq!(stopped.traffic, TrafficState::Detached);
            }
        }
    }

    #[test]
    fn a_settled_world_gets_no_plan(fleet in some_fleet()) {
        let plan = plan(&fleet, &settled(&fleet), NOW);
        prop_assert_eq!(plan.steps, vec![]);
        prop_assert_eq!(plan.wake, None);
    }

    /// From any state an engine that does what it is told gets there, and the invariants
    /// hold all the way. One that is paused gets there once it goes on.
    #[test]
    fn every_world_can_be_settled((mut fleet, seen) in some_world()) {
        let mut engine = Ideal { seen, now: NOW, made: 0 };
        for round in 0..200 {
            fleet.paused &= round < 100;
            let plan = plan(&fleet, &engine.seen, engine.now);
            prop_assert_eq!(check_plan(&fleet, &engine.seen, &plan), vec![]);
            if plan.steps.is_empty() && plan.wake.is_none() && is_settled(&fleet, &engine.seen) {
                return Ok(());
            }
            engine.carry_out(&fleet, &plan);
            prop_assert_eq!(check_world(&engine.seen), vec![]);
        }
        prop_assert!(false, "it does not settle: {:#?}", engine.seen);
    }

    /// Whatever happens to the others, an Instance that is as wanted is left alone.
    #[test]
    fn what_is_as_wanted_is_left_alone((fleet, mut seen) in some_world(), ordinal in 0..6u32) {
        let ordinal = Ordinal(ordinal);
        let Some(good) = settled(&fleet).instances.get(&ordinal).cloned() else { return Ok(()) };
        seen.instances.insert(ordinal, good);
        let plan = plan(&fleet, &seen, NOW);
        prop_assert!(plan.steps.iter().all(|step| step.ordinal() != Some(ordinal)), "{:?}", plan);
    }
}

fn steps(fleet: &Fleet, seen: &FleetSeen) -> Vec<String> {
    plan(fleet, seen, NOW).steps.iter().map(ToString::to_string).collect()
}

/// An upgrade in place, unless `change` says otherwise.
fn upgrade(
    instances: u32,
    change: impl Fn(&mut stead_core::manifest::Manifest),
) -> (Fleet, FleetSeen) {
    let old = simple_fleet(instances, revision(1, 1), |settings| {
        settings.rollout.strategy = Some(Change::InPlace);
        change(settings);
    });
    let new = Fleet {
        lineup: Some(Lineup::all(revision(2, 2))),
        heading: Some(revision(2, 2)),
        ..old.clone()
    };
    (new, settled(&old))
}

#[test]
fn an_upgrade_prepares_then_drains_then_stops_then_starts_then_attaches() {
    let (fleet, mut seen) = upgrade(1, |_| {});
    let id = Ordinal(0);
    assert_eq!(steps(&fleet, &seen), ["prepare 0 for 2.2 in slot a"]);
    let prepared =
        container("new", revision(2, 2), ContainerState::Prepared, TrafficState::Detached);
    seen.instances.get_mut(&id).unwrap().containers.push(prepared);
    assert_eq!(steps(&fleet, &seen), ["detach c-0"]);
    let set = |seen: &mut FleetSeen, at: usize, state, traffic| {
        let containers = &mut seen.instances.get_mut(&id).unwrap().containers;
        (containers[at].state, containers[at].traffic) = (state, traffic);
    };
    set(&mut seen, 0, running(Health::Ready), TrafficState::Draining);
    assert_eq!(steps(&fleet, &seen), [""; 0], "its acknowledgement is awaited");
    set(&mut seen, 0, running(Health::Ready), TrafficState::Detached);
    assert_eq!(steps(&fleet, &seen), ["stop c-0"]);
    set(&mut seen, 0, ContainerState::Stopping { since: NOW }, TrafficState::Detached);
    assert_eq!(steps(&fleet, &seen), [""; 0], "its end is awaited");
    let exit = Exit { at: NOW, code: 0, oom_killed: false, intended: true };
    set(&mut seen, 0, ContainerState::Exited(exit), TrafficState::Detached);
    assert_eq!(steps(&fleet, &seen), ["discard c-0", "start new"]);
    set(&mut seen, 1, running(Health::Starting), TrafficState::Detached);
    assert_eq!(steps(&fleet, &seen), ["discard c-0"], "its readiness is awaited");
    set(&mut seen, 1, running(Health::Ready), TrafficState::Detached);
    assert_eq!(steps(&fleet, &seen), ["discard c-0", "attach new"]);
}

#[test]
fn a_handover_starts_beside_then_attaches_then_drains_then_freezes() {
    let (fleet, mut seen) = upgrade(1, |settings| settings.rollout.strategy = None);
    let id = Ordinal(0);
    assert_eq!(steps(&fleet, &seen), ["prepare 0 for 2.2 in slot b"]);
    let prepared =
        ContainerSeen::prepared(ContainerId("new".into()), Part::Main, Slot::B, revision(2, 2));
    seen.instances.get_mut(&id).unwrap().containers.push(prepared);
    assert_eq!(steps(&fleet, &seen), ["start new"], "the old one serves");
    let set = |seen: &mut FleetSeen, at: usize, state, traffic| {
        let containers = &mut seen.instances.get_mut(&id).unwrap().containers;
        (containers[at].state, containers[at].traffic) = (state, traffic);
    };
    set(&mut seen, 1, running(Health::Starting), TrafficState::Detached);
    assert_eq!(steps(&fleet, &seen), [""; 0], "its readiness is awaited");
    set(&mut seen, 1, running(Health::Ready), TrafficState::Detached);
    assert_eq!(steps(&fleet, &seen), ["attach new"]);
    set(&mut seen, 1, running(Health::Ready), TrafficState::Attached);
    seen.instances.get_mut(&id).unwrap().slot = Slot::B;
    assert_eq!(steps(&fleet, &seen), ["detach c-0"]);
    set(&mut seen, 0, running(Health::Ready), TrafficState::Detached);
    assert_eq!(steps(&fleet, &seen), ["freeze c-0"]);
    set(&mut seen, 0, ContainerState::Frozen { since: NOW }, TrafficState::Detached);
    let kept = plan(&fleet, &seen, NOW);
    let until = NOW + Micros::from_secs(60);
    assert_eq!((kept.steps.len(), kept.wake), (0, Some(until)));
    assert_eq!(plan(&fleet, &seen, until).steps.len(), 1, "its time is over");

    let (back, _) = upgrade(1, |settings| settings.rollout.strategy = None);
    let back = Fleet { lineup: Some(Lineup::all(revision(1, 3))), ..back };
    assert_eq!(steps(&back, &seen), ["thaw c-0 for 1.3"], "going back is a thaw");
}

#[test]
fn nothing_is_taken_out_for_an_image_that_is_not_here() {
    let (fleet, mut seen) = upgrade(2, |settings| {
        settings.rollout.max_unavailable = Amount::Percent(100);
    });
    seen.images.remove(&digest(2));
    assert_eq!(steps(&fleet, &seen), ["pull release 2"]);
    let (fleet, mut seen) =
        upgrade(2, |settings| settings.rollout.strategy = Some(Change::Recreate));
    seen.images.remove(&digest(2));
    assert_eq!(steps(&fleet, &seen), ["pull release 2"]);
}

#[test]
fn as_many_change_at_once_as_may_be_out() {
    for (allowed, at_once) in [(0, 1), (1, 1), (2, 2), (9, 4)] {
        let (fleet, seen) = upgrade(4, |settings| {
            settings.rollout.max_unavailable = Amount::Count(allowed);
        });
        assert_eq!(steps(&fleet, &seen).len(), at_once, "max_unavailable {allowed}");
    }
}

#[test]
fn an_upgrade_begun_is_finished_before_the_next_begins() {
    let (fleet, mut seen) = upgrade(3, |_| {});
    assert_eq!(steps(&fleet, &seen), ["prepare 2 for 2.2 in slot a"], "from the last to the first");
    let prepared =
        container("new", revision(2, 2), ContainerState::Prepared, TrafficState::Detached);
    seen.instances.get_mut(&Ordinal(0)).unwrap().containers.push(prepared);
    assert_eq!(steps(&fleet, &seen), ["detach c-0"]);
}

#[test]
fn a_rerun_changes_one_instance_in_its_sandbox() {
    let mut fleet = simple_fleet(3, revision(1, 1), |_| {});
    let seen = settled(&fleet);
    let again = Revision { since: 2, ..revision(1, 2) };
    fleet.lineup = fleet.lineup.map(|lineup| lineup.with([Ordinal(1)], again));
    assert_eq!(steps(&fleet, &seen), ["prepare 1 for 1.2 in slot b"], "beside what serves");
}

#[test]
fn a_frozen_predecessor_is_thawed_where_one_may_change_at_once() {
    let (new, seen) = upgrade(1, |settings| settings.rollout.strategy = Some(Change::Handover));
    let mut seen = FleetSeen { instances: settled(&new).instances, ..seen };
    let instance = seen.instances.get_mut(&Ordinal(0)).unwrap();
    let frozen = ContainerState::Frozen { since: NOW };
    let old = container("old", revision(1, 1), frozen, TrafficState::Detached);
    instance.slot = Slot::B;
    instance.containers[0].slot = Slot::B;
    instance.containers.push(old);
    let back =
        Fleet { lineup: Some(Lineup::all(revision(1, 1))), heading: Some(revision(1, 1)), ..new };
    assert_eq!(steps(&back, &seen), ["thaw old for 1.1"]);
}

#[test]
fn one_prepared_in_the_place_of_the_old_one_goes_on_when_there_is_room_for_both() {
    let (fleet, mut seen) =
        upgrade(1, |settings| settings.rollout.strategy = Some(Change::Handover));
    let prepared =
        container("new", revision(2, 2), ContainerState::Prepared, TrafficState::Detached);
    seen.instances.get_mut(&Ordinal(0)).unwrap().containers.push(prepared);
    assert_eq!(steps(&fleet, &seen), ["detach c-0"]);
}

#[test]
fn the_old_one_stands_in_for_a_new_one_that_failed() {
    let (fleet, mut seen) =
        upgrade(1, |settings| settings.rollout.strategy = Some(Change::Handover));
    let instance = seen.instances.get_mut(&Ordinal(0)).unwrap();
    instance.containers[0].traffic = TrafficState::Detached;
    let exit = Exit { at: NOW, code: 1, oom_killed: false, intended: false };
    let state = ContainerState::Exited(exit);
    let ended = container("new", revision(2, 2), state, TrafficState::Attached);
    instance.containers.push(ContainerSeen { slot: Slot::B, ..ended });
    let steps = steps(&fleet, &seen);
    assert_eq!(steps, ["detach new", "prepare 0 for 2.2 in slot b", "attach c-0"]);
}

#[test]
fn another_name_of_the_same_image_restarts_nothing() {
    let mut fleet = simple_fleet(1, revision(1, 1), |_| {});
    let seen = settled(&fleet);
    fleet.lineup = Some(Lineup::all(revision(2, 2)));
    let spec = fleet.releases.get_mut(&ReleaseNo(2)).unwrap();
    spec.image = digest(1);
    let mut settings = manifest();
    settings.source = "sim/web:latest".to_owned();
    spec.settings = std::sync::Arc::new(settings);
    spec.reference = "sim/web:latest".to_owned();
    assert_eq!(steps(&fleet, &seen), ["update c-0 to 2.2"]);
}

#[test]
fn a_paused_rollout_makes_no_instance_to_help_it() {
    let (mut fleet, seen) = upgrade(2, |_| {});
    (fleet.surge, fleet.paused) = (1, true);
    assert_eq!(steps(&fleet, &seen), [""; 0]);
}

#[test]
fn a_crashed_container_waits_for_its_back_off_and_no_longer() {
    let fleet = simple_fleet(1, revision(1, 1), |_| {});
    let mut seen = settled(&fleet);
    let instance = seen.instances.get_mut(&Ordinal(0)).unwrap();
    instance.containers.clear();
    let error = stead_core::error::UserError::new(stead_core::error::Code::ExitedAtOnce, "", "");
    instance.trouble = Some(stead_core::fleet::Trouble {
        revision: revision(1, 1),
        error,
        at: NOW,
        count: 4,
        was_ready: false,
    });
    let waiting = plan(&fleet, &seen, NOW);
    assert_eq!((waiting.steps.len(), waiting.wake), (0, Some(NOW + backoff(4))));
    let due = plan(&fleet, &seen, NOW + backoff(4));
    assert_eq!(due.steps.len(), 1);
    let other = Fleet { lineup: Some(Lineup::all(revision(2, 2))), ..fleet };
    assert_eq!(
        steps(&other, &seen),
        ["prepare 0 for 2.2 in slot a"],
        "another revision need not wait"
    );
}

#[test]
fn what_is_ready_no_more_gets_no_requests_until_it_is_again() {
    let fleet = simple_fleet(1, revision(1, 1), |_| {});
    for (health, traffic, expected) in [
        (Health::Unready, TrafficState::Attached, vec!["detach c-0"]),
        (Health::Unready, TrafficState::Draining, vec![]),
        (Health::Unready, TrafficState::Detached, vec![]),
        (Health::Ready, TrafficState::Detached, vec!["attach c-0"]),
        (Health::Ready, TrafficState::Draining, vec![]),
        (Health::Dead, TrafficState::Attached, vec!["detach c-0"]),
        (Health::Dead, TrafficState::Detached, vec!["stop c-0"]),
    ] {
        let mut seen = settled(&fleet);
        let container = &mut seen.instances.get_mut(&Ordinal(0)).unwrap().containers[0];
        (container.state, container.traffic) = (running(health), traffic);
        assert_eq!(steps(&fleet, &seen), expected, "{health:?} and {traffic:?}");
    }
}

#[test]
fn what_is_not_ready_in_time_is_ended_for_that() {
    let fleet = simple_fleet(1, revision(1, 1), |_| {});
    let mut seen = settled(&fleet);
    let container = &mut seen.instances.get_mut(&Ordinal(0)).unwrap().containers[0];
    (container.state, container.traffic) = (running(Health::Starting), TrafficState::Detached);
    let deadline = NOW + fleet.heading_spec().unwrap().startup_timeout(&Part::Main);
    let waiting = plan(&fleet, &seen, NOW);
    assert_eq!((waiting.steps.len(), waiting.wake), (0, Some(deadline)));
    let late = plan(&fleet, &seen, deadline).steps;
    assert!(
        matches!(late[..], [Step::Stop { because: Some(StopCause::NeverReady), .. }]),
        "{late:?}"
    );
}

#[test]
fn what_shall_not_run_again_stays_ended() {
    for (policy, code, again) in [
        (RestartPolicy::Always, 0, true),
        (RestartPolicy::OnFailure, 0, false),
        (RestartPolicy::OnFailure, 1, true),
        (RestartPolicy::Never, 1, false),
    ] {
        let fleet = simple_fleet(1, revision(1, 1), |settings| settings.restart = policy);
        let mut seen = settled(&fleet);
        let ended = &mut seen.instances.get_mut(&Ordinal(0)).unwrap().containers[0];
        ended.traffic = TrafficState::Detached;
        ended.state =
            ContainerState::Exited(Exit { at: NOW, code, oom_killed: false, intended: false });
        assert_eq!(!steps(&fleet, &seen).is_empty(), again, "{policy:?} after exit code {code}");
    }
}

#[test]
fn back_off_grows_to_its_cap() {
    assert_eq!(backoff(0), Micros(0));
    assert_eq!(backoff(1), Micros(0));
    assert_eq!(backoff(2), Micros::from_millis(250));
    assert_eq!(backoff(3), Micros::from_millis(500));
    assert!((2..40).all(|n| backoff(n) <= backoff(n + 1)));
    assert_eq!(backoff(u32::MAX), stead_core::fleet::RESTART_BACKOFF_CAP);
}

#[test]
fn another_version_of_a_secret_restarts_the_app_and_no_sidecar() {
    let with = |version: u32| {
        let mut spec = spec(1, |_| {});
        spec.secrets.insert("DB_PASSWORD".parse().expect("a name"), version);
        spec
    };
    let (old, new) = (with(1), with(2));
    assert_eq!(new.effect_on(&Part::Main, &old), Effect::RestartContainer);
    assert_eq!(new.effect_on(&Part::Main, &new.clone()), Effect::None);
    assert_eq!(old.effect_on(&Part::Main, &spec(1, |_| {})), Effect::RestartContainer);
    assert_eq!(new.shape(), old.shape(), "the sandbox stays");
}
