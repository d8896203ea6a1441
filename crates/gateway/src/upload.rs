//! The request body on its way from the client to the App.
//!
//! Promises: passed on frame by frame as the App takes it; cut at the size limit; and whoever
//! watches learns whether it ended, how large it was and whether it failed on the client's
//! side, which the error of the App's connection does not tell.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// What a watch begins with is 0: the body goes on.
const ENDED: u8 = 1;
const CLIENT_FAILED: u8 = 2;
const TOO_LARGE: u8 = 3;

/// What became of a request body.
#[derive(Debug, Default)]
pub(crate) struct UploadWatch {
    state: AtomicU8,
    bytes: AtomicU64,
}

impl UploadWatch {
    pub(crate) fn ended(&self) -> bool {
        self.state.load(Relaxed) == ENDED
    }

    pub(crate) fn client_failed(&self) -> bool {
        self.state.load(Relaxed) == CLIENT_FAILED
    }

    pub(crate) fn too_large(&self) -> bool {
        self.state.load(Relaxed) == TOO_LARGE
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

/// A request body.
pub(crate) struct Upload {
    incoming: Incoming,
    /// `None` for a request without body.
    watch: Option<Arc<UploadWatch>>,
    limit: u64,
}

/// Why a body was cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("request body broke off")]
    Client(#[source] hyper::Error),
    #[error("request body is larger than {0} bytes")]
    TooLarge(u64),
}

impl Upload {
    /// The body `incoming`, of at most `limit` bytes.
    pub(crate) fn new(incoming: Incoming, limit: Option<u64>) -> Self {
        let watch = (!incoming.is_end_stream()).then(Arc::default);
        Self { incoming, watch, limit: limit.unwrap_or(u64::MAX) }
    }

    /// Its watch, `None` when there is no body.
    pub(crate) fn watch(&self) -> Option<Arc<UploadWatch>> {
        self.watch.clone()
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let Some(watch) = &self.watch else {
            return Poll::Ready(frame.map(|frame| frame.map_err(UploadError::Client)));
        };
        Poll::Ready(match frame {
            None => {
                watch.state.store(ENDED, Relaxed);
                None
            }
            Some(Err(error)) => {
                watch.state.store(CLIENT_FAILED, Relaxed);
                Some(Err(UploadError::Client(error)))
            }
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Buf::remaining) as u64;
                let bytes = watch.bytes.fetch_add(length, Relaxed) + length;
                if bytes > self.limit {
                    watch.state.store(TOO_LARGE, Relaxed);
                    return Poll::Ready(Some(Err(UploadError::TooLarge(self.limit))));
                }
                if self.incoming.is_end_stream() || frame.is_trailers() {
                    watch.state.store(ENDED, Relaxed);
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
