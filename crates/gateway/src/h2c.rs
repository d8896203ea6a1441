//! An HTTP/2 connection to a Backend, shared by its requests.
//!
//! Promises: a request that the Backend did not take up is told from one that may have been, and
//! given back if its body is still there; who waits for a response gets one or an error.
//!
//! Speaks h2 itself: hyper's client (1.12) gives requests up as refused that were sent when a
//! GOAWAY came, and leaves some without an answer for ever.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::upload::Upload;
use crate::upstream::{HEAD_BYTES, Open, OpenGuard, SendError};

/// What a Backend may send unasked: of one response, and of all.
const WINDOWS: (u32, u32) = (2 << 20, 5 << 20);
/// How long a connection is quiet before its peer is asked for a sign of life, by TCP: servers
/// of gRPC take offence at pings.
const QUIET: Duration = Duration::from_secs(20);

/// A connection that takes requests.
#[derive(Clone)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    /// It takes no more.
    over: Arc<AtomicBool>,
}

impl Connection {
    /// Speaks HTTP/2 on `stream`.
    pub(crate) async fn new(stream: TcpStream, open: &Arc<Open>) -> Result<Self, h2::Error> {
        let keepalive = TcpKeepalive::new().with_time(QUIET).with_interval(QUIET);
        if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
            tracing::debug!(%error, "connection is not watched");
        }
        let (sender, connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1)
            .max_header_list_size(HEAD_BYTES as u32)
            .handshake(stream)
            .await?;
        let open = OpenGuard::new(open);
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        tokio::spawn(async move {
            // Its requests have the error, if any.
            let _ = connection.await;
            ended.store(true, Ordering::Release);
            drop(open);
        });
        Ok(Self { sender, over })
    }

    /// Whether it takes no more requests.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Sends a request; its body goes on by itself when the response comes first.
    pub(crate) async fn send(
        self,
        request: Request<Upload>,
    ) -> Result<Response<RecvStream>, SendError> {
        let Self { sender, over } = self;
        let mut sender = match sender.ready().await {
            Ok(sender) => sender,
            Err(_) => {
                over.store(true, Ordering::Release);
                return Err(SendError::Unsent(Box::new(request)));
            }
        };
        let (parts, mut body) = request.into_parts();
        let mut head = Request::new(());
        head.method_mut().clone_from(&parts.method);
        head.uri_mut().clone_from(&parts.uri);
        head.headers_mut().clone_from(&parts.headers);
        let keeper = body.keep();
        let ended = body.is_end_stream();
        let (mut response, stream) =
            match sender.send_request(Request::from_parts(parts, ()), ended) {
                Ok(sent) => sent,
                // Refused before it had a stream: for what it is, or because no more are taken.
                Err(error) if error.is_io() || error.is_go_away() => {
                    over.store(true, Ordering::Release);
                    return Err(SendError::Unsent(Box::new(head.map(|()| body))));
                }
                Err(error) => return Err(failed(error)),
            };
        drop(sender); // it may end with this request
        let mut pipe = (!ended).then(|| Box::pin(pass_on(body, stream)));
        let answer = loop {
            tokio::select! {
                biased; // an answer makes the rest of the body the App's affair
                answer = &mut response => break answer,
                () = async { if let Some(pipe) = &mut pipe { pipe.await } }, if pipe.is_some() => {
                    pipe = None;
                }
            }
        };
        match answer {
            Ok(response) => {
                keeper.release();
                if let Some(pipe) = pipe {
                    tokio::spawn(pipe);
                }
                Ok(response)
            }
            Err(error) if refused(&error) => match keeper.again() {
                Some(body) => Err(SendError::Refused(Box::new(head.map(|()| body)))),
                None => Err(failed(error)),
            },
            Err(error) => Err(failed(error)),
        }
    }
}

/// Whether the Backend says that it has not taken the request up: by GOAWAY for a stream above
/// the last it will answer (h2 gives it to no other stream), or by REFUSED_STREAM (RFC 9113, 6.8
/// and 8.7).
fn refused(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || refused)
}

fn failed(error: h2::Error) -> SendError {
    SendError::Failed { not_http: error.is_library(), error: error.into() }
}

/// Passes a request body on until it ends, breaks off or is not wanted any more.
async fn pass_on(mut body: Upload, mut stream: SendStream<Bytes>) {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
        };
        // Whoever waits for the response has the error of what cannot be sent.
        let frame = match frame {
            None => return drop(stream.send_data(Bytes::new(), true)),
            Some(Err(_)) => return stream.send_reset(Reason::CANCEL),
            Some(Ok(frame)) => frame,
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    let _ = stream.send_trailers(trailers);
                }
                return;
            }
        };
        let last = body.is_end_stream();
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let room = match stream.capacity() {
                0 => match poll_fn(|cx| stream.poll_capacity(cx)).await {
                    Some(Ok(room)) => room,
                    _ => return,
                },
                room => room,
            };
            let part = data.split_to(room.min(data.len()));
            if stream.send_data(part, last && data.is_empty()).is_err() {
                return;
            }
        }
        if last {
            return;
        }
    }
}
