//! A layer's way from a stream of bytes to a folder: hash, decompress, hash, unpack.
//!
//! Promises: memory stays bounded; the folder is good only if `Ok` is returned, after both
//! digests and the size were found right. Does not know where the bytes come from, nor where
//! layers are kept. Two threads: inflating takes about as long as making the files.

use std::cell::RefCell;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};
use stead_core::ids::Digest;

use super::error::LayerError;
use super::unpack::{self, Limits, Summary};

/// Size of the chunks handed from the decoder to the unpacker, bytes, and how many may wait.
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 8;

/// What a layer's bytes must turn out to be.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// Digest and size of the bytes as stored, where the image's manifest names them.
    pub(super) blob: Option<(Digest, u64)>,
    /// Digest of the decompressed archive.
    pub(super) diff_id: Digest,
}

/// Unpacks the layer read from `input` into `folder`, empty; see [`unpack::unpack`]. `room` is
/// asked before so many bytes more are written. Blocks: call it where blocking is allowed.
pub(super) fn unpack_layer(
    input: impl Read + Send,
    expected: &Expected,
    folder: &Path,
    trash: &Path,
    limits: &Limits,
    room: impl FnMut(u64) -> Result<(), LayerError> + Send,
) -> Result<Summary, LayerError> {
    let (sender, receiver) = sync_channel(CHUNKS);
    thread::scope(|scope| {
        let decoder =
            scope.spawn(move || decode(input, expected.blob.as_ref(), limits, room, &sender));
        let unpacked = unpack_stream(Chunks::new(receiver), expected, folder, trash, limits);
        let decoded = decoder.join().expect("the decoder does not panic");
        // A decoder that stopped early starves the unpacker, and the other way round; what
        // stopped first is the cause.
        match decoded {
            Err(Stop::Failed(cause)) => Err(cause),
            Ok(()) | Err(Stop::NoListener) => unpacked,
        }
    })
}

fn unpack_stream(
    mut chunks: Chunks,
    expected: &Expected,
    folder: &Path,
    trash: &Path,
    limits: &Limits,
) -> Result<Summary, LayerError> {
    let unpacked = unpack::unpack(&mut chunks, folder, trash, limits);
    if matches!(unpacked, Ok(_) | Err(LayerError::Damaged(_))) {
        // What looks damaged may be the wrong bytes altogether: the decoder has the digest,
        // if it may read to the end.
        io::copy(&mut chunks, &mut io::sink())?;
    }
    let summary = unpacked?;
    let got = Digest::from_sha256(chunks.hash.finalize().into());
    if got != expected.diff_id {
        return Err(LayerError::Digest { expected: expected.diff_id.clone(), got });
    }
    Ok(summary)
}

/// Why the decoder stopped before the end.
enum Stop {
    Failed(LayerError),
    /// The unpacker gave up.
    NoListener,
}

impl From<LayerError> for Stop {
    fn from(error: LayerError) -> Self {
        Self::Failed(error)
    }
}

fn decode(
    input: impl Read,
    blob: Option<&(Digest, u64)>,
    limits: &Limits,
    room: impl FnMut(u64) -> Result<(), LayerError>,
    sender: &SyncSender<Vec<u8>>,
) -> Result<(), Stop> {
    let tally = RefCell::new(Tally::default());
    let mut stored =
        Counted { input, tally: &tally, limit: blob.map_or(u64::MAX, |(_, size)| *size) };
    match decompress(&mut stored, &tally, limits, room, sender) {
        Ok(()) => {}
        Err(Stop::Failed(error @ LayerError::Damaged(_))) => {
            // Wrong bytes make a decoder stumble; that they are wrong is the better news.
            io::copy(&mut stored, &mut io::sink()).map_err(|e| tally.borrow_mut().cause(e))?;
            tally.take().check(blob)?;
            return Err(error.into());
        }
        Err(stop) => return Err(stop),
    }
    io::copy(&mut stored, &mut io::sink()).map_err(|e| tally.borrow_mut().cause(e))?;
    tally.take().check(blob)?;
    // An empty chunk says that the end was reached, and everything was right.
    sender.send(Vec::new()).map_err(|_| Stop::NoListener)
}

fn decompress<R: Read>(
    stored: &mut Counted<'_, R>,
    tally: &RefCell<Tally>,
    limits: &Limits,
    mut room: impl FnMut(u64) -> Result<(), LayerError>,
    sender: &SyncSender<Vec<u8>>,
) -> Result<(), Stop> {
    let cause = |error| tally.borrow_mut().cause(error);
    let mut magic = Vec::with_capacity(4);
    stored.by_ref().take(4).read_to_end(&mut magic).map_err(cause)?;
    let coding = Coding::of(&magic);
    let stored = BufReader::with_capacity(64 << 10, magic.as_slice().chain(stored));
    let mut decoder: Box<dyn Read + '_> = match coding {
        Coding::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
        Coding::Zstd => Box::new(zstd::Decoder::with_buffer(stored).map_err(cause)?),
        Coding::Plain => Box::new(stored),
    };
    let mut total: u64 = 0;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        let got = decoder.by_ref().take(CHUNK as u64).read_to_end(&mut chunk).map_err(cause)?;
        if got == 0 {
            return Ok(());
        }
        total += got as u64;
        if total > limits.bytes {
            let reason = format!("more than {} bytes decompressed", limits.bytes);
            return Err(LayerError::TooLarge(reason).into());
        }
        if total > limits.ratio_from && total / limits.ratio > tally.borrow().bytes {
            let reason = format!("it grows to more than {} times its size", limits.ratio);
            return Err(LayerError::TooLarge(reason).into());
        }
        room(got as u64)?;
        sender.send(chunk).map_err(|_| Stop::NoListener)?;
    }
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Plain,
    Gzip,
    Zstd,
}

impl Coding {
    /// Looked at rather than believed: media types are wrong often enough.
    pub(super) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// What was read so far, and what was wrong with it.
#[derive(Default)]
struct Tally {
    hash: Sha256,
    bytes: u64,
    failure: Option<LayerError>,
}

impl Tally {
    /// What an error that came through the decoder really is.
    fn cause(&mut self, error: io::Error) -> LayerError {
        match self.failure.take() {
            Some(failure) => failure,
            None => LayerError::Damaged(format!("decompression failed: {error}")),
        }
    }

    fn check(self, blob: Option<&(Digest, u64)>) -> Result<(), LayerError> {
        let Some((digest, size)) = blob else { return Ok(()) };
        if self.bytes != *size {
            return Err(LayerError::Size { expected: *size, got: self.bytes });
        }
        let got = Digest::from_sha256(self.hash.finalize().into());
        if got != *digest {
            return Err(LayerError::Digest { expected: digest.clone(), got });
        }
        Ok(())
    }
}

/// Counts and hashes what is read, up to the size announced.
struct Counted<'a, R> {
    input: R,
    tally: &'a RefCell<Tally>,
    limit: u64,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut tally = self.tally.borrow_mut();
        match self.input.read(buffer) {
            Ok(got) => {
                tally.bytes += got as u64;
                tally.hash.update(&buffer[..got]);
                if tally.bytes > self.limit {
                    let (expected, got) = (self.limit, tally.bytes);
                    tally.failure = Some(LayerError::Size { expected, got });
                    return Err(io::Error::other("longer than announced"));
                }
                Ok(got)
            }
            Err(error) => {
                let kind = error.kind();
                if kind != io::ErrorKind::Interrupted {
                    tally.failure = Some(error.into());
                }
                Err(kind.into())
            }
        }
    }
}

/// The decoder's chunks as a stream, hashed.
struct Chunks {
    receiver: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    used: usize,
    ended: bool,
    hash: Sha256,
}

impl Chunks {
    fn new(receiver: Receiver<Vec<u8>>) -> Self {
        Self { receiver, chunk: Vec::new(), used: 0, ended: false, hash: Sha256::new() }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.chunk.len() && !self.ended {
            self.used = 0;
            // A decoder that goes away without the empty chunk has failed, and says why itself.
            self.chunk = self.receiver.recv().map_err(|_| io::Error::other("decoder stopped"))?;
            self.ended = self.chunk.is_empty();
            self.hash.update(&self.chunk);
        }
        let got = buffer.len().min(self.chunk.len() - self.used);
        buffer[..got].copy_from_slice(&self.chunk[self.used..self.used + got]);
        self.used += got;
        Ok(got)
    }
}
