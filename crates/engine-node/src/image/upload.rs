//! Uploads: bytes that somebody sends, named by their digest, in as many pieces as it takes.
//!
//! Promises: an upload is complete only once it has the size and the digest that name it; one
//! that turns out to be something else is thrown away. What arrived stays when the sender
//! breaks off, when `serve` restarts, and when both happen; one sender at a time adds to it.
//! Does not know what uploads are for: nothing of one is used before it is checked again.
//!
//! Nothing is synced: after a crash of the machine an upload may hold rubbish, which its digest
//! tells, and is sent again.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use stead_core::api::package::{UploadPart, UploadView};
use stead_core::engine::ByteStream;
use stead_core::ids::Digest;
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedMutexGuard;

use super::error::ImageError;
use super::store::{ImageStore, Inner, Room};
use crate::hash;

/// How long an upload may lie unused.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a sender waits for the one before it, which may be gone without a word.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a sender may be silent. One that lost its connection must not keep itself out when
/// it comes back over another.
const SILENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// Ending of what is not complete.
const PART: &str = "part";

impl ImageStore {
    /// How much of this upload is here. Asking counts as use.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn uploaded(&self, digest: &Digest) -> Result<UploadView, ImageError> {
        let (inner, digest) = (Arc::clone(&self.inner), digest.clone());
        blocking(move || {
            let view = inner.upload_view(&digest)?;
            for path in [inner.upload(&digest), inner.upload_part(&digest)] {
                // Not there, or its time says a little too much of its age.
                let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
            }
            Ok(view)
        })
        .await
    }

    /// Takes in more of an upload, to its end or less far: what arrived is kept also when this
    /// fails because the bytes broke off. Goes on when its future is dropped, until the bytes
    /// end. Of an upload that is complete no byte is read.
    ///
    /// # Errors
    /// [`ImageError::UploadOffset`] with what is here when `part` does not go on from there,
    /// [`ImageError::UploadBusy`] while somebody else sends it; when it is too large, has
    /// another size or digest, or the store has no room.
    pub async fn upload(
        &self,
        part: UploadPart,
        bytes: ByteStream,
    ) -> Result<UploadView, ImageError> {
        // A task of its own: a write that is under way must end before the next sender's turn.
        let receiving = tokio::spawn(receive(Arc::clone(&self.inner), part, bytes));
        receiving.await.expect("receiving does not panic")
    }

    /// Removes uploads that nobody used for a day.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn expire_uploads(&self) -> Result<(), ImageError> {
        let failed = || ImageError::io("uploads cannot be looked through");
        let uploads = self.inner.uploads();
        for entry in fs::read_dir(uploads).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else { continue };
            // Removed by somebody in the meantime, or younger than the clock.
            let age = fs::metadata(&path).and_then(|meta| Ok(meta.modified()?.elapsed().ok()));
            if matches!(age, Ok(Some(age)) if age > KEPT)
                && let Ok(_turn) = self.inner.upload_turn(&digest).try_lock()
            {
                remove(&path).map_err(failed())?;
            }
        }
        Ok(())
    }
}

/// Takes in what comes, as far as it comes.
async fn receive(
    inner: Arc<Inner>,
    part: UploadPart,
    mut bytes: ByteStream,
) -> Result<UploadView, ImageError> {
    let UploadPart { digest, size, offset } = part;
    let limit = inner.options.largest_upload;
    if size > limit {
        return Err(ImageError::UploadTooLarge { size, limit });
    }
    let turn: OwnedMutexGuard<()> =
        match tokio::time::timeout(PATIENCE, inner.upload_turn(&digest).lock_owned()).await {
            Ok(turn) => turn,
            Err(_) => return Err(ImageError::UploadBusy { digest }),
        };
    let (opened, mut room) = {
        let (inner, digest) = (Arc::clone(&inner), digest.clone());
        blocking(move || begin(&inner, &digest, size, offset)).await?
    };
    let Some(file) = opened else {
        return Ok(UploadView { offset: size, complete: true });
    };
    let failed = || ImageError::io("upload cannot be written");
    let mut file = tokio::fs::File::from_std(file);
    let mut arrived = offset;
    let mut broken = None;
    loop {
        let next = tokio::time::timeout(SILENCE, bytes.next()).await;
        let Some(piece) = next.unwrap_or_else(|silent| Some(Err(silent.into()))) else { break };
        match piece {
            Ok(piece) if piece.len() as u64 > size - arrived => {
                let got = arrived + piece.len() as u64;
                remove(&inner.upload_part(&digest)).map_err(failed())?;
                return Err(ImageError::SizeMismatch {
                    what: "upload".into(),
                    expected: size,
                    got,
                });
            }
            Ok(piece) => {
                file.write_all(&piece).await.map_err(failed())?;
                arrived += piece.len() as u64;
                room.give_back(piece.len() as u64);
            }
            Err(error) => {
                broken = Some(error);
                break;
            }
        }
    }
    // Before the turn ends: this waits for the write under way.
    file.flush().await.map_err(failed())?;
    drop(file);
    if let Some(error) = broken {
        return Err(ImageError::UploadBroken { arrived, reason: error.to_string() });
    }
    if arrived < size {
        return Ok(UploadView { offset: arrived, complete: false });
    }
    blocking(move || {
        let _turn = turn;
        inner.complete_upload(&digest)
    })
    .await?;
    Ok(UploadView { offset: size, complete: true })
}

/// Opens the upload where it goes on, with room for the rest of it; no file when it is complete.
fn begin(
    inner: &Arc<Inner>,
    digest: &Digest,
    size: u64,
    offset: u64,
) -> Result<(Option<File>, Room), ImageError> {
    let failed = || ImageError::io("upload cannot be written");
    let mut room = inner.room();
    let mut here = inner.upload_view(digest)?;
    if here.complete {
        return Ok((None, room));
    }
    let path = inner.upload_part(digest);
    if here.offset > size {
        // Somebody was wrong about the size, then or now.
        remove(&path).map_err(failed())?;
        here.offset = 0;
    }
    if here.offset != offset {
        return Err(ImageError::UploadOffset { expected: here.offset, got: offset });
    }
    room.take(size - offset)?;
    let file = File::options().append(true).create(true).open(path).map_err(failed())?;
    Ok((Some(file), room))
}

impl Inner {
    pub(super) fn uploads(&self) -> PathBuf {
        self.path("uploads")
    }

    /// A complete upload.
    pub(super) fn upload(&self, digest: &Digest) -> PathBuf {
        self.uploads().join(digest.hex())
    }

    fn upload_part(&self, digest: &Digest) -> PathBuf {
        self.upload(digest).with_extension(PART)
    }

    pub(super) fn upload_view(&self, digest: &Digest) -> Result<UploadView, ImageError> {
        let length = |path| match fs::metadata(path) {
            Ok(meta) => Ok(Some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("upload cannot be read")(error)),
        };
        if let Some(offset) = length(self.upload(digest))? {
            return Ok(UploadView { offset, complete: true });
        }
        let offset = length(self.upload_part(digest))?.unwrap_or(0);
        Ok(UploadView { offset, complete: false })
    }

    /// Removes an upload that was used, or proved bad.
    pub(super) fn drop_upload(&self, digest: &Digest) {
        if let Err(error) = remove(&self.upload(digest)) {
            // It goes when it is old enough.
            tracing::warn!(%digest, %error, "upload is not removed");
        }
    }

    /// All bytes have come: the upload is complete, or was never what it was called.
    fn complete_upload(&self, digest: &Digest) -> Result<(), ImageError> {
        let part = self.upload_part(digest);
        let failed = || ImageError::io("upload cannot be checked");
        let got = File::open(&part).and_then(hash::digest_from).map_err(failed())?;
        if got != *digest {
            remove(&part).map_err(failed())?;
            let (what, expected) = ("upload".into(), digest.clone());
            return Err(ImageError::DigestMismatch { what, expected, got });
        }
        fs::rename(&part, self.upload(digest)).map_err(failed())
    }
}

/// Removes a file, if it is there.
fn remove(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("work on uploads does not panic")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;

    use super::*;

    #[tokio::test]
    async fn a_silent_sender_makes_way_and_what_it_sent_stays() {
        let home = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = ImageStore::open(home.path(), Default::default()).unwrap();
        let digest = hash::digest_of("abcd");
        let part = |offset| UploadPart { digest: digest.clone(), size: 4, offset };
        let some = |bytes: &'static [u8]| stream::iter([Ok(Bytes::from_static(bytes))]);
        let silent = some(b"ab").chain(stream::pending()).boxed();
        let error = store.upload(part(0), silent).await.unwrap_err();
        assert!(matches!(error, ImageError::UploadBroken { arrived: 2, .. }), "{error}");
        let view = store.upload(part(2), some(b"cd").boxed()).await.unwrap();
        assert_eq!(view, UploadView { offset: 4, complete: true });
    }
}
