//! The files of a base: what was chosen, each link on the way to it, and the libraries all of
//! it needs.
//!
//! Promises: everything is where it is on this machine, so links lead where they led; nothing
//! is taken that not everybody on this machine may read. Does not know what is chosen, or
//! why.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::elf::{Elf, Kind, Machine};
use super::super::error::PackError;
use super::super::libraries::{self, Content as Library};
use super::super::system;
use super::super::tar::{Layer, Node, Tree};

/// Most files of a base; a JDK has hundreds, CPython a few thousand.
const MAX_FILES: usize = 50_000;
/// The bit of a file that everybody may read. A runtime's files have it; a link in one to
/// something else of the machine would hand that to every App.
const READ_BY_ALL: u32 = 0o004;
/// Deepest folder below one that was chosen.
const MAX_DEPTH: usize = 32;

/// What a base is made of.
#[derive(Debug, Default)]
pub(super) struct Root {
    pieces: BTreeMap<PathBuf, Library>,
    /// Folders that were walked.
    walked: BTreeSet<PathBuf>,
}

impl Root {
    /// Adds the file at `path`, with the links that lead to it.
    pub(super) fn file(&mut self, path: &Path) -> Result<(), PackError> {
        let real = self.links(path).map_err(PackError::io(path))?;
        let meta = fs::metadata(&real).map_err(PackError::io(&real))?;
        if !meta.is_file() || meta.mode() & READ_BY_ALL == 0 {
            let reason = format!("{} is no file that everybody may read", real.display());
            return Err(PackError::unfit(path, reason, "a base takes no others: see `ls -lL`"));
        }
        self.pieces.insert(real.clone(), Library::File(real));
        Ok(())
    }

    /// Adds the file at `path`, if there is one.
    pub(super) fn file_if_there(&mut self, path: &Path) -> Result<(), PackError> {
        if path.is_file() { self.file(path) } else { Ok(()) }
    }

    /// Adds a link of our own.
    pub(super) fn link(&mut self, path: &Path, target: &str) {
        self.pieces.insert(path.to_owned(), Library::Link(target.into()));
    }

    /// Adds the folder at `path`, if there is one, with what `keep` says. Links are followed,
    /// also out of the folder; those that lead nowhere are left out.
    pub(super) fn folder(
        &mut self,
        path: &Path,
        keep: &dyn Fn(&Path) -> bool,
    ) -> Result<(), PackError> {
        if !path.is_dir() {
            return Ok(());
        }
        let real = self.links(path).map_err(PackError::io(path))?;
        self.walk(&real, keep, 0)
    }

    fn walk(
        &mut self,
        folder: &Path,
        keep: &dyn Fn(&Path) -> bool,
        depth: usize,
    ) -> Result<(), PackError> {
        if !self.walked.insert(folder.to_owned()) {
            return Ok(());
        }
        if depth > MAX_DEPTH || self.pieces.len() > MAX_FILES {
            return Err(PackError::refused(folder, "it holds more than a runtime does"));
        }
        for entry in fs::read_dir(folder).map_err(PackError::io(folder))? {
            let path = entry.map_err(PackError::io(folder))?.path();
            if !keep(&path) {
                continue;
            }
            let Ok(meta) = fs::metadata(&path) else { continue };
            let real = self.links(&path).map_err(PackError::io(&path))?;
            if meta.is_dir() {
                self.walk(&real, keep, depth + 1)?;
            } else if meta.is_file() && meta.mode() & READ_BY_ALL != 0 {
                self.pieces.insert(real.clone(), Library::File(real));
            }
        }
        Ok(())
    }

    /// Adds the links on the way to `path`; gives where it leads.
    fn links(&mut self, path: &Path) -> io::Result<PathBuf> {
        let (links, real) = libraries::follow(path)?;
        self.pieces.extend(links.into_iter().map(|link| (link.path, link.content)));
        Ok(real)
    }

    /// The layer of all of it, with libraries, users, certificates and time zones. Beside it,
    /// what a person should know of libraries that are not installed.
    pub(super) fn finish(mut self, what: &str) -> Result<(Layer, Vec<String>), PackError> {
        // glibc has this locale built in since 2.35, and before that in a folder.
        self.folder(Path::new("/usr/lib/locale/C.utf8"), &|_| true)?;
        let loaded = self.loaded()?;
        let loaded: Vec<&Path> = loaded.iter().map(PathBuf::as_path).collect();
        let (found, missing) = libraries::closure_of_tree(&loaded).map_err(|error| {
            let hint = "reinstall the package that the file belongs to";
            PackError::unfit(Path::new(what), error.to_string(), hint)
        })?;
        for library in found {
            self.pieces.entry(library.path).or_insert(library.content);
        }
        let mut tree = Tree::new();
        system::add(&mut tree)?;
        for (path, piece) in self.pieces {
            let node = match piece {
                Library::Link(target) => Node::link(target),
                Library::File(source) => {
                    let meta = fs::metadata(&source).map_err(PackError::io(&source))?;
                    Node::like(&source)?.mtime(u64::try_from(meta.mtime()).unwrap_or_default())
                }
            };
            tree.add(path, node)?;
        }
        let notes = missing.into_iter().map(|missing| {
            format!("{} is not installed, so {} cannot be used", missing.name, missing.by.display())
        });
        Ok((Layer::new(what, tree), notes.collect()))
    }

    /// What the dynamic loader may be asked to load.
    fn loaded(&self) -> Result<Vec<PathBuf>, PackError> {
        let mut all = Vec::new();
        for piece in self.pieces.values() {
            let Library::File(path) = piece else { continue };
            let mut magic = Vec::with_capacity(4);
            let read = File::open(path).and_then(|file| file.take(4).read_to_end(&mut magic));
            read.map_err(PackError::io(path))?;
            if magic != b"\x7fELF" {
                continue;
            }
            match Elf::read(path) {
                Ok(Some(elf)) if elf.machine == Machine::host() && elf.kind != Kind::Other => {
                    all.push(path.clone());
                }
                // Test data of some package; nothing loads it.
                _ => {}
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_folder_is_taken_with_its_links_and_without_what_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(dir.path()).unwrap();
        let (home, outside) = (base.join("jdk"), base.join("etc"));
        fs::create_dir_all(home.join("lib/deep")).unwrap();
        fs::create_dir(&outside).unwrap();
        for path in [home.join("lib/deep/a"), home.join("lib/src.zip"), outside.join("conf")] {
            fs::write(path, "x").unwrap();
        }
        fs::write(outside.join("shadow"), "secret").unwrap();
        fs::set_permissions(outside.join("shadow"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("../../etc/conf", home.join("lib/conf")).unwrap();
        symlink(outside.join("shadow"), home.join("lib/shadow")).unwrap();
        symlink("nowhere", home.join("lib/dangling")).unwrap();
        symlink("..", home.join("lib/deep/circle")).unwrap();

        let mut root = Root::default();
        root.folder(&home.join("lib"), &|path| !path.ends_with("src.zip")).unwrap();
        let is = |path: &Path| root.pieces.get(path).cloned();
        assert_eq!(is(&outside.join("conf")), Some(Library::File(outside.join("conf"))));
        assert_eq!(is(&home.join("lib/conf")), Some(Library::Link("../../etc/conf".into())));
        assert!(is(&home.join("lib/deep/a")).is_some());
        assert_eq!(is(&outside.join("shadow")), None);
        assert_eq!(is(&home.join("lib/src.zip")), None);
        assert_eq!(is(&home.join("lib/dangling")), None);
        // Nor is one that is named itself.
        let error = root.file(&home.join("lib/shadow")).unwrap_err();
        assert!(error.to_string().contains("everybody"), "{error}");
        assert!(!root.pieces.contains_key(&outside.join("shadow")));
    }
}
