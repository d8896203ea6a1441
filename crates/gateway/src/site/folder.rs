//! The unpacked layer of one site: its index, and its files as they are asked for.
//!
//! Promises: a file is opened beneath the folder, through no link, and once for all who read it
//! at the same time; one that is not of the size that the index says is not sent, and one kept
//! in memory has its digest too.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use stead_core::ids::Digest;
use stead_core::routes::site::{INDEX_FILE, MAX_INDEX_BYTES, SiteFault, SiteFile, SiteIndex};

/// Largest file that is kept in memory.
const SMALL: u64 = 256 << 10;

/// Why a site, or a file of it, cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum SiteError {
    #[error("{what} of the site cannot be read: {source}")]
    Io { what: String, source: io::Error },
    #[error(transparent)]
    Index(#[from] SiteFault),
    #[error("file {0:?} of the site is not what the index says")]
    Damaged(String),
}

/// Memory that several share.
pub(super) struct Budget {
    size: u64,
    used: AtomicU64,
}

impl Budget {
    pub(super) fn new(size: u64) -> Arc<Self> {
        Arc::new(Self { size, used: AtomicU64::new(0) })
    }

    /// Takes `bytes`, unless that is more than a quarter of what is left: what came first does
    /// not shut the small files of others out.
    fn take(&self, bytes: u64) -> bool {
        let fits = |used: u64| (bytes <= (self.size - used) / 4).then_some(used + bytes);
        self.used.fetch_update(Relaxed, Relaxed, fits).is_ok()
    }

    fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Relaxed);
    }
}

/// A site's folder.
pub(super) struct Folder {
    pub(super) index: SiteIndex,
    root: OwnedFd,
    identity: (u64, u64),
    /// Small files that were asked for, by their place.
    kept: HashMap<Box<str>, OnceLock<Bytes>>,
    /// Larger ones that are being sent, by their place. A client may ask for one as often as a
    /// connection has streams, and take its time.
    open: Mutex<HashMap<Box<str>, Weak<File>>>,
    memory: Arc<Budget>,
}

/// A file's bytes.
pub(super) enum Content {
    /// All of them.
    Kept(Bytes),
    /// To be read as they are sent.
    Open(Arc<File>),
}

impl Folder {
    /// Opens the folder at `path` and reads its index.
    pub(super) fn open(path: &Path, memory: &Arc<Budget>) -> Result<Self, SiteError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source: io::Error| SiteError::Io { what, source }
        };
        let root = File::open(path).map_err(io("folder"))?;
        let is = root.metadata().map_err(io("folder"))?;
        let file = beneath(&root, INDEX_FILE).map_err(io("index"))?;
        let mut text = Vec::new();
        file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut text).map_err(io("index"))?;
        let index = SiteIndex::parse(&text)?;
        let files = index
            .entries
            .values()
            .flat_map(|entry| std::iter::once(&entry.plain).chain(entry.variants.values()));
        let small = files.filter(|file| file.size <= SMALL);
        let kept = small.map(|file| (file.file.as_str().into(), OnceLock::new())).collect();
        let (root, identity) = (root.into(), (is.dev(), is.ino()));
        Ok(Self { index, root, identity, kept, open: Mutex::default(), memory: memory.clone() })
    }

    /// Which folder it is, on this machine.
    pub(super) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The bytes of `file`, if they are in memory.
    pub(super) fn kept(&self, file: &SiteFile) -> Option<Bytes> {
        self.kept.get(file.file.as_str())?.get().cloned()
    }

    /// The bytes of `file`, which stands in the index. Blocks.
    pub(super) fn read(&self, file: &SiteFile) -> Result<Content, SiteError> {
        let io = |source| SiteError::Io { what: format!("file {:?}", file.file), source };
        let damaged = || SiteError::Damaged(file.file.clone());
        let sound = |open: &File| {
            let is = open.metadata().map_err(io)?;
            if is.is_file() && is.len() == file.size { Ok(()) } else { Err(damaged()) }
        };
        if file.size > SMALL {
            let mut all = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let known = all.get(file.file.as_str()).and_then(Weak::upgrade);
            let open = match known {
                Some(open) => open,
                None => Arc::new(beneath(&self.root, &file.file).map_err(io)?),
            };
            sound(&open)?;
            all.retain(|_, open| open.strong_count() > 0);
            all.insert(file.file.as_str().into(), Arc::downgrade(&open));
            return Ok(Content::Open(open));
        }
        let open = beneath(&self.root, &file.file).map_err(io)?;
        sound(&open)?;
        let mut bytes = vec![0; usize::try_from(file.size).map_err(|_| damaged())?];
        open.read_exact_at(&mut bytes, 0).map_err(io)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let digest = digest.as_ref().try_into().ok().map(Digest::from_sha256);
        if digest.as_ref() != Some(&file.sha256) {
            return Err(damaged());
        }
        let bytes = Bytes::from(bytes);
        if let Some(place) = self.kept.get(file.file.as_str())
            && self.memory.take(file.size)
            && place.set(bytes.clone()).is_err()
        {
            self.memory.give(file.size); // somebody else was faster
        }
        Ok(Content::Kept(bytes))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let kept = self.kept.values().filter_map(OnceLock::get);
        self.memory.give(kept.map(|bytes| bytes.len() as u64).sum());
    }
}

/// Opens the file at `path` below `root`. What is no file, such as a pipe, does not block.
fn beneath(root: impl AsFd, path: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(&root, path, flags, Mode::empty(), within) {
            Err(Errno::INTR) => {}
            opened => return Ok(File::from(opened?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with `files`, and what an index says of them.
    fn site(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Vec<SiteFile>) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("site")).unwrap();
        let mut entries = serde_json::Map::new();
        let mut listed = Vec::new();
        for (name, bytes) in files {
            std::fs::write(dir.path().join("site").join(name), bytes).unwrap();
            let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
            let sha256 = Digest::from_sha256(digest.as_ref().try_into().unwrap());
            let file = SiteFile { file: format!("site/{name}"), size: bytes.len() as u64, sha256 };
            let mut entry = serde_json::to_value(&file).unwrap();
            entry["type"] = "text/plain".into();
            entries.insert(format!("/{name}"), entry);
            listed.push(file);
        }
        let index = serde_json::json!({ "version": 1, "entries": entries });
        std::fs::write(dir.path().join(INDEX_FILE), index.to_string()).unwrap();
        (dir, listed)
    }

    fn is_damaged(read: Result<Content, SiteError>) -> bool {
        matches!(read, Err(SiteError::Damaged(_)))
    }

    #[test]
    fn small_files_are_kept_and_given_back() {
        let memory = Budget::new(100);
        let (dir, files) = site(&[("a", &[7; 20]), ("b", &[8; 20])]);
        let folder = Folder::open(dir.path(), &memory).unwrap();
        assert!(folder.kept(&files[0]).is_none());
        for _ in 0..2 {
            let Content::Kept(bytes) = folder.read(&files[0]).unwrap() else { panic!("small") };
            assert_eq!(bytes, [7; 20][..]);
        }
        assert_eq!(memory.used.load(Relaxed), 20, "counted once");
        assert!(folder.kept(&files[0]).is_some());
        // Exactly a quarter of what is left.
        folder.read(&files[1]).unwrap();
        assert!(folder.kept(&files[1]).is_some());
        assert!(!memory.take(16) && memory.take(15));
        drop(folder);
        assert_eq!(memory.used.load(Relaxed), 15);
    }

    #[test]
    fn what_is_not_as_the_index_says_is_not_sent() {
        let (dir, files) = site(&[("a", b"abc"), ("b", &[1; SMALL as usize + 1]), ("c", b"c")]);
        let folder = Folder::open(dir.path(), &Budget::new(1 << 20)).unwrap();
        assert!(matches!(folder.read(&files[1]).unwrap(), Content::Open(_)));
        std::fs::write(dir.path().join("site/a"), "abd").unwrap();
        std::fs::write(dir.path().join("site/b"), "short").unwrap();
        assert!(is_damaged(folder.read(&files[0])) && is_damaged(folder.read(&files[1])));
        assert!(folder.kept(&files[0]).is_none());
        std::fs::remove_file(dir.path().join("site/c")).unwrap();
        assert!(matches!(folder.read(&files[2]), Err(SiteError::Io { .. })));
    }

    #[test]
    fn nothing_is_opened_through_a_link_or_outside() {
        let (dir, files) = site(&[("a", b"abc")]);
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("a"), "abc").unwrap();
        let folder = Folder::open(dir.path(), &Budget::new(1 << 20)).unwrap();
        std::fs::remove_file(dir.path().join("site/a")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("a"), dir.path().join("site/a")).unwrap();
        assert!(matches!(folder.read(&files[0]), Err(SiteError::Io { .. })));
        // The folder itself as a link.
        std::fs::remove_dir_all(dir.path().join("site")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("site")).unwrap();
        assert!(matches!(folder.read(&files[0]), Err(SiteError::Io { .. })));
        assert!(
            beneath(&folder.root, "../a").is_err() && beneath(&folder.root, "/etc/passwd").is_err()
        );
        // A pipe has no end: it is refused, and does not block.
        std::fs::remove_file(dir.path().join("site")).unwrap();
        std::fs::create_dir(dir.path().join("site")).unwrap();
        let pipe = dir.path().join("site/a");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        assert!(is_damaged(folder.read(&files[0])));
    }

    #[test]
    fn a_folder_without_a_sound_index_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Folder::open(dir.path(), &Budget::new(0)).err().unwrap();
        assert!(matches!(open(), SiteError::Io { .. }));
        std::fs::write(dir.path().join(INDEX_FILE), "{").unwrap();
        assert!(matches!(open(), SiteError::Index(_)));
    }
}
