//! Jars: Spring Boot's, which hold further jars, and plain ones that run with what lies beside
//! them.
//!
//! Promises: what was one archive becomes layers, the rarely changing ones first, that run as
//! `java -jar` with a plain class path: jars on it and no folders, which is what class-data
//! archives need. Times come from the archives, never from this machine, so that the same jar
//! is the same layers wherever it lies.

mod beside;
mod classes;
mod manifest;
mod spring;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

use stead_core::api::package::{BaseName, PackageKind, PackedConfig, RuntimeName};

use super::error::PackError;
use super::pack::{Needs, Pack, PackOptions};
use super::tar::Node;
use super::zip::{Archive, Limits};

pub(super) use classes::refer;
pub(super) use manifest::Manifest;
pub(super) use spring::{Boot, is_loader};

/// Where an App's files are in its Container, from the root.
pub(super) const APP: &str = "app";
/// The manifest's name in every jar.
const MANIFEST: &str = "META-INF/MANIFEST.MF";
/// Bytes of a manifest, an index or a descriptor: no honest one comes near.
pub(super) const LARGEST_TEXT: u64 = 4 << 20;

/// What the zip archive at `path` is; `None` if it is neither jar nor war.
pub(super) fn recognise(path: &Path) -> Result<Option<PackageKind>, PackError> {
    let archive = Archive::open(path, &Limits::default())?;
    let is =
        |ending: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending));
    let has_web = archive.entries().iter().any(|entry| entry.name.starts_with("WEB-INF/"));
    // What lies in it says more than its name, except where it may be either.
    let starts = || Ok(manifest_of(&archive)?.get("Main-Class").is_some());
    Ok(match (is("jar"), is("war")) {
        (true, _) if has_web && !starts()? => Some(PackageKind::War),
        (_, true) if !has_web && starts()? => Some(PackageKind::Jar),
        (true, _) => Some(PackageKind::Jar),
        (_, true) => Some(PackageKind::War),
        _ if has_web => Some(PackageKind::War),
        _ => archive.find(MANIFEST).map(|_| PackageKind::Jar),
    })
}

/// Whether a folder is an application that was built as a jar with what it needs beside it.
pub(super) fn is_folder(path: &Path) -> bool {
    path.join(beside::QUARKUS).is_file()
}

/// Packs the jar at `path`, or the folder it lies in.
pub(super) fn pack(path: &Path, options: &PackOptions) -> Result<Pack, PackError> {
    let inner = path.join(beside::QUARKUS);
    let path = if path.is_dir() { inner.as_path() } else { path };
    let archive = Archive::open(path, &Limits::default())?;
    let manifest = manifest_of(&archive)?;
    match Boot::find(&archive, &manifest) {
        Some(boot) => boot.pack(PackageKind::Jar, &archive, &manifest, options),
        None => beside::pack(&archive, &manifest, options),
    }
}

/// The manifest of an archive; an empty one where there is none.
pub(super) fn manifest_of(archive: &Archive) -> Result<Manifest, PackError> {
    match archive.find(MANIFEST) {
        Some(entry) => Ok(Manifest::parse(&archive.read(entry, LARGEST_TEXT)?)),
        None => Ok(Manifest::default()),
    }
}

/// The base for something that needs this Java or a later one.
pub(super) fn base(path: &Path, java: u32, options: &PackOptions) -> Result<BaseName, PackError> {
    options.base(
        path,
        &Needs {
            runtime: RuntimeName::Java,
            usual: &classes::usual(java),
            fits: &|version| {
                // Java 8 also called itself 1.8.
                let major =
                    if version[0] == 1 { *version.get(1).unwrap_or(&1) } else { version[0] };
                major >= java
            },
            because: &format!("its classes need Java {java}"),
        },
    )
}

/// The folder the App starts in. Programs write there, such as logs of their own; what is in it
/// stays root's.
pub(super) fn home() -> Node {
    Node::folder().mode(0o1777)
}

/// How a jar is run. Everybody who can be told the port by the environment is told.
pub(super) fn config(jar: &str, options: &PackOptions) -> PackedConfig {
    let port = options.told_port().to_string();
    let told = ["SERVER_PORT", "QUARKUS_HTTP_PORT", "MICRONAUT_SERVER_PORT"];
    let env = told.map(|name| (name.to_owned(), port.clone())).into();
    let entrypoint = vec!["java".into(), "-jar".into(), format!("/{APP}/{jar}")];
    options.config(entrypoint, &format!("/{APP}"), env)
}

/// When an archive was last changed, by its entries.
pub(super) fn newest(archive: &Archive) -> u64 {
    archive.entries().iter().map(super::zip::Entry::mtime).max().unwrap_or(0)
}

/// When the jar that `entry` holds was made, by its first entry. The time that the archive
/// around it gives may be that of a download.
pub(super) fn inner_time(
    archive: &Arc<Archive>,
    entry: &super::zip::Entry,
) -> Result<u64, PackError> {
    let mut head = [0; 14];
    let whole = archive.head(entry, &mut head)? == head.len();
    Ok(if whole { super::zip::first_time(&head) } else { 0 })
}

/// The last part of a path.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(OsStr::new("jar")).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
