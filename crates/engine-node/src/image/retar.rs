//! One layer's folder, written as the archive it could have come from.
//!
//! Promises: the same folder gives the same bytes; unpacked again it gives the same files, with
//! owners, modes, times to the second, hard links, extended attributes and whiteouts. Holes of
//! sparse files are written out. Does not know where the bytes go.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    Dir, FileType, OFlags, Stat, fgetxattr, flistxattr, flistxattr_query, fstat, readlinkat,
};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::beneath::Beneath;
use super::unpack::{OPAQUE, OVERLAY_OPAQUE, WHITEOUT, is_whiteout};

const COPY: usize = 256 << 10;
const BLOCK: u64 = 512;
/// Prefix of the pax records for extended attributes, as GNU tar and Docker write them.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// Writes the layer in `folder`.
pub(super) fn write(folder: &Path, out: &mut dyn Write) -> io::Result<()> {
    let layer = Layer { root: Beneath::open(folder)? };
    let mut writer = Writer { out, links: HashMap::new(), buffer: vec![0; COPY] };
    // Deep trees need no deep stack: what is to be written, last first.
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let names = layer.write(&path, &mut writer)?;
        pending.extend(names.into_iter().rev().map(|name| join(&path, &name)));
    }
    writer.out.write_all(&[0; 2 * BLOCK as usize])
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, name].join(&b'/') }
}

struct Layer {
    root: Beneath,
}

impl Layer {
    /// Writes what is at `path`; of a folder, gives the names in it, in order.
    fn write(&self, path: &[u8], writer: &mut Writer<'_>) -> io::Result<Vec<Vec<u8>>> {
        let node = self.root.get_plain(path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let stat = fstat(&node)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.folder(path, &stat, writer),
            FileType::RegularFile => {
                if let Some(first) = writer.first_link(path, &stat) {
                    writer.entry(path, EntryType::Link, &stat, Some(&first), 0, &[])?;
                    return Ok(Vec::new());
                }
                let file: File =
                    self.root.get_plain(path, OFlags::RDONLY | OFlags::NOFOLLOW)?.into();
                let size = stat.st_size.cast_unsigned();
                writer.entry(path, EntryType::Regular, &stat, None, size, &attributes(&file)?)?;
                writer.content(file, size)?;
            }
            FileType::Symlink => {
                let target = readlinkat(&node, "", Vec::new())?;
                writer.entry(path, EntryType::Symlink, &stat, Some(target.as_bytes()), 0, &[])?;
            }
            FileType::Fifo => writer.entry(path, EntryType::Fifo, &stat, None, 0, &[])?,
            _ if is_whiteout(&stat) => {
                let slash = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
                let (folder, name) = path.split_at(slash);
                let hiding = [folder, WHITEOUT, name].concat();
                // Its time is that of unpacking, which is nobody's business.
                let mut gone = stat;
                gone.st_mtime = 0;
                writer.entry(&hiding, EntryType::Regular, &gone, None, 0, &[])?;
            }
            // Unpacking makes no such thing.
            kind => return Err(io::Error::other(format!("layer holds a {kind:?}"))),
        }
        Ok(Vec::new())
    }

    fn folder(
        &self,
        path: &[u8],
        stat: &Stat,
        writer: &mut Writer<'_>,
    ) -> io::Result<Vec<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let folder = self.root.get_plain(path, flags)?;
        let named = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
        writer.entry(&named, EntryType::Directory, stat, None, 0, &attributes(&folder)?)?;
        if attribute(&folder, OVERLAY_OPAQUE)?.is_some() {
            let hiding = join(path, OPAQUE);
            writer.entry(&hiding, EntryType::Regular, stat, None, 0, &[])?;
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    /// Where a file with several names was written, by its inode.
    links: HashMap<u64, Vec<u8>>,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    /// The path under which this file was written before; notes this one if there is none.
    fn first_link(&mut self, path: &[u8], stat: &Stat) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let first = self.links.get(&stat.st_ino).cloned();
        if first.is_none() {
            self.links.insert(stat.st_ino, path.to_vec());
        }
        first
    }

    fn entry(
        &mut self,
        path: &[u8],
        kind: EntryType,
        stat: &Stat,
        link: Option<&[u8]>,
        size: u64,
        attributes: &[(Vec<u8>, Vec<u8>)],
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        let mut records = Vec::new();
        let as_path = |bytes| Path::new(OsStr::from_bytes(bytes));
        if header.set_path(as_path(path)).is_err() {
            record(&mut records, b"path", path);
        }
        // Not by `set_link_name`: it would change the text.
        match link {
            Some(link) if link.len() <= header.as_old().linkname.len() => {
                header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
            }
            Some(link) => record(&mut records, b"linkpath", link),
            None => {}
        }
        for (name, value) in attributes {
            record(&mut records, &[XATTR, name].concat(), value);
        }
        // Before the epoch, or too late for the field.
        match u64::try_from(stat.st_mtime) {
            Ok(time) if time < 1 << 33 => header.set_mtime(time),
            _ => {
                header.set_mtime(0);
                record(&mut records, b"mtime", stat.st_mtime.to_string().as_bytes());
            }
        }
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_size(size);
        header.set_cksum();
        if !records.is_empty() {
            self.records(&records)?;
        }
        self.out.write_all(header.as_bytes())
    }

    /// Pax records for the entry that follows.
    fn records(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_path("pax")?;
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }

    fn content(&mut self, mut file: File, size: u64) -> io::Result<()> {
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = file.read(&mut self.buffer[..want])?;
            if got == 0 {
                return Err(io::Error::other("layer changed while it was read"));
            }
            self.out.write_all(&self.buffer[..got])?;
            left -= got as u64;
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = size.next_multiple_of(BLOCK) - size;
        self.out.write_all(&[0; BLOCK as usize][..padding as usize])
    }
}

/// Adds a pax record, whose length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// The extended attributes that unpacking sets, in order.
pub(super) fn attributes(file: &impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let length = match flistxattr_query(file) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Vec::new()),
        length => length?,
    };
    let mut names = vec![0; length];
    let length = flistxattr(file, names.as_mut_slice())?;
    names.truncate(length);
    let mut found = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"user.") || name == b"security.capability" {
            let text = [name, b"\0"].concat();
            let text = CStr::from_bytes_with_nul(&text).map_err(io::Error::other)?;
            if let Some(value) = attribute(file, text)? {
                found.push((name.to_vec(), value));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The value of an extended attribute, if it is there.
pub(super) fn attribute(
    file: &impl AsFd,
    name: impl rustix::path::Arg + Copy,
) -> io::Result<Option<Vec<u8>>> {
    // The kernel's limit for one value.
    let mut value = vec![0; 64 << 10];
    match fgetxattr(file, name, value.as_mut_slice()) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
