//! Packages: what a person hands over, cut into the layers of an image.
//!
//! Promises: needs no root, no image store and no network of its own; the same Package makes
//! the same layers, byte for byte, on every machine; nothing outside the file or folder that
//! was named gets into a layer, except what it asks for to run (shared libraries). Packages are
//! hostile input: archives are read within limits. Does not know how layers travel or what
//! becomes of them.
//!
//! A Package's way: [`recognise`] → [`pack`] → [`Layer::packed`] (is it there already?) →
//! [`Layer::compress`] (it is not: send it).

pub mod base;
mod elf;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod ignore;
mod jar;
mod kept;
mod libraries;
mod little_endian;
mod node;
mod pack;
mod program;
mod python;
mod site;
mod system;
mod tar;
mod tool;
mod versions;
mod war;
mod words;
mod zip;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use stead_core::api::package::{PackageKind, RuntimeName};

pub use error::PackError;
pub use pack::{Pack, PackOptions, USUAL_PORT};
pub use tar::{Content, Contents, Layer, Node, Tree};

/// What kind of Package the file or folder at `path` is; `None` if it is none, which an image
/// archive is not either.
///
/// # Errors
/// When it cannot be read, or begins like a Package and is none.
pub fn recognise(path: &Path) -> Result<Option<PackageKind>, PackError> {
    let meta = fs::metadata(path).map_err(PackError::io(path))?;
    if meta.is_dir() {
        return Ok(folder(path));
    }
    // To open a pipe or a device may wait for ever, or do something.
    if !meta.is_file() {
        return Ok(None);
    }
    let mut magic = Vec::with_capacity(4);
    let read = File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic));
    read.map_err(PackError::io(path))?;
    match magic.as_slice() {
        b"PK\x03\x04" => jar::recognise(path),
        // Spring Boot puts a script before jars that shall start by themselves.
        [b'#', b'!', ..] if path.extension().is_some_and(|end| end == "jar" || end == "war") => {
            jar::recognise(path)
        }
        // A script is told what works when it is packed.
        b"\x7fELF" | [b'#', b'!', ..] => Ok(Some(PackageKind::Program)),
        _ => Ok(None),
    }
}

/// What a folder is. Projects come before sites: the page of a project that has to be built
/// first is in its root, too.
fn folder(path: &Path) -> Option<PackageKind> {
    if jar::is_folder(path) {
        Some(PackageKind::Jar)
    } else if python::is_folder(path) {
        Some(PackageKind::Python)
    } else if node::is_folder(path) {
        Some(PackageKind::Node)
    } else if site::is_folder(path) {
        Some(PackageKind::Site)
    } else {
        program::is_folder(path).then_some(PackageKind::Program)
    }
}

/// Cuts the Package at `path` into layers.
///
/// # Errors
/// When it is no Package, or cannot be packed; the error says what works.
pub fn pack(path: &Path, options: &PackOptions) -> Result<Pack, PackError> {
    match recognise(path)? {
        // The page of a project that needs no build may lie beside its package.json.
        Some(_) if options.site && site::is_folder(path) => site::pack(path, options),
        Some(PackageKind::Jar) => jar::pack(path, options),
        Some(PackageKind::War) => war::pack(path, options),
        Some(PackageKind::Program) => program::pack(path, options),
        Some(PackageKind::Site) => site::pack(path, options),
        // Of a project in both languages the manifest may say which of them runs it.
        Some(PackageKind::Python)
            if options.runs_on(RuntimeName::Node) && node::is_folder(path) =>
        {
            node::pack(path, options)
        }
        Some(PackageKind::Python) => python::pack(path, options),
        Some(PackageKind::Node) => node::pack(path, options),
        None => Err(PackError::unfit(
            path,
            "it is no package that stead knows",
            "what works: a jar, a war, a program, a folder with a web site, a Python project or \
             a Node.js project",
        )),
    }
}
