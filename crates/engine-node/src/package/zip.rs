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
/// The extra field that carries what 32 bits cannot.
const EXTRA_64: u16 = 1;
/// Bits of the flags.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
const SIZES_FOLLOW: u16 = 1 << 3;

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

impl Limits {
    /// Deflate makes no more of one byte (RFC 1951: 258 bytes for two bits).
    const DEFLATE: u64 = 1032;
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
        let reader = Reader { path, file: &file, length };
        let directory = reader.directory(limits)?;
        let mut entries = reader.entries(&directory, limits)?;
        reader.locate(&mut entries, &directory)?;
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

/// The central directory: its bytes, and how the archive lies in its file.
struct Directory {
    bytes: Vec<u8>,
    entries: u64,
    /// Where the archive begins: behind a script, in jars that run by themselves.
    begin: u64,
    /// Where the directory begins in the file.
    at: u64,
}

/// Reads an archive that nothing is known of yet.
struct Reader<'a> {
    path: &'a Path,
    file: &'a File,
    length: u64,
}

impl Reader<'_> {
    fn damaged(&self, reason: &str) -> PackError {
        PackError::refused(self.path, reason)
    }

    fn at(&self, offset: u64, length: usize) -> Result<Vec<u8>, PackError> {
        if offset.checked_add(length as u64).is_none_or(|end| end > self.length) {
            return Err(self.damaged("it is cut off"));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset).map_err(PackError::io(self.path))?;
        Ok(bytes)
    }

    /// Finds the directory from the end of the file.
    fn directory(&self, limits: &Limits) -> Result<Directory, PackError> {
        let tail = self.length.min((END_SIZE + usize::from(u16::MAX)) as u64) as usize;
        let from = self.length - tail as u64;
        let bytes = self.at(from, tail)?;
        let is_end = |at: &usize| {
            let rest = &bytes[*at..];
            // The comment ends with the file: data behind it could be another archive's end.
            u32_at(rest, 0) == END && usize::from(u16_at(rest, 20)) == rest.len() - END_SIZE
        };
        let last = tail.checked_sub(END_SIZE).and_then(|last| (0..=last).rev().find(is_end));
        let Some(last) = last else {
            return Err(self.damaged("it is no zip archive, or it is cut off"));
        };
        let end = &bytes[last..];
        let mut fields = [
            u64::from(u16_at(end, 4)),
            u64::from(u16_at(end, 6)),
            u64::from(u16_at(end, 8)),
            u64::from(u16_at(end, 10)),
            u64::from(u32_at(end, 12)),
            u64::from(u32_at(end, 16)),
        ];
        let mut end_at = from + last as u64;
        if let Some((wide, at)) = self.wide(end_at, fields[5])? {
            let full = [0xffff, 0xffff, 0xffff, 0xffff, 0xffff_ffff, 0xffff_ffff];
            for ((field, wide), full) in fields.iter_mut().zip(wide).zip(full) {
                // Both may tell the same; where they do not, readers would differ.
                if *field != full && *field != wide {
                    return Err(self.damaged("its two ends contradict each other"));
                }
                *field = wide;
            }
            end_at = at;
        }
        let [disk, first_disk, here, entries, size, offset] = fields;
        if disk != 0 || first_disk != 0 || here != entries {
            return Err(self.damaged("it is one part of several"));
        }
        if entries > limits.entries || size > limits.directory {
            let reason = format!("it has {entries} entries, more than are taken");
            return Err(self.damaged(&reason));
        }
        let begin = end_at.checked_sub(size).and_then(|at| Some((at, at.checked_sub(offset)?)));
        let Some((at, begin)) = begin else {
            return Err(self.damaged("its directory is not where it says"));
        };
        let bytes = self.at(at, size as usize)?;
        Ok(Directory { bytes, entries, begin, at })
    }

    /// The end record of a zip64 archive, as the fields of the usual one, and where it is.
    fn wide(&self, end: u64, offset: u64) -> Result<Option<([u64; 6], u64)>, PackError> {
        let Some(locator_at) = end.checked_sub(LOCATOR_64_SIZE as u64) else { return Ok(None) };
        let locator = self.at(locator_at, LOCATOR_64_SIZE)?;
        if u32_at(&locator, 0) != LOCATOR_64 {
            return Ok(None);
        }
        // It lies in front of its locator, without an extensible part; what it says of its own
        // offset is right only where nothing stands before the archive.
        let at = locator_at.checked_sub(END_64_SIZE as u64);
        let at = at.ok_or_else(|| self.damaged("its zip64 end is cut off"))?;
        let record = self.at(at, END_64_SIZE)?;
        if u32_at(&record, 0) != END_64 || u64_at(&record, 4) != END_64_SIZE as u64 - 12 {
            // Data that looks like a locator, in an archive that needs none.
            return match offset {
                0xffff_ffff => Err(self.damaged("its zip64 end is not where it says")),
                _ => Ok(None),
            };
        }
        let fields = [
            u64::from(u32_at(&record, 16)),
            u64::from(u32_at(&record, 20)),
            u64_at(&record, 24),
            u64_at(&record, 32),
            u64_at(&record, 40),
            u64_at(&record, 48),
        ];
        Ok(Some((fields, at)))
    }

    /// Reads the directory.
    fn entries(&self, directory: &Directory, limits: &Limits) -> Result<Vec<Entry>, PackError> {
        let mut rest = directory.bytes.as_slice();
        let mut entries = Vec::with_capacity(rest.len() / CENTRAL_SIZE);
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (entry, length) = self.entry(rest, limits)?;
            total = total.saturating_add(entry.size);
            if total > limits.size {
                return Err(refused(self.path, &entry.name, "the archive unpacks to too much"));
            }
            entries.push(entry);
            rest = &rest[length..];
        }
        if entries.len() as u64 != directory.entries {
            return Err(self.damaged("its directory has another number of entries than it says"));
        }
        if total > limits.free.max(self.length.saturating_mul(limits.ratio)) {
            let reason = format!("it has {} bytes and unpacks to {total}", self.length);
            return Err(self.damaged(&reason));
        }
        Ok(entries)
    }

    /// One entry of the directory, and the length of its record.
    fn entry(&self, bytes: &[u8], limits: &Limits) -> Result<(Entry, usize), PackError> {
        if bytes.len() < CENTRAL_SIZE || u32_at(bytes, 0) != CENTRAL {
            return Err(self.damaged("its directory is damaged"));
        }
        let lengths = [28, 30, 32].map(|at| usize::from(u16_at(bytes, at)));
        let length = CENTRAL_SIZE + lengths.iter().sum::<usize>();
        let Some(variable) = bytes.get(CENTRAL_SIZE..length) else {
            return Err(self.damaged("its directory is damaged"));
        };
        let (name, variable) = variable.split_at(lengths[0]);
        let name = self.name(name, limits)?;
        let refused = |reason: &str| refused(self.path, &name, reason);
        let flags = u16_at(bytes, 8);
        if flags & ENCRYPTED != 0 {
            return Err(refused("it is encrypted"));
        }
        let method = match u16_at(bytes, 10) {
            0 => Method::Stored,
            8 => Method::Deflated,
            other => {
                let reason = format!("its compression, method {other}, is none that jars use");
                return Err(refused(&reason));
            }
        };
        let mut wide = Wide::find(&variable[..lengths[1]]);
        let mut number = |at: usize| match u32_at(bytes, at) {
            u32::MAX => wide.next().ok_or_else(|| refused("its zip64 field is missing")),
            number => Ok(u64::from(number)),
        };
        // In this order, which is that of the zip64 field.
        let (size, packed, header) = (number(24)?, number(20)?, number(42)?);
        if u16_at(bytes, 34) != 0 {
            return Err(refused("it is in another part of the archive"));
        }
        // Made on Unix: the upper half of the attributes is the mode.
        let kind = if bytes[5] == 3 { u32_at(bytes, 38) >> 28 } else { 0 };
        if !matches!(kind, 0 | 0o4 | 0o10) {
            return Err(refused("it is a link or a device"));
        }
        let entry = Entry {
            size,
            crc: u32_at(bytes, 16),
            dos_time: u32_at(bytes, 12),
            method,
            packed,
            header,
            data: 0,
            name: name.clone(),
        };
        if entry.is_folder() && size != 0 {
            return Err(refused("it is a folder and has data"));
        }
        let possible = match method {
            Method::Stored => size == packed,
            Method::Deflated => size <= packed.saturating_mul(Limits::DEFLATE),
        };
        if !possible {
            return Err(refused("it cannot unpack to what it says"));
        }
        Ok((entry, length))
    }

    /// A name that is a plain path beneath the archive.
    fn name(&self, name: &[u8], limits: &Limits) -> Result<String, PackError> {
        let shown = String::from_utf8_lossy(&name[..name.len().min(200)]);
        let refused = |reason: &str| Err(refused(self.path, &shown, reason));
        if name.len() > limits.name {
            return refused("its name is too long");
        }
        let Ok(text) = std::str::from_utf8(name) else {
            return refused("its name is not UTF-8");
        };
        if text.bytes().any(|byte| byte < b' ' || byte == 0x7f || byte == b'\\') {
            return refused("its name has a control character or a backslash");
        }
        let path = text.strip_suffix('/').unwrap_or(text);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return refused("its name is no path within the archive");
        }
        Ok(text.to_owned())
    }

    /// Finds each entry's data, and checks that local headers say what the directory says and
    /// that nothing lies over anything else.
    fn locate(&self, entries: &mut [Entry], directory: &Directory) -> Result<(), PackError> {
        for entry in entries.iter_mut() {
            entry.header = entry.header.saturating_add(directory.begin);
            entry.data = self.local(entry)?;
        }
        let mut order: Vec<&Entry> = entries.iter().collect();
        order.sort_by_key(|entry| entry.header);
        let mut end = directory.begin;
        for entry in order {
            if entry.header < end {
                return Err(refused(self.path, &entry.name, "it lies over another entry"));
            }
            end = entry.data.saturating_add(entry.packed);
            if end > directory.at {
                return Err(refused(
                    self.path,
                    &entry.name,
                    "it does not end before the directory",
                ));
            }
        }
        Ok(())
    }

    /// Checks an entry's local header; where its data begins.
    fn local(&self, entry: &Entry) -> Result<u64, PackError> {
        let refused = |reason: &str| refused(self.path, &entry.name, reason);
        // The name is expected right behind; one look for both.
        let header = self
            .at(entry.header, LOCAL_SIZE + entry.name.len())
            .map_err(|_| refused("it is not where the directory says"))?;
        let (name, extra) = (usize::from(u16_at(&header, 26)), u16_at(&header, 28));
        if u32_at(&header, 0) != LOCAL {
            return Err(refused("it is not where the directory says"));
        }
        let flags = u16_at(&header, 6);
        let method = if entry.method == Method::Stored { 0 } else { 8 };
        let mut same = name == entry.name.len()
            && &header[LOCAL_SIZE..] == entry.name.as_bytes()
            && u16_at(&header, 8) == method
            && flags & ENCRYPTED == 0;
        // Whoever wrote it as a stream may have put crc and sizes behind the data, with zeros
        // here, or the true values all the same.
        let streamed = flags & SIZES_FOLLOW != 0;
        let (size, packed) = (u32_at(&header, 22), u32_at(&header, 18));
        let field = match (size, packed) {
            (u32::MAX, _) | (_, u32::MAX) => {
                let at = entry.header + (LOCAL_SIZE + name) as u64;
                self.at(at, usize::from(extra))?
            }
            _ => Vec::new(),
        };
        let mut wide = Wide::find(&field);
        let mut is = |local: u32, value: u64| match local {
            0 if streamed => true,
            u32::MAX => wide.next() == Some(value),
            local => u64::from(local) == value,
        };
        same &= is(size, entry.size) && is(packed, entry.packed);
        let crc = u32_at(&header, 14);
        same &= crc == entry.crc || (streamed && crc == 0);
        if !same {
            return Err(refused("its header says something else than the directory"));
        }
        Ok(entry.header + (LOCAL_SIZE + name) as u64 + u64::from(extra))
    }
}

/// The numbers of a zip64 field.
struct Wide<'a>(&'a [u8]);

impl<'a> Wide<'a> {
    fn find(mut extra: &'a [u8]) -> Self {
        // What does not parse is no field: tools pad with whatever they like.
        while extra.len() >= 4 {
            let length = usize::from(u16_at(extra, 2));
            let Some(field) = extra.get(4..4 + length) else { break };
            if u16_at(extra, 0) == EXTRA_64 {
                return Self(field);
            }
            extra = &extra[4 + length..];
        }
        Self(&[])
    }

    fn next(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*number))
    }
}

fn refused(path: &Path, name: &str, reason: impl fmt::Display) -> PackError {
    PackError::refused(path, format!("entry {name:?}: {reason}"))
}

/// The number at `at`; callers have checked that it is there.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
