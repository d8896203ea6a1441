//! A client's connection as hyper sees it.
//!
//! Promises, for HTTP/1: what [`Scanner`] refuses reaches hyper as an error it answers with
//! 400; a head that does not arrive in time and a body that stands still end the connection.
//! HTTP/2 passes untouched.
//!
//! For both: a connection that ends while the client may still send lingers, so that the last
//! responses are not destroyed by a reset (RFC 9112, 9.6). After GOAWAY an HTTP/2 client has
//! often sent more already: window updates, and requests that it will send again elsewhere.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use crate::config::Limits;
use crate::strict::{Scan, Scanner};

/// How long, and for how many bytes, a connection lingers.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 1 << 20);

/// Tells the wire how a request with `Upgrade` was answered.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    state: AtomicU8,
    waker: AtomicWaker,
}

const UNDECIDED: u8 = 0;
const HTTP: u8 = 1;
const TUNNEL: u8 = 2;

impl Turn {
    /// The request was answered; `tunnel`: with 101.
    pub(crate) fn decide(&self, tunnel: bool) {
        self.state.store(if tunnel { TUNNEL } else { HTTP }, Ordering::Release);
        self.waker.wake();
    }
}

/// A client's connection.
pub(crate) struct Wire<S> {
    stream: S,
    /// Read, and not passed on yet.
    held: Bytes,
    /// `None`: the bytes are not HTTP/1.
    http1: Option<Http1>,
    /// Once the connection has ended on our side.
    linger: Option<Linger>,
    /// Whether it always lingers.
    http2: bool,
}

/// What a connection may still have before it is closed.
struct Linger {
    time: Pin<Box<Sleep>>,
    bytes: usize,
}

struct Http1 {
    scanner: Scanner,
    turn: Arc<Turn>,
    head_time: Duration,
    body_stall: Duration,
    /// Runs while a head is incomplete or a body stands still.
    timer: Option<Pin<Box<Sleep>>>,
    timing: Timing,
    refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timing {
    Nothing,
    Head,
    Body,
}

impl<S> Wire<S> {
    /// A connection that speaks HTTP/1; `held` was read of it already.
    pub(crate) fn http1(stream: S, held: Bytes, turn: Arc<Turn>, limits: &Limits) -> Self {
        let http1 = Http1 {
            scanner: Scanner::new(limits.head_bytes),
            turn,
            head_time: limits.head_time,
            body_stall: limits.body_stall,
            timer: None,
            timing: Timing::Nothing,
            refused: false,
        };
        Self { stream, held, http1: Some(http1), linger: None, http2: false }
    }

    /// A connection that speaks HTTP/2; `held` was read of it already.
    pub(crate) fn http2(stream: S, held: Bytes) -> Self {
        Self { stream, held, http1: None, linger: None, http2: true }
    }
}

impl Http1 {
    /// Runs the timer for `timing`, from now unless it runs for that already.
    fn time(&mut self, timing: Timing, length: Duration) {
        if self.timing != timing {
            self.timing = timing;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(Instant::now() + length),
                None => self.timer = Some(Box::pin(sleep(length))),
            }
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match (&mut self.timer, self.timing) {
            (None, _) | (_, Timing::Nothing) => Poll::Pending,
            (Some(timer), _) => timer.as_mut().poll(cx),
        }
    }

    /// Whether the client may be sending.
    fn may_have_more(&self) -> bool {
        self.refused || self.scanner.in_body() || self.scanner.in_head()
    }

    /// Whether bytes may be read, and as what.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<u8> {
        if !self.scanner.undecided() {
            return Poll::Ready(HTTP);
        }
        self.turn.waker.register(cx.waker());
        match self.turn.state.swap(UNDECIDED, Ordering::AcqRel) {
            UNDECIDED => Poll::Pending,
            decision => {
                self.scanner.resume();
                Poll::Ready(decision)
            }
        }
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// While an answer decides what the bytes are: takes some in to see whether the client has
    /// left, whose request would otherwise wait on.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() {
            return Poll::Pending; // it sent more: there is somebody to answer
        }
        let mut scratch = [0; 4096];
        let mut buf = ReadBuf::new(&mut scratch);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        if buf.filled().is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.held = Bytes::copy_from_slice(buf.filled());
        Poll::Pending // the decision wakes us
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(http1) = &mut this.http1 {
            match http1.poll_turn(cx) {
                Poll::Ready(TUNNEL) => this.http1 = None,
                Poll::Ready(_) => {}
                Poll::Pending => return this.poll_left(cx),
            }
        }
        let refused = this.http1.as_ref().is_some_and(|http1| http1.refused);
        let start = buf.filled().len();
        if !this.held.is_empty() || refused {
            let taken = this.held.len().min(buf.remaining());
            buf.put_slice(&this.held[..taken]);
            this.held.advance(taken);
        } else if Pin::new(&mut this.stream).poll_read(cx, buf)?.is_pending() {
            let Some(http1) = &mut this.http1 else { return Poll::Pending };
            if http1.scanner.in_body() {
                http1.time(Timing::Body, http1.body_stall);
            }
            ready!(http1.poll_timer(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let Some(http1) = &mut this.http1 else { return Poll::Ready(Ok(())) };
        if refused {
            return Poll::Ready(Ok(())); // nothing of the client's: its input has ended
        }
        match http1.scanner.scan(&buf.filled()[start..]) {
            Scan::Pass => {}
            Scan::Hold(passed) => {
                let rest = Bytes::copy_from_slice(&buf.filled()[start + passed..]);
                this.held = [rest, std::mem::take(&mut this.held)].concat().into();
                buf.set_filled(start + passed);
            }
            Scan::Refuse(line, why) => {
                tracing::debug!(why, "request refused");
                http1.refused = true;
                this.held = Bytes::new();
                if http1.scanner.in_body() {
                    // The input ends before the line: a body that is not whole is an error.
                    buf.set_filled(start + line.start);
                    return Poll::Ready(Ok(()));
                }
                // NUL has no place in a line: hyper answers 400 and closes. (In the place of
                // LF alone, behind CR, it would close without an answer.) It looks only when
                // a head seems complete. What stands before the line is another message's.
                let end = start + line.end;
                let from = (start + line.start).max(end.saturating_sub(2));
                buf.filled_mut()[from..end].fill(0);
                buf.set_filled(end);
                this.held = Bytes::from_static(b"\r\n\r\n");
            }
        }
        if http1.scanner.in_head() {
            http1.time(Timing::Head, http1.head_time);
        } else {
            http1.timing = Timing::Nothing;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let linger = match &mut this.linger {
            Some(linger) => linger,
            None => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                let unread = this.http1.as_ref().is_some_and(Http1::may_have_more);
                if !unread && !this.http2 {
                    return Poll::Ready(Ok(()));
                }
                let (time, bytes) = LINGER;
                this.linger.insert(Linger { time: Box::pin(sleep(time)), bytes })
            }
        };
        let mut scratch = [0; 4096];
        while linger.bytes > 0 {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    linger.bytes = linger.bytes.saturating_sub(buf.filled().len());
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    ready!(linger.time.as_mut().poll(cx));
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
