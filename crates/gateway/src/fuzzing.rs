//! What must hold for any bytes that reach the gateway; see `stead_core::fuzzing` for who
//! calls it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::config::Limits;
use crate::wire::{Turn, Wire};

/// A target: its name, and what shall hold for any bytes.
pub type Target = (&'static str, fn(&[u8]));

/// The targets.
pub const TARGETS: &[Target] = &[("http1", http1)];

/// A request as far as its borders go: its method and its body.
type Message = (String, Vec<u8>);

/// Whatever is let through has the borders that a strict reader sees, however it is cut into
/// pieces: no request hides in another one's body.
fn http1(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("it needs no resources");
    let plain = strictly(bytes);
    for step in [bytes.len().max(1), 1 + bytes.len() % 61, 1] {
        let taken = runtime.block_on(through_the_wire(bytes, step));
        let same = plain.len() >= taken.len() && plain.iter().zip(&taken).all(|(a, b)| a == b);
        assert!(same, "in pieces of {step}:\nstrictly {plain:?}\ntaken {taken:?}");
    }
}

/// The messages that hyper takes behind a [`Wire`].
async fn through_the_wire(bytes: &[u8], step: usize) -> Vec<Message> {
    let turn = Arc::new(Turn::default());
    let taken = Arc::new(Mutex::new(Vec::new()));
    let limits = Limits::default();
    let client = Client { bytes: bytes.to_vec(), at: 0, step };
    let wire = Wire::http1(client, Bytes::new(), turn.clone(), &limits);
    let service = service_fn(|request: Request<Incoming>| {
        let (turn, taken) = (turn.clone(), taken.clone());
        async move {
            let method = request.method().to_string();
            if let Ok(body) = request.into_body().collect().await {
                let message = (method, body.to_bytes().to_vec());
                taken.lock().unwrap_or_else(PoisonError::into_inner).push(message);
            }
            // No request becomes a tunnel: what follows is judged as HTTP.
            turn.decide(false);
            let mut answer = Response::new(Empty::<Bytes>::new());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).max_buf_size(limits.head_bytes.max(8_192));
    // The client ends with its bytes: else hyper may drop the last request for that.
    builder.half_close(true);
    let _ = builder.serve_connection(TokioIo::new(wire), service).with_upgrades().await;
    std::mem::take(&mut *taken.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The messages that a reader finds who knows no leniency (RFC 9112), up to the first that is
/// not whole or could be read in two ways.
fn strictly(mut bytes: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    while let Some(message) = message(&mut bytes) {
        found.push(message);
    }
    found
}

fn message(bytes: &mut &[u8]) -> Option<Message> {
    let mut request = line(bytes)?;
    while request.is_empty() {
        request = line(bytes)?;
    }
    let method = String::from_utf8_lossy(request.split(|&b| b == b' ').next()?).into_owned();
    let (mut length, mut chunked) = (None, false);
    loop {
        let field = line(bytes)?;
        if field.is_empty() {
            break;
        }
        let colon = field.iter().position(|&b| b == b':')?;
        let (name, value) = (field[..colon].to_ascii_lowercase(), field[colon + 1..].trim_ascii());
        match name.as_slice() {
            b"content-length" => {
                let value = number(value, 10)?;
                if length.is_some_and(|before| before != value) {
                    return None;
                }
                length = Some(value);
            }
            b"transfer-encoding" => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return None;
                }
                chunked = true;
            }
            _ => {}
        }
    }
    let body = match (chunked, length) {
        (true, Some(_)) => return None,
        (true, None) if request.ends_with(b"HTTP/1.0") => return None,
        (true, None) => chunks(bytes)?,
        (false, length) => take(bytes, length.unwrap_or(0))?.to_vec(),
    };
    Some((method, body))
}

fn chunks(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let head = line(bytes)?;
        let digits = head.split(|b| !b.is_ascii_hexdigit()).next()?;
        match number(digits, 16)? {
            0 => break,
            size => body.extend_from_slice(take(bytes, size)?),
        }
        if !line(bytes)?.is_empty() {
            return None;
        }
    }
    while !line(bytes)?.is_empty() {}
    Some(body)
}

/// What stands before the next CR LF; a bare LF ends everything.
fn line<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = bytes.iter().position(|&b| b == b'\n')?;
    let line = bytes[..end].strip_suffix(b"\r")?;
    *bytes = &bytes[end + 1..];
    Some(line)
}

fn take<'a>(bytes: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    Some(taken)
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let all = !digits.is_empty() && digits.iter().all(|b| char::from(*b).is_digit(radix));
    if all { u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok() } else { None }
}

/// A client that sends its bytes in pieces of one size, ends, and reads nothing.
struct Client {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
}

impl AsyncRead for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let end = self.bytes.len().min(self.at + self.step.min(buf.remaining()));
        buf.put_slice(&self.bytes[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_target_holds_for_its_seeds() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
        for (name, target) in TARGETS {
            let mut fed = 0;
            for seed in fs::read_dir(seeds.join(name)).unwrap() {
                target(&fs::read(seed.unwrap().path()).unwrap());
                fed += 1;
            }
            assert!(fed > 0, "{name} has no seeds");
        }
    }

    #[tokio::test]
    async fn what_is_well_formed_is_taken_whole() {
        let text = b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na\nb\
            POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
            2;x=1\r\nhi\r\n0\r\nX: y\r\n\r\nGET /c HTTP/1.1\r\nHost: h\r\n\r\n";
        let expected = [("PUT", "a\nb"), ("POST", "hi"), ("GET", "")];
        let expected = expected.map(|(method, body)| (method.to_owned(), body.as_bytes().to_vec()));
        assert_eq!(strictly(text), expected);
        assert_eq!(through_the_wire(text, 7).await, expected);
    }
}
