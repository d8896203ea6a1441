//! A reader of zip archives, for jars and wars.
//!
//! Promises: memory stays bounded whatever the archive says; the central directory, the local
//! headers and the data agree, so that no other reader sees another archive; every name is a
//! plain path beneath the archive; no two entries share bytes; data has the length and the
//! checksum announced. Archives are hostile input: what breaks this is refused, with the entry's
//! name. Does not know what the entries are for.
//!
//! The `zip` crate is not used, well kept as it is: it keeps one of two entries of the same
//! name without a word, does not compare the two headers of an entry, and does not say where
//! entries lie; checking that from outside would take a parser of our own anyway.
//!
//! Format: PKWARE's APPNOTE.TXT 6.3.10; what is read of it is what jars use: stored and
//! deflated entries, zip64, one disk, no encryption.

mod read;
mod write;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::DeflateDecoder;

use super::error::PackError;
use super::little_endian::u32_at;
use super::tar::{Content, Contents};

pub(super) use write::{Jar, Member};
#[cfg(test)]
pub(super) use write::{archive_of, bytes_of};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const LOCAL_SIZE: usize = 30;
const CENTRAL_SIZE: usize = 46;
const END_SIZE: usize = 22;
const LOCATOR_64_SIZE: usize = 20;
const END_64_SIZE: usize = 56;
/// Deflate makes no more of one byte (RFC 1951: 258 bytes for two bits).
const DEFLATE: u64 = 1032;

/// What an archive may be. Jars of the largest applications stay well below.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Entries.
    pub(super) entries: u64,
    /// Bytes of the central directory.
    pub(super) directory: u64,
    /// Bytes of a name.
    pub(super) name: usize,
    /// Bytes of all entries, unpacked.
    pub(super) size: u64,
    /// Bytes of all entries, unpacked, for each byte of the archive.
    pub(super) ratio: u64,
    /// Bytes unpacked up to which the ratio does not matter.
    pub(super) free: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 500_000,
            directory: 128 << 20,
            name: 4096,
            size: 16 << 30,
            ratio: 100,
            free: 64 << 20,
        }
    }
}

/// An archive whose directory was read and checked.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
    names: HashMap<String, usize>,
    /// A name that a second entry has too.
    twice: Option<String>,
}

/// One file or folder.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// A path of plain parts; a folder's ends in a slash.
    pub(super) name: String,
    /// Bytes unpacked.
    pub(super) size: u64,
    /// CRC-32 of these.
    pub(super) crc: u32,
    /// When it was last changed, as MS-DOS wrote it: date above, time below.
    pub(super) dos_time: u32,
    method: Method,
    packed: u64,
    /// Where its local header and its data begin.
    header: u64,
    data: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Stored,
    Deflated,
}

impl Entry {
    pub(super) fn is_folder(&self) -> bool {
        self.name.ends_with('/')
    }

    /// Seconds since 1970, as if the archive had been written in UTC: it does not say where.
    pub(super) fn mtime(&self) -> u64 {
        seconds(self.dos_time)
    }
}

/// The time of an archive's first entry by the archive's first 14 bytes; 0 if it is none.
pub(super) fn first_time(head: &[u8]) -> u64 {
    if head.len() < 14 || u32_at(head, 0) != LOCAL { 0 } else { seconds(u32_at(head, 10)) }
}

/// Seconds since 1970 of a time as MS-DOS wrote it; 0 where that is no time.
fn seconds(dos_time: u32) -> u64 {
    let bits = |from: u32, count: u32| u64::from(dos_time >> from & ((1 << count) - 1));
    let (year, month, day) = (1980 + bits(25, 7), bits(21, 4), bits(16, 5));
    if !(1..=12).contains(&month) || day == 0 {
        return 0;
    }
    // Days from civil, http://howardhinnant.github.io/date_algorithms.html
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    let of_era = year % 400 * 365 + year % 400 / 4 - year % 400 / 100 + of_year;
    let days = year / 400 * 146_097 + of_era - 719_468;
    days * 86_400 + bits(11, 5) * 3600 + bits(5, 6) * 60 + bits(0, 5) * 2
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} entries)", self.path.display(), self.entries.len())
    }
}

impl Archive {
    /// Opens the archive at `path` and checks it, except the entries' data.
    pub(super) fn open(path: &Path, limits: &Limits) -> Result<Arc<Self>, PackError> {
        let file = File::open(path).map_err(PackError::io(path))?;
        let length = file.metadata().map_err(PackError::io(path))?.len();
        let entries = read::entries(path, &file, length, limits)?;
        let mut names = HashMap::with_capacity(entries.len());
        let mut twice = None;
        for (index, entry) in entries.iter().enumerate() {
            let name = entry.name.trim_end_matches('/').to_owned();
            match names.get(&name) {
                // A folder named twice is still that folder.
                Some(&other) if entry.is_folder() && Entry::is_folder(&entries[other]) => {}
                Some(_) => twice = Some(name),
                None => drop(names.insert(name, index)),
            }
        }
        Ok(Arc::new(Self { path: path.to_owned(), file, entries, names, twice }))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its entries, in the order of its directory.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The file of this name.
    pub(super) fn find(&self, name: &str) -> Option<&Entry> {
        self.names.get(name).map(|&index| &self.entries[index]).filter(|entry| !entry.is_folder())
    }

    /// Refuses it where a name is there twice: whoever unpacks it would have to choose one.
    pub(super) fn unpackable(&self) -> Result<(), PackError> {
        match &self.twice {
            Some(name) => Err(self.refused(name, "it is there twice")),
            None => Ok(()),
        }
    }

    /// An error about the entry `name`.
    pub(super) fn refused(&self, name: &str, reason: impl fmt::Display) -> PackError {
        refused(&self.path, name, reason)
    }

    /// What an entry holds, if it is no more than `most` bytes.
    pub(super) fn read(&self, entry: &Entry, most: u64) -> Result<Vec<u8>, PackError> {
        if entry.size > most {
            return Err(self.refused(&entry.name, format!("it has more than {most} bytes")));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size).unwrap_or(0));
        self.write(entry, &mut bytes)?;
        Ok(bytes)
    }

    /// The first bytes of an entry, at most as many as `head` has. They are not checked.
    pub(super) fn head(&self, entry: &Entry, head: &mut [u8]) -> Result<usize, PackError> {
        let mut data = self.data(entry);
        let mut filled = 0;
        while filled < head.len() {
            match data.read(&mut head[filled..]).map_err(|error| self.unread(entry, error))? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    /// Writes what an entry holds.
    pub(super) fn write(&self, entry: &Entry, out: &mut dyn Write) -> Result<(), PackError> {
        let mut data = self.data(entry);
        let mut crc = flate2::Crc::new();
        let mut left = entry.size;
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = data.read(&mut buffer).map_err(|error| self.unread(entry, error))?;
            if count == 0 {
                break;
            }
            let Some(rest) = left.checked_sub(count as u64) else {
                return Err(self.refused(&entry.name, "it is longer than it says"));
            };
            left = rest;
            crc.update(&buffer[..count]);
            out.write_all(&buffer[..count]).map_err(PackError::Output)?;
        }
        if left > 0 || data.unused() > 0 {
            return Err(self.refused(&entry.name, "it is shorter than it says"));
        }
        if crc.sum() != entry.crc {
            return Err(self.refused(&entry.name, "its checksum is wrong: it is damaged"));
        }
        Ok(())
    }

    /// What an entry holds, as the content of a layer's file.
    pub(super) fn content(self: &Arc<Self>, entry: &Entry) -> Content {
        Content::Made(Arc::new(Inside { archive: Arc::clone(self), entry: entry.clone() }))
    }

    fn data(&self, entry: &Entry) -> Data<'_> {
        let section = Section { file: &self.file, at: entry.data, left: entry.packed };
        let reader = match entry.method {
            Method::Stored => Unpacker::Stored(section),
            Method::Deflated => Unpacker::Deflated(Box::new(DeflateDecoder::new(section))),
        };
        Data { packed: entry.packed, reader }
    }

    fn unread(&self, entry: &Entry, error: io::Error) -> PackError {
        match error.kind() {
            io::ErrorKind::InvalidInput
            | io::ErrorKind::InvalidData
            | io::ErrorKind::UnexpectedEof => {
                self.refused(&entry.name, format!("its data is damaged ({error})"))
            }
            _ => PackError::io(&self.path)(error),
        }
    }
}

struct Inside {
    archive: Arc<Archive>,
    entry: Entry,
}

impl Contents for Inside {
    fn size(&self) -> u64 {
        self.entry.size
    }

    fn write(&self, out: &mut dyn Write) -> Result<(), PackError> {
        self.archive.write(&self.entry, out)
    }
}

/// An entry's data, unpacked while it is read.
struct Data<'a> {
    packed: u64,
    reader: Unpacker<'a>,
}

enum Unpacker<'a> {
    Stored(Section<'a>),
    Deflated(Box<DeflateDecoder<Section<'a>>>),
}

impl Data<'_> {
    /// Packed bytes that were not needed.
    fn unused(&self) -> u64 {
        match &self.reader {
            Unpacker::Stored(section) => section.left,
            Unpacker::Deflated(decoder) => self.packed - decoder.total_in(),
        }
    }
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.reader {
            Unpacker::Stored(section) => section.read(buffer),
            Unpacker::Deflated(decoder) => decoder.read(buffer),
        }
    }
}

/// A part of a file.
struct Section<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn refused(path: &Path, name: &str, reason: impl fmt::Display) -> PackError {
    PackError::refused(path, format!("entry {name:?}: {reason}"))
}

#[cfg(test)]
mod tests;
