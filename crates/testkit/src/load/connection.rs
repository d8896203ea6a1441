//! A connection of a client, in the protocol of its role.

use std::error::Error;

use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::clients::{Body, Wrong, causes};
use super::report::FailureKind;
use super::{Plan, Role};

/// Where requests go in.
pub(super) enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Sender {
    /// Waits until a request can be sent.
    pub(super) async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }

    /// Sends a request; the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }
}

/// A new connection that runs by itself; its errors reach the request that is under way.
pub(super) async fn open(plan: &Plan, role: Role) -> Result<Sender, Wrong> {
    let refused = |error: &dyn Error| (FailureKind::Connect, causes(error));
    let stream = TcpStream::connect(plan.address).await.map_err(|error| refused(&error))?;
    stream.set_nodelay(true).map_err(|error| refused(&error))?;
    let stream = TokioIo::new(stream);
    Ok(match role {
        Role::Http2 | Role::Rpc | Role::RpcStream => {
            let handshake = http2::handshake(TokioExecutor::new(), stream).await;
            let (sender, connection) = handshake.map_err(|error| refused(&error))?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        }
        _ => {
            let handshake = http1::handshake(stream).await;
            let (sender, connection) = handshake.map_err(|error| refused(&error))?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        }
    })
}
