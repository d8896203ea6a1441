//! Uploads: what images are composed of, on its way in.

use axum::Json;
use axum::body::Body as Stream;
use axum::extract::{Path, State};
use futures_util::{StreamExt, TryStreamExt};
use http::HeaderMap;
use serde::Deserialize;
use stead_core::api::ProblemJson;
use stead_core::api::package::{UploadPart, UploadView};
use stead_core::error::{Code, UserError};
use utoipa::IntoParams;

use super::Handle;
use super::images::parse_digest;
use super::problem::Problem;
use super::request::Params;

/// Where the body goes on, in bytes from the upload's start.
const OFFSET: &str = "upload-offset";

/// How much of an upload is here.
#[utoipa::path(get, path = "/api/v1/uploads/{digest}", tag = "images",
    params(("digest" = String, Path, description = "Digest of the bytes to be sent")),
    responses((status = 200, body = UploadView), (status = "default", body = ProblemJson)))]
pub(super) async fn view(
    State(api): Handle,
    Path(digest): Path<String>,
) -> Result<Json<UploadView>, Problem> {
    Ok(Json(api.engine.uploaded(&parse_digest(&digest)?).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AppendQuery {
    /// Bytes of the whole upload.
    size: u64,
}

/// Takes in more of an upload, from `Upload-Offset` on. What arrives stays when the request
/// breaks off.
#[utoipa::path(patch, path = "/api/v1/uploads/{digest}", tag = "images",
    params(("digest" = String, Path, description = "Digest of the bytes"), AppendQuery,
        ("Upload-Offset" = u64, Header, description = "Bytes that are here already")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = UploadView), (status = "default", body = ProblemJson)))]
pub(super) async fn append(
    State(api): Handle,
    Path(digest): Path<String>,
    Params(query): Params<AppendQuery>,
    headers: HeaderMap,
    body: Stream,
) -> Result<Json<UploadView>, Problem> {
    let part =
        UploadPart { digest: parse_digest(&digest)?, size: query.size, offset: offset(&headers)? };
    let bytes = body.into_data_stream().map_err(std::io::Error::other).boxed();
    Ok(Json(api.engine.upload(part, bytes).await?))
}

fn offset(headers: &HeaderMap) -> Result<u64, Problem> {
    let given = headers.get(OFFSET).and_then(|value| value.to_str().ok()?.parse().ok());
    given.ok_or_else(|| {
        UserError::new(
            Code::BadRequest,
            "the header Upload-Offset is missing, or no number",
            "GET the same path: it says which bytes are here",
        )
        .into()
    })
}
