//! gRPC calls as the sample service understands them: what it shall do stands in the message.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::HeaderMap;

use super::Role;
use super::clients::{Body, Wrong};
use super::report::FailureKind;

const ECHO: &[u8] = b"echo";
/// So many messages, one each so many milliseconds.
const STREAM: &[u8] = b"stream 10 100";
const MESSAGES: usize = 10;

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The body of a call.
pub(super) fn call(role: Role) -> Body {
    let message = if role == Role::RpcStream { STREAM } else { ECHO };
    let length = u32::try_from(message.len()).expect("messages here are short");
    let framed = [&[0], &length.to_be_bytes()[..], message].concat();
    Full::new(Bytes::from(framed)).boxed_unsync()
}

/// The status in trailers, or in headers of an answer without any message.
pub(super) fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Whether the call ended well and every message came.
pub(super) fn check(role: Role, status: Option<i32>, body: &[u8]) -> Result<(), Wrong> {
    match status {
        Some(0) => {}
        Some(status) => return Err((FailureKind::Rpc(status), format!("after {body:?}"))),
        None => return Err((FailureKind::Body, "it ended without a gRPC status".to_owned())),
    }
    let messages = messages(body);
    let whole = match role {
        Role::RpcStream => messages.as_ref().is_some_and(|messages| messages.len() == MESSAGES),
        _ => messages.as_ref().is_some_and(|messages| *messages == [ECHO]),
    };
    if whole { Ok(()) } else { Err((FailureKind::Body, format!("messages: {messages:?}"))) }
}

/// The messages of a body; `None` when it is cut.
fn messages(mut body: &[u8]) -> Option<Vec<&[u8]>> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let (prefix, rest) = body.split_first_chunk::<PREFIX>()?;
        let [_, length @ ..] = *prefix;
        let (message, rest) = rest.split_at_checked(u32::from_be_bytes(length) as usize)?;
        messages.push(message);
        body = rest;
    }
    Some(messages)
}
