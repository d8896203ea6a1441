//! From a digest, in a registry or an archive, to a complete image.
//!
//! Promises: no network when the image is complete; layers arrive in parallel and are
//! unpacked while they arrive; a layer wanted by several images is fetched once; after an
//! error nothing of what failed is left, and nothing of it still runs. Does not know HTTP,
//! nor how archives are laid out.

use std::convert::Infallible;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use stead_core::ids::Digest;
use stead_core::registry::{Login, RegistryChecked, RegistryHost};
use tokio::sync::mpsc;

use super::error::{ImageError, LayerError};
use super::import::{Local, LocalBlob};
use super::layer::{Expected, unpack_layer};
use super::manifest::{self, Descriptor, Document, Manifest};
use super::progress::{LayerStep, PlannedLayer, Progress};
use super::reference::Reference;
use super::registry::{BlobStream, Remote};
use super::store::{Claim, Image, ImageStore, Inner, LayerRecord, Turn};
use super::unpack::Summary;

/// Parts of a blob that may wait to be unpacked.
const PARTS_WAITING: usize = 16;

impl ImageStore {
    /// The digest that a reference names now. A reference with a digest needs no network.
    ///
    /// # Errors
    /// When the registry does not know the tag, refuses, or cannot be reached.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest, ImageError> {
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => Ok(digest.clone()),
            (None, tag) => {
                let remote = self.inner.registry.remote(reference)?;
                remote.resolve(tag.unwrap_or("latest")).await
            }
        }
    }

    /// Asks a registry whether it answers, and accepts a login. Keeps nothing of either.
    ///
    /// # Errors
    /// When it refuses the login, or cannot be reached.
    pub async fn check_registry(
        &self,
        host: &RegistryHost,
        login: Option<&Login>,
    ) -> Result<RegistryChecked, ImageError> {
        self.inner.registry.check(host, login).await
    }

    /// The image with this digest from the reference's repository. Needs no network when it
    /// is complete on disk. Dropping the future stops the pull.
    ///
    /// # Errors
    /// Everything an [`ImageError`] can be.
    pub async fn pull(
        &self,
        reference: &Reference,
        digest: &Digest,
        progress: &dyn Progress,
    ) -> Result<Arc<Image>, ImageError> {
        if let Some(image) = self.inner.touch(digest, Some(reference))? {
            return Ok(image);
        }
        let origin = Origin::Registry(self.inner.registry.remote(reference)?);
        let pull = Pull { inner: &self.inner, origin, progress };
        pull.run(&reference.to_string(), digest, Some(reference)).await
    }
}

/// Where an image comes from.
pub(super) enum Origin {
    Registry(Arc<Remote>),
    Local(Arc<Local>),
}

/// One image on its way into the store.
pub(super) struct Pull<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) origin: Origin,
    pub(super) progress: &'a dyn Progress,
}

/// One layer to be had.
struct Wanted {
    blob: Descriptor,
    diff_id: Digest,
}

impl Pull<'_> {
    /// Makes the image complete. `what` names it in errors, `name` in the store.
    pub(super) async fn run(
        &self,
        what: &str,
        digest: &Digest,
        name: Option<&Reference>,
    ) -> Result<Arc<Image>, ImageError> {
        let mut pins = vec![self.inner.pin([digest.clone()])];
        let mut blobs = vec![digest.clone()];
        let mut what = what.to_owned();
        let manifest = match self.document(&what, digest).await? {
            Document::Manifest(manifest) => manifest,
            Document::Index(entries) => {
                let chosen = manifest::choose(&entries, &self.inner.options.platform)?;
                pins.push(self.inner.pin([chosen.digest.clone()]));
                blobs.push(chosen.digest.clone());
                what = format!("{what} ({})", self.inner.options.platform);
                match self.document(&what, &chosen.digest).await? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => {
                        return Err(ImageError::bad_manifest(
                            what,
                            "it is an index within an index",
                        ));
                    }
                }
            }
        };
        pins.push(self.inner.pin([manifest.config.digest.clone()]));
        blobs.push(manifest.config.digest.clone());
        let config = self.config(&what, &manifest.config).await?;
        let platform = &self.inner.options.platform;
        let (config, diff_ids) =
            manifest::read_config(&what, &config, platform, manifest.layers.len())?;
        pins.push(self.inner.pin(diff_ids.iter().cloned()));
        let summaries = self.layers(manifest, &diff_ids).await?;
        self.inner.add(digest, blobs, config, summaries, name)
    }

    async fn document(&self, what: &str, digest: &Digest) -> Result<Document, ImageError> {
        let bytes = match self.inner.blob(digest) {
            Some(bytes) => bytes,
            None => {
                let bytes = match &self.origin {
                    Origin::Registry(remote) => remote.manifest(digest).await?,
                    Origin::Local(local) => local.manifest(digest)?,
                };
                self.inner.keep_blob(digest, &bytes)?;
                bytes
            }
        };
        Document::parse(what, &bytes)
    }

    async fn config(&self, what: &str, config: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if let Some(bytes) = self.inner.blob(&config.digest) {
            return Ok(bytes);
        }
        let what = format!("config of {what}");
        let bytes = match &self.origin {
            Origin::Registry(remote) => {
                remote.small_blob(&what, &config.digest, config.size).await?
            }
            Origin::Local(local) => local.small_blob(&what, &config.digest, config.size)?,
        };
        self.inner.keep_blob(&config.digest, &bytes)?;
        Ok(bytes)
    }

    async fn layers(
        &self,
        manifest: Manifest,
        diff_ids: &[Digest],
    ) -> Result<Vec<LayerRecord>, ImageError> {
        let wanted: Vec<Wanted> = manifest
            .layers
            .into_iter()
            .zip(diff_ids)
            .map(|(blob, diff_id)| Wanted { blob, diff_id: diff_id.clone() })
            .collect();
        let planned: Vec<_> = wanted
            .iter()
            .map(|w| PlannedLayer { digest: w.blob.digest.clone(), size: w.blob.size })
            .collect();
        self.progress.plan(&planned);
        let absent = wanted.iter().filter(|w| !self.inner.has_layer(&w.diff_id));
        // Sizes are a stranger's: they may add up to anything.
        self.make_room(absent.fold(0, |sum, w| sum.saturating_add(w.blob.size))).await?;
        // Every unpacking thread holds a sender: when the last is gone, nothing runs any more.
        let (running, mut all_ended) = mpsc::channel::<Infallible>(1);
        let at_once = self.inner.options.layers_at_once.max(1);
        let layers = wanted.into_iter().enumerate().map(|(place, wanted)| {
            let layer = self.layer(wanted, running.clone());
            async move { layer.await.map(|layer| (place, layer)) }
        });
        // As they come: a slow one must not keep the places of those that are done.
        let result: Result<Vec<_>, _> =
            stream::iter(layers).buffer_unordered(at_once).try_collect().await;
        if result.is_err() {
            drop(running);
            // Dropping the stream above made the other layers' threads give up.
            all_ended.recv().await;
        }
        let mut layers = result?;
        layers.sort_by_key(|(place, _)| *place);
        Ok(layers.into_iter().map(|(_, layer)| layer).collect())
    }

    /// Sees that so many bytes fit, at the cost of images that nobody needs. Layers take
    /// their room as they are unpacked; this says early that it is all in vain.
    async fn make_room(&self, bytes: u64) -> Result<(), ImageError> {
        let mut room = self.inner.room();
        let taking = tokio::task::spawn_blocking(move || room.take(bytes));
        taking.await.expect("making room does not panic")
    }

    async fn layer(
        &self,
        wanted: Wanted,
        running: mpsc::Sender<Infallible>,
    ) -> Result<LayerRecord, ImageError> {
        let digest = &wanted.blob.digest;
        loop {
            let turn = match self.inner.claim(&wanted.diff_id).await {
                Claim::Present(summary) => {
                    self.progress.layer(digest, LayerStep::Present);
                    return Ok(LayerRecord { diff_id: wanted.diff_id, summary });
                }
                Claim::Mine(turn) => turn,
            };
            let mut blob = self.blob(&wanted.blob)?;
            match self.fetch(&wanted, &mut blob, turn, running.clone()).await {
                Ok(summary) => {
                    self.progress.layer(digest, LayerStep::Done);
                    return Ok(LayerRecord { diff_id: wanted.diff_id, summary });
                }
                Err(error) if is_wrong(&error) && blob.blame(&error) => {}
                Err(ImageError::NotFound { registry, .. }) if wanted.blob.elsewhere.0 => {
                    return Err(ImageError::ForeignLayer { layer: digest.clone(), registry });
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn blob(&self, wanted: &Descriptor) -> Result<Blob, ImageError> {
        Ok(match &self.origin {
            Origin::Registry(remote) => {
                Blob::Remote(Box::new(remote.blob(&wanted.digest, wanted.size)))
            }
            Origin::Local(local) => Blob::Local(local.blob(&wanted.digest)?),
        })
    }

    async fn fetch(
        &self,
        wanted: &Wanted,
        blob: &mut Blob,
        turn: Turn,
        running: mpsc::Sender<Infallible>,
    ) -> Result<Summary, ImageError> {
        let (digest, size) = (&wanted.blob.digest, wanted.blob.size);
        let (sender, receiver) = mpsc::channel(PARTS_WAITING);
        let stored = match &self.origin {
            Origin::Registry(_) => (digest.clone(), size),
            Origin::Local(local) => local.stored(digest, size),
        };
        let expected = Expected { blob: Some(stored), diff_id: wanted.diff_id.clone() };
        let limits = self.inner.options.limits.clone();
        let unpacking = tokio::task::spawn_blocking(move || {
            let _running = running;
            turn.unpack(|folder, trash, room| {
                let room = |bytes| Ok(room.take(bytes)?);
                unpack_layer(Parts::new(receiver), &expected, folder, trash, &limits, room)
            })
        });
        let fed = self.feed(digest, size, blob, sender).await;
        let unpacked = unpacking.await.expect("unpacking does not panic");
        // Without its bytes the unpacking fails too; the network is the cause then.
        fed.and(unpacked)
    }

    /// Hands a blob's parts on. Not an error if nobody wants them any more: the unpacking
    /// says why.
    async fn feed(
        &self,
        digest: &Digest,
        total: u64,
        blob: &mut Blob,
        sender: mpsc::Sender<Bytes>,
    ) -> Result<(), ImageError> {
        let mut done = 0;
        self.progress.layer(digest, LayerStep::Fetching { done, total });
        while let Some(part) = blob.next().await? {
            done += part.len() as u64;
            if sender.send(part).await.is_err() {
                return Ok(());
            }
            self.progress.layer(digest, LayerStep::Fetching { done, total });
        }
        self.progress.layer(digest, LayerStep::Unpacking);
        // The empty part is the end; a channel that closes without it was given up.
        let _ = sender.send(Bytes::new()).await;
        Ok(())
    }
}

/// Whether what arrived may have been something else than what was named. An entry that is
/// refused, or too large, ends the reading before the digest is known.
fn is_wrong(error: &ImageError) -> bool {
    match error {
        ImageError::SizeMismatch { .. } => true,
        ImageError::Layer { source, .. } => !matches!(source, LayerError::Io(_)),
        _ => false,
    }
}

enum Blob {
    Remote(Box<BlobStream>),
    Local(LocalBlob),
}

impl Blob {
    async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        match self {
            Self::Remote(blob) => blob.next().await,
            Self::Local(blob) => blob.next().await,
        }
    }

    /// Whether another try, without those who gave the wrong bytes, is worth it.
    fn blame(&self, why: &ImageError) -> bool {
        match self {
            Self::Remote(blob) => blob.blame(why),
            Self::Local(_) => false,
        }
    }
}

/// The parts of a blob as a stream for the unpacking thread.
struct Parts {
    receiver: mpsc::Receiver<Bytes>,
    part: Bytes,
    ended: bool,
}

impl Parts {
    fn new(receiver: mpsc::Receiver<Bytes>) -> Self {
        Self { receiver, part: Bytes::new(), ended: false }
    }
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() && !self.ended {
            self.part = self.receiver.blocking_recv().ok_or_else(|| {
                io::Error::new(io::ErrorKind::ConnectionAborted, "download stopped")
            })?;
            self.ended = self.part.is_empty();
        }
        let got = buffer.len().min(self.part.len());
        buffer[..got].copy_from_slice(&self.part.split_to(got));
        Ok(got)
    }
}
