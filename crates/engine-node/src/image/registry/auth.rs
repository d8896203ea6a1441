//! How a registry asks for credentials, and whom they may be given to.
//!
//! Promises: a token is only ever fetched from the registry's own domain, over TLS unless the
//! registry itself is spoken to without. Does not send anything.
//!
//! Formats: RFC 9110 section 11.6.1 (`WWW-Authenticate`); the distribution project's "Token
//! Authentication Specification".

use std::net::IpAddr;

use reqwest::Url;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password.
    Basic,
    /// A token, to be fetched from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges in a response, those not understood left out.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse)
        .collect()
}

fn parse(mut text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    // Schemes and parameters share one comma-separated list: a word followed by `=` is a
    // parameter of the scheme before it.
    let mut current: Option<(String, Vec<(String, String)>)> = None;
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        let end = text.find([' ', '\t', ',', '=']).unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        if word.is_empty() {
            break;
        }
        match rest.strip_prefix('=') {
            Some(rest) => {
                let (value, rest) = parameter_value(rest);
                if let Some((_, parameters)) = &mut current {
                    parameters.push((word.to_ascii_lowercase(), value));
                }
                text = rest;
            }
            None => {
                found.extend(current.take().and_then(understand));
                current = Some((word.to_ascii_lowercase(), Vec::new()));
                text = rest;
            }
        }
    }
    found.extend(current.and_then(understand));
    found
}

fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '\t', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

fn understand((scheme, parameters): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let get = |key: &str| parameters.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope"),
        }),
        _ => None,
    }
}

/// Whether a token of the registry at `origin` may be fetched from `realm`.
pub(super) fn realm_belongs(origin: &Url, realm: &Url) -> bool {
    let (Some(own), Some(other)) = (origin.host_str(), realm.host_str()) else { return false };
    let secure =
        realm.scheme() == "https" || (realm.scheme() == "http" && origin.scheme() == "http");
    secure && (own == other || registrable(own).is_some_and(|own| Some(own) == registrable(other)))
}

/// The part of a host name that one owner registered. Without the public suffix list, which
/// changes weekly, this errs towards refusing: two labels, or three where the second is a
/// usual category below a country, and the whole name where hosts are rented out by name.
fn registrable(host: &str) -> Option<&str> {
    const RENTED: [&str; 12] = [
        "amazonaws.com",
        "azurecr.io",
        "azurewebsites.net",
        "cloudfront.net",
        "fly.dev",
        "github.io",
        "herokuapp.com",
        "pages.dev",
        "pkg.dev",
        "run.app",
        "vercel.app",
        "workers.dev",
    ];
    const CATEGORIES: [&str; 10] =
        ["ac", "co", "com", "edu", "gob", "gov", "gv", "ne", "net", "or"];
    if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
        return None;
    }
    if RENTED.iter().any(|shared| host.ends_with(shared)) {
        return Some(host);
    }
    let labels: Vec<&str> = host.split('.').collect();
    let keep = match labels[..] {
        [.., _, second, top]
            if top.len() == 2 && (CATEGORIES.contains(&second) || second == "org") =>
        {
            3
        }
        [.., _, _] => 2,
        _ => return None,
    };
    let suffix: usize = labels[labels.len() - keep..].iter().map(|label| label.len() + 1).sum();
    Some(&host[host.len() + 1 - suffix..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        Challenge::Bearer {
            realm: realm.into(),
            service: service.map(Into::into),
            scope: scope.map(Into::into),
        }
    }

    #[test]
    fn challenges_are_parsed_alone_and_together() {
        assert_eq!(
            parse(
                r#"Bearer realm="https://a.b/t",service="s, \"x\"",scope="repository:a/b:pull,push""#
            ),
            [bearer("https://a.b/t", Some("s, \"x\""), Some("repository:a/b:pull,push"))]
        );
        assert_eq!(
            parse(r#"Negotiate, basic realm=x, BEARER realm=https://t"#),
            [Challenge::Basic, bearer("https://t", None, None)]
        );
        assert_eq!(parse("Bearer service=x"), []);
        for odd in ["", ",", "=", "a=b", "Bearer realm=\"unclosed", "Basic ===", "\"\"", "é=\"\\"]
        {
            parse(odd);
        }
    }

    #[test]
    fn a_realm_belongs_to_the_registry_or_is_refused() {
        let belongs = |origin: &str, realm: &str| {
            realm_belongs(&origin.parse().unwrap(), &realm.parse().unwrap())
        };
        for (origin, realm) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token"),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("https://reg.team.co.uk", "https://git.team.co.uk/t"),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/t"),
            ("http://localhost:5000", "http://localhost:9/t"),
            ("https://quay.io", "https://quay.io/v2/auth"),
        ] {
            assert!(belongs(origin, realm), "{origin} {realm}");
        }
        for (origin, realm) in [
            ("https://reg.example.com", "https://evil.example.org/t"),
            ("https://reg.example.com", "http://reg.example.com/t"),
            ("https://reg.example.com", "https://evilexample.com/t"),
            ("https://a.co.uk", "https://b.co.uk/t"),
            ("https://a.org.uk", "https://b.org.uk/t"),
            ("https://a.azurecr.io", "https://b.azurecr.io/t"),
            ("https://10.0.0.1", "https://11.0.0.1/t"),
            ("http://127.0.0.1:5000", "http://localhost:5000/t"),
            ("http://localhost", "http://otherhost/t"),
            ("https://reg.example.com", "file:///etc/passwd"),
        ] {
            assert!(!belongs(origin, realm), "{origin} {realm}");
        }
    }
}
