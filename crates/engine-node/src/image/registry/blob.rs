//! A blob as a stream that survives broken connections.
//!
//! Promises: the parts given out, put together, have exactly the size announced, or an error
//! says so; after a break the stream goes on where it stopped. Does not hash: who consumes
//! the bytes does.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, Response, StatusCode};
use stead_core::ids::Digest;

use super::super::error::ImageError;
use super::repository::{Repository, Want};
use super::retry::{Failure, Retries};

/// A break after at least this many bytes counts as the first one again: a long download may
/// break often. Bytes.
const PROGRESS: u64 = 1 << 20;

/// Streams one blob.
pub(in super::super) struct BlobStream {
    repository: Arc<Repository>,
    digest: Digest,
    size: u64,
    offset: u64,
    response: Option<Response>,
    /// Bytes a server repeats that cannot start in the middle.
    repeated: u64,
    retries: Retries,
    /// Where the stream stood when `retries` was made.
    retries_since: u64,
}

impl BlobStream {
    pub(super) fn new(repository: Arc<Repository>, digest: Digest, size: u64) -> Self {
        let retries = Retries::new(&repository.options);
        Self {
            repository,
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
                        self.retries = Retries::new(&self.repository.options);
                        self.retries_since = self.offset;
                    }
                    self.retries.pause(failure).await?;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Step, Failure> {
        let Some(response) = &mut self.response else {
            if self.offset == self.size {
                return Ok(Step::End);
            }
            self.response = Some(self.request().await?);
            return Ok(Step::Again);
        };
        let Some(mut part) = self.repository.chunk(response).await? else {
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
        Ok(Step::Part(part))
    }

    async fn request(&mut self) -> Result<Response, Failure> {
        let path = self.repository.path("blobs", self.digest.as_str());
        let want = Want { accept: None, from: self.offset };
        let response = self.repository.once(Method::GET, &path, &want).await?;
        self.repeated = match response.status() {
            // There is no byte at `offset`: the blob is shorter than announced.
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(self.wrong_size(self.offset).into()),
            StatusCode::PARTIAL_CONTENT if self.starts_right(&response) => 0,
            StatusCode::PARTIAL_CONTENT => {
                return Err(self.repository.odd("another part of the blob than asked for").into());
            }
            _ => self.offset,
        };
        if let Some(length) = response.content_length() {
            let got = length.saturating_add(self.offset - self.repeated);
            if got > self.size {
                return Err(self.wrong_size(got).into());
            }
        }
        Ok(response)
    }

    fn starts_right(&self, response: &Response) -> bool {
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
