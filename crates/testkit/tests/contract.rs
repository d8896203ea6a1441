//! The contract suite accepts the simulated engine and rejects every broken one.

use std::sync::Arc;

use stead_testkit::contract::{self, Defect, Report, SimSubject, Subject, Witness};

async fn judge(checks: &[&str], defect: Option<Defect>) -> Report {
    contract::run_only(checks, |witness: Arc<Witness>| async move {
        Box::new(SimSubject::open(witness, defect)) as Box<dyn Subject>
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn the_simulated_engine_keeps_the_contract() {
    let report = judge(&[], None).await;
    report.assert_passed();
    // It keeps no files that could be given out.
    assert_eq!(report.lacking, [("what_is_exported_comes_back_the_same", "export")]);
}

/// Each defect is found by the check that is for it.
#[tokio::test(start_paused = true)]
async fn every_broken_engine_is_rejected() {
    let mut missed = Vec::new();
    for (defect, check) in Defect::ALL {
        let report = judge(&[check], Some(*defect)).await;
        if !report.rejects(check) {
            missed.push(format!("{defect:?} passed {check}:\n{report}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
}

/// A check that no defect is for could be one that cannot fail.
#[test]
fn every_check_has_a_defect() {
    let without: Vec<_> = contract::names()
        .filter(|name| Defect::ALL.iter().all(|(_, check)| check != name))
        .collect();
    let (question, elsewhere) = ("an_unknown_app_is_empty", "what_is_exported_comes_back_the_same");
    // The one is a plain question and answer; what the other compares is tested with it, for
    // there is no export to spoil.
    assert_eq!(without, [question, elsewhere]);
}

/// In real time, as an engine on a real machine is judged.
#[tokio::test]
async fn the_contract_holds_in_real_time() {
    let names = ["a_drain_ends_before_a_stop", "a_restart_amid_an_upgrade_still_drains"];
    let report = contract::run_only(&names, |witness| async move {
        Box::new(SimSubject::open(witness, None)) as Box<dyn Subject>
    })
    .await;
    report.assert_passed();
    assert_eq!(report.passed.len(), names.len());
}
