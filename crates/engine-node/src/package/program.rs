//! A program, compiled for this machine, with the shared libraries it needs.
//!
//! Promises: nothing of it is executed; what it needs is found as the dynamic loader finds it,
//! or is an error that names it. Libraries come first, the program last: the next version
//! changes only that. Does not know what the program opens by itself while it runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use stead_core::api::package::{PackageKind, PackedConfig};

use super::elf::{self, Elf, ElfError, Machine};
use super::error::PackError;
use super::ignore;
use super::libraries::{self, LibraryError};
use super::pack::{Pack, PackOptions};
use super::system::{self, NONROOT};
use super::tar::{Content, Layer, Node, Tree};

/// Where the program lies in the image.
const FOLDER: &str = "/app";
/// Names a folder's program may have, beside the folder's own.
const NAMES: [&str; 3] = ["app", "server", "main"];

/// Whether the folder at `path` holds one program to start: an ELF file with the name of the
/// folder, or `app`, `server` or `main`.
pub(super) fn is_folder(path: &Path) -> bool {
    program_in(path).is_some()
}

/// The one program of a folder.
fn program_in(folder: &Path) -> Option<PathBuf> {
    let own = fs::canonicalize(folder).ok()?;
    let own = own.file_name().and_then(|name| name.to_str());
    let mut names: Vec<&str> = own.into_iter().chain(NAMES).collect();
    names.sort_unstable();
    names.dedup();
    let mut programs = names.into_iter().map(|name| folder.join(name)).filter(|path| is_elf(path));
    programs.next().filter(|_| programs.next().is_none())
}

fn is_elf(path: &Path) -> bool {
    begins(path).is_ok_and(|magic| magic == *b"\x7fELF")
}

fn begins(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut magic = Vec::with_capacity(4);
    if path.is_file() {
        File::open(path)?.take(4).read_to_end(&mut magic)?;
    }
    Ok(magic)
}

/// Cuts the program at `path`, or in the folder there, into layers.
///
/// # Errors
/// When it is none that runs on this machine, or a library is missing.
pub(super) fn pack(path: &Path, options: &PackOptions) -> Result<Pack, PackError> {
    let is_folder = path.is_dir();
    let program = match program_in(path).filter(|_| is_folder) {
        Some(program) => program,
        None => path.to_owned(),
    };
    let elf = check(&program)?;
    let name = program.file_name().expect("it is a file, which was opened by its name").to_owned();

    let mut layers = Vec::new();
    let mut tree = Tree::new();
    system::add(&mut tree)?;
    let libraries = match elf.interpreter {
        Some(_) => libraries::closure(&[&program]).map_err(|error| missing(&program, error))?,
        None => Vec::new(),
    };
    let count = libraries.len();
    for library in libraries {
        let node = match library.content {
            libraries::Content::File(from) => Node::program(Content::of_file(&from)?),
            libraries::Content::Link(target) => Node::link(target),
        };
        tree.add(library.path, node)?;
    }
    layers.push(Layer::new(if count > 0 { "libraries" } else { "system" }, tree));
    let mut left_out = None;
    if is_folder {
        let mut tree = Tree::new();
        let mut found = ignore::walk(path)?;
        left_out = ignore::left_out(path, &found);
        found.retain(|found| Path::new(&name) != found.path);
        ignore::add(&mut tree, FOLDER, path, &found)?;
        if !tree.is_empty() {
            layers.push(Layer::new("files", tree));
        }
    }
    let mut tree = Tree::new();
    let place = Path::new(FOLDER).join(&name);
    tree.add(&place, Node::program(Content::of_file(&program)?))?;
    layers.push(Layer::new("program", tree));

    let place = place
        .to_str()
        .ok_or_else(|| PackError::unfit(&program, "its name is not UTF-8", "rename it"))?;
    let linked = match elf.interpreter {
        Some(_) => {
            format!("{} is linked dynamically: its libraries come along", program.display())
        }
        None => format!("{} is linked statically", program.display()),
    };
    Ok(Pack {
        kind: PackageKind::Program,
        base: None,
        layers,
        config: PackedConfig {
            user: format!("{NONROOT}:{NONROOT}"),
            ..options.config(vec![place.to_owned()], FOLDER, BTreeMap::new())
        },
        notes: std::iter::once(linked).chain(left_out).collect(),
    })
}

/// Reads a program and makes sure that it runs here.
fn check(program: &Path) -> Result<Elf, PackError> {
    let unfit = |reason: &str, hint: &str| Err(PackError::unfit(program, reason, hint));
    let target = match Machine::host() {
        Machine::Aarch64 => "64-bit ARM",
        _ => "x86-64",
    };
    let build = format!("build it for Linux on {target}");
    if begins(program).map_err(PackError::io(program))?.starts_with(b"#!") {
        return unfit(
            "it is a script, and images of programs have nothing to run it",
            "what works: the folder of a Python or Node.js project, a compiled program, or an \
             image that has the script and its interpreter",
        );
    }
    let elf = match Elf::read(program) {
        Ok(Some(elf)) => elf,
        Ok(None) => return unfit("it is no program for Linux", &build),
        Err(ElfError::Foreign { .. }) => {
            return unfit("it is for a machine of 32 bits, or one of the other byte order", &build);
        }
        Err(ElfError::Io { path, source }) => return Err(PackError::Io { path, error: source }),
        Err(ElfError::Damaged { what, .. }) => return Err(PackError::refused(program, what)),
    };
    if elf.machine != Machine::host() {
        let other = match elf.machine {
            Machine::X86_64 => "x86-64".to_owned(),
            Machine::Aarch64 => "64-bit ARM".to_owned(),
            Machine::Other(number) => format!("another machine (number {number} of the ELF list)"),
        };
        return unfit(&format!("it is for {other}, and this machine is {target}"), &build);
    }
    match elf.kind {
        elf::Kind::Program => Ok(elf),
        elf::Kind::Library => {
            unfit("it is a shared library, which does not start by itself", "name the program")
        }
        elf::Kind::Other => {
            unfit("it is an object file or a core dump", "name the program that is linked from it")
        }
    }
}

fn missing(program: &Path, error: LibraryError) -> PackError {
    match error {
        LibraryError::Elf(ElfError::Io { path, source }) | LibraryError::Path { path, source } => {
            PackError::Io { path, error: source }
        }
        LibraryError::Missing { .. } => {
            let hint = "install it, or link the program statically";
            PackError::unfit(program, error.to_string(), hint)
        }
        other => PackError::refused(program, other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(path: &Path) -> Result<Pack, PackError> {
        pack(path, &PackOptions::of_test(&[]))
    }

    /// Why this file is no program, as people are told.
    fn refused(bytes: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        packed(file.path()).unwrap_err().to_string()
    }

    /// An ELF header with this class, machine and type, and nothing after it.
    fn header(class: u8, machine: u8, kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
        (bytes[16], bytes[18]) = (kind, machine);
        bytes
    }

    #[test]
    fn a_dynamic_program_comes_with_its_libraries_and_loader() {
        let program = std::env::current_exe().unwrap();
        let pack = packed(&program).unwrap();
        let whats: Vec<&str> = pack.layers.iter().map(|layer| layer.what.as_str()).collect();
        assert_eq!(whats, ["libraries", "program"]);
        let listing = pack.layers[0].listing();
        for name in ["libc.so.6", "ld-linux"] {
            assert!(listing.iter().any(|line| line.contains(name)), "{name}");
        }
        let name = program.file_name().unwrap().to_str().unwrap();
        assert_eq!(pack.config.entrypoint, [format!("/app/{name}")]);
        assert_eq!((pack.config.user.as_str(), pack.config.port), ("65532:65532", Some(8080)));
        let top = pack.layers[1].listing();
        assert_eq!(top.len(), 2);
        assert!(top[1].starts_with(&format!("app/{name} 755 ")), "{}", &top[1][..80]);
    }

    #[test]
    fn what_does_not_run_here_says_why() {
        let (here, other) = match Machine::host() {
            Machine::Aarch64 => (183, 62),
            _ => (62, 183),
        };
        assert!(refused(&header(1, 3, 2)).contains("32 bits"));
        assert!(refused(&header(2, other, 2)).contains("and this machine is"));
        assert!(refused(&header(2, here, 4)).contains("core dump"));
        assert!(refused(&header(2, here, 3)).contains("shared library"));
        assert!(refused(b"\x7fELF\x02\x01").contains("refused"));
        assert!(refused(b"#!/bin/sh\n").contains("script"));
        assert!(refused(b"hello").contains("no program"));
    }

    #[test]
    fn a_static_program_brings_no_libraries() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let here = if Machine::host() == Machine::Aarch64 { 183 } else { 62 };
        fs::write(file.path(), header(2, here, 2)).unwrap();
        let pack = packed(file.path()).unwrap();
        assert_eq!(pack.layers[0].what, "system");
        assert!(!pack.layers[0].listing().iter().any(|line| line.contains(".so")));
    }

    #[test]
    fn a_folder_with_one_program_is_packed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let dist = dir.path().join("dist");
        fs::create_dir_all(dist.join("templates")).unwrap();
        fs::write(dist.join("templates/a.html"), "a").unwrap();
        fs::write(dist.join(".env.live"), "KEY=secret").unwrap();
        assert!(!is_folder(&dist));
        fs::copy(std::env::current_exe().unwrap(), dist.join("dist")).unwrap();
        assert!(is_folder(&dist));
        let pack = packed(&dist).unwrap();
        assert_eq!(pack.config.entrypoint, ["/app/dist"]);
        let whats: Vec<&str> = pack.layers.iter().map(|layer| layer.what.as_str()).collect();
        assert_eq!(whats, ["libraries", "files", "program"]);
        assert!(pack.layers[1].listing().contains(&"app/templates/a.html 644 a".to_owned()));
        assert!(pack.notes.iter().any(|note| note.contains(".env.live")), "{:?}", pack.notes);
        // Which of two is meant nobody can know.
        fs::write(dist.join("server"), header(2, 62, 2)).unwrap();
        assert!(!is_folder(&dist));
    }
}
