//! The bytes of a file on their way to a client.
//!
//! Promises: at most two chunks of a file are held, the one being sent and the one read
//! meanwhile; the disk is never waited for on the event loop.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::exchange::Exchange;
use crate::ledger::Outcome;
use stead_core::routes::FailReason;

/// Bytes that are read at once.
const CHUNK: u64 = 128 << 10;

/// A part of a file, or all of it.
pub(crate) struct FileBody {
    source: Source,
    /// Taken when the request ends.
    exchange: Option<Box<Exchange>>,
}

enum Source {
    Memory(Option<Bytes>),
    Disk { file: Arc<File>, at: u64, left: u64, reading: Option<JoinHandle<io::Result<Bytes>>> },
}

impl FileBody {
    /// Bytes that are in memory. None of them: the response has no body.
    pub(super) fn memory(bytes: Bytes, mut exchange: Box<Exchange>) -> Self {
        let source = Source::Memory(Some(bytes).filter(|bytes| !bytes.is_empty()));
        if let Source::Memory(Some(bytes)) = &source {
            // They go out in one piece, after which nobody asks again.
            exchange.passed(bytes.len());
        }
        Self { source, exchange: Some(exchange) }
    }

    /// `part` of `file`.
    pub(super) fn disk(
        file: Arc<File>,
        part: RangeInclusive<u64>,
        exchange: Box<Exchange>,
    ) -> Self {
        let (at, left) = (*part.start(), part.end() - part.start() + 1);
        let source = Source::Disk { file, at, left, reading: None };
        Self { source, exchange: Some(exchange) }
    }

    /// Bytes that are still to come.
    pub(crate) fn left(&self) -> u64 {
        match &self.source {
            Source::Memory(bytes) => bytes.as_ref().map_or(0, Bytes::len) as u64,
            Source::Disk { left, .. } => *left,
        }
    }

    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let data = match &mut self.source {
            Source::Memory(bytes) => bytes.take().map(Ok),
            Source::Disk { left: 0, .. } => None,
            Source::Disk { file, at, left, reading } => {
                let first = reading.get_or_insert_with(|| read(file, *at, *left));
                let read_now = ready!(Pin::new(first).poll(cx));
                *reading = None;
                let data = read_now.map_err(io::Error::other).and_then(|read| read);
                if let (Ok(data), Some(exchange)) = (&data, &mut self.exchange) {
                    exchange.passed(data.len());
                    *at += data.len() as u64;
                    *left -= data.len() as u64;
                    if *left > 0 {
                        *reading = Some(read(file, *at, *left));
                    }
                }
                Some(data)
            }
        };
        match &data {
            None => self.end(Outcome::Completed),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::error!(%error, "file of a site broke off");
                self.end(Outcome::Failed(FailReason::SiteBroken));
            }
        }
        Poll::Ready(data)
    }

    fn end(&mut self, outcome: Outcome) {
        if let Some(exchange) = self.exchange.take() {
            exchange.end(outcome, None);
        }
    }
}

/// Reads the next chunk of a file that has `left` bytes from `at` on.
fn read(file: &Arc<File>, at: u64, left: u64) -> JoinHandle<io::Result<Bytes>> {
    let file = file.clone();
    tokio::task::spawn_blocking(move || {
        let mut chunk = vec![0; usize::try_from(left.min(CHUNK)).expect("a chunk fits memory")];
        file.read_exact_at(&mut chunk, at)?;
        Ok(chunk.into())
    })
}

impl Drop for FileBody {
    fn drop(&mut self) {
        // hyper does not ask again for a body that says it has ended.
        if self.left() == 0 {
            self.end(Outcome::Completed);
        }
    }
}
