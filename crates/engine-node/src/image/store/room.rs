//! Room: how much the store may hold, and what goes when something new comes.
//!
//! Promises: whoever writes takes room first, and the store together with all that was taken
//! stays within its quota and leaves a reserve on the disk. What nobody needs goes for it, the
//! least recently used first; what is pinned, held or needed never does, and nothing goes for
//! what would not fit even then. Does not know who needs images: whoever does holds them, or
//! says so.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use stead_core::ids::Digest;

use super::super::error::{ImageError, NoRoom};
use super::super::unpack::Summary;
use super::{ImageStore, Inner, Pruned, State};

/// What is left free on the disk for those who run, in bytes; on a small disk a share of it. What
/// was taken and is not written yet comes out of it for a moment: 2 MiB of each layer under way.
const RESERVE: u64 = 64 << 20;
const RESERVE_SHARE: u64 = 32;

/// Room taken by somebody who writes. What is left of it is given back when it is dropped: by
/// then what was written counts for itself.
pub(in super::super) struct Room {
    inner: Arc<Inner>,
    taken: u64,
}

impl Room {
    /// Takes so many bytes more, for which images may have to go. Blocks.
    pub(in super::super) fn take(&mut self, bytes: u64) -> Result<(), ImageError> {
        match self.inner.make_room(bytes, true) {
            Ok(()) => {
                self.taken += bytes;
                Ok(())
            }
            // As it would have been said before the first piece.
            Err(ImageError::NoRoom(NoRoom::Quota { wanted, used, quota })) => {
                let (wanted, used) = (wanted.saturating_add(self.taken), used - self.taken);
                Err(NoRoom::Quota { wanted, used, quota }.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes so many bytes more if they are there: nothing goes for them.
    pub(super) fn take_spare(&mut self, bytes: u64) -> Result<(), ImageError> {
        let mut state = self.inner.state();
        let lack = self.inner.lack(&state, bytes, 0);
        match lack.map_err(ImageError::io("room cannot be found in the image store"))? {
            Some(lack) => Err(ImageError::NoRoom(lack)),
            None => {
                state.taken += bytes;
                self.taken += bytes;
                Ok(())
            }
        }
    }

    /// Gives back what was written and counts for itself from now on.
    pub(in super::super) fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.taken);
        self.taken -= bytes;
        self.inner.state().taken -= bytes;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.give_back(self.taken);
    }
}

impl ImageStore {
    /// From now on these images are needed, and any other that nobody holds may be removed when
    /// room is needed. Before this was said once, none is.
    ///
    /// Those that are not here yet are needed from when they come.
    pub fn keep(&self, needed: &[Digest]) {
        self.inner.state().kept = Some(needed.iter().cloned().collect());
    }

    /// Removes what a crash left behind, syncs what one kept from it, makes one folder of many
    /// layers and, where the store holds more than it may, removes what nobody needs. Blocks.
    ///
    /// # Errors
    /// When the disk fails. That it holds too much in spite of all is none.
    pub fn tidy(&self) -> Result<(), ImageError> {
        self.expire_uploads()?;
        self.inner.remove_strays()?;
        self.inner.settle()?;
        self.inner.make_flats();
        match self.inner.make_room(0, false) {
            Err(ImageError::NoRoom(why)) => {
                tracing::warn!(%why, "image store holds more than it should");
                Ok(())
            }
            done => done,
        }
    }
}

impl Inner {
    pub(in super::super) fn room(self: &Arc<Self>) -> Room {
        Room { inner: Arc::clone(self), taken: 0 }
    }

    /// Removes what nobody needs until `bytes` more fit, which are then taken if `take` says
    /// so.
    fn make_room(&self, bytes: u64, take: bool) -> Result<(), ImageError> {
        let failed = || ImageError::io("room cannot be made in the image store");
        loop {
            let mut state = self.state();
            let Some(lack) = self.lack(&state, bytes, 0).map_err(failed())? else {
                state.taken += if take { bytes } else { 0 };
                return Ok(());
            };
            let scratch = self.scratch().map_err(failed())?;
            let mut pruned = Pruned::default();
            if !self.remove_unused(&mut state, bytes, scratch.path(), &mut pruned)? {
                return Err(ImageError::NoRoom(lack));
            }
            drop(state);
            // Deleting takes long and needs no lock, but must be done before the disk is asked
            // again.
            drop(scratch);
            tracing::info!(images = ?pruned.images, layers = pruned.layers, bytes = pruned.bytes,
                "removed to make room");
        }
    }

    /// Removes one thing nobody needs; false if there is none, or if not even all of them
    /// would make room for `bytes`.
    fn remove_unused(
        &self,
        state: &mut State,
        bytes: u64,
        trash: &Path,
        pruned: &mut Pruned,
    ) -> Result<bool, ImageError> {
        // Layers of pulls that failed: they would save the next try something.
        self.sweep(state, trash, pruned)?;
        if pruned.layers > 0 {
            return Ok(true);
        }
        if state.kept.is_none() {
            return Ok(false);
        }
        // How much is wanted may be a stranger's word. Who wants nothing wants less to be here.
        if bytes > 0 {
            let lack = self.lack(state, bytes, state.removable());
            if lack.map_err(ImageError::io("room cannot be made in the image store"))?.is_some() {
                return Ok(false);
            }
        }
        let oldest = state
            .images
            .iter()
            .filter(|(digest, _)| state.is_free(digest))
            .min_by_key(|(_, (record, _))| record.last_used)
            .map(|(digest, _)| digest.clone());
        let Some(oldest) = oldest else { return Ok(false) };
        self.forget(state, &oldest, pruned)?;
        self.sweep(state, trash, pruned)?;
        Ok(true)
    }

    /// What is missing for `bytes` more, once `gone` are removed; `None` when they fit.
    fn lack(&self, state: &State, bytes: u64, gone: u64) -> io::Result<Option<NoRoom>> {
        if let Some(quota) = self.options.quota {
            let used = self.used(state)?.saturating_sub(gone);
            if used.saturating_add(bytes) > quota {
                return Ok(Some(NoRoom::Quota { wanted: bytes, used, quota }));
            }
        }
        let disk = rustix::fs::statvfs(&self.root)?;
        let (free, size) = (disk.f_bavail * disk.f_frsize + gone, disk.f_blocks * disk.f_frsize);
        let reserve = RESERVE.min(size / RESERVE_SHARE);
        let full = free < bytes.saturating_add(reserve);
        Ok(full.then_some(NoRoom::Disk { wanted: bytes, free, reserve }))
    }

    /// Bytes of the disk that the store has, or has promised.
    fn used(&self, state: &State) -> io::Result<u64> {
        let layers: u64 = state.layers.values().map(on_disk).sum();
        let mut uploads = 0;
        for entry in fs::read_dir(self.uploads())? {
            // Gone in the meantime.
            uploads += entry?.metadata().map_or(0, |meta| meta.len());
        }
        let flats: u64 = state.images.values().filter_map(|(record, _)| record.flat).sum();
        Ok(layers + flats + uploads + state.taken)
    }
}

fn on_disk(layer: &Summary) -> u64 {
    layer.disk.max(layer.bytes)
}

impl State {
    /// Bytes of the disk that come free when all goes that nobody holds or needs.
    fn removable(&self) -> u64 {
        let (free, staying): (Vec<_>, Vec<_>) =
            self.images.iter().partition(|(digest, _)| self.is_free(digest));
        let flats = free.iter().filter_map(|(_, (record, _))| record.flat);
        let layers = staying.iter().flat_map(|(_, (record, _))| &record.layers);
        let stay: HashSet<&Digest> =
            layers.map(|layer| &layer.diff_id).chain(self.pins.keys()).collect();
        let go = self.layers.iter().filter(|(layer, _)| !stay.contains(layer));
        flats.sum::<u64>() + go.map(|(_, layer)| on_disk(layer)).sum::<u64>()
    }

    /// Whether nobody holds or needs an image, and it is not on its way.
    pub(super) fn is_free(&self, digest: &Digest) -> bool {
        let needed = self.kept.as_ref().is_some_and(|kept| kept.contains(digest));
        self.images.get(digest).is_some_and(|(_, image)| Arc::strong_count(image) == 1)
            && !needed
            && !self.pins.contains_key(digest)
    }
}
