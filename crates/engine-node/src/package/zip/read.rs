//! The way in: from a file of which nothing is known to entries that were checked.
//!
//! Promises: every number is checked before it is used; what the directory, the two end records
//! and the local headers say agrees; no two entries share bytes. Reads no data.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::package::error::PackError;
use crate::package::little_endian::{u16_at, u32_at, u64_at};

use super::{
    CENTRAL, CENTRAL_SIZE, DEFLATE, END, END_64, END_64_SIZE, END_SIZE, Entry, LOCAL, LOCAL_SIZE,
    LOCATOR_64, LOCATOR_64_SIZE, Limits, Method, refused,
};

/// The extra field that carries what 32 bits cannot.
const EXTRA_64: u16 = 1;
/// Bits of the flags.
const ENCRYPTED: u16 = 1 | 1 << 6 | 1 << 13;
pub(super) const SIZES_FOLLOW: u16 = 1 << 3;

/// Reads the directory of an archive of `length` bytes.
pub(super) fn entries(
    path: &Path,
    file: &File,
    length: u64,
    limits: &Limits,
) -> Result<Vec<Entry>, PackError> {
    let reader = Reader { path, file, length };
    let directory = reader.directory(limits)?;
    let mut entries = reader.entries(&directory, limits)?;
    reader.locate(&mut entries, &directory)?;
    Ok(entries)
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
            Method::Deflated => size <= packed.saturating_mul(DEFLATE),
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
