//! What packing keeps from one time to the next: installed dependencies, compressed files.
//!
//! Promises: what is found under a key was made completely; several packings at once do not
//! disturb each other; what nobody used for a month goes. Losing all of it costs time and
//! nothing else. Does not know what it keeps.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::error::PackError;

/// Nothing is kept unused for longer.
const KEEP: Duration = Duration::from_secs(30 * 24 * 3600);

/// A folder of things of one kind, by their keys.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
}

impl Kept {
    /// The things of this kind below `cache`. Forgets those that were not used for long.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(super) fn open(cache: &Path, kind: &str) -> Result<Self, PackError> {
        let folder = cache.join(kind);
        fs::create_dir_all(&folder).map_err(PackError::io(&folder))?;
        let kept = Self { folder };
        kept.forget(SystemTime::now());
        Ok(kept)
    }

    /// What is kept under `key`. If nothing is, `make` makes a file or folder at the path that
    /// it is given, beside where it will stay.
    ///
    /// # Errors
    /// What `make` gives, and when what it made cannot be kept.
    pub(super) fn get(
        &self,
        key: &str,
        make: impl FnOnce(&Path) -> Result<(), PackError>,
    ) -> Result<PathBuf, PackError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = self.folder.join(key);
        if path.symlink_metadata().is_ok() {
            // Only to be kept longer.
            let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
            return Ok(path);
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let fresh = Fresh(self.folder.join(format!(".{key}.{}.{number}", std::process::id())));
        make(&fresh.0)?;
        match fs::rename(&fresh.0, &path) {
            // Another packing was faster with the same.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty) => Ok(path),
            renamed => renamed.map(|()| path).map_err(PackError::io(&fresh.0)),
        }
    }

    /// Failures are left for another time.
    fn forget(&self, now: SystemTime) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let modified = entry.metadata().and_then(|meta| meta.modified());
            let age = modified.ok().and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > KEEP) {
                remove(&entry.path());
            }
        }
    }
}

/// What is not finished yet. Goes when it is dropped, unless it was moved away.
struct Fresh(PathBuf);

impl Drop for Fresh {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    let is_folder = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    // It is only a cache: what cannot be removed stays.
    let _ = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &'static str) -> impl FnOnce(&Path) -> Result<(), PackError> {
        move |path| {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), text).map_err(PackError::io(path))
        }
    }

    fn entries(kept: &Kept) -> usize {
        fs::read_dir(&kept.folder).unwrap().count()
    }

    #[test]
    fn a_key_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path(), "kind").unwrap();
        let first = kept.get("key", text("first")).unwrap();
        let again = kept.get("key", |_| panic!("it is there")).unwrap();
        assert_eq!(first, again);
        assert_eq!(fs::read_to_string(first.join("file")).unwrap(), "first");
        assert_eq!(entries(&kept), 1);
    }

    #[test]
    fn what_fails_half_way_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path(), "kind").unwrap();
        let half = |path: &Path| {
            text("half")(path).unwrap();
            Err(PackError::refused(path, "no"))
        };
        assert!(kept.get("key", half).is_err());
        assert_eq!(entries(&kept), 0);
        kept.get("key", text("whole")).unwrap();
    }

    #[test]
    fn of_two_at_once_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path(), "kind").unwrap();
        let slower = |path: &Path| {
            kept.get("key", text("faster")).unwrap();
            text("slower")(path)
        };
        let path = kept.get("key", slower).unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "faster");
        assert_eq!(entries(&kept), 1);
    }

    #[test]
    fn what_nobody_used_for_long_goes() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path(), "kind").unwrap();
        kept.get("key", text("x")).unwrap();
        kept.forget(SystemTime::now() + KEEP / 2);
        assert_eq!(entries(&kept), 1);
        kept.forget(SystemTime::now() + 2 * KEEP);
        assert_eq!(entries(&kept), 0);
    }
}
