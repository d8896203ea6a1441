//! A jar made of entries of other archives, written as it is read.
//!
//! Promises: the same members are the same bytes; its length is known before a byte of it is
//! written. Entries are stored, not deflated: a layer is compressed as a whole, which makes it
//! smaller, and classes load without inflating each.

use std::io::Write;
use std::sync::Arc;

use crate::package::error::PackError;
use crate::package::tar::{Content, Contents};

use super::{
    Archive, CENTRAL, CENTRAL_SIZE, END, END_64, END_64_SIZE, END_SIZE, Entry, LOCAL, LOCAL_SIZE,
    LOCATOR_64, LOCATOR_64_SIZE,
};

/// The version that stored entries need, in tenths: 2.0.
const NEEDS: u16 = 20;
/// The version that zip64 needs, in tenths: 4.5.
const NEEDS_64: u16 = 45;
/// Names are UTF-8.
const UTF_8: u16 = 1 << 11;
/// Entries that the usual end record can count.
const MOST_ENTRIES: usize = 0xfffe;

/// One file or folder of a [`Jar`].
pub(in crate::package) struct Member {
    name: String,
    dos_time: u32,
    crc: u32,
    content: Content,
}

impl Member {
    /// An entry of another archive, under this name.
    pub(in crate::package) fn of(archive: &Arc<Archive>, entry: &Entry, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dos_time: entry.dos_time,
            crc: entry.crc,
            content: archive.content(entry),
        }
    }

    /// These bytes, as old as an archive can say: of 1980.
    pub(in crate::package) fn bytes(name: &str, bytes: Vec<u8>) -> Self {
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        let dos_time = 1 << 21 | 1 << 16;
        Self { name: name.to_owned(), dos_time, crc: crc.sum(), content: Content::Bytes(bytes) }
    }

    /// What an entry begins with, in both headers: from the flags to the length of the name.
    fn fields(&self) -> Vec<u8> {
        let size = u32_of(self.content.size());
        let name = u16::try_from(self.name.len()).expect("names are limited");
        let mut out = Vec::with_capacity(22);
        for field in [UTF_8, 0] {
            out.extend(field.to_le_bytes());
        }
        for field in [self.dos_time, self.crc, size, size] {
            out.extend(field.to_le_bytes());
        }
        out.extend(name.to_le_bytes());
        out
    }

    fn local(&self) -> Vec<u8> {
        let mut out = LOCAL.to_le_bytes().to_vec();
        out.extend(NEEDS.to_le_bytes());
        out.extend(self.fields());
        // No extra field.
        out.extend([0; 2]);
        out.extend(self.name.as_bytes());
        out
    }

    fn central(&self, offset: u32) -> Vec<u8> {
        let mut out = CENTRAL.to_le_bytes().to_vec();
        out.extend([NEEDS, NEEDS].map(u16::to_le_bytes).concat());
        out.extend(self.fields());
        // No extra field, no comment, the first disk, no attributes.
        out.extend([0; 12]);
        out.extend(offset.to_le_bytes());
        out.extend(self.name.as_bytes());
        out
    }
}

/// A jar.
pub(in crate::package) struct Jar {
    members: Vec<Member>,
}

impl Jar {
    /// The jar of these, in this order; `None` if it would be too large for offsets of 32 bits.
    pub(in crate::package) fn new(members: Vec<Member>) -> Option<Self> {
        let jar = Self { members };
        (jar.size() < u64::from(u32::MAX)).then_some(jar)
    }

    fn end(&self, directory: u64, begin: u64) -> Vec<u8> {
        let count = self.members.len();
        let mut out = Vec::new();
        let short = if count > MOST_ENTRIES {
            out.extend(END_64.to_le_bytes());
            out.extend((END_64_SIZE as u64 - 12).to_le_bytes());
            out.extend([NEEDS_64, NEEDS_64].map(u16::to_le_bytes).concat());
            out.extend([0; 8]);
            for field in [count as u64, count as u64, directory, begin] {
                out.extend(field.to_le_bytes());
            }
            out.extend(LOCATOR_64.to_le_bytes());
            out.extend([0; 4]);
            out.extend((begin + directory).to_le_bytes());
            out.extend(1u32.to_le_bytes());
            u16::MAX
        } else {
            count as u16
        };
        out.extend(END.to_le_bytes());
        out.extend([0; 4]);
        out.extend([short, short].map(u16::to_le_bytes).concat());
        out.extend([u32_of(directory), u32_of(begin)].map(u32::to_le_bytes).concat());
        out.extend([0; 2]);
        out
    }
}

impl Contents for Jar {
    fn size(&self) -> u64 {
        let member = |member: &Member| {
            let headers = LOCAL_SIZE + CENTRAL_SIZE + 2 * member.name.len();
            member.content.size() + headers as u64
        };
        let wide =
            if self.members.len() > MOST_ENTRIES { END_64_SIZE + LOCATOR_64_SIZE } else { 0 };
        self.members.iter().map(member).sum::<u64>() + (END_SIZE + wide) as u64
    }

    fn write(&self, out: &mut dyn Write) -> Result<(), PackError> {
        let mut directory = Vec::new();
        let mut offset: u64 = 0;
        for member in &self.members {
            let header = member.local();
            directory.extend(member.central(u32_of(offset)));
            out.write_all(&header).map_err(PackError::Output)?;
            member.content.write(out)?;
            offset += header.len() as u64 + member.content.size();
        }
        out.write_all(&directory).map_err(PackError::Output)?;
        out.write_all(&self.end(directory.len() as u64, offset)).map_err(PackError::Output)
    }
}

fn u32_of(number: u64) -> u32 {
    u32::try_from(number).expect("the jar was measured when it was made")
}

/// Writes an archive of these files, for tests.
#[cfg(test)]
pub(in crate::package) fn archive_of(path: &std::path::Path, files: &[(&str, Vec<u8>)]) {
    std::fs::write(path, bytes_of(files)).expect("the test's folder is writable");
}

/// The bytes of an archive of these files, for tests.
#[cfg(test)]
pub(in crate::package) fn bytes_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let members = files.iter().map(|(name, bytes)| Member::bytes(name, bytes.clone()));
    let mut out = Vec::new();
    let jar = Jar::new(members.collect()).expect("tests make small ones");
    jar.write(&mut out).expect("memory takes everything");
    out
}
