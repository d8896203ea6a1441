//! Flat folders: for an image of many layers, one that shows the same.
//!
//! Promises: a flat folder counts because its image's record names it, and the record names it
//! once it is synced; it goes with its image. Does not know how one is made.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::syncfs;
use stead_core::ids::Digest;

use super::super::error::ImageError;
use super::super::flat::flatten;
use super::{Image, Inner};

/// From so many layers on a flat folder is worth its making (decision 0020).
const WORTH_IT: usize = 12;

impl Inner {
    pub(super) fn flat_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("flat").join(digest.hex())
    }

    /// Makes the flat folders that are missing. One that cannot be made is not tried again by
    /// this process, and its image goes on as it is. Blocks.
    pub(super) fn make_flats(self: &Arc<Self>) {
        let due: Vec<Arc<Image>> = {
            let state = self.state();
            let images = state.images.values().map(|(_, image)| image);
            let due = images.filter(|image| {
                image.layers.len() >= WORTH_IT
                    && image.flat.get().is_none()
                    && !state.never_flat.contains(&image.digest)
            });
            due.cloned().collect()
        };
        // While it is held here it is not removed.
        for image in due {
            if let Err(error) = self.make_flat(&image) {
                tracing::warn!(image = %image.digest, %error, "layers are not made one folder");
                self.state().never_flat.insert(image.digest.clone());
            }
        }
    }

    fn make_flat(self: &Arc<Self>, image: &Image) -> Result<(), ImageError> {
        let failed = || ImageError::io("layers cannot be made one folder");
        let scratch = self.scratch().map_err(failed())?;
        let folder = scratch.folder("flat").map_err(failed())?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).map_err(failed())?;
        // Given back when the record says what it takes, or it is gone.
        let mut room = self.room();
        let bytes = flatten(&image.layers, &folder, &mut |bytes| Ok(room.take_spare(bytes)?))
            .map_err(|error| ImageError::layer(&image.digest, error))?;
        let path = self.flat_path(&image.digest);
        if path.exists() {
            // Of a process that was killed before the record named it.
            fs::rename(&path, scratch.path().join("left")).map_err(failed())?;
        }
        fs::rename(&folder, &path).map_err(failed())?;
        let root = fs::File::open(&self.root).map_err(failed())?;
        syncfs(root).map_err(|errno| failed()(errno.into()))?;
        let mut state = self.state();
        let Some((record, image)) = state.images.get_mut(&image.digest) else { return Ok(()) };
        record.flat = Some(bytes);
        self.write_record(record)?;
        tracing::info!(image = %image.digest, layers = image.layers.len(), "layers are one folder");
        // Nobody else sets it.
        let _ = image.flat.set(path);
        Ok(())
    }
}
