//! Header fields that are the gateway's affair.
//!
//! Promises: what concerns one connection only does not pass to the next (RFC 9110, 7.6.1),
//! in neither direction; and what an App reads about its client was written by us.

use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};

const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What a client could claim about where it came from, and nobody checked.
const CLAIMED_BY_CLIENT: [HeaderName; 5] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-real-ip"),
];

/// Takes the fields away that concern one connection only. Trailers stay announced, and wanted
/// when they were: gRPC lives on them.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            // Naming a field that routing or framing rests on must not take it away.
            .filter(|name| ![header::HOST, header::CONTENT_LENGTH, header::TE].contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    let wants_trailers = headers.get_all(header::TE).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
        })
    });
    if wants_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(header::TE);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
}

/// Says who the client is, in the place of whatever the request said.
pub(crate) fn set_forwarded(
    headers: &mut HeaderMap,
    client: &HeaderValue,
    host: &HeaderValue,
    tls: bool,
) {
    for name in CLAIMED_BY_CLIENT {
        headers.remove(name);
    }
    headers.insert(X_FORWARDED_FOR, client.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(if tls { "https" } else { "http" }));
    headers.insert(X_FORWARDED_HOST, host.clone());
}

/// Joins `Cookie` fields, which HTTP/2 may split, for an HTTP/1.1 App (RFC 9113, 8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let Entry::Occupied(cookies) = headers.entry(header::COOKIE) else { return };
    let parts: Vec<HeaderValue> = cookies.remove_entry_mult().1.collect();
    let joined = parts.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
    let joined = HeaderValue::from_bytes(&joined).expect("joined values stay a value");
    headers.insert(header::COOKIE, joined);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (name.parse::<HeaderName>().unwrap(), HeaderValue::try_from(*value).unwrap())
            })
            .collect()
    }

    #[test]
    fn what_concerns_one_connection_goes() {
        let mut headers = map(&[
            ("connection", "keep-alive, X-Mine, Host, Content-Length"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "gzip, trailers"),
            ("trailer", "x-sum"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "chunked"),
            ("host", "h"),
            ("content-length", "3"),
            ("x-other", "2"),
        ]);
        strip_hop_by_hop(&mut headers);
        let kept = map(&[
            ("te", "trailers"),
            ("trailer", "x-sum"),
            ("host", "h"),
            ("content-length", "3"),
            ("x-other", "2"),
        ]);
        assert_eq!(headers, kept);
        let mut headers = map(&[("te", "gzip;q=0.5")]);
        strip_hop_by_hop(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn a_client_cannot_say_where_it_comes_from() {
        let mut headers = map(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
        ]);
        let host = HeaderValue::from_static("h:8080");
        set_forwarded(&mut headers, &HeaderValue::from_static("10.0.0.1"), &host, false);
        let ours = map(&[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "h:8080"),
        ]);
        assert_eq!(headers, ours);
    }

    #[test]
    fn cookies_become_one() {
        let mut headers = map(&[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2"), ("x", "y")]));
    }
}
