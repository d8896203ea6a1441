//! Which requests a batch sends to the new Release, by what they carry.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text::{CookieName, HeaderName, ParameterName};

/// What a request carries. Without a value, that it carries the name is enough.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema, JsonSchema,
)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[schemars(inline)]
pub enum Match {
    /// A header.
    Header {
        /// Its name, in whatever case.
        name: HeaderName,
        /// Its value, to the letter.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// A cookie.
    Cookie {
        /// Its name.
        name: CookieName,
        /// Its value, to the letter.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
    /// A parameter of the query, `?NAME=VALUE`.
    Query {
        /// Its name, decoded.
        name: ParameterName,
        /// Its value, decoded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
    },
}

impl Match {
    /// The value asked for, if any.
    pub fn value(&self) -> Option<&str> {
        match self {
            Self::Header { value, .. } | Self::Cookie { value, .. } | Self::Query { value, .. } => {
                value.as_deref()
            }
        }
    }
}
