//! The simulated engine, as the control plane's tests use it.

use std::sync::Arc;
use std::time::Duration;

use stead_core::engine::{Engine, EngineError};
use stead_core::error::Code;
use stead_core::fleet::{FleetSeen, ImageSeen};
use stead_core::ids::Ordinal;
use stead_core::name::AppKey;
use stead_testkit::sim::{Fault, Notes, OpenRoad, SimEngine, app_key, fleet, release, settings};

fn engine() -> (SimEngine, Arc<OpenRoad>, Arc<Notes>) {
    let (road, notes) = (Arc::new(OpenRoad::default()), Arc::new(Notes::default()));
    (SimEngine::new(road.clone(), notes.clone()), road, notes)
}

async fn until(engine: &SimEngine, app: &AppKey, what: &str, good: impl Fn(&FleetSeen) -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let seen = engine.observe(app).await.expect("it is up");
        if good(&seen) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "never: {what}; seen {seen:#?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn serving(seen: &FleetSeen) -> usize {
    seen.instances.keys().filter(|ordinal| seen.serves(**ordinal)).count()
}

#[tokio::test(start_paused = true)]
async fn a_fleet_comes_up_survives_a_crash_and_goes() {
    let (engine, road, notes) = engine();
    let app = app_key("web");
    let releases = [(1, release(settings(&app, "sim/web:1")))];
    engine.apply(fleet(&app, 2, 3, (1, 1), &releases)).await.unwrap();
    until(&engine, &app, "three serve", |seen| serving(seen) == 3).await;
    assert_eq!(road.backends().len(), 3);

    let stale = engine.apply(fleet(&app, 1, 0, (1, 1), &releases)).await.unwrap_err();
    assert!(matches!(stale, EngineError::Stale { .. }), "{stale}");

    assert!(engine.fault(&app, Ordinal(1), Fault::Crash));
    until(&engine, &app, "it is started again", |seen| {
        serving(seen) == 3 && seen.instances[&Ordinal(1)].crashes == 1
    })
    .await;

    engine.apply(fleet(&app, 3, 0, (1, 1), &releases)).await.unwrap();
    until(&engine, &app, "nothing is left", |seen| seen.instances.is_empty()).await;
    assert!(road.backends().is_empty());
    engine.forget(&app, false).await.unwrap();
    assert!(engine.apps().await.unwrap().is_empty());
    assert!(!notes.all().is_empty());
    assert_eq!(engine.take_violations(), []);
}

#[tokio::test(start_paused = true)]
async fn an_engine_opened_again_takes_over_what_runs() {
    let (engine, road, notes) = engine();
    let app = app_key("web");
    let releases = [(1, release(settings(&app, "sim/web:1")))];
    engine.apply(fleet(&app, 1, 2, (1, 1), &releases)).await.unwrap();
    until(&engine, &app, "two serve", |seen| serving(seen) == 2).await;
    let before = engine.observe(&app).await.unwrap();
    let machine = engine.machine();
    drop(engine);

    let engine = SimEngine::open(machine, road, notes);
    until(&engine, &app, "two serve again", |seen| serving(seen) == 2).await;
    assert_eq!(engine.observe(&app).await.unwrap().instances, before.instances);
}

#[tokio::test(start_paused = true)]
async fn references_choose_what_goes_wrong() {
    let (engine, ..) = engine();
    let app = app_key("web");
    let missing = engine.resolve("sim/missing:1").await.unwrap_err();
    assert!(matches!(missing, EngineError::User(e) if e.code == Code::ImageNotFound));
    for (generation, (reference, code)) in [
        ("sim/never-ready:1", Code::NeverReady),
        ("sim/crash:1", Code::ExitedAtOnce),
        ("sim/cannot-start:1", Code::CannotStart),
    ]
    .into_iter()
    .enumerate()
    {
        let number = generation as u32 + 1;
        let releases = [(number, release(settings(&app, reference)))];
        let fleet = fleet(&app, generation as u64, 1, (number, number), &releases);
        engine.apply(fleet).await.unwrap();
        until(&engine, &app, reference, |seen| {
            let trouble = seen.instances.get(&Ordinal(0)).and_then(|i| i.trouble.as_ref());
            trouble.is_some_and(|t| t.error.code == code && t.count >= 2)
        })
        .await;
    }
    let refused = release(settings(&app, "sim/refused:1"));
    engine.apply(fleet(&app, 9, 1, (9, 9), &[(9, refused.clone())])).await.unwrap();
    until(&engine, &app, "its pull fails", |seen| {
        matches!(seen.images.get(&refused.image), Some(ImageSeen::Failed { .. }))
    })
    .await;
}
