//! Requests to one repository: authorised, redirected, bounded, tried again.
//!
//! Promises: credentials go to the registry's own origin and token realm, never along a
//! redirect; no answer is longer than expected, and none is waited for without end. Does not
//! know what manifests mean, nor where blobs are kept.

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use stead_core::ids::Digest;
use stead_core::registry::{Login, RegistryChecked, RegistryHost};

use super::super::error::ImageError;
use super::super::manifest;
use super::RegistryOptions;
use super::address::{Reach, Refused};
use super::credentials::Credentials;
use super::incoming::Incoming;
use super::retry::{self, Failure, Retries};

const MAX_REDIRECTS: u32 = 5;
/// Largest token response, and most of an error's body that is read, bytes.
pub(super) const MAX_ANSWER: u64 = 256 << 10;

/// One repository in one registry.
pub(in super::super) struct Repository {
    pub(super) options: RegistryOptions,
    pub(super) client: Client,
    reach: Reach,
    /// Scheme, host and port of the registry's API.
    pub(super) origin: Url,
    /// The host as in references; names the registry in messages and credentials.
    pub(super) host: RegistryHost,
    /// `None` while only the registry as a whole is asked.
    pub(super) name: Option<String>,
    /// What it is told about who asks; `None`: what is found when it wants to know.
    pub(super) login: Option<Credentials>,
    /// The `Authorization` last found good.
    pub(super) authorization: tokio::sync::Mutex<Option<HeaderValue>>,
}

impl Repository {
    /// The repository `name` of the registry called `host`, whose API is at `origin`.
    pub(super) fn new(
        options: RegistryOptions,
        client: Client,
        reach: Reach,
        origin: Url,
        host: RegistryHost,
        name: String,
    ) -> Self {
        let (name, authorization) = (Some(name), tokio::sync::Mutex::default());
        Self { options, client, reach, origin, host, name, login: None, authorization }
    }

    /// Asks the registry as a whole whether it answers, and accepts this login.
    pub(super) async fn check(
        mut self,
        login: Option<&Login>,
    ) -> Result<RegistryChecked, ImageError> {
        self.name = None;
        self.login = login.cloned().map(Credentials::Login);
        let mut retries = Retries::new(&self.options);
        loop {
            match self.once(Method::GET, "/v2/", &Want::default()).await {
                Ok(_) if login.is_some() && self.authorization.lock().await.is_none() => {
                    return Ok(RegistryChecked::WantsNone);
                }
                Ok(_) => return Ok(RegistryChecked::Accepted),
                // It wants a login, so it is one that answers.
                Err(Failure::Final(ImageError::Denied { .. })) if login.is_none() => {
                    return Ok(RegistryChecked::Accepted);
                }
                Err(failure) => retries.pause(failure).await?,
            }
        }
    }

    /// The digest a tag names now.
    pub(in super::super) async fn resolve(&self, tag: &str) -> Result<Digest, ImageError> {
        let path = self.path("manifests", tag);
        let mut retries = Retries::new(&self.options);
        let response = loop {
            match self.once(Method::HEAD, &path, &Want::manifest()).await {
                Ok(response) => break response,
                // Some registries answer HEAD with an error of their own; GET says why.
                Err(Failure::Final(ImageError::Registry { .. })) => {
                    return Ok(self.manifest(tag).await?.0);
                }
                Err(failure) => retries.pause(failure).await?,
            }
        };
        let header = response.headers().get("docker-content-digest");
        match header.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok()) {
            Some(digest) => Ok(digest),
            None => Ok(self.manifest(tag).await?.0),
        }
    }

    /// The manifest or index that a tag or a digest names, and its digest.
    pub(in super::super) async fn manifest(
        &self,
        tag_or_digest: &str,
    ) -> Result<(Digest, Vec<u8>), ImageError> {
        let path = self.path("manifests", tag_or_digest);
        let what = format!("manifest of {}", self.called(tag_or_digest));
        let bytes = self.document(&path, &what, &Want::manifest(), manifest::MAX_MANIFEST).await?;
        let got = super::super::digest_of(&bytes);
        match tag_or_digest.parse::<Digest>() {
            Ok(expected) if expected != got => {
                Err(ImageError::DigestMismatch { what, expected, got })
            }
            _ => Ok((got, bytes)),
        }
    }

    /// A small blob, such as a config, checked.
    pub(in super::super) async fn small_blob(
        &self,
        what: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let path = self.path("blobs", digest.as_str());
        let bytes = self.document(&path, what, &Want::default(), size).await?;
        super::super::check(what, &bytes, digest, size)?;
        Ok(bytes)
    }

    fn called(&self, tag_or_digest: &str) -> String {
        let separator = if tag_or_digest.contains(':') { '@' } else { ':' };
        format!("{}{separator}{tag_or_digest}", self.name())
    }

    pub(super) fn path(&self, kind: &str, what: &str) -> String {
        // Parts of a parsed reference: nothing in them needs escaping.
        format!("/v2/{}/{kind}/{what}", self.name())
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("its API")
    }

    async fn document(
        &self,
        path: &str,
        what: &str,
        want: &Want,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let mut retries = Retries::new(&self.options);
        loop {
            let result = match self.once(Method::GET, path, want).await {
                Ok(response) => self.body(response, what, limit).await,
                Err(failure) => Err(failure),
            };
            match result {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => retries.pause(failure).await?,
            }
        }
    }

    pub(super) async fn body(
        &self,
        response: Response,
        what: &str,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let mut incoming = Incoming::new(response);
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut incoming).await? {
            let got = bytes.len() as u64 + chunk.len() as u64;
            if got > limit {
                let what = what.to_owned();
                return Err(ImageError::SizeMismatch { what, expected: limit, got }.into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// The next part of a response, `None` at its end.
    pub(super) async fn chunk(
        &self,
        incoming: &mut Incoming,
    ) -> Result<Option<bytes::Bytes>, Failure> {
        match incoming.next(self.options.stall_timeout).await {
            Ok(part) => part.map_err(|error| self.broken(incoming.response.url(), &error)),
            Err(_) => Err(self.stalled(incoming.response.url())),
        }
    }

    /// One try: authorises, follows redirects, and takes nothing but success for an answer,
    /// or being told that the bytes wanted lie past the end.
    pub(super) async fn once(
        &self,
        method: Method,
        path: &str,
        want: &Want,
    ) -> Result<Response, Failure> {
        let mut url = self.origin.clone();
        url.set_path(path);
        let mut redirects = 0;
        let mut challenged = false;
        loop {
            let is_own = url.origin() == self.origin.origin();
            let authorization = match is_own {
                true => self.authorization.lock().await.clone(),
                false => None,
            };
            let mut request = self.client.request(method.clone(), url.clone());
            if let Some(accept) = want.accept {
                request = request.header(ACCEPT, accept);
            }
            if want.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", want.from));
            }
            if let Some(value) = &authorization {
                request = request.header(AUTHORIZATION, value);
            }
            let response = self.send(&url, request).await?;
            let status = response.status();
            let past_end = status == StatusCode::RANGE_NOT_SATISFIABLE && want.from > 0;
            if status.is_success() || past_end {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && is_own && !challenged {
                challenged = true;
                self.authorize(authorization, response).await?;
                continue;
            }
            if status.is_redirection() {
                redirects += 1;
                url = self.redirect(&url, response.headers(), redirects)?;
                continue;
            }
            if is_own && status.is_client_error() {
                // The next request asks anew: better credentials may have been given by then.
                *self.authorization.lock().await = None;
            }
            return Err(self.failure(path, response).await);
        }
    }

    /// Sends one request, after checking where it goes.
    pub(super) async fn send(
        &self,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, Failure> {
        self.reach.check(url).map_err(refused)?;
        match tokio::time::timeout(self.options.stall_timeout, request.send()).await {
            Ok(result) => result.map_err(|error| self.broken(url, &error)),
            Err(_) => Err(self.stalled(url)),
        }
    }

    fn redirect(&self, from: &Url, headers: &HeaderMap, count: u32) -> Result<Url, Failure> {
        let bad = |reason: String| {
            Failure::Final(ImageError::BadRedirect { registry: self.host.to_string(), reason })
        };
        if count > MAX_REDIRECTS {
            return Err(bad(format!("there are more than {MAX_REDIRECTS} of them")));
        }
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or_else(|| bad("it says not where to".into()))?;
        let mut url = from.join(location).map_err(|e| bad(format!("{location:?}: {e}")))?;
        let keeps_tls = url.scheme() == "https" || self.origin.scheme() == "http";
        if !keeps_tls || !matches!(url.scheme(), "http" | "https") {
            return Err(bad(format!("{}: is not https", url.scheme())));
        }
        // reqwest would make credentials of it.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(url)
    }

    /// What an unsuccessful status means.
    pub(super) async fn failure(&self, path: &str, response: Response) -> Failure {
        let status = response.status();
        let retry_after = retry::retry_after(response.headers());
        let said = self.error_message(response).await;
        let said = said.unwrap_or_else(|| format!("HTTP status {status}"));
        match status {
            StatusCode::NOT_FOUND => Failure::Final(ImageError::NotFound {
                registry: self.host.to_string(),
                what: match path.rsplit_once("/manifests/") {
                    Some((_, tag_or_digest)) => self.called(tag_or_digest),
                    None => path.trim_start_matches("/v2/").to_owned(),
                },
            }),
            StatusCode::UNAUTHORIZED => self
                .denied(&format!("it does not accept the credentials, or wants some: {said}"))
                .into(),
            StatusCode::FORBIDDEN => self.denied(&said).into(),
            StatusCode::TOO_MANY_REQUESTS => Failure::Passing {
                error: ImageError::RateLimited { registry: self.host.to_string(), retry_after },
                after: retry_after,
            },
            _ if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                Failure::Passing { error: self.odd(&said), after: retry_after }
            }
            _ => self.odd(&said).into(),
        }
    }

    /// The first error in a body of the form that the specification asks for.
    async fn error_message(&self, response: Response) -> Option<String> {
        #[derive(Deserialize)]
        struct Errors {
            errors: Vec<Error>,
        }
        #[derive(Deserialize)]
        struct Error {
            code: Option<String>,
            message: Option<String>,
        }
        let status = response.status();
        let body = self.body(response, "error", MAX_ANSWER).await.ok()?;
        let error = serde_json::from_slice::<Errors>(&body).ok()?.errors.into_iter().next()?;
        // From outside: kept short and without control characters.
        let text: String =
            [error.code, error.message].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        Some(format!("{} ({text})", status.as_u16()))
    }

    /// A connection that failed or broke.
    fn broken(&self, url: &Url, error: &reqwest::Error) -> Failure {
        if let Some(refusal) = retry::cause::<Refused>(error) {
            return refused(refusal.clone());
        }
        let host = url.host_str().unwrap_or_default().to_owned();
        if let Some(tls) = retry::cause::<rustls::Error>(error) {
            return ImageError::Tls { host, reason: tls.to_string() }.into();
        }
        let reason = retry::innermost(error);
        Failure::Passing { error: ImageError::Unreachable { host, reason }, after: None }
    }

    fn stalled(&self, url: &Url) -> Failure {
        let seconds = self.options.stall_timeout.as_secs_f32();
        let error = ImageError::Unreachable {
            host: url.host_str().unwrap_or_default().to_owned(),
            reason: format!("nothing arrived for {seconds} s"),
        };
        Failure::Passing { error, after: None }
    }

    pub(super) fn denied(&self, reason: &str) -> ImageError {
        ImageError::Denied {
            registry: self.host.to_string(),
            repository: self.name().to_owned(),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn odd(&self, answer: &str) -> ImageError {
        ImageError::Registry { registry: self.host.to_string(), answer: answer.to_owned() }
    }
}

fn refused(refusal: Refused) -> Failure {
    ImageError::AddressRefused { host: refusal.host, address: refusal.address }.into()
}

/// What a request asks for besides its path.
#[derive(Default)]
pub(super) struct Want {
    pub(super) accept: Option<&'static str>,
    /// First byte wanted.
    pub(super) from: u64,
}

impl Want {
    fn manifest() -> Self {
        Self { accept: Some(manifest::ACCEPT), from: 0 }
    }
}
