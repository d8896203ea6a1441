//! Errors of the API, as `application/problem+json` (RFC 9457).

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use stead_core::api::ProblemJson;
use stead_core::engine::EngineError;
use stead_core::error::{Code, Kind, UserError};
use stead_core::manifest::Problems;

use crate::reconcile::PassError;
use crate::store::StoreError;

/// An error on its way to the caller.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    error: UserError,
    problems: Vec<serde_json::Value>,
}

impl Problem {
    /// The caller's `If-Match` does not hold.
    pub(super) fn precondition(error: UserError) -> Self {
        Self { status: StatusCode::PRECONDITION_FAILED, error, problems: Vec::new() }
    }
}

fn status(error: &UserError) -> StatusCode {
    match (error.code, error.kind()) {
        (Code::NotBuilt, _) => StatusCode::NOT_IMPLEMENTED,
        (Code::BadRequest, _) => StatusCode::BAD_REQUEST,
        (Code::Unauthenticated, _) => StatusCode::UNAUTHORIZED,
        (Code::RegistryDenied | Code::RegistryUnavailable | Code::ImageCorrupt, _) => {
            StatusCode::BAD_GATEWAY
        }
        (Code::ImageNotFound | Code::ImageRefused, _) => StatusCode::UNPROCESSABLE_ENTITY,
        (Code::DiskFull, _) => StatusCode::INSUFFICIENT_STORAGE,
        (_, Kind::BadInput) => StatusCode::UNPROCESSABLE_ENTITY,
        (_, Kind::NotFound) => StatusCode::NOT_FOUND,
        (_, Kind::Denied) => StatusCode::FORBIDDEN,
        (_, Kind::Conflict) => StatusCode::CONFLICT,
        (_, Kind::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
        (_, Kind::Failed | Kind::Unhealthy) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<UserError> for Problem {
    fn from(error: UserError) -> Self {
        Self { status: status(&error), error, problems: Vec::new() }
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::debug!(error = ?error, "store refused a request");
        UserError::from(error).into()
    }
}

impl From<EngineError> for Problem {
    fn from(error: EngineError) -> Self {
        UserError::from(PassError::Engine(error)).into()
    }
}

impl From<Problems> for Problem {
    fn from(problems: Problems) -> Self {
        let list = problems.list.iter().map(|p| serde_json::json!(p)).collect();
        Self { problems: list, ..UserError::from(problems).into() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Self { status, error, problems } = self;
        let body = ProblemJson {
            r#type: format!("docs/errors/{}.md", error.code),
            status: status.as_u16(),
            title: error.code.to_string(),
            detail: error.message.clone(),
            error,
            problems,
        };
        let mut response = (status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
