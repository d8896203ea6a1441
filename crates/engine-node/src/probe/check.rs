//! One question to a Container.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use stead_core::manifest::Check;
use tokio::net::{TcpSocket, TcpStream};

use crate::sandbox::{ExecSpec, Sandbox, Slot, mark_of};

/// Bytes read of an answer's body.
const LONGEST_BODY: usize = 64 * 1024;

/// Who is asked.
pub(crate) struct Target {
    /// Where the Container is.
    pub(crate) sandbox: Arc<Sandbox>,
    /// Its id.
    pub(crate) container: String,
    /// Its slot: connections reach this Container, whichever is current.
    pub(crate) slot: Slot,
    /// The port that takes HTTP requests.
    pub(crate) port: Option<u16>,
}

impl Target {
    /// Asks once. The error says what was seen instead.
    pub(crate) async fn ask(&self, check: &Check, limit: Duration) -> Result<(), String> {
        let asked = async {
            match check {
                Check::Tcp { port } => self.connect(port.number()).await.map(drop),
                Check::Http { path, port } => {
                    let port = port.map(|p| p.number()).or(self.port);
                    let port =
                        port.ok_or("no port: the image exposes none and http.port is not set")?;
                    self.get(port, path.as_str()).await
                }
                Check::Exec { argv } => self.run(argv).await,
            }
        };
        match tokio::time::timeout(limit, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
        }
    }

    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let addr = SocketAddr::new(self.sandbox.ip(), port);
        let connected = async {
            let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            SockRef::from(&socket).set_mark(mark_of(self.slot))?;
            socket.connect(addr).await
        };
        connected.await.map_err(|error: std::io::Error| format!("{addr}: {error}"))
    }

    async fn get(&self, port: u16, path: &str) -> Result<(), String> {
        let io = TokioIo::new(self.connect(port).await?);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|e| e.to_string())?;
        let request = Request::get(path)
            .header("host", format!("{}:{port}", self.sandbox.ip()))
            .header("user-agent", "stead-probe")
            .header("connection", "close")
            .body(Empty::<Bytes>::new())
            .map_err(|e| e.to_string())?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = answer.status();
            // Read to the end: an App may log a connection cut short as an error. One that has
            // so much to say has answered all the same.
            let mut body = answer.into_body();
            let mut read = 0;
            while read < LONGEST_BODY
                && let Some(Ok(frame)) = body.frame().await
            {
                read += frame.data_ref().map_or(0, Bytes::len);
            }
            match status.as_u16() {
                200..400 => Ok(()),
                _ => Err(format!("GET {path} answered {status}")),
            }
        };
        // The answer decides; the connection is driven beside it and its end says nothing.
        let drive = async {
            let _ended = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answer = answer => answer,
            never = drive => never,
        }
    }

    async fn run(&self, argv: &[String]) -> Result<(), String> {
        let spec = ExecSpec { argv: argv.to_vec(), ..ExecSpec::default() };
        let mut handle =
            self.sandbox.exec(&self.container, spec).await.map_err(|e| e.to_string())?;
        match handle.wait().await.map_err(|e| e.to_string())? {
            0 => Ok(()),
            code => Err(format!("{} ended with {code}", argv.join(" "))),
        }
    }
}
