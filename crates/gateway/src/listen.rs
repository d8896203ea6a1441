//! Listening sockets, and the connections that come in over them.
//!
//! Promises: a connection that was accepted, or that waits in the kernel's queue when the
//! gateway is told to stop, is served; when a successor took over, connections go on as they
//! are, and HTTP/1.1 learns with its next response that it should connect anew: closing an
//! idle connection could cross a request on its way. HTTP/2 has a form for it and gets that.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::forward;
use crate::gateway::{Phase, Presence, Shared};
use crate::tls::Tls;
use crate::wire::{Turn, Wire};

/// Connections that wait in the kernel's queue.
const BACKLOG: u32 = 4_096;
/// How long a connection is quiet before its peer is asked for a sign of life, and how long
/// between two questions.
const QUIET: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));
/// Pause after accept failed, for want of descriptors above all.
const ACCEPT_PACE: Duration = Duration::from_millis(50);
/// What an HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Headers hyper parses without allocating for them.
const CHEAP_HEADERS: usize = 100;

/// Who is on the other side of a connection.
pub(crate) struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) addr: IpAddr,
    /// The same as a header's value.
    pub(crate) addr_text: HeaderValue,
    pub(crate) tls: bool,
    pub(crate) turn: Arc<Turn>,
    _permit: OwnedSemaphorePermit,
    /// Held as long as the connection or a tunnel out of it is there.
    _presence: Presence,
}

/// Listens at `addr`. Its connections inherit what is set here: small writes go out at once,
/// and a peer that vanished without a word is noticed, which a quiet tunnel would not.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(QUIET.0).with_interval(QUIET.1);
    SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Accepts connections until the gateway ends or a successor took over.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    presence: Presence,
) {
    let welcome = |stream: TcpStream, addr: SocketAddr, permit| {
        let addr = addr.ip().to_canonical();
        let client = Arc::new(Client {
            shared: shared.clone(),
            addr,
            addr_text: HeaderValue::try_from(addr.to_string())
                .expect("an address is visible ASCII"),
            tls: tls.is_some(),
            turn: Arc::default(),
            _permit: permit,
            _presence: presence.clone(),
        });
        tokio::spawn(serve(client, stream, tls.clone()));
    };
    loop {
        let next = async { (shared.admit().await, listener.accept().await) };
        let (permit, accepted) = tokio::select! {
            biased; // nothing is accepted that a successor could have
            () = shared.reached(Phase::HandedOver) => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, addr)) => welcome(stream, addr, permit),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PACE).await;
            }
        }
    }
    if shared.has_reached(Phase::Stopping) {
        // Nobody takes over what waits in the queue.
        while let Some(Ok((stream, addr))) = listener.accept().now_or_never() {
            let permit = shared.admit().await;
            welcome(stream, addr, permit);
        }
    }
}

async fn serve(client: Arc<Client>, stream: TcpStream, tls: Option<Arc<Tls>>) {
    let shared = client.shared.clone();
    let served = Box::pin(async {
        match tls {
            None => plain(client, stream).await,
            Some(tls) => encrypted(client, stream, &tls).await,
        }
    });
    tokio::select! {
        () = served => {}
        () = shared.reached(Phase::Cut) => {}
    }
}

async fn plain(client: Arc<Client>, mut stream: TcpStream) {
    let limits = &client.shared.limits;
    let mut first = [0; PREFACE.len()];
    let mut filled = 0;
    // Until it differs from HTTP/2's preface, or has all of it.
    while filled < PREFACE.len() && PREFACE.starts_with(&first[..filled]) {
        let time = if filled == 0 { limits.idle_time } else { limits.head_time };
        let read = tokio::select! {
            read = timeout(time, stream.read(&mut first[filled..])) => read,
            () = client.shared.reached(Phase::Stopping), if filled == 0 => return,
        };
        match read {
            Ok(Ok(count)) if count > 0 => filled += count,
            _ => return, // gone, or silent for too long
        }
    }
    let held = Bytes::copy_from_slice(&first[..filled]);
    if held == PREFACE {
        http2(client, Wire::http2(stream, held)).await;
    } else {
        let wire = Wire::http1(stream, held, client.turn.clone(), limits);
        http1(client, wire).await;
    }
}

async fn encrypted(client: Arc<Client>, stream: TcpStream, tls: &Tls) {
    let acceptor = TlsAcceptor::from(tls.config.clone());
    let stream = match timeout(client.shared.limits.head_time, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        http2(client, Wire::http2(stream, Bytes::new())).await;
    } else {
        let limits = &client.shared.limits;
        let wire = Wire::http1(stream, Bytes::new(), client.turn.clone(), limits);
        http1(client, wire).await;
    }
}

async fn http1<S>(client: Arc<Client>, wire: Wire<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &client.shared.limits;
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle_time) // the wire's own, shorter one times a head
        .max_buf_size(limits.head_bytes.max(8_192))
        .max_header_size(limits.head_bytes);
    if limits.headers != CHEAP_HEADERS {
        builder.max_headers(limits.headers);
    }
    let service = service_fn(|request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(forward::serve(client, request).await) }
    });
    let mut connection =
        pin!(builder.serve_connection(TokioIo::new(wire), service).with_upgrades());
    tokio::select! {
        ended = &mut connection => return log_end(ended),
        () = client.shared.reached(Phase::Stopping) => {
            connection.as_mut().graceful_shutdown();
        }
    }
    log_end(connection.await);
}

async fn http2<S>(client: Arc<Client>, wire: Wire<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &client.shared.limits;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.h2_streams)
        .max_pending_accept_reset_streams(limits.h2_resets)
        .max_local_error_reset_streams(limits.h2_resets)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(forward::BODY_WINDOW)
        .initial_connection_window_size(16 * forward::BODY_WINDOW)
        .max_send_buf_size(64 << 10)
        .keep_alive_interval(limits.idle_time)
        .keep_alive_timeout(limits.head_time);
    let service_client = client.clone();
    let service = service_fn(move |request| {
        let client = service_client.clone();
        async move { Ok::<_, Infallible>(forward::serve(client, request).await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(wire), service));
    tokio::select! {
        ended = &mut connection => return log_end(ended),
        () = client.shared.reached(Phase::HandedOver) => {
            connection.as_mut().graceful_shutdown();
        }
    }
    log_end(connection.await);
}

fn log_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "client connection failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_inherit_what_the_listener_has() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let _client = TcpStream::connect(addr).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        assert!(stream.nodelay().unwrap());
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), QUIET.0);
    }
}
