//! Connections to one Backend.
//!
//! Promises: a request that comes back as unsent was not sent, not one byte of it. A pooled
//! connection is used again only while it is young: every server closes idle connections at
//! some time, and a request sent just then is lost; the shortest such time in common use is
//! 2 s (gunicorn), so ours is 1 s. A connection costs some 50 µs here, a lost request more.
//!
//! An HTTP/1.1 connection has no task of its own: whoever uses it drives it, so that a request
//! is served by one task from beginning to end. Only when the response comes before the
//! request body has ended, or when the connection is upgraded, a task takes over.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::h2c;
use crate::reply::AppBody;
use crate::upload::Upload;

/// How long an idle connection may be used again.
const IDLE_TIME: Duration = Duration::from_secs(1);
/// Idle connections kept per Backend.
const IDLE_KEPT: usize = 256;
/// Largest response head accepted of an App; also the read buffer's limit.
pub(crate) const HEAD_BYTES: usize = 64 << 10;

/// hyper does not name the type.
type Driver = dyn Future<Output = hyper::Result<()>> + Send;

/// Opens a TCP connection, with `mark` as its `SO_MARK`.
pub(crate) async fn dial(
    addr: SocketAddr,
    mark: Option<u32>,
    time: Duration,
) -> io::Result<TcpStream> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark)?;
    }
    tokio::time::timeout(time, socket.connect(addr))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A connection that can take a request.
pub(crate) enum Upstream {
    Http1(Line),
    H2c(h2c::Connection),
}

/// Why a request got no response.
pub(crate) enum SendError {
    /// Nothing of it was sent; here it is.
    Unsent(Box<Request<Upload>>),
    /// It was sent, at least in part, and the Backend says that it has not taken it up. Here it
    /// is.
    Refused(Box<Request<Upload>>),
    /// It was sent, at least in part.
    Failed {
        /// What came back is not HTTP.
        not_http: bool,
        /// Why there is no response.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Upstream {
    /// Speaks HTTP/1.1 on `stream`.
    pub(crate) async fn http1(stream: TcpStream, open: &Arc<Open>) -> hyper::Result<Self> {
        let (sender, driver) =
            http1::Builder::new().max_buf_size(HEAD_BYTES).handshake(TokioIo::new(stream)).await?;
        let driver: Pin<Box<Driver>> = Box::pin(driver.with_upgrades());
        let driver = Some(driver);
        Ok(Self::Http1(Line { sender, driver, _open: OpenGuard::new(open) }))
    }

    /// Speaks HTTP/2 on `stream`. All requests of a Backend share one such connection.
    pub(crate) async fn h2c(stream: TcpStream, open: &Arc<Open>) -> Result<Self, h2::Error> {
        Ok(Self::H2c(h2c::Connection::new(stream, open).await?))
    }

    /// Sends a request. The line that comes back with the response carries its body.
    pub(crate) async fn send(self, request: Request<Upload>) -> Result<Answer, SendError> {
        match self {
            Self::Http1(mut line) => {
                let response = line.sender.try_send_request(request);
                match line.drive(response).await {
                    Ok(response) => Ok((response.map(AppBody::Http1), Some(line))),
                    Err(error) => Err(unanswered(error)),
                }
            }
            Self::H2c(connection) => {
                let response = connection.send(request).await?;
                Ok((response.map(AppBody::H2c), None))
            }
        }
    }
}

/// An App's response, and the line its body comes over.
pub(crate) type Answer = (Response<AppBody>, Option<Line>);

fn unanswered(mut error: TrySendError<Request<Upload>>) -> SendError {
    match error.take_message() {
        Some(request) => SendError::Unsent(Box::new(request)),
        None => {
            let error = error.into_error();
            SendError::Failed { not_http: error.is_parse(), error: error.into() }
        }
    }
}

/// An HTTP/1.1 connection in use.
pub(crate) struct Line {
    sender: http1::SendRequest<Upload>,
    /// `None`: the connection has ended, or a task drives it.
    driver: Option<Pin<Box<Driver>>>,
    _open: OpenGuard,
}

impl Line {
    /// Lets the connection make progress, and then asks `wanted` for what came over it.
    ///
    /// While we drive it, what is wanted can only come from here: its wake-ups would make
    /// this task run once more, for nothing.
    pub(crate) fn poll_for<T>(
        &mut self,
        cx: &mut Context<'_>,
        wanted: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.poll(cx);
        match self.driver {
            Some(_) => wanted(&mut Context::from_waker(Waker::noop())),
            None => wanted(cx),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            // Dropping it hands a request that it had not begun back to its sender.
            self.driver = None;
        }
    }

    async fn drive<T>(&mut self, wanted: impl Future<Output = T>) -> T {
        let mut wanted = pin!(wanted);
        poll_fn(|cx| self.poll_for(cx, |cx| wanted.as_mut().poll(cx))).await
    }

    /// Hands the connection to a task of its own.
    pub(crate) fn detach(&mut self) {
        if let Some(driver) = self.driver.take() {
            // Its request has the error, if any.
            tokio::spawn(async move { drop(driver.await) });
        }
    }

    /// Whether the connection is open, idle and ours.
    fn is_idle(&mut self) -> bool {
        self.poll(&mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Open connections of one Backend, counted.
pub(crate) type Open = AtomicUsize;

/// Counts a connection until it is dropped.
pub(crate) struct OpenGuard(Arc<Open>);

impl OpenGuard {
    pub(crate) fn new(open: &Arc<Open>) -> Self {
        open.fetch_add(1, Relaxed);
        Self(open.clone())
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The connections of one Backend that can be used again.
#[derive(Default)]
pub(crate) struct Pool {
    /// The youngest is last.
    idle: Mutex<Vec<(Line, Instant)>>,
    shared: Mutex<Option<h2c::Connection>>,
    /// Connections, idle or in use.
    pub(crate) open: Arc<Open>,
}

impl Pool {
    /// A connection that was used before, if a good one is there.
    pub(crate) fn take(&self, now: Instant) -> Option<Upstream> {
        if let Some(connection) = &*lock(&self.shared)
            && !connection.is_over()
        {
            return Some(Upstream::H2c(connection.clone()));
        }
        loop {
            let (mut line, since) = lock(&self.idle).pop()?;
            if now.saturating_duration_since(since) > IDLE_TIME {
                self.clear(); // all others are older
                return None;
            }
            if line.is_idle() {
                return Some(Upstream::Http1(line));
            }
        }
    }

    /// Takes back a connection whose response has ended; closes it when it cannot be used.
    pub(crate) fn give(&self, mut line: Line, now: Instant) {
        if line.is_idle() {
            let mut idle = lock(&self.idle);
            if idle.len() < IDLE_KEPT {
                idle.push((line, now));
            }
        }
    }

    /// Shares an HTTP/2 connection between all requests from now on.
    pub(crate) fn share(&self, upstream: &Upstream) {
        if let Upstream::H2c(connection) = upstream {
            *lock(&self.shared) = Some(connection.clone());
        }
    }

    /// Closes what is idle for too long.
    pub(crate) fn expire(&self, now: Instant) {
        let expired: Vec<_> = {
            let mut idle = lock(&self.idle);
            let young = idle
                .partition_point(|(_, since)| now.saturating_duration_since(*since) > IDLE_TIME);
            idle.drain(..young).collect()
        };
        drop(expired); // outside the lock: it closes sockets
    }

    /// Closes what is idle. What is in use is closed when its request ends.
    pub(crate) fn clear(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        let shared = lock(&self.shared).take();
        drop((idle, shared));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_marked_socket_carries_its_mark_from_the_first_packet() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        for mark in [None, Some(0x57ead)] {
            let stream = dial(addr, mark, Duration::from_secs(5)).await.unwrap();
            assert_eq!(SockRef::from(&stream).mark().unwrap(), mark.unwrap_or(0));
        }
    }
}
