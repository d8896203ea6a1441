//! Where the platform's API is: a Unix socket on this machine, or a URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use stead_core::error::{Code, UserError};

/// Where the API is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The platform's own socket; its owner is the local root.
    Unix(PathBuf),
    /// A TCP address in the form `host:port`.
    Http(String),
}

impl Endpoint {
    /// Whether the platform is on this machine for sure.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// What goes into the `Host` header.
    pub(super) fn authority(&self) -> &str {
        match self {
            Self::Unix(_) => "localhost",
            Self::Http(authority) => authority,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(authority) => write!(f, "http://{authority}"),
        }
    }
}

impl FromStr for Endpoint {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, UserError> {
        let bad = |what: &str| {
            UserError::new(
                Code::BadRequest,
                format!("server {text:?} {what}"),
                "write unix:/run/stead/stead.sock, or http://127.0.0.1:7070",
            )
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(bad("needs an absolute path"))
            };
        }
        if text.starts_with("https://") {
            return Err(UserError::new(
                Code::NotBuilt,
                "the command line does not speak TLS yet",
                "forward the API's port, for instance by ssh -L 7070:127.0.0.1:7070, and use \
                 --server http://127.0.0.1:7070",
            ));
        }
        let rest = text.strip_prefix("http://").ok_or_else(|| bad("has no known scheme"))?;
        let authority = rest.trim_end_matches('/');
        if authority.is_empty() || authority.contains(['/', '@', '?', '#', ' ']) {
            return Err(bad("is not a plain host and port"));
        }
        let with_port = match authority.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_owned(),
            _ => format!("{authority}:80"),
        };
        Ok(Self::Http(with_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_socket_or_a_plain_url() {
        for (text, shown) in [
            ("unix:/run/stead/stead.sock", "unix:/run/stead/stead.sock"),
            ("http://127.0.0.1:7070", "http://127.0.0.1:7070"),
            ("http://[::1]:7070/", "http://[::1]:7070"),
            ("http://box", "http://box:80"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for bad in ["", "unix:run/x", "127.0.0.1:7070", "http://", "http://a/b", "http://u@h"] {
            assert_eq!(bad.parse::<Endpoint>().unwrap_err().code, Code::BadRequest, "{bad}");
        }
        assert_eq!("https://box".parse::<Endpoint>().unwrap_err().code, Code::NotBuilt);
    }
}
