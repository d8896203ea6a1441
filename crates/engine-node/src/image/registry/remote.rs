//! Where an image is asked for: the mirrors of its registry in their order, then the registry.
//!
//! Promises: a mirror that lacks something, fails or sends the wrong bytes costs a note and is
//! not asked again for this image; only a mirror that may is asked what a tag names. Digests
//! decide about everything else, so no mirror need be trusted for it. Does not know what is
//! fetched.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stead_core::ids::Digest;

use super::super::error::ImageError;
use super::blob::BlobStream;
use super::repository::Repository;

/// The places that have one image.
pub(in super::super) struct Remote {
    /// The last is the registry itself.
    places: Vec<Place>,
}

pub(super) struct Place {
    pub(super) repository: Arc<Repository>,
    /// The mirror's address; `None` for the registry itself.
    mirror: Option<String>,
    /// It is asked what a tag names.
    tags: bool,
    passed_over: AtomicBool,
}

impl Place {
    pub(super) fn mirror(repository: Arc<Repository>, address: String, tags: bool) -> Self {
        Self { repository, mirror: Some(address), tags, passed_over: AtomicBool::new(false) }
    }

    fn is_asked(&self) -> bool {
        !self.passed_over.load(Ordering::Relaxed)
    }

    /// Asks it no more for this image; false for the registry itself.
    fn pass_over(&self, why: &ImageError) -> bool {
        let Some(mirror) = &self.mirror else { return false };
        self.passed_over.store(true, Ordering::Relaxed);
        tracing::warn!(mirror, %why, "a mirror is passed over");
        true
    }

    /// A mirror's failure is `None`: the next place is asked.
    fn settle<T>(&self, answer: Result<T, ImageError>) -> Result<Option<T>, ImageError> {
        match answer {
            Ok(found) => Ok(Some(found)),
            Err(error) if self.pass_over(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Remote {
    pub(super) fn new(mirrors: Vec<Place>, registry: Arc<Repository>) -> Self {
        let mut places = mirrors;
        let passed_over = AtomicBool::new(false);
        places.push(Place { repository: registry, mirror: None, tags: true, passed_over });
        Self { places }
    }

    /// The digest a tag names now.
    pub(in super::super) async fn resolve(&self, tag: &str) -> Result<Digest, ImageError> {
        for place in self.asked().filter(|place| place.tags) {
            if let Some(found) = place.settle(place.repository.resolve(tag).await)? {
                return Ok(found);
            }
        }
        unreachable!("the registry itself gives an answer or an error")
    }

    /// The manifest or index with this digest.
    pub(in super::super) async fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        for place in self.asked() {
            let answer = place.repository.manifest(digest.as_str()).await;
            if let Some((_, bytes)) = place.settle(answer)? {
                return Ok(bytes);
            }
        }
        unreachable!("the registry itself gives an answer or an error")
    }

    /// A small blob, such as a config, checked.
    pub(in super::super) async fn small_blob(
        &self,
        what: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, ImageError> {
        for place in self.asked() {
            let answer = place.repository.small_blob(what, digest, size).await;
            if let Some(bytes) = place.settle(answer)? {
                return Ok(bytes);
            }
        }
        unreachable!("the registry itself gives an answer or an error")
    }

    /// A blob of any size, as a stream.
    pub(in super::super) fn blob(self: &Arc<Self>, digest: &Digest, size: u64) -> BlobStream {
        BlobStream::new(Arc::clone(self), digest.clone(), size)
    }

    fn asked(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.is_asked())
    }

    /// The number of the first place to ask that comes after `last`.
    pub(super) fn next_place(&self, last: Option<usize>) -> usize {
        let from = last.map_or(0, |last| last + 1);
        let found = (from..self.places.len()).find(|number| self.places[*number].is_asked());
        found.expect("the registry itself is never passed over, and nothing comes after it")
    }

    pub(super) fn repository(&self, place: usize) -> &Arc<Repository> {
        &self.places[place].repository
    }

    /// Whether a failure leads on to another place.
    pub(super) fn pass_over(&self, place: usize, why: &ImageError) -> bool {
        self.places[place].pass_over(why)
    }
}
