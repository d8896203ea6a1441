//! What is on disk: blobs, unpacked layers, and one record per complete image.
//!
//! Promises: what [`ImageStore::get`] gives is complete; a crash at any moment leaves nothing
//! that looks complete and is not; one damaged record takes no other image down; pruning
//! removes only what the store itself made and nobody holds. One process at a time uses a
//! store. Does not know registries or archives.
//!
//! ```text
//! ROOT/lock                   held while a process uses the store
//! ROOT/blobs/sha256/HEX       manifests, indexes, configs; checked again when read
//! ROOT/layers/DIFFID/         one unpacked layer, a lower folder for overlayfs
//! ROOT/images/DIGEST.json     a record: this image is complete
//! ROOT/tmp/                   unfinished; emptied at open
//! ```
//!
//! A layer is trusted because a record names it, not because its folder exists. Pulling does
//! not wait for the disk: the record carries the machine's boot id until everything it names
//! has been synced. After a crash of the process the page cache still holds all of it; after
//! a crash of the machine the boot id has changed, and the record no longer counts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock, syncfs};
use serde::{Deserialize, Serialize};
use stead_core::ids::Digest;
use stead_core::time::Time;
use tokio::sync::{OwnedMutexGuard, watch};

use super::config::ImageConfig;
use super::error::ImageError;
use super::manifest::Platform;
use super::reference::Reference;
use super::registry::{Registry, RegistryOptions};
use super::scratch::{Scratch, remove_tree};
use super::unpack::{Limits, Summary};

/// How an [`ImageStore`] works.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// What images must be built for.
    pub platform: Platform,
    /// What a layer may make of the disk.
    pub limits: Limits,
    /// Layers of one image fetched and unpacked at the same time; at least 1.
    pub layers_at_once: usize,
    /// How registries are reached.
    pub registry: RegistryOptions,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            limits: Limits::default(),
            layers_at_once: 4,
            registry: RegistryOptions::default(),
        }
    }
}

/// A complete image on this machine. While somebody holds it, it is not pruned.
#[derive(Debug)]
pub struct Image {
    /// The digest it was asked for by: its manifest's, or that of the index it was chosen from.
    pub digest: Digest,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Folders for overlayfs, base first. Files carry the owners the image gave them.
    pub layers: Vec<PathBuf>,
    /// Bytes of all files of all layers.
    pub size: u64,
}

/// One line of a list of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// References that led to it.
    pub names: Vec<String>,
    /// Its digest.
    pub digest: Digest,
    /// Bytes of all files of all layers.
    pub size: u64,
    /// How many of them are in layers that other images use too.
    pub shared: u64,
    /// When it was built, RFC 3339, as the image says.
    pub created: Option<String>,
    /// When it was last pulled, imported or asked for by pulling.
    pub last_used: Time,
}

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

/// Images on this machine. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    root: PathBuf,
    pub(super) options: StoreOptions,
    pub(super) registry: Registry,
    boot: String,
    state: Mutex<State>,
    /// Records not yet synced.
    unsettled: Arc<watch::Sender<usize>>,
    _lock: File,
}

#[derive(Default)]
struct State {
    images: HashMap<Digest, (Record, Arc<Image>)>,
    /// Layers that are complete.
    layers: HashMap<Digest, Summary>,
    /// Who unpacks which layer.
    unpacking: HashMap<Digest, Weak<tokio::sync::Mutex<()>>>,
    /// What images not yet complete need, and how many of them: not to be pruned.
    pins: HashMap<Digest, usize>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) digest: Digest,
    /// Manifest, index and config.
    pub(super) blobs: Vec<Digest>,
    pub(super) names: BTreeSet<String>,
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<LayerRecord>,
    pub(super) last_used: Time,
    /// Set until the record and what it names are synced: the boot they were made in.
    boot: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) diff_id: Digest,
    pub(super) summary: Summary,
}

impl ImageStore {
    /// Opens the store in `root`, making it if there is none. Removes what an earlier process
    /// left unfinished.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Self, ImageError> {
        let failed = |what: &str| ImageError::io(format!("image store {} {what}", root.display()));
        for folder in ["blobs/sha256", "layers", "images", "tmp"] {
            let path = root.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(failed("cannot be made"))?;
        }
        // Layers hold setuid programs with their true owners: no business of the machine's users.
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))
            .map_err(failed("cannot be closed"))?;
        let lock = File::create(root.join("lock")).map_err(failed("cannot be locked"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(io::Error::from)
            .map_err(failed("is used by another process"))?;
        let cannot_read = || failed("cannot be read");
        for entry in fs::read_dir(root.join("tmp")).map_err(cannot_read())? {
            let entry = entry.map_err(cannot_read())?;
            match entry.file_type().map_err(cannot_read())?.is_dir() {
                true => remove_tree(&entry.path()),
                false => fs::remove_file(entry.path()),
            }
            .map_err(failed("has leftovers that cannot be removed"))?;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(cannot_read())?;
        let inner = Arc::new(Inner {
            root: root.to_owned(),
            registry: Registry::new(options.registry.clone()),
            options,
            boot: boot.trim().to_owned(),
            state: Mutex::default(),
            unsettled: Arc::new(watch::Sender::new(0)),
            _lock: lock,
        });
        inner.load()?;
        Ok(Self { inner })
    }

    /// The image with this digest, if it is complete.
    pub fn get(&self, digest: &Digest) -> Option<Arc<Image>> {
        self.inner.state().images.get(digest).map(|(_, image)| Arc::clone(image))
    }

    /// All complete images, the one used last first.
    pub fn list(&self) -> Vec<ImageSummary> {
        let state = self.inner.state();
        let mut users: HashMap<&Digest, usize> = HashMap::new();
        for (record, _) in state.images.values() {
            let unique: HashSet<_> = record.layers.iter().map(|layer| &layer.diff_id).collect();
            unique.into_iter().for_each(|layer| *users.entry(layer).or_default() += 1);
        }
        let is_shared = |layer: &&LayerRecord| users.get(&layer.diff_id).is_some_and(|&n| n > 1);
        let mut list: Vec<_> = state
            .images
            .values()
            .map(|(record, image)| ImageSummary {
                names: record.names.iter().cloned().collect(),
                digest: record.digest.clone(),
                size: image.size,
                shared: record.layers.iter().filter(is_shared).map(|l| l.summary.bytes).sum(),
                created: record.config.created.clone(),
                last_used: record.last_used,
            })
            .collect();
        list.sort_by(|a, b| b.last_used.cmp(&a.last_used).then(a.digest.cmp(&b.digest)));
        list
    }

    /// Removes the images that are neither in `in_use` nor held by anybody, and what only
    /// they needed. Images being pulled are left alone.
    ///
    /// # Errors
    /// When the disk fails; what was removed until then stays removed.
    pub fn prune(&self, in_use: &HashSet<Digest>) -> Result<Pruned, ImageError> {
        self.inner.prune(in_use)
    }

    /// Waits until every image is safely on the disk. Only tests and an orderly end need it.
    pub async fn settled(&self) {
        // The sender lives as long as the store.
        let _ = self.inner.unsettled.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the store's state panics")
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn record_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", digest.hex()))
    }

    pub(super) fn scratch(&self) -> io::Result<Scratch> {
        Scratch::new(&self.root.join("tmp"))
    }

    fn load(&self) -> Result<(), ImageError> {
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
        Image {
            digest: record.digest.clone(),
            config: record.config.clone(),
            layers,
            size: record.layers.iter().map(|layer| layer.summary.bytes).sum(),
        }
    }

    /// The complete image with this digest; notes that it was used, and by what name.
    pub(super) fn touch(
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

    /// Gives `name` to this image, taking it from any other.
    fn name(
        &self,
        state: &mut State,
        digest: &Digest,
        name: Option<&Reference>,
    ) -> Result<(), ImageError> {
        let Some(name) = name.map(name_of) else { return Ok(()) };
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
    pub(super) fn add(
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
            boot: Some(self.boot.clone()),
        };
        let image = Arc::new(self.image(&record));
        self.write_record(&record)?;
        state.images.insert(digest.clone(), (record, Arc::clone(&image)));
        self.name(&mut state, digest, name)?;
        drop(state);
        self.settle(digest.clone());
        Ok(image)
    }

    /// Syncs what an image is made of, then says so in its record.
    fn settle(self: &Arc<Self>, digest: Digest) {
        let (inner, unsettled) = (Arc::clone(self), Arc::clone(&self.unsettled));
        unsettled.send_modify(|count| *count += 1);
        tokio::task::spawn_blocking(move || {
            let settled = File::open(&inner.root)
                .and_then(|root| Ok(syncfs(root)?))
                .map_err(ImageError::io("image store cannot be synced"))
                .and_then(|()| match inner.state().images.get_mut(&digest) {
                    Some((record, _)) => {
                        record.boot = None;
                        inner.write_record(record)
                    }
                    None => Ok(()),
                });
            if let Err(error) = settled {
                tracing::warn!(%error, %digest, "image may have to be pulled again after a crash of the machine");
            }
            // First: who waits may want to open the store again.
            drop(inner);
            unsettled.send_modify(|count| *count -= 1);
        });
    }

    fn write_record(&self, record: &Record) -> Result<(), ImageError> {
        let text = serde_json::to_vec(record).expect("a record has only string keys");
        self.write(&self.record_path(&record.digest), &text)
            .map_err(ImageError::io("record of an image cannot be written"))
    }

    fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let scratch = self.scratch()?;
        let unfinished = scratch.path().join("file");
        File::create(&unfinished)?.write_all(content)?;
        fs::rename(&unfinished, path)
    }

    /// Keeps a manifest, an index or a config.
    pub(super) fn keep_blob(&self, digest: &Digest, content: &[u8]) -> Result<(), ImageError> {
        self.write(&self.blob_path(digest), content)
            .map_err(ImageError::io("blob of an image cannot be written"))
    }

    /// A blob kept earlier; `None` if there is none, or what is there is not it.
    pub(super) fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let content = fs::read(self.blob_path(digest)).ok()?;
        (super::digest_of(&content) == *digest).then_some(content)
    }

    /// Keeps pruning away from `what` for as long as the result lives.
    pub(super) fn pin(self: &Arc<Self>, what: impl IntoIterator<Item = Digest>) -> Pins {
        let pinned: Vec<_> = what.into_iter().collect();
        let mut state = self.state();
        for digest in &pinned {
            *state.pins.entry(digest.clone()).or_default() += 1;
        }
        Pins { inner: Arc::clone(self), pinned }
    }

    /// Waits for whoever unpacks this layer; then it is there, or the caller's to unpack.
    pub(super) async fn claim(self: &Arc<Self>, diff_id: &Digest) -> Claim {
        let turn = {
            let mut state = self.state();
            state.unpacking.retain(|_, turn| turn.strong_count() > 0);
            match state.unpacking.get(diff_id).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    state.unpacking.insert(diff_id.clone(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        let turn = turn.lock_owned().await;
        // Not in the match itself: its arms would run with the state locked.
        let present = self.state().layers.get(diff_id).cloned();
        match present {
            Some(summary) => Claim::Present(summary),
            None => Claim::Mine(Turn {
                inner: Arc::clone(self),
                diff_id: diff_id.clone(),
                _pins: self.pin([diff_id.clone()]),
                _turn: turn,
            }),
        }
    }

    fn prune(&self, in_use: &HashSet<Digest>) -> Result<Pruned, ImageError> {
        let failed = || ImageError::io("image store cannot be pruned");
        let scratch = self.scratch().map_err(failed())?;
        let mut pruned = Pruned::default();
        let mut state = self.state();
        let unused: Vec<Digest> = state
            .images
            .iter()
            .filter(|(digest, (_, image))| {
                !in_use.contains(digest)
                    && Arc::strong_count(image) == 1
                    && !state.pins.contains_key(*digest)
            })
            .map(|(digest, _)| digest.clone())
            .collect();
        for digest in unused {
            fs::remove_file(self.record_path(&digest)).map_err(failed())?;
            state.images.remove(&digest);
            pruned.images.push(digest);
        }
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
                // Out of sight at once; deleting takes long and needs no lock.
                fs::rename(&path, scratch.path().join(digest.hex())).map_err(failed())?;
                pruned.layers += 1;
                pruned.bytes += state.layers.remove(&digest).map_or(0, |summary| summary.bytes);
            }
        }
        for (digest, path) in digests_in(&self.root.join("blobs/sha256")).map_err(failed())? {
            if !blobs.contains(digest.hex()) {
                fs::remove_file(path).map_err(failed())?;
            }
        }
        drop(state);
        drop(scratch);
        Ok(pruned)
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

/// Keeps digests from being pruned.
pub(super) struct Pins {
    inner: Arc<Inner>,
    pinned: Vec<Digest>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        for digest in &self.pinned {
            if let Some(count) = state.pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(digest);
                }
            }
        }
    }
}

/// Whether a layer must be unpacked.
pub(super) enum Claim {
    Present(Summary),
    Mine(Turn),
}

/// The right to unpack one layer. Others wait until it is dropped.
pub(super) struct Turn {
    inner: Arc<Inner>,
    diff_id: Digest,
    _pins: Pins,
    _turn: OwnedMutexGuard<()>,
}

impl Turn {
    /// Runs `unpack` on an empty folder and one for rubbish; the folder becomes the layer if
    /// it succeeds, and vanishes if not. Blocks.
    pub(super) fn unpack(
        self,
        unpack: impl FnOnce(&Path, &Path) -> Result<Summary, super::LayerError>,
    ) -> Result<Summary, ImageError> {
        let failed = || ImageError::io("layer cannot be stored");
        let scratch = self.inner.scratch().map_err(failed())?;
        let folder = scratch.folder("layer").map_err(failed())?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).map_err(failed())?;
        let trash = scratch.folder("trash").map_err(failed())?;
        let summary =
            unpack(&folder, &trash).map_err(|error| ImageError::layer(&self.diff_id, error))?;
        if summary.clamped > 0 {
            let (layer, entries) = (&self.diff_id, summary.clamped);
            tracing::warn!(%layer, entries, "owners above 65535 were replaced by 65534");
        }
        let path = self.inner.layer_path(&self.diff_id);
        if path.exists() {
            // Left by a process that crashed before any record named it.
            fs::rename(&path, trash.join("left")).map_err(failed())?;
        }
        fs::rename(&folder, &path).map_err(failed())?;
        self.inner.state().layers.insert(self.diff_id.clone(), summary.clone());
        Ok(summary)
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
