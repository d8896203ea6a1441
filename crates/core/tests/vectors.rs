//! Expected numbers, by theme, for the behaviours that OpenKruise's CloneSet is known for.
//!
//! The numbers are ours. Where CloneSet would do something else for the same wish, the row
//! says so: its `partition` counts what stays old, its `maxUnavailable` of 0 with no surge
//! takes nothing out at all, and it knows no Container beside another.

mod worlds;

use std::collections::BTreeSet;

use stead_core::fleet::{Fleet, FleetSeen, HookName, HookSeen, Lineup, Slot, Step, plan};
use stead_core::ids::Ordinal;
use stead_core::manifest::{
    Amount, Batches, Hook, HookRun, Manifest, Order, Pause, Rollout, Span, Strategy,
};
use stead_core::rollout::stages;
use worlds::*;

/// Instances of Release 1; those in `done` run Release 2 already, and those in `reached` shall.
fn amid(
    instances: u32,
    done: &[u32],
    reached: &[u32],
    surge: u32,
    rules: impl Fn(&mut Rollout),
) -> (Fleet, FleetSeen) {
    let change = |settings: &mut Manifest| rules(&mut settings.rollout);
    let base = simple_fleet(instances, revision(1, 1), change);
    let new = revision(2, 2);
    let at = |some: &[u32]| Lineup::all(revision(1, 1)).with(some.iter().map(|n| Ordinal(*n)), new);
    let seen = settled(&Fleet { lineup: Some(at(done)), surge: 0, ..base.clone() });
    let fleet = Fleet { lineup: Some(at(reached)), heading: Some(new), surge, ..base };
    (fleet, seen)
}

/// The Instances on which a plan acts.
fn acted(fleet: &Fleet, seen: &FleetSeen) -> Vec<u32> {
    let steps = plan(fleet, seen, NOW).steps;
    let ordinals: BTreeSet<_> = steps.iter().filter_map(Step::ordinal).collect();
    ordinals.into_iter().map(|ordinal| ordinal.0).collect()
}

fn all(instances: u32) -> Vec<u32> {
    (0..instances).collect()
}

#[test]
fn how_many_begin_at_once() {
    use Strategy::{Handover, InPlace};
    // instances, max_unavailable, surge, strategy: how many Instances a first plan touches.
    for (instances, out, surge, strategy, expected) in [
        // CloneSet: 0, it waits for ever for a budget that never comes.
        (5, Amount::Count(0), 0, InPlace, 1),
        (5, Amount::Count(1), 0, InPlace, 1),
        (5, Amount::Count(2), 0, InPlace, 2),
        // A share is rounded down, as CloneSet does for its maxUnavailable.
        (5, Amount::Percent(50), 0, InPlace, 2),
        (5, Amount::Percent(19), 0, InPlace, 1),
        (5, Amount::Percent(100), 0, InPlace, 5),
        // The one above the wanted number comes first. CloneSet would make it and, where it
        // may take one out, update one beside it at once.
        (5, Amount::Count(0), 1, InPlace, 1),
        (5, Amount::Count(1), 1, InPlace, 2),
        (5, Amount::Count(0), 2, InPlace, 2),
        // A handover takes none out: a quarter at once. CloneSet has no such thing.
        (4, Amount::Count(0), 0, Handover, 1),
        (5, Amount::Count(0), 0, Handover, 2),
        (12, Amount::Count(0), 0, Handover, 3),
        (12, Amount::Count(6), 0, Handover, 6),
        (1, Amount::Count(0), 0, Handover, 1),
    ] {
        let (fleet, seen) = amid(instances, &[], &all(instances), surge, |rules| {
            rules.strategy = Some(strategy);
            rules.max_unavailable = out;
        });
        let touched = acted(&fleet, &seen).len();
        let case = format!("{instances} instances, {out:?} out, surge {surge}, {strategy:?}");
        assert_eq!(touched, expected, "{case}");
    }
}

#[test]
fn who_begins() {
    use Order::{Ascending, Descending, Scatter};
    // Of six, one at a time: those done so far, the order, the priorities, whose turn it is.
    for (done, order, priority, expected) in [
        (vec![], Descending, vec![], 5),
        (vec![5, 4], Descending, vec![], 3),
        (vec![], Ascending, vec![], 0),
        (vec![0, 1], Ascending, vec![], 2),
        // CloneSet scatters by label; here by distance.
        (vec![], Scatter, vec![], 1),
        (vec![1, 3], Scatter, vec![], 5),
        (vec![], Descending, vec![(2, 10)], 2),
        (vec![2], Descending, vec![(2, 10), (3, 5)], 3),
        (vec![], Ascending, vec![(0, -1)], 1),
    ] {
        let (fleet, seen) = amid(6, &done, &all(6), 0, |rules| {
            rules.strategy = Some(Strategy::InPlace);
            rules.order = order;
            rules.priority = priority.iter().map(|(n, weight)| (Ordinal(*n), *weight)).collect();
        });
        assert_eq!(acted(&fleet, &seen), [expected], "{done:?} by {order:?} and {priority:?}");
    }
}

#[test]
fn what_is_out_of_service_goes_first_and_is_counted() {
    for strategy in [Strategy::InPlace, Strategy::Handover] {
        let (fleet, mut seen) = amid(4, &[], &all(4), 0, |rules| rules.strategy = Some(strategy));
        let ended = seen.instances.get_mut(&Ordinal(1)).expect("it was there");
        ended.containers.clear();
        // As CloneSet: what does not work is changed first, and leaves no room for others.
        assert_eq!(acted(&fleet, &seen), [1], "{strategy:?}");
    }
}

#[test]
fn a_broken_instance_that_is_not_reached_does_not_hold_a_handover_up() {
    // CloneSet updates the broken one first, whatever the partition.
    let (fleet, mut seen) = amid(4, &[], &[3], 0, |_| {});
    seen.instances.get_mut(&Ordinal(0)).expect("it was there").containers.clear();
    assert_eq!(acted(&fleet, &seen), [0, 3]);
    // In place it would leave fewer than promised in service.
    let (fleet, mut seen) = amid(4, &[], &[3], 0, |rules| rules.strategy = Some(Strategy::InPlace));
    seen.instances.get_mut(&Ordinal(0)).expect("it was there").containers.clear();
    assert_eq!(acted(&fleet, &seen), [0]);
}

#[test]
fn stages_follow_from_batches_and_partition() {
    let manual = true;
    // instances, batches, partition: how far each stage goes, and whether a person is awaited.
    for (instances, batches, partition, expected) in [
        (10, "1", Amount::Count(0), vec![(10, false)]),
        (10, "4", Amount::Count(0), vec![(3, false), (6, false), (8, false), (10, false)]),
        (10, "1,50%", Amount::Count(0), vec![(1, false), (5, false), (10, false)]),
        // CloneSet: partition 3 is the end of it. Here a person may promote the rest.
        (10, "1", Amount::Count(3), vec![(7, manual), (10, false)]),
        (10, "2", Amount::Count(3), vec![(5, false), (7, manual), (10, false)]),
        // 99 % of 4 is rounded up to all; CloneSet rounds it up as well, but updates one all
        // the same.
        (4, "1", Amount::Percent(99), vec![(0, manual), (4, false)]),
        (4, "1", Amount::Percent(50), vec![(2, manual), (4, false)]),
        (4, "1", Amount::Count(9), vec![(0, manual), (4, false)]),
        (3, "1", Amount::Percent(34), vec![(1, manual), (3, false)]),
        // More batches than Instances.
        (2, "5", Amount::Count(0), vec![(1, false), (2, false)]),
        (0, "3", Amount::Count(0), vec![(0, false)]),
    ] {
        let rules = Rollout {
            batches: batches.parse::<Batches>().expect("batches"),
            partition,
            ..Rollout::default()
        };
        let found: Vec<(u32, bool)> = stages(&rules, instances)
            .iter()
            .map(|stage| (stage.upto, stage.pause == Pause::Manual))
            .collect();
        assert_eq!(found, expected, "{instances} in {batches} with partition {partition:?}");
    }
}

#[test]
fn going_back_touches_only_what_had_changed() {
    // Release 2 had reached 4 and 3, and is given up.
    for (done, expected) in [(vec![], vec![]), (vec![4], vec![4]), (vec![4, 3], vec![3, 4])] {
        let (mut fleet, seen) = amid(5, &done, &[], 0, |_| {});
        fleet.heading = Some(revision(1, 1));
        assert_eq!(acted(&fleet, &seen), expected, "after {done:?}");
    }
    // What has changed as well is not changed again when a third Release comes: CloneSet
    // counts both old ones alike, as stead does.
    let (mut fleet, seen) = amid(2, &[1], &[], 0, |_| {});
    let third = revision(3, 3);
    (fleet.lineup, fleet.heading) = (Some(Lineup::all(third)), Some(third));
    assert_eq!(acted(&fleet, &seen), [1], "one at a time, from the last");
}

#[test]
fn an_instance_taken_away_by_name_leaves_the_others_alone() {
    // instances after it, taken away: what is acted on, and what is there in the end.
    for (instances, absent, expected) in [
        (4, vec![2], vec![2]),
        (4, vec![0], vec![0]),
        (3, vec![1, 3], vec![1, 3]),
        // As many as before: CloneSet makes another of a new name. Here one is added above, and
        // the one that goes serves until that one does.
        (5, vec![2], vec![5]),
    ] {
        let (mut fleet, seen) = amid(5, &[], &[], 0, |_| {});
        fleet.heading = Some(revision(1, 1));
        fleet.instances = instances;
        fleet.absent = absent.iter().map(|n| Ordinal(*n)).collect();
        assert_eq!(acted(&fleet, &seen), expected, "{instances} without {absent:?}");
    }
}

#[test]
fn a_hook_is_awaited_before_each_turn() {
    let hooked = |settings: &mut Manifest| {
        let hook = || {
            let run = HookRun::Exec(vec!["true".into()]);
            Some(Hook { run, deadline: Span::from_secs(1) })
        };
        let hooks = &mut settings.lifecycle.hooks;
        (hooks.before_update, hooks.pre_delete) = (hook(), hook());
    };
    let old = simple_fleet(1, revision(1, 1), hooked);
    let new = revision(2, 2);
    let mut seen = settled(&old);
    let fleet = Fleet { lineup: Some(Lineup::all(new)), heading: Some(new), ..old.clone() };
    let text = |fleet: &Fleet, seen: &FleetSeen| -> Vec<String> {
        plan(fleet, seen, NOW).steps.iter().map(ToString::to_string).collect()
    };
    // CloneSet marks the Pod and waits for a label; the new one is not prepared meanwhile.
    assert_eq!(text(&fleet, &seen), ["prepare 0 for 2.2 in slot b"]);
    let instance = seen.instances.get_mut(&Ordinal(0)).expect("it is there");
    let state = stead_core::fleet::ContainerState::Prepared;
    let prepared = container("new", new, state, stead_core::fleet::TrafficState::Detached);
    instance.containers.push(stead_core::fleet::ContainerSeen { slot: Slot::B, ..prepared });
    assert_eq!(text(&fleet, &seen), ["before_update of c-0"]);
    let instance = seen.instances.get_mut(&Ordinal(0)).expect("it is there");
    instance.containers[0].hooks.push(HookSeen { hook: HookName::BeforeUpdate, run: 2 });
    assert_eq!(text(&fleet, &seen), ["start new"]);
    // Before it goes for good it is asked while it still has its requests; CloneSet asks too.
    let none = Fleet { instances: 0, ..old.clone() };
    assert_eq!(text(&none, &settled(&old)), ["pre_delete of c-0"]);
}
