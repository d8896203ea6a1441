//! Node.js: the program; npm stays behind.

use std::fs;
use std::path::{Path, PathBuf};

use stead_core::api::package::{PackedConfig, RuntimeName};

use super::super::elf::Elf;
use super::super::error::PackError;
use super::root::Root;
use super::scan::{defined, paths_in, version_in};
use super::{Installed, below_home, folders_in, program_folders};

/// Where Debian keeps modules of Node.js that other builds carry inside.
const MODULES: &str = "/usr/share/nodejs/";

/// Every Node.js here: those on `PATH`, those of nvm.
pub(super) fn find() -> Vec<Installed> {
    let on_path = program_folders();
    let on_path = on_path.iter().filter_map(|folder| Some(folder.parent()?.to_owned()));
    let nvm = below_home(".nvm/versions/node");
    let nvm = nvm.into_iter().flat_map(|place| folders_in(&place));
    on_path.chain(nvm).filter_map(|prefix| at(&prefix)).collect()
}

/// The Node.js under this prefix.
pub(super) fn at(prefix: &Path) -> Option<Installed> {
    let prefix = fs::canonicalize(prefix).ok()?;
    let program = prefix.join("bin/node");
    // A script of a version manager is none.
    Elf::read(&program).ok()??;
    let exact = exact(&prefix, &program)?;
    let major = exact.split('.').next()?.to_owned();
    Some(Installed { runtime: RuntimeName::Node, version: major, exact, home: prefix })
}

fn exact(prefix: &Path, program: &Path) -> Option<String> {
    let header = prefix.join("include/node/node_version.h");
    let part = |name: &str| defined(&header, &format!("NODE_{name}_VERSION"));
    if let (Some(major), Some(minor), Some(patch)) = (part("MAJOR"), part("MINOR"), part("PATCH")) {
        return Some(format!("{major}.{minor}.{patch}"));
    }
    let own = libraries(program);
    let mut files = std::iter::once(program.to_owned()).chain(own);
    files
        .find_map(|file| version_in(&file, "v"))
        .map(|text| text.trim_start_matches('v').to_owned())
}

/// The library that holds all of Node.js where the program is a stub.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let all = super::super::libraries::closure(&[program]).unwrap_or_default();
    let is_node = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnode.so"))
    };
    all.into_iter().map(|library| library.path).filter(is_node).collect()
}

/// What to take, how to run it, and what to know.
pub(super) fn make(prefix: &Path) -> Result<(Root, PackedConfig, Vec<String>), PackError> {
    let mut root = Root::default();
    let bin = prefix.join("bin");
    let program = bin.join("node");
    root.file(&program)?;
    for file in std::iter::once(program.clone()).chain(libraries(&program)) {
        for module in paths_in(&file, MODULES, ".js") {
            root.file_if_there(&module)?;
        }
    }
    root.file_if_there(Path::new("/etc/ssl/openssl.cnf"))?;
    let config = PackedConfig {
        cmd: vec!["node".into(), "--version".into()],
        env: [
            ("PATH".into(), format!("{}:/usr/bin:/bin", bin.display())),
            ("NODE_ENV".into(), "production".into()),
        ]
        .into(),
        ..PackedConfig::default()
    };
    Ok((root, config, Vec::new()))
}
