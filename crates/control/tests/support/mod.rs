//! A control plane on a simulated machine, and a client of its API.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "it is a test that fails")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stead_control::{Config, Control, ControlError};
use stead_core::api::{Accepted, AppView, ProblemJson, Progress};
use stead_core::ids::RolloutNo;
use stead_core::rollout::Rollout;
use stead_testkit::sim::{SimEngine, SimMachine};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Nothing a test waits for takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running control plane.
pub(crate) struct Platform {
    pub(crate) run_dir: PathBuf,
    pub(crate) engine: Arc<SimEngine>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ControlError>>,
}

pub(crate) fn config(dir: &Path, listen: Option<SocketAddr>) -> Config {
    Config {
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        listen,
        http: "127.0.0.1:8080".parse().unwrap(),
    }
}

impl Platform {
    /// Starts a control plane in `dir` with an engine on `machine`.
    pub(crate) async fn start(dir: &Path, machine: &SimMachine) -> Self {
        Self::start_with(config(dir, None), machine).await
    }

    pub(crate) async fn start_with(config: Config, machine: &SimMachine) -> Self {
        let run_dir = config.run_dir.clone();
        let control = Control::open(config).await.unwrap();
        let (traffic, events) = (control.traffic(), control.events());
        let engine = Arc::new(SimEngine::open(machine.clone(), traffic, events));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(control.run(Arc::clone(&engine) as Arc<_>, async {
            let _ = stopped.await;
        }));
        let platform = Self { run_dir, engine, stop: Some(stop), task };
        let up = async {
            while !platform.client().answers().await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, up).await.expect("the API answers");
        platform
    }

    pub(crate) fn client(&self) -> Client {
        Client { to: Endpoint::Unix(self.run_dir.join("stead.sock")), token: None }
    }

    /// Ends it in good order.
    pub(crate) async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        (&mut self.task).await.unwrap().unwrap();
    }

    /// Ends it as a crash does: nothing is finished.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
pub(crate) enum Endpoint {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A client of the API.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) to: Endpoint,
    pub(crate) token: Option<String>,
}

pub(crate) type Answer = (StatusCode, Value);

impl Client {
    async fn answers(&self) -> bool {
        let Endpoint::Unix(path) = &self.to else { return true };
        UnixStream::connect(path).await.is_ok()
    }

    /// Sends a request with these headers.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = body.map(ToString::to_string).unwrap_or_default();
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        match &self.to {
            Endpoint::Unix(path) => {
                exchange(UnixStream::connect(path).await.unwrap(), request).await
            }
            Endpoint::Tcp(addr) => exchange(TcpStream::connect(addr).await.unwrap(), request).await,
        }
    }

    pub(crate) async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let response = self.send(method, path, body, &[]).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes);
        let value = serde_json::from_slice(&bytes).unwrap_or_else(|_| Value::String(text.into()));
        (status, value)
    }

    /// Reads something that is there.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let (status, value) = self.request(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        serde_json::from_value(value.clone()).unwrap_or_else(|e| panic!("{path}: {e}: {value}"))
    }

    /// Asks for a change that is accepted.
    pub(crate) async fn change(&self, path: &str, body: Value) -> Accepted {
        let (status, value) = self.request(Method::POST, path, Some(&body)).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{path}: {value}");
        serde_json::from_value(value).unwrap()
    }

    /// Asks for something that is refused.
    pub(crate) async fn refused(&self, method: Method, path: &str, body: Value) -> ProblemJson {
        let (status, value) = self.request(method, path, Some(&body)).await;
        assert!(status.is_client_error() || status.is_server_error(), "{path}: {status} {value}");
        let problem: ProblemJson = serde_json::from_value(value).unwrap();
        assert_eq!(problem.status, status.as_u16());
        problem
    }

    pub(crate) async fn deploy(&self, app: &str, manifest: Value) -> Accepted {
        let mut whole = json!({"app": app});
        whole.as_object_mut().unwrap().extend(manifest.as_object().unwrap().clone());
        self.change(&format!("{}/deploy", app_path(app)), json!({"manifest": whole})).await
    }

    pub(crate) async fn app(&self, app: &str) -> AppView {
        self.get(&app_path(app)).await
    }

    /// Follows a Rollout by its stream until every Instance is changed, or it failed. Gives
    /// everything the stream said.
    pub(crate) async fn follow(&self, app: &str, number: RolloutNo) -> Vec<Progress> {
        let over = |progress: &Progress| {
            progress.rollout.phase.is_through() || progress.rollout.phase.is_final()
        };
        self.follow_until(app, number, over).await
    }

    /// Follows a Rollout by its stream until it looks as wanted.
    pub(crate) async fn follow_until(
        &self,
        app: &str,
        number: RolloutNo,
        wanted: impl Fn(&Progress) -> bool,
    ) -> Vec<Progress> {
        let path = format!("{}/rollouts/{number}/progress", app_path(app));
        let response = self.send(Method::GET, &path, None, &[]).await;
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        let (mut said, mut text) = (Vec::<Progress>::new(), String::new());
        while !said.last().is_some_and(&wanted) {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await;
            let frame = frame.unwrap_or_else(|_| panic!("not as wanted: {:#?}", said.last()));
            let Some(frame) = frame else { break };
            if let Some(data) = frame.unwrap().data_ref() {
                text.push_str(std::str::from_utf8(data).unwrap());
            }
            while let Some(end) = text.find("\n\n") {
                let event: String = text.drain(..end + 2).collect();
                let data = event.lines().find_map(|line| line.strip_prefix("data: "));
                said.extend(data.map(|data| serde_json::from_str(data).unwrap()));
            }
        }
        said
    }

    /// Follows the Rollout of an accepted change until every Instance is changed, or it failed.
    pub(crate) async fn ended(&self, accepted: Accepted) -> Rollout {
        let number = accepted.rollout.expect("the change needs a rollout");
        let progress = self.follow(accepted.app.app.as_str(), number).await;
        progress.last().expect("the stream says how it ended").rollout.clone()
    }

    /// Waits until the App looks as wanted.
    pub(crate) async fn until(&self, app: &str, wanted: impl Fn(&AppView) -> bool) -> AppView {
        let look = async {
            loop {
                let view = self.app(app).await;
                if wanted(&view) {
                    return view;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, look).await {
            Ok(view) => view,
            Err(_) => panic!("app {app} never looked as wanted: {:#?}", self.app(app).await),
        }
    }
}

async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Response<Incoming> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

pub(crate) fn app_path(app: &str) -> String {
    format!("/api/v1/namespaces/default/apps/{app}")
}
