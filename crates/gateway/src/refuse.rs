//! Responses the gateway makes itself: short texts that say what happened and what to do.

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use stead_core::error::Code;
use stead_core::name::AppKey;
use stead_core::routes::FailReason;

use crate::reply::Reply;

/// Who failed: `client`, `app` or `stead`. Only on responses made by the gateway.
pub(crate) const FAILED_BY: HeaderName = HeaderName::from_static("x-stead-failed-by");
/// Why, in the words of the access log.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-stead-reason");

/// A response without an App.
pub(crate) fn plain(status: StatusCode, text: impl Into<String>) -> Response<Reply> {
    let mut text = text.into();
    text.push('\n');
    let mut response = Response::new(Reply::text(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// The status that tells a client of `reason`.
pub(crate) fn status(reason: FailReason) -> StatusCode {
    match reason {
        FailReason::ClosedEarly | FailReason::BadResponse | FailReason::BrokenResponse => {
            StatusCode::BAD_GATEWAY
        }
        FailReason::ResponseTimeout => StatusCode::GATEWAY_TIMEOUT,
        FailReason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        FailReason::SiteBroken => StatusCode::INTERNAL_SERVER_ERROR,
        FailReason::ParkTimeout
        | FailReason::ParkFull
        | FailReason::WaitTooLong
        | FailReason::Stopped
        | FailReason::Gone
        | FailReason::Cut => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The response to a request that failed for `reason`. Those that wait in vain may come again
/// after `retry_after` seconds.
pub(crate) fn failed(app: &AppKey, reason: FailReason, retry_after: u64) -> Response<Reply> {
    let text = match reason {
        FailReason::ClosedEarly => format!("App {app} closed the connection before it answered."),
        FailReason::BadResponse => format!("App {app} did not answer in HTTP."),
        FailReason::BrokenResponse => format!("App {app} broke its answer off."),
        FailReason::ResponseTimeout => format!("App {app} did not answer in time."),
        FailReason::BodyTooLarge => "The request body is too large.".to_owned(),
        FailReason::ParkTimeout => format!("No instance of app {app} became ready in time."),
        FailReason::ParkFull => format!("Too many requests wait for app {app}."),
        FailReason::WaitTooLong => {
            format!("App {app} needs longer to start than a request may wait.")
        }
        FailReason::Stopped => format!("App {app} is stopped. Start it with: stead start"),
        FailReason::Gone => format!("App {app} was deleted."),
        FailReason::SiteBroken => {
            format!("The files of app {app} are damaged. Deploy it again. ({})", Code::SiteUnfit)
        }
        FailReason::Cut => "The gateway is shutting down.".to_owned(),
    };
    let mut response = plain(status(reason), text);
    let headers = response.headers_mut();
    headers.insert(FAILED_BY, HeaderValue::from_static(reason.blame().as_str()));
    headers.insert(REASON, HeaderValue::from_static(reason.as_str()));
    if matches!(reason, FailReason::ParkTimeout | FailReason::ParkFull | FailReason::WaitTooLong) {
        headers.insert(RETRY_AFTER, HeaderValue::from(retry_after));
    }
    response
}
