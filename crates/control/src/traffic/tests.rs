//! The publisher against gateways that say what a test wants them to say.

use super::*;
use futures_util::FutureExt;
use stead_core::fleet::Revision;
use stead_core::ids::{Ordinal, ReleaseNo};
use stead_core::manifest::{Park, Span};
use stead_core::routes::{BackendState, Report, RouteTable, Split, ToServe};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(10);
/// Longer than anything here needs, when something must not happen.
const MOMENT: Duration = Duration::from_millis(30);

struct Deaf;

impl GatewayNews for Deaf {
    fn report(&self, _: u32, _: Report) {}
    fn parked(&self, _: &AppKey) {}
    fn left(&self) {}
}

struct Bench {
    dir: tempfile::TempDir,
    publisher: Arc<Publisher>,
    listening: JoinHandle<()>,
}

impl Bench {
    fn new(epoch: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let publisher = Publisher::new(epoch, Arc::new(Deaf));
        let listening = tokio::spawn(publisher.listen(&dir.path().join("link")).unwrap());
        Self { dir, publisher, listening }
    }

    /// With an App, and a gateway that has the table.
    async fn with_gateway() -> (Self, Gateway) {
        let bench = Self::new(1);
        bench.publisher.release();
        bench.publisher.route(&app(), Some(routing()));
        let mut gateway = bench.gateway(std::process::id(), 0).await;
        gateway.hear().await;
        gateway.ack().await;
        (bench, gateway)
    }

    async fn gateway(&self, pid: u32, generation: u64) -> Gateway {
        let stream = UnixStream::connect(self.dir.path().join("link")).await.unwrap();
        let (read, write) = stream.into_split();
        let lines = BufReader::new(read);
        let mut gateway = Gateway { lines, write, table: RouteTable::default(), puts: 0 };
        gateway.table.generation = Generation(generation);
        let version = "test".to_owned();
        gateway.say(ToServe::Hello { pid, version, generation: Generation(generation) }).await;
        gateway
    }

    fn attach(&self, container: &str) -> JoinHandle<()> {
        let publisher = Arc::clone(&self.publisher);
        let backend = backend(container);
        tokio::spawn(async move { publisher.attach(&app(), backend).await })
    }

    fn detach(&self, container: &str, drain: Duration) -> JoinHandle<Drained> {
        let publisher = Arc::clone(&self.publisher);
        let container = id(container);
        tokio::spawn(async move { publisher.detach(&app(), &container, drain).await })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// The other end of the link, with the table it was told.
struct Gateway {
    lines: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    table: RouteTable,
    puts: u32,
}

impl Gateway {
    async fn say(&mut self, message: ToServe) {
        let mut line = serde_json::to_string(&message).unwrap();
        line.push('\n');
        self.write.write_all(line.as_bytes()).await.unwrap();
    }

    /// Takes one message in.
    async fn hear(&mut self) {
        let mut line = String::new();
        let read = tokio::time::timeout(PATIENCE, self.lines.read_line(&mut line)).await;
        assert!(read.expect("something is said").unwrap() > 0, "the link is open");
        let message: ToGateway = serde_json::from_str(&line).unwrap();
        self.puts += u32::from(matches!(message, ToGateway::Put { .. }));
        let change = message.into_change().expect("a change of the table");
        self.table.apply(change).expect("never an older generation");
    }

    async fn ack(&mut self) {
        let generation = self.table.generation;
        self.say(ToServe::Ack { generation }).await;
    }

    async fn drained(&mut self, container: &str) {
        let generation = self.table.generation;
        self.say(ToServe::Drained { container: id(container), generation }).await;
    }

    async fn hears_nothing(&mut self) {
        let mut line = String::new();
        let read = tokio::time::timeout(MOMENT, self.lines.read_line(&mut line)).await;
        assert!(read.is_err(), "{line}");
    }

    fn backends(&self) -> Vec<(&str, BackendState)> {
        let all = self.table.apps.values().flat_map(|routes| &routes.backends);
        all.map(|backend| (backend.container.as_str(), backend.state)).collect()
    }
}

fn app() -> AppKey {
    "default/web".parse().unwrap()
}

fn id(container: &str) -> ContainerId {
    ContainerId(container.into())
}

fn backend(container: &str) -> Backend {
    Backend {
        container: id(container),
        instance: Ordinal(0),
        revision: Revision { release: ReleaseNo(1), run: 1, since: 0 },
        addr: "10.0.0.2:80".parse().unwrap(),
        mark: None,
    }
}

fn routing() -> Routing {
    let hosts = vec!["web.default.localhost".to_owned()];
    Routing {
        hosts,
        http: None,
        park: Park::default(),
        split: Split::default(),
        slow_start: Span::ZERO,
        trial: false,
        stopped: false,
        site: None,
    }
}

async fn soon<T>(task: JoinHandle<T>) -> T {
    tokio::time::timeout(PATIENCE, task).await.expect("it returns").unwrap()
}

async fn not_yet<T>(task: &mut JoinHandle<T>) {
    assert!(tokio::time::timeout(MOMENT, task).await.is_err(), "it must still wait");
}

#[tokio::test]
async fn attach_waits_for_the_acknowledgement_of_every_gateway() {
    let (bench, mut one) = Bench::with_gateway().await;
    let mut two = bench.gateway(1, 0).await;
    two.hear().await;
    two.ack().await;
    let mut attached = bench.attach("a");
    one.hear().await;
    two.hear().await;
    assert_eq!(one.backends(), [("a", BackendState::Open)]);
    one.ack().await;
    not_yet(&mut attached).await;
    two.ack().await;
    soon(attached).await;
}

#[tokio::test]
async fn detach_waits_for_acknowledgement_and_drain_of_every_gateway() {
    let (bench, mut one) = Bench::with_gateway().await;
    let mut two = bench.gateway(1, 0).await;
    two.hear().await;
    two.ack().await;
    let attached = bench.attach("a");
    for gateway in [&mut one, &mut two] {
        gateway.hear().await;
        // Of an earlier drain: says nothing about this one.
        gateway.drained("a").await;
        gateway.ack().await;
    }
    soon(attached).await;
    let mut detached = bench.detach("a", PATIENCE);
    for gateway in [&mut one, &mut two] {
        gateway.hear().await;
        assert_eq!(gateway.backends(), [("a", BackendState::Draining)]);
        gateway.ack().await;
    }
    one.drained("a").await;
    not_yet(&mut detached).await;
    two.drained("a").await;
    assert!(soon(detached).await.clean);
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline_but_not_before_the_acknowledgement() {
    let (bench, mut gateway) = Bench::with_gateway().await;
    let attached = bench.attach("a");
    gateway.hear().await;
    gateway.ack().await;
    soon(attached).await;
    let mut detached = bench.detach("a", Duration::ZERO);
    gateway.hear().await;
    not_yet(&mut detached).await;
    gateway.ack().await;
    assert!(!soon(detached).await.clean, "requests were still open");
}

#[tokio::test]
async fn an_upgrade_in_place_takes_three_changes() {
    let (bench, mut gateway) = Bench::with_gateway().await;
    let attached = bench.attach("old");
    gateway.hear().await;
    gateway.ack().await;
    soon(attached).await;
    let detached = bench.detach("old", PATIENCE);
    gateway.hear().await;
    gateway.ack().await;
    gateway.drained("old").await;
    soon(detached).await;
    let attached = bench.attach("new");
    gateway.hear().await;
    gateway.ack().await;
    soon(attached).await;
    assert_eq!(gateway.backends(), [("new", BackendState::Open)]);
    assert_eq!(gateway.puts, 3);
}

#[tokio::test]
async fn what_arrives_together_goes_out_together() {
    let (bench, mut gateway) = Bench::with_gateway().await;
    let tasks = ["a", "b", "c", "d"].map(|container| bench.attach(container));
    gateway.hear().await;
    assert_eq!(gateway.backends().len(), 4);
    gateway.ack().await;
    for task in tasks {
        soon(task).await;
    }
    assert_eq!(gateway.puts, 1);
}

#[tokio::test]
async fn a_held_publisher_says_nothing() {
    let bench = Bench::new(3);
    let mut gateway = bench.gateway(std::process::id(), (2 << 32) + 5).await;
    let mut attached = bench.attach("a");
    bench.publisher.route(&app(), Some(routing()));
    gateway.hears_nothing().await;
    not_yet(&mut attached).await;
    bench.publisher.release();
    gateway.hear().await;
    assert_eq!(gateway.puts, 0, "the first word is the whole table");
    assert_eq!(gateway.backends(), [("a", BackendState::Open)]);
    assert_eq!(gateway.table.generation.0 >> 32, 3);
    not_yet(&mut attached).await;
    gateway.ack().await;
    soon(attached).await;
}

#[tokio::test]
async fn a_gateway_that_is_ahead_is_overtaken() {
    let bench = Bench::new(1);
    bench.publisher.release();
    bench.publisher.route(&app(), Some(routing()));
    let mut other = bench.gateway(1, 0).await;
    other.hear().await;
    other.ack().await;
    // A serve that lost its store begins anew at the first epoch.
    let mut ahead = bench.gateway(std::process::id(), 9 << 32).await;
    ahead.hear().await;
    ahead.ack().await;
    other.hear().await;
    other.ack().await;
    assert!(ahead.table.generation > Generation(9 << 32));
    assert_eq!(ahead.table, other.table);
    let attached = bench.attach("a");
    for gateway in [&mut ahead, &mut other] {
        gateway.hear().await;
        gateway.ack().await;
    }
    soon(attached).await;
}

#[tokio::test]
async fn attach_awaits_the_first_gateway() {
    let bench = Bench::new(1);
    bench.publisher.release();
    bench.publisher.route(&app(), Some(routing()));
    let mut attached = bench.attach("a");
    not_yet(&mut attached).await;
    let mut gateway = bench.gateway(std::process::id(), 0).await;
    gateway.hear().await;
    assert_eq!(gateway.backends(), [("a", BackendState::Open)]);
    not_yet(&mut attached).await;
    gateway.ack().await;
    soon(attached).await;
}

#[tokio::test]
async fn without_a_gateway_the_first_change_waits_a_little() {
    let bench = Bench::new(1);
    bench.publisher.release();
    let began = Instant::now();
    soon(bench.attach("a")).await;
    assert!(began.elapsed() > GONE_PATIENCE / 2, "{:?}", began.elapsed());
    assert!(soon(bench.detach("a", PATIENCE)).await.clean);
    // By now it is known that there is none.
    soon(bench.attach("b")).await;
    let began = Instant::now();
    soon(bench.detach("b", PATIENCE)).await;
    assert!(began.elapsed() < GONE_PATIENCE / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_gateway_that_lost_its_connection_is_awaited() {
    let (bench, mut gateway) = Bench::with_gateway().await;
    let attached = bench.attach("a");
    gateway.hear().await;
    gateway.ack().await;
    soon(attached).await;
    let mut detached = bench.detach("a", PATIENCE);
    gateway.hear().await;
    drop(gateway);
    not_yet(&mut detached).await;
    let mut back = bench.gateway(std::process::id(), 0).await;
    back.hear().await;
    assert_eq!(back.backends(), [("a", BackendState::Draining)]);
    back.ack().await;
    not_yet(&mut detached).await;
    back.drained("a").await;
    assert!(soon(detached).await.clean);
}

#[tokio::test]
async fn a_gateway_that_loses_its_connection_while_it_drains_is_not_taken_for_drained() {
    let (bench, mut gateway) = Bench::with_gateway().await;
    let attached = bench.attach("a");
    gateway.hear().await;
    gateway.ack().await;
    soon(attached).await;
    let mut detached = bench.detach("a", PATIENCE);
    gateway.hear().await;
    gateway.ack().await;
    not_yet(&mut detached).await; // it waits for the drain now
    drop(gateway);
    not_yet(&mut detached).await;
    let mut back = bench.gateway(std::process::id(), 0).await;
    back.hear().await;
    back.ack().await;
    not_yet(&mut detached).await;
    back.drained("a").await;
    assert!(soon(detached).await.clean);
}

#[tokio::test]
async fn after_a_restart_of_serve_every_gateway_it_knew_is_awaited() {
    let bench = Bench::new(1);
    bench.publisher.expect([1, std::process::id()]);
    bench.publisher.release();
    bench.publisher.route(&app(), Some(routing()));
    let mut one = bench.gateway(std::process::id(), 0).await;
    one.hear().await;
    one.ack().await;
    let attached = bench.attach("a");
    one.hear().await;
    one.ack().await;
    soon(attached).await;
    let mut detached = bench.detach("a", PATIENCE);
    one.hear().await;
    one.ack().await;
    one.drained("a").await;
    not_yet(&mut detached).await;
    let mut two = bench.gateway(1, 0).await;
    two.hear().await;
    two.ack().await;
    not_yet(&mut detached).await;
    two.drained("a").await;
    assert!(soon(detached).await.clean);
}

#[tokio::test]
async fn a_drain_seen_before_another_change_of_the_app_counts() {
    let (bench, mut gateway) = Bench::with_gateway().await;
    let attached = bench.attach("a");
    gateway.hear().await;
    gateway.ack().await;
    soon(attached).await;
    // Its drain is published by somebody else's change, which another one follows.
    let (app, a) = (app(), id("a"));
    let mut detached = bench.publisher.detach(&app, &a, PATIENCE);
    assert!((&mut detached).now_or_never().is_none());
    bench.publisher.route(&app, Some(Routing { stopped: true, ..routing() }));
    gateway.hear().await;
    gateway.ack().await;
    gateway.drained("a").await;
    bench.publisher.route(&app, Some(routing()));
    gateway.hear().await;
    gateway.ack().await;
    let drained = tokio::time::timeout(PATIENCE / 2, detached).await;
    assert!(drained.expect("it was drained all the time").clean);
}

#[tokio::test]
async fn what_is_drained_is_drained_when_it_is_asked_for_again() {
    let (bench, mut gateway) = Bench::with_gateway().await;
    let attached = bench.attach("a");
    gateway.hear().await;
    gateway.ack().await;
    soon(attached).await;
    let detached = bench.detach("a", PATIENCE);
    gateway.hear().await;
    gateway.ack().await;
    gateway.drained("a").await;
    soon(detached).await;
    let again = tokio::time::timeout(PATIENCE / 2, bench.detach("a", PATIENCE)).await;
    assert!(again.expect("nobody would say so again").unwrap().clean);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_never_acknowledges_is_cut_off() {
    let bench = Bench::new(1);
    bench.publisher.release();
    let mut stuck = bench.gateway(std::process::id(), 0).await;
    stuck.hear().await;
    stuck.ack().await;
    let publisher = Arc::clone(&bench.publisher);
    let attached = tokio::spawn(async move { publisher.attach(&app(), backend("a")).await });
    stuck.hear().await;
    attached.await.unwrap();
    let mut line = String::new();
    assert_eq!(stuck.lines.read_line(&mut line).await.unwrap(), 0, "the link is closed");
}

#[tokio::test]
async fn who_asks_for_reports_waits_for_those_that_answer() {
    let (bench, mut one) = Bench::with_gateway().await;
    let mut mute = bench.gateway(1, 0).await;
    mute.hear().await;
    let publisher = Arc::clone(&bench.publisher);
    let began = Instant::now();
    let mut asking = tokio::spawn(async move { publisher.ask_for_reports().await });
    let mut question = String::new();
    one.lines.read_line(&mut question).await.unwrap();
    let question = serde_json::from_str(&question).unwrap();
    let ToGateway::Tell { asked } = question else { panic!("{question:?}") };
    one.say(ToServe::Told { asked }).await;
    not_yet(&mut asking).await;
    soon(asking).await;
    assert!(began.elapsed() >= REPORT_PATIENCE, "one of them said nothing");
    drop(mute);
    bench.publisher.until(|state| state.gateways.len() == 1).await;
    let asking = bench.publisher.ask_for_reports();
    let answering = async {
        let mut question = String::new();
        one.lines.read_line(&mut question).await.unwrap();
        one.say(ToServe::Told { asked: asked + 1 }).await;
    };
    let began = Instant::now();
    tokio::join!(asking, answering);
    assert!(began.elapsed() < REPORT_PATIENCE, "{:?}", began.elapsed());
}

#[tokio::test]
async fn words_that_are_not_understood_end_nothing() {
    let (bench, mut gateway) = Bench::with_gateway().await;
    gateway.write.write_all(b"{\"newer\":1}\nnot json\n").await.unwrap();
    let attached = bench.attach("a");
    gateway.hear().await;
    gateway.ack().await;
    soon(attached).await;
}
