//! Base images: those that are here, those the machine offers, and the making of them.
//!
//! Promises: a base that the machine can make is made when a package first needs it, once,
//! however many ask; nothing is fetched from anywhere unless a person named the place. What was
//! made stays what it is until a person makes it anew, whatever is installed meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;

use axum::Json;
use axum::extract::{Extension, Path, State};
use http::StatusCode;
use serde::Deserialize;
use stead_core::api::ProblemJson;
use stead_core::api::package::{BaseName, BaseSource, BaseView, RuntimeName};
use stead_core::engine::{EngineError, HostRuntime};
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;

use super::problem::Problem;
use super::request::Body;
use super::{Api, Handle};
use crate::auth::Caller;
use crate::bases::{self, Base};
use crate::clock;
use crate::store::{Kind, Write};

/// The base that a path names.
#[derive(Deserialize)]
pub(super) struct BasePath {
    name: String,
}

impl BasePath {
    fn base(&self) -> Result<BaseName, Problem> {
        self.name.parse().map_err(|error: String| {
            UserError::new(Code::BadRequest, error, "`stead image base` lists bases").into()
        })
    }
}

/// Base images, and what the machine could make into one.
#[utoipa::path(get, path = "/api/v1/bases", tag = "images",
    responses((status = 200, body = Vec<BaseView>), (status = "default", body = ProblemJson)))]
pub(super) async fn list(State(api): Handle) -> Result<Json<Vec<BaseView>>, Problem> {
    let known = bases::all(&api.store)?;
    let (sizes, offers) = (api.image_sizes().await?, api.engine.host_runtimes().await?);
    let mut views: BTreeMap<BaseName, BaseView> =
        offers.into_iter().map(|offer| (offer.base.clone(), offered(offer))).collect();
    for base in known {
        views.insert(base.value.name.clone(), view(base.value, &sizes));
    }
    let mut views: Vec<BaseView> = views.into_values().collect();
    views.sort_by_key(|view| (view.base.runtime, view.base.numbers()));
    Ok(Json(views))
}

/// Makes or fetches a base image, and from now on uses it for packages.
#[utoipa::path(put, path = "/api/v1/bases/{name}", tag = "images",
    params(("name" = String, Path, description = "Such as `java:17`")), request_body = BaseSource,
    responses((status = 200, body = BaseView), (status = "default", body = ProblemJson)))]
pub(super) async fn put(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<BasePath>,
    Body(source): Body<BaseSource>,
) -> Result<Json<BaseView>, Problem> {
    let name = path.base()?;
    let _one = api.making.lock().await;
    let base = api.make(&name, source).await?;
    tracing::info!(base = %name, image = %base.image, by = caller.name, "a base was set");
    Ok(Json(view(base, &api.image_sizes().await?)))
}

/// Forgets a base. Images composed on it stay as they are.
#[utoipa::path(delete, path = "/api/v1/bases/{name}", tag = "images",
    params(("name" = String, Path)),
    responses((status = 204, description = "It is gone"),
        (status = "default", body = ProblemJson)))]
pub(super) async fn remove(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<BasePath>,
) -> Result<StatusCode, Problem> {
    let name = path.base()?;
    let _one = api.making.lock().await;
    if !api.store.keys(Kind::Base, "")?.contains(&name.to_string()) {
        let message = format!("there is no base {name}");
        return Err(UserError::new(Code::NotFound, message, "`stead image base` lists them").into());
    }
    api.store.commit(vec![Write::clear(Kind::Base, name.to_string())]).await?;
    tracing::info!(base = %name, by = caller.name, "a base was forgotten");
    Ok(StatusCode::NO_CONTENT)
}

impl Api {
    /// The image of a base; made now, if it is not here and the machine has what it takes.
    pub(super) async fn base(&self, name: &BaseName) -> Result<Digest, Problem> {
        if let Some(image) = self.base_here(name).await? {
            return Ok(image);
        }
        let _one = self.making.lock().await;
        if let Some(image) = self.base_here(name).await? {
            return Ok(image);
        }
        let known = bases::get(&self.store, name)?;
        let source = known.map_or(BaseSource::Host { path: None }, |base| base.source);
        Ok(self.make(name, source).await?.image)
    }

    /// The image of a base, if both are here.
    pub(super) async fn base_here(&self, name: &BaseName) -> Result<Option<Digest>, Problem> {
        let Some(base) = bases::get(&self.store, name)? else { return Ok(None) };
        Ok(self.image_sizes().await?.contains_key(&base.image).then_some(base.image))
    }

    /// Makes or fetches a base and stores it. The caller holds `making`.
    async fn make(&self, name: &BaseName, source: BaseSource) -> Result<Base, Problem> {
        let (image, exact, notes) = match &source {
            BaseSource::Host { path } => {
                let path = path.as_ref().map(PathBuf::from);
                let made = self.engine.make_base(name, path).await;
                let made = made.map_err(|error| missing(name, error))?;
                (made.image.digest, Some(made.runtime.exact), made.notes)
            }
            BaseSource::Reference(reference) => {
                let image = self.engine.resolve(reference).await?;
                self.engine.warm(reference, &image).await?;
                (image, None, Vec::new())
            }
            BaseSource::Maven { version, java, image } => {
                let java_fits = java.runtime == RuntimeName::Java;
                if name.runtime != RuntimeName::Tomcat || !java_fits {
                    let message = format!("{name} on {java} is not Tomcat on Java");
                    let hint = "`stead image base tomcat:10.1 --from-maven 10.1.N --java 17`";
                    return Err(UserError::new(Code::BadRequest, message, hint).into());
                }
                if !self.image_sizes().await?.contains_key(image) {
                    let message = format!("the image of {name} is not here");
                    let hint = format!(
                        "`stead image base {name} --from-maven {version} --java {}`",
                        java.version()
                    );
                    return Err(UserError::new(Code::BaseMissing, message, hint).into());
                }
                (image.clone(), Some(version.clone()), Vec::new())
            }
        };
        let made = clock::now();
        let base = Base { name: name.clone(), source, image, exact, notes, made };
        self.store.commit(vec![Write::set(name.to_string(), &base)?]).await?;
        // Before the engine makes room for something else.
        match self.images_needed() {
            Ok(needed) => self.engine.keep(&needed).await?,
            Err(error) => tracing::warn!(%error, "the engine was not told to keep a base"),
        }
        Ok(base)
    }

    /// Bytes of each image on the machine.
    async fn image_sizes(&self) -> Result<BTreeMap<Digest, u64>, Problem> {
        let images = self.engine.images().await?;
        Ok(images.into_iter().map(|image| (image.digest, image.size)).collect())
    }
}

/// What a person is told who needs a base that the machine does not offer.
fn missing(name: &BaseName, error: EngineError) -> Problem {
    match error {
        EngineError::User(error) if error.code == Code::PackageUnfit => {
            let message =
                format!("there is no base {name}, and it cannot be made: {}", error.message);
            UserError::new(Code::BaseMissing, message, error.hint).into()
        }
        other => other.into(),
    }
}

fn offered(offer: HostRuntime) -> BaseView {
    BaseView {
        base: offer.base,
        source: None,
        image: None,
        exact: Some(offer.exact),
        size: 0,
        notes: vec![format!("installed in {}", offer.path)],
        error: None,
    }
}

fn view(base: Base, sizes: &BTreeMap<Digest, u64>) -> BaseView {
    let size = sizes.get(&base.image);
    let error = size.is_none().then(|| {
        let message = format!("the image of {} is not here any more", base.name);
        UserError::new(Code::BaseMissing, message, "make it again, or deploy what needs it")
    });
    BaseView {
        base: base.name,
        source: Some(base.source),
        image: Some(base.image),
        exact: base.exact,
        size: size.copied().unwrap_or_default(),
        notes: base.notes,
        error,
    }
}
