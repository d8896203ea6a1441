//! Paths resolved inside a folder, so that no symlink or `..` in hostile data leads outside.
//!
//! Promises: whatever the folder holds, a path given to [`Beneath`] ends inside of it.
//! Absolute symlinks start at the folder, as they will in the container (`openat2(2)`,
//! `RESOLVE_IN_ROOT`). Does not know what the folder is for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// A folder that paths are resolved in.
#[derive(Debug)]
pub(super) struct Beneath {
    root: OwnedFd,
}

impl Beneath {
    /// Opens the folder itself. `path` is trusted.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::openat(CWD, path, flags, Mode::empty())? })
    }

    /// The folder itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens what `path` names inside the folder. Symlinks on the way are followed within it;
    /// a final one is not, unless `flags` lack `NOFOLLOW`. An empty path is the folder.
    pub(super) fn get(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::empty())
    }

    /// Like [`get`](Self::get), but any symlink on the way is an error (`ELOOP`).
    pub(super) fn get_plain(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        self.resolve(path, flags, ResolveFlags::NO_SYMLINKS)
    }

    fn resolve(&self, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                // A rename anywhere on the machine raced with a `..`; only another try can tell.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }
}
