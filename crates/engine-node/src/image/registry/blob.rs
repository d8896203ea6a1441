//! A blob as a stream that survives broken connections.
//!
//! Promises: the parts given out, put together, have exactly the size announced, or an error
//! says so; after a break the stream goes on where it stopped, at another place where the one
//! asked fails for good. Does not hash: who consumes the bytes does.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, StatusCode};
use stead_core::ids::Digest;

use super::super::error::ImageError;
use super::incoming::Incoming;
use super::remote::Remote;
use super::repository::{Repository, Want};
use super::retry::{Failure, Retries};

/// A break after at least this many bytes counts as the first one again: a long download may
/// break often. Bytes.
const PROGRESS: u64 = 1 << 20;

/// Streams one blob.
pub(in super::super) struct BlobStream {
    remote: Arc<Remote>,
    /// Whom it asks now.
    place: usize,
    /// Whom it had bytes from.
    sources: Vec<usize>,
    digest: Digest,
    size: u64,
    offset: u64,
    response: Option<Incoming>,
    /// Bytes a server repeats that cannot start in the middle.
    repeated: u64,
    retries: Retries,
    /// Where the stream stood when `retries` was made.
    retries_since: u64,
}

impl BlobStream {
    pub(super) fn new(remote: Arc<Remote>, digest: Digest, size: u64) -> Self {
        let place = remote.next_place(None);
        let retries = Retries::new(&remote.repository(place).options);
        Self {
            remote,
            place,
            sources: Vec::new(),
            digest,
            size,
            offset: 0,
            response: None,
            repeated: 0,
            retries,
            retries_since: 0,
        }
    }

    /// The next part, never empty; `None` once `size` bytes were given out.
    pub(in super::super) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        loop {
            match self.step().await {
                Ok(Step::Part(part)) => return Ok(Some(part)),
                Ok(Step::End) => return Ok(None),
                Ok(Step::Again) => {}
                Err(failure) => {
                    self.response = None;
                    if self.offset - self.retries_since >= PROGRESS {
                        self.retries_anew();
                    }
                    if let Err(error) = self.retries.pause(failure).await {
                        self.go_on_elsewhere(error)?;
                    }
                }
            }
        }
    }

    /// The bytes were wrong, so whoever gave them is not asked again, if there is another to
    /// ask. Whether another try is worth it.
    pub(in super::super) fn blame(&self, why: &ImageError) -> bool {
        // No short cut: all of them are to blame.
        self.sources.iter().filter(|source| self.remote.pass_over(**source, why)).count() > 0
    }

    fn retries_anew(&mut self) {
        self.retries = Retries::new(&self.repository().options);
        self.retries_since = self.offset;
    }

    fn go_on_elsewhere(&mut self, error: ImageError) -> Result<(), ImageError> {
        if !self.remote.pass_over(self.place, &error) {
            return Err(error);
        }
        self.place = self.remote.next_place(Some(self.place));
        self.retries_anew();
        Ok(())
    }

    fn repository(&self) -> &Arc<Repository> {
        self.remote.repository(self.place)
    }

    async fn step(&mut self) -> Result<Step, Failure> {
        let Some(response) = &mut self.response else {
            if self.offset == self.size {
                return Ok(Step::End);
            }
            self.response = Some(self.request().await?);
            return Ok(Step::Again);
        };
        let repository = Arc::clone(self.remote.repository(self.place));
        let Some(mut part) = repository.chunk(response).await? else {
            self.response = None;
            if self.offset == self.size {
                return Ok(Step::End);
            }
            return Err(self.cut_short());
        };
        let skip = self.repeated.min(part.len() as u64);
        self.repeated -= skip;
        let part = part.split_off(skip as usize);
        if part.is_empty() {
            return Ok(Step::Again);
        }
        if part.len() as u64 > self.size - self.offset {
            return Err(self.wrong_size(self.offset + part.len() as u64).into());
        }
        self.offset += part.len() as u64;
        if self.sources.last() != Some(&self.place) {
            self.sources.push(self.place);
        }
        Ok(Step::Part(part))
    }

    async fn request(&mut self) -> Result<Incoming, Failure> {
        let repository = Arc::clone(self.repository());
        let path = repository.path("blobs", self.digest.as_str());
        let want = Want { accept: None, from: self.offset };
        let response = repository.once(Method::GET, &path, &want).await?;
        self.repeated = match response.status() {
            // There is no byte at `offset`: the blob is shorter than announced.
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(self.wrong_size(self.offset).into()),
            StatusCode::PARTIAL_CONTENT if self.starts_right(&response) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(repository.odd("another part of the blob than asked for").into());
            }
            _ => self.offset,
        };
        if let Some(length) = response.content_length() {
            let got = length.saturating_add(self.offset - self.repeated);
            if got > self.size {
                return Err(self.wrong_size(got).into());
            }
        }
        Ok(Incoming::new(response))
    }

    fn starts_right(&self, response: &reqwest::Response) -> bool {
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let start = range.and_then(|r| r.strip_prefix("bytes ")).and_then(|r| r.split('-').next());
        start.and_then(|start| start.trim().parse().ok()) == Some(self.offset)
    }

    fn cut_short(&self) -> Failure {
        // Perhaps a break that looks like an end; perhaps a wrong size. Another try will tell.
        Failure::Passing { error: self.wrong_size(self.offset), after: None }
    }

    fn wrong_size(&self, got: u64) -> ImageError {
        let what = format!("blob {}", self.digest);
        ImageError::SizeMismatch { what, expected: self.size, got }
    }
}

enum Step {
    Part(Bytes),
    End,
    Again,
}
