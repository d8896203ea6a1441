//! A load generator that notices every failure.
//!
//! Promises: bounded in time; every request sent is counted as good or as a [`Failure`] that says
//! when, of what kind and what was seen; a request that is under way when the load is stopped is
//! finished first, so `sent = ok + failed`. It is strict: a request that dies with a reused
//! connection is a failure, though a browser would try again.
//!
//! It resolves no names (it is given an address and a `Host`), knows nothing about stead, and does
//! not decide what is good enough: [`Report::assert_lossless`] does, and it asks for a minimum
//! sent, because a load that sent nothing lost nothing.

mod clients;
mod connection;
mod recorder;
mod report;
mod rpc;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use recorder::Recorder;
pub use report::{Failure, FailureKind, Latency, Report, Version, Window};

/// What a client does, over and over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Requests on one connection as long as it lives.
    KeepAlive,
    /// One connection per request.
    OneShot,
    /// A chunked upload over about a second, on a kept connection.
    Upload,
    /// A request whose answer takes about a second.
    Long,
    /// A stream of server-sent events to its announced end.
    Events,
    /// A WebSocket: some echoes, a clean close, again.
    WebSocket,
    /// Requests over HTTP/2 without TLS, on one connection as long as it lives.
    Http2,
    /// gRPC calls with one answer, on one connection as long as it lives.
    Rpc,
    /// gRPC calls answered by a stream of messages over about a second.
    RpcStream,
}

impl Role {
    /// Whether its requests are answered as fast as the server can: those of the others take as
    /// long as they were asked to.
    fn is_plain(self) -> bool {
        matches!(self, Self::KeepAlive | Self::OneShot | Self::Http2 | Self::Rpc)
    }
}

/// How many clients of each role.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mix {
    /// Clients with [`Role::KeepAlive`].
    pub keep_alive: usize,
    /// Clients with [`Role::OneShot`].
    pub one_shot: usize,
    /// Clients with [`Role::Upload`].
    pub uploads: usize,
    /// Clients with [`Role::Long`].
    pub long: usize,
    /// Clients with [`Role::Events`].
    pub events: usize,
    /// Clients with [`Role::WebSocket`].
    pub websockets: usize,
    /// Clients with [`Role::Http2`].
    pub http2: usize,
    /// Clients with [`Role::Rpc`].
    pub rpc: usize,
    /// Clients with [`Role::RpcStream`].
    pub rpc_streams: usize,
}

impl Mix {
    /// Sixteen clients any web server can serve: half keep-alive, the others one connection per
    /// request, two of them slow uploads.
    pub const SIXTEEN: Self = Self { keep_alive: 8, one_shot: 6, uploads: 2, ..Self::NOBODY };

    /// Everything the sample service speaks where it is asked over HTTP/1.1, twenty clients; two
    /// of them speak HTTP/2 to whatever is before it.
    pub const EVERYTHING: Self = Self {
        keep_alive: 6,
        one_shot: 4,
        uploads: 2,
        long: 2,
        events: 2,
        websockets: 2,
        http2: 2,
        ..Self::NOBODY
    };

    /// What the sample service speaks where it is asked over HTTP/2, eight clients.
    pub const RPC: Self = Self { http2: 2, rpc: 4, rpc_streams: 2, ..Self::NOBODY };

    /// Nobody, to begin from.
    pub const NOBODY: Self = Self {
        keep_alive: 0,
        one_shot: 0,
        uploads: 0,
        long: 0,
        events: 0,
        websockets: 0,
        http2: 0,
        rpc: 0,
        rpc_streams: 0,
    };

    fn roles(self) -> impl Iterator<Item = Role> {
        [
            (Role::KeepAlive, self.keep_alive),
            (Role::OneShot, self.one_shot),
            (Role::Upload, self.uploads),
            (Role::Long, self.long),
            (Role::Events, self.events),
            (Role::WebSocket, self.websockets),
            (Role::Http2, self.http2),
            (Role::Rpc, self.rpc),
            (Role::RpcStream, self.rpc_streams),
        ]
        .into_iter()
        .flat_map(|(role, count)| std::iter::repeat_n(role, count))
    }
}

/// A load: where to, who, how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The clients.
    pub mix: Mix,
    /// The load ends by itself after this time.
    pub duration: Duration,
    /// The load ends by itself once so many requests were sent.
    pub most: u64,
    /// Keep-alive and one-shot clients together send so many requests per second; a late one
    /// counts from when it was due. `None`: each waits for `pause` between two requests.
    pub per_second: Option<f64>,
    /// See `per_second`.
    pub pause: Duration,
    /// A request without its whole answer by then has failed.
    pub timeout: Duration,
    /// The header that names the version which answered.
    pub version_header: String,
    /// Path of keep-alive and one-shot requests.
    pub path: String,
    /// Path of uploads.
    pub upload_path: String,
    /// Path of long requests.
    pub long_path: String,
    /// Path of server-sent events.
    pub events_path: String,
    /// How many events that stream has.
    pub events: usize,
    /// Path of the WebSocket.
    pub websocket_path: String,
    /// Path of gRPC calls.
    pub rpc_path: String,
    /// Headers of every request that is not a WebSocket's.
    pub headers: Vec<(String, String)>,
}

impl Plan {
    /// A load on the paths of the sample service: sixteen clients, a minute at most.
    pub fn new(address: SocketAddr, host: impl Into<String>) -> Self {
        Self {
            address,
            host: host.into(),
            mix: Mix::SIXTEEN,
            duration: Duration::from_secs(60),
            most: u64::MAX,
            per_second: None,
            pause: Duration::from_millis(2),
            timeout: Duration::from_secs(30),
            version_header: "x-version".to_owned(),
            path: "/".to_owned(),
            upload_path: "/upload".to_owned(),
            long_path: "/slow?ms=1000".to_owned(),
            events_path: "/events?count=10&every=100".to_owned(),
            events: 10,
            websocket_path: "/ws".to_owned(),
            rpc_path: "/hello.Hello/Echo".to_owned(),
            headers: Vec::new(),
        }
    }

    /// With these clients.
    #[must_use]
    pub fn mix(mut self, mix: Mix) -> Self {
        self.mix = mix;
        self
    }

    /// With this header on every request.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// For this long at most.
    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }

    /// Starts the clients. Needs a tokio runtime with time and I/O.
    pub fn start(self) -> Running {
        let plan = Arc::new(self);
        let recorder = Arc::new(Recorder::new());
        let (stop, stopped) = watch::channel(false);
        let end = Instant::now() + plan.duration;
        let mut clients = JoinSet::new();
        for (index, role) in plan.mix.roles().enumerate() {
            let client = clients::Client {
                role,
                index,
                plan: Arc::clone(&plan),
                recorder: Arc::clone(&recorder),
                stop: clients::Stop { stopped: stopped.clone(), end },
            };
            clients.spawn(client.run());
        }
        Running { recorder, stop, clients }
    }
}

/// A load under way. Dropped, it is cut off without a report.
#[derive(Debug)]
pub struct Running {
    recorder: Arc<Recorder>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Running {
    /// Requests sent so far.
    pub fn sent(&self) -> u64 {
        self.recorder.sent()
    }

    /// Milliseconds since its start: the clock of [`Report`].
    pub fn elapsed_ms(&self) -> f64 {
        self.recorder.elapsed_ms()
    }

    /// Requests failed so far.
    pub fn failed(&self) -> usize {
        self.recorder.failed()
    }

    /// Waits until `count` more requests were answered well. False when the load ended before.
    pub async fn more_ok(&self, count: u64) -> bool {
        let goal = self.recorder.ok() + count;
        let mut changes = self.recorder.changes();
        loop {
            if self.recorder.ok() >= goal {
                return true;
            }
            tokio::select! {
                () = changes.wait() => {}
                () = self.stop.closed() => return self.recorder.ok() >= goal,
            }
        }
    }

    /// Waits until a version has answered. False when the load ended before.
    pub async fn version(&self, version: &str) -> bool {
        let mut changes = self.recorder.changes();
        loop {
            if self.recorder.saw(version) {
                return true;
            }
            tokio::select! {
                () = changes.wait() => {}
                () = self.stop.closed() => return self.recorder.saw(version),
            }
        }
    }

    /// Lets each client finish what it is doing, and reports.
    pub async fn stop(self) -> Report {
        let _ = self.stop.send(true);
        self.finish().await
    }

    /// Waits for the end of the plan, and reports.
    pub async fn finish(mut self) -> Report {
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                self.recorder.client_died(&error.to_string());
            }
        }
        self.recorder.report()
    }
}
