//! One client: connects, sends, checks the whole answer, again.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::{Request, StatusCode, Version, header};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connection::{self, Sender};
use super::recorder::{MOST_FAILURES, Recorder};
use super::report::FailureKind;
use super::{Plan, Role, rpc, streams};

/// An upload: so many chunks of a kibibyte, one each so often.
const UPLOAD_CHUNKS: usize = 10;
const UPLOAD_EVERY: Duration = Duration::from_millis(100);

/// After a failure, so that a refusing server is not stormed.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What went wrong, and what was seen.
pub(super) type Wrong = (FailureKind, String);

/// When a client has to end.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    pub(super) stopped: watch::Receiver<bool>,
    pub(super) end: Instant,
}

impl Stop {
    fn reached(&self) -> bool {
        *self.stopped.borrow() || Instant::now() >= self.end
    }

    /// Sleeps, but not past the end.
    pub(super) async fn sleep_until(&mut self, until: Instant) {
        tokio::select! {
            () = sleep_until(until.min(self.end)) => {}
            _ = self.stopped.wait_for(|stopped| *stopped) => {}
        }
    }
}

pub(super) struct Client {
    pub(super) role: Role,
    pub(super) index: usize,
    pub(super) plan: Arc<Plan>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) stop: Stop,
}

impl Client {
    pub(super) async fn run(mut self) {
        let mut kept: Option<Sender> = None;
        let mut pace = Pace::new(&self.plan, self.role, self.index);
        loop {
            let due = pace.next(&mut self.stop).await;
            if self.done() {
                return;
            }
            let outcome = match self.role {
                Role::WebSocket => streams::websocket(&self.plan, &self.recorder, &self.stop).await,
                _ => self.request(&mut kept, due).await,
            };
            if let Err((kind, seen)) = outcome {
                self.recorder.failed_with(self.role, kind, seen);
                kept = None;
                sleep(AFTER_FAILURE).await;
            }
        }
    }

    fn done(&self) -> bool {
        self.stop.reached()
            || self.recorder.sent() >= self.plan.most
            || self.recorder.failed() >= MOST_FAILURES
    }

    async fn request(&self, kept: &mut Option<Sender>, due: Instant) -> Result<(), Wrong> {
        self.recorder.sending();
        let exchange = self.exchange(kept);
        let version = timeout(self.plan.timeout, exchange).await.map_err(|_| {
            (FailureKind::Timeout, format!("no whole answer within {:?}", self.plan.timeout))
        })??;
        self.recorder.succeeded(self.role, due, &version);
        Ok(())
    }

    /// Sends one request and reads its whole answer; the version that gave it.
    async fn exchange(&self, kept: &mut Option<Sender>) -> Result<String, Wrong> {
        let response = loop {
            let mut reused = kept.take();
            if let Some(sender) = &mut reused
                && sender.ready().await.is_err()
            {
                // Closed while it was idle: nobody's fault.
                reused = None;
            }
            let is_reused = reused.is_some();
            let mut sender = match reused {
                Some(sender) => sender,
                None => connection::open(&self.plan, self.role).await?,
            };
            match sender.send(self.build()).await {
                Ok(response) => {
                    *kept = Some(sender);
                    break response;
                }
                // Not a byte was written, or it was not taken up: nothing was lost.
                Err(error) if is_reused && (error.is_canceled() || was_refused(&error)) => {}
                Err(error) => {
                    let which = if is_reused { "a reused" } else { "a new" };
                    let kind =
                        if error.is_parse() { FailureKind::Protocol } else { FailureKind::Closed };
                    return Err((kind, format!("on {which} connection: {}", causes(&error))));
                }
            }
        };
        if self.role == Role::OneShot {
            *kept = None;
        }
        let status = response.status();
        let early = rpc::status(response.headers());
        let version = response.headers().get(self.plan.version_header.as_str());
        let version = version.map_or("?", |value| value.to_str().unwrap_or("?")).to_owned();
        let body = response.into_body().collect().await;
        let body = body.map_err(|error| (FailureKind::Body, causes(&error)))?;
        let trailers = body.trailers().cloned();
        let body = body.to_bytes();
        if status != StatusCode::OK {
            let start = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
            return Err((FailureKind::Status(status.as_u16()), start));
        }
        match self.role {
            Role::Events => streams::check_events(&body, self.plan.events)?,
            Role::Rpc | Role::RpcStream => {
                let status = early.or_else(|| rpc::status(trailers.as_ref()?));
                rpc::check(self.role, status, &body)?;
            }
            _ => {}
        }
        Ok(version)
    }

    fn build(&self) -> Request<Body> {
        let plan = &self.plan;
        let (method, path, body) = match self.role {
            Role::Upload => ("POST", &plan.upload_path, upload()),
            Role::Long => ("GET", &plan.long_path, Empty::new().boxed_unsync()),
            Role::Events => ("GET", &plan.events_path, Empty::new().boxed_unsync()),
            Role::Rpc | Role::RpcStream => ("POST", &plan.rpc_path, rpc::call(self.role)),
            _ => ("GET", &plan.path, Empty::new().boxed_unsync()),
        };
        let mut request = Request::builder().method(method);
        request = match self.role {
            // HTTP/2 has no Host: what stands in the URI is the authority.
            Role::Http2 | Role::Rpc | Role::RpcStream => {
                request.version(Version::HTTP_2).uri(format!("http://{}{path}", plan.host))
            }
            _ => request.uri(path).header(header::HOST, &plan.host),
        };
        if matches!(self.role, Role::Rpc | Role::RpcStream) {
            request = request.header(header::CONTENT_TYPE, "application/grpc");
            request = request.header(header::TE, "trailers");
        }
        for (name, value) in &plan.headers {
            request = request.header(name, value);
        }
        if self.role == Role::OneShot {
            request = request.header(header::CONNECTION, "close");
        }
        request.body(body).expect("a plan's host and paths are valid in a request")
    }
}

/// Whether the server had announced that it takes no more streams on this connection, and had
/// not taken this one up (RFC 9113, section 6.8): every client sends such a request again.
fn was_refused(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

fn upload() -> Body {
    let chunks = futures_util::stream::unfold(0, |sent| async move {
        if sent == UPLOAD_CHUNKS {
            return None;
        }
        sleep(UPLOAD_EVERY).await;
        let chunk = Bytes::from_static(&[b'u'; 1024]);
        Some((Ok::<_, Infallible>(Frame::data(chunk)), sent + 1))
    });
    StreamBody::new(chunks).boxed_unsync()
}

/// When the next request is due.
enum Pace {
    /// So long after the last answer.
    Pause(Option<Duration>),
    /// At fixed times, whatever the answers do.
    Fixed { next: Instant, every: Duration },
}

impl Pace {
    fn new(plan: &Plan, role: Role, index: usize) -> Self {
        let paced = plan.mix.keep_alive + plan.mix.one_shot;
        match (role, plan.per_second) {
            (Role::KeepAlive | Role::OneShot, Some(rate)) => {
                let every = Duration::from_secs_f64(paced as f64 / rate);
                // Spread over the interval, so that clients do not send in step.
                let offset = every.mul_f64(index as f64 / paced as f64);
                Self::Fixed { next: Instant::now() + offset, every }
            }
            (Role::KeepAlive | Role::OneShot, None) | (Role::Http2 | Role::Rpc, _) => {
                Self::Pause(Some(plan.pause))
            }
            _ => Self::Pause(None),
        }
    }

    async fn next(&mut self, stop: &mut Stop) -> Instant {
        match self {
            Self::Pause(None) => Instant::now(),
            Self::Pause(Some(pause)) => {
                stop.sleep_until(Instant::now() + *pause).await;
                Instant::now()
            }
            Self::Fixed { next, every } => {
                let due = *next;
                *next += *every;
                if Instant::now() > due {
                    // Late, because an answer was: the wait belongs to the latency.
                    return due;
                }
                stop.sleep_until(due).await;
                Instant::now()
            }
        }
    }
}

/// An error with its causes, which is where hyper says what happened.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
