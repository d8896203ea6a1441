//! The cookie by which a client stays with the Release it met.
//!
//! It is not signed: it says no more than a number, and the Split decides whether that Release
//! may be asked for (`stead_core::routes::Sticky`).

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use stead_core::ids::ReleaseNo;

use crate::rules::cookies;

/// The cookie's name.
const NAME: &str = "stead-release";

/// The Release that a client has met before.
pub(crate) fn met(headers: &HeaderMap) -> Option<ReleaseNo> {
    cookies(headers, NAME).find_map(|value| value.parse().ok()).map(ReleaseNo)
}

/// What makes a client come back to `release` for `age`, for the paths under `path`.
pub(crate) fn keep(release: ReleaseNo, age: Duration, path: &str, tls: bool) -> HeaderValue {
    let (number, seconds) = (release.0, age.as_secs().max(1));
    // What would end it, or be another attribute.
    let path = if path.is_empty() || path.contains(';') { "/" } else { path };
    let secure = if tls { "; Secure" } else { "" };
    let text =
        format!("{NAME}={number}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}");
    // Only the path is not ours, and a request has had it.
    text.try_into().unwrap_or_else(|_| HeaderValue::from_static("stead-release="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header;

    #[test]
    fn what_is_kept_is_met() {
        let kept = keep(ReleaseNo(7), Duration::from_secs(90), "/api", true);
        let kept = kept.to_str().unwrap();
        assert_eq!(kept, "stead-release=7; Path=/api; Max-Age=90; HttpOnly; SameSite=Lax; Secure");
        let mut headers = HeaderMap::new();
        assert_eq!(met(&headers), None);
        headers.append(header::COOKIE, "a=b; stead-release=x".parse().unwrap());
        assert_eq!(met(&headers), None);
        headers.append(header::COOKIE, kept.split(';').next().unwrap().parse().unwrap());
        assert_eq!(met(&headers), Some(ReleaseNo(7)));
    }
}
