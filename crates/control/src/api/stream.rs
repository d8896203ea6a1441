//! Server-sent events, and the event log.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use stead_core::api::{EventPage, EventRecord, ProblemJson};
use tokio::sync::broadcast::error::RecvError;
use utoipa::IntoParams;

use super::problem::Problem;
use super::request::Params;
use super::{Api, AppPath, Handle};
use crate::auth::Caller;
use crate::events::Filter;

/// Events per page, unless the caller says so.
const PAGE: usize = 100;
/// Most Events per page.
const LARGEST_PAGE: usize = 1000;

/// Which Events are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventQuery {
    /// Only what came after this cursor, the `next` of an earlier page.
    after: Option<u64>,
    /// Without `after`: so many of the last Events.
    tail: Option<usize>,
    /// With `after`: at most so many.
    limit: Option<usize>,
    /// Go on with new Events, as server-sent events.
    #[serde(default)]
    follow: bool,
}

/// Events of one App.
#[utoipa::path(get, path = "/api/v1/namespaces/{ns}/apps/{app}/events", tag = "look",
    params(("ns" = String, Path), ("app" = String, Path), EventQuery),
    responses((status = 200, body = EventPage), (status = "default", body = ProblemJson)))]
pub(super) async fn app_events(
    State(api): Handle,
    Path(path): Path<AppPath>,
    Params(query): Params<EventQuery>,
) -> Result<Response, Problem> {
    // Also of an App that is gone: its end is worth reading about.
    let filter = Filter { namespace: None, app: Some(path.key()?) };
    answer(&api, filter, query).await
}

/// Events of all Apps that the caller sees.
#[utoipa::path(get, path = "/api/v1/events", tag = "look", params(EventQuery),
    responses((status = 200, body = EventPage), (status = "default", body = ProblemJson)))]
pub(super) async fn events(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Params(query): Params<EventQuery>,
) -> Result<Response, Problem> {
    answer(&api, Filter { namespace: caller.namespace, app: None }, query).await
}

async fn answer(api: &Arc<Api>, filter: Filter, query: EventQuery) -> Result<Response, Problem> {
    let asked = if query.after.is_some() { query.limit } else { query.tail.or(query.limit) };
    let limit = asked.unwrap_or(PAGE).min(LARGEST_PAGE);
    if !query.follow {
        let page = api.events.page(filter, query.after, limit).await?;
        return Ok(Json(page).into_response());
    }
    // Before the page is read, so that nothing falls between the two.
    let live = api.events.follow();
    let page = api.events.page(filter.clone(), query.after, limit).await?;
    let past = stream::iter(page.events.into_iter().map(Arc::new));
    let mut last = page.next;
    let new = stream::unfold(live, |mut live| async move {
        loop {
            match live.recv().await {
                Ok(record) => return Some((record, live)),
                // Better a gap than an end; the ids show it.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
    .filter(move |record| {
        let wanted = record.id > last && filter.admits(&record.event);
        last = last.max(record.id);
        std::future::ready(wanted)
    });
    let records = past.chain(new).map(|record: Arc<EventRecord>| {
        Ok::<_, axum::Error>(data(&*record)?.id(record.id.to_string()))
    });
    Ok(sse(api, records))
}

/// One server-sent event with a JSON document.
pub(super) fn data(value: &impl Serialize) -> Result<SseEvent, axum::Error> {
    SseEvent::default().json_data(value)
}

/// Answers with a stream of server-sent events, which ends when `serve` does.
pub(super) fn sse(
    api: &Api,
    events: impl Stream<Item = Result<SseEvent, axum::Error>> + Send + 'static,
) -> Response {
    let mut closing = api.closing.clone();
    let closed = async move {
        let _ = closing.wait_for(|closing| *closing).await;
    };
    Sse::new(events.take_until(Box::pin(closed))).keep_alive(KeepAlive::default()).into_response()
}
