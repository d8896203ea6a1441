//! The one place every request passes before its handler: where it comes from, who asks, and
//! whether they may.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, MatchedPath, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use stead_core::error::{Code, UserError};

use super::Api;
use super::problem::Problem;
use crate::auth::{Caller, rule};
use crate::clock;

/// The one route that answers without a caller: it says only that somebody is there.
const HEALTH: &str = "/api/v1/healthz";

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// A process on this machine, on the Unix socket, run by this user.
    Local {
        uid: u32,
    },
    Tcp(SocketAddr),
}

/// Admits a request or answers it.
pub(super) async fn guard(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    path: Option<MatchedPath>,
    params: RawPathParams,
    mut request: Request,
    next: Next,
) -> Response {
    match admit(&api, peer, path.as_ref(), &params, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

fn admit(
    api: &Api,
    peer: Peer,
    path: Option<&MatchedPath>,
    params: &RawPathParams,
    request: &Request,
) -> Result<Caller, Problem> {
    same_origin(peer, request.headers())?;
    let path = path.map(MatchedPath::as_str);
    if path == Some(HEALTH) {
        return Ok(Caller {
            name: "nobody".to_owned(),
            role: stead_core::api::Role::Viewer,
            namespace: None,
            token: None,
        });
    }
    let caller = identify(api, peer, request.headers())?;
    let Some(path) = path else {
        return Err(UserError::new(
            Code::NotFound,
            format!("{} is not a path of this API", request.uri().path()),
            "/api/openapi.json lists them",
        )
        .into());
    };
    let namespace = params.iter().find(|(name, _)| *name == "ns").map(|(_, value)| value);
    match rule(request.method(), path) {
        Some(rule) if caller.may(rule, namespace) => Ok(caller),
        _ => Err(UserError::new(
            Code::Denied,
            format!("{} may not {} {}", caller.name, request.method(), request.uri().path()),
            "use a token of a higher role, or of that namespace",
        )
        .into()),
    }
}

/// A token, if one is given, decides; otherwise the local root is admitted.
fn identify(api: &Api, peer: Peer, headers: &HeaderMap) -> Result<Caller, Problem> {
    let Some(authorization) = headers.get(header::AUTHORIZATION) else {
        return match peer {
            Peer::Local { uid: 0 } => Ok(Caller::root()),
            Peer::Local { .. } | Peer::Tcp(_) => Err(unauthenticated("no token was given")),
        };
    };
    let secret = authorization
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, secret)| secret.trim());
    let found = secret.map(|secret| api.tokens.find(secret, clock::now())).transpose()?;
    found.flatten().ok_or_else(|| unauthenticated("the token is unknown or has expired"))
}

fn unauthenticated(message: &str) -> Problem {
    UserError::new(
        Code::Unauthenticated,
        message,
        "give a token with --token or STEAD_TOKEN; root may use the Unix socket without one",
    )
    .into()
}

/// A web page of another origin must not reach the API through a person's browser, neither
/// directly nor by a host name that was made to point here.
fn same_origin(peer: Peer, headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST);
    if let Peer::Tcp(_) = peer
        && !host.is_some_and(names_this_machine)
    {
        return Err(foreign("host", host));
    }
    match text(header::ORIGIN) {
        Some(origin) => {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            if authority.is_some() && authority == host {
                Ok(())
            } else {
                Err(foreign("origin", Some(origin)))
            }
        }
        None => Ok(()),
    }
}

fn foreign(what: &str, found: Option<&str>) -> Problem {
    UserError::new(
        Code::Denied,
        format!("requests with {what} {} are refused", found.unwrap_or("missing")),
        "address the API as localhost or by its IP address",
    )
    .into()
}

/// Whether a `Host` header names this machine: `localhost` or an IP address. Only a loopback
/// address is ever listened on, so an address cannot be somebody else's.
fn names_this_machine(host: &str) -> bool {
    if host.parse::<SocketAddr>().is_ok() || host.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        for good in
            ["localhost", "localhost:7070", "127.0.0.1:7070", "[::1]:7070", "[::1]", "127.0.0.1"]
        {
            assert!(names_this_machine(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:7070",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
        ] {
            assert!(!names_this_machine(bad), "{bad}");
        }
    }

    #[test]
    fn foreign_pages_are_refused() {
        let tcp = Peer::Tcp("127.0.0.1:1".parse().unwrap());
        let with = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "localhost:7070".parse().unwrap());
            headers.insert(header::ORIGIN, origin.parse().unwrap());
            same_origin(tcp, &headers).is_ok()
        };
        assert!(with("http://localhost:7070"));
        for foreign in
            ["http://evil.example", "http://localhost:8080", "null", "http://127.0.0.1:7070"]
        {
            assert!(!with(foreign), "{foreign}");
        }
        assert!(same_origin(tcp, &HeaderMap::new()).is_err(), "a host is needed");
        assert!(same_origin(Peer::Local { uid: 0 }, &HeaderMap::new()).is_ok());
    }
}
