//! A reader of tar streams: v7, ustar, GNU and pax, with sparse files.
//!
//! Promises: memory stays bounded whatever the stream says; every number is checked; an
//! entry's data is exactly what its sparse map and size announce. The `tar` crate parses the
//! header blocks; its iterator is not used because it reads long names and pax records of any
//! length into memory. Does not know the file system: paths are bytes, as hostile as they came.
//!
//! Formats: POSIX.1-2001 `pax`, and "The GNU tar manual", appendix "Tar Internals".

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::error::LayerError;

const BLOCK: u64 = 512;
/// Most bytes of long names and pax records in front of one entry.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most extents of a sparse file.
const MAX_EXTENTS: usize = 1 << 16;

/// What kind of file an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    Device,
    Directory,
    Fifo,
}

/// One entry. Its data is read from the [`Archive`] before the next entry is asked for.
#[derive(Debug)]
pub(super) struct Entry {
    /// The path as written: may be absolute, may hold `..`.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Where a symlink or hard link points; empty for others.
    pub(super) link: Vec<u8>,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub(super) mode: u32,
    /// Seconds since the epoch and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// The file's length when unpacked, bytes, holes included.
    pub(super) size: u64,
    /// Where the data goes, for a sparse file: extents in rising order.
    pub(super) extents: Option<Vec<Extent>>,
    /// Extended attributes.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A run of data in a sparse file, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// A tar stream being read.
pub(super) struct Archive<R> {
    reader: R,
    /// Data of the current entry not yet read.
    left: u64,
    /// Padding after it.
    padding: u64,
}

/// What pax records and GNU long names say about the entry that follows them.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: PaxSparse,
}

/// The GNU.sparse.* records; which of them appear tells the format: 0.0, 0.1 or 1.0.
#[derive(Default)]
struct PaxSparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    /// Alternating offsets and lengths, formats 0.0 and 0.1.
    map: Option<Vec<u64>>,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, left: 0, padding: 0 }
    }

    /// The next entry, or `None` at the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        let mut extensions = Extensions::default();
        let mut budget = MAX_EXTENSION;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else { return Ok(None) };
            let size = number(&header.as_old().size)?;
            let kind = match header.as_old().linkflag[0] {
                b'x' => {
                    let records = self.extension(size, &mut budget)?;
                    extensions.read_pax(&records)?;
                    continue;
                }
                b'L' => {
                    extensions.path = Some(until_nul(&self.extension(size, &mut budget)?).to_vec());
                    continue;
                }
                b'K' => {
                    extensions.link = Some(until_nul(&self.extension(size, &mut budget)?).to_vec());
                    continue;
                }
                // Global pax records carry comments in practice; volume labels carry nothing.
                b'g' | b'V' => {
                    self.set_data(size)?;
                    continue;
                }
                0 | b'0' | b'7' | b'S' => Kind::File,
                b'1' => Kind::HardLink,
                b'2' => Kind::Symlink,
                b'3' | b'4' => Kind::Device,
                b'5' => Kind::Directory,
                b'6' => Kind::Fifo,
                other => {
                    let reason =
                        format!("entries of type {:?} are not supported", char::from(other));
                    return Err(LayerError::refused(&header.path_bytes(), reason));
                }
            };
            return self.entry(&header, kind, size, extensions).map(Some);
        }
    }

    /// The reader: after [`next`](Self::next) gave an entry, it stands at the entry's data.
    pub(super) fn reader(&self) -> &R {
        &self.reader
    }

    /// Reads data of the current entry. 0 means its end.
    pub(super) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.reader.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(truncated());
        }
        self.left -= got as u64;
        Ok(got)
    }

    fn entry(
        &mut self,
        header: &Header,
        mut kind: Kind,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, LayerError> {
        let fields = header.as_old();
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        // Before ustar a folder was a file whose name ends in a slash.
        if kind == Kind::File && fields.linkflag[0] == 0 && path.ends_with(b"/") {
            kind = Kind::Directory;
        }
        let link = match kind {
            Kind::HardLink | Kind::Symlink => {
                extensions.link.unwrap_or_else(|| until_nul(&fields.linkname).to_vec())
            }
            _ => Vec::new(),
        };
        let mut entry = Entry {
            path,
            kind,
            link,
            uid: extensions.uid.map_or_else(|| number(&fields.uid), Ok)?,
            gid: extensions.gid.map_or_else(|| number(&fields.gid), Ok)?,
            mode: (number(&fields.mode)? & 0o7777) as u32,
            mtime: match extensions.mtime {
                Some(mtime) => mtime,
                // A time alone is no reason to refuse a file: GNU writes those before the
                // epoch in a form of its own.
                None => {
                    (number(&fields.mtime).ok().and_then(|t| i64::try_from(t).ok()).unwrap_or(0), 0)
                }
            },
            size: extensions.size.unwrap_or(size),
            extents: None,
            xattrs: extensions.xattrs,
        };
        if kind != Kind::File {
            // Only files carry data, whatever the size field of others says: so do Docker and
            // containerd read it, and reading it otherwise would show another tree.
            self.set_data(0)?;
            entry.size = 0;
            return Ok(entry);
        }
        self.set_data(entry.size)?;
        if fields.linkflag[0] == b'S' {
            self.gnu_sparse(header, &mut entry)?;
        } else {
            self.pax_sparse(extensions.sparse, &mut entry)?;
        }
        if let Some(extents) = &entry.extents {
            check_extents(extents, entry.size, self.left)?;
        }
        Ok(entry)
    }

    /// Old GNU format: the map is in the header and in the blocks that follow it.
    fn gnu_sparse(&mut self, header: &Header, entry: &mut Entry) -> Result<(), LayerError> {
        let gnu = header.as_gnu().ok_or_else(|| damaged("a sparse entry is not in GNU format"))?;
        let mut extents = Vec::new();
        let mut push = |part: &GnuSparseHeader| {
            // An unused slot is zero throughout.
            if part.offset[0] == 0 || part.numbytes[0] == 0 {
                return Ok(());
            }
            if extents.len() == MAX_EXTENTS {
                return Err(too_many_extents());
            }
            extents.push(Extent { offset: number(&part.offset)?, length: number(&part.numbytes)? });
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut push)?;
        let mut more = gnu.isextended[0] == 1;
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.exact(block.as_mut_bytes())?;
            block.sparse.iter().try_for_each(&mut push)?;
            more = block.isextended[0] == 1;
        }
        entry.size = number(&gnu.realsize)?;
        entry.extents = Some(extents);
        Ok(())
    }

    fn pax_sparse(&mut self, sparse: PaxSparse, entry: &mut Entry) -> Result<(), LayerError> {
        let map = match (sparse.major, sparse.map) {
            (Some(1), _) => self.sparse_map_in_data()?,
            (Some(0) | None, Some(map)) => map,
            (Some(0) | None, None) => return Ok(()),
            (Some(_), _) => return Err(damaged("a sparse map has an unknown version")),
        };
        if map.len() % 2 != 0 {
            return Err(damaged("a sparse map is incomplete"));
        }
        entry.extents = Some(
            map.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect(),
        );
        entry.size = sparse.real_size.ok_or_else(|| damaged("a sparse file has no size"))?;
        if let Some(name) = sparse.name {
            entry.path = name;
        }
        Ok(())
    }

    /// Format 1.0: decimal lines in front of the data, padded to a block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<u64>, LayerError> {
        let mut numbers = Vec::new();
        let mut total = None;
        let mut digits = 0;
        let mut value: u64 = 0;
        while total != Some(numbers.len()) {
            let mut block = [0; BLOCK as usize];
            if self.left < BLOCK {
                return Err(damaged("a sparse map is incomplete"));
            }
            self.exact(&mut block)?;
            self.left -= BLOCK;
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits < 20 => {
                        digits += 1;
                        value = value
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(|| damaged("a sparse map holds too large a number"))?;
                    }
                    b'\n' if digits > 0 => {
                        match total {
                            None if value > MAX_EXTENTS as u64 => return Err(too_many_extents()),
                            None => total = Some(value as usize * 2),
                            Some(_) => numbers.push(value),
                        }
                        (digits, value) = (0, 0);
                        if total == Some(numbers.len()) {
                            break;
                        }
                    }
                    _ => return Err(damaged("a sparse map holds something else than numbers")),
                }
            }
        }
        Ok(numbers)
    }

    /// The data of an extension header, within what is left of the budget.
    fn extension(&mut self, size: u64, budget: &mut u64) -> Result<Vec<u8>, LayerError> {
        *budget = budget.checked_sub(size).ok_or_else(|| {
            LayerError::TooLarge(format!(
                "the names and attributes of one entry exceed {MAX_EXTENSION} bytes"
            ))
        })?;
        self.set_data(size)?;
        let mut data = vec![0; size as usize];
        self.exact(&mut data)?;
        self.left = 0;
        Ok(data)
    }

    fn set_data(&mut self, size: u64) -> Result<(), LayerError> {
        self.left = size;
        self.padding =
            size.checked_next_multiple_of(BLOCK).ok_or_else(|| damaged("a size is absurd"))? - size;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), LayerError> {
        let skip = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        if io::copy(&mut (&mut self.reader).take(skip), &mut io::sink())? < skip {
            return Err(truncated());
        }
        Ok(())
    }

    /// The next header block; `None` at a block of zeros or at the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < block.len() {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let sum: u32 = header.as_bytes()[..148]
            .iter()
            .chain(&header.as_bytes()[156..])
            .map(|&b| u32::from(b))
            .sum();
        let told = number(&header.as_old().cksum).ok();
        if told != Some(u64::from(sum + 8 * u32::from(b' '))) {
            return Err(damaged("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), LayerError> {
        self.reader.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => truncated(),
            _ => error.into(),
        })
    }
}

impl Extensions {
    /// Records of the form `LENGTH KEY=VALUE\n`, LENGTH counting all of it. A later record
    /// wins over an earlier one.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), LayerError> {
        // An attribute repeated in a second header replaces the list of the first.
        self.xattrs.clear();
        while !records.is_empty() {
            let bad = || damaged("a pax record is malformed");
            let space = records.iter().take(8).position(|&b| b == b' ').ok_or_else(bad)?;
            let length = decimal(&records[..space]).ok_or_else(bad)? as usize;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &records[space + 1..length - 1];
            let equals = record.iter().position(|&b| b == b'=').ok_or_else(bad)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            records = &records[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), LayerError> {
        let bad = || damaged(format!("pax record {:?} is malformed", String::from_utf8_lossy(key)));
        let value_number = || decimal(value).ok_or_else(bad);
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(value_number()?),
            b"uid" => self.uid = Some(value_number()?),
            b"gid" => self.gid = Some(value_number()?),
            b"mtime" => self.mtime = Some(pax_time(value).ok_or_else(bad)?),
            b"GNU.sparse.major" => self.sparse.major = Some(value_number()?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse.real_size = Some(value_number()?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let map = self.sparse.map.get_or_insert_default();
                if map.len() >= 2 * MAX_EXTENTS {
                    return Err(too_many_extents());
                }
                map.push(value_number()?);
            }
            b"GNU.sparse.map" => {
                let numbers: Option<Vec<u64>> = value.split(|&b| b == b',').map(decimal).collect();
                let numbers = numbers.ok_or_else(bad)?;
                if numbers.len() > 2 * MAX_EXTENTS {
                    return Err(too_many_extents());
                }
                self.sparse.map = Some(numbers);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Extents must rise, not overlap, stay within the file, and use up the data exactly.
fn check_extents(extents: &[Extent], size: u64, stored: u64) -> Result<(), LayerError> {
    let mut end = 0;
    let mut sum: u64 = 0;
    for extent in extents {
        if extent.offset < end {
            return Err(damaged("a sparse map is out of order"));
        }
        end = extent
            .offset
            .checked_add(extent.length)
            .ok_or_else(|| damaged("a sparse map is absurd"))?;
        sum += extent.length;
    }
    if end > size || sum != stored {
        return Err(damaged("a sparse map does not fit its file"));
    }
    Ok(())
}

/// A numeric field: octal text, blank meaning 0, or GNU's base 256.
fn number(field: &[u8]) -> Result<u64, LayerError> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len().saturating_sub(8).max(1));
        let negative = field[0] & 0x40 != 0;
        let overflow = high[1..].iter().any(|&b| b != 0) || (field.len() > 8 && high[0] != 0x80);
        if negative || overflow {
            return Err(damaged("a number is out of range"));
        }
        let first = if field.len() > 8 { 0 } else { u64::from(high[0] & 0x7f) };
        return Ok(low.iter().fold(first, |value, &b| (value << 8) | u64::from(b)));
    }
    let text = until_nul(field).trim_ascii();
    text.iter()
        .try_fold(0u64, |value, &b| match b {
            b'0'..=b'7' => Some(value.checked_mul(8)? + u64::from(b - b'0')),
            _ => None,
        })
        .ok_or_else(|| damaged("a number is malformed"))
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`; what is before the epoch is rounded down to a second.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if negative {
        return Some((-seconds - i64::from(!fraction.is_empty()), 0));
    }
    let mut nanos = 0;
    for i in 0..9 {
        let digit = fraction.get(i).copied().unwrap_or(b'0');
        nanos = nanos * 10 + char::from(digit).to_digit(10)?;
    }
    Some((seconds, nanos))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or_default()
}

fn damaged(what: impl Into<String>) -> LayerError {
    LayerError::Damaged(what.into())
}

fn truncated() -> LayerError {
    damaged("it ends in the middle of an entry")
}

fn too_many_extents() -> LayerError {
    LayerError::TooLarge(format!("a sparse file has more than {MAX_EXTENTS} extents"))
}
