//! The API's client: JSON requests, event streams, uploads and upgrades over a Unix socket
//! or plain HTTP.
//!
//! Promises that every failure is a [`UserError`] with the code that the platform gave, or
//! one that says the platform is not there. Knows nothing of what the requests mean; each
//! request has a connection of its own, because a command makes a handful.

mod endpoint;
mod events;

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stead_core::api::ProblemJson;
use stead_core::error::{Code, UserError};
use stead_core::manifest::{Problem, Problems};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

pub(crate) use endpoint::Endpoint;
pub(crate) use events::EventStream;

/// Largest answer that is read whole, in bytes. Streams are not bounded by it.
const LARGEST_ANSWER: usize = 64 << 20;

/// How long the socket of a platform that is being replaced may be without a listener.
const REPLACED: Duration = Duration::from_secs(1);
/// Between two attempts to connect.
const PACE: Duration = Duration::from_millis(20);

type RequestBody = UnsyncBoxBody<Bytes, io::Error>;

/// A client of one platform.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    endpoint: Endpoint,
    token: Option<String>,
}

impl Client {
    /// A client of the platform at `endpoint`. The token is not needed by root on the socket.
    pub(crate) fn new(endpoint: Endpoint, token: Option<String>) -> Self {
        Self { endpoint, token }
    }

    /// Where it looks.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Reads `path`, which is below `/api/v1`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::GET, path, empty()).await
    }

    /// Sends `body` to `path` and reads the answer.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        self.json(Method::POST, path, whole(body)?).await
    }

    /// Changes a part of what is at `path`.
    pub(crate) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        self.json(Method::PATCH, path, whole(body)?).await
    }

    /// Puts `body` at `path` and reads the answer.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        self.json(Method::PUT, path, whole(body)?).await
    }

    /// Removes what is at `path` and reads the answer.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::DELETE, path, empty()).await
    }

    /// Sends a request without a body whose answer carries nothing of use.
    pub(crate) async fn act(&self, method: Method, path: &str) -> Result<()> {
        let answer = self.send(method, path, empty()).await?;
        collect(answer.into_body()).await.map(drop)
    }

    /// Streams `body` to `path` and reads the answer.
    pub(crate) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        body: impl Body<Data = Bytes, Error = io::Error> + Send + 'static,
    ) -> Result<T> {
        self.json(Method::POST, path, body.boxed_unsync()).await
    }

    /// Reads what is at `path` as it comes, however much it is.
    pub(crate) async fn download(&self, path: &str) -> Result<Incoming> {
        Ok(self.send(Method::GET, path, empty()).await?.into_body())
    }

    /// Streams `body` to `path` as the part of an upload that begins at `offset`.
    pub(crate) async fn append<T: DeserializeOwned>(
        &self,
        path: &str,
        offset: u64,
        body: impl Body<Data = Bytes, Error = io::Error> + Send + 'static,
    ) -> Result<T> {
        let mut request = self.request(Method::PATCH, path, body.boxed_unsync())?;
        let headers = request.headers_mut();
        let bytes = header::HeaderValue::from_static("application/octet-stream");
        headers.insert(header::CONTENT_TYPE, bytes);
        headers.insert("upload-offset", offset.into());
        let answer = self.exchange(request).await?;
        read(path, &collect(answer.into_body()).await?)
    }

    /// Follows the server-sent events at `path`.
    pub(crate) async fn follow(&self, path: &str) -> Result<EventStream> {
        let answer = self.send(Method::GET, path, empty()).await?;
        Ok(EventStream::new(answer.into_body()))
    }

    /// Turns the connection into a two-way stream of `protocol`.
    pub(crate) async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<TokioIo<hyper::upgrade::Upgraded>> {
        let mut request = self.request(Method::POST, path, empty())?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, header::HeaderValue::from_static(protocol));
        let answer = self.exchange(request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(unexpected("the platform did not switch to the stream asked for").into());
        }
        let upgraded = hyper::upgrade::on(answer).await.map_err(|e| self.broken(e))?;
        Ok(TokioIo::new(upgraded))
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> Result<T> {
        let answer = self.send(method, path, body).await?;
        read(path, &collect(answer.into_body()).await?)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> Result<Response<Incoming>> {
        if method != Method::GET {
            let request = self.request(method, path, body)?;
            return self.exchange(request).await;
        }
        // Looking changes nothing: it may be done again when the platform is replaced meanwhile.
        let deadline = Instant::now() + REPLACED;
        loop {
            match self.exchange(self.request(Method::GET, path, empty())?).await {
                Err(error) if error.is::<hyper::Error>() && Instant::now() < deadline => {
                    tokio::time::sleep(PACE).await;
                }
                end => return end,
            }
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> Result<Request<RequestBody>> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/api/v1{path}"))
            .header(header::HOST, self.endpoint.authority())
            .header(header::USER_AGENT, concat!("stead/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        Ok(request.body(body)?)
    }

    /// Sends a request; an answer that is an error becomes one.
    async fn exchange(&self, request: Request<RequestBody>) -> Result<Response<Incoming>> {
        let answer = match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = connect(path).await.map_err(|e| self.unreachable(&e))?;
                self.over(stream, request).await?
            }
            Endpoint::Http(authority) => {
                let stream =
                    TcpStream::connect(authority).await.map_err(|e| self.unreachable(&e))?;
                stream.set_nodelay(true)?;
                self.over(stream, request).await?
            }
        };
        let status = answer.status();
        if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        Err(failure(status, &collect(answer.into_body()).await?))
    }

    async fn over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e))?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(|e| self.broken(e))
    }

    fn unreachable(&self, error: &io::Error) -> UserError {
        if error.kind() == io::ErrorKind::PermissionDenied {
            return UserError::new(
                Code::Denied,
                format!("this user may not open {}", self.endpoint),
                "run it as root, or use --server http://… with a token",
            );
        }
        UserError::new(
            Code::PlatformDown,
            format!("no platform answers at {}: {error}", self.endpoint),
            "start it with `stead up --detach`; if it runs elsewhere, name it with --server or \
             STEAD_SERVER",
        )
    }

    /// The error to show, with what happened as its cause.
    fn broken(&self, error: hyper::Error) -> anyhow::Error {
        let shown = UserError::new(
            Code::PlatformDown,
            format!("the platform at {} broke off: {error}", self.endpoint),
            "its log is in the folder `log` of its data directory; `stead up --detach` starts it \
             again",
        );
        anyhow::Error::new(error).context(shown)
    }
}

/// Connects to the platform's socket. One that is there while nobody listens belongs to a
/// platform that is being replaced, which takes a moment, or to one that was stopped.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let deadline = Instant::now() + REPLACED;
    loop {
        match UnixStream::connect(path).await {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionRefused
                    && Instant::now() < deadline =>
            {
                tokio::time::sleep(PACE).await;
            }
            end => return end,
        }
    }
}

/// `text` as one segment of a path or one value of a query (RFC 3986, 2.3).
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

fn whole(body: &impl Serialize) -> Result<RequestBody> {
    let bytes = Bytes::from(serde_json::to_vec(body)?);
    Ok(Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
}

/// Reads the answer to a request for `path`.
fn read<T: DeserializeOwned>(path: &str, answer: &[u8]) -> Result<T> {
    // An empty answer reads as null, so that `()` fits where there is nothing to say.
    let text = if answer.is_empty() { b"null" } else { answer };
    serde_json::from_slice(text).map_err(|e| {
        unexpected(format!("the platform's answer to {path} cannot be read: {e}")).into()
    })
}

async fn collect(body: Incoming) -> Result<Bytes> {
    let limited = http_body_util::Limited::new(body, LARGEST_ANSWER);
    match limited.collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(unexpected(format!("the platform's answer broke off: {error}")).into()),
    }
}

fn unexpected(message: impl Into<String>) -> UserError {
    UserError::new(
        Code::Internal,
        message,
        "compare `stead version` here with the platform's: they may be too far apart",
    )
}

/// The error that an answer carries.
fn failure(status: StatusCode, body: &[u8]) -> anyhow::Error {
    let Ok(problem) = serde_json::from_slice::<ProblemJson>(body) else {
        let code = match status {
            StatusCode::NOT_FOUND => Code::NotFound,
            StatusCode::UNAUTHORIZED => Code::Unauthenticated,
            StatusCode::FORBIDDEN => Code::Denied,
            StatusCode::BAD_REQUEST => Code::BadRequest,
            _ => Code::Internal,
        };
        let text = String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned();
        return UserError::new(
            code,
            format!("the platform answered {status}: {text}"),
            "check that --server names a stead platform of this version",
        )
        .into();
    };
    let list: Option<Vec<Problem>> =
        problem.problems.into_iter().map(|value| serde_json::from_value(value).ok()).collect();
    match list {
        Some(list) if !list.is_empty() => Problems { origin: "manifest".to_owned(), list }.into(),
        _ => problem.error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_platform_keeps_its_code() {
        let error = UserError::new(Code::NotFound, "app default/x does not exist", "deploy it");
        let problem = ProblemJson {
            r#type: "about:blank".into(),
            status: 404,
            title: "not found".into(),
            detail: error.message.clone(),
            error: error.clone(),
            problems: Vec::new(),
        };
        let body = serde_json::to_vec(&problem).unwrap();
        let got = failure(StatusCode::NOT_FOUND, &body).downcast::<UserError>().unwrap();
        assert_eq!(got, error);
    }

    #[test]
    fn what_a_person_writes_stays_one_value() {
        assert_eq!(escaped("a/b:1@c d&é"), "a%2Fb%3A1%40c%20d%26%C3%A9");
    }

    #[test]
    fn an_answer_of_a_stranger_is_told_apart() {
        let got = failure(StatusCode::UNAUTHORIZED, b"<html>").downcast::<UserError>().unwrap();
        assert_eq!(got.code, Code::Unauthenticated);
        assert!(got.message.contains("<html>"), "{got}");
    }
}
