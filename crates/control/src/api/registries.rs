//! Registries: logins, whose passwords only come in, and mirrors. Both are tried before they
//! are kept.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use http::StatusCode;
use serde::Deserialize;
use stead_core::api::{LoggedIn, LoginRequest, MirrorRequest, ProblemJson, RegistryView};
use stead_core::error::{Code, UserError};
use stead_core::registry::{BadHost, Login, Mirror, MirrorAddress, RegistryChecked, RegistryHost};

use super::problem::Problem;
use super::request::Body;
use super::{Api, Handle};
use crate::auth::Caller;
use crate::clock;
use crate::registries::Registries;

/// The registry that a path names.
#[derive(Deserialize)]
pub(super) struct HostPath {
    host: String,
}

/// The mirror that a path names.
#[derive(Deserialize)]
pub(super) struct MirrorPath {
    mirror: String,
}

impl HostPath {
    fn host(&self) -> Result<RegistryHost, Problem> {
        self.host.parse().map_err(bad_host)
    }
}

impl MirrorPath {
    fn address(&self) -> Result<MirrorAddress, Problem> {
        self.mirror.parse().map_err(bad_host)
    }
}

fn bad_host(bad: BadHost) -> Problem {
    UserError::new(Code::BadRequest, bad.to_string(), "correct the name of the registry").into()
}

impl Api {
    fn registries(&self) -> Registries {
        Registries::new(Arc::clone(&self.reconciler.store), Arc::clone(&self.vault))
    }
}

/// Registries that the platform was told something about: logins without passwords, mirrors.
#[utoipa::path(get, path = "/api/v1/registries", tag = "images",
    responses((status = 200, body = Vec<RegistryView>), (status = "default", body = ProblemJson)))]
pub(super) async fn list(State(api): Handle) -> Result<Json<Vec<RegistryView>>, Problem> {
    Ok(Json(api.registries().list()?))
}

/// Keeps a login for a registry, once the registry has accepted it. It holds for the next pull.
#[utoipa::path(put, path = "/api/v1/registries/{host}/login", tag = "images",
    params(("host" = String, Path)), request_body = LoginRequest,
    responses((status = 200, body = LoggedIn), (status = "default", body = ProblemJson)))]
pub(super) async fn log_in(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<HostPath>,
    Body(request): Body<LoginRequest>,
) -> Result<Json<LoggedIn>, Problem> {
    let host = path.host()?;
    let malformed = request.user.contains(':') || request.user.chars().any(char::is_control);
    if request.user.is_empty() || malformed {
        let message = "the name of a login is a text without \":\" and control characters";
        return Err(UserError::new(Code::BadRequest, message, "correct the name").into());
    }
    let login = Login { user: request.user.clone(), password: request.password.clone() };
    let checked = api.engine.check_registry(&host, Some(&login)).await?;
    api.registries().log_in(&host, &request, &caller.name, clock::now()).await?;
    tracing::info!(registry = %host, by = caller.name, user = login.user, "a login was given");
    Ok(Json(LoggedIn { host, accepted: checked == RegistryChecked::Accepted }))
}

/// Forgets a registry's login.
#[utoipa::path(delete, path = "/api/v1/registries/{host}/login", tag = "images",
    params(("host" = String, Path)),
    responses((status = 204, description = "It is gone"),
        (status = "default", body = ProblemJson)))]
pub(super) async fn log_out(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<HostPath>,
) -> Result<StatusCode, Problem> {
    let host = path.host()?;
    if !api.registries().log_out(&host).await? {
        let message = format!("there is no login for {host}");
        return Err(
            UserError::new(Code::NotFound, message, "`stead registry ls` lists them").into()
        );
    }
    tracing::info!(registry = %host, by = caller.name, "a login was forgotten");
    Ok(StatusCode::NO_CONTENT)
}

/// Adds a mirror behind those a registry has, or changes one, once it has answered.
#[utoipa::path(put, path = "/api/v1/registries/{host}/mirrors/{mirror}", tag = "images",
    params(("host" = String, Path), ("mirror" = String, Path)), request_body = MirrorRequest,
    responses((status = 200, body = Mirror), (status = "default", body = ProblemJson)))]
pub(super) async fn add_mirror(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<HostPath>,
    Path(mirror): Path<MirrorPath>,
    Body(MirrorRequest { tags }): Body<MirrorRequest>,
) -> Result<Json<Mirror>, Problem> {
    let host = path.host()?;
    let mirror = Mirror { address: mirror.address()?, tags };
    if mirror.address.host == host {
        let message = format!("{host} cannot be a mirror of itself");
        return Err(UserError::new(Code::BadRequest, message, "name another registry").into());
    }
    api.engine.check_registry(&mirror.address.host, None).await?;
    api.registries().add_mirror(&host, &mirror).await?;
    tracing::info!(registry = %host, mirror = %mirror.address, by = caller.name, "has a mirror");
    Ok(Json(mirror))
}

/// Removes a mirror.
#[utoipa::path(delete, path = "/api/v1/registries/{host}/mirrors/{mirror}", tag = "images",
    params(("host" = String, Path), ("mirror" = String, Path)),
    responses((status = 204, description = "It is gone"),
        (status = "default", body = ProblemJson)))]
pub(super) async fn remove_mirror(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<HostPath>,
    Path(mirror): Path<MirrorPath>,
) -> Result<StatusCode, Problem> {
    let (host, address) = (path.host()?, mirror.address()?);
    if !api.registries().remove_mirror(&host, &address).await? {
        let message = format!("{host} has no mirror at {address}");
        return Err(
            UserError::new(Code::NotFound, message, "`stead registry ls` lists them").into()
        );
    }
    tracing::info!(registry = %host, mirror = %address, by = caller.name, "a mirror was removed");
    Ok(StatusCode::NO_CONTENT)
}
