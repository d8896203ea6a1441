//! What the tests are made of: a control plane, Apps and clients. All real sockets.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stead_core::ids::{ContainerId, Generation, Ordinal, ReleaseNo};
use stead_core::routes::{
    AppRoutes, Backend, BackendState, HostRule, Protocol, Report, RouteTable, ToGateway, ToServe,
};
use stead_gateway::{Gateway, GatewayConfig};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, broadcast, watch};

pub const APP: &str = "default/web";
pub const HOST: &str = "web.default.localhost";

/// Longest any condition is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen in time")
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A control plane: the real link, and routes as the test wants them.
pub struct Control {
    pub dir: TempDir,
    table: Mutex<RouteTable>,
    changes: broadcast::Sender<ToGateway>,
    heard: Arc<Mutex<Vec<ToServe>>>,
    connected: Arc<AtomicUsize>,
    hung_up: watch::Sender<()>,
}

impl Control {
    pub fn new() -> Arc<Self> {
        // RUST_LOG says what to show; the first test sets it for all.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        Arc::new(Self {
            dir: tempfile::tempdir().unwrap(),
            table: Mutex::default(),
            changes: broadcast::channel(1024).0,
            heard: Arc::default(),
            connected: Arc::default(),
            hung_up: watch::Sender::new(()),
        })
    }

    /// A control plane that is up.
    pub fn start() -> Arc<Self> {
        let control = Self::new();
        control.listen();
        control
    }

    pub fn listen(self: &Arc<Self>) {
        let listener = UnixListener::bind(self.dir.path().join("gateway-link.sock")).unwrap();
        let control = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let control = control.clone();
                tokio::spawn(async move {
                    control.connected.fetch_add(1, Ordering::SeqCst);
                    let _ = control.talk(stream).await;
                    control.connected.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
    }

    async fn talk(&self, stream: tokio::net::UnixStream) -> std::io::Result<()> {
        let mut hung_up = self.hung_up.subscribe();
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let hello = lines.next_line().await?.unwrap();
        assert!(matches!(serde_json::from_str(&hello)?, ToServe::Hello { .. }));
        let (mut changes, table) = {
            let table = self.table.lock().unwrap();
            (self.changes.subscribe(), table.clone())
        };
        let mut next = ToGateway::Table(table);
        loop {
            let mut line = serde_json::to_string(&next)?;
            line.push('\n');
            write.write_all(line.as_bytes()).await?;
            next = loop {
                tokio::select! {
                    line = lines.next_line() => {
                        let Some(line) = line? else { return Ok(()) };
                        self.heard.lock().unwrap().push(serde_json::from_str(&line)?);
                    }
                    change = changes.recv() => break change.unwrap(),
                    _ = hung_up.changed() => return Ok(()),
                }
            };
        }
    }

    /// Ends every connection; gateways come back.
    pub fn hang_up(&self) {
        self.hung_up.send_replace(());
    }

    pub fn config(&self) -> GatewayConfig {
        let mut config = GatewayConfig::new(self.dir.path(), self.dir.path().join("state"));
        config.http = vec!["127.0.0.1:0".parse().unwrap()];
        config
    }

    /// A gateway of this control plane, with the routes that were put until now.
    pub async fn gateway(&self) -> Gateway {
        self.gateway_with(self.config()).await
    }

    pub async fn gateway_with(&self, config: GatewayConfig) -> Gateway {
        let gateway = Gateway::start(config).await.unwrap();
        let generation = self.table.lock().unwrap().generation;
        until("first routes", || gateway.generation() == generation).await;
        gateway
    }

    /// Puts routes of an App; they are acknowledged when this returns, if a gateway is there.
    pub async fn put(&self, app: &str, routes: AppRoutes) -> Generation {
        let app: stead_core::name::AppKey = app.parse().unwrap();
        let generation = {
            let mut table = self.table.lock().unwrap();
            table.generation = table.generation.next();
            table.apps.insert(app.clone(), routes.clone());
            let generation = table.generation;
            // Nobody may be connected.
            let _ = self.changes.send(ToGateway::Put { generation, app, routes: Some(routes) });
            generation
        };
        if self.connected.load(Ordering::SeqCst) > 0 {
            self.heard("ack", |message| *message == ToServe::Ack { generation }).await;
        }
        generation
    }

    /// Takes an App away.
    pub async fn remove(&self, app: &str) {
        let app: stead_core::name::AppKey = app.parse().unwrap();
        let generation = {
            let mut table = self.table.lock().unwrap();
            table.generation = table.generation.next();
            table.apps.remove(&app);
            let generation = table.generation;
            let _ = self.changes.send(ToGateway::Put { generation, app, routes: None });
            generation
        };
        self.heard("ack", |message| *message == ToServe::Ack { generation }).await;
    }

    /// Asks every gateway for a report. Gives the next one that answers it.
    pub async fn ask_for_report(&self, asked: u64) -> Report {
        self.changes.send(ToGateway::Tell { asked }).unwrap();
        self.heard("the answer", |message| *message == ToServe::Told { asked }).await;
        let heard = self.heard.lock().unwrap();
        let at = heard.iter().position(|message| *message == ToServe::Told { asked }).unwrap();
        match &heard[at - 1] {
            ToServe::Report(report) => report.clone(),
            other => panic!("the answer stands behind its report, not behind {other:?}"),
        }
    }

    /// Waits until as many gateways are connected and have acknowledged the routes.
    pub async fn acked_by(&self, gateways: usize) {
        let generation = self.table.lock().unwrap().generation;
        let ack = ToServe::Ack { generation };
        until("acks", || {
            let acks = self.heard.lock().unwrap().iter().filter(|heard| **heard == ack).count();
            acks >= gateways && self.connected.load(Ordering::SeqCst) >= gateways
        })
        .await;
    }

    /// Waits until a gateway has said something.
    pub async fn heard(&self, what: &str, is: impl Fn(&ToServe) -> bool) {
        until(what, || self.heard.lock().unwrap().iter().any(&is)).await;
    }

    /// Gateways that were given a table and are still connected.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::SeqCst)
    }

    pub fn count_heard(&self, is: impl Fn(&ToServe) -> bool) -> usize {
        self.heard.lock().unwrap().iter().filter(|heard| is(heard)).count()
    }

    pub fn has_heard(&self, is: impl Fn(&ToServe) -> bool) -> bool {
        self.heard.lock().unwrap().iter().any(is)
    }

    pub async fn heard_drained(&self, app: &TestApp, since: Generation) {
        self.heard_drained_times(app, since, 1).await;
    }

    /// Waits until gateways have said as many times since then that an App is drained.
    pub async fn heard_drained_times(&self, app: &TestApp, since: Generation, times: usize) {
        let is = |message: &ToServe| {
            matches!(message, ToServe::Drained { container, generation }
                if *container == app.container && *generation >= since)
        };
        until("drained", || self.count_heard(is) >= times).await;
    }

    pub fn has_heard_drained(&self, app: &TestApp) -> bool {
        self.has_heard(
            |message| matches!(message, ToServe::Drained { container, .. } if *container == app.container),
        )
    }
}

/// Routes of one host to `backends`.
pub fn routes(backends: impl IntoIterator<Item = Backend>) -> AppRoutes {
    AppRoutes {
        hosts: vec![HostRule::whole(HOST)],
        backends: backends.into_iter().collect(),
        ..Default::default()
    }
}

/// An App that answers by path; see [`answer`].
pub struct TestApp {
    pub container: ContainerId,
    pub addr: SocketAddr,
    pub release: u32,
    pub state: Arc<AppState>,
    /// Dropped, the App is gone, with its connections.
    _life: watch::Sender<()>,
}

pub struct AppState {
    name: String,
    /// Requests that arrived.
    pub requests: AtomicUsize,
    /// TCP connections that were made.
    pub connections: AtomicUsize,
    /// The mark that each was made with, where the network passes it on.
    pub marks: Mutex<Vec<u32>>,
    /// Of these, those that are open.
    pub open: AtomicUsize,
    /// What `/wait` and `/sse` wait for.
    pub go: Semaphore,
}

static NAMES: AtomicUsize = AtomicUsize::new(0);

impl TestApp {
    /// An App at an address that no other test uses: its port stays free when it is gone.
    pub async fn alone(release: u32) -> Self {
        static HOSTS: AtomicUsize = AtomicUsize::new(1);
        let host = HOSTS.fetch_add(1, Ordering::SeqCst) as u8;
        let process = std::process::id().to_be_bytes();
        let addr = std::net::Ipv4Addr::new(127, 128 | process[2], process[3], host);
        Self::serve(TcpListener::bind((addr, 0)).await.unwrap(), release, Protocol::Http1)
    }

    pub async fn start(release: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, release, Protocol::Http1)
    }

    pub async fn h2c(release: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::serve(listener, release, Protocol::H2c)
    }

    pub fn serve(listener: TcpListener, release: u32, protocol: Protocol) -> Self {
        let name = format!("c{}", NAMES.fetch_add(1, Ordering::SeqCst));
        let state = Arc::new(AppState {
            name: name.clone(),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            marks: Mutex::default(),
            open: AtomicUsize::new(0),
            go: Semaphore::new(0),
        });
        let addr = listener.local_addr().unwrap();
        let (life, dead) = watch::channel(());
        let shared = state.clone();
        tokio::spawn(async move {
            let mut over = dead.clone();
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    _ = over.changed() => return,
                };
                let mark = socket2::SockRef::from(&stream).mark().unwrap();
                shared.marks.lock().unwrap().push(mark);
                shared.connections.fetch_add(1, Ordering::SeqCst);
                shared.open.fetch_add(1, Ordering::SeqCst);
                let (shared, state, mut over) = (shared.clone(), shared.clone(), dead.clone());
                tokio::spawn(async move {
                    let io = TokioIo::new(stream);
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let served = async {
                        let _ = match protocol {
                            Protocol::Http1 => {
                                hyper::server::conn::http1::Builder::new()
                                    .serve_connection(io, service)
                                    .with_upgrades()
                                    .await
                            }
                            Protocol::H2c => {
                                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                                    .serve_connection(io, service)
                                    .await
                            }
                        };
                    };
                    let mut served = Box::pin(served);
                    tokio::select! { () = &mut served => {}, _ = over.changed() => {} }
                    drop(served);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { container: ContainerId(name), addr, release, state, _life: life }
    }

    pub fn backend(&self, state: BackendState) -> Backend {
        Backend {
            container: self.container.clone(),
            instance: Ordinal(0),
            release: ReleaseNo(self.release),
            addr: self.addr,
            mark: None,
            state,
        }
    }

    pub fn open(&self) -> Backend {
        self.backend(BackendState::Open)
    }

    pub fn draining(&self) -> Backend {
        self.backend(BackendState::Draining)
    }

    pub fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    pub async fn got(&self, requests: usize) {
        until("requests at the app", || self.requests() >= requests).await;
    }

    /// Ends the App, and waits until its port and its connections are closed.
    pub async fn kill(self) {
        let Self { addr, state, _life: life, .. } = self;
        drop(life);
        until("the app is gone", || {
            state.open.load(Ordering::SeqCst) == 0 && std::net::TcpStream::connect(addr).is_err()
        })
        .await;
    }

    pub fn go(&self) {
        self.state.go.add_permits(1);
    }
}

pub type Boxed = BoxBody<Bytes, std::io::Error>;

pub fn full(text: impl Into<Bytes>) -> Boxed {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

pub fn empty() -> Boxed {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// What an App answers:
/// `/` its name; `/headers` what it was sent, a line each; `/echo` the body, as it comes;
/// `/count` the length of the body; `/wait` its name, after `go`; `/sse` an event after each
/// `go`, three in all; `/trailers` a body with trailers; `/chat` an echo after 101;
/// `/unasked` a 101 nobody asked for; `/break` half of its answer.
async fn answer(
    state: Arc<AppState>,
    mut request: Request<Incoming>,
) -> Result<Response<Boxed>, Infallible> {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let name = state.name.clone();
    let text = |text: String| Ok(Response::new(full(text)));
    match request.uri().path() {
        "/headers" => {
            let mut lines =
                format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
            for (name, value) in request.headers() {
                lines += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            text(lines)
        }
        "/echo" => Ok(Response::new(request.into_body().map_err(std::io::Error::other).boxed())),
        "/count" => match request.into_body().collect().await {
            Ok(body) => text(body.to_bytes().len().to_string()),
            Err(_) => text("broken".into()),
        },
        "/wait" => {
            state.go.acquire().await.unwrap().forget();
            text(name)
        }
        "/sse" => {
            let events = futures_util::stream::unfold(0, move |count| {
                let state = state.clone();
                async move {
                    if count == 3 {
                        return None;
                    }
                    state.go.acquire().await.unwrap().forget();
                    let event = Bytes::from(format!("data: {count}\n\n"));
                    Some((Ok(Frame::data(event)), count + 1))
                }
            });
            let mut response =
                Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(events)))));
            let kind = "text/event-stream".parse().unwrap();
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            Ok(response)
        }
        "/trailers" => {
            let _ = request.into_body().collect().await;
            let trailers = [("grpc-status", "0")]
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let trailers = http::HeaderMap::from_iter(trailers);
            // Of unknown length: HTTP/1.1 has trailers behind chunks only.
            let frames = [Ok(Frame::data(Bytes::from(name))), Ok(Frame::trailers(trailers))];
            let frames = StreamBody::new(futures_util::stream::iter(frames));
            let mut response = Response::new(BodyExt::boxed(frames));
            response.headers_mut().insert(header::TRAILER, "grpc-status".parse().unwrap());
            Ok(response)
        }
        "/chat" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                }
            });
            Ok(switching())
        }
        "/unasked" => Ok(switching()),
        "/break" => {
            let frames =
                [Ok(Frame::data(Bytes::from("half"))), Err(std::io::Error::other("broken"))];
            // The first half goes out before the error is met.
            let frames = futures_util::stream::unfold(frames.into_iter(), |mut frames| async {
                tokio::task::yield_now().await;
                frames.next().map(|frame| (frame, frames))
            });
            Ok(Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(frames))))))
        }
        _ => text(name),
    }
}

fn switching() -> Response<Boxed> {
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
    response.headers_mut().insert(header::UPGRADE, "websocket".parse().unwrap());
    response
}

/// `BoxBody` wants `Sync`, which a stream of futures is not; it is polled by one at a time.
struct SyncStream<S>(S);

impl<S: futures_util::Stream + Unpin> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        std::pin::Pin::new(&mut self.0).poll_next(cx)
    }
}

/// A client that writes and reads HTTP/1.1 by hand.
pub struct Raw {
    stream: BufReader<TcpStream>,
}

/// A response as it was on the wire.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Raw {
    pub async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.try_send(text).await.unwrap();
    }

    pub async fn try_send(&mut self, text: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.get_mut().write_all(text.as_ref()).await
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        self.answer().await
    }

    /// The next line, without its end.
    pub async fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        let count = within(self.stream.read_line(&mut line)).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    pub async fn head(&mut self) -> std::io::Result<Answer> {
        let status = self.line().await?;
        let status = status.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        Ok(Answer { status, headers, body: String::new() })
    }

    pub async fn chunk(&mut self) -> std::io::Result<String> {
        let size = self.line().await?;
        let size = usize::from_str_radix(&size, 16).map_err(std::io::Error::other)?;
        let chunk = self.exactly(size).await?;
        if size > 0 {
            self.line().await?;
        }
        Ok(chunk)
    }

    pub async fn exactly(&mut self, count: usize) -> std::io::Result<String> {
        let mut bytes = vec![0; count];
        within(self.stream.read_exact(&mut bytes)).await?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    pub async fn try_answer(&mut self) -> std::io::Result<Answer> {
        let mut answer = self.head().await?;
        if let Some(length) = answer.headers.get("content-length") {
            answer.body = self.exactly(length.parse().unwrap()).await?;
        } else if answer.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked")
        {
            loop {
                let chunk = self.chunk().await?;
                if chunk.is_empty() {
                    while !self.line().await?.is_empty() {}
                    break;
                }
                answer.body += &chunk;
            }
        }
        Ok(answer)
    }

    pub async fn answer(&mut self) -> Answer {
        self.try_answer().await.unwrap()
    }

    /// Everything until the other side closes.
    pub async fn rest(&mut self) -> std::io::Result<String> {
        let mut bytes = Vec::new();
        within(self.stream.read_to_end(&mut bytes)).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// An HTTP/2 client over plain TCP.
pub async fn h2_client(addr: SocketAddr) -> hyper::client::conn::http2::SendRequest<Boxed> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

/// A request of an HTTP/2 client.
pub fn h2_request<B>(path: &str, body: B) -> Request<B> {
    Request::post(format!("http://{HOST}{path}")).body(body).unwrap()
}

pub fn exists(path: &Path) -> bool {
    path.exists()
}
