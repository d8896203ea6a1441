//! The life of an App over the API's Unix socket, on a simulated machine.

mod support;

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use stead_core::api::{
    EnvView, EventPage, InstanceView, PlanView, Progress, ReleaseView, RolloutView, Waterfall,
};
use stead_core::error::Code;
use stead_core::event::PhaseName;
use stead_core::fleet::Way;
use stead_core::ids::ReleaseNo;
use stead_core::rollout::{Phase, Rollout, RolloutKind};
use stead_testkit::sim::SimMachine;
use support::{Platform, app_path};

/// The phase, with `done` for what is still watched.
fn name(rollout: &Rollout) -> &'static str {
    if rollout.phase.is_through() { "done" } else { rollout.phase.name() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_of_an_app() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();

    // Deploy.
    let first = client.deploy("web", json!({"source": "sim/ready:1", "instances": 2})).await;
    assert_eq!(first.release, Some(ReleaseNo(1)));
    let progress = client.follow("web", first.rollout.unwrap()).await;
    let last = progress.last().unwrap();
    assert_eq!((name(&last.rollout), last.done, last.instances), ("done", 2, 2), "{last:#?}");
    let view = client.app("web").await;
    assert_eq!((view.state.as_str(), view.ready), ("running", 2));
    assert_eq!(view.urls, ["http://web.default.localhost:8080"]);
    let before: Vec<InstanceView> = client.get(&format!("{}/instances", app_path("web"))).await;

    // Another version: same addresses, new revision.
    let second = client.deploy("web", json!({"source": "sim/ready:2", "instances": 2})).await;
    assert_eq!(name(&client.ended(second).await), "done");
    let after: Vec<InstanceView> = client.get(&format!("{}/instances", app_path("web"))).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.ip, after.ip);
        assert_eq!(after.revision.unwrap().release, ReleaseNo(2));
        assert_eq!(after.state, "ready");
    }

    // Back, and forth again.
    let back = client.change(&format!("{}/rollback", app_path("web")), json!({})).await;
    let back = client.ended(back).await;
    assert_eq!(
        (name(&back), back.kind, back.to.release),
        ("done", RolloutKind::Rollback, ReleaseNo(1))
    );
    let forth =
        client.change(&format!("{}/rollback", app_path("web")), json!({"release": 2})).await;
    assert_eq!(client.ended(forth).await.to.release, ReleaseNo(2));

    // Restart: all, and one.
    let all = client.change(&format!("{}/restart", app_path("web")), json!({})).await;
    assert_eq!(name(&client.ended(all).await), "done");
    let runs = || async {
        let all: Vec<InstanceView> = client.get(&format!("{}/instances", app_path("web"))).await;
        all.iter().map(|i| i.revision.unwrap().run).collect::<Vec<_>>()
    };
    let were = runs().await;
    let one = client.change(&format!("{}/restart", app_path("web")), json!({"instance": 1})).await;
    assert_eq!(name(&client.ended(one).await), "done");
    let are = runs().await;
    assert_eq!(were[0], are[0]);
    assert!(are[1] > were[1]);

    // Scale survives a release that says nothing new about it.
    client.change(&format!("{}/scale", app_path("web")), json!({"instances": 3})).await;
    client.until("web", |view| view.ready == 3).await;
    let third = client.deploy("web", json!({"source": "sim/ready:3", "instances": 2})).await;
    assert_eq!(name(&client.ended(third).await), "done");
    assert_eq!(client.app("web").await.instances, 3);
    let fourth = client.deploy("web", json!({"source": "sim/ready:4", "instances": 1})).await;
    assert_eq!(name(&client.ended(fourth).await), "done");
    assert_eq!(client.app("web").await.instances, 1);

    // Environment.
    let env = format!("{}/env", app_path("web"));
    let change = json!({"set": {"MODE": "fast"}});
    let (status, accepted) = client.request(Method::PATCH, &env, Some(&change)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{accepted}");
    let config = client.ended(serde_json::from_value(accepted).unwrap()).await;
    assert_eq!((name(&config), config.kind), ("done", RolloutKind::Config));
    assert_eq!(client.get::<EnvView>(&env).await.env["MODE"], "fast");
    let same = client.request(Method::PATCH, &env, Some(&change)).await;
    assert_eq!(same.1["rollout"], Value::Null, "nothing changes, nothing is restarted");

    // Stop and start.
    client.change(&format!("{}/stop", app_path("web")), json!({})).await;
    client.until("web", |view| view.state == "stopped" && view.ready == 0).await;
    client.change(&format!("{}/start", app_path("web")), json!({})).await;
    client.until("web", |view| view.state == "running" && view.ready == 1).await;

    // What happened is told.
    let releases: Vec<ReleaseView> = client.get(&format!("{}/releases", app_path("web"))).await;
    assert_eq!(releases.iter().map(|r| r.release.number.0).collect::<Vec<_>>(), [5, 4, 3, 2, 1]);
    assert!(releases[0].current && !releases[1].current);
    let rollouts: Vec<Rollout> = client.get(&format!("{}/rollouts", app_path("web"))).await;
    assert_eq!(rollouts.len(), 9);
    assert!(rollouts.iter().all(|rollout| rollout.phase.is_through()));
    let path = format!("{}/waterfall?rollout={}", app_path("web"), rollouts[7].number);
    let waterfall: Waterfall = client.get(&path).await;
    let phases: Vec<PhaseName> = waterfall.bars.iter().map(|bar| bar.phase).collect();
    for phase in [PhaseName::Resolve, PhaseName::Queue, PhaseName::Pull, PhaseName::Start] {
        assert!(phases.contains(&phase), "{phase:?} is missing in {phases:?}");
    }
    assert!(waterfall.total.is_some() && waterfall.before.is_some());
    let events: EventPage = client.get(&format!("{}/events?tail=1000", app_path("web"))).await;
    assert!(events.events.len() > 20, "{}", events.events.len());

    // Delete.
    let (status, _) = client.request(Method::DELETE, &app_path("web"), None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let gone = async {
        while client.request(Method::GET, &app_path("web"), None).await.0 != StatusCode::NOT_FOUND {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, gone).await.expect("the app goes");
    assert_eq!(platform.engine.take_violations(), []);
    let again = client.deploy("web", json!({"source": "sim/ready:1"})).await;
    assert_eq!(again.release, Some(ReleaseNo(1)), "nothing of the old one is left");
    assert_eq!(name(&client.ended(again).await), "done");
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let good = client.deploy("web", json!({"source": "sim/ready:1"})).await;
    client.ended(good).await;

    let crash = client.deploy("web", json!({"source": "sim/crash:1"})).await;
    let crash = client.ended(crash).await;
    assert_eq!(name(&crash), "undone", "{crash:#?}");
    let view = client.until("web", |view| view.ready == 1).await;
    assert_eq!((view.state.as_str(), view.release), ("running", Some(ReleaseNo(1))));

    let refused = client.deploy("web", json!({"source": "sim/refused:1"})).await;
    let refused = client.ended(refused).await;
    assert_eq!(refused.failure().unwrap().code, Code::ImageRefused);
    assert_eq!(client.app("web").await.ready, 1, "nothing was touched");

    // Held, because going back by itself is not wanted; then back by hand.
    let held = json!({"source": "sim/cannot-start:1", "rollout": {"auto_rollback": false}});
    let held = client.deploy("web", held).await;
    assert_eq!(name(&client.ended(held).await), "held");
    assert_eq!(client.app("web").await.state, "failed");
    let back = client.change(&format!("{}/rollback", app_path("web")), json!({})).await;
    let back = client.ended(back).await;
    assert_eq!((name(&back), back.to.release), ("done", ReleaseNo(1)));

    // A first release that fails has nothing to go back to.
    let first = client.deploy("new", json!({"source": "sim/cannot-start:1"})).await;
    assert_eq!(name(&client.ended(first).await), "held");
    let path = format!("{}/rollback", app_path("new"));
    assert_eq!(client.refused(Method::POST, &path, json!({})).await.error.code, Code::NotFound);
    assert_eq!(platform.engine.take_violations(), []);
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minds_are_changed_on_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let good = client.deploy("web", json!({"source": "sim/ready:1", "instances": 2})).await;
    client.ended(good).await;

    // Abort.
    let stuck = client.deploy("web", json!({"source": "sim/never-ready:1", "instances": 2})).await;
    let number = stuck.rollout.unwrap();
    client
        .until("web", |view| view.rollout.as_ref().is_some_and(|r| name(r) == "progressing"))
        .await;
    let aborted =
        client.change(&format!("{}/rollouts/current/abort", app_path("web")), json!({})).await;
    assert_eq!(aborted.rollout, Some(number), "the same rollout goes back");
    let undone = client.ended(aborted).await;
    assert_eq!(name(&undone), "undone");
    assert_eq!(undone.failure().unwrap().code, Code::RolloutAborted);

    // A newer deploy takes the place of one under way.
    let stuck = client.deploy("web", json!({"source": "sim/never-ready:2", "instances": 2})).await;
    let watcher = client.clone();
    let number = stuck.rollout.unwrap();
    let watching = tokio::spawn(async move { watcher.follow("web", number).await });
    let newer = client.deploy("web", json!({"source": "sim/ready:2", "instances": 2})).await;
    assert_eq!(name(&client.ended(newer).await), "done");
    let watched = watching.await.unwrap();
    assert_eq!(name(&watched.last().unwrap().rollout), "superseded");

    // Rollback while a deploy is under way gives it up.
    client.deploy("web", json!({"source": "sim/never-ready:3", "instances": 2})).await;
    let back = client.change(&format!("{}/rollback", app_path("web")), json!({})).await;
    assert_eq!(name(&client.ended(back).await), "undone");
    let view = client.until("web", |view| view.ready == 2).await;
    assert_eq!(view.image.as_deref(), Some("sim/ready:2"));
    for verb in ["pause", "resume", "promote"] {
        let path = format!("{}/rollouts/current/{verb}", app_path("web"));
        let refused = client.refused(Method::POST, &path, json!({})).await;
        assert_eq!(refused.error.code, Code::Conflict, "nothing is under way");
    }
    let path = format!("{}/rollouts/current/polish", app_path("web"));
    assert_eq!(client.refused(Method::POST, &path, json!({})).await.error.code, Code::NotFound);
    assert_eq!(platform.engine.take_violations(), []);
    platform.stop().await;
}

#[tokio::test]
async fn mistakes_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let deploy = format!("{}/deploy", app_path("web"));
    let manifest = |more: Value| {
        let mut whole = json!({"app": "web", "source": "sim/ready:1"});
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"manifest": whole})
    };
    let refused = |body: Value| client.refused(Method::POST, &deploy, body);

    let wrong =
        refused(manifest(json!({"replicas": 2, "instances": "x", "restart": "maybe"}))).await;
    assert_eq!(wrong.problems.len(), 3, "{:#?}", wrong.problems);
    assert_eq!(wrong.status, 422);
    let file = refused(manifest(json!({"files": {"/etc/x": "./x"}}))).await;
    assert_eq!(file.error.code, Code::ManifestFileMissing);
    let other = refused(json!({"manifest": {"app": "other", "source": "x"}})).await;
    assert_eq!(other.error.code, Code::BadRequest);
    let missing = refused(manifest(json!({"source": "sim/missing:1"}))).await;
    assert_eq!(missing.error.code, Code::ImageNotFound);
    assert_eq!(refused(json!({"manifestt": {}})).await.error.code, Code::BadRequest);

    let elsewhere = "/api/v1/namespaces/elsewhere/apps/web/deploy";
    let body = json!({"manifest": {"app": "web", "namespace": "elsewhere", "source": "x"}});
    let unknown = client.refused(Method::POST, elsewhere, body).await;
    assert_eq!(unknown.error.code, Code::NotFound);
    assert!(unknown.error.hint.contains("namespace create elsewhere"), "{}", unknown.error.hint);
    for path in ["/api/v1/nothing", &app_path("none"), "/api/v1/namespaces/UPPER/apps/x"] {
        let refused = client.refused(Method::GET, path, json!(null)).await;
        assert_eq!(refused.error.code, Code::NotFound, "{path}");
    }
    let refused = client.refused(Method::POST, &app_path("web"), json!({})).await;
    assert_eq!(refused.error.code, Code::Denied, "{refused:?}");

    // Hosts belong to one App.
    let hosts = json!({"http": {"hosts": ["shop.example"]}});
    client.ended(client.change(&deploy, manifest(hosts.clone())).await).await;
    let mut thief = manifest(hosts);
    thief["manifest"]["app"] = json!("thief");
    let path = format!("{}/deploy", app_path("thief"));
    let refused = client.refused(Method::POST, &path, thief).await;
    assert_eq!(refused.error.code, Code::Conflict);

    // A change made for an older generation is refused.
    let view = client.app("web").await;
    let stale = format!("\"{}\"", view.generation.0 - 1);
    let scale = format!("{}/scale", app_path("web"));
    let body = json!({"instances": 2});
    let answer = client.send(Method::POST, &scale, Some(&body), &[("if-match", &stale)]).await;
    assert_eq!(answer.status(), StatusCode::PRECONDITION_FAILED);
    let current = format!("\"{}\"", view.generation);
    let answer = client.send(Method::POST, &scale, Some(&body), &[("if-match", &current)]).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    assert!(answer.headers().contains_key("etag"));
    drop(answer.into_body().collect().await);
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_is_changed_of_what_is_on_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let first = client.deploy("web", json!({"source": "sim/ready:1"})).await;
    client.ended(first).await;
    client.deploy("web", json!({"source": "sim/registry-down:2"})).await;
    let path = format!("{}/env", app_path("web"));
    let (status, answer) =
        client.request(Method::PATCH, &path, Some(&json!({"set": {"A": "1"}}))).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{answer}");
    let releases: Vec<ReleaseView> = client.get(&format!("{}/releases", app_path("web"))).await;
    assert_eq!(releases[0].release.number, ReleaseNo(3));
    assert_eq!(releases[0].release.reference, "sim/registry-down:2");
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_leads_to_one_app() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let deploy = |app: String, hosts: &[&str]| {
        let manifest = json!({"app": app, "source": "sim/ready:1", "http": {"hosts": hosts}});
        let client = client.clone();
        async move {
            let path = format!("{}/deploy", app_path(&app));
            client.request(Method::POST, &path, Some(&json!({"manifest": manifest}))).await.0
        }
    };
    // Of many that want it at once, one has it.
    let all = (0..8).map(|n| deploy(format!("app{n}"), &["shop.example"]));
    let statuses = futures_util::future::join_all(all).await;
    let accepted = |status: &StatusCode| *status == StatusCode::ACCEPTED;
    assert_eq!(statuses.iter().filter(|status| accepted(status)).count(), 1, "{statuses:?}");
    let owner = format!("app{}", statuses.iter().position(accepted).unwrap());
    client.until(&owner, |view| view.state == "running").await;
    // One that gave it up cannot go back to it once another has it.
    assert_eq!(deploy(owner.clone(), &["other.example"]).await, StatusCode::ACCEPTED);
    client.until(&owner, |view| view.state == "running").await;
    // While the other Release is watched it may come back, and needs its host then.
    assert_eq!(deploy("heir".into(), &["shop.example"]).await, StatusCode::CONFLICT);
    let promote = format!("{}/rollouts/current/promote", app_path(&owner));
    client.change(&promote, json!({})).await;
    assert_eq!(deploy("heir".into(), &["shop.example"]).await, StatusCode::ACCEPTED);
    let back = format!("{}/rollback", app_path(&owner));
    let refused = client.refused(Method::POST, &back, json!({})).await;
    assert_eq!(refused.error.code, Code::Conflict);
    platform.stop().await;
}

#[tokio::test]
async fn namespaces_hold_apps() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let (status, made) = client.request(Method::PUT, "/api/v1/namespaces/stage", None).await;
    assert_eq!((status, made["apps"].as_u64()), (StatusCode::OK, Some(0)));
    let body = json!({"manifest": {"app": "web", "namespace": "stage", "source": "sim/ready:1"}});
    client.change("/api/v1/namespaces/stage/apps/web/deploy", body).await;
    let all: Value = client.get("/api/v1/namespaces").await;
    assert_eq!(all, json!([{"name": "default", "apps": 0}, {"name": "stage", "apps": 1}]));
    let full = client.refused(Method::DELETE, "/api/v1/namespaces/stage", json!(null)).await;
    assert_eq!(full.error.code, Code::Conflict);
    client.request(Method::PUT, "/api/v1/namespaces/empty", None).await;
    let (status, _) = client.request(Method::DELETE, "/api/v1/namespaces/empty", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    platform.stop().await;
}

/// Whether the Rollout waits for a person.
fn waits(progress: &Progress) -> bool {
    matches!(&progress.rollout.phase, Phase::Progressing { gate: Some(gate), .. } if gate.until.is_none())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_is_steered_and_tells_its_story() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let manifest = |source: &str| {
        json!({"source": source, "instances": 4, "rollout": {
            "batches": [1, 2, "100%"], "pause": "manual", "order": "ascending",
        }})
    };
    let first = client.deploy("web", manifest("sim/ready:1")).await;
    client.ended(first).await;

    // Beforehand: who, how, in which batch. Nothing is stored.
    let mut whole = manifest("sim/ready:2");
    whole["app"] = json!("web");
    let path = format!("{}/plan", app_path("web"));
    let (status, plan) =
        client.request(Method::POST, &path, Some(&json!({"manifest": whole}))).await;
    assert_eq!(status, StatusCode::OK, "{plan}");
    let plan: PlanView = serde_json::from_value(plan).unwrap();
    let batches: Vec<_> = plan.plan.instances.iter().map(|one| one.batch.unwrap()).collect();
    assert_eq!(batches, [1, 2, 3, 3]);
    assert!(!plan.plan.new && plan.plan.changes[0].path == "source", "{plan:#?}");
    assert!(plan.plan.instances.iter().all(|one| one.ip.is_some()));
    let releases: Vec<ReleaseView> = client.get(&format!("{}/releases", app_path("web"))).await;
    assert_eq!(releases.len(), 1);

    let second = client.deploy("web", manifest("sim/ready:2")).await;
    let number = second.rollout.unwrap();
    client.follow_until("web", number, waits).await;
    let on_new = || async {
        let all: Vec<InstanceView> = client.get(&format!("{}/instances", app_path("web"))).await;
        let new = all.iter().filter(|one| one.revision.unwrap().release == ReleaseNo(2));
        new.map(|one| one.instance.0).collect::<Vec<_>>()
    };
    assert_eq!(on_new().await, [0]);
    let verb = |verb: &str| format!("{}/rollouts/current/{verb}", app_path("web"));
    client.change(&verb("pause"), json!({})).await;
    client.until("web", |view| view.rollout.as_ref().unwrap().paused.is_some()).await;
    client.change(&verb("resume"), json!({})).await;
    let wrong = client.refused(Method::POST, &verb("resume"), json!({})).await;
    assert_eq!(wrong.error.code, Code::Conflict);
    let wrong = client.refused(Method::POST, &verb("pause"), json!({"all": true})).await;
    assert_eq!(wrong.error.code, Code::BadRequest);
    client.change(&verb("promote"), json!({})).await;
    client.follow_until("web", number, |p| waits(p) && p.done == 2).await;
    assert_eq!(on_new().await, [0, 1]);

    // Chosen Instances go while it is under way.
    let scale = format!("{}/scale", app_path("web"));
    let wrong = client.refused(Method::POST, &scale, json!({"remove": [9]})).await;
    assert_eq!(wrong.error.code, Code::NotFound);
    assert_eq!(client.refused(Method::POST, &scale, json!({})).await.error.code, Code::BadRequest);
    client.change(&scale, json!({"remove": [2]})).await;
    client.until("web", |view| view.instances == 3 && view.ready == 3).await;
    client.change(&verb("promote"), json!({"all": true})).await;
    let progress = client.follow("web", number).await;
    assert_eq!(name(&progress.last().unwrap().rollout), "done");
    assert_eq!(on_new().await, [0, 1, 3]);
    client.change(&verb("promote"), json!({})).await;

    // The story.
    let path = format!("{}/rollouts/{number}", app_path("web"));
    let told = async {
        loop {
            let view: RolloutView = client.get(&path).await;
            if !view.record.bars.is_empty() {
                return view.record;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let record = tokio::time::timeout(support::PATIENCE, told).await.expect("it is finished");
    assert!(matches!(record.rollout.phase, Phase::Done { .. }));
    assert_eq!(record.plan.batches.len(), 3);
    let turns: Vec<(&str, Option<u32>, &str)> = record
        .decisions
        .iter()
        .map(|turn| (turn.phase.as_str(), turn.batch, turn.why.as_str()))
        .collect();
    for wanted in [
        ("progressing", Some(1), "batch 1 is through"),
        ("progressing", Some(1), "paused the rollout"),
        ("progressing", Some(2), "promoted the rollout"),
        ("done", None, "promoted the rollout"),
    ] {
        assert!(turns.contains(&wanted), "{wanted:?} is missing in {turns:#?}");
    }
    assert!(record.decisions.iter().any(|turn| turn.by.is_some()));
    let page: Vec<Rollout> =
        client.get(&format!("{}/rollouts?limit=1&before={number}", app_path("web"))).await;
    assert_eq!(page.len(), 1);
    assert!(page[0].number < number);
    assert_eq!(platform.engine.take_violations(), []);
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_have_digests_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let manifest = |tag: &str| json!({"source": "sim/ready:1", "sidecars": [{"name": "log", "source": format!("sim/ready:{tag}")}]});
    let first = client.deploy("web", manifest("2")).await;
    assert_eq!(name(&client.ended(first).await), "done");
    let releases: Vec<ReleaseView> = client.get(&format!("{}/releases", app_path("web"))).await;
    let release = &releases[0].release;
    assert!(release.sidecars["log"] != release.image);
    let missing = client
        .refused(
            Method::POST,
            &format!("{}/deploy", app_path("web")),
            json!({"manifest": {
                "app": "web", "source": "sim/ready:1",
                "sidecars": [{"name": "log", "source": "sim/missing:1"}],
            }}),
        )
        .await;
    assert_eq!(missing.error.code, Code::ImageNotFound);
    let mut whole = manifest("3");
    whole["app"] = json!("web");
    let path = format!("{}/plan", app_path("web"));
    let (_, plan) = client.request(Method::POST, &path, Some(&json!({"manifest": whole}))).await;
    let plan: PlanView = serde_json::from_value(plan).unwrap();
    assert_eq!(plan.plan.instances[0].sidecars, ["log"], "{plan:#?}");
    assert_eq!(plan.plan.instances[0].way, Some(Way::Update), "the app itself goes on");
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_left_of_an_archive_goes_with_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let machine = SimMachine::new();
    Platform::start(dir.path(), &machine).await.kill().await;
    let temp = dir.path().join("data/tmp");
    for name in ["import-Ab12Cd", "note"] {
        std::fs::write(temp.join(name), "half of an archive").unwrap();
    }
    let _platform = Platform::start(dir.path(), &machine).await;
    let left: Vec<_> = std::fs::read_dir(temp).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["note"]);
}
