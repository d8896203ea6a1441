//! Death at every commit, what the next start makes of it, and what a gateway sees of it.

use std::time::Duration;

use serde_json::{Value, json};
use stead_core::app::App;
use stead_core::routes::{RouteTable, ToGateway};
use stead_testkit::sim::{SimEngine, SimMachine};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use super::*;

/// A folder in memory, where there is one: processes die here, not machines.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

const PATIENCE: Duration = Duration::from_secs(20);

/// A `serve` with a runtime of its own, whose end ends everything it did.
struct Running {
    dir: PathBuf,
    store: Arc<Store>,
    engine: Arc<SimEngine>,
    runtime: Runtime,
}

impl Running {
    /// Starts on what is in `dir`, to die right after so many commits.
    async fn start(dir: &Path, machine: &SimMachine, commits: i64) -> Self {
        let config = Config {
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            listen: None,
            http: "127.0.0.1:8080".parse().unwrap(),
        };
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let machine = machine.clone();
        let opened = runtime.spawn(async move {
            let control = Control::open(config).await.unwrap();
            control.store.life.set(commits);
            control.publisher.miss_nobody();
            let engine = SimEngine::open(machine, control.traffic(), control.events());
            let engine = Arc::new(engine);
            let given = Arc::clone(&engine) as Arc<dyn Engine>;
            let store = Arc::clone(&control.store);
            tokio::spawn(control.run(given, std::future::pending()));
            (store, engine)
        });
        let (store, engine) = opened.await.unwrap();
        Self { dir: dir.to_owned(), store, engine, runtime }
    }

    /// Asks for a change and gives the status; `None` when nobody answered.
    async fn ask(&self, method: &str, path: &str, body: Value) -> Option<u16> {
        let socket = self.dir.join("run/stead.sock");
        let mut stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let body = body.to_string();
        let request = format!(
            "{method} /api/v1/namespaces/default/apps/web{path} HTTP/1.1\r\nhost: localhost\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    }

    /// Waits until the App is as wanted.
    async fn until(&self, wanted: impl Fn(Option<&App>) -> bool) {
        let mut changes = self.store.watch();
        loop {
            let app = self.store.get::<App>("default/web").unwrap();
            if wanted(app.as_ref().map(|stored| &stored.value)) {
                return;
            }
            changes.recv().await.unwrap();
        }
    }

    /// Everything a person does here, one after the other.
    async fn story(&self) {
        let manifest =
            |source: &str| json!({"manifest": {"app": "web", "source": source, "instances": 2}});
        let settled = |app: Option<&App>| app.is_some_and(settled);
        for source in ["sim/ready:1", "sim/crash:1", "sim/ready:2"] {
            assert_eq!(self.ask("POST", "/deploy", manifest(source)).await, Some(202));
            self.until(settled).await;
        }
        for verb in ["/rollback", "/restart"] {
            assert_eq!(self.ask("POST", verb, json!({})).await, Some(202));
            self.until(settled).await;
        }
        assert_eq!(self.ask("DELETE", "", json!({})).await, Some(202));
        self.until(|app| app.is_none()).await;
    }

    async fn kill(self) {
        let Self { runtime, engine, .. } = self;
        let ended = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE));
        ended.await.unwrap();
        assert_eq!(Arc::strong_count(&engine), 1, "the engine dies with its serve");
    }
}

/// Whether nothing is changed any more; what is only watched is not.
fn settled(app: &App) -> bool {
    app.active().is_none_or(|rollout| rollout.phase.is_through())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn death_at_every_commit_is_survived() {
    let mut whole = false;
    for commits in 1.. {
        assert!(commits < 200, "the story has an end");
        let dir = folder();
        let machine = SimMachine::with_seed(7);
        let mortal = Running::start(dir.path(), &machine, commits).await;
        tokio::select! {
            () = mortal.story() => whole = true,
            () = mortal.store.life.ended.notified() => {}
            () = tokio::time::sleep(PATIENCE) => panic!("stuck, to die at commit {commits}"),
        }
        mortal.kill().await;

        let next = Running::start(dir.path(), &machine, i64::MAX).await;
        let settles = next.until(|app| app.is_none_or(|app| settled(app) && !app.deleted));
        let settles = tokio::time::timeout(PATIENCE, settles).await;
        assert!(settles.is_ok(), "no end after death at commit {commits}");
        // The story goes on from wherever it was left.
        let story = tokio::time::timeout(PATIENCE, next.story()).await;
        if story.is_err() {
            let app = next.store.get::<App>("default/web").unwrap();
            let seen = next.engine.observe(&"default/web".parse().unwrap()).await.unwrap();
            panic!("no story after death at commit {commits}: {app:#?}\n{seen:#?}");
        }
        assert_eq!(next.engine.take_violations(), [], "after death at commit {commits}");
        next.kill().await;
        if whole {
            assert!(commits > 15, "{commits} commits are few for this story");
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_serve_never_shows_an_emptier_table() {
    let dir = folder();
    let machine = SimMachine::with_seed(7);
    let first = Running::start(dir.path(), &machine, i64::MAX).await;
    let manifest = json!({"app": "web", "source": "sim/ready:1", "instances": 5});
    assert_eq!(first.ask("POST", "/deploy", json!({"manifest": manifest})).await, Some(202));
    let done = first.until(|app| app.is_some_and(settled));
    tokio::time::timeout(PATIENCE, done).await.unwrap();
    let table = first.first_table().await;
    first.kill().await;

    for _ in 0..5 {
        let next = Running::start(dir.path(), &machine, i64::MAX).await;
        let again = next.first_table().await;
        assert_eq!(again.apps, table.apps);
        assert!(again.generation > table.generation);
        next.kill().await;
    }
    assert_eq!(table.apps.values().map(|routes| routes.backends.len()).sum::<usize>(), 5);
}

impl Running {
    /// What a gateway that connects now is told first.
    async fn first_table(&self) -> RouteTable {
        let socket = self.dir.join("run/gateway-link.sock");
        let look = async {
            let mut stream = loop {
                match UnixStream::connect(&socket).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            };
            let hello = json!({"hello": {"pid": 1, "version": "test", "generation": 0}});
            stream.write_all(format!("{hello}\n").as_bytes()).await.unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            match serde_json::from_str(&line).unwrap() {
                ToGateway::Table(table) => table,
                _ => panic!("the whole table comes first"),
            }
        };
        tokio::time::timeout(PATIENCE, look).await.expect("a table is sent")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_app_takes_no_other_down() {
    let dir = folder();
    let machine = SimMachine::with_seed(7);
    let first = Running::start(dir.path(), &machine, i64::MAX).await;
    let manifest = json!({"app": "web", "source": "sim/ready:1", "instances": 2});
    assert_eq!(first.ask("POST", "/deploy", json!({"manifest": manifest})).await, Some(202));
    let settled = |app: Option<&App>| app.is_some_and(settled);
    tokio::time::timeout(PATIENCE, first.until(settled)).await.unwrap();
    first.kill().await;
    let state = rusqlite::Connection::open(dir.path().join("data/state.db")).unwrap();
    let spoil = "INSERT INTO document VALUES ('app', 'default/ruin', 1, '{}');
                 UPDATE document SET json = '[' WHERE kind = 'ledger' OR key = 'epoch'";
    state.execute_batch(spoil).unwrap();
    drop(state);

    let next = Running::start(dir.path(), &machine, i64::MAX).await;
    assert_eq!(next.first_table().await.apps.len(), 1, "the ruined one delays nobody");
    assert_eq!(next.ask("POST", "/restart", json!({})).await, Some(202));
    tokio::time::timeout(PATIENCE, next.until(settled)).await.unwrap();
    let damaged = next.store.list::<App>("").unwrap().damaged;
    assert_eq!(damaged.iter().map(|d| d.key.as_str()).collect::<Vec<_>>(), ["default/ruin"]);
    next.kill().await;
}
