//! Waiting for an answer, as closely as a client can.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Between two attempts. Short against everything measured here.
const AGAIN: Duration = Duration::from_micros(200);

/// Longer than any contestant takes for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// `X-Version`.
    pub(crate) version: String,
    /// `X-Started`: differs from process to process; empty where the App does not say it.
    pub(crate) started: String,
}

/// Asks until an answer is as wanted; every attempt on a connection of its own.
///
/// # Errors
/// When none is within [`PATIENCE`].
pub(crate) fn wait_until(
    address: SocketAddr,
    host: &str,
    wanted: impl Fn(&Answer) -> bool,
) -> anyhow::Result<Answer> {
    let deadline = Instant::now() + PATIENCE;
    let mut seen = None;
    while Instant::now() < deadline {
        match ask(address, host) {
            Some(answer) if wanted(&answer) => return Ok(answer),
            answer => seen = answer.or(seen),
        }
        thread::sleep(AGAIN);
    }
    bail!("the wanted answer did not come from {address} in time; last seen: {seen:?}")
}

/// Asks until `version` answers.
///
/// # Errors
/// When it does not within [`PATIENCE`].
pub(crate) fn wait_for(address: SocketAddr, host: &str, version: &str) -> anyhow::Result<Answer> {
    wait_until(address, host, |answer| answer.version == version)
}

/// Asks until `path` is answered with 200, whoever answers. False: not within [`PATIENCE`].
pub(crate) fn wait_for_ok(address: SocketAddr, host: &str, path: &str) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if get(address, host, path).is_some() {
            return true;
        }
        thread::sleep(AGAIN);
    }
    false
}

/// Who answers, if somebody does with 200.
fn ask(address: SocketAddr, host: &str) -> Option<Answer> {
    let answer = get(address, host, "/")?;
    let header = |wanted: &str| {
        answer.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case(wanted).then(|| value.to_owned())
        })
    };
    Some(Answer { version: header("x-version")?, started: header("x-started").unwrap_or_default() })
}

/// The answer, if there is one with 200.
fn get(address: SocketAddr, host: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}

/// How long `work` takes, in milliseconds.
pub(crate) fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}
