//! Sites over the API, with a gateway that acknowledges when the test says so.
#![allow(clippy::unwrap_used, reason = "it is a test that fails")]

mod support;

use std::path::Path;

use hyper::{Method, StatusCode};
use serde_json::json;
use stead_core::api::{PlanView, Progress};
use stead_core::error::Code;
use stead_core::ids::{Generation, ReleaseNo};
use stead_core::routes::site::SiteRoute;
use stead_core::routes::{AppRoutes, RouteChange, RouteTable, ToGateway, ToServe};
use stead_testkit::sim::SimMachine;
use support::{PATIENCE, Platform, app_path};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The other end of the link.
struct Gateway {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    table: RouteTable,
}

impl Gateway {
    async fn connect(run_dir: &Path) -> Self {
        let link = run_dir.join("gateway-link.sock");
        let (read, mut write) = UnixStream::connect(link).await.unwrap().into_split();
        let (pid, version) = (std::process::id(), "test".to_owned());
        say(&mut write, &ToServe::Hello { pid, version, generation: Generation(0) }).await;
        let mut lines = BufReader::new(read).lines();
        let table = match change(&mut lines).await {
            RouteChange::Table(table) => table,
            other => panic!("the whole table comes first, not {other:?}"),
        };
        let mut gateway = Self { lines, write, table };
        gateway.ack().await;
        gateway
    }

    /// Takes changes in until the App's routes are as wanted. Acknowledges none.
    async fn until(&mut self, wanted: impl Fn(&AppRoutes) -> bool) -> AppRoutes {
        let app = "default/docs".parse().unwrap();
        let came = async {
            loop {
                if let Some(routes) = self.table.apps.get(&app).filter(|routes| wanted(routes)) {
                    return routes.clone();
                }
                let change = change(&mut self.lines).await;
                self.table.apply(change).unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, came).await.expect("routes come")
    }

    async fn until_site(&mut self, release: u32) -> SiteRoute {
        let is = |site: &SiteRoute| site.now.release == ReleaseNo(release);
        self.until(|routes| routes.site.as_ref().is_some_and(is)).await.site.unwrap()
    }

    async fn ack(&mut self) {
        say(&mut self.write, &ToServe::Ack { generation: self.table.generation }).await;
    }
}

async fn change(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> RouteChange {
    loop {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let line = line.expect("something is said").unwrap().expect("the link holds");
        if let Some(change) = serde_json::from_str::<ToGateway>(&line).unwrap().into_change() {
            return change;
        }
    }
}

async fn say(write: &mut OwnedWriteHalf, message: &ToServe) {
    let line = serde_json::to_string(message).unwrap() + "\n";
    write.write_all(line.as_bytes()).await.unwrap();
}

fn waits(progress: &Progress) -> bool {
    progress.why == "not every gateway serves it yet"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_is_done_when_the_gateway_has_acknowledged_it() {
    let dir = tempfile::tempdir().unwrap();
    let machine = SimMachine::new();
    let platform = Platform::start(dir.path(), &machine).await;
    let client = platform.client();
    let mut gateway = Gateway::connect(&platform.run_dir).await;

    let manifest = |tag: &str| json!({"source": format!("sim/ready:{tag}"), "site": {"fallback": "index.html"}});
    let first = client.deploy("docs", manifest("1")).await;
    let site = gateway.until_site(1).await;
    assert!(site.now.folder.starts_with("/sim/"), "{site:?}");
    assert_eq!(site.rules.fallback.unwrap().as_str(), "/index.html");
    assert_eq!(site.before, None);
    client.follow_until("docs", first.rollout.unwrap(), waits).await;
    gateway.ack().await;
    let rollout = client.ended(first).await;
    assert_eq!(rollout.phase.name(), "done");
    let view = client.app("docs").await;
    assert_eq!((view.state.as_str(), view.instances, view.ready), ("running", 0, 0));

    // Another version: a flip, and pages of the one before still find their files.
    let second = client.deploy("docs", manifest("2")).await;
    let site = gateway.until_site(2).await;
    assert_eq!(site.before.as_ref().unwrap().release, ReleaseNo(1));
    assert_ne!(site.before.unwrap().folder, site.now.folder);
    gateway.ack().await;
    assert_eq!(client.ended(second).await.phase.name(), "done", "nothing is watched");

    let back = client.change(&format!("{}/rollback", app_path("docs")), json!({})).await;
    assert_eq!(gateway.until_site(1).await.before.unwrap().release, ReleaseNo(2));
    gateway.ack().await;
    assert_eq!(client.ended(back).await.to.release, ReleaseNo(1));

    // What is committed is published again by the next process, whole, from the first word.
    drop(gateway);
    platform.kill().await;
    let platform = Platform::start(dir.path(), &machine).await;
    let client = platform.client();
    let mut gateway = Gateway::connect(&platform.run_dir).await;
    assert_eq!(gateway.until_site(1).await.before.unwrap().release, ReleaseNo(2));
    gateway.ack().await;

    client.change(&format!("{}/stop", app_path("docs")), json!({})).await;
    gateway.until(|routes| routes.stopped).await;
    gateway.ack().await;
    client.change(&format!("{}/start", app_path("docs")), json!({})).await;
    gateway.until(|routes| !routes.stopped && routes.site.is_some()).await;
    gateway.ack().await;
    let (status, _) = client.request(Method::DELETE, &app_path("docs"), None).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let gone = async {
        while gateway.table.apps.contains_key(&"default/docs".parse().unwrap()) {
            let change = change(&mut gateway.lines).await;
            gateway.table.apply(change).unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the routes go");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_instances_can_do_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    let site = json!({"source": "sim/ready:1", "site": {}});
    let first = client.deploy("docs", site.clone()).await;
    assert_eq!(client.ended(first).await.phase.name(), "done");
    let web = client.deploy("web", json!({"source": "sim/ready:1"})).await;
    client.ended(web).await;

    let client = &client;
    let refused =
        |path: String, body| async move { client.refused(Method::POST, &path, body).await };
    let (docs, web) = (app_path("docs"), app_path("web"));
    for (path, body) in [
        (format!("{docs}/scale"), json!({"instances": 3})),
        (format!("{docs}/restart"), json!({})),
        (format!("{docs}/deploy"), json!({"manifest": {"app": "docs", "source": "sim/ready:2"}})),
        (
            format!("{web}/deploy"),
            json!({"manifest": {"app": "web", "source": "sim/ready:2", "site": {}}}),
        ),
    ] {
        let problem = refused(path.clone(), body).await;
        assert_eq!(problem.error.code, Code::Conflict, "{path}: {problem:?}");
    }
    // A page that is not there is found before anything changes.
    let unfit = json!({"manifest": {"app": "docs", "source": "sim/ready:2",
        "site": {"fallback": "missing.html"}}});
    assert_eq!(refused(format!("{docs}/deploy"), unfit.clone()).await.error.code, Code::SiteUnfit);
    assert_eq!(refused(format!("{docs}/plan"), unfit).await.error.code, Code::SiteUnfit);
    assert_eq!(client.app("docs").await.release, Some(ReleaseNo(1)));

    let next = json!({"manifest": {"app": "docs", "source": "sim/ready:2", "site": {}}});
    let (status, plan) = client.request(Method::POST, &format!("{docs}/plan"), Some(&next)).await;
    assert_eq!(status, StatusCode::OK, "{plan}");
    let plan: PlanView = serde_json::from_value(plan).unwrap();
    assert_eq!(plan.plan.instances.len(), 0);
}
