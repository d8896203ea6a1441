use std::collections::BTreeMap;

use stead_core::ids::Generation;
use stead_core::routes::{AppReport, FailReason, Latency, Outcomes, ReleaseReport};

use super::*;

fn report(started: u64, completed: u64, in_flight: u64, unsent: u64) -> Report {
    Report {
        started: Time(started),
        generation: Generation(1),
        draining: false,
        partial: false,
        apps: vec![AppReport {
            app: app(),
            received: completed + in_flight + unsent,
            in_flight,
            parked: 0,
            unsent: Outcomes {
                failed: BTreeMap::from([(FailReason::ParkTimeout, unsent)]),
                ..Outcomes::default()
            },
            releases: vec![ReleaseReport {
                release: ReleaseNo(1),
                received: completed + in_flight + 3,
                parked: completed / 5,
                moved: 3,
                in_flight,
                outcomes: Outcomes { completed, ..Outcomes::default() },
                answered: [0; 5],
                latency: Latency::default(),
            }],
        }],
    }
}

fn app() -> AppKey {
    "default/web".parse().unwrap()
}

fn only(ledgers: &Ledgers) -> Ledger {
    let mut all = ledgers.of(&app());
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0).ledger
}

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn a_partial_report_says_nothing_of_the_others() {
    let (_dir, store) = open();
    let ledgers = Ledgers::load(&store).unwrap();
    ledgers.show(&app(), ReleaseNo(1));
    let me = std::process::id();
    ledgers.report(me, report(7, 10, 2, 0));
    ledgers.report(me, Report { partial: true, apps: Vec::new(), ..report(7, 0, 0, 0) });
    ledgers.report(me, Report { partial: true, ..report(7, 11, 1, 0) });
    assert_eq!(only(&ledgers).completed, 11, "it did not begin anew");
}

#[tokio::test]
async fn differences_add_up_over_gateways_and_restarts_of_serve() {
    let (_dir, store) = open();
    let ledgers = Ledgers::load(&store).unwrap();
    ledgers.show(&app(), ReleaseNo(1));
    let me = std::process::id();
    ledgers.report(me, report(7, 10, 2, 0));
    ledgers.report(me, report(7, 10, 2, 0));
    ledgers.report(1, report(8, 5, 1, 0));
    let ledger = only(&ledgers);
    assert_eq!((ledger.received, ledger.completed, ledger.in_flight), (18, 15, 3));
    assert!(ledger.balances(), "{ledger:?}");
    ledgers.persist(&store).await.unwrap();

    // serve is killed and started again; the gateway counted on.
    let ledgers = Ledgers::load(&store).unwrap();
    ledgers.report(me, report(7, 20, 0, 4));
    assert_eq!(only(&ledgers).completed, 15, "not booked before the app is known");
    ledgers.show(&app(), ReleaseNo(1));
    ledgers.report(me, report(7, 20, 0, 4));
    let ledger = only(&ledgers);
    assert_eq!((ledger.received, ledger.completed, ledger.in_flight), (30, 25, 1));
    assert_eq!(ledger.parked, 5);
    assert_eq!(ledger.failed["park_timeout"], 4);
    assert!(ledger.balances(), "{ledger:?}");
}

#[tokio::test]
async fn what_a_killed_gateway_had_under_way_was_cut() {
    let (_dir, store) = open();
    let ledgers = Ledgers::load(&store).unwrap();
    ledgers.show(&app(), ReleaseNo(1));
    let mut child = std::process::Command::new("true").spawn().unwrap();
    ledgers.report(child.id(), report(7, 1, 2, 0));
    ledgers.persist(&store).await.unwrap();
    child.wait().unwrap();
    ledgers.persist(&store).await.unwrap();
    let ledger = only(&ledgers);
    assert_eq!((ledger.failed["cut"], ledger.in_flight), (2, 0));
    assert!(ledger.balances(), "{ledger:?}");
    assert!(store.keys(Kind::Counters, "").unwrap().is_empty());
}

#[tokio::test]
async fn a_deleted_app_leaves_nothing_behind() {
    let (_dir, store) = open();
    let ledgers = Ledgers::load(&store).unwrap();
    ledgers.show(&app(), ReleaseNo(1));
    ledgers.report(1, report(7, 10, 0, 0));
    ledgers.forget(&app());
    ledgers.report(1, report(7, 11, 0, 0));
    assert_eq!(ledgers.of(&app()), []);
    ledgers.persist(&store).await.unwrap();
    assert!(store.keys(Kind::Ledger, "").unwrap().is_empty());
}

#[tokio::test]
async fn a_request_that_moves_on_after_it_was_booked_is_booked_once() {
    let (_dir, store) = open();
    let ledgers = Ledgers::load(&store).unwrap();
    ledgers.show(&app(), ReleaseNo(1));
    let counted = |received, moved, in_flight| {
        let mut report = report(7, 10, in_flight, 0);
        let release = &mut report.apps[0].releases[0];
        (release.received, release.moved) = (received, moved);
        report
    };
    ledgers.report(1, counted(11, 0, 1));
    assert_eq!(only(&ledgers).received, 11);
    ledgers.report(1, counted(11, 1, 0));
    let ledger = only(&ledgers);
    assert_eq!(ledger.received, 10);
    assert!(ledger.balances(), "{ledger:?}");
}

#[tokio::test]
async fn what_a_gateway_counts_anew_is_booked_from_zero() {
    let (_dir, store) = open();
    let ledgers = Ledgers::load(&store).unwrap();
    ledgers.show(&app(), ReleaseNo(1));
    ledgers.report(1, report(7, 10, 0, 2));
    // The App was deleted and the gateway forgot it; then it is deployed again.
    ledgers.forget(&app());
    let nothing = Report { apps: Vec::new(), ..report(7, 0, 0, 0) };
    ledgers.report(1, nothing);
    ledgers.show(&app(), ReleaseNo(1));
    ledgers.report(1, report(7, 15, 0, 3));
    let ledger = only(&ledgers);
    assert_eq!((ledger.received, ledger.completed, ledger.failed["park_timeout"]), (18, 15, 3));
    assert!(ledger.balances(), "{ledger:?}");
    // So fast that no report fell in between.
    ledgers.report(1, report(7, 4, 1, 0));
    let ledger = only(&ledgers);
    assert_eq!((ledger.completed, ledger.in_flight), (19, 1));
    assert!(ledger.balances(), "{ledger:?}");
}

#[tokio::test]
async fn what_could_not_be_stored_is_stored_the_next_time() {
    let (dir, store) = open();
    let ledgers = Ledgers::load(&store).unwrap();
    ledgers.show(&app(), ReleaseNo(1));
    ledgers.report(std::process::id(), report(7, 10, 0, 0));
    let spoiler = rusqlite::Connection::open(dir.path().join("state.db")).unwrap();
    spoiler.execute_batch("ALTER TABLE document RENAME TO hidden").unwrap();
    ledgers.persist(&store).await.unwrap_err();
    spoiler.execute_batch("ALTER TABLE hidden RENAME TO document").unwrap();
    ledgers.persist(&store).await.unwrap();
    assert_eq!(only(&Ledgers::load(&store).unwrap()).completed, 10);
}

#[tokio::test(start_paused = true)]
async fn what_a_gateway_said_before_it_left_is_stored_at_once() {
    let (_dir, store) = open();
    let store = Arc::new(store);
    let ledgers = Arc::new(Ledgers::load(&store).unwrap());
    ledgers.show(&app(), ReleaseNo(1));
    let mut changes = store.watch();
    let keeper = tokio::spawn(Arc::clone(&ledgers).keep(Arc::clone(&store)));
    let begun = tokio::time::Instant::now();
    ledgers.report(std::process::id(), report(7, 10, 0, 0));
    ledgers.hurry();
    changes.recv().await.unwrap();
    // The clock stands still but for timers that run out.
    assert!(begun.elapsed() < STORED);
    assert_eq!(only(&Ledgers::load(&store).unwrap()).completed, 10);
    keeper.abort();
}
