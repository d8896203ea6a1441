//! The contract suite accepts the simulated engine and rejects every broken one.

use std::sync::Arc;

use stead_testkit::contract::{self, Defect, Report, SimSubject, Subject, Witness};

async fn judge(defect: Option<Defect>) -> Report {
    contract::run(|witness: Arc<Witness>| async move {
        Box::new(SimSubject::open(witness, defect)) as Box<dyn Subject>
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn the_simulated_engine_keeps_the_contract() {
    judge(None).await.assert_passed();
}

/// Each defect is found by the check that is for it.
#[tokio::test(start_paused = true)]
async fn every_broken_engine_is_rejected() {
    let mut missed = Vec::new();
    for (defect, check) in Defect::ALL {
        let report = judge(Some(*defect)).await;
        if !report.rejects(check) {
            missed.push(format!("{defect:?} passed {check}:\n{report}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n\n"));
}

/// A check that no defect is for could be one that cannot fail.
#[test]
fn every_check_has_a_defect() {
    let without: Vec<&str> = contract::names()
        .filter(|name| Defect::ALL.iter().all(|(_, check)| check != name))
        .collect();
    assert_eq!(without, ["an_unknown_app_is_empty"], "a plain question and answer");
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
