//! One layer's archive, unpacked into one folder for overlayfs.
//!
//! Promises: nothing is written outside the folder, whatever the archive holds: every path is
//! resolved beneath it, `..` and devices are refused, files are created exclusively and links
//! never followed at their end. Owners, modes, times, links, sparse files and the harmless
//! extended attributes are kept; whiteouts become overlayfs's own. On an error the folder is
//! half filled: the caller throws it away. Does not know digests or compression.
//!
//! Owners above 65535 become 65534 (nobody) without setuid and setgid, and are counted: a
//! sandbox maps 65536 ids, and refusing such images would refuse many that run well.
//!
//! Whiteouts: OCI image specification, "Image Layer Filesystem Changeset"; overlayfs's form:
//! the kernel's `Documentation/filesystems/overlayfs.rst`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fsetxattr, fstat, fstatvfs, futimens, linkat, mkdirat,
    mknodat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::archive::{Archive, Entry, Kind};
use super::beneath::Beneath;
use super::error::LayerError;

pub(super) const WHITEOUT: &[u8] = b".wh.";
/// Prefix of the union file system AUFS's own files.
const AUFS: &[u8] = b".wh..wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
pub(super) const OVERLAY_OPAQUE: &str = "trusted.overlay.opaque";
/// Longest path, bytes; the kernel's `PATH_MAX` without its final zero.
const MAX_PATH: usize = 4095;
/// Parent folders kept open, so that neighbours need not resolve their path again.
const OPEN_PARENTS: usize = 64;
const MAX_ID: u64 = 65_535;
const NOBODY: u64 = 65_534;
const COPY: usize = 256 << 10;
/// Most bytes of the extended attributes of one file, names included: what the kernel takes of
/// one. Disks hold less.
const MAX_ATTRIBUTES: usize = 64 << 10;
/// Longest name of an extended attribute, bytes.
const MAX_ATTRIBUTE_NAME: usize = 255;
/// Most bytes of the names of all folders, which are remembered until the end.
const MAX_FOLDER_NAMES: usize = 64 << 20;
/// What a file's length is rounded up to on most disks, bytes; a folder takes one.
pub(super) const DISK_BLOCK: u64 = 4096;

/// What an archive may make of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one unpacked layer, holes of sparse files included.
    pub bytes: u64,
    /// Most files, folders and links in one layer.
    pub entries: u64,
    /// How many times larger than stored a layer may become when decompressed.
    pub ratio: u64,
    /// Decompressed bytes up to which `ratio` does not matter: small layers may shrink well.
    pub ratio_from: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 2_000_000, ratio: 1000, ratio_from: 64 << 20 }
    }
}

/// What there is to know about an unpacked layer.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// Bytes of all files.
    pub(super) bytes: u64,
    /// Bytes of the disk they take, about; 0 in records of old.
    #[serde(default)]
    pub(super) disk: u64,
    pub(super) entries: u64,
    /// The layer hides everything below it. overlayfs cannot say so of a layer's root.
    pub(super) opaque_root: bool,
    /// Entries given to nobody since their owner is out of range.
    pub(super) clamped: u64,
}

/// Unpacks the archive into `folder`, which exists and is empty. Folders that the archive
/// replaces are moved into `trash`, on the same file system. Leaves unread what follows the
/// archive's end.
pub(super) fn unpack<R: Read>(
    reader: R,
    folder: &Path,
    trash: &Path,
    limits: &Limits,
) -> Result<Summary, LayerError> {
    let mut archive = Archive::new(reader);
    let mut unpacker = Unpacker {
        root: Beneath::open(folder)?,
        trash: Beneath::open(trash)?,
        trashed: 0,
        parents: HashMap::new(),
        folders: Vec::new(),
        folder_names: 0,
        buffer: vec![0; COPY],
        summary: Summary::default(),
        limits,
    };
    while let Some(entry) = archive.next()? {
        unpacker.count(entry.size)?;
        unpacker.entry(entry, &mut archive)?;
    }
    unpacker.finish()?;
    Ok(unpacker.summary)
}

struct Unpacker<'a> {
    root: Beneath,
    trash: Beneath,
    trashed: u64,
    parents: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Times of folders, set last: filling a folder changes its time.
    folders: Vec<(Vec<u8>, Timestamps)>,
    /// Bytes of their names.
    folder_names: usize,
    buffer: Vec<u8>,
    summary: Summary,
    limits: &'a Limits,
}

/// Where an entry goes: an open folder and a name in it. `path` is for messages.
struct Place<'a> {
    parent: Rc<OwnedFd>,
    name: &'a [u8],
    path: &'a [u8],
}

impl Place<'_> {
    fn stat(&self) -> Result<Option<Stat>, LayerError> {
        match statat(&self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(failed(self.path, errno)),
        }
    }

    fn open_folder(&self) -> Result<OwnedFd, Errno> {
        openat(&self.parent, self.name, READ_FOLDER | OFlags::CLOEXEC, Mode::empty())
    }
}

impl Unpacker<'_> {
    /// Counts one more file, folder or link of this many bytes.
    fn count(&mut self, bytes: u64) -> Result<(), LayerError> {
        let Limits { bytes: most_bytes, entries: most_entries, .. } = self.limits;
        self.summary.entries += 1;
        self.summary.bytes = self.summary.bytes.saturating_add(bytes);
        let blocks = bytes.div_ceil(DISK_BLOCK);
        self.summary.disk = self.summary.disk.saturating_add(blocks.saturating_mul(DISK_BLOCK));
        if self.summary.entries > *most_entries {
            return Err(LayerError::TooLarge(format!("more than {most_entries} entries")));
        }
        if self.summary.bytes > *most_bytes {
            return Err(LayerError::TooLarge(format!("more than {most_bytes} bytes unpacked")));
        }
        Ok(())
    }

    fn entry<R: Read>(
        &mut self,
        mut entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), LayerError> {
        self.clamp_owner(&mut entry);
        let path = normal(&entry.path, &entry.path)?;
        if path.is_empty() {
            return match entry.kind {
                Kind::Directory => {
                    self.describe_folder(&entry, self.root.get(b"", READ_FOLDER), path)
                }
                _ => Err(LayerError::refused(&entry.path, "it would replace the layer itself")),
            };
        }
        let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], &path[..]),
        };
        // AUFS's own files, which old images carry, mean nothing here.
        let of_aufs = |part: &[u8]| part.starts_with(AUFS) && part != OPAQUE;
        if path.split(|&b| b == b'/').any(of_aufs) {
            return Ok(());
        }
        if parent.split(|&b| b == b'/').any(|part| part.starts_with(WHITEOUT)) {
            return Err(LayerError::refused(&path, "a whiteout has no content"));
        }
        let place = Place { parent: self.parent(parent)?, name, path: &path };
        if name == OPAQUE {
            self.summary.opaque_root |= parent.is_empty();
            return set_opaque(&Place { name: b".", ..place });
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&Place { name: hidden, ..place });
        }
        match entry.kind {
            Kind::File => self.file(&entry, &place, archive),
            Kind::Directory => self.folder(&entry, &place),
            Kind::Symlink => self.symlink(&entry, &place),
            Kind::HardLink => self.hard_link(&entry, &place),
            Kind::Fifo => self.fifo(&entry, &place),
            Kind::Device => Err(LayerError::refused(&path, "an image may not hold device files")),
        }
    }

    fn clamp_owner(&mut self, entry: &mut Entry) {
        if entry.uid > MAX_ID || entry.gid > MAX_ID {
            self.summary.clamped += 1;
            entry.uid = if entry.uid > MAX_ID { NOBODY } else { entry.uid };
            entry.gid = if entry.gid > MAX_ID { NOBODY } else { entry.gid };
            entry.mode &= 0o1777;
        }
    }

    /// The folder at `path`, made if it does not exist.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, LayerError> {
        if let Some(open) = self.parents.get(path) {
            return Ok(Rc::clone(open));
        }
        let open = match self.root.get(path, AS_FOLDER) {
            Ok(open) => open,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path)?,
            Err(errno) => return Err(failed(path, errno)),
        };
        if self.parents.len() == OPEN_PARENTS {
            self.parents.clear();
        }
        let open = Rc::new(open);
        self.parents.insert(path.to_vec(), Rc::clone(&open));
        Ok(open)
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<OwnedFd, LayerError> {
        let mut above = Rc::new(self.root.get(b"", AS_FOLDER).map_err(|e| failed(path, e))?);
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
        let mut start = 0;
        for end in ends.chain([path.len()]) {
            let (prefix, name) = (&path[..end], &path[start..end]);
            start = end + 1;
            above = match self.root.get(prefix, AS_FOLDER) {
                Ok(open) => Rc::new(open),
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    // An entry can imply a thousand folders.
                    self.count(0)?;
                    let place = Place { parent: above, name, path: prefix };
                    match place.stat()? {
                        None => self.make_folder(&place, false)?,
                        Some(stat) if is_whiteout(&stat) => self.make_folder(&place, true)?,
                        Some(_) => {
                            let reason = "its parent is a file or a link that leads nowhere";
                            return Err(LayerError::refused(path, reason));
                        }
                    }
                    Rc::new(self.root.get(prefix, AS_FOLDER).map_err(|e| failed(prefix, e))?)
                }
                Err(errno) => return Err(failed(prefix, errno)),
            };
        }
        Rc::into_inner(above).ok_or_else(|| failed(path, Errno::INVAL))
    }

    /// Makes a folder where there is none, or in place of a whiteout. A folder that replaces
    /// a whiteout still hides what the layers below have there.
    fn make_folder(&mut self, place: &Place, replaces_whiteout: bool) -> Result<(), LayerError> {
        let fail = |errno| failed(place.path, errno);
        if replaces_whiteout {
            self.remove(place)?;
        }
        mkdirat(&place.parent, place.name, Mode::from_raw_mode(0o755)).map_err(fail)?;
        self.summary.disk += DISK_BLOCK;
        // The process's umask had its say in mkdirat.
        chmodat(&place.parent, place.name, Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(fail)?;
        if replaces_whiteout { set_opaque(place) } else { Ok(()) }
    }

    /// Removes what is at `place`. A folder is moved away: deleting it here would recurse.
    fn remove(&mut self, place: &Place) -> Result<(), LayerError> {
        // Open parents may be below it, or have been reached through it.
        self.parents.clear();
        match unlinkat(&place.parent, place.name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {
                self.trashed += 1;
                let name = self.trashed.to_string();
                renameat(&place.parent, place.name, self.trash.root(), name)
            }
            result => result,
        }
        .map_err(|errno| failed(place.path, errno))
    }

    /// Makes something new at `place`, in place of whatever is there.
    fn put<T>(
        &mut self,
        place: &Place,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, LayerError> {
        match make() {
            Err(Errno::EXIST) => {
                self.remove(place)?;
                make()
            }
            result => result,
        }
        .map_err(|errno| failed(place.path, errno))
    }

    /// Hides what the layers below have at `place`; what this layer has there stays.
    fn whiteout(&mut self, place: &Place) -> Result<(), LayerError> {
        if matches!(place.name, b"" | b"." | b"..") {
            return Err(LayerError::refused(place.path, "this whiteout names nothing"));
        }
        match place.stat()? {
            None => mknodat(&place.parent, place.name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(|errno| failed(place.path, errno)),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                set_opaque(place)
            }
            Some(_) => Ok(()),
        }
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        place: &Place,
        archive: &mut Archive<R>,
    ) -> Result<(), LayerError> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // What the process's umask takes of it, `describe` gives back.
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let file: File = self.put(place, || openat(&place.parent, place.name, flags, mode))?.into();
        match &entry.extents {
            None => loop {
                match archive.read_data(&mut self.buffer)? {
                    0 => break,
                    got => (&file).write_all(&self.buffer[..got])?,
                }
            },
            Some(extents) => {
                for extent in extents {
                    let (mut at, mut left) = (extent.offset, extent.length);
                    while left > 0 {
                        let want =
                            self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                        let got = archive.read_data(&mut self.buffer[..want])?;
                        if got == 0 {
                            return Err(LayerError::Damaged("a sparse file lacks data".into()));
                        }
                        file.write_all_at(&self.buffer[..got], at)?;
                        (at, left) = (at + got as u64, left - got as u64);
                    }
                }
                file.set_len(entry.size)?;
            }
        }
        describe(&file, entry, place.path)?;
        futimens(&file, &times(entry)).map_err(|errno| failed(place.path, errno))
    }

    fn folder(&mut self, entry: &Entry, place: &Place) -> Result<(), LayerError> {
        match place.stat()? {
            None => self.make_folder(place, false)?,
            Some(stat) if is_whiteout(&stat) => self.make_folder(place, true)?,
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            Some(_) => {
                self.remove(place)?;
                self.make_folder(place, false)?;
            }
        }
        self.describe_folder(entry, place.open_folder(), place.path.to_vec())
    }

    fn describe_folder(
        &mut self,
        entry: &Entry,
        open: Result<OwnedFd, Errno>,
        path: Vec<u8>,
    ) -> Result<(), LayerError> {
        describe(&open.map_err(|errno| failed(&path, errno))?, entry, &path)?;
        self.folder_names += path.len();
        if self.folder_names > MAX_FOLDER_NAMES {
            let reason = format!("the names of its folders exceed {MAX_FOLDER_NAMES} bytes");
            return Err(LayerError::TooLarge(reason));
        }
        self.folders.push((path, times(entry)));
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, place: &Place) -> Result<(), LayerError> {
        if entry.link.is_empty() || entry.link.len() > MAX_PATH {
            return Err(LayerError::refused(place.path, "its target is empty or too long"));
        }
        self.put(place, || symlinkat(entry.link.as_slice(), &place.parent, place.name))?;
        self.describe_node(entry, place)
    }

    fn fifo(&mut self, entry: &Entry, place: &Place) -> Result<(), LayerError> {
        let mode = Mode::from_raw_mode(0o600);
        self.put(place, || mknodat(&place.parent, place.name, FileType::Fifo, mode, 0))?;
        self.describe_node(entry, place)?;
        let mode = Mode::from_raw_mode(entry.mode);
        chmodat(&place.parent, place.name, mode, AtFlags::empty())
            .map_err(|e| failed(place.path, e))?;
        self.set_node_times(entry, place)
    }

    /// Owner and times of what cannot be opened.
    fn describe_node(&mut self, entry: &Entry, place: &Place) -> Result<(), LayerError> {
        let (uid, gid) = owner(entry);
        chownat(&place.parent, place.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(place.path, errno))?;
        self.set_node_times(entry, place)
    }

    fn set_node_times(&mut self, entry: &Entry, place: &Place) -> Result<(), LayerError> {
        utimensat(&place.parent, place.name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(place.path, errno))
    }

    fn hard_link(&mut self, entry: &Entry, place: &Place) -> Result<(), LayerError> {
        let target = normal(&entry.link, place.path)?;
        let source = match self.root.get(&target, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(source) => source,
            Err(Errno::NOENT | Errno::NOTDIR) => {
                return Err(LayerError::refused(
                    place.path,
                    "its hard link's target is not in the layer",
                ));
            }
            Err(errno) => return Err(failed(place.path, errno)),
        };
        let source_stat = fstat(&source).map_err(|errno| failed(place.path, errno))?;
        match FileType::from_raw_mode(source_stat.st_mode) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => {
                return Err(LayerError::refused(
                    place.path,
                    "its hard link's target is not a file",
                ));
            }
        }
        if let Some(there) = place.stat()?
            && (there.st_dev, there.st_ino) == (source_stat.st_dev, source_stat.st_ino)
        {
            return Ok(());
        }
        self.put(place, || linkat(&source, "", &place.parent, place.name, AtFlags::EMPTY_PATH))
    }

    fn finish(&mut self) -> Result<(), LayerError> {
        self.parents.clear();
        while let Some((path, times)) = self.folders.pop() {
            match self.root.get(&path, READ_FOLDER) {
                Ok(folder) => futimens(&folder, &times).map_err(|errno| failed(&path, errno))?,
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(failed(&path, errno)),
            }
        }
        Ok(())
    }
}

const AS_FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
const READ_FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW);

/// The path without empty and `.` parts; a leading slash means the layer's root. `shown` is
/// the path of the entry, for messages.
fn normal(path: &[u8], shown: &[u8]) -> Result<Vec<u8>, LayerError> {
    if path.len() > MAX_PATH {
        return Err(LayerError::refused(shown, format!("a path is longer than {MAX_PATH} bytes")));
    }
    if path.contains(&0) {
        return Err(LayerError::refused(shown, "a path holds a zero byte"));
    }
    let mut parts = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(LayerError::refused(shown, "a path holds \"..\"")),
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

/// Owner, mode and extended attributes of an open file or folder.
fn describe(file: &impl AsFd, entry: &Entry, path: &[u8]) -> Result<(), LayerError> {
    give(file, owner(entry), entry.mode).map_err(|errno| failed(path, errno))?;
    let mut length = 0;
    for (name, value) in &entry.xattrs {
        length += name.len() + value.len();
        if length > MAX_ATTRIBUTES || name.len() > MAX_ATTRIBUTE_NAME {
            return Err(LayerError::refused(path, "its extended attributes are too long"));
        }
        // Others would be overlayfs's, a security module's, or an ACL with ids not mapped.
        let harmless = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        if !harmless && name != b"security.capability" {
            continue;
        }
        match fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            // This file system has none.
            Ok(()) | Err(Errno::NOTSUP) => {}
            // The file's own room for them is meant, as long as the disk has some.
            Err(Errno::NOSPC) if fstatvfs(file).is_ok_and(|disk| disk.f_bavail > 0) => {
                return Err(LayerError::refused(
                    path,
                    "the file system cannot hold its attributes",
                ));
            }
            Err(errno) => return Err(failed(path, errno)),
        }
    }
    Ok(())
}

/// Gives a file or folder its owner and permission bits.
pub(super) fn give(file: &impl AsFd, (uid, gid): (Uid, Gid), mode: u32) -> Result<(), Errno> {
    // Most are as they should be from the start, and a change costs the disk's journal more.
    let made = fstat(file)?;
    // In this order: a change of owner clears setuid, setgid and file capabilities.
    let chown = (made.st_uid, made.st_gid) != (uid.as_raw(), gid.as_raw());
    if chown {
        fchown(file, Some(uid), Some(gid))?;
    }
    if chown || made.st_mode & 0o7777 != mode {
        fchmod(file, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

/// Makes the folder at `place` hide what the layers below have there.
fn set_opaque(place: &Place) -> Result<(), LayerError> {
    place
        .open_folder()
        .and_then(|folder| fsetxattr(folder, OVERLAY_OPAQUE, b"y", XattrFlags::empty()))
        .map_err(|errno| failed(place.path, errno))
}

/// Whether this is what overlayfs hides a file with.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn owner(entry: &Entry) -> (Uid, Gid) {
    // Clamped before: both fit.
    (Uid::from_raw(entry.uid as u32), Gid::from_raw(entry.gid as u32))
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanos) = entry.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) },
    }
}

/// An error that only a strange path can cause is a refusal; the rest is the disk's.
fn failed(path: &[u8], errno: Errno) -> LayerError {
    match errno {
        Errno::NAMETOOLONG => LayerError::refused(path, "a name in it is too long"),
        Errno::LOOP => LayerError::refused(path, "its links go in circles"),
        Errno::NOTDIR => LayerError::refused(path, "its parent is not a folder"),
        Errno::INVAL | Errno::MLINK => LayerError::refused(path, "the file system cannot hold it"),
        errno => LayerError::Io(io::Error::from(errno)),
    }
}
