//! The request body on its way from the client to the App.
//!
//! Promises: passed on frame by frame as the App takes it; cut at the size limit; and whoever
//! watches learns whether it ended, how large it was and whether it failed on the client's
//! side, which the error of the App's connection does not tell. One whose beginning is kept can
//! be passed on again, to a Backend that takes it.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    source: Source,
    /// `None` for a request without body.
    watch: Option<Arc<UploadWatch>>,
    limit: u64,
}

enum Source {
    Nothing,
    Client(Incoming),
    Kept(Reader),
}

/// Why a body was cut.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("request body broke off")]
    Client(#[source] hyper::Error),
    #[error("request body is larger than {0} bytes")]
    TooLarge(u64),
    #[error("request body is read by another")]
    TakenBack,
}

impl Upload {
    /// The body `incoming`, of at most `limit` bytes.
    pub(crate) fn new(incoming: Incoming, limit: Option<u64>) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        if incoming.is_end_stream() {
            return Self { source: Source::Nothing, watch: None, limit };
        }
        Self { source: Source::Client(incoming), watch: Some(Arc::default()), limit }
    }

    /// Its watch, `None` when there is no body.
    pub(crate) fn watch(&self) -> Option<Arc<UploadWatch>> {
        self.watch.clone()
    }

    /// Keeps the beginning of what is passed on from now on, so that it can be passed on again.
    pub(crate) fn keep(&mut self) -> Keeper {
        let kept = match std::mem::replace(&mut self.source, Source::Nothing) {
            Source::Nothing => None,
            Source::Client(incoming) => {
                let frames = Vec::new();
                let kept = Kept { incoming, frames, at: 0, bytes: 0, keeping: true, reader: 0 };
                let kept = Arc::new(Mutex::new(kept));
                self.source = Source::Kept(Reader { kept: kept.clone(), number: 0 });
                Some(kept)
            }
            Source::Kept(reader) => {
                let kept = reader.kept.clone();
                self.source = Source::Kept(reader);
                Some(kept)
            }
        };
        Keeper { kept, watch: self.watch.clone(), limit: self.limit }
    }
}

/// Bytes of a body that are kept for another try.
const KEPT: usize = 64 << 10;

/// A body of which what was read is kept, as long as that is not too much.
struct Kept {
    incoming: Incoming,
    frames: Vec<Frame<Bytes>>,
    /// How many of them the reader has read.
    at: usize,
    bytes: usize,
    /// All that was read is in `frames`, and will be.
    keeping: bool,
    /// Who reads now.
    reader: u32,
}

/// One who reads a kept body, from its beginning.
struct Reader {
    kept: Arc<Mutex<Kept>>,
    number: u32,
}

/// Gives a body again that was not taken.
pub(crate) struct Keeper {
    kept: Option<Arc<Mutex<Kept>>>,
    watch: Option<Arc<UploadWatch>>,
    limit: u64,
}

impl Keeper {
    /// The same body from its beginning; who has it now reads no more. `None` when more of it
    /// was read than is kept.
    pub(crate) fn again(self) -> Option<Upload> {
        let source = match self.kept {
            None => Source::Nothing,
            Some(kept) => {
                let number = {
                    let mut kept = lock(&kept);
                    if !kept.keeping {
                        return None;
                    }
                    kept.at = 0;
                    kept.reader += 1;
                    kept.reader
                };
                Source::Kept(Reader { kept, number })
            }
        };
        Some(Upload { source, watch: self.watch, limit: self.limit })
    }

    /// Nobody will ask for it again.
    pub(crate) fn release(self) {
        if let Some(kept) = self.kept {
            lock(&kept).keep_no_more();
        }
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, UploadError>>>;

impl Kept {
    fn poll_frame(&mut self, cx: &mut Context<'_>, watch: &UploadWatch, limit: u64) -> Polled {
        if let Some(frame) = self.frames.get(self.at) {
            let frame = copy(frame);
            self.at += 1;
            if !self.keeping {
                self.keep_no_more();
            }
            return Poll::Ready(frame.map(Ok));
        }
        let polled = watch.poll(&mut self.incoming, cx, limit);
        if self.keeping
            && let Poll::Ready(Some(Ok(frame))) = &polled
        {
            self.bytes += frame.data_ref().map_or(0, Buf::remaining);
            match copy(frame).filter(|_| self.bytes <= KEPT) {
                Some(copied) => {
                    self.frames.push(copied);
                    self.at += 1;
                }
                None => self.keep_no_more(),
            }
        }
        polled
    }

    /// Drops what was read.
    fn keep_no_more(&mut self) {
        self.keeping = false;
        self.frames.drain(..std::mem::take(&mut self.at));
    }

    fn unread(&self) -> u64 {
        let unread = self.frames.iter().skip(self.at).filter_map(|frame| frame.data_ref());
        unread.map(|data| data.len() as u64).sum()
    }
}

impl Reader {
    fn poll_frame(&mut self, cx: &mut Context<'_>, watch: &UploadWatch, limit: u64) -> Polled {
        let mut kept = lock(&self.kept);
        if kept.reader != self.number {
            return Poll::Ready(Some(Err(UploadError::TakenBack)));
        }
        kept.poll_frame(cx, watch, limit)
    }

    fn is_end_stream(&self) -> bool {
        let kept = lock(&self.kept);
        kept.at == kept.frames.len() && kept.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let kept = lock(&self.kept);
        let (rest, unread) = (kept.incoming.size_hint(), kept.unread());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(unread));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(unread));
        }
        hint
    }
}

fn copy(frame: &Frame<Bytes>) -> Option<Frame<Bytes>> {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => Some(Frame::data(data.clone())),
        (_, Some(trailers)) => Some(Frame::trailers(trailers.clone())),
        _ => None,
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

impl UploadWatch {
    /// The next frame of `incoming`, watched.
    fn poll(&self, incoming: &mut Incoming, cx: &mut Context<'_>, limit: u64) -> Polled {
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        Poll::Ready(match frame {
            None => {
                self.state.store(ENDED, Relaxed);
                None
            }
            Some(Err(error)) => {
                self.state.store(CLIENT_FAILED, Relaxed);
                Some(Err(UploadError::Client(error)))
            }
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Buf::remaining) as u64;
                let bytes = self.bytes.fetch_add(length, Relaxed) + length;
                if bytes > limit {
                    self.state.store(TOO_LARGE, Relaxed);
                    return Poll::Ready(Some(Err(UploadError::TooLarge(limit))));
                }
                if incoming.is_end_stream() || frame.is_trailers() {
                    self.state.store(ENDED, Relaxed);
                }
                Some(Ok(frame))
            }
        })
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let Self { source, watch, limit } = &mut *self;
        let Some(watch) = watch else { return Poll::Ready(None) };
        match source {
            Source::Nothing => Poll::Ready(None),
            Source::Client(incoming) => watch.poll(incoming, cx, *limit),
            Source::Kept(reader) => reader.poll_frame(cx, watch, *limit),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Nothing => true,
            Source::Client(incoming) => incoming.is_end_stream(),
            Source::Kept(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Nothing => SizeHint::with_exact(0),
            Source::Client(incoming) => incoming.size_hint(),
            Source::Kept(reader) => reader.size_hint(),
        }
    }
}
