//! What a gateway is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where a gateway listens, where it keeps things, and its limits.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Addresses for HTTP/1.1 and h2c.
    pub http: Vec<SocketAddr>,
    /// Addresses for TLS; need at least one usable certificate.
    pub https: Vec<SocketAddr>,
    /// Certificates, chosen by server name. One that cannot be read is skipped with a log,
    /// or kept as it was when it was readable before.
    pub certificates: Vec<CertificateFiles>,
    /// Address of the metrics page, `None` for no page.
    pub metrics: Option<SocketAddr>,
    /// Folder of the sockets: `gateway-link.sock` of the control plane, `gateway.sock` of ours.
    pub run_dir: PathBuf,
    /// Folder where the route table is kept.
    pub state_dir: PathBuf,
    /// Where the access log goes.
    pub access_log: AccessLogTarget,
    /// Limits on clients.
    pub limits: Limits,
    /// How long connections may go on after a successor took over.
    pub takeover_drain: Duration,
    /// How long connections may go on after SIGTERM.
    pub stop_drain: Duration,
}

impl GatewayConfig {
    /// A gateway that listens nowhere yet, with its sockets and state in the given folders.
    pub fn new(run_dir: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            http: Vec::new(),
            https: Vec::new(),
            certificates: Vec::new(),
            metrics: None,
            run_dir: run_dir.into(),
            state_dir: state_dir.into(),
            access_log: AccessLogTarget::Off,
            limits: Limits::default(),
            takeover_drain: Duration::from_secs(300),
            stop_drain: Duration::from_secs(10),
        }
    }

    pub(crate) fn link_socket(&self) -> PathBuf {
        self.run_dir.join("gateway-link.sock")
    }

    pub(crate) fn takeover_socket(&self) -> PathBuf {
        self.run_dir.join("gateway.sock")
    }

    pub(crate) fn routes_file(&self) -> PathBuf {
        self.state_dir.join("routes.json")
    }
}

/// A certificate chain and its key, in PEM files.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// Server names it is for; `*.example.com` covers one label. Empty: it serves whatever no
    /// other certificate is for.
    pub hosts: Vec<String>,
    /// The chain.
    pub chain: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file, appended to, and opened again on SIGHUP.
    File(PathBuf),
}

/// Limits on what clients may do.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time. More wait in the kernel's queue.
    pub connections: u32,
    /// Bytes of a request head, at least 8192. More is answered 431.
    pub head_bytes: usize,
    /// Header fields of a request. More is answered 431.
    pub headers: usize,
    /// From the first byte of a request head to its last.
    pub head_time: Duration,
    /// How long a connection may be without a request.
    pub idle_time: Duration,
    /// How long a request body may stand still while we wait for it.
    pub body_stall: Duration,
    /// Bytes of a request body, `None` for no limit. More is answered 413.
    pub body_bytes: Option<u64>,
    /// From a request to the head of the App's response, `None` for no limit. More is
    /// answered 504.
    pub response_time: Option<Duration>,
    /// How long a request waits for the first route table of a gateway that has none yet.
    /// More is answered 503.
    pub table_time: Duration,
    /// To connect to a Backend.
    pub connect_time: Duration,
    /// Streams of one HTTP/2 connection at a time.
    pub h2_streams: u32,
    /// Streams a client may reset before we took them up; more ends the connection.
    pub h2_resets: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            head_bytes: 32 << 10,
            headers: 100,
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(75),
            body_stall: Duration::from_secs(60),
            body_bytes: None,
            response_time: None,
            table_time: Duration::from_secs(30),
            connect_time: Duration::from_secs(1),
            h2_streams: 128,
            h2_resets: 20,
        }
    }
}
