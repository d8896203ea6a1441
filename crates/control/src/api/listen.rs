//! The sockets of the API: a Unix socket for the local root, and a loopback address.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::guard::Peer;

/// The Unix socket. Who is not root is told apart by the kernel, not by a password.
pub(super) struct Local(UnixListener);

impl Local {
    /// Listens at `path`. A socket left behind by an earlier process is replaced.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self(listener))
    }
}

impl Listener for Local {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        loop {
            let (stream, _) = Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(peer) => return (stream, Peer::Local { uid: peer.uid() }),
                Err(error) => tracing::warn!(%error, "peer of the API socket is unknown"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Peer> {
        Ok(Peer::Local { uid: rustix::process::geteuid().as_raw() })
    }
}

impl Connected<IncomingStream<'_, Local>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Local>) -> Self {
        *stream.remote_addr()
    }
}

/// A loopback address.
pub(super) struct Loopback(TcpListener);

impl Loopback {
    /// Listens at `addr`, which must be a loopback address: there is no TLS here.
    pub(super) async fn bind(addr: SocketAddr) -> io::Result<Self> {
        if !addr.ip().is_loopback() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only loopback addresses are listened on: TLS for the API is not built yet",
            ));
        }
        Ok(Self(TcpListener::bind(addr).await?))
    }

    /// The address with the port that was chosen.
    pub(super) fn addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Listener for Loopback {
    type Io = TcpStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (TcpStream, Peer) {
        let (stream, peer) = Listener::accept(&mut self.0).await;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY cannot be set");
        }
        (stream, Peer::Tcp(peer))
    }

    fn local_addr(&self) -> io::Result<Peer> {
        self.0.local_addr().map(Peer::Tcp)
    }
}

impl Connected<IncomingStream<'_, Loopback>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Loopback>) -> Self {
        *stream.remote_addr()
    }
}
