//! Every route with every kind of caller.

use std::sync::atomic::AtomicU64;

use http::{HeaderName, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use stead_core::api::{Role, TokenRequest};
use stead_testkit::sim::SimEngine;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use super::*;
use crate::auth::Caller;
use crate::clock;
use crate::events::EventLog;
use crate::figures::Figures;
use crate::ledger::Ledgers;
use crate::reconcile::board::Board;
use crate::secrets::Vault;
use crate::store::Store;
use crate::traffic::Publisher;

/// The API on a loopback address and a socket.
struct Served {
    dir: tempfile::TempDir,
    api: Arc<Api>,
    addr: SocketAddr,
    _close: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Deaf;

impl crate::traffic::GatewayNews for Deaf {
    fn report(&self, _: u32, _: stead_core::routes::Report) {}
    fn parked(&self, _: &AppKey) {}
    fn left(&self) {}
}

async fn served() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&dir.path().join("state.db")).unwrap());
    let events = EventLog::open(&dir.path().join("events.db")).unwrap();
    let publisher = Publisher::new(1, Arc::new(Deaf));
    let ledgers = Arc::new(Ledgers::load(&store).unwrap());
    let board = Arc::new(Board::default());
    let engine = Arc::new(SimEngine::new(
        Arc::clone(&publisher) as Arc<dyn stead_core::engine::Traffic>,
        Arc::clone(&events) as Arc<dyn stead_core::event::Events>,
    ));
    let vault = Arc::new(Vault::new(Arc::clone(&store), dir.path().join("secrets.key")));
    let tokens = Tokens::new(Arc::clone(&store), dir.path().join("bootstrap-token"));
    let reconciler = Arc::new(Reconciler {
        store,
        engine,
        publisher,
        ledgers,
        figures: Arc::new(Figures::new(clock::now())),
        events,
        board,
        violations: AtomicU64::new(0),
        began: clock::now(),
        sites: crate::reconcile::Sites::default(),
        settled: tokio::sync::Notify::new(),
    });
    let (close, closing) = watch::channel(false);
    let api = Arc::new(Api {
        tokens,
        vault,
        reconciler,
        http: "127.0.0.1:8080".parse().unwrap(),
        temp_dir: dir.path().to_owned(),
        making: tokio::sync::Mutex::default(),
        closing,
    });
    let any = Some("127.0.0.1:0".parse().unwrap());
    let (addr, serving) =
        serve(Arc::clone(&api), dir.path().join("stead.sock"), any).await.unwrap();
    let serving = tokio::spawn(serving);
    Served { dir, api, addr: addr.unwrap(), _close: close, serving }
}

impl Served {
    async fn token(&self, role: Role, namespace: Option<&str>) -> String {
        let request = TokenRequest {
            name: format!("{role:?}"),
            role,
            namespace: namespace.map(|name| name.parse().unwrap()),
            ttl_secs: 600,
        };
        let made = self.api.tokens.create(&request, &Caller::root(), clock::now()).await;
        made.unwrap().secret.unwrap()
    }

    /// Sends a request over TCP and gives the status.
    async fn tcp(&self, method: &Method, path: &str, headers: &[(HeaderName, &str)]) -> StatusCode {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        ask(stream, method, path, headers).await
    }
}

async fn ask(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    method: &Method,
    path: &str,
    headers: &[(HeaderName, &str)],
) -> StatusCode {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == header::HOST) {
        request = request.header(header::HOST, "localhost");
    }
    for (name, value) in headers {
        request = request.header(name, *value);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let refused = status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN;
    assert!(!refused || body.starts_with(b"{\"type\":\"docs/errors/STEAD-R00"), "{body:?}");
    status
}

/// Method and path of every route, from the API's own description.
fn every_route(document: &utoipa::openapi::OpenApi) -> Vec<(Method, String)> {
    let document = serde_json::to_value(document).unwrap();
    let mut all = vec![(Method::GET, "/api/openapi.json".to_owned())];
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys() {
            if let Ok(
                method
                @ (Method::GET | Method::PUT | Method::POST | Method::DELETE | Method::PATCH),
            ) = method.to_uppercase().parse()
            {
                all.push((method, path.clone()));
            }
        }
    }
    all
}

/// What a person would expect of a route, said in other words than the rules.
fn expected(method: &Method, path: &str) -> (Role, bool) {
    let of_app = path.contains("/apps");
    let of_bytes = path.contains("/uploads/") || path.ends_with("/archive");
    let role = if of_bytes || path.ends_with("/compose") || path.ends_with("/registries") {
        Role::Deployer
    } else if *method == Method::GET {
        if path.ends_with("/tokens") || path.ends_with("/doctor") {
            Role::Admin
        } else {
            Role::Viewer
        }
    } else if of_app || path.ends_with("/pull") || path.ends_with("/import") {
        Role::Deployer
    } else {
        Role::Admin
    };
    let open_to_namespaces = of_app
        || ["/version", "/namespaces", "/events", "/openapi.json"]
            .iter()
            .any(|end| path.ends_with(end));
    (role, open_to_namespaces)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_asks_every_caller() {
    let served = served().await;
    let mut callers = Vec::new();
    for (name, role, namespace) in [
        ("viewer", Role::Viewer, None),
        ("deployer", Role::Deployer, None),
        ("admin", Role::Admin, None),
        ("own viewer", Role::Viewer, Some("default")),
        ("own deployer", Role::Deployer, Some("default")),
        ("own admin", Role::Admin, Some("default")),
        ("foreign admin", Role::Admin, Some("elsewhere")),
    ] {
        let secret = served.token(role, namespace).await;
        callers.push((name, format!("Bearer {secret}"), Some((role, namespace))));
    }
    callers.push(("garbage", "Bearer stead_x_00".to_owned(), None));
    callers.push(("basic", "Basic cm9vdDo=".to_owned(), None));
    callers.push(("nobody", String::new(), None));

    let routes = every_route(&routes().into_openapi());
    assert!(routes.len() > 30, "{routes:?}");
    for (method, path) in routes {
        let url = path
            .replace("{ns}", "default")
            .replace("{app}", "none")
            .replace("{number}", "1")
            .replace("{verb}", "abort")
            .replace("{digest}", "sha256:0")
            .replace("{id}", "none");
        for (name, authorization, who) in &callers {
            let headers = [(header::AUTHORIZATION, authorization.as_str())];
            let headers = if authorization.is_empty() { &[][..] } else { &headers[..] };
            let status = served.tcp(&method, &url, headers).await;
            let (role, open) = expected(&method, &path);
            let wanted = match who {
                _ if path == "/api/v1/healthz" => None,
                None => Some(StatusCode::UNAUTHORIZED),
                Some((has, _)) if *has < role => Some(StatusCode::FORBIDDEN),
                Some((_, Some(_))) if !open => Some(StatusCode::FORBIDDEN),
                Some((_, Some("elsewhere"))) if path.contains("{ns}") => {
                    Some(StatusCode::FORBIDDEN)
                }
                Some(_) => None,
            };
            match wanted {
                Some(wanted) => assert_eq!(status, wanted, "{name}: {method} {path}"),
                None => assert!(
                    status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN,
                    "{name}: {method} {path}: {status}"
                ),
            }
        }
    }
}

#[tokio::test]
async fn a_route_without_a_rule_is_nobodys() {
    assert_eq!(crate::auth::rule(&Method::GET, "/api/v1/new"), None);
    assert_eq!(crate::auth::rule(&Method::GET, "/api/v1/namespaces/{ns}/apps/{app}/new"), None);
    let served = served().await;
    let admin = format!("Bearer {}", served.token(Role::Admin, None).await);
    let headers = [(header::AUTHORIZATION, admin.as_str())];
    let status = served.tcp(&Method::PUT, "/api/v1/version", &headers).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(served.tcp(&Method::GET, "/api/v1/x", &headers).await, StatusCode::NOT_FOUND);
    assert_eq!(served.tcp(&Method::GET, "/api/v1/x", &[]).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn foreign_pages_and_names_are_refused() {
    let served = served().await;
    let admin = format!("Bearer {}", served.token(Role::Admin, None).await);
    let path = "/api/v1/events?follow=true";
    for (name, value) in [(header::ORIGIN, "http://evil.example"), (header::HOST, "evil.example")] {
        let headers = [(header::AUTHORIZATION, admin.as_str()), (name, value)];
        assert_eq!(served.tcp(&Method::GET, path, &headers).await, StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn the_socket_is_roots() {
    let served = served().await;
    let socket = served.dir.path().join("stead.sock");
    let connect = || UnixStream::connect(&socket);
    let path = "/api/v1/tokens";
    assert_eq!(ask(connect().await.unwrap(), &Method::GET, path, &[]).await, StatusCode::OK);
    // A token decides, also where root would do.
    let viewer = format!("Bearer {}", served.token(Role::Viewer, None).await);
    let headers = [(header::AUTHORIZATION, viewer.as_str())];
    let status = ask(connect().await.unwrap(), &Method::GET, path, &headers).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn only_loopback_is_listened_on() {
    assert!(Loopback::bind("0.0.0.0:0".parse().unwrap()).await.is_err());
    assert!(Loopback::bind("[::1]:0".parse().unwrap()).await.is_ok());
}

#[test]
fn the_description_is_openapi_3_1_and_complete() {
    let document = serde_json::to_value(routes().into_openapi()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    // Every type that is referred to is described.
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut referred = 0;
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is not described");
        referred += 1;
    }
    assert!(referred > 20 && schemas.contains_key("Manifest"));
}
