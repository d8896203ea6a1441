//! A site's Rollout: there are no Instances, so it is done when every gateway serves it.

mod worlds;

use std::collections::BTreeMap;

use proptest::prelude::*;
use stead_core::app::{App, Change};
use stead_core::error::{Code, UserError};
use stead_core::fleet::{FleetSeen, ImageSeen, ReleaseSpec, SiteSeen};
use stead_core::ids::ReleaseNo;
use stead_core::invariants::check_wanted;
use stead_core::manifest::{Manifest, Site};
use stead_core::rollout::{Phase, RolloutKind, Wanted, WantedSite, advance, wanted};
use stead_core::time::{Micros, Time};
use worlds::*;

const RELEASES: u32 = 6;

fn site() -> Manifest {
    Manifest { site: Some(Site::default()), ..manifest() }
}

fn releases() -> BTreeMap<ReleaseNo, ReleaseSpec> {
    let make = |n| (ReleaseNo(n), spec(n, |settings| settings.site = Some(Site::default())));
    (1..=RELEASES).map(make).collect()
}

fn roll_out(app: &mut App, release: u32, kind: RolloutKind, image_here: bool) {
    let change = Change { kind, image_here, now: NOW, by: "root".into(), message: None };
    app.roll_out(ReleaseNo(release), &site(), change);
}

fn deploy(app: &mut App, release: u32) {
    roll_out(app, release, RolloutKind::Deploy, true);
}

fn fresh() -> App {
    App::new(key(), 0, NOW)
}

/// An App that serves Release 1.
fn stable() -> App {
    let mut app = fresh();
    deploy(&mut app, 1);
    go_on(&mut app, Some(SiteSeen::Served(ReleaseNo(1))));
    app
}

fn want(app: &App) -> Wanted {
    let wanted = wanted(app, &releases());
    assert_eq!(check_wanted(app, &wanted), []);
    wanted
}

/// The site that is wanted: its Release, and the one before.
fn served(app: &App) -> Option<(u32, Option<u32>)> {
    want(app).site.map(|WantedSite { now, before }| (now.0, before.map(|before| before.0)))
}

fn next(app: &App, now: Time, change: impl FnOnce(&mut FleetSeen)) -> Option<Phase> {
    let fleet = want(app).fleet;
    let mut seen = settled(&fleet);
    change(&mut seen);
    advance(app, &fleet, &seen, None, now).phase
}

/// Enters the next phase, if what is seen leads to one. Gives the name of the phase then.
fn go_on(app: &mut App, site: Option<SiteSeen>) -> &'static str {
    if let Some(phase) = next(app, NOW, |seen| seen.site = site) {
        app.enter(phase);
    }
    app.rollout.as_ref().map_or("none", |rollout| rollout.phase.name())
}

fn unfit(release: u32) -> Option<SiteSeen> {
    let error = UserError::new(Code::SiteUnfit, "it has no index", "look");
    Some(SiteSeen::Unfit { release: ReleaseNo(release), error })
}

fn by(release: u32) -> Option<SiteSeen> {
    Some(SiteSeen::Served(ReleaseNo(release)))
}

#[test]
fn it_is_done_when_every_gateway_serves_it_and_not_before() {
    let mut app = fresh();
    deploy(&mut app, 1);
    assert_eq!(served(&app), Some((1, None)));
    assert_eq!(go_on(&mut app, None), "progressing");
    assert_eq!(go_on(&mut app, by(1)), "done");
    deploy(&mut app, 2);
    assert_eq!(served(&app), Some((2, Some(1))), "what is open may still be asked for");
    assert_eq!(go_on(&mut app, by(1)), "progressing", "that is the old one");
    assert_eq!(go_on(&mut app, by(2)), "done", "there is nothing to watch");
    assert_eq!((app.before, served(&app)), (Some(ReleaseNo(1)), Some((2, Some(1)))));
    assert_eq!(want(&app).fleet.instances, 0);
}

#[test]
fn its_image_is_fetched_before_anything_changes() {
    let mut app = stable();
    roll_out(&mut app, 2, RolloutKind::Deploy, false);
    assert_eq!(app.active().unwrap().phase, Phase::Pulling);
    assert_eq!(served(&app), Some((1, None)));
    assert_eq!(next(&app, NOW, |seen| drop(seen.images.remove(&digest(2)))), None);
    assert_eq!(go_on(&mut app, by(1)), "progressing");
    // Here it was thought to be here: the pull may still fail.
    let failed = next(&app, NOW, |seen| {
        let error = UserError::new(Code::ImageCorrupt, "it is not what it says", "look");
        seen.images.insert(digest(2), ImageSeen::Failed { error, at: NOW, count: 1 });
    });
    assert_eq!(failed.unwrap().name(), "undoing");
}

#[test]
fn going_back_is_a_flip() {
    let mut app = stable();
    deploy(&mut app, 2);
    go_on(&mut app, by(2));
    roll_out(&mut app, 1, RolloutKind::Rollback, true);
    assert_eq!(served(&app), Some((1, Some(2))));
    assert_eq!(go_on(&mut app, by(1)), "done");
    assert_eq!(app.before, Some(ReleaseNo(2)));
}

#[test]
fn what_cannot_be_served_is_undone() {
    let mut app = stable();
    deploy(&mut app, 2);
    assert_eq!(go_on(&mut app, unfit(1)), "progressing", "that is another one");
    assert_eq!(go_on(&mut app, unfit(2)), "undoing");
    assert_eq!(served(&app).unwrap().0, 1);
    assert_eq!(go_on(&mut app, by(2)), "undoing");
    assert_eq!(go_on(&mut app, by(1)), "undone");
    assert_eq!(served(&app).unwrap().0, 1);
    assert_eq!(app.rollout.unwrap().failure().unwrap().code, Code::SiteUnfit);
    // The first has nothing to go back to.
    let mut app = fresh();
    deploy(&mut app, 1);
    assert_eq!(go_on(&mut app, unfit(1)), "held");
}

#[test]
fn gateways_that_never_agree_end_it() {
    let mut app = stable();
    deploy(&mut app, 2);
    let deadline = NOW + app.active().unwrap().deadline;
    let before = Time(deadline.0 - 1);
    assert_eq!(next(&app, before, |seen| seen.site = by(1)), None);
    let late = next(&app, deadline, |seen| seen.site = by(1)).unwrap();
    assert_eq!(late.name(), "undoing");
    app.enter(late);
    let later = deadline + app.active().unwrap().deadline + Micros(1);
    assert_eq!(next(&app, later, |_| {}).unwrap().name(), "held");
}

#[test]
fn what_is_stopped_is_served_by_nobody_and_what_is_deleted_is_nowhere() {
    let mut app = stable();
    app.stop();
    let wanted = want(&app);
    assert!(wanted.routing.unwrap().stopped && wanted.site.is_some());
    app.start(NOW);
    assert!(!want(&app).routing.unwrap().stopped);
    app.delete();
    let wanted = want(&app);
    assert!(wanted.routing.is_none() && wanted.site.is_none());
}

#[test]
fn nothing_of_it_can_be_restarted() {
    let mut app = stable();
    let change = Change {
        kind: RolloutKind::Restart,
        image_here: true,
        now: NOW,
        by: "root".into(),
        message: None,
    };
    assert_eq!(app.restart(None, &site(), change).unwrap_err().code, Code::Conflict);
}

/// What a person, or the gateways, may do to it.
#[derive(Debug, Clone)]
enum Event {
    Deploy(bool),
    Rollback(u32),
    Abort,
    Stop,
    Start,
    See(Option<u32>),
    Unfit(u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<bool>().prop_map(Event::Deploy),
        (1..=RELEASES).prop_map(Event::Rollback),
        Just(Event::Abort),
        Just(Event::Stop),
        Just(Event::Start),
        prop::option::of(1..=RELEASES).prop_map(Event::See),
        (1..=RELEASES).prop_map(Event::Unfit),
    ]
}

proptest! {
    /// Whatever happened: gateways that serve what is wanted bring it to an end, what is wanted
    /// by then is what was served, and no Instance was ever wanted.
    #[test]
    fn it_comes_to_rest_with_what_is_wanted(events in prop::collection::vec(event(), 1..24)) {
        let mut app = fresh();
        deploy(&mut app, 1);
        for event in events {
            match event {
                Event::Deploy(here) if app.last_release.0 < RELEASES => {
                    let next = app.last_release.next().0;
                    roll_out(&mut app, next, RolloutKind::Deploy, here);
                }
                Event::Rollback(to) if to <= app.last_release.0 => {
                    roll_out(&mut app, to, RolloutKind::Rollback, true);
                }
                Event::Abort => drop(app.abort("root", NOW)),
                Event::Stop => app.stop(),
                Event::Start => app.start(NOW),
                Event::See(release) => drop(go_on(&mut app, release.and_then(by))),
                Event::Unfit(release) => drop(go_on(&mut app, unfit(release))),
                Event::Deploy(_) | Event::Rollback(_) => {}
            }
            prop_assert_eq!(want(&app).fleet.instances, 0);
        }
        if app.stopped {
            app.start(NOW);
        }
        for _ in 0..4 {
            let wanted = served(&app).and_then(|(now, _)| by(now));
            go_on(&mut app, wanted);
        }
        prop_assert!(app.active().is_none(), "{:?}", app.rollout);
        let settled = served(&app);
        prop_assert_eq!(go_on(&mut app, settled.and_then(|(now, _)| by(now))), app.rollout.as_ref().unwrap().phase.name());
        prop_assert_eq!(served(&app), settled);
    }
}
