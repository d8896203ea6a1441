//! Registries, as the operator wants them reached: by which host, with which login, through
//! which mirrors.
//!
//! It promises that a [`RegistryHost`] can be put into a URL as it is. It does not know how
//! registries are spoken to, nor where logins are kept.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::error::UserError;
use crate::secret::Secret;

/// The host written for Docker Hub; its API answers under another one.
pub const DOCKER_HUB: &str = "docker.io";

/// The host of a registry with its port, as in references: `ghcr.io`, `localhost:5000`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RegistryHost(String);

/// Why a text is not the host of a registry, or not a mirror.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadHost(String);

impl RegistryHost {
    /// As written in references.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RegistryHost {
    type Err = BadHost;

    /// Docker Hub has several names; they become one.
    fn from_str(text: &str) -> Result<Self, BadHost> {
        if text.contains("://") || text.contains('/') {
            return Err(BadHost(format!(
                "{text:?} is not a host: write it alone, such as ghcr.io or localhost:5000"
            )));
        }
        check_host(text).map_err(BadHost)?;
        Ok(Self(match text.to_ascii_lowercase().as_str() {
            "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
            other => other.to_owned(),
        }))
    }
}

impl From<RegistryHost> for String {
    fn from(host: RegistryHost) -> Self {
        host.0
    }
}

impl TryFrom<String> for RegistryHost {
    type Error = BadHost;

    fn try_from(text: String) -> Result<Self, BadHost> {
        text.parse()
    }
}

impl PartialSchema for RegistryHost {
    fn schema() -> RefOr<Schema> {
        Object::builder()
            .schema_type(Type::String)
            .description(Some("The host of a registry, with its port if it has one."))
            .examples(["ghcr.io"])
            .into()
    }
}

impl ToSchema for RegistryHost {}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or("the \"[\" has no \"]\"")?;
            address
                .parse::<std::net::Ipv6Addr>()
                .map_err(|_| format!("{address:?} is not an IPv6 address"))?;
            (None, after.strip_prefix(':').or((!after.is_empty()).then_some("")))
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    // A sign would parse, too, and make two names of one registry.
    let is_port = |port: &str| !port.starts_with('+') && port.parse::<u16>().is_ok();
    if !port.is_none_or(is_port) {
        return Err(format!("the port in {host:?} is not a number from 0 to 65535"));
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.is_some_and(|name| !name.split('.').all(label)) {
        return Err(format!("{host:?} is not a host name"));
    }
    Ok(())
}

/// Where a mirror is: a registry, and what stands before the names of its repositories. Written
/// `HOST[:PORT][/PREFIX]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct MirrorAddress {
    /// The registry.
    pub host: RegistryHost,
    prefix: String,
}

impl MirrorAddress {
    /// What the mirror calls a repository.
    pub fn repository(&self, name: &str) -> String {
        match self.prefix.as_str() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        }
    }
}

impl fmt::Display for MirrorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.as_str() {
            "" => self.host.fmt(f),
            prefix => write!(f, "{}/{prefix}", self.host),
        }
    }
}

impl FromStr for MirrorAddress {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let (host, prefix) = match text.split_once('/') {
            Some((host, prefix)) if !host.ends_with(':') => (host, prefix.trim_end_matches('/')),
            _ => (text, ""),
        };
        // Strict enough for a URL's path; whether such a repository exists the mirror says.
        let part = |part: &str| {
            let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            part.bytes().all(|b| word(b) || b"._-".contains(&b))
                && part.bytes().next().is_some_and(word)
                && part.bytes().next_back().is_some_and(word)
        };
        if !prefix.is_empty() && !prefix.split('/').all(part) {
            return Err(BadHost(format!(
                "{prefix:?} cannot stand before a repository's name: expected lower-case letters, \
                 digits, \".\", \"_\" and \"-\""
            )));
        }
        Ok(Self { host: host.parse()?, prefix: prefix.to_owned() })
    }
}

impl From<MirrorAddress> for String {
    fn from(address: MirrorAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for MirrorAddress {
    type Error = BadHost;

    fn try_from(text: String) -> Result<Self, BadHost> {
        text.parse()
    }
}

impl PartialSchema for MirrorAddress {
    fn schema() -> RefOr<Schema> {
        Object::builder()
            .schema_type(Type::String)
            .description(Some("HOST[:PORT][/PREFIX] of a mirror."))
            .examples(["mirror.example/hub"])
            .into()
    }
}

impl ToSchema for MirrorAddress {}

/// Another registry that has what a registry has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Mirror {
    /// Where.
    pub address: MirrorAddress,
    /// It may also say which image a tag names. What is asked for by digest needs no trust; a
    /// tag is whatever the one asked says it is.
    #[serde(default)]
    pub tags: bool,
}

/// A name and a password, or what stands in for one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// What came of asking a registry whether it answers, and accepts a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryChecked {
    /// It answers, and accepted the login if one was given.
    Accepted,
    /// It answers and wants no login, so the one given was not tried.
    WantsNone,
}

/// What the operator said of registries. An engine asks at each pull and keeps nothing, so a
/// change holds at once.
pub trait RegistryBook: fmt::Debug + Send + Sync {
    /// The login for a registry, if one was given.
    ///
    /// # Errors
    /// Why it cannot be had. It never says anything of a password.
    fn login(&self, host: &RegistryHost) -> Result<Option<Login>, UserError>;

    /// Mirrors of a registry, in the order they are tried.
    ///
    /// # Errors
    /// When they cannot be read.
    fn mirrors(&self, host: &RegistryHost) -> Result<Vec<Mirror>, UserError>;
}

/// For an engine whose operator said nothing.
#[derive(Debug, Clone, Copy)]
pub struct NoRegistryBook;

impl RegistryBook for NoRegistryBook {
    fn login(&self, _: &RegistryHost) -> Result<Option<Login>, UserError> {
        Ok(None)
    }

    fn mirrors(&self, _: &RegistryHost) -> Result<Vec<Mirror>, UserError> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_hosts_alone() {
        for (text, shown) in [
            ("GHCR.io", "ghcr.io"),
            ("localhost:5000", "localhost:5000"),
            ("[::1]:5000", "[::1]:5000"),
            ("registry-1.docker.io", "docker.io"),
        ] {
            assert_eq!(text.parse::<RegistryHost>().unwrap().as_str(), shown);
        }
        for bad in ["", "https://ghcr.io", "ghcr.io/team", "a b", "x:99999", "-a.example", "[zz]"] {
            assert!(bad.parse::<RegistryHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mirror_may_have_a_prefix() {
        let mirror: MirrorAddress = "mirror.example:5000/proxy/hub/".parse().unwrap();
        assert_eq!(mirror.to_string(), "mirror.example:5000/proxy/hub");
        assert_eq!(mirror.repository("library/web"), "proxy/hub/library/web");
        let plain: MirrorAddress = "mirror.example".parse().unwrap();
        assert_eq!(plain.repository("library/web"), "library/web");
        for bad in ["", "http://mirror.example", "m.example/../x", "m.example/a//b", "m.example/A"]
        {
            assert!(bad.parse::<MirrorAddress>().is_err(), "{bad}");
        }
    }
}
