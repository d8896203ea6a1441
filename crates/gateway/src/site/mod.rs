//! Sites: Apps whose answers are files, served by the gateway itself.
//!
//! Promises: only what stands in a site's index is opened, and nothing outside the folder of
//! its layer; a response is wholly of one Release, also when the routes change meanwhile; what
//! is held of a file while it is sent is bounded, whatever its size. What a request gets is
//! decided in `stead_core::routes::site`.
//!
//! Deliberately knows nothing of images, nor of how a folder came to be.

mod body;
mod folder;
mod library;
mod respond;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use stead_core::ids::ReleaseNo;
use stead_core::manifest::{self, Span};
use stead_core::routes::site::{SiteEntry, SiteRelease, SiteRoute};

pub(crate) use body::FileBody;
pub(crate) use library::{Library, Prepared};
pub(crate) use respond::{Ask, respond};

use crate::ledger::{AppCounters, ReleaseCounters};
use folder::Folder;

/// A site, as of one route generation.
pub(crate) struct Site {
    now: Arc<Edition>,
    before: Option<Arc<Edition>>,
    rules: manifest::Site,
    cache: CacheControl,
    headers: HeaderMap,
}

/// One Release of a site.
pub(crate) struct Edition {
    pub(crate) release: ReleaseNo,
    pub(crate) counters: Arc<ReleaseCounters>,
    /// `None` when it cannot be read, which was logged.
    folder: Option<Arc<Folder>>,
    /// When the Release was made, in seconds since the Unix epoch.
    made: u64,
    /// The same as a header's value.
    last_modified: HeaderValue,
}

/// What is said of how long files may be kept.
struct CacheControl {
    pages: HeaderValue,
    files: HeaderValue,
    hashed: HeaderValue,
}

impl Site {
    pub(crate) fn new(route: &SiteRoute, library: &Library, counters: &AppCounters) -> Self {
        let edition = |release: &SiteRelease| Arc::new(Edition::new(release, library, counters));
        let headers = route.rules.headers.iter().filter_map(|(name, value)| {
            // Both were checked when the manifest was read.
            let name = HeaderName::try_from(name.as_str()).ok()?;
            Some((name, HeaderValue::try_from(value).ok()?))
        });
        Self {
            now: edition(&route.now),
            before: route.before.as_ref().map(edition),
            rules: route.rules.clone(),
            cache: CacheControl::new(&route.rules.cache),
            headers: headers.collect(),
        }
    }
}

impl Edition {
    fn new(release: &SiteRelease, library: &Library, counters: &AppCounters) -> Self {
        let made = UNIX_EPOCH + Duration::from_secs(release.made.min(LAST_DATE));
        Self {
            release: release.release,
            counters: counters.release(release.release),
            folder: library.folder(release.folder.as_ref()),
            made: release.made,
            last_modified: HeaderValue::try_from(httpdate::fmt_http_date(made))
                .expect("a date is visible ASCII"),
        }
    }
}

/// The last second that has a date in HTTP: the end of the year 9999.
const LAST_DATE: u64 = 253_402_300_799;

impl CacheControl {
    fn new(cache: &manifest::SiteCache) -> Self {
        let value = |span: Span, more: &str| {
            let text = match span.millis() / 1000 {
                0 => "no-cache".to_owned(),
                seconds => format!("public, max-age={seconds}{more}"),
            };
            HeaderValue::try_from(text).expect("it is visible ASCII")
        };
        Self {
            pages: value(cache.pages, ""),
            files: value(cache.files, ""),
            hashed: value(cache.hashed, ", immutable"),
        }
    }

    fn of(&self, entry: &SiteEntry) -> &HeaderValue {
        match entry {
            entry if entry.is_page() => &self.pages,
            entry if entry.immutable => &self.hashed,
            _ => &self.files,
        }
    }
}
