//! Streams: server-sent events, checked for their announced number, and WebSocket echoes.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::clients::{Stop, Wrong};
use super::recorder::Recorder;
use super::report::FailureKind;
use super::{Plan, Role};

/// So many echoes, one each so often, then a clean close: a drain can wait for it.
const ECHOES: usize = 10;
const ECHO_EVERY: Duration = Duration::from_millis(100);

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

pub(super) fn check_events(body: &[u8], expected: usize) -> Result<(), Wrong> {
    let text = String::from_utf8_lossy(body);
    let found = text.lines().filter(|line| line.starts_with("data:")).count();
    if found == expected {
        return Ok(());
    }
    Err((FailureKind::Body, format!("{found} of {expected} events came")))
}

/// Upgrades, echoes, closes. Each echo is recorded as a request.
pub(super) async fn websocket(plan: &Plan, recorder: &Recorder, stop: &Stop) -> Result<(), Wrong> {
    recorder.sending();
    let due = Instant::now();
    let opened = limited(plan, open(plan)).await;
    let (mut stream, version) = opened?;
    recorder.succeeded(Role::WebSocket, due, &version);
    let mut pace = stop.clone();
    for number in 0..ECHOES {
        pace.sleep_until(Instant::now() + ECHO_EVERY).await;
        recorder.sending();
        let due = Instant::now();
        let message = format!("message {number}");
        limited(plan, echo(&mut stream, &message)).await?;
        recorder.succeeded(Role::WebSocket, due, &version);
    }
    recorder.sending();
    let due = Instant::now();
    limited(plan, close(&mut stream)).await?;
    recorder.succeeded(Role::WebSocket, due, &version);
    Ok(())
}

async fn limited<T>(plan: &Plan, work: impl Future<Output = Result<T, Wrong>>) -> Result<T, Wrong> {
    let late = |_| (FailureKind::Timeout, format!("no answer within {:?}", plan.timeout));
    timeout(plan.timeout, work).await.map_err(late)?
}

async fn open(plan: &Plan) -> Result<(BufStream<TcpStream>, String), Wrong> {
    let stream = TcpStream::connect(plan.address).await;
    let stream = stream.map_err(|error| (FailureKind::Connect, error.to_string()))?;
    let mut stream = BufStream::new(stream);
    // The key of RFC 6455's example: what counts here is the tunnel, not the handshake.
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        plan.websocket_path, plan.host
    );
    send(&mut stream, request.as_bytes()).await?;

    let status_line = line(&mut stream).await?;
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status: u16 =
        status.ok_or_else(|| (FailureKind::Protocol, format!("it answered {status_line:?}")))?;
    let mut version = "?".to_owned();
    let mut accepted = false;
    loop {
        let line = line(&mut stream).await?;
        let Some((name, value)) = line.split_once(':') else { break };
        if name.eq_ignore_ascii_case(&plan.version_header) {
            value.trim().clone_into(&mut version);
        }
        accepted |= name.eq_ignore_ascii_case("sec-websocket-accept")
            && value.trim() == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    }
    match status {
        101 if accepted => Ok((stream, version)),
        101 => Err((FailureKind::Protocol, "the handshake was not accepted rightly".to_owned())),
        _ => Err((FailureKind::Status(status), status_line)),
    }
}

async fn echo(stream: &mut BufStream<TcpStream>, message: &str) -> Result<(), Wrong> {
    send(stream, &masked(TEXT, message.as_bytes())).await?;
    let (head, answer) = frame(stream).await?;
    match head {
        TEXT if answer == message.as_bytes() => Ok(()),
        CLOSE => Err((FailureKind::Closed, "the server closed the WebSocket".to_owned())),
        _ => Err((FailureKind::Body, format!("{message:?} came back as {answer:?}"))),
    }
}

async fn close(stream: &mut BufStream<TcpStream>) -> Result<(), Wrong> {
    send(stream, &masked(CLOSE, &1000_u16.to_be_bytes())).await?;
    match frame(stream).await? {
        (CLOSE, _) => Ok(()),
        (head, _) => Err((FailureKind::Protocol, format!("a close was answered by {head:#x}"))),
    }
}

/// A short frame with the mask a client has to use; the mask is constant.
fn masked(head: u8, message: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let length = u8::try_from(message.len()).expect("messages here are short");
    let mut frame = vec![head, 0x80 | length];
    frame.extend(mask);
    frame.extend(message.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

async fn frame(stream: &mut BufStream<TcpStream>) -> Result<(u8, Vec<u8>), Wrong> {
    let closed = |error: std::io::Error| (FailureKind::Closed, format!("mid-echo: {error}"));
    let mut head = [0; 2];
    stream.read_exact(&mut head).await.map_err(closed)?;
    if head[1] > 125 {
        return Err((FailureKind::Protocol, format!("a frame of length byte {}", head[1])));
    }
    let mut message = vec![0; usize::from(head[1])];
    stream.read_exact(&mut message).await.map_err(closed)?;
    Ok((head[0], message))
}

async fn send(stream: &mut BufStream<TcpStream>, bytes: &[u8]) -> Result<(), Wrong> {
    let closed = |error: std::io::Error| (FailureKind::Closed, error.to_string());
    stream.write_all(bytes).await.map_err(closed)?;
    stream.flush().await.map_err(closed)
}

async fn line(stream: &mut BufStream<TcpStream>) -> Result<String, Wrong> {
    let mut line = String::new();
    let read = stream.read_line(&mut line).await;
    match read {
        Ok(0) => Err((FailureKind::Closed, "within the head of the answer".to_owned())),
        Ok(_) => Ok(line.trim_end().to_owned()),
        Err(error) => Err((FailureKind::Closed, error.to_string())),
    }
}
