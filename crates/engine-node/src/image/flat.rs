//! Many layers as one folder, so that a start costs the same however many there are.
//!
//! Promises: the folder shows what overlayfs would show of the layers, with the same owners,
//! modes, times and extended attributes; the layers stay as they are. Does not know when it
//! pays, nor who uses it.
//!
//! Files are hard links to those of the layers, so the folder takes hardly any room. What
//! programs see of that is a larger count of links. Those that mind are strict about their
//! configuration and state (cron is), so what lies in `/etc` and `/var` is copied.
//!
//! What hides what: the kernel's `Documentation/filesystems/overlayfs.rst`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
    fsetxattr, fstat, futimens, linkat, mkdirat, openat, statat,
};

use super::beneath::Beneath;
use super::error::LayerError;
use super::retar::{attribute, attributes};
use super::unpack::{DISK_BLOCK, OVERLAY_OPAQUE, give, is_whiteout};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);
/// Most bytes copied, holes included: it shall take hardly any room, whatever an image claims.
const MOST_COPIED: u64 = 256 << 20;
/// Folders whose files are copied.
const COPIED: [&[u8]; 2] = [b"etc", b"var"];

/// Makes `target`, which is empty, show what `layers` show, base first. Gives the bytes of the
/// disk that it takes by itself; `room` is asked before.
pub(super) fn flatten(
    layers: &[PathBuf],
    target: &Path,
    room: &mut dyn FnMut(u64) -> Result<(), LayerError>,
) -> Result<u64, LayerError> {
    let mut flat = Flat {
        layers: layers.iter().rev().map(|layer| Beneath::open(layer)).collect::<io::Result<_>>()?,
        target: Beneath::open(target)?,
        room,
        bytes: 0,
        copied: 0,
    };
    flat.take(DISK_BLOCK)?;
    // Deep trees need no deep stack. Folders are finished in reverse: filling one changes its
    // time, and may need more rights than it gives.
    let mut pending = vec![Folder { path: Vec::new(), from: (0..flat.layers.len()).collect() }];
    let mut filled = Vec::new();
    while let Some(folder) = pending.pop() {
        pending.extend(flat.fill(&folder)?);
        filled.push(folder);
    }
    for Folder { path, from } in filled.iter().rev() {
        let open = |at: &Beneath| at.get_plain(path, FOLDER).map_err(io::Error::from);
        describe(&open(&flat.target)?, &open(&flat.layers[from[0]])?)?;
    }
    Ok(flat.bytes)
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, name].join(&b'/') }
}

/// A folder, and the layers that have it, topmost first.
struct Folder {
    path: Vec<u8>,
    from: Vec<usize>,
}

struct Flat<'a> {
    /// Topmost first.
    layers: Vec<Beneath>,
    target: Beneath,
    room: &'a mut dyn FnMut(u64) -> Result<(), LayerError>,
    bytes: u64,
    copied: u64,
}

/// What a name in a folder is, as far as the layers were looked through.
enum Seen {
    /// A folder, of these layers; whether lower ones still add to it.
    Folder { from: Vec<usize>, open: bool },
    /// Something else, which hides everything below; `None` for what hides and is nothing.
    Other(Option<(usize, Stat)>),
}

impl Flat<'_> {
    fn take(&mut self, bytes: u64) -> Result<(), LayerError> {
        self.bytes += bytes;
        (self.room)(bytes)
    }

    /// Fills a folder. Gives the folders in it, made and empty.
    fn fill(&mut self, Folder { path, from }: &Folder) -> Result<Vec<Folder>, LayerError> {
        let open = |at: &usize| Ok((*at, self.layers[*at].get_plain(path, FOLDER)?));
        let parts: Vec<(usize, OwnedFd)> = from.iter().map(open).collect::<io::Result<_>>()?;
        let mut names = BTreeMap::new();
        for (at, part) in &parts {
            look(*at, part, &mut names)?;
        }
        let into = self.target.get_plain(path, FOLDER).map_err(io::Error::from)?;
        let copied = COPIED.iter().any(|top| path.split(|&b| b == b'/').next() == Some(top));
        let mut folders = Vec::new();
        for (name, seen) in names {
            match seen {
                Seen::Folder { from, .. } => {
                    self.take(DISK_BLOCK)?;
                    mkdirat(&into, name.as_slice(), Mode::RWXU).map_err(io::Error::from)?;
                    folders.push(Folder { path: join(path, &name), from });
                }
                Seen::Other(Some((at, stat))) => {
                    let (_, part) = parts
                        .iter()
                        .find(|(layer, _)| *layer == at)
                        .expect("it was seen in one of these");
                    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                    if copied && is_file {
                        let size = stat.st_size.cast_unsigned();
                        self.copied = self.copied.saturating_add(size);
                        if self.copied > MOST_COPIED {
                            let reason = format!("more than {MOST_COPIED} bytes to be copied");
                            return Err(LayerError::TooLarge(reason));
                        }
                        self.take(size.next_multiple_of(DISK_BLOCK))?;
                        copy(part, &into, &name)?;
                    } else {
                        linkat(part, name.as_slice(), &into, name.as_slice(), AtFlags::empty())
                            .map_err(io::Error::from)?;
                    }
                }
                Seen::Other(None) => {}
            }
        }
        Ok(folders)
    }
}

/// Takes in what one layer has in a folder, below what was seen before.
fn look(at: usize, folder: &OwnedFd, names: &mut BTreeMap<Vec<u8>, Seen>) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let hides = || -> io::Result<bool> {
            let inside = openat(folder, name, FOLDER | OFlags::CLOEXEC, Mode::empty())?;
            Ok(attribute(&inside, OVERLAY_OPAQUE)?.is_some())
        };
        match names.get_mut(name) {
            Some(Seen::Folder { from, open }) if *open => {
                if is_folder {
                    from.push(at);
                    *open = !hides()?;
                } else {
                    // It is hidden itself, and so is what lies below it.
                    *open = false;
                }
            }
            Some(_) => {}
            None => {
                let seen = match is_folder {
                    true => Seen::Folder { from: vec![at], open: !hides()? },
                    false => Seen::Other((!is_whiteout(&stat)).then_some((at, stat))),
                };
                names.insert(name.to_vec(), seen);
            }
        }
    }
    Ok(())
}

fn copy(from: &OwnedFd, into: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut like: File = openat(from, name, read, Mode::empty())?.into();
    let mut made: File = openat(into, name, write, Mode::RUSR | Mode::WUSR)?.into();
    io::copy(&mut like, &mut made)?;
    describe(&made, &like)
}

/// Gives `made` the owner, mode, attributes and times of `like`.
fn describe(made: &impl AsFd, like: &impl AsFd) -> io::Result<()> {
    let stat = fstat(like)?;
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    give(made, owner, stat.st_mode & 0o7777)?;
    for (name, value) in attributes(like)? {
        fsetxattr(made, name.as_slice(), &value, XattrFlags::empty())?;
    }
    let time = |tv_sec, nanos: u64| Timespec { tv_sec, tv_nsec: nanos.cast_signed() };
    futimens(
        made,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )?;
    Ok(())
}
