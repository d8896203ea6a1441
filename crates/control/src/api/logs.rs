//! Output of an App's Containers.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use serde::Deserialize;
use stead_core::api::ProblemJson;
use stead_core::engine::{LogLine, LogQuery};
use stead_core::ids::Ordinal;
use utoipa::IntoParams;

use super::problem::Problem;
use super::request::Params;
use super::stream::{data, sse};
use super::{AppPath, Handle};

/// Lines per Container, unless the caller says so.
const TAIL: usize = 1000;

/// Which lines are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// At most so many of the last lines per Container.
    tail: Option<usize>,
    /// Only this Instance.
    instance: Option<u32>,
    /// Go on with new lines, as server-sent events.
    #[serde(default)]
    follow: bool,
}

/// Output of the App's Containers.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/logs", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path), LogsQuery),
    responses((status = 200, body = Vec<LogLine>), (status = "default", body = ProblemJson)))]
pub(super) async fn logs(
    State(api): Handle,
    Path(path): Path<AppPath>,
    Params(query): Params<LogsQuery>,
) -> Result<Response, Problem> {
    let key = api.app(&path.key()?)?.value.key;
    let LogsQuery { tail, instance, follow } = query;
    let tail = Some(tail.unwrap_or(TAIL));
    let wanted = LogQuery { instance: instance.map(Ordinal), tail, follow };
    let lines = api.engine.logs(&key, wanted).await?;
    if follow {
        return Ok(sse(&api, lines.map(|line| data(&line))));
    }
    Ok(Json(lines.collect::<Vec<LogLine>>().await).into_response())
}
