//! What each route takes.

use http::Method;
use stead_core::api::Role;

/// What a route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// At least this role.
    pub(crate) role: Role,
    /// What it reaches.
    pub(crate) scope: Scope,
}

/// What a route reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The Namespace in its path.
    Namespace,
    /// The whole platform: no token of one Namespace is enough.
    Platform,
    /// The handler shows each caller only what is theirs.
    Filtered,
}

/// The rule of a route, named by its path with the parameters in braces. `None`: nobody may.
pub(crate) fn rule(method: &Method, path: &str) -> Option<Rule> {
    use Role::{Admin, Deployer, Viewer};
    let takes = |role, scope| Some(Rule { role, scope });
    if let Some(rest) = path.strip_prefix("/api/v1/namespaces/{ns}/apps") {
        return match (method.as_str(), rest) {
            (
                "GET",
                ""
                | "/{app}"
                | "/{app}/env"
                | "/{app}/secrets"
                | "/{app}/instances"
                | "/{app}/releases"
                | "/{app}/rollouts"
                | "/{app}/rollouts/{number}"
                | "/{app}/rollouts/{number}/progress"
                | "/{app}/waterfall"
                | "/{app}/ledger"
                | "/{app}/events"
                | "/{app}/logs"
                | "/{app}/usage",
            ) => takes(Viewer, Scope::Namespace),
            (
                "POST",
                "/{app}/deploy"
                | "/{app}/plan"
                | "/{app}/rollback"
                | "/{app}/restart"
                | "/{app}/scale"
                | "/{app}/stop"
                | "/{app}/start"
                | "/{app}/exec"
                | "/{app}/rollouts/current/{verb}",
            )
            | ("PATCH", "/{app}/env")
            | ("PUT" | "DELETE", "/{app}/secrets/{name}")
            | ("DELETE", "/{app}") => takes(Deployer, Scope::Namespace),
            _ => None,
        };
    }
    match (method.as_str(), path) {
        (
            "GET",
            "/api/openapi.json" | "/api/v1/version" | "/api/v1/namespaces" | "/api/v1/events",
        ) => takes(Viewer, Scope::Filtered),
        ("GET", "/api/v1/images" | "/api/v1/images/pulls" | "/api/v1/bases" | "/api/v1/metrics" | "/metrics") => {
            takes(Viewer, Scope::Platform)
        }
        // A name that an image is given holds for every Namespace.
        (
            "POST",
            "/api/v1/images/pull" | "/api/v1/images/import" | "/api/v1/images/compose",
        )
        | ("GET" | "PATCH", "/api/v1/uploads/{digest}")
        // What is in an image is more than that it is there.
        | ("GET", "/api/v1/images/{digest}/archive") => takes(Deployer, Scope::Platform),
        ("GET", "/api/v1/registries") => takes(Deployer, Scope::Platform),
        (
            "PUT" | "DELETE",
            "/api/v1/registries/{host}/login" | "/api/v1/registries/{host}/mirrors/{mirror}",
        )
        | ("GET", "/api/v1/tokens" | "/api/v1/doctor")
        | ("POST", "/api/v1/tokens" | "/api/v1/images/prune")
        | ("DELETE", "/api/v1/tokens/{id}" | "/api/v1/images/{digest}")
        | ("PUT" | "DELETE", "/api/v1/namespaces/{ns}" | "/api/v1/bases/{name}") => takes(Admin, Scope::Platform),
        _ => None,
    }
}
