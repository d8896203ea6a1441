//! What is worth another try, and when.
//!
//! Promises: pauses grow, vary, and stay below the longest; what a registry asks for with
//! `Retry-After` is respected or the request fails. Does not know requests.

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

use super::super::error::ImageError;
use super::RegistryOptions;

/// How a try failed.
pub(super) enum Failure {
    /// Another would fail the same way.
    Final(ImageError),
    /// Another may succeed, not before `after`.
    Passing { error: ImageError, after: Option<Duration> },
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Final(error)
    }
}

/// Counts tries.
pub(super) struct Retries {
    left: u32,
    pause: Duration,
    longest: Duration,
}

impl Retries {
    pub(super) fn new(options: &RegistryOptions) -> Self {
        Self {
            left: options.attempts.saturating_sub(1),
            pause: options.first_pause,
            longest: options.longest_pause,
        }
    }

    /// Waits before the next try; gives the error back when there is none.
    pub(super) async fn pause(&mut self, failure: Failure) -> Result<(), ImageError> {
        let (error, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { error, after } => (error, after.unwrap_or_default()),
        };
        if self.left == 0 || after > self.longest {
            return Err(error);
        }
        self.left -= 1;
        // Up to half as long again, so that clients who failed together do not return together.
        let spread = RandomState::new().hash_one(self.left) % 512;
        let pause = self.pause.min(self.longest) * (1024 + spread as u32) / 1024;
        self.pause = self.pause.saturating_mul(2);
        tracing::debug!(%error, ?pause, "trying again");
        tokio::time::sleep(pause.max(after)).await;
        Ok(())
    }
}

/// What longer waits count as; nobody waits so long.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long an answer asks to wait; `None` where it does not say, or nothing that makes sense.
/// A date counts from the answer's own, because clocks differ (RFC 9110, 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let asked = text(RETRY_AFTER)?;
    if !asked.is_empty() && asked.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(asked.parse().map_or(FOREVER, Duration::from_secs).min(FOREVER));
    }
    let until = httpdate::parse_http_date(asked).ok()?;
    let from = text(DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    let from = from.unwrap_or_else(SystemTime::now);
    Some(until.duration_since(from).unwrap_or_default().min(FOREVER))
}

/// The error of type `T` somewhere beneath `error`. `io::Error` hides what it wraps from
/// `source`, so it is opened.
pub(super) fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The text of the innermost cause: the outer ones only say that sending failed.
pub(super) fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
