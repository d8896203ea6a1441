//! Who may do what.
//!
//! # Guarantees
//! - [`rule`] names every route of the API with what it takes; a route that is not named is
//!   refused to everybody. The API asks at one place, before any handler runs.
//! - Secrets are stored as SHA-256 sums only and compared in constant time.
//! - No secret is built in. The first start makes one token, for `DATA/bootstrap-token`,
//!   which ends after a day, and as soon as another admin token was made with it.
//!
//! It does not know how a request arrives; see `api::guard`.

mod rule;
mod token;

use stead_core::api::Role;
use stead_core::name::NamespaceName;

pub(crate) use rule::{Rule, Scope, rule};
pub use token::BootstrapError;
pub(crate) use token::{Token, Tokens};

/// Who asks, once that is established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// For records: `root`, or `token NAME`.
    pub(crate) name: String,
    pub(crate) role: Role,
    /// The one Namespace the caller is limited to.
    pub(crate) namespace: Option<NamespaceName>,
    /// The token's id, when it was one.
    pub(crate) token: Option<String>,
}

impl Caller {
    /// The local root.
    pub(crate) fn root() -> Self {
        Self { name: "root".to_owned(), role: Role::Admin, namespace: None, token: None }
    }

    /// Whether the caller sees anything of `namespace`.
    pub(crate) fn sees(&self, namespace: &NamespaceName) -> bool {
        self.namespace.as_ref().is_none_or(|own| own == namespace)
    }

    /// Whether the caller may use a route with this rule, on `namespace` where the route's
    /// path names one.
    pub(crate) fn may(&self, rule: Rule, namespace: Option<&str>) -> bool {
        let reaches = match (rule.scope, &self.namespace) {
            (Scope::Filtered, _) | (_, None) => true,
            (Scope::Namespace, Some(own)) => namespace == Some(own.as_str()),
            (Scope::Platform, Some(_)) => false,
        };
        self.role >= rule.role && reaches
    }
}
