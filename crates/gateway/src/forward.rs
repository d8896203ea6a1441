//! A request on its way through the gateway: route, claim, send, answer.
//!
//! Promises: a request is sent again only when not one byte of it had been sent, or when the
//! Backend, in HTTP/2, has said that it did not take it up; a claim is
//! held from before the first byte to the end of the body or tunnel; a tunnel is opened only
//! by the App's 101; whatever fails is answered and attributed.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use stead_core::routes::{FailReason, Protocol, normal_host};

use crate::access_log::Record;
use crate::app::Granted;
use crate::exchange::Exchange;
use crate::gateway::Phase;
use crate::headers;
use crate::ledger::Outcome;
use crate::listen::Client;
use crate::refuse;
use crate::reply::{AppBody, Download, Reply};
use crate::rules::Carried;
use crate::site::{self, Ask, Site};
use crate::table::Unrouted;
use crate::upload::Upload;
use crate::upstream::{Answer, Line, SendError};

/// What hyper may hold of a body that nobody reads: an HTTP/2 stream's window.
pub(crate) const BODY_WINDOW: u32 = 64 << 10;
/// Buffer of each direction of a tunnel.
const TUNNEL_BUFFER: usize = 8 << 10;

/// How often a request may be refused by Backends that had got it.
const REFUSALS: u32 = 3;

/// Serves one request of `client`.
pub(crate) async fn serve(client: Arc<Client>, request: Request<Incoming>) -> Response<Reply> {
    let http1 = request.version() < Version::HTTP_2;
    let upgrade = http1 && request.headers().contains_key(header::UPGRADE);
    let mut response = route(&client, request).await;
    let tunnel = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if upgrade {
        client.turn.decide(tunnel);
    }
    if http1 && !tunnel && client.shared.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn route(client: &Arc<Client>, mut request: Request<Incoming>) -> Response<Reply> {
    let arrived = Instant::now();
    let shared = &client.shared;
    let host = match vet(&request) {
        Ok(host) => host,
        Err((status, text)) => return turn_away(client, &request, status, text),
    };
    // Only an HTTP/1.1 client has one, and it must be taken before the request is sent on.
    let client_upgrade =
        wanted_upgrade(&request).map(|protocol| (protocol, hyper::upgrade::on(&mut request)));

    let name = host.to_str().unwrap_or_default();
    let mut found = shared.routes.find(name, request.uri().path());
    if let Err(Unrouted::NoTable) = found
        && Box::pin(shared.await_table()).await
    {
        found = shared.routes.find(name, request.uri().path());
    }
    let app = match found {
        Ok(app) => app,
        Err(Unrouted::NoTable) => {
            let text = "The gateway has no route table yet. Try again in a moment.";
            let mut response = turn_away(client, &request, StatusCode::SERVICE_UNAVAILABLE, text);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return response;
        }
        Err(Unrouted::NoApp) => {
            let text =
                format!("No app is routed at {}{}.", normal_host(name), request.uri().path());
            return turn_away(client, &request, StatusCode::NOT_FOUND, &text);
        }
    };

    let record = record(client, &request, Some(host.clone()));
    let held = held_bytes(&request);
    let length = content_length(request.headers());
    let (mut parts, body) = request.into_parts();
    let body = Upload::new(body, shared.limits.body_bytes);
    let mut exchange = Exchange::arrived(shared.clone(), app, record, arrived, body.watch());
    if let (Some(limit), Some(length)) = (shared.limits.body_bytes, length)
        && length > limit
    {
        return fail(exchange, FailReason::BodyTooLarge);
    }

    match exchange.app().site() {
        Ok(None) => {}
        Ok(Some(site)) => {
            let http::request::Parts { method, uri, headers, .. } = &parts;
            return site::respond(exchange, &site, &Ask { method, uri, headers }).await;
        }
        Err(reason) => return fail(exchange, reason),
    }
    headers::strip_hop_by_hop(&mut parts.headers);
    headers::set_forwarded(&mut parts.headers, &client.addr_text, &host, client.tls);
    parts.headers.remove(header::EXPECT); // answered by us when the body is asked for
    if let Some((protocol, _)) = &client_upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol.clone());
    }
    parts.extensions.clear();
    let request = Request::from_parts(parts, body);

    let answer = match send(&mut exchange, request, &host, held, client.tls).await {
        Ok(answer) => answer,
        Err(Failure::Reason(reason)) => return fail(exchange, reason),
        Err(Failure::Site(site, request)) => {
            let (method, uri, headers) = (request.method(), request.uri(), request.headers());
            return site::respond(exchange, &site, &Ask { method, uri, headers }).await;
        }
        Err(Failure::ClientGone) => {
            exchange.end(Outcome::ClientAborted, None);
            return refuse::plain(StatusCode::BAD_REQUEST, "The request body broke off.");
        }
    };
    respond(client, exchange, answer, client_upgrade)
}

enum Failure {
    Reason(FailReason),
    /// The App is a site, and that has come only now.
    Site(Arc<Site>, Box<Request<Upload>>),
    ClientGone,
}

/// Sends `request` to a Backend of its App; to another one, or to the same one later, for as
/// long as none has got a byte of it.
async fn send(
    exchange: &mut Exchange,
    mut request: Request<Upload>,
    host: &HeaderValue,
    held: u64,
    tls: bool,
) -> Result<Answer, Failure> {
    let app = exchange.app().clone();
    let (connect_time, response_time) =
        (exchange.limits().connect_time, exchange.limits().response_time);
    let mut wait = app.wait(Instant::now(), held, &carried(&request));
    let mut refusals = 0;
    loop {
        let granted = app.claim(&mut wait, &carried(&request)).await.map_err(Failure::Reason)?;
        let claim = match granted {
            Granted::Claim(claim) => claim,
            Granted::Site(site) => {
                exchange.waited(wait.parked, wait.tries);
                return Err(Failure::Site(site, Box::new(request)));
            }
        };
        let backend = exchange.claimed(claim, wait.parked, wait.tries).backend().clone();
        let pooled = backend.pool.take(Instant::now());
        let fresh = pooled.is_none();
        let upstream = match pooled {
            Some(upstream) => upstream,
            None => match backend.connect(connect_time).await {
                Ok(upstream) => upstream,
                Err(error) => {
                    tracing::debug!(%error, container = %backend.container, "connect failed");
                    app.suspect(&backend, connect_time);
                    exchange.unclaim();
                    continue;
                }
            },
        };
        address(&mut request, backend.protocol, host);
        exchange.sending();
        let sent = match response_time {
            None => upstream.send(request).await,
            Some(time) => tokio::time::timeout(time, upstream.send(request))
                .await
                .map_err(|_| Failure::Reason(FailReason::ResponseTimeout))?,
        };
        match sent {
            Ok((mut response, line)) => {
                exchange.answered(response.status());
                if let Some(cookie) = app.keep_client(&wait, backend.release, exchange.path(), tls)
                {
                    response.headers_mut().append(header::SET_COOKIE, cookie);
                }
                return Ok((response, line));
            }
            Err(SendError::Unsent(unsent)) => {
                exchange.moved();
                if fresh {
                    app.suspect(&backend, connect_time);
                }
                request = *unsent;
            }
            Err(SendError::Refused(refused)) => {
                if refusals == REFUSALS {
                    return Err(Failure::Reason(FailReason::ClosedEarly));
                }
                refusals += 1;
                exchange.moved();
                request = *refused;
            }
            Err(SendError::Failed { not_http, error }) => {
                tracing::debug!(%error, "no answer");
                return Err(classify(exchange, not_http));
            }
        }
    }
}

/// What rules look at of a request.
fn carried(request: &Request<Upload>) -> Carried<'_> {
    Carried { headers: request.headers(), query: request.uri().query() }
}

/// Who is to blame for a request that was sent and not answered.
fn classify(exchange: &Exchange, not_http: bool) -> Failure {
    match exchange.upload() {
        Some(upload) if upload.client_failed() => Failure::ClientGone,
        Some(upload) if upload.too_large() => Failure::Reason(FailReason::BodyTooLarge),
        _ if not_http => Failure::Reason(FailReason::BadResponse),
        _ => Failure::Reason(FailReason::ClosedEarly),
    }
}

/// Passes the App's response on.
fn respond(
    client: &Arc<Client>,
    exchange: Box<Exchange>,
    (mut response, mut line): Answer,
    client_upgrade: Option<(HeaderValue, OnUpgrade)>,
) -> Response<Reply> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match (client_upgrade, line) {
            (Some((_, upgrade)), Some(line)) => tunnel(client, exchange, response, line, upgrade),
            _ => fail(exchange, FailReason::BadResponse),
        };
    }
    if exchange.upload().is_some_and(|upload| !upload.ended())
        && let Some(line) = &mut line
    {
        // The body of the request goes on whether or not the client reads the response.
        line.detach();
    }
    headers::strip_hop_by_hop(response.headers_mut());
    for ours in [refuse::FAILED_BY, refuse::REASON] {
        response.headers_mut().remove(ours); // an App does not speak for the gateway
    }
    *response.version_mut() = Version::HTTP_11; // of our connection, not of the App's
    response.map(|incoming| Reply::App(Download::new(incoming, line, exchange)))
}

/// Joins client and App, after the App's 101.
fn tunnel(
    client: &Arc<Client>,
    exchange: Box<Exchange>,
    mut response: Response<AppBody>,
    mut line: Line,
    client_upgrade: OnUpgrade,
) -> Response<Reply> {
    line.detach();
    let app_upgrade = hyper::upgrade::on(&mut response);
    let protocol = response.headers().get(header::UPGRADE).cloned();
    headers::strip_hop_by_hop(response.headers_mut());
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(header::UPGRADE, protocol);
    }
    let client = client.clone(); // keeps the connection counted
    tokio::spawn(async move {
        let joined = async {
            let (near, far) = tokio::try_join!(client_upgrade, app_upgrade)?;
            let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
            // How either side ended the tunnel is their affair.
            let _ = tokio::io::copy_bidirectional_with_sizes(
                &mut near,
                &mut far,
                TUNNEL_BUFFER,
                TUNNEL_BUFFER,
            )
            .await;
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            joined = joined => exchange.end(
                if joined.is_ok() { Outcome::Completed } else { Outcome::ClientAborted },
                None,
            ),
            () = client.shared.reached(Phase::Cut) => drop(exchange),
        }
        drop((client, line));
    });
    response.map(|_| Reply::empty())
}

/// Answers a request that failed.
fn fail(exchange: Box<Exchange>, reason: FailReason) -> Response<Reply> {
    let app = exchange.app();
    let response = refuse::failed(&app.key, reason, app.retry_after());
    exchange.fail(reason, response.status());
    response
}

/// Answers a request that belongs to no App.
fn turn_away(
    client: &Client,
    request: &Request<Incoming>,
    status: StatusCode,
    text: &str,
) -> Response<Reply> {
    client.shared.refused(status);
    client.shared.log.write(|| {
        let host = request.headers().get(header::HOST).cloned();
        Record { status: status.as_u16(), ..record(client, request, host) }
    });
    refuse::plain(status, text)
}

/// The host a request is for, or why the request is refused.
fn vet(request: &Request<Incoming>) -> Result<HeaderValue, (StatusCode, &'static str)> {
    let bad = |text| Err((StatusCode::BAD_REQUEST, text));
    if request.method() == Method::CONNECT {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "CONNECT is not supported here."));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return bad("The request has more than one Host.");
    }
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let host = match (host, authority) {
        (None, None) => return bad("The request has no Host."),
        (Some(host), None) => host.clone(),
        (Some(host), Some(authority))
            if host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) =>
        {
            host.clone()
        }
        (Some(_), Some(_)) => return bad("The request's Host is not that of its address."),
        (None, Some(authority)) => HeaderValue::from_str(authority)
            .map_err(|_| (StatusCode::BAD_REQUEST, "The request's host is malformed."))?,
    };
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(byte);
    if host.is_empty() || !host.as_bytes().iter().all(fits) {
        return bad("The request's Host is malformed.");
    }
    Ok(host)
}

/// The protocol a client wants to change to. HTTP/2 by upgrade is ignored, as every server
/// may: through the tunnel, requests would pass that nobody here has seen.
fn wanted_upgrade(request: &Request<Incoming>) -> Option<HeaderValue> {
    if request.version() != Version::HTTP_11 {
        return None;
    }
    let wanted = request.headers().get(header::UPGRADE)?;
    let text = wanted.to_str().ok()?.to_ascii_lowercase();
    let names_upgrade = request.headers().get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|option| option.trim().eq_ignore_ascii_case("upgrade"))
        })
    });
    let is_http = text
        .split(',')
        .any(|protocol| protocol.trim().starts_with("h2") || protocol.trim().starts_with("http"));
    (names_upgrade && !is_http).then(|| wanted.clone())
}

/// Gives a request the form that `protocol` wants.
fn address(request: &mut Request<Upload>, protocol: Protocol, host: &HeaderValue) {
    let path = request.uri().path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    match protocol {
        Protocol::Http1 => {
            *request.version_mut() = Version::HTTP_11;
            *request.uri_mut() = Uri::from(path);
            request.headers_mut().insert(header::HOST, host.clone());
            headers::join_cookies(request.headers_mut());
        }
        Protocol::H2c => {
            let mut parts = http::uri::Parts::default();
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = host.to_str().ok().and_then(|host| host.parse().ok());
            parts.path_and_query = Some(path);
            *request.version_mut() = Version::HTTP_2;
            // Without an authority, which `vet` all but excludes, the address stays as it is.
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
                request.headers_mut().remove(header::HOST);
                // HTTP/2 has no upgrades.
                request.headers_mut().remove(header::CONNECTION);
                request.headers_mut().remove(header::UPGRADE);
            }
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Bytes that may be held for a request while it is parked: its head, and of its body what
/// hyper takes in unasked.
fn held_bytes(request: &Request<Incoming>) -> u64 {
    use http_body::Body;
    let fields: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    let body = request.body().size_hint().upper().unwrap_or(u64::MAX).min(BODY_WINDOW.into());
    (fields + path) as u64 + body
}

fn record(client: &Client, request: &Request<Incoming>, host: Option<HeaderValue>) -> Record {
    Record {
        at: SystemTime::now(),
        client: client.addr,
        protocol: match request.version() {
            Version::HTTP_2 => "h2",
            Version::HTTP_10 => "http/1.0",
            _ => "http/1.1",
        },
        method: request.method().clone(),
        host,
        uri: request.uri().clone(),
        app: None,
        served_by: None,
        status: 0,
        bytes_in: 0,
        bytes_out: 0,
        total: Default::default(),
        parked: Default::default(),
        answered: None,
        tries: 0,
        outcome: None,
    }
}
