//! Texts with rules: host names, ports, paths, names of variables and volumes, users.
//!
//! A value of one of these types has been checked; nobody needs to check it again.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::BadValue;
use crate::error::Code;

/// Declares a checked text. `$read` turns what was written into what is kept.
macro_rules! checked_text {
    ($(#[$doc:meta])* $type:ident, $read:ident, $pattern:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[derive(ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String, pattern = $pattern, example = $example)]
        pub struct $type(String);

        impl $type {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = BadValue;
            fn from_str(text: &str) -> Result<Self, BadValue> {
                $read(text).map(Self)
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadValue;
            fn try_from(text: String) -> Result<Self, BadValue> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": [$example] })
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_text!(
    /// The name of an environment variable.
    EnvName, read_env_name, r"^[A-Za-z_][A-Za-z0-9_.\-]*$", "LOG_LEVEL"
);
checked_text!(
    /// A host name, in lower case and without a final dot.
    HostName, read_host,
    r"^[A-Za-z0-9]([A-Za-z0-9\-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9\-]*[A-Za-z0-9])?)*\.?$",
    "web.example.com"
);
checked_text!(
    /// An absolute path inside a Container, without `.`, `..` or empty parts.
    AbsPath, read_path, r"^/", "/data"
);
checked_text!(
    /// The path of an HTTP request, with its query if any.
    HttpPath, read_http_path, r"^/\S*$", "/healthz"
);
checked_text!(
    /// The name of a volume: a DNS label, because it names a folder.
    VolumeName, read_volume_name, r"^[a-z]([a-z0-9\-]*[a-z0-9])?$", "data"
);
checked_text!(
    /// Who a process runs as: `USER` or `USER:GROUP`, each a name of the image or a number.
    UserSpec, read_user, r"^[^\s:]+(:[^\s:]+)?$", "1000:1000"
);

checked_text!(
    /// The name of a sidecar: a DNS label, and not `main`, which is the App itself.
    SidecarName, read_sidecar_name, r"^[a-z]([a-z0-9\-]*[a-z0-9])?$", "proxy"
);
checked_text!(
    /// The name of an HTTP header, in lower case.
    HeaderName, read_header_name, r"^[!#$%&'*+.^_`|~0-9A-Za-z\-]+$", "x-gray"
);
checked_text!(
    /// The name of a cookie.
    CookieName, read_cookie_name, r"^[!#$%&'*+.^_`|~0-9A-Za-z\-]+$", "gray"
);
checked_text!(
    /// The name of a parameter in a query, decoded.
    ParameterName, read_parameter_name, r"^[^\s&=#]+$", "gray"
);

checked_text!(
    /// The path of a file in a site, from its root; kept with a slash before it.
    SitePath, read_site_path, r"^/?[^/\s]", "index.html"
);

/// A TCP port, 1 to 65535.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
    schemars::JsonSchema,
)]
#[serde(transparent)]
#[schema(value_type = u16, minimum = 1)]
#[schemars(inline)]
pub struct Port(#[schemars(range(min = 1))] pub std::num::NonZeroU16);

impl Port {
    /// The number.
    pub const fn number(self) -> u16 {
        self.0.get()
    }
}

impl FromStr for Port {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        text.parse()
            .map(Self)
            .map_err(|_| BadValue::text(Code::ManifestRange, "a port from 1 to 65535", text))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn read_env_name(text: &str) -> Result<String, BadValue> {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts && text.len() <= 256 && text.bytes().all(word) {
        return Ok(text.to_owned());
    }
    let expected = "a variable's name of letters, digits and '_', not starting with a digit";
    Err(BadValue::text(Code::ManifestEnv, expected, text))
}

fn read_host(text: &str) -> Result<String, BadValue> {
    let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.len() > 253 || !host.split('.').all(label) {
        let bad = BadValue::text(Code::ManifestHost, "a host name such as web.example.com", text);
        return Err(if text.contains("://") || text.contains('/') {
            bad.hint("leave out the scheme and the path")
        } else if text.contains(':') {
            bad.hint("leave out the port: the gateway's own port applies")
        } else if text.contains('*') {
            bad.hint("wildcards are not supported: list each host")
        } else if !text.is_ascii() {
            bad.hint("write an international name in its ASCII form (xn--…)")
        } else {
            bad
        });
    }
    if host.ends_with(".localhost") && host.split('.').count() > 2 {
        let expected = "a host name outside APP.NAMESPACE.localhost";
        return Err(BadValue::text(Code::ManifestHost, expected, text)
            .hint("each App has its own name there already; leave this one out"));
    }
    Ok(host)
}

/// Longest path that Linux takes, in bytes, without the final NUL.
const LONGEST_PATH: usize = 4095;

fn read_path(text: &str) -> Result<String, BadValue> {
    let bad = |expected: &str| Err(BadValue::text(Code::ManifestPath, expected, text));
    let Some(rest) = text.strip_prefix('/') else {
        return bad("an absolute path such as /data");
    };
    if text.len() > LONGEST_PATH || text.contains(char::is_control) {
        return bad("a path of at most 4095 bytes without control characters");
    }
    if rest.is_empty() || rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return bad("a path without '.', '..' or empty parts");
    }
    Ok(text.to_owned())
}

fn read_http_path(text: &str) -> Result<String, BadValue> {
    let fine = text.starts_with('/')
        && text.len() <= 1024
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    if fine {
        return Ok(text.to_owned());
    }
    let expected = "the path of an HTTP request such as /healthz";
    Err(BadValue::text(Code::ManifestPath, expected, text))
}

fn read_site_path(text: &str) -> Result<String, BadValue> {
    let path = text.strip_prefix('/').unwrap_or(text);
    let inside = !path.split('/').any(|part| matches!(part, "" | "." | ".."));
    if inside && path.len() <= 1024 && !path.contains(char::is_control) {
        return Ok(format!("/{path}"));
    }
    let expected = "the path of a file in the site such as index.html";
    Err(BadValue::text(Code::ManifestPath, expected, text))
}

fn read_volume_name(text: &str) -> Result<String, BadValue> {
    // A volume's name obeys the rules of an App's.
    match crate::name::AppName::new(text) {
        Ok(name) => Ok(name.into()),
        Err(_) => Err(bad_name("data", text)),
    }
}

fn read_sidecar_name(text: &str) -> Result<String, BadValue> {
    if text == "main" {
        let expected = "a name other than main, which is the App itself";
        return Err(BadValue::text(Code::ManifestName, expected, text));
    }
    match crate::name::AppName::new(text) {
        Ok(name) => Ok(name.into()),
        Err(_) => Err(bad_name("proxy", text)),
    }
}

/// Longest name of a header, cookie or parameter, in bytes.
const LONGEST_TOKEN: usize = 256;

/// Whether a text is a `token` of RFC 9110, section 5.6.2, of a sensible length.
fn is_token(text: &str) -> bool {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=LONGEST_TOKEN).contains(&text.len()) && text.bytes().all(token)
}

fn read_header_name(text: &str) -> Result<String, BadValue> {
    if is_token(text) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(BadValue::text(Code::ManifestText, "the name of a header such as x-gray", text))
}

fn read_cookie_name(text: &str) -> Result<String, BadValue> {
    if is_token(text) {
        return Ok(text.to_owned());
    }
    Err(BadValue::text(Code::ManifestText, "the name of a cookie such as gray", text))
}

fn read_parameter_name(text: &str) -> Result<String, BadValue> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '&' | '=' | '#');
    if (1..=LONGEST_TOKEN).contains(&text.len()) && !text.contains(bad) {
        return Ok(text.to_owned());
    }
    let expected = "the name of a parameter in a query such as gray, decoded";
    Err(BadValue::text(Code::ManifestText, expected, text))
}

/// The refusal of a text that is not a DNS label.
pub(super) fn bad_name(example: &str, text: &str) -> BadValue {
    let expected = format!(
        "a name such as {example}: 1 to 40 of a-z, 0-9 and '-', starting with a letter and not ending in '-'"
    );
    BadValue::text(Code::ManifestName, expected, text)
}

fn read_user(text: &str) -> Result<String, BadValue> {
    let part = |part: &str| {
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$');
        (1..=32).contains(&part.len()) && !part.starts_with('-') && part.bytes().all(word)
    };
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() <= 2 && parts.into_iter().all(part) {
        return Ok(text.to_owned());
    }
    let expected = "a user such as app, 1000 or 1000:1000";
    Err(BadValue::text(Code::ManifestText, expected, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_kept_in_one_form() {
        let host: HostName = "Web.Example.COM.".parse().unwrap();
        assert_eq!(host.as_str(), "web.example.com");
        assert!("web.localhost".parse::<HostName>().is_ok());
        let long = format!("{}.com", "a".repeat(64));
        for bad in [
            "",
            ".",
            "a..b",
            "-a.com",
            "a-.com",
            "a_b.com",
            "http://a.com",
            "a.com:80",
            "*.a.com",
            "bücher.de",
            "a b",
            &long,
            "other.default.localhost",
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_stay_inside() {
        for good in ["/data", "/etc/app/config.toml", "/..data", "/a b"] {
            assert!(good.parse::<AbsPath>().is_ok(), "{good}");
        }
        for bad in ["", "/", "data", "./data", "/a/../b", "/a/..", "/a//b", "/a/", "/./a", "/a\0b"]
        {
            assert!(bad.parse::<AbsPath>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_other_texts_have_their_rules() {
        for (good, bad) in [("LOG_LEVEL", "1A"), ("a.b", "A=B"), ("_", ""), ("A", "Ä")] {
            assert!(good.parse::<EnvName>().is_ok(), "{good}");
            assert!(bad.parse::<EnvName>().is_err(), "{bad}");
        }
        for (good, bad) in [("/healthz", "healthz"), ("/a?b=c", "/a b"), ("/", "http://a/")] {
            assert!(good.parse::<HttpPath>().is_ok(), "{good}");
            assert!(bad.parse::<HttpPath>().is_err(), "{bad}");
        }
        for (good, bad) in [("index.html", ""), ("/a/b.html", "/"), ("a b", "../a"), ("a", "a/")] {
            assert!(good.parse::<SitePath>().is_ok(), "{good}");
            assert!(bad.parse::<SitePath>().is_err(), "{bad}");
        }
        assert_eq!("a.html".parse::<SitePath>().unwrap(), "/a.html".parse().unwrap());
        for (good, bad) in [("app", ""), ("1000:1000", "a:b:c"), ("www-data", ":0"), ("0", "a b")] {
            assert!(good.parse::<UserSpec>().is_ok(), "{good}");
            assert!(bad.parse::<UserSpec>().is_err(), "{bad}");
        }
        for (good, bad) in [("1", "0"), ("65535", "65536"), ("80", "-1")] {
            assert!(good.parse::<Port>().is_ok(), "{good}");
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
        for (good, bad) in [("data", "Data"), ("d-1", "../x")] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good}");
            assert!(bad.parse::<VolumeName>().is_err(), "{bad}");
        }
    }
}
