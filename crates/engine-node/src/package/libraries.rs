//! The shared libraries a program needs, found as the dynamic loader finds them.
//!
//! Promises: nothing is executed (`ldd` runs the program it is asked about); links on the way
//! to a library are kept, so that the loader finds the same files in an image that holds what
//! is listed here and nothing else: no `ld.so.cache`, no `ld.so.conf`. Does not know what a
//! program opens by itself while it runs, other than what every program of glibc may.
//!
//! Order of the search: `ld.so(8)`. What the cache would say is read from where the cache is
//! made from, `ld.so.conf`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::elf::{Elf, ElfError, Machine};

/// Most links followed on the way to one file, as in the kernel.
const MAX_LINKS: usize = 40;
/// What glibc opens by itself: to end threads, and before 2.34 to look names up.
const OPENED_BY_GLIBC: [&str; 4] =
    ["libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2"];

/// A file or link that the loader needs to find in an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Library {
    /// Its absolute path in the image.
    pub(super) path: PathBuf,
    /// What it is.
    pub(super) content: Content,
}

/// What stands at a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Content {
    /// A copy of this file of the host.
    File(PathBuf),
    /// A symbolic link with this target.
    Link(PathBuf),
}

/// Why the libraries of a program could not be listed.
#[derive(Debug, thiserror::Error)]
pub(super) enum LibraryError {
    /// A file is unreadable or damaged.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// A file given is not a program or library at all.
    #[error("{path} is not a program or a shared library", path = path.display())]
    NotElf {
        /// Which.
        path: PathBuf,
    },
    /// The loader would not find a library either.
    #[error("{name}, which {by} needs, is not installed", by = by.display())]
    Missing {
        /// The library.
        name: String,
        /// What needs it.
        by: PathBuf,
    },
    /// A path cannot be followed.
    #[error("{path} cannot be followed", path = path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What `roots`, programs or libraries, need besides themselves: libraries, their links, the
/// loader. Sorted by path. Libraries that lie beside a root rather than in a folder of the
/// system are put beside the C library: the root may be moved away from them.
///
/// # Errors
/// When one of them is missing or not readable.
pub(super) fn closure(roots: &[&Path]) -> Result<Vec<Library>, LibraryError> {
    let found = search(roots)?;
    match found.missing.into_iter().next() {
        Some(Missing { name, by }) => Err(LibraryError::Missing { name, by }),
        None => place(&found.files, Roots::Move),
    }
}

/// A library that is not installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    /// Its name.
    pub(super) name: String,
    /// What needs it.
    pub(super) by: PathBuf,
}

/// Like [`closure`] for roots that keep their places, where not everything is ever loaded:
/// what is missing is given beside.
pub(super) fn closure_of_tree(
    roots: &[&Path],
) -> Result<(Vec<Library>, Vec<Missing>), LibraryError> {
    let found = search(roots)?;
    Ok((place(&found.files, Roots::Stay)?, found.missing))
}

/// The links on the way to `path`, and the file at its end, which has none in its own path.
///
/// # Errors
/// When it leads nowhere, or in a circle.
pub(super) fn follow(path: &Path) -> io::Result<(Vec<Library>, PathBuf)> {
    let parts = |path: &Path| -> VecDeque<OsString> {
        path.components().map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut links = Vec::new();
    let mut left = parts(path);
    let mut at = PathBuf::from("/");
    while let Some(part) = left.pop_front() {
        match part.as_bytes() {
            b"." => continue,
            b".." => {
                at.pop();
                continue;
            }
            // "/" alone is absolute, and begins anew.
            _ => at.push(&part),
        }
        if !at.symlink_metadata()?.is_symlink() {
            continue;
        }
        if links.len() == MAX_LINKS {
            return Err(io::Error::other("too many symbolic links"));
        }
        let target = fs::read_link(&at)?;
        let mut before = parts(&target);
        before.append(&mut left);
        left = before;
        let link = at.clone();
        at.pop();
        links.push(Library { path: link, content: Content::Link(target) });
    }
    Ok((links, at))
}

/// Whether what needs the libraries keeps its place beside them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Roots {
    Stay,
    Move,
}

/// Where a library was found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// It is a dynamic loader, named by its whole path.
    Loader,
    /// In a folder that the system searches.
    System,
    /// In a folder named by what needs it, or by its whole path.
    Named,
}

struct Found {
    /// By the path at which the loader opens them.
    files: BTreeMap<PathBuf, How>,
    missing: Vec<Missing>,
}

/// Something whose needs have to be found.
struct Needs {
    path: PathBuf,
    elf: Elf,
    /// `DT_RPATH` of what needed it, expanded: unlike `DT_RUNPATH` it holds for all below.
    inherited: Vec<PathBuf>,
}

fn search(roots: &[&Path]) -> Result<Found, LibraryError> {
    let mut found = Found { files: BTreeMap::new(), missing: Vec::new() };
    let mut queue = VecDeque::new();
    let mut system = System::default();
    for root in roots {
        let real = fs::canonicalize(root)
            .map_err(|source| LibraryError::Path { path: root.to_path_buf(), source })?;
        let elf =
            Elf::read(&real)?.ok_or_else(|| LibraryError::NotElf { path: root.to_path_buf() })?;
        if let Some(loader) = &elf.interpreter {
            system.loader(loader);
            // A program may name any file of the machine; none but a loader goes along.
            if matches!(Elf::read(loader), Ok(Some(own)) if own.machine == elf.machine) {
                found.files.insert(loader.clone(), How::Loader);
            } else {
                found
                    .missing
                    .push(Missing { name: loader.display().to_string(), by: root.to_path_buf() });
            }
        }
        queue.push_back(Needs { path: real, elf, inherited: Vec::new() });
    }
    // A program opens its own libraries by path; what needs them then finds them loaded.
    let given: BTreeSet<_> = roots.iter().filter_map(|root| root.file_name()).collect();
    while let Some(needs) = queue.pop_front() {
        let folders = needs.folders();
        for name in &needs.elf.needed {
            if given.contains(name.as_str().as_ref() as &OsStr) || system.has_built_in(name) {
                continue;
            }
            match system.find(name, &folders, needs.elf.machine) {
                Some((path, how, elf)) => {
                    if found.files.insert(path.clone(), how).is_none() {
                        let inherited = needs.rpath();
                        queue.push_back(Needs { path, elf, inherited });
                    }
                }
                None => {
                    let missing = Missing { name: name.clone(), by: needs.path.clone() };
                    if !found.missing.contains(&missing) {
                        found.missing.push(missing);
                    }
                }
            }
        }
        if queue.is_empty() {
            queue.extend(opened_by_glibc(&mut found, &system));
        }
    }
    Ok(found)
}

/// What glibc, if it is among what was found, opens by itself and is installed.
fn opened_by_glibc(found: &mut Found, system: &System) -> Vec<Needs> {
    let is_glibc = |path: &&PathBuf| path.file_name().is_some_and(|name| name == "libc.so.6");
    let Some(glibc) = found.files.keys().find(is_glibc) else { return Vec::new() };
    let Ok(Some(Elf { machine, .. })) = Elf::read(glibc) else { return Vec::new() };
    let mut more = Vec::new();
    for name in OPENED_BY_GLIBC {
        if let Some((path, how, elf)) = system.find(name, &[], machine)
            && found.files.insert(path.clone(), how).is_none()
        {
            more.push(Needs { path, elf, inherited: Vec::new() });
        }
    }
    more
}

impl Needs {
    /// Its `DT_RPATH` and those above it, which count where it has no `DT_RUNPATH`.
    fn rpath(&self) -> Vec<PathBuf> {
        let own = if self.elf.runpath.is_empty() { &self.elf.rpath[..] } else { &[] };
        self.expand(own).chain(self.inherited.iter().cloned()).collect()
    }

    /// Folders to search before the system's.
    fn folders(&self) -> Vec<PathBuf> {
        match self.elf.runpath.is_empty() {
            true => self.rpath(),
            false => self.expand(&self.elf.runpath).collect(),
        }
    }

    /// Folders with `$ORIGIN` replaced. Others that depend on where the program is started, or
    /// on the processor, are left out.
    fn expand(&self, folders: &[String]) -> impl Iterator<Item = PathBuf> {
        let origin = self.path.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        folders
            .iter()
            .map(move |folder| folder.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin))
            .filter(|folder| folder.starts_with('/') && !folder.contains('$'))
            .map(PathBuf::from)
    }
}

/// Where the system's loader looks.
#[derive(Default)]
struct System {
    folders: Vec<PathBuf>,
    is_musl: bool,
}

impl System {
    /// Takes the habits of the first dynamic loader seen.
    fn loader(&mut self, loader: &Path) {
        if !self.folders.is_empty() {
            return;
        }
        let name = loader.file_name().unwrap_or_default().to_string_lossy();
        if let Some(machine) = name.strip_prefix("ld-musl-") {
            self.is_musl = true;
            let machine = machine.split('.').next().unwrap_or_default();
            let listed = fs::read_to_string(format!("/etc/ld-musl-{machine}.path"));
            let listed = listed.unwrap_or_else(|_| "/lib:/usr/local/lib:/usr/lib".into());
            self.folders = listed
                .split([':', '\n'])
                .filter(|folder| !folder.is_empty())
                .map(PathBuf::from)
                .collect();
        } else {
            self.folders = of_glibc();
        }
    }

    /// Whether the loader itself is that library: musl is one file.
    fn has_built_in(&self, name: &str) -> bool {
        const PARTS: [&str; 7] = ["c.", "pthread.", "rt.", "m.", "dl.", "util.", "xnet."];
        self.is_musl
            && name
                .strip_prefix("lib")
                .is_some_and(|rest| PARTS.iter().any(|part| rest.starts_with(part)))
    }

    fn find(
        &self,
        name: &str,
        folders: &[PathBuf],
        machine: Machine,
    ) -> Option<(PathBuf, How, Elf)> {
        let fits = |path: PathBuf, how| match Elf::read(&path) {
            Ok(Some(elf)) if elf.machine == machine => Some((path, how, elf)),
            // As the loader does, look on.
            _ => None,
        };
        if name.contains('/') {
            return fits(PathBuf::from(name), How::Named).filter(|(path, ..)| path.is_absolute());
        }
        let default;
        let system = match self.folders.is_empty() {
            false => &self.folders,
            // Libraries alone, without a program: the loader is that of this machine.
            true => {
                default = of_glibc();
                &default
            }
        };
        let named = folders.iter().map(|folder| (folder, How::Named));
        let system = system.iter().map(|folder| (folder, How::System));
        named.chain(system).find_map(|(folder, how)| fits(folder.join(name), how))
    }
}

/// The folders of `ld.so.conf`, then those built into glibc as Debian, Fedora and Arch do.
fn of_glibc() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    read_conf(Path::new("/etc/ld.so.conf"), &mut folders, 0);
    let triple = match Machine::host() {
        Machine::Aarch64 => "aarch64-linux-gnu",
        _ => "x86_64-linux-gnu",
    };
    for folder in ["/lib", "/usr/lib"] {
        folders.push(Path::new(folder).join(triple));
    }
    folders.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from));
    folders
}

/// Reads one file of `ldconfig(8)`. What cannot be read has no folders, as for `ldconfig`.
fn read_conf(path: &Path, folders: &mut Vec<PathBuf>, depth: usize) {
    let Ok(text) = fs::read_to_string(path) else { return };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.strip_prefix("include").filter(|rest| rest.starts_with([' ', '\t'])) {
            Some(patterns) if depth < 8 => {
                for pattern in patterns.split_whitespace() {
                    let pattern = path.parent().unwrap_or(Path::new("/")).join(pattern);
                    for included in matching(&pattern) {
                        read_conf(&included, folders, depth + 1);
                    }
                }
            }
            Some(_) => {}
            None if line.starts_with('/') => folders.push(PathBuf::from(line)),
            None => {}
        }
    }
}

/// Files that a pattern means, sorted: one `*` in the last part, as every `ld.so.conf` has it.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name()) else {
        return Vec::new();
    };
    let name = name.to_string_lossy();
    let Some((begin, end)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.len() >= begin.len() + end.len()
                && name.starts_with(begin)
                && name.ends_with(end)
                && !name.starts_with('.')
        })
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

/// Says where everything lies in the image.
fn place(files: &BTreeMap<PathBuf, How>, roots: Roots) -> Result<Vec<Library>, LibraryError> {
    let follow = |path: &Path| {
        follow(path).map_err(|source| LibraryError::Path { path: path.to_owned(), source })
    };
    // The folder that is certainly searched: the C library's, or its loader's.
    let is_libc = |path: &Path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libc.so."))
    };
    let searched = files
        .keys()
        .find(|path| is_libc(path))
        .or_else(|| files.iter().find(|(_, how)| **how == How::Loader).map(|(path, _)| path));
    let searched = match searched {
        Some(path) => follow(path)?.1.parent().map(Path::to_owned),
        None => None,
    };
    let mut all = BTreeMap::new();
    let mut moved = Vec::new();
    for (path, how) in files {
        let (links, real) = follow(path)?;
        let folder = path.parent().map(&follow).transpose()?.map(|(_, at)| at);
        let stays = match how {
            How::Loader => true,
            How::System => folder == searched || searched.is_none(),
            How::Named => folder == searched || roots == Roots::Stay,
        };
        if stays {
            all.extend(links.into_iter().map(|link| (link.path, link.content)));
            all.insert(real.clone(), Content::File(real));
        } else {
            moved.push((path, real));
        }
    }
    for (path, real) in moved {
        let (Some(searched), Some(name)) = (&searched, path.file_name()) else { continue };
        // Of several with one name, the system's own counts.
        all.entry(searched.join(name)).or_insert(Content::File(real));
    }
    Ok(all.into_iter().map(|(path, content)| Library { path, content }).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn paths(libraries: &[Library]) -> Vec<&str> {
        libraries.iter().map(|library| library.path.to_str().unwrap()).collect()
    }

    #[test]
    fn links_are_followed_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir_all(root.join("real/deep")).unwrap();
        fs::write(root.join("real/deep/lib.so.1.2"), "x").unwrap();
        symlink("real", root.join("short")).unwrap();
        symlink("../../real/deep/lib.so.1.2", root.join("real/deep/lib.so.1")).unwrap();
        symlink(root.join("short/deep/lib.so.1"), root.join("far")).unwrap();
        symlink("circle", root.join("circle")).unwrap();

        let (links, real) = follow(&root.join("far")).unwrap();
        assert_eq!(real, root.join("real/deep/lib.so.1.2"));
        let links: Vec<_> = links.iter().map(|l| l.path.strip_prefix(&root).unwrap()).collect();
        assert_eq!(links, [Path::new("far"), Path::new("short"), Path::new("real/deep/lib.so.1")]);
        assert!(follow(&root.join("circle")).is_err());
        assert!(follow(&root.join("gone")).is_err());
    }

    #[test]
    fn a_program_gets_its_loader_and_libraries() {
        let libraries = closure(&[Path::new("/proc/self/exe")]).unwrap();
        let files: Vec<_> = libraries
            .iter()
            .filter(|library| matches!(library.content, Content::File(_)))
            .collect();
        let has = |part: &str| files.iter().any(|file| file.path.to_string_lossy().contains(part));
        assert!(has("libc.so.6") && has("/ld-linux"), "{:?}", paths(&libraries));
        let loader = Elf::read(Path::new("/proc/self/exe")).unwrap().unwrap().interpreter.unwrap();
        // Each link leads to something that is listed.
        let (links, real) = follow(&loader).unwrap();
        for path in links.iter().map(|link| &link.path).chain([&real]) {
            assert!(libraries.iter().any(|library| library.path == *path), "{}", path.display());
        }
        assert!(libraries.is_sorted());
    }

    #[test]
    fn libraries_beside_a_program_are_put_where_the_loader_looks() {
        let dir = tempfile::tempdir().unwrap();
        let build = |args: &[&str]| {
            let cc = std::process::Command::new("cc").current_dir(dir.path()).args(args).status();
            assert!(cc.unwrap().success(), "cc {args:?}");
        };
        fs::create_dir(dir.path().join("lib")).unwrap();
        fs::write(dir.path().join("own.c"), "int own(void) { return 7; }").unwrap();
        fs::write(dir.path().join("main.c"), "int own(void); int main() { return own(); }")
            .unwrap();
        build(&["-shared", "-fPIC", "own.c", "-o", "lib/libown.so", "-Wl,-soname,libown.so"]);
        build(&["main.c", "-o", "main", "-Llib", "-lown", "-Wl,-rpath,$ORIGIN/lib"]);

        let main = dir.path().join("main");
        let libraries = closure(&[&main]).unwrap();
        let own = libraries.iter().find(|library| library.path.ends_with("libown.so")).unwrap();
        let libc = libraries
            .iter()
            .find(|library| library.path.to_string_lossy().ends_with("libc.so.6"))
            .unwrap();
        assert_eq!(own.path.parent(), libc.path.parent());
        let real = fs::canonicalize(dir.path().join("lib/libown.so")).unwrap();
        assert_eq!(own.content, Content::File(real));

        fs::remove_file(dir.path().join("lib/libown.so")).unwrap();
        let error = closure(&[&main]).unwrap_err();
        assert!(matches!(&error, LibraryError::Missing { name, .. } if name == "libown.so"));
        assert!(matches!(closure(&[&dir.path().join("main.c")]), Err(LibraryError::NotElf { .. })));
    }
}
