//! What a thread writes, as a stream of pieces.
//!
//! Promises: the writer waits while the reader is slower, so memory stays bounded; its error is
//! the last piece; it fails when nobody reads any more. Does not know what is written.

use std::io::{self, Write};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc::{self, Sender};

/// Bytes of one piece; the last one may have fewer.
const PIECE: usize = 256 << 10;
/// Pieces that may wait to be read.
const WAITING: usize = 4;

/// The bytes that `write` writes, on a thread where it may block. What it owns is dropped when
/// it ends.
pub fn stream(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let mut pieces = Pieces { sender, buffer: Vec::with_capacity(PIECE) };
        let written = write(&mut pieces).and_then(|()| pieces.flush());
        if let Err(error) = written {
            // Whoever reads may be gone, which is then the cause.
            let _ = pieces.sender.blocking_send(Err(error));
        }
    });
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
}

struct Pieces {
    sender: Sender<io::Result<Bytes>>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() == PIECE {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        let gone = |_| io::Error::from(io::ErrorKind::ConnectionAborted);
        self.sender.blocking_send(Ok(piece.into())).map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use futures_util::StreamExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn everything_arrives_in_pieces_and_the_error_comes_last() {
        let bytes: Vec<u8> = (0..=255).cycle().take(3 * PIECE + 7).collect();
        let sent = bytes.clone();
        let pieces = stream(move |out| {
            out.write_all(&sent)?;
            out.flush()?;
            Err(io::Error::other("the disk fails"))
        });
        let pieces: Vec<_> = pieces.collect().await;
        let (last, whole) = pieces.split_last().unwrap();
        assert_eq!(last.as_ref().unwrap_err().to_string(), "the disk fails");
        assert_eq!(whole.len(), 4);
        assert!(whole.iter().flat_map(|piece| piece.as_ref().unwrap()).eq(&bytes));
    }

    #[tokio::test]
    async fn a_writer_waits_for_its_reader_and_fails_without_one() {
        let written = Arc::new(AtomicUsize::new(0));
        let (count, (ended, end)) = (Arc::clone(&written), oneshot::channel());
        let mut pieces = Box::pin(stream(move |out| {
            let error = loop {
                match out.write_all(&[0; PIECE]) {
                    Ok(()) => count.fetch_add(1, Ordering::Relaxed),
                    Err(error) => break error,
                };
            };
            ended.send(error.kind()).expect("it is waited for");
            Err(error)
        }));
        assert_eq!(pieces.next().await.unwrap().unwrap().len(), PIECE);
        let began = Instant::now();
        while written.load(Ordering::Relaxed) < 1 + WAITING {
            assert!(began.elapsed() < Duration::from_secs(30), "it waits too early");
            tokio::task::yield_now().await;
        }
        drop(pieces);
        assert_eq!(end.await.unwrap(), io::ErrorKind::ConnectionAborted);
        assert_eq!(written.load(Ordering::Relaxed), 1 + WAITING);
    }
}
