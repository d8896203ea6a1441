//! One gateway hands over to the next: the listening sockets travel as descriptors, so that
//! the kernel's queues never close and no connection is refused.
//!
//! The order, over the socket `gateway.sock`: the successor says `takeover`; the gateway sends
//! one byte that carries the descriptors and a line that says what they are, with its route
//! table; the successor starts to accept and says `serving`; only then the gateway stops
//! accepting and says `over`. If the successor fails on the way, nothing has changed.
//!
//! Assumes what the link assumes: only the gateway's own user reaches the socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use stead_core::routes::RouteTable;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::gateway::{Phase, Shared};

/// Most sockets that travel in one message (SCM_MAX_FD).
pub(crate) const MAX_SOCKETS: usize = 253;
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(10);

const TAKEOVER: &str = "takeover";
const SERVING: &str = "serving";
const OVER: &str = "over";

/// What a listening socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Http,
    Https,
    Metrics,
    /// `gateway.sock` itself.
    Takeover,
}

/// A listening socket. `addr` is `None` for [`Role::Takeover`].
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) role: Role,
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) fd: OwnedFd,
}

#[derive(Serialize, Deserialize)]
struct Offer {
    sockets: Vec<(Role, Option<SocketAddr>)>,
    routes: Option<RouteTable>,
}

/// Why a takeover failed.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The connection to the running gateway failed.
    #[error("running gateway cannot be talked to")]
    Io(#[from] io::Error),
    /// The running gateway did not do its part in time.
    #[error("running gateway does not answer")]
    Silent,
    /// The running gateway said something else than expected.
    #[error("running gateway answered {0:?}")]
    Unexpected(String),
}

/// Stands ready for a successor until the gateway stops serving.
pub(crate) async fn offer(shared: Arc<Shared>, listener: UnixListener, sockets: Vec<Socket>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.reached(Phase::HandedOver) => return,
        };
        // One after the other: two successors cannot both take over.
        match accepted {
            Ok((stream, _)) => match hand_over(&shared, stream, &sockets).await {
                Ok(()) => tracing::info!("a successor took over"),
                Err(error) => tracing::warn!(%error, "takeover failed; going on"),
            },
            Err(error) => {
                tracing::warn!(%error, "takeover socket failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn hand_over(
    shared: &Shared,
    stream: UnixStream,
    sockets: &[Socket],
) -> Result<(), TakeoverError> {
    let mut stream = BufReader::new(stream);
    expect(&mut stream, TAKEOVER).await?;
    let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(|socket| socket.fd.as_fd()).collect();
    send_fds(stream.get_ref(), &fds).await?;
    let offer = Offer {
        sockets: sockets.iter().map(|socket| (socket.role, socket.addr)).collect(),
        routes: shared.routes.snapshot(),
    };
    let line = serde_json::to_string(&offer).map_err(io::Error::from)?;
    say(&mut stream, &line).await?;
    expect(&mut stream, SERVING).await?;
    shared.enter(Phase::HandedOver);
    say(&mut stream, OVER).await
}

/// A takeover that has begun: the sockets are ours, the other gateway still serves.
pub(crate) struct Takeover {
    stream: BufReader<UnixStream>,
    pub(crate) sockets: Vec<Socket>,
    pub(crate) routes: Option<RouteTable>,
}

impl Takeover {
    /// Asks the gateway behind `path` to hand over; `None` when none is there.
    pub(crate) async fn ask(path: &Path) -> Result<Option<Self>, TakeoverError> {
        let stream = match UnixStream::connect(path).await {
            Ok(stream) => stream,
            Err(error) => {
                return match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                    _ => Err(error.into()),
                };
            }
        };
        let mut stream = BufReader::new(stream);
        say(&mut stream, TAKEOVER).await?;
        let fds = timeout(PATIENCE, receive_fds(stream.get_ref()))
            .await
            .map_err(|_| TakeoverError::Silent)??;
        let line = hear(&mut stream).await?;
        let offer: Offer =
            serde_json::from_str(&line).map_err(|_| TakeoverError::Unexpected(line))?;
        if offer.sockets.len() != fds.len() {
            return Err(TakeoverError::Unexpected(format!("{} descriptors", fds.len())));
        }
        let sockets = offer
            .sockets
            .into_iter()
            .zip(fds)
            .map(|((role, addr), fd)| Socket { role, addr, fd })
            .collect();
        Ok(Some(Self { stream, sockets, routes: offer.routes }))
    }

    /// Tells the other gateway that we serve; returns when it accepts no more.
    pub(crate) async fn serving(mut self) -> Result<(), TakeoverError> {
        say(&mut self.stream, SERVING).await?;
        expect(&mut self.stream, OVER).await
    }
}

async fn say(stream: &mut BufReader<UnixStream>, line: &str) -> Result<(), TakeoverError> {
    let line = format!("{line}\n");
    timeout(PATIENCE, stream.get_mut().write_all(line.as_bytes()))
        .await
        .map_err(|_| TakeoverError::Silent)??;
    Ok(())
}

async fn hear(stream: &mut BufReader<UnixStream>) -> Result<String, TakeoverError> {
    let mut line = String::new();
    let read = timeout(PATIENCE, stream.read_line(&mut line))
        .await
        .map_err(|_| TakeoverError::Silent)??;
    if read == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}

async fn expect(stream: &mut BufReader<UnixStream>, word: &str) -> Result<(), TakeoverError> {
    let line = hear(stream).await?;
    if line == word { Ok(()) } else { Err(TakeoverError::Unexpected(line)) }
}

async fn send_fds(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    stream
        .async_io(Interest::WRITABLE, || {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::other("too many listening sockets"));
            }
            sendmsg(stream, &[IoSlice::new(b"+")], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

async fn receive_fds(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SOCKETS))];
    stream
        .async_io(Interest::READABLE, || {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut slices = [IoSliceMut::new(&mut byte)];
            let message = recvmsg(stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            if message.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let rights = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            });
            Ok(rights.flatten().collect())
        })
        .await
}
