//! Records: which images are complete, what they are called, and since when that is certain.
//!
//! Promises: a record is read back only if all it names is there and survived; a name belongs
//! to one image. Does not know how layers came to be.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustix::fs::syncfs;
use serde::{Deserialize, Serialize};
use stead_core::ids::Digest;
use stead_core::time::Time;

use super::super::config::ImageConfig;
use super::super::error::ImageError;
use super::super::reference::Reference;
use super::super::unpack::Summary;
use super::{Image, Inner, State};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) digest: Digest,
    /// Manifest, index and config.
    pub(super) blobs: Vec<Digest>,
    pub(super) names: BTreeSet<String>,
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<LayerRecord>,
    pub(super) last_used: Time,
    /// Bytes that its flat folder takes by itself, if it has one.
    #[serde(default)]
    pub(super) flat: Option<u64>,
    /// Set until the record and what it names are synced: the boot they were made in.
    boot: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct LayerRecord {
    pub(in super::super) diff_id: Digest,
    pub(in super::super) summary: Summary,
}

impl Record {
    /// Its layers, each once.
    pub(super) fn unique_layers(&self) -> impl Iterator<Item = &LayerRecord> {
        let mut seen = HashSet::new();
        self.layers.iter().filter(move |layer| seen.insert(&layer.diff_id))
    }
}

impl Inner {
    pub(super) fn load(&self) -> Result<(), ImageError> {
        let failed = || ImageError::io("records of the image store cannot be read");
        let mut state = self.state();
        for entry in fs::read_dir(self.root.join("images")).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match self.read_record(&path) {
                Ok(record) => {
                    for layer in &record.layers {
                        state.layers.insert(layer.diff_id.clone(), layer.summary.clone());
                    }
                    let image = Arc::new(self.image(&record));
                    state.images.insert(record.digest.clone(), (record, image));
                }
                Err(reason) => {
                    tracing::warn!(path = %path.display(), reason, "dropping an image's record");
                    fs::remove_file(&path).map_err(failed())?;
                }
            }
        }
        Ok(())
    }

    fn read_record(&self, path: &Path) -> Result<Record, String> {
        let text = fs::read(path).map_err(|error| error.to_string())?;
        let record: Record = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        if record.boot.as_ref().is_some_and(|boot| *boot != self.boot) {
            return Err("the machine went down before it was synced".into());
        }
        if path != self.record_path(&record.digest) {
            return Err("it describes another image".into());
        }
        if record.flat.is_some() && !self.flat_path(&record.digest).is_dir() {
            return Err("its flat folder is missing".into());
        }
        match record.layers.iter().find(|layer| !self.layer_path(&layer.diff_id).is_dir()) {
            Some(layer) => Err(format!("its layer {} is missing", layer.diff_id)),
            None => Ok(record),
        }
    }

    fn image(&self, record: &Record) -> Image {
        // overlayfs takes a folder once. Of a repeated layer the topmost counts: it shows the
        // same files and hides the same ones, and more of those between.
        let mut seen = HashSet::new();
        let mut layers = Vec::new();
        for layer in record.layers.iter().rev() {
            if seen.insert(&layer.diff_id) {
                layers.push(self.layer_path(&layer.diff_id));
            }
            if layer.summary.opaque_root {
                break;
            }
        }
        layers.reverse();
        let flat = OnceLock::new();
        if record.flat.is_some() {
            let _ = flat.set(self.flat_path(&record.digest));
        }
        Image {
            flat,
            digest: record.digest.clone(),
            config: record.config.clone(),
            layers,
            size: record.unique_layers().map(|layer| layer.summary.bytes).sum(),
        }
    }

    /// The complete image with this digest; notes that it was used, and by what name.
    pub(in super::super) fn touch(
        &self,
        digest: &Digest,
        name: Option<&Reference>,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        self.touch_in(&mut self.state(), digest, name)
    }

    fn touch_in(
        &self,
        state: &mut State,
        digest: &Digest,
        name: Option<&Reference>,
    ) -> Result<Option<Arc<Image>>, ImageError> {
        let Some((record, image)) = state.images.get_mut(digest) else { return Ok(None) };
        record.last_used = now();
        let image = Arc::clone(image);
        self.write_record(record)?;
        self.name(state, digest, name)?;
        Ok(Some(image))
    }

    /// Of a complete image: the digest of its manifest, and its layers' diff ids, base first.
    pub(in super::super) fn parts(&self, digest: &Digest) -> Option<(Digest, Vec<Digest>)> {
        let state = self.state();
        let (record, _) = state.images.get(digest)?;
        // Manifest and config are last; an index would stand before them.
        let manifest = record.blobs.iter().nth_back(1)?.clone();
        Some((manifest, record.layers.iter().map(|layer| layer.diff_id.clone()).collect()))
    }

    /// Gives `name` to this image, taking it from any other; but not where it says itself
    /// which image it means: anybody may write any tag before a digest.
    fn name(
        &self,
        state: &mut State,
        digest: &Digest,
        name: Option<&Reference>,
    ) -> Result<(), ImageError> {
        let is_claim = name.is_some_and(|name| name.digest().is_some());
        let Some(name) = name.map(name_of) else { return Ok(()) };
        let is_taken =
            |(record, _): &(Record, _)| record.digest != *digest && record.names.contains(&name);
        if is_claim && state.images.values().any(is_taken) {
            return Ok(());
        }
        for (record, _) in state.images.values_mut() {
            let changed = match record.digest == *digest {
                true => record.names.insert(name.clone()),
                false => record.names.remove(&name),
            };
            if changed {
                self.write_record(record)?;
            }
        }
        Ok(())
    }

    /// Adds a complete image: all its layers are unpacked, all its blobs kept.
    pub(in super::super) fn add(
        self: &Arc<Self>,
        digest: &Digest,
        blobs: Vec<Digest>,
        config: ImageConfig,
        layers: Vec<LayerRecord>,
        name: Option<&Reference>,
    ) -> Result<Arc<Image>, ImageError> {
        let mut state = self.state();
        // Somebody else may have completed it in the meantime.
        if let Some(image) = self.touch_in(&mut state, digest, name)? {
            return Ok(image);
        }
        let record = Record {
            digest: digest.clone(),
            blobs,
            names: BTreeSet::new(),
            config,
            layers,
            last_used: now(),
            flat: None,
            boot: Some(self.boot.clone()),
        };
        let image = Arc::new(self.image(&record));
        self.write_record(&record)?;
        state.images.insert(digest.clone(), (record, Arc::clone(&image)));
        self.name(&mut state, digest, name)?;
        drop(state);
        self.settle_soon();
        Ok(image)
    }

    /// Settles in the background.
    fn settle_soon(self: &Arc<Self>) {
        let (inner, unsettled) = (Arc::clone(self), Arc::clone(&self.unsettled));
        unsettled.send_modify(|count| *count += 1);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = inner.settle() {
                tracing::warn!(%error, "images may be lost in a crash of the machine");
            }
            // First: who waits may want to open the store again.
            drop(inner);
            unsettled.send_modify(|count| *count -= 1);
        });
    }

    /// Syncs what images are made of, then says so in their records, and syncs those. Blocks.
    pub(super) fn settle(&self) -> Result<(), ImageError> {
        let failed = || ImageError::io("image store cannot be synced");
        let unsettled = |(record, _): &&(Record, Arc<Image>)| record.boot.is_some();
        let due: Vec<Digest> = {
            let state = self.state();
            state
                .images
                .values()
                .filter(unsettled)
                .map(|(record, _)| record.digest.clone())
                .collect()
        };
        if due.is_empty() {
            return Ok(());
        }
        File::open(&self.root).and_then(|root| Ok(syncfs(root)?)).map_err(failed())?;
        for digest in due {
            {
                let mut state = self.state();
                let Some((record, _)) = state.images.get_mut(&digest) else { continue };
                let settled = Record { boot: None, ..record.clone() };
                self.write_record(&settled)?;
                *record = settled;
            }
            match File::open(self.record_path(&digest)) {
                // Removed in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                record => record.and_then(|record| record.sync_all()).map_err(failed())?,
            }
        }
        let records = File::open(self.root.join("images"));
        records.and_then(|records| records.sync_all()).map_err(failed())
    }

    /// Waits until an image is safely on the disk, or was not made so, which is logged: tidying
    /// tries again.
    pub(in super::super) async fn safe(&self, digest: &Digest) {
        let is_safe = || {
            let state = self.state();
            state.images.get(digest).is_none_or(|(record, _)| record.boot.is_none())
        };
        // The sender lives as long as the store.
        let _ = self.unsettled.subscribe().wait_for(|count| *count == 0 || is_safe()).await;
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), ImageError> {
        let text = serde_json::to_vec(record).expect("a record has only string keys");
        self.write(&self.record_path(&record.digest), &text)
            .map_err(ImageError::io("record of an image cannot be written"))
    }
}

fn name_of(reference: &Reference) -> String {
    let (host, repository) = (reference.host(), reference.repository());
    match (reference.tag(), reference.digest()) {
        (Some(tag), _) => format!("{host}/{repository}:{tag}"),
        (None, Some(digest)) => format!("{host}/{repository}@{digest}"),
        (None, None) => format!("{host}/{repository}"),
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
