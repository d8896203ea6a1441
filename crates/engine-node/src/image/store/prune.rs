//! Removing what nobody needs.
//!
//! Promises: what a record, a pin or a holder of an [`Image`](super::Image) needs stays, and
//! so does everything whose name the store would not give. Does not know who uses images.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use stead_core::ids::Digest;
use stead_core::time::Time;

use super::super::error::ImageError;
use super::{ImageStore, Inner, State};

/// What pruning removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images removed.
    pub images: Vec<Digest>,
    /// Layers removed.
    pub layers: usize,
    /// Bytes of files removed, where known.
    pub bytes: u64,
}

impl ImageStore {
    /// Removes the images that are neither in `in_use` nor held by anybody and that were last
    /// used before `before`, if a time is given, with what only they needed. Images being
    /// pulled are left alone.
    ///
    /// # Errors
    /// When the disk fails; what was removed until then stays removed.
    pub fn prune(
        &self,
        in_use: &HashSet<Digest>,
        before: Option<Time>,
    ) -> Result<Pruned, ImageError> {
        self.inner.remove(|state| {
            let unused = |digest: &Digest| !in_use.contains(digest) && state.is_free(digest);
            let old = |used: Time| before.is_none_or(|before| used < before);
            let images = state.images.iter();
            images
                .filter(|(digest, (record, _))| unused(digest) && old(record.last_used))
                .map(|(digest, _)| digest.clone())
                .collect()
        })
    }

    /// Removes one image that nobody holds, with what only it needed. `None` when somebody
    /// does, or there is no such image.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, digest: &Digest) -> Result<Option<Pruned>, ImageError> {
        let choose = |state: &State| state.is_free(digest).then(|| digest.clone());
        let pruned = self.inner.remove(|state| choose(state).into_iter().collect())?;
        Ok((!pruned.images.is_empty()).then_some(pruned))
    }
}

impl Inner {
    /// Removes the images that `choose` gives, and everything that nobody needs then.
    fn remove(&self, choose: impl FnOnce(&State) -> Vec<Digest>) -> Result<Pruned, ImageError> {
        let failed = || ImageError::io("image store cannot be pruned");
        // Dropped after the lock is: deleting takes long.
        let scratch = self.scratch().map_err(failed())?;
        let mut pruned = Pruned::default();
        let mut state = self.state();
        for digest in choose(&state) {
            self.forget(&mut state, &digest, &mut pruned)?;
        }
        self.sweep(&mut state, scratch.path(), &mut pruned)?;
        Ok(pruned)
    }

    /// Removes an image's record. What it named goes with the next [`sweep`](Self::sweep).
    pub(super) fn forget(
        &self,
        state: &mut State,
        digest: &Digest,
        pruned: &mut Pruned,
    ) -> Result<(), ImageError> {
        fs::remove_file(self.record_path(digest))
            .map_err(ImageError::io("record of an image cannot be removed"))?;
        state.images.remove(digest);
        pruned.images.push(digest.clone());
        Ok(())
    }

    /// Moves layers that neither a record nor a pin names into `trash`, out of sight at once,
    /// and removes such blobs.
    pub(super) fn sweep(
        &self,
        state: &mut State,
        trash: &Path,
        pruned: &mut Pruned,
    ) -> Result<(), ImageError> {
        let failed = || ImageError::io("image store cannot be swept");
        let records = || state.images.values().map(|(record, _)| record);
        let pins = || state.pins.keys();
        let layers: HashSet<String> = records()
            .flat_map(|record| record.layers.iter().map(|layer| &layer.diff_id))
            .chain(pins())
            .map(|digest| digest.hex().to_owned())
            .collect();
        let blobs: HashSet<String> = records()
            .flat_map(|record| &record.blobs)
            .chain(pins())
            .map(|digest| digest.hex().to_owned())
            .collect();
        for (digest, path) in digests_in(&self.root.join("layers")).map_err(failed())? {
            if !layers.contains(digest.hex()) {
                fs::rename(&path, trash.join(digest.hex())).map_err(failed())?;
                pruned.layers += 1;
                pruned.bytes += state.layers.remove(&digest).map_or(0, |summary| summary.bytes);
            }
        }
        for (digest, path) in digests_in(&self.root.join("flat")).map_err(failed())? {
            // One that is being renamed here is of an image that is held.
            if !state.images.contains_key(&digest) {
                fs::rename(&path, trash.join(format!("flat-{}", digest.hex()))).map_err(failed())?;
            }
        }
        for (digest, path) in digests_in(&self.root.join("blobs/sha256")).map_err(failed())? {
            if !blobs.contains(digest.hex()) {
                fs::remove_file(path).map_err(failed())?;
            }
        }
        Ok(())
    }

    /// Removes layers that this process does not know: an earlier one was killed before a
    /// record named them.
    pub(super) fn remove_strays(&self) -> Result<(), ImageError> {
        let failed = || ImageError::io("image store cannot be tidied");
        let scratch = self.scratch().map_err(failed())?;
        let state = self.state();
        for (digest, path) in digests_in(&self.root.join("layers")).map_err(failed())? {
            if !state.layers.contains_key(&digest) && !state.pins.contains_key(&digest) {
                fs::rename(&path, scratch.path().join(digest.hex())).map_err(failed())?;
            }
        }
        for (digest, path) in digests_in(&self.root.join("flat")).map_err(failed())? {
            if !state.images.contains_key(&digest) {
                let trash = scratch.path().join(format!("flat-{}", digest.hex()));
                fs::rename(&path, trash).map_err(failed())?;
            }
        }
        drop(state);
        Ok(())
    }
}

/// What in `folder` is named by a digest's hex digits. The rest is not the store's.
fn digests_in(folder: &Path) -> io::Result<Vec<(Digest, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(Ok(digest)) = name.to_str().map(|name| format!("sha256:{name}").parse()) {
            found.push((digest, entry.path()));
        }
    }
    Ok(found)
}
