//! A running gateway: its parts, and the phases of its life.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use stead_core::ids::Generation;
use stead_core::routes::{Report, RouteChange};
use stead_core::time::{Micros, Time};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::access_log::AccessLog;
use crate::config::{GatewayConfig, Limits};
use crate::table::Routes;
use crate::takeover::{MAX_SOCKETS, Role, Socket, Takeover, TakeoverError};
use crate::tls::Tls;
use crate::{keep, link, listen, metrics, report, takeover};

/// Between two rounds of closing idle connections.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// Rounds after which certificate files are looked at.
const CERTIFICATES_EVERY: u32 = 5;
/// How long a control plane that is there is awaited before the first request is accepted. It
/// sends nothing while it gathers what runs; until then it drains nothing either.
const FIRST_WORD: Duration = Duration::from_millis(500);
/// Requests that may wait for the first route table at once.
const EARLY: usize = 1_000;
/// How long tasks that were told to end may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The phases of a gateway's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Accepts connections.
    Serving,
    /// A successor accepts them; those we have go on.
    HandedOver,
    /// Nobody accepts them; idle ones are closed, the others go on.
    Stopping,
    /// What is left is cut.
    Cut,
}

/// What the control plane knows of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It was not asked yet, or has not answered.
    NotYet,
    /// It cannot be reached; we go on trying.
    Unreachable,
    /// It has heard which of its generations is in force here.
    Acknowledged,
}

/// Held by every listener and every connection. When the last is gone, so is the channel: a
/// connection cannot be missed between two listeners or two counts.
#[derive(Clone)]
pub(crate) struct Presence {
    _alive: mpsc::Sender<Infallible>,
}

/// What every part of a gateway shares.
pub(crate) struct Shared {
    pub(crate) routes: Routes,
    pub(crate) limits: Limits,
    pub(crate) log: AccessLog,
    /// When counting began.
    pub(crate) started: Time,
    phase: watch::Sender<Phase>,
    /// The same for the hot path.
    phase_now: AtomicU8,
    /// What the control plane knows of this gateway.
    pub(crate) known: watch::Sender<Known>,
    /// Room for connections.
    room: Arc<Semaphore>,
    /// Room for requests that wait for the first route table.
    early: Semaphore,
    refused: Mutex<BTreeMap<u16, u64>>,
}

impl Shared {
    /// Waits until `phase`, or a later one, is entered.
    pub(crate) async fn reached(&self, phase: Phase) {
        // Fails only without a sender, which is ours.
        let _ = self.phase.subscribe().wait_for(|now| *now >= phase).await;
    }

    /// Whether `phase`, or a later one, was entered.
    pub(crate) fn has_reached(&self, phase: Phase) -> bool {
        self.phase_now.load(Ordering::Acquire) >= phase as u8
    }

    /// Enters `phase`; there is no way back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            if later {
                self.phase_now.store(phase as u8, Ordering::Release);
                *now = phase;
            }
            later
        });
    }

    /// Whether somebody else accepts connections now, or nobody.
    pub(crate) fn is_draining(&self) -> bool {
        self.has_reached(Phase::HandedOver)
    }

    /// Room for one more connection.
    pub(crate) async fn admit(&self) -> OwnedSemaphorePermit {
        self.room.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Waits for the first route table, as long as a request may and the gateway goes on.
    /// False: there is none.
    pub(crate) async fn await_table(&self) -> bool {
        let Ok(_room) = self.early.try_acquire() else { return false };
        tokio::select! {
            waited = timeout(self.limits.table_time, self.routes.loaded()) => waited.is_ok(),
            () = self.reached(Phase::Stopping) => false,
        }
    }

    /// Connections of clients, and listeners that have room for the next one.
    pub(crate) fn connections(&self) -> usize {
        self.limits.connections as usize - self.room.available_permits()
    }

    /// A request was refused before it had an App.
    pub(crate) fn refused(&self, status: StatusCode) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(status.as_u16()).or_default() += 1;
    }

    pub(crate) fn refusals(&self) -> BTreeMap<u16, u64> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// An address cannot be listened at.
    #[error("address {addr} cannot be listened at")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket for takeovers cannot be made.
    #[error("takeover socket cannot be made")]
    TakeoverSocket(#[source] io::Error),
    /// The access log cannot be opened.
    #[error("access log cannot be opened")]
    AccessLog(#[source] io::Error),
    /// A gateway runs, and did not hand over.
    #[error("gateway that runs did not hand over")]
    Takeover(#[from] TakeoverError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// There are more addresses than descriptors in one message.
    #[error("gateway listens at more than {MAX_SOCKETS} addresses")]
    TooManyAddresses,
    /// The system does not do what it must.
    #[error("gateway cannot be set up")]
    System(#[source] io::Error),
}

/// A gateway that runs in this process.
///
/// Dropping it does not end it: use [`Gateway::stop`] and [`Gateway::ended`].
pub struct Gateway {
    shared: Arc<Shared>,
    addrs: Vec<(Role, SocketAddr)>,
    tls: Option<Arc<Tls>>,
    link: AsyncMutex<JoinHandle<()>>,
    /// Ends when no listener and no connection is left.
    absence: AsyncMutex<mpsc::Receiver<Infallible>>,
    takeover_drain: Duration,
    stop_drain: Duration,
}

impl Gateway {
    /// Starts a gateway. If one runs behind the same run folder, takes over from it: when this
    /// returns the other accepts no more connections.
    pub async fn start(config: GatewayConfig) -> Result<Self, GatewayError> {
        let (hints, heard) = mpsc::unbounded_channel();
        let limits =
            Limits { connections: config.limits.connections.max(1), ..config.limits.clone() };
        let shared = Arc::new(Shared {
            routes: Routes::new(hints),
            log: AccessLog::open(&config.access_log).map_err(GatewayError::AccessLog)?,
            started: Time(0)
                + Micros::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()),
            phase: watch::Sender::new(Phase::Serving),
            phase_now: AtomicU8::new(Phase::Serving as u8),
            known: watch::Sender::new(Known::NotYet),
            room: Arc::new(Semaphore::new(limits.connections as usize)),
            early: Semaphore::new(EARLY),
            refused: Mutex::default(),
            limits,
        });

        let mut takeover = Takeover::ask(&config.takeover_socket()).await?;
        let inherited =
            takeover.as_mut().map(|t| std::mem::take(&mut t.sockets)).unwrap_or_default();
        let sockets = sockets(&config, inherited)?;
        let addrs = sockets.iter().filter_map(|s| Some((s.role, s.addr?))).collect();
        let routes = match takeover.as_mut().and_then(|takeover| takeover.routes.take()) {
            Some(routes) => Some(routes),
            None => {
                let path = config.routes_file();
                tokio::task::spawn_blocking(move || keep::load(&path)).await.unwrap_or_default()
            }
        };
        if let Some(routes) = routes.map(RouteChange::Table) {
            let _prepared = shared.routes.prepare(&routes).await;
            if let Err(error) = shared.routes.apply(routes) {
                tracing::error!(%error, "first route table refused"); // nothing was applied before
            }
        }
        let tls = if config.https.is_empty() {
            None
        } else {
            Some(Arc::new(Tls::new(config.certificates.clone())?))
        };

        let (alive, absence) = mpsc::channel(1);
        let presence = Presence { _alive: alive };
        let link = {
            let (shared, socket) = (shared.clone(), config.link_socket());
            tokio::spawn(async move { link::keep(shared, &socket, heard).await })
        };
        // Before the first request: a control plane that does not know of us would take a
        // Container for drained to which we still send by the routes we were given.
        let mut known = shared.known.subscribe();
        let _ = timeout(FIRST_WORD, known.wait_for(|known| *known != Known::NotYet)).await;
        serve(&shared, sockets, tls.as_ref(), &presence)
            .inspect_err(|_| link.abort())
            .map_err(GatewayError::System)?;
        if let Some(takeover) = takeover
            && let Err(error) = takeover.serving().await
        {
            // We have the sockets and serve; at worst both do.
            tracing::error!(%error, "the gateway before did not end its part");
        }
        tokio::spawn(keep::keep(shared.clone(), config.routes_file()));
        tokio::spawn(tidy(shared.clone(), tls.clone()));
        let GatewayConfig { takeover_drain, stop_drain, .. } = config;
        Ok(Self {
            shared,
            addrs,
            tls,
            absence: AsyncMutex::new(absence),
            link: AsyncMutex::new(link),
            takeover_drain,
            stop_drain,
        })
    }

    /// Where it listens for HTTP/1.1 and h2c.
    pub fn http_addrs(&self) -> Vec<SocketAddr> {
        self.addrs(Role::Http)
    }

    /// Where it listens for TLS.
    pub fn https_addrs(&self) -> Vec<SocketAddr> {
        self.addrs(Role::Https)
    }

    /// Where its metrics are.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.addrs(Role::Metrics).pop()
    }

    fn addrs(&self, role: Role) -> Vec<SocketAddr> {
        self.addrs.iter().filter(|(is, _)| *is == role).map(|(_, addr)| *addr).collect()
    }

    /// The route generation in force.
    pub fn generation(&self) -> Generation {
        self.shared.routes.generation()
    }

    /// Waits until the control plane has heard that its routes are in force here. From then on
    /// it awaits this gateway's acknowledgement of every change.
    pub async fn acknowledged(&self) {
        let mut known = self.shared.known.subscribe();
        // Fails only without a sender, which is ours.
        let _ = known.wait_for(|known| *known == Known::Acknowledged).await;
    }

    /// What it has seen until now.
    pub fn report(&self) -> Report {
        report::report(&self.shared)
    }

    /// Reads certificates and opens the access log again, as on SIGHUP.
    pub async fn reload(&self) {
        self.shared.log.reopen().await;
        if let Some(tls) = self.tls.clone() {
            // Fails only when the runtime ends.
            let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
        }
    }

    /// Accepts no more connections, as on SIGTERM. [`Gateway::ended`] waits for those it has.
    pub fn stop(&self) {
        self.shared.enter(Phase::Stopping);
    }

    /// Waits until the gateway was stopped or a successor took over, and until the
    /// connections it then had are done or their deadline has passed.
    pub async fn ended(&self) {
        self.shared.reached(Phase::HandedOver).await;
        let stopping = async {
            self.shared.reached(Phase::Stopping).await;
            tokio::time::sleep(self.stop_drain).await;
        };
        let mut absence = self.absence.lock().await;
        tokio::select! {
            _ = absence.recv() => {}
            () = stopping => tracing::warn!("connections are cut after the drain"),
            () = tokio::time::sleep(self.takeover_drain) => {
                tracing::warn!("connections are cut after the drain");
            }
        }
        self.shared.enter(Phase::Cut);
        // Whoever is not done by then is lost with the process.
        let _ = timeout(LAST_WORDS, absence.recv()).await;
        let mut link = self.link.lock().await;
        if !link.is_finished() {
            let _ = timeout(LAST_WORDS, &mut *link).await;
        }
        let _ = timeout(LAST_WORDS, self.shared.log.flush()).await;
    }
}

/// The sockets to listen at: inherited ones where they fit, new ones for the rest.
fn sockets(
    config: &GatewayConfig,
    mut inherited: Vec<Socket>,
) -> Result<Vec<Socket>, GatewayError> {
    let wanted = [
        (Role::Http, config.http.as_slice()),
        (Role::Https, &config.https),
        (Role::Metrics, config.metrics.as_slice()),
    ];
    let mut sockets = Vec::new();
    for (role, addrs) in wanted {
        for addr in addrs {
            let fits = |socket: &Socket| {
                socket.role == role && socket.addr.is_some_and(|has| same(has, *addr))
            };
            sockets.push(match inherited.iter().position(fits) {
                Some(at) => inherited.swap_remove(at),
                None => bind(role, *addr)?,
            });
        }
    }
    sockets.push(match inherited.iter().position(|socket| socket.role == Role::Takeover) {
        Some(at) => inherited.swap_remove(at),
        None => {
            let listener = takeover_listener(&config.takeover_socket())
                .map_err(GatewayError::TakeoverSocket)?;
            Socket { role: Role::Takeover, addr: None, fd: OwnedFd::from(listener) }
        }
    });
    if sockets.len() > MAX_SOCKETS {
        return Err(GatewayError::TooManyAddresses);
    }
    Ok(sockets)
}

/// Whether a socket at `has` is what `wanted` asks for. Port 0 asks for any port.
fn same(has: SocketAddr, wanted: SocketAddr) -> bool {
    has.ip() == wanted.ip() && (wanted.port() == 0 || has.port() == wanted.port())
}

fn bind(role: Role, addr: SocketAddr) -> Result<Socket, GatewayError> {
    let failed = |source| GatewayError::Bind { addr, source };
    let listener = listen::bind(addr).map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok(Socket { role, addr: Some(addr), fd: listener.into() })
}

fn takeover_listener(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // of a gateway that was killed: nobody answered there
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Starts to serve `sockets`. The tasks have descriptors of their own; those in `sockets` wait
/// for a successor, and are closed when the gateway stops serving.
fn serve(
    shared: &Arc<Shared>,
    sockets: Vec<Socket>,
    tls: Option<&Arc<Tls>>,
    presence: &Presence,
) -> io::Result<()> {
    let mut takeover = None;
    for socket in &sockets {
        let fd = socket.fd.try_clone()?;
        let shared = shared.clone();
        match socket.role {
            Role::Http => {
                let accept = listen::accept(shared, tcp(fd)?, None, presence.clone());
                drop(tokio::spawn(accept));
            }
            Role::Https => {
                let accept = listen::accept(shared, tcp(fd)?, tls.cloned(), presence.clone());
                drop(tokio::spawn(accept));
            }
            Role::Metrics => drop(tokio::spawn(metrics::serve(shared, tcp(fd)?))),
            Role::Takeover => takeover = Some(UnixListener::from_std(fd.into())?),
        }
    }
    if let Some(listener) = takeover {
        tokio::spawn(takeover::offer(shared.clone(), listener, sockets));
    }
    Ok(())
}

fn tcp(fd: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Closes what is idle for too long and looks after the certificates.
async fn tidy(shared: Arc<Shared>, tls: Option<Arc<Tls>>) {
    let mut rounds = 0_u32;
    loop {
        tokio::select! {
            () = tokio::time::sleep(TIDY_EVERY) => {}
            () = shared.reached(Phase::Cut) => return,
        }
        shared.routes.tidy(std::time::Instant::now());
        rounds = rounds.wrapping_add(1);
        if let Some(tls) = &tls
            && rounds.is_multiple_of(CERTIFICATES_EVERY)
        {
            let tls = tls.clone();
            let _ = tokio::task::spawn_blocking(move || tls.reload()).await;
        }
    }
}
