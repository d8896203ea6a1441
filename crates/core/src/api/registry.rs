//! Requests and answers about registries. A password only comes in.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::registry::{Mirror, RegistryHost};
use crate::secret::{Secret, expose};
use crate::time::Time;

/// Gives the platform a login for a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    /// The name.
    pub user: String,
    /// The password, or a token that is given in its place.
    #[serde(serialize_with = "expose")]
    #[schema(value_type = String)]
    pub password: Secret,
}

/// Gives a registry a mirror, or changes one it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MirrorRequest {
    /// It may also say which image a tag names.
    #[serde(default)]
    pub tags: bool,
}

/// A registry that the platform was told something about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegistryView {
    /// Its host.
    pub host: RegistryHost,
    /// The login, without its password.
    pub login: Option<LoginView>,
    /// Its mirrors, in the order they are tried.
    pub mirrors: Vec<Mirror>,
}

/// A login, without its password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoginView {
    /// The name.
    pub user: String,
    /// When it was given.
    pub set: Time,
    /// By whom.
    pub by: String,
}

/// What came of giving a login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoggedIn {
    /// The registry's host.
    pub host: RegistryHost,
    /// The registry accepted it. False: it asked for none when it was tried, so nobody knows.
    pub accepted: bool,
}
