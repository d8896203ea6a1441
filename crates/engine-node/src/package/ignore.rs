//! What of a folder belongs to a Package.
//!
//! Promises: the same files in the same order on every machine; what `.steadignore` names is
//! left out, by the rules of `.gitignore`, and before it what nobody means to ship; no link
//! leads out of the folder. Folders without files are left out, as in git. Does not know what
//! the files are for.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::error::PackError;
use super::tar::{Node, Tree};

/// The file that says what to leave out.
const IGNORE_FILE: &str = ".steadignore";
/// What is left out unless `.steadignore` takes it back with a `!`: what tools keep for
/// themselves, secrets of this machine, and the manifest, which is no part of the image.
const DEFAULTS: &[&str] = &[
    ".git",
    ".gitignore",
    ".hg",
    ".svn",
    ".DS_Store",
    ".#*",
    "*~",
    "*.swp",
    ".idea/",
    ".vscode/",
    ".env",
    ".env.*",
    ".envrc",
    ".npmrc",
    ".yarnrc",
    ".yarnrc.yml",
    ".pypirc",
    ".netrc",
    ".git-credentials",
    ".aws/",
    ".docker/",
    ".gnupg/",
    ".kube/",
    ".ssh/",
    "node_modules/",
    "__pycache__/",
    "*.py[co]",
    ".venv/",
    "venv/",
    ".tox/",
    ".nox/",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    "/app.yaml",
    "/.steadignore",
];
/// Most files of a Package.
const MAX_FILES: usize = 500_000;
/// Deepest folder.
const MAX_DEPTH: usize = 128;

/// A file or link that belongs to the Package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// From the folder's root.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File {
        /// Bytes.
        size: u64,
        executable: bool,
    },
    /// A symbolic link to this file or folder, from the folder's root, with no link on its way.
    Link { to: PathBuf },
}

impl Found {
    /// What a link here has to say to lead to `to`, wherever the folder lies.
    pub(super) fn relative(&self, to: &Path) -> PathBuf {
        let from = self.path.parent().unwrap_or(Path::new(""));
        let shared = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
        let up = from.components().skip(shared).map(|_| Component::ParentDir);
        let target: PathBuf = up.chain(to.components().skip(shared)).collect();
        if target.as_os_str().is_empty() { PathBuf::from(".") } else { target }
    }
}

/// The files and links of `root` that belong to the Package, sorted by path.
///
/// # Errors
/// When one cannot be read, a link leads outside or nowhere, or there are absurdly many.
pub(super) fn walk(root: &Path) -> Result<Vec<Found>, PackError> {
    walk_by(rules(root)?, root)
}

/// All files and links of `root`, sorted by path, whatever they are called: for what a tool has
/// installed.
///
/// # Errors
/// As [`walk`].
pub(super) fn walk_all(root: &Path) -> Result<Vec<Found>, PackError> {
    walk_by(Gitignore::empty(), root)
}

fn walk_by(rules: Gitignore, root: &Path) -> Result<Vec<Found>, PackError> {
    let real = fs::canonicalize(root).map_err(PackError::io(root))?;
    let mut walk = Walk { rules, root: real, found: Vec::new() };
    walk.folder(Path::new(""), 0)?;
    Ok(walk.found)
}

fn rules(root: &Path) -> Result<Gitignore, PackError> {
    let path = root.join(IGNORE_FILE);
    let written = read(root, IGNORE_FILE)?.unwrap_or_default();
    let mut builder = GitignoreBuilder::new(root);
    for (number, line) in
        DEFAULTS.iter().copied().map(|line| (0, line)).chain((1..).zip(written.lines()))
    {
        builder.add_line(None, line).map_err(|error| {
            let reason = format!("line {number} is no pattern: {error}");
            PackError::unfit(&path, reason, "write it as for .gitignore")
        })?;
    }
    let hint = "write its patterns as for .gitignore";
    builder.build().map_err(|error| PackError::unfit(&path, error.to_string(), hint))
}

/// Settings beside `.env` that an App may read by itself, left out of what was found in `root`:
/// what a person should know of them.
pub(super) fn left_out(root: &Path, found: &[Found]) -> Option<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(".env."))
        .filter(|name| found.iter().all(|found| found.path != Path::new(name)))
        .collect();
    names.sort();
    let first = names.first()?;
    let all = names.join(", ");
    Some(format!("left out, for it may hold secrets: {all} (`!{first}` in {IGNORE_FILE} takes it)"))
}

struct Walk {
    rules: Gitignore,
    /// Without links.
    root: PathBuf,
    found: Vec<Found>,
}

impl Walk {
    fn folder(&mut self, folder: &Path, depth: usize) -> Result<(), PackError> {
        let absolute = self.root.join(folder);
        let too_deep = || PackError::refused(&absolute, "its folders lie too deep");
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        let mut entries = Vec::new();
        for entry in fs::read_dir(&absolute).map_err(PackError::io(&absolute))? {
            let entry = entry.map_err(PackError::io(&absolute))?;
            let kind = entry.file_type().map_err(PackError::io(&entry.path()))?;
            entries.push((entry.file_name(), kind));
        }
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (name, kind) in entries {
            let path = folder.join(name);
            if self.rules.matched(&path, kind.is_dir()).is_ignore() {
                continue;
            }
            if kind.is_dir() {
                self.folder(&path, depth + 1)?;
            } else if kind.is_symlink() {
                let kind = Kind::Link { to: self.target(&path)? };
                self.push(Found { path, kind })?;
            } else if kind.is_file() {
                let absolute = self.root.join(&path);
                let meta = absolute.symlink_metadata().map_err(PackError::io(&absolute))?;
                let executable = meta.permissions().mode() & 0o100 != 0;
                self.push(Found { path, kind: Kind::File { size: meta.len(), executable } })?;
            }
            // Sockets, pipes and devices are no part of what is shipped.
        }
        Ok(())
    }

    fn push(&mut self, found: Found) -> Result<(), PackError> {
        if self.found.len() == MAX_FILES {
            let reason = format!("it holds more than {MAX_FILES} files");
            return Err(PackError::unfit(
                &self.root,
                reason,
                "name what to leave out in .steadignore",
            ));
        }
        self.found.push(found);
        Ok(())
    }

    /// Where a link leads, from the root.
    fn target(&self, path: &Path) -> Result<PathBuf, PackError> {
        let absolute = self.root.join(path);
        let hint = "remove the link, copy what it leads to, or name it in .steadignore";
        let target = match fs::canonicalize(&absolute) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(PackError::unfit(&absolute, "the link leads nowhere", hint));
            }
            target => target.map_err(PackError::io(&absolute))?,
        };
        target
            .strip_prefix(&self.root)
            .map(Path::to_owned)
            .map_err(|_| PackError::unfit(&absolute, "the link leads out of the folder", hint))
    }
}

/// Adds the files and links found in `root` to a layer, below `place`.
///
/// # Errors
/// When one cannot be read, or something else has its place.
pub(super) fn add(
    tree: &mut Tree,
    place: impl AsRef<Path>,
    root: &Path,
    found: &[Found],
) -> Result<(), PackError> {
    for found in found {
        let node = match &found.kind {
            Kind::File { .. } => Node::like(&root.join(&found.path))?,
            Kind::Link { to } => Node::link(found.relative(to)),
        };
        tree.add(place.as_ref().join(&found.path), node)?;
    }
    Ok(())
}

/// The text of a file in the folder; `None` when there is none.
///
/// # Errors
/// When it is there and cannot be read, or is no text.
pub(super) fn read(root: &Path, name: impl AsRef<Path>) -> Result<Option<String>, PackError> {
    let path = root.join(name);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(PackError::unfit(&path, "it is no text in UTF-8", "write it anew in UTF-8"))
        }
        read => read.map(Some).map_err(PackError::io(&path)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        walk(dir).unwrap().iter().map(|found| found.path.display().to_string()).collect()
    }

    #[test]
    fn what_nobody_means_to_ship_is_left_out() {
        let dir = folder(&[
            "b.py",
            "a/c.py",
            "a/__pycache__/c.pyc",
            ".git/HEAD",
            ".env",
            ".venv/bin/python",
            "node_modules/x/index.js",
            "app.yaml",
            "a/app.yaml",
            ".well-known/security.txt",
        ]);
        fs::create_dir(dir.path().join("empty")).unwrap();
        assert_eq!(names(dir.path()), [".well-known/security.txt", "a/app.yaml", "a/c.py", "b.py"]);
    }

    #[test]
    fn secrets_are_left_out_and_settings_among_them_are_told() {
        let secrets = [
            ".env.production",
            ".envrc",
            ".npmrc",
            "sub/.npmrc",
            ".pypirc",
            ".netrc",
            ".aws/credentials",
            ".ssh/id_ed25519",
        ];
        let dir = folder(&secrets);
        fs::write(dir.path().join("app.py"), "").unwrap();
        assert_eq!(names(dir.path()), ["app.py"]);
        let note = |dir: &Path| left_out(dir, &walk(dir).unwrap());
        let said = note(dir.path()).unwrap();
        assert!(said.contains(".env.production") && !said.contains("npmrc"), "{said}");
        fs::write(dir.path().join(IGNORE_FILE), "!.env.production\n").unwrap();
        assert_eq!(note(dir.path()), None);
    }

    #[test]
    fn steadignore_is_read_as_gitignore_and_has_the_last_word() {
        let dir = folder(&["keep.log", "x.log", "a/x.log", "doc/a", "a/doc/a", ".env", "#x"]);
        fs::write(dir.path().join(IGNORE_FILE), "*.log\n!keep.log\n# doc\n/doc/\n!.env\n\\#x\n")
            .unwrap();
        assert_eq!(names(dir.path()), [".env", "a/doc/a", "keep.log"]);
        fs::write(dir.path().join(IGNORE_FILE), "a\nb[z-a]\n").unwrap();
        let error = walk(dir.path()).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        fs::write(dir.path().join(IGNORE_FILE), b"\xff\xfe").unwrap();
        let error = walk(dir.path()).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }

    #[test]
    fn links_stay_inside_and_are_written_relative() {
        let dir = folder(&["a/b/real", "top"]);
        let root = dir.path();
        symlink(root.join("top"), root.join("a/absolute")).unwrap();
        symlink("b", root.join("a/folder")).unwrap();
        symlink("../a/b/../b/real", root.join("a/round")).unwrap();
        let found = walk(root).unwrap();
        let links = found.iter().filter_map(|found| match &found.kind {
            Kind::Link { to } => Some((found.path.to_str()?, found.relative(to))),
            Kind::File { .. } => None,
        });
        let expected = [("a/absolute", "../top"), ("a/folder", "b"), ("a/round", "b/real")];
        assert!(links.eq(expected.map(|(from, to)| (from, PathBuf::from(to)))), "{found:?}");

        symlink("/etc/passwd", root.join("out")).unwrap();
        assert!(walk(root).unwrap_err().to_string().contains("out of the folder"));
        fs::remove_file(root.join("out")).unwrap();
        symlink("gone", root.join("out")).unwrap();
        assert!(walk(root).unwrap_err().to_string().contains("nowhere"));
        fs::write(root.join(IGNORE_FILE), "out").unwrap();
        walk(root).unwrap();
    }

    #[test]
    fn what_can_be_run_is_told_and_what_is_no_file_left_out() {
        let dir = folder(&["run", "text"]);
        let run = dir.path().join("run");
        fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        let kinds: Vec<Kind> = walk(dir.path()).unwrap().into_iter().map(|f| f.kind).collect();
        let file = |executable, size| Kind::File { size, executable };
        assert_eq!(kinds, [file(true, 3), file(false, 4)]);
    }
}
