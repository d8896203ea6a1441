//! Parts of a request, read strictly; what cannot be read is answered as a problem.

use axum::extract::{FromRequest, FromRequestParts, Request};
use http::request::Parts;
use serde::de::DeserializeOwned;
use stead_core::error::{Code, UserError};

use super::problem::Problem;

/// A JSON body. An empty one reads as `{}`, so that requests without wishes need none.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|error| bad(format!("the body cannot be read: {error}")))?;
        let empty = bytes.is_empty() || bytes.as_ref() == b"null";
        let text: &[u8] = if empty { b"{}" } else { &bytes };
        let value = serde_json::from_slice(text);
        Ok(Self(value.map_err(|error| bad(format!("the body is not what is expected: {error}")))?))
    }
}

/// The parameters after the question mark.
pub(super) struct Params<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        let axum::extract::Query(value) = query
            .map_err(|error| bad(format!("a parameter is malformed: {}", error.body_text())))?;
        Ok(Self(value))
    }
}

fn bad(why: String) -> Problem {
    UserError::new(Code::BadRequest, why, "/api/openapi.json describes what is expected").into()
}
