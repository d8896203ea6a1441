//! The response body on its way to the client: from an App, from a file, or from us.
//!
//! Promises: each frame is passed on as it comes, trailers too; the request's claim is held
//! until the body ends; and a body that ends is told from one that the App broke off and from
//! one that the client did not wait for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use stead_core::routes::FailReason;

use crate::exchange::Exchange;
use crate::ledger::Outcome;
use crate::site::FileBody;
use crate::upstream::Line;

/// A response body.
pub(crate) enum Reply {
    /// A text of ours, or nothing.
    Own(Option<Bytes>),
    /// The App's.
    App(Download),
    /// A file of a site.
    File(FileBody),
}

impl Reply {
    pub(crate) fn empty() -> Self {
        Self::Own(None)
    }

    pub(crate) fn text(text: impl Into<Bytes>) -> Self {
        Self::Own(Some(text.into()))
    }
}

/// What comes over a connection to an App.
pub(crate) enum AppBody {
    Http1(Incoming),
    H2c(h2::RecvStream),
}

/// Why a body broke off.
type Broken = Box<dyn std::error::Error + Send + Sync>;

impl AppBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let stream = match self {
            Self::Http1(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                return Poll::Ready(frame.map(|frame| frame.map_err(Broken::from)));
            }
            Self::H2c(stream) => stream,
        };
        Poll::Ready(match ready!(stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // Fails only for more than was received.
                let _ = stream.flow_control().release_capacity(data.len());
                Some(Ok(Frame::data(data)))
            }
            // It has answered, and wants no more of the request (RFC 9113, 8.1).
            Some(Err(error))
                if error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR) =>
            {
                None
            }
            Some(Err(error)) => Some(Err(error.into())),
            None => match ready!(stream.poll_trailers(cx)) {
                Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                Err(error) => Some(Err(error.into())),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(incoming) => incoming.is_end_stream(),
            Self::H2c(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(incoming) => incoming.size_hint(),
            Self::H2c(stream) if stream.is_end_stream() => SizeHint::with_exact(0),
            Self::H2c(_) => SizeHint::default(),
        }
    }
}

/// The body of an App's response.
pub(crate) struct Download {
    incoming: AppBody,
    line: Option<Line>,
    /// Taken when the request ends.
    exchange: Option<Box<Exchange>>,
}

impl Download {
    pub(crate) fn new(incoming: AppBody, line: Option<Line>, exchange: Box<Exchange>) -> Self {
        Self { incoming, line, exchange: Some(exchange) }
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(exchange) = self.exchange.take() {
            exchange.end(outcome, self.line.take());
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match &mut *self {
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::App(download) => download.poll_frame(cx),
            Self::File(file) => {
                let data = ready!(file.poll_data(cx));
                Poll::Ready(data.map(|data| data.map(Frame::data).map_err(Broken::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_none(),
            Self::App(download) => download.incoming.is_end_stream(),
            Self::File(file) => file.left() == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::App(download) => download.incoming.size_hint(),
            Self::File(file) => SizeHint::with_exact(file.left()),
        }
    }
}

impl Download {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let incoming = &mut self.incoming;
        let frame = ready!(match &mut self.line {
            Some(line) => line.poll_for(cx, |cx| incoming.poll_frame(cx)),
            None => incoming.poll_frame(cx),
        });
        match &frame {
            None => self.end(Outcome::Completed),
            Some(Ok(frame)) => {
                if let (Some(exchange), Some(data)) = (&mut self.exchange, frame.data_ref()) {
                    exchange.passed(data.remaining());
                }
                if frame.is_trailers() {
                    self.end(Outcome::Completed);
                }
            }
            Some(Err(_)) => {
                let upload = self.exchange.as_ref().and_then(|exchange| exchange.upload());
                self.end(match upload {
                    Some(upload) if upload.client_failed() => Outcome::ClientAborted,
                    Some(upload) if upload.too_large() => Outcome::Failed(FailReason::BodyTooLarge),
                    _ => Outcome::Failed(FailReason::BrokenResponse),
                });
            }
        }
        Poll::Ready(frame)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // hyper does not ask again for a body that says it has ended.
        if self.incoming.is_end_stream() {
            self.end(Outcome::Completed);
        }
    }
}
