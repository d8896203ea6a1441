//! Secrets over the API, with a control plane on a simulated machine.

#![allow(clippy::unwrap_used, reason = "it is a test that fails")]

mod support;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use stead_core::api::{ReleaseView, SecretChanged, SecretView};
use stead_core::error::Code;
use stead_core::rollout::{Phase, Rollout, RolloutKind};
use stead_testkit::sim::SimMachine;
use support::{Client, Platform, app_path};

fn path(name: &str) -> String {
    format!("{}/secrets/{name}", app_path("web"))
}

async fn set(client: &Client, name: &str, value: &str) -> SecretChanged {
    let body = json!({"value": value});
    let (status, answer) = client.request(Method::PUT, &path(name), Some(&body)).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(!answer.to_string().contains(value), "{answer}");
    serde_json::from_value(answer).unwrap()
}

async fn unset(client: &Client, name: &str) -> SecretChanged {
    let (status, answer) = client.request(Method::DELETE, &path(name), None).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    serde_json::from_value(answer).unwrap()
}

async fn list(client: &Client) -> Vec<(String, Option<u32>, Option<u32>)> {
    let views: Vec<SecretView> = client.get(&format!("{}/secrets", app_path("web"))).await;
    views.into_iter().map(|view| (view.name.to_string(), view.version, view.used)).collect()
}

/// The versions that the Release in use has.
async fn used(client: &Client) -> Value {
    let releases: Vec<ReleaseView> = client.get(&format!("{}/releases", app_path("web"))).await;
    let current = releases.into_iter().find(|view| view.current).unwrap();
    serde_json::to_value(current.release.secrets).unwrap()
}

fn went_well(rollout: &Rollout) -> RolloutKind {
    assert!(matches!(rollout.phase, Phase::Watching { .. } | Phase::Done { .. }), "{rollout:?}");
    rollout.kind
}

fn named(names: &[&str]) -> Value {
    json!({"source": "sim/ready:1", "secrets": names})
}

#[tokio::test]
async fn a_secret_from_its_first_value_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();

    let deploy = format!("{}/deploy", app_path("web"));
    let manifest = json!({"manifest": {"app": "web", "source": "sim/ready:1", "secrets": ["A"]}});
    let refused = client.refused(Method::POST, &deploy, manifest).await;
    assert_eq!(refused.error.code, Code::SecretUnset);
    assert!(refused.error.hint.contains("stead secrets set web A"), "{}", refused.error.hint);

    let first = set(&client, "A", "hunter2").await;
    assert_eq!((first.version, first.accepted), (Some(1), None), "there is no app yet");
    assert_eq!(list(&client).await, [("A".into(), Some(1), None)]);
    let rollout = client.ended(client.deploy("web", named(&["A"])).await).await;
    assert_eq!(went_well(&rollout), RolloutKind::Deploy);
    assert_eq!(used(&client).await, json!({"A": 1}));

    assert_eq!(set(&client, "A", "hunter2").await.accepted, None, "nothing is different");
    let other = set(&client, "B", "swordfish").await;
    assert_eq!((other.version, other.accepted), (Some(1), None), "the app does not use it");
    let second = set(&client, "A", "hunter3").await;
    assert_eq!(second.version, Some(2));
    let rollout = client.ended(second.accepted.unwrap()).await;
    assert_eq!(went_well(&rollout), RolloutKind::Config);
    assert_eq!(used(&client).await, json!({"A": 2}));
    let both = [("A".into(), Some(2), Some(2)), ("B".into(), Some(1), None)];
    assert_eq!(list(&client).await, both);

    let back = client.change(&format!("{}/rollback", app_path("web")), json!({})).await;
    went_well(&client.ended(back).await);
    assert_eq!(used(&client).await, json!({"A": 1}), "a rollback brings the old value back");
    let again = set(&client, "A", "hunter3").await;
    assert_eq!(again.version, Some(2), "that is its value already");
    went_well(&client.ended(again.accepted.expect("the app had another one")).await);
    assert_eq!(used(&client).await, json!({"A": 2}));

    let without = unset(&client, "A").await;
    assert_eq!(without.version, None);
    went_well(&client.ended(without.accepted.unwrap()).await);
    assert_eq!(used(&client).await, json!({}));
    assert_eq!(list(&client).await, [("B".into(), Some(1), None)]);
    let gone = client.refused(Method::DELETE, &path("A"), json!({})).await;
    assert_eq!(gone.error.code, Code::NotFound);

    let (status, _) = client.request(Method::DELETE, &app_path("web"), None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let gone = async {
        while client.request(Method::GET, &app_path("web"), None).await.0 != StatusCode::NOT_FOUND {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, gone).await.expect("it is deleted");
    let secrets = format!("{}/secrets", app_path("web"));
    assert_eq!(client.request(Method::GET, &secrets, None).await.0, StatusCode::NOT_FOUND);
    platform.stop().await;
    nothing_holds(dir.path(), &["hunter2", "hunter3", "swordfish"]);
}

#[tokio::test]
async fn a_refused_value_is_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let long = "hunter2".repeat(10_000);
    for body in [
        json!({"value": ["hunter2"]}),
        json!({"value": {"hunter2": "hunter2"}}),
        json!({"value": "hunter2\u{0}"}),
        json!({"value": long}),
        json!({"value": ""}),
        json!({}),
    ] {
        let refused = client.refused(Method::PUT, &path("A"), body).await;
        assert_eq!(refused.error.code, Code::BadRequest);
        assert!(!serde_json::to_string(&refused).unwrap().contains("hunter2"));
    }
    let refused = client.refused(Method::PUT, &path("1A"), json!({"value": "hunter2"})).await;
    assert_eq!(refused.error.code, Code::BadRequest);
    let elsewhere = "/api/v1/namespaces/elsewhere/apps/web/secrets/A";
    let refused = client.refused(Method::PUT, elsewhere, json!({"value": "hunter2"})).await;
    assert_eq!(refused.error.code, Code::NotFound, "there is no such namespace");
    platform.stop().await;
    nothing_holds(dir.path(), &["hunter2"]);
}

#[tokio::test]
async fn a_restarted_control_plane_knows_its_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let machine = SimMachine::new();
    let platform = Platform::start(dir.path(), &machine).await;
    set(&platform.client(), "A", "hunter2").await;
    platform.kill().await;

    let platform = Platform::start(dir.path(), &machine).await;
    let client = platform.client();
    went_well(&client.ended(client.deploy("web", named(&["A"])).await).await);
    assert_eq!(set(&client, "A", "hunter2").await.version, Some(1), "the key is the same");
    let wrong: Vec<String> = client.get("/api/v1/doctor").await;
    assert_eq!(wrong, [""; 0]);
    std::fs::remove_file(dir.path().join("data/secrets.key")).unwrap();
    let wrong: Vec<String> = client.get("/api/v1/doctor").await;
    assert!(wrong.len() == 1 && wrong[0].contains("STEAD-P005"), "{wrong:?}");
    let refused = client.refused(Method::PUT, &path("A"), json!({"value": "new"})).await;
    assert_eq!(refused.error.code, Code::SecretsLocked);
}

/// Fails if a file below `folder` holds one of these texts.
fn nothing_holds(folder: &std::path::Path, texts: &[&str]) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            nothing_holds(&path, texts);
        } else if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            for text in texts {
                let found = bytes.windows(text.len()).any(|part| part == text.as_bytes());
                assert!(!found, "{text} in {}", path.display());
            }
        }
    }
}
