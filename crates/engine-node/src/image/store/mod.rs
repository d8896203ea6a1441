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
//! ROOT/flat/HEX/              the layers of an image of many, as one folder
//! ROOT/images/DIGEST.json     a record: this image is complete
//! ROOT/uploads/               what is sent for images to come; HEX.part while it comes
//! ROOT/tmp/                   unfinished; emptied at open
//! ```
//!
//! A layer is trusted because a record names it, not because its folder exists. Pulling does
//! not wait for the disk: the record carries the machine's boot id until everything it names
//! has been synced. After a crash of the process the page cache still holds all of it; after
//! a crash of the machine the boot id has changed, and the record no longer counts.

mod flats;
mod prune;
mod record;
mod room;
mod turn;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use stead_core::ids::Digest;
use stead_core::time::Time;
use tokio::sync::{Semaphore, watch};

pub use self::prune::Pruned;
pub(super) use self::record::LayerRecord;
use self::record::Record;
pub(super) use self::room::Room;
pub(super) use self::turn::{Claim, Turn};
use super::config::ImageConfig;
use super::error::ImageError;
use super::manifest::Platform;
use super::registry::{Registry, RegistryOptions};
use super::scratch::{Scratch, remove_tree};
use super::unpack::{Limits, Summary};

/// How long another process may take to let go of a store.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Images on their way out at the same time. Each keeps a thread for as long as its reader takes.
pub(super) const EXPORTS: usize = 8;

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
    /// Bytes of the disk that the store may take, if there is a limit.
    pub quota: Option<u64>,
    /// Bytes of the largest upload taken.
    pub largest_upload: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            limits: Limits::default(),
            layers_at_once: 4,
            registry: RegistryOptions::default(),
            quota: None,
            largest_upload: 16 << 30,
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
    /// One folder that shows what all layers show, once there is one.
    pub(crate) flat: OnceLock<PathBuf>,
}

impl Image {
    /// What to start from: one folder where there is one, else the layers, base first.
    pub fn stack(&self) -> Vec<PathBuf> {
        match self.flat.get() {
            Some(flat) => vec![flat.clone()],
            None => self.layers.clone(),
        }
    }
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
    /// Each image on its way out has one of [`EXPORTS`].
    pub(super) exports: Arc<Semaphore>,
    _lock: File,
}

#[derive(Default)]
struct State {
    images: HashMap<Digest, (Record, Arc<Image>)>,
    /// Layers that are complete.
    layers: HashMap<Digest, Summary>,
    /// Who unpacks which layer.
    unpacking: HashMap<Digest, Weak<tokio::sync::Mutex<()>>>,
    /// Who sends which upload.
    uploading: HashMap<Digest, Weak<tokio::sync::Mutex<()>>>,
    /// Bytes promised to what is being written.
    taken: u64,
    /// Images whose layers could not be made one folder.
    never_flat: HashSet<Digest>,
    /// What somebody said is needed, here or not yet; `None` until it was said.
    kept: Option<HashSet<Digest>>,
    /// What images not yet complete need, and how many of them: not to be pruned.
    pins: HashMap<Digest, usize>,
}

/// Locks, waiting for a moment: a killed `serve` may have a child that is not yet at its
/// `execve` and so still holds a copy of the lock.
fn wait_for(lock: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                // Paces a retry.
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other.map_err(io::Error::from),
        }
    }
}

impl ImageStore {
    /// Opens the store in `root`, making it if there is none. Removes what an earlier process
    /// left unfinished.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub fn open(root: &Path, options: StoreOptions) -> Result<Self, ImageError> {
        let failed = |what: &str| ImageError::io(format!("image store {} {what}", root.display()));
        for folder in ["blobs/sha256", "layers", "flat", "images", "uploads", "tmp"] {
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
        wait_for(&lock).map_err(failed("is used by another process"))?;
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
            exports: Arc::new(Semaphore::new(EXPORTS)),
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
            let unique = record.unique_layers().map(|layer| &layer.diff_id);
            unique.for_each(|layer| *users.entry(layer).or_default() += 1);
        }
        let is_shared = |layer: &&LayerRecord| users.get(&layer.diff_id).is_some_and(|&n| n > 1);
        let mut list: Vec<_> = state
            .images
            .values()
            .map(|(record, image)| ImageSummary {
                names: record.names.iter().cloned().collect(),
                digest: record.digest.clone(),
                size: image.size,
                shared: record.unique_layers().filter(is_shared).map(|l| l.summary.bytes).sum(),
                created: record.config.created.clone(),
                last_used: record.last_used,
            })
            .collect();
        list.sort_by(|a, b| b.last_used.cmp(&a.last_used).then(a.digest.cmp(&b.digest)));
        list
    }

    /// Notes that an image was used until now, if it is here.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn used(&self, digest: &Digest) -> Result<(), ImageError> {
        self.inner.touch(digest, None).map(drop)
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

    /// A folder of the store.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The right to add to an upload, for whoever locks it.
    pub(super) fn upload_turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        turn::of(&mut self.state().uploading, digest)
    }

    /// Whether a layer is unpacked here.
    pub(super) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.state().layers.contains_key(diff_id)
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
}
