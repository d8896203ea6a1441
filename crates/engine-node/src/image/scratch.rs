//! Folders for what is not finished, and the removal of trees that others filled.
//!
//! Promises: a [`Scratch`] is gone when it is dropped; removal follows no symlink, and needs
//! neither stack nor descriptors in proportion to a tree's depth. Does not know layers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A folder on the store's file system, removed with all its content when dropped.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder in `parent`, whose content nobody else names.
    pub(super) fn new(parent: &Path) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = parent.join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A new folder inside.
    pub(super) fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "could not remove a scratch folder");
        }
    }
}

/// Removes `path` and everything in it. Folders in folders are first moved up to `path`
/// itself, so that a tree of any depth is handled one level at a time.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let mut moved: u64 = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(folder) = pending.last().cloned() {
        let mut is_empty = true;
        // Listed before anything changes: a folder read while it changes may skip names.
        for entry in fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>()? {
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
            } else if folder == path {
                is_empty = false;
                pending.push(entry.path());
            } else {
                pending.insert(pending.len() - 1, move_up(&entry.path(), path, &mut moved)?);
            }
        }
        if is_empty {
            fs::remove_dir(&folder)?;
            pending.pop();
        }
    }
    Ok(())
}

fn move_up(folder: &Path, top: &Path, moved: &mut u64) -> io::Result<PathBuf> {
    loop {
        *moved += 1;
        let target = top.join(format!(".removed-{moved}"));
        // What is being removed may use that name itself.
        if target.symlink_metadata().is_err() {
            fs::rename(folder, &target)?;
            return Ok(target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_trees_go_and_links_are_not_followed() {
        let home = tempfile::tempdir_in("/dev/shm").unwrap();
        let outside = home.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let scratch = Scratch::new(home.path()).unwrap();
        // Deeper than a path can name, built the way a hostile layer would: bottom up.
        let mut deep = scratch.folder("deep").unwrap();
        for level in 0..3000 {
            let above = scratch.path().join(format!("level-{level}"));
            fs::create_dir(&above).unwrap();
            fs::write(above.join("file"), "x").unwrap();
            std::os::unix::fs::symlink(&outside, above.join("link")).unwrap();
            fs::rename(&deep, above.join("a-folder-with-a-long-name")).unwrap();
            deep = above;
        }
        fs::create_dir(scratch.path().join(".removed-1")).unwrap();
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
        assert!(outside.join("kept").exists());
    }
}
