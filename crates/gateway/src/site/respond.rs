//! A request for a site, and the response.

use std::ops::RangeInclusive;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Uri};
use stead_core::routes::FailReason;
use stead_core::routes::site::{
    Answer, Asked, Coding, Found, SiteEntry, SiteFile, answer, normal_path,
};

use super::body::FileBody;
use super::folder::{Content, Folder};
use super::{Edition, Site};
use crate::exchange::Exchange;
use crate::refuse;
use crate::reply::Reply;

/// What a site looks at of a request.
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a Method,
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
}

/// Answers a request from `site`.
pub(crate) async fn respond(
    mut exchange: Box<Exchange>,
    site: &Site,
    ask: &Ask<'_>,
) -> Response<Reply> {
    let (edition, found) = site.find(ask.uri.path());
    exchange.served_by(edition);
    let mut response = match (ask.method, found) {
        (&Method::GET | &Method::HEAD, Some(Found::Entry(entry))) => {
            let reply = Reading { site, edition, ask };
            return reply.file(exchange, entry).await;
        }
        (&Method::GET | &Method::HEAD, Some(Found::Missing(Some(page)))) => {
            let reply = Reading { site, edition, ask };
            return reply.page(exchange, page).await;
        }
        (_, None) => return broken(exchange),
        (&Method::GET | &Method::HEAD, Some(found)) => plain(ask, found),
        _ => {
            let text = "A site answers GET and HEAD alone.\n";
            let mut response = words(StatusCode::METHOD_NOT_ALLOWED, text);
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        }
    };
    site.finish(response.headers_mut());
    exchange.answered(response.status());
    let heard = ask.method != Method::HEAD;
    response.map(|text| {
        Reply::File(FileBody::memory(if heard { text } else { Bytes::new() }, exchange))
    })
}

/// An answer without a file.
fn plain(ask: &Ask<'_>, found: Found<'_>) -> Response<Bytes> {
    match found {
        Found::Moved(path) => {
            let query = ask.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            let mut response = words(StatusCode::MOVED_PERMANENTLY, "It has moved.\n");
            if let Ok(location) = HeaderValue::try_from(path + &query) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            // The next Release may have a file there.
            let again = HeaderValue::from_static("no-cache");
            response.headers_mut().insert(header::CACHE_CONTROL, again);
            response
        }
        Found::Malformed => words(StatusCode::BAD_REQUEST, "The path is malformed.\n"),
        _ => words(StatusCode::NOT_FOUND, "There is no such file.\n"),
    }
}

fn words(status: StatusCode, text: &'static str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(text.as_bytes()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The answer where the site is damaged, which was logged.
fn broken(exchange: Box<Exchange>) -> Response<Reply> {
    let response = refuse::failed(&exchange.app().key, FailReason::SiteBroken, 1);
    exchange.fail(FailReason::SiteBroken, response.status());
    response
}

impl Site {
    /// Who answers a request for `path`, and what it leads to there; `None` where the site
    /// cannot be read.
    ///
    /// A page that was loaded before a deploy asks for files whose names were those of then:
    /// what is kept for ever is served from the Release before, too.
    fn find(&self, path: &str) -> (&Edition, Option<Found<'_>>) {
        let now = &*self.now;
        let Some(folder) = &now.folder else { return (now, None) };
        let found = folder.index.find(&self.rules, path);
        if let (Found::Missing(_), Some(before)) = (&found, &self.before)
            && let Some(old) = &before.folder
            && let Some(entry) = normal_path(path).and_then(|path| old.index.entries.get(&path))
            && entry.immutable
        {
            return (before, Some(Found::Entry(entry)));
        }
        (now, Some(found))
    }

    /// Adds what every answer of the site has.
    fn finish(&self, headers: &mut HeaderMap) {
        const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
        for (name, value) in &self.headers {
            headers.insert(name, value.clone());
        }
    }
}

/// A request for a file.
struct Reading<'a> {
    site: &'a Site,
    edition: &'a Edition,
    ask: &'a Ask<'a>,
}

impl Reading<'_> {
    /// The answer that is `entry`.
    async fn file(&self, exchange: Box<Exchange>, entry: &SiteEntry) -> Response<Reply> {
        let (coding, file) = self.choose(entry);
        let etag = file.etag();
        let fields = Fields::of(self.ask);
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(header::ETAG, value(&etag));
        headers.insert(header::LAST_MODIFIED, self.edition.last_modified.clone());
        headers.insert(header::CACHE_CONTROL, self.site.cache.of(entry).clone());
        let (status, part) = match answer(&fields.asked(), &etag, self.edition.made, file.size) {
            Answer::Whole => (StatusCode::OK, whole(file)),
            Answer::Part(part) => {
                let range = format!("bytes {}-{}/{}", part.start(), part.end(), file.size);
                headers.insert(header::CONTENT_RANGE, value(&range));
                (StatusCode::PARTIAL_CONTENT, Some(part))
            }
            Answer::NotModified => (StatusCode::NOT_MODIFIED, None),
            Answer::Failed => (StatusCode::PRECONDITION_FAILED, None),
            Answer::Unsatisfiable => {
                headers.insert(header::CONTENT_RANGE, value(&format!("bytes */{}", file.size)));
                (StatusCode::RANGE_NOT_SATISFIABLE, None)
            }
        };
        match status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
            }
            StatusCode::NOT_MODIFIED => {}
            // It would be given to others, who asked for the file: a year long, for some.
            _ => {
                headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            }
        }
        let sent = Sent { status, coding, file, part };
        self.send(exchange, entry, sent, headers).await
    }

    /// The answer to what is not there, which is the page `entry`.
    async fn page(&self, exchange: Box<Exchange>, entry: &SiteEntry) -> Response<Reply> {
        let (coding, file) = self.choose(entry);
        let headers =
            HeaderMap::from_iter([(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))]);
        let sent = Sent { status: StatusCode::NOT_FOUND, coding, file, part: whole(file) };
        self.send(exchange, entry, sent, headers).await
    }

    fn choose<'e>(&self, entry: &'e SiteEntry) -> (Option<Coding>, &'e SiteFile) {
        entry.choose(joined(self.ask.headers, &header::ACCEPT_ENCODING).as_deref())
    }

    async fn send(
        &self,
        exchange: Box<Exchange>,
        entry: &SiteEntry,
        sent: Sent<'_>,
        mut headers: HeaderMap,
    ) -> Response<Reply> {
        let Sent { status, coding, file, part } = sent;
        if !entry.variants.is_empty() {
            headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        let has_content = !matches!(
            status,
            StatusCode::NOT_MODIFIED
                | StatusCode::PRECONDITION_FAILED
                | StatusCode::RANGE_NOT_SATISFIABLE
        );
        if has_content {
            headers.insert(header::CONTENT_TYPE, value(&entry.content_type));
            if let Some(coding) = coding {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.token()));
            }
            let length = part.as_ref().map_or(0, |part| part.end() - part.start() + 1);
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        self.site.finish(&mut headers);
        let body = match part.filter(|_| has_content && self.ask.method == Method::GET) {
            None => FileBody::memory(Bytes::new(), exchange.with_status(status)),
            Some(part) => match self.content(file).await {
                Some(Content::Kept(bytes)) => {
                    let (first, last) = (*part.start() as usize, *part.end() as usize);
                    FileBody::memory(bytes.slice(first..=last), exchange.with_status(status))
                }
                Some(Content::Open(open)) => {
                    FileBody::disk(open, part, exchange.with_status(status))
                }
                None => return broken(exchange),
            },
        };
        let mut response = Response::new(Reply::File(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// The bytes of `file`; `None` where it is damaged.
    async fn content(&self, file: &SiteFile) -> Option<Content> {
        let folder = self.edition.folder.as_ref()?;
        if let Some(bytes) = folder.kept(file) {
            return Some(Content::Kept(bytes));
        }
        let read = {
            let (folder, file) = (folder.clone(), file.clone());
            tokio::task::spawn_blocking(move || Folder::read(&folder, &file))
        };
        match read.await {
            Ok(Ok(content)) => Some(content),
            Ok(Err(error)) => {
                tracing::error!(%error, release = %self.edition.release, "site is damaged");
                None
            }
            Err(_) => None, // the runtime ends
        }
    }
}

/// What is sent of which file.
struct Sent<'a> {
    status: StatusCode,
    coding: Option<Coding>,
    file: &'a SiteFile,
    /// `None` where there is nothing to send.
    part: Option<RangeInclusive<u64>>,
}

fn whole(file: &SiteFile) -> Option<RangeInclusive<u64>> {
    file.size.checked_sub(1).map(|last| 0..=last)
}

/// A text of ours or of the index, which has only what a header may have.
fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("it is printable ASCII")
}

/// All fields of one name, as one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut fields = headers.get_all(name).iter().filter_map(|field| field.to_str().ok());
    let first = fields.next()?.to_owned();
    Some(fields.fold(first, |all, next| all + "," + next))
}

/// The fields of a request that say which bytes it wants.
struct Fields {
    if_match: Option<String>,
    if_none_match: Option<String>,
    if_modified_since: Option<u64>,
    if_unmodified_since: Option<u64>,
    range: Option<String>,
    if_range: Option<String>,
}

impl Fields {
    fn of(ask: &Ask<'_>) -> Self {
        let text = |name| joined(ask.headers, &name);
        let date = |name: HeaderName| seconds(ask.headers.get(name)?.to_str().ok()?);
        Self {
            if_match: text(header::IF_MATCH),
            if_none_match: text(header::IF_NONE_MATCH),
            if_modified_since: date(header::IF_MODIFIED_SINCE),
            if_unmodified_since: date(header::IF_UNMODIFIED_SINCE),
            range: text(header::RANGE).filter(|_| ask.method == Method::GET),
            if_range: text(header::IF_RANGE),
        }
    }

    fn asked(&self) -> Asked<'_> {
        let if_range_date = self.if_range.as_deref().and_then(seconds);
        Asked {
            if_match: self.if_match.as_deref(),
            if_none_match: self.if_none_match.as_deref(),
            if_modified_since: self.if_modified_since,
            if_unmodified_since: self.if_unmodified_since,
            range: self.range.as_deref(),
            if_range: self.if_range.as_deref().filter(|_| if_range_date.is_none()),
            if_range_date,
        }
    }
}

/// A date of HTTP, in seconds since the Unix epoch.
fn seconds(text: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(UNIX_EPOCH).ok()?.as_secs())
}
