//! What the dynamic loader reads of a program or shared library: who loads it and what it
//! needs.
//!
//! Promises: files are hostile; every offset is checked, sizes are bounded, nothing is
//! executed. Does not know where libraries are found.
//!
//! Format: System V ABI, "Object Files" and "Dynamic Linking". Little-endian 64-bit only, as
//! stead runs on x86-64 and AArch64.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::little_endian::{u16_at, u32_at, u64_at};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Most program headers; real ones have a dozen.
const MAX_PROGRAM_HEADERS: usize = 512;
/// Longest dynamic section, bytes; real ones have a few hundred.
const MAX_DYNAMIC: u64 = 256 << 10;
/// Longest name or path, bytes.
const MAX_STRING: usize = 4096;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
/// In `DT_FLAGS_1`: a program, though its type is that of a shared library.
const DF_1_PIE: u64 = 0x0800_0000;

/// What a file was built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    /// Intel and AMD, 64 bits.
    X86_64,
    /// ARM, 64 bits.
    Aarch64,
    /// Another, by its number in the ABI's list.
    Other(u16),
}

impl Machine {
    /// The machine this program runs on.
    pub(super) fn host() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 }
    }
}

/// What an ELF file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A program: linked to a fixed address, or position-independent.
    Program,
    /// A shared library.
    Library,
    /// An object file, a core dump or something else that is never loaded.
    Other,
}

/// What the dynamic loader reads of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Elf {
    /// What it was built for.
    pub(super) machine: Machine,
    /// What it is.
    pub(super) kind: Kind,
    /// The dynamic loader it asks for; `None` for a static program and most libraries.
    pub(super) interpreter: Option<PathBuf>,
    /// Names of the libraries it needs, in order.
    pub(super) needed: Vec<String>,
    /// Folders to search first, as written (`DT_RPATH`); without effect beside a `runpath`.
    pub(super) rpath: Vec<String>,
    /// Folders to search for its own needs, as written (`DT_RUNPATH`).
    pub(super) runpath: Vec<String>,
}

/// Why a file could not be read as ELF.
#[derive(Debug, thiserror::Error)]
pub(super) enum ElfError {
    /// The file cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is ELF, and damaged.
    #[error("{path} is damaged: {what}", path = path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// It is ELF of 32 bits, or big-endian.
    #[error("{path} is for a 32-bit or big-endian machine", path = path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
    },
}

impl Elf {
    /// Reads the file at `path`; `None` when it is not ELF at all.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is for a kind of machine stead does not run on.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, ElfError> {
        let io = |source| ElfError::Io { path: path.to_owned(), source };
        // Programs name the files that are read here: to open a pipe would wait for ever, and a
        // device may do something.
        if !path.metadata().map_err(io)?.is_file() {
            return Ok(None);
        }
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        parse(&Bytes { file: &file, size: metadata.len() }).map_err(|problem| match problem {
            Problem::Io(source) => io(source),
            Problem::Damaged(what) => ElfError::Damaged { path: path.to_owned(), what },
            Problem::Foreign => ElfError::Foreign { path: path.to_owned() },
        })
    }
}

enum Problem {
    Io(io::Error),
    Damaged(&'static str),
    Foreign,
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

struct Bytes<'a> {
    file: &'a File,
    size: u64,
}

impl Bytes<'_> {
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, Problem> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.size) {
            return Err(Problem::Damaged("a part lies beyond its end"));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Bytes up to a NUL.
    fn string(&self, offset: u64) -> Result<Vec<u8>, Problem> {
        let left = self.size.saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(MAX_STRING);
        let mut bytes = self.read(offset, length)?;
        let end = bytes.iter().position(|byte| *byte == 0);
        bytes.truncate(end.ok_or(Problem::Damaged("a name does not end"))?);
        Ok(bytes)
    }
}

/// A part of the file that is loaded: where it lies in memory and in the file.
struct Segment {
    kind: u32,
    address: u64,
    offset: u64,
    size: u64,
}

fn parse(bytes: &Bytes<'_>) -> Result<Option<Elf>, Problem> {
    if bytes.size < 4 || bytes.read(0, 4)? != b"\x7fELF" {
        return Ok(None);
    }
    let header = bytes.read(0, HEADER)?;
    // Class: 64 bits. Data: little-endian.
    if header[4] != 2 || header[5] != 1 {
        return Err(Problem::Foreign);
    }
    let machine = match u16_at(&header, 18) {
        62 => Machine::X86_64,
        183 => Machine::Aarch64,
        other => Machine::Other(other),
    };
    let segments = segments(bytes, &header)?;
    let mut elf = Elf {
        machine,
        kind: Kind::Other,
        interpreter: None,
        needed: Vec::new(),
        rpath: Vec::new(),
        runpath: Vec::new(),
    };
    if let Some(interpreter) = segments.iter().find(|segment| segment.kind == PT_INTERP) {
        let path = bytes.string(interpreter.offset)?;
        elf.interpreter = Some(PathBuf::from(OsString::from_vec(path)));
    }
    let flags = match segments.iter().find(|segment| segment.kind == PT_DYNAMIC) {
        Some(dynamic) => read_dynamic(bytes, &segments, dynamic, &mut elf)?,
        None => 0,
    };
    elf.kind = match u16_at(&header, 16) {
        2 => Kind::Program,
        3 if elf.interpreter.is_some() || flags & DF_1_PIE != 0 => Kind::Program,
        3 => Kind::Library,
        _ => Kind::Other,
    };
    Ok(Some(elf))
}

fn segments(bytes: &Bytes<'_>, header: &[u8]) -> Result<Vec<Segment>, Problem> {
    let (offset, size, count) =
        (u64_at(header, 32), usize::from(u16_at(header, 54)), usize::from(u16_at(header, 56)));
    if count == 0 {
        return Ok(Vec::new());
    }
    if size != PROGRAM_HEADER || count > MAX_PROGRAM_HEADERS {
        return Err(Problem::Damaged("its program headers make no sense"));
    }
    let table = bytes.read(offset, size * count)?;
    let segment = |entry: &[u8]| Segment {
        kind: u32_at(entry, 0),
        offset: u64_at(entry, 8),
        address: u64_at(entry, 16),
        size: u64_at(entry, 32),
    };
    Ok(table.chunks_exact(PROGRAM_HEADER).map(segment).collect())
}

/// Reads the dynamic section into `elf`. Gives `DT_FLAGS_1`.
fn read_dynamic(
    bytes: &Bytes<'_>,
    segments: &[Segment],
    dynamic: &Segment,
    elf: &mut Elf,
) -> Result<u64, Problem> {
    if dynamic.size > MAX_DYNAMIC {
        return Err(Problem::Damaged("its dynamic section is too long"));
    }
    let length = usize::try_from(dynamic.size).unwrap_or_default();
    let table = bytes.read(dynamic.offset, length)?;
    let entries: Vec<(u64, u64)> = table
        .chunks_exact(16)
        .map(|entry| (u64_at(entry, 0), u64_at(entry, 8)))
        .take_while(|(tag, _)| *tag != DT_NULL)
        .collect();
    let value = |tag| entries.iter().find(|(found, _)| *found == tag).map(|(_, value)| *value);
    let strings = match value(DT_STRTAB) {
        Some(address) => Some(in_file(segments, address)?),
        None => None,
    };
    for (tag, value) in &entries {
        if !matches!(*tag, DT_NEEDED | DT_RPATH | DT_RUNPATH) {
            continue;
        }
        let offset = strings.and_then(|strings| strings.checked_add(*value));
        let text = bytes.string(offset.ok_or(Problem::Damaged("its names have no table"))?)?;
        let text = String::from_utf8(text).map_err(|_| Problem::Damaged("a name is not UTF-8"))?;
        let folders = || text.split(':').filter(|f| !f.is_empty()).map(str::to_owned).collect();
        match *tag {
            DT_RPATH => elf.rpath = folders(),
            DT_RUNPATH => elf.runpath = folders(),
            _ => elf.needed.push(text),
        }
    }
    Ok(value(DT_FLAGS_1).unwrap_or_default())
}

/// Where an address in memory lies in the file.
fn in_file(segments: &[Segment], address: u64) -> Result<u64, Problem> {
    segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .find_map(|segment| {
            let within = address.checked_sub(segment.address)?;
            (within < segment.size).then(|| segment.offset.checked_add(within)).flatten()
        })
        .ok_or(Problem::Damaged("an address lies outside what is loaded"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of_bytes(bytes: &[u8]) -> Result<Option<Elf>, ElfError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        Elf::read(file.path())
    }

    #[test]
    fn this_very_program_is_read() {
        let elf = Elf::read(Path::new("/proc/self/exe")).unwrap().unwrap();
        assert_eq!((elf.machine, elf.kind), (Machine::host(), Kind::Program));
        assert!(elf.needed.iter().any(|name| name.starts_with("libc.so")), "{elf:?}");
        assert!(elf.interpreter.unwrap().is_absolute());
    }

    #[test]
    fn what_is_not_elf_is_told_apart() {
        assert_eq!(of_bytes(b"").unwrap(), None);
        assert_eq!(of_bytes(b"#!/bin/sh\n").unwrap(), None);
        assert!(Elf::read(Path::new("/")).unwrap().is_none());
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(Elf::read(&socket).unwrap().is_none(), "it is not even opened");
        let mut foreign = vec![0; 64];
        foreign[..6].copy_from_slice(b"\x7fELF\x01\x01");
        assert!(matches!(of_bytes(&foreign), Err(ElfError::Foreign { .. })));
    }

    /// A library of one loaded segment and a dynamic section at 176.
    fn small() -> Vec<u8> {
        let mut bytes = vec![0u8; 512];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 3;
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 2;
        let mut header = |at: usize, kind: u8, offset: u64, size: u64| {
            bytes[at] = kind;
            bytes[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            bytes[at + 16..at + 24].copy_from_slice(&(0x1000 + offset).to_le_bytes());
            bytes[at + 32..at + 40].copy_from_slice(&size.to_le_bytes());
        };
        header(64, 1, 0, 512);
        header(120, 2, 176, 80);
        let entries = [(DT_STRTAB, 0x1000 + 300), (DT_NEEDED, 1), (DT_RUNPATH, 11), (DT_NULL, 0)];
        for (index, (tag, value)) in entries.into_iter().enumerate() {
            let at = 176 + index * 16;
            bytes[at..at + 8].copy_from_slice(&tag.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&u64::to_le_bytes(value));
        }
        bytes[300..].fill(0);
        bytes[301..310].copy_from_slice(b"libz.so.1");
        bytes[311..330].copy_from_slice(b"$ORIGIN/../lib:/opt");
        bytes
    }

    #[test]
    fn needs_and_folders_are_read() {
        let elf = of_bytes(&small()).unwrap().unwrap();
        assert_eq!((elf.kind, elf.machine), (Kind::Library, Machine::X86_64));
        assert_eq!(elf.needed, ["libz.so.1"]);
        assert_eq!(elf.runpath, ["$ORIGIN/../lib", "/opt"]);
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let whole = small();
        for length in 0..whole.len() {
            let _ = of_bytes(&whole[..length]);
        }
        // Every byte of the headers and the dynamic section, with values that hurt.
        let file = tempfile::NamedTempFile::new().unwrap();
        for at in 0..260 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                fs::write(file.path(), &bytes).unwrap();
                let _ = Elf::read(file.path());
            }
            let mut bytes = whole.clone();
            bytes[at..at + 8].fill(0xff);
            fs::write(file.path(), &bytes).unwrap();
            let _ = Elf::read(file.path());
        }
        let mut bytes = whole;
        bytes[56..58].fill(0xff);
        assert!(matches!(of_bytes(&bytes), Err(ElfError::Damaged { .. })));
    }
}
