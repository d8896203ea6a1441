//! Names people give: Namespaces and Apps. Both are DNS labels, because both appear in
//! host names (`APP.NAMESPACE.localhost`), in paths of the API and in folder names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "name {0:?} is not a DNS label: use 1 to 40 of a-z, 0-9 and '-', starting with a letter and not ending in '-'"
)]
pub struct BadName(pub String);

/// Longest name accepted, in bytes. A label may have 63; the rest is room for suffixes of ours.
pub const MAX_NAME: usize = 40;

fn check(text: &str) -> Result<(), BadName> {
    let bytes = text.as_bytes();
    let fits = (1..=MAX_NAME).contains(&bytes.len())
        && bytes[0].is_ascii_lowercase()
        && bytes[bytes.len() - 1] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if fits { Ok(()) } else { Err(BadName(text.to_owned())) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        #[derive(utoipa::ToSchema, schemars::JsonSchema)]
        #[schema(value_type = String)]
        #[schemars(with = "String")]
        pub struct $type(String);

        impl $type {
            /// The name, checked to be a DNS label.
            pub fn new(text: impl Into<String>) -> Result<Self, BadName> {
                let text = text.into();
                check(&text)?;
                Ok(Self(text))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::new(text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A Namespace: the boundary of isolation, network and permission.
    NamespaceName
);
name!(
    /// An App's name inside its Namespace.
    AppName
);

impl Default for NamespaceName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// An App's full name. Its text form is `NAMESPACE/APP`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AppKey {
    /// The Namespace that holds the App.
    pub namespace: NamespaceName,
    /// The App's name in it.
    pub app: AppName,
}

impl AppKey {
    /// The key of `app` in `namespace`.
    pub fn new(namespace: NamespaceName, app: AppName) -> Self {
        Self { namespace, app }
    }

    /// The host name under which the App is always reachable through the gateway.
    pub fn default_host(&self) -> String {
        format!("{}.{}.localhost", self.app, self.namespace)
    }
}

impl utoipa::PartialSchema for AppKey {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        String::schema()
    }
}

impl utoipa::ToSchema for AppKey {}

impl fmt::Display for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.app)
    }
}

impl FromStr for AppKey {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let (namespace, app) = text.split_once('/').ok_or_else(|| BadName(text.to_owned()))?;
        Ok(Self::new(namespace.parse()?, app.parse()?))
    }
}

impl TryFrom<String> for AppKey {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<AppKey> for String {
    fn from(key: AppKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "web", "web-2", "a1"] {
            assert!(AppName::new(good).is_ok(), "{good}");
        }
        let long = "a".repeat(MAX_NAME + 1);
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "1a", "../x", "a/b", "a b", &long] {
            assert!(AppName::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_reads_what_it_writes() {
        let key: AppKey = "default/web".parse().unwrap();
        assert_eq!(key.to_string().parse::<AppKey>().unwrap(), key);
        assert_eq!(key.default_host(), "web.default.localhost");
        assert!("web".parse::<AppKey>().is_err());
    }
}
