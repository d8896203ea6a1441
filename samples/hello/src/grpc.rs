//! gRPC over HTTP/2 without TLS (RFC 9113, and gRPC's own framing): enough for a polite client
//! such as a gateway or a load generator.
//!
//! Header blocks of requests are skipped, not decoded, so what is wanted stands in the request's
//! first message: `stream COUNT EVERY_MS` is answered by so many messages, any other message by
//! itself. A request without a body is no gRPC, and gets a page. Answers are small, so the
//! client's flow control windows are taken to be large enough.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What follows `PRI * HTTP/2.0` and an empty line in a client's preface.
const REST_OF_PREFACE: &[u8] = b"SM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS.
const END_STREAM: u8 = 1;
/// Of SETTINGS and PING.
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// `:status 200` in HPACK's static table (RFC 7541, appendix A).
const STATUS_200: u8 = 0x88;

/// A frame's type, flags, stream and payload.
type Frame = (u8, u8, u32, Vec<u8>);

/// The sending half, shared by the streams.
struct Sender {
    stream: TcpStream,
    /// Streams that the client gave up.
    gone: Mutex<BTreeSet<u32>>,
    writing: Mutex<()>,
    version: String,
}

/// Serves a connection whose `PRI * HTTP/2.0` was read already.
///
/// # Errors
/// When the connection breaks.
pub(crate) fn serve(mut reader: impl BufRead, stream: &TcpStream, version: &str) -> io::Result<()> {
    let mut rest = [0; REST_OF_PREFACE.len()];
    reader.read_exact(&mut rest)?;
    if rest != REST_OF_PREFACE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not an HTTP/2 preface"));
    }
    let sender = Arc::new(Sender {
        stream: stream.try_clone()?,
        gone: Mutex::default(),
        writing: Mutex::default(),
        version: version.to_owned(),
    });
    sender.frame(SETTINGS, 0, 0, &[])?;
    // Bodies that are not whole yet.
    let mut bodies: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    let mut ends_with_headers = false;
    while let Some((kind, flags, stream, payload)) = read(&mut reader)? {
        let ended = match kind {
            SETTINGS if flags & ACK == 0 => {
                sender.frame(SETTINGS, ACK, 0, &[])?;
                false
            }
            PING if flags & ACK == 0 => {
                sender.frame(PING, ACK, 0, &payload)?;
                false
            }
            HEADERS => {
                bodies.insert(stream, Vec::new());
                ends_with_headers = flags & END_STREAM != 0;
                ends_with_headers && flags & END_HEADERS != 0
            }
            CONTINUATION => ends_with_headers && flags & END_HEADERS != 0,
            DATA => {
                // As much room again as was taken.
                if let Ok(size @ 1..) = u32::try_from(payload.len()) {
                    sender.frame(WINDOW_UPDATE, 0, 0, &size.to_be_bytes())?;
                    sender.frame(WINDOW_UPDATE, 0, stream, &size.to_be_bytes())?;
                }
                if let Some(body) = bodies.get_mut(&stream) {
                    body.extend(without_padding(flags, &payload));
                }
                flags & END_STREAM != 0
            }
            RST_STREAM => {
                bodies.remove(&stream);
                sender.gone.lock().unwrap_or_else(PoisonError::into_inner).insert(stream);
                false
            }
            _ => false,
        };
        if ended && let Some(body) = bodies.remove(&stream) {
            let sender = Arc::clone(&sender);
            // A client that leaves is its own affair.
            let _ = thread::Builder::new().stack_size(128 << 10).spawn(move || {
                let _ = sender.answer(stream, &body);
            });
        }
    }
    Ok(())
}

impl Sender {
    fn answer(&self, stream: u32, body: &[u8]) -> io::Result<()> {
        if body.is_empty() {
            self.headers(stream, 0, &[STATUS_200], &[("x-version", &self.version)])?;
            let page = format!("hello from {}\n", self.version);
            return self.frame(DATA, END_STREAM, stream, page.as_bytes());
        }
        let kind = ("content-type", "application/grpc");
        self.headers(stream, 0, &[STATUS_200], &[kind, ("x-version", &self.version)])?;
        // A message: not compressed (1 byte), its length (4), itself.
        let message = body.get(5..).unwrap_or_default();
        let text = String::from_utf8_lossy(message);
        let mut words = text.split(' ');
        if words.next() == Some("stream") {
            let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            let (count, every) = (number(), Duration::from_millis(number()));
            for sent in 0..count {
                if sent > 0 {
                    thread::sleep(every);
                }
                if self.gone.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream) {
                    return Ok(());
                }
                self.message(stream, self.version.as_bytes())?;
            }
        } else {
            self.message(stream, message)?;
        }
        self.headers(stream, END_STREAM, &[], &[("grpc-status", "0")])
    }

    fn message(&self, stream: u32, message: &[u8]) -> io::Result<()> {
        let length = u32::try_from(message.len()).map_err(io::Error::other)?;
        let data = [&[0], &length.to_be_bytes()[..], message].concat();
        self.frame(DATA, 0, stream, &data)
    }

    fn headers(
        &self,
        stream: u32,
        flags: u8,
        block: &[u8],
        fields: &[(&str, &str)],
    ) -> io::Result<()> {
        let mut block = block.to_vec();
        for (name, value) in fields {
            // Literal, not indexed, with a new name (RFC 7541, section 6.2.2).
            block.push(0);
            for text in [name, value] {
                // Under 127 the length is one byte.
                block.push(u8::try_from(text.len()).map_err(io::Error::other)?);
                block.extend(text.as_bytes());
            }
        }
        self.frame(HEADERS, flags | END_HEADERS, stream, &block)
    }

    fn frame(&self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
        let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.stream).write_all(&[&head, payload].concat())
    }
}

/// The next frame, or `None` at the end of the connection.
fn read(reader: &mut impl BufRead) -> io::Result<Option<Frame>> {
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut head = [0; 9];
    reader.read_exact(&mut head)?;
    let [a, b, c, kind, flags, stream @ ..] = head;
    let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
    reader.read_exact(&mut payload)?;
    // The highest bit is reserved.
    Ok(Some((kind, flags, u32::from_be_bytes(stream) & 0x7fff_ffff, payload)))
}

fn without_padding(flags: u8, payload: &[u8]) -> &[u8] {
    match payload {
        [padding, data @ ..] if flags & PADDED != 0 => {
            &data[..data.len().saturating_sub(usize::from(*padding))]
        }
        _ => payload,
    }
}
