//! A layer of a Package: a tree of files, written as a tar archive.
//!
//! Promises: the same tree is the same bytes, on every machine and at every time: entries are
//! sorted, everything belongs to root, and times are those that were given. Nothing is written
//! that leads out of the tree. A file that changes while it is written is an error, never a
//! wrong archive. Does not know what the files are.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use stead_core::api::package::{PackedLayer, Upload};
use tar::{EntryType, Header};

use super::error::PackError;
use crate::hash::Hashing;

/// How hard layers are compressed: above it zstd takes long for little.
const LEVEL: i32 = 3;
/// Bytes of an entry's header; data is filled up to a multiple of it.
const BLOCK: u64 = 512;

/// One layer: what it holds, and the files.
#[derive(Debug)]
pub struct Layer {
    /// What it holds, such as `dependencies`; for people.
    pub what: String,
    tree: Tree,
}

/// Files of a layer by their path from the root.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

/// A file, folder or symbolic link.
#[derive(Debug)]
pub struct Node {
    mode: u32,
    mtime: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    Folder,
    File(Content),
    Link(PathBuf),
}

/// What a file holds.
#[derive(Clone)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What a file of this machine holds.
    File {
        /// Where it is.
        path: PathBuf,
        /// Its length, bytes.
        size: u64,
    },
    /// What something makes when it is asked.
    Made(Arc<dyn Contents>),
}

/// Makes the content of a file, the same each time.
pub trait Contents: Send + Sync {
    /// Bytes that will be written.
    fn size(&self) -> u64;

    /// Writes them.
    ///
    /// # Errors
    /// When they cannot be read, or `out` takes no more.
    fn write(&self, out: &mut dyn Write) -> Result<(), PackError>;
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, size } => write!(f, "{} ({size} bytes)", path.display()),
            other => write!(f, "{} bytes", other.size()),
        }
    }
}

impl Content {
    /// What the file at `path` holds.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn of_file(path: &Path) -> Result<Self, PackError> {
        let meta = fs::metadata(path).map_err(PackError::io(path))?;
        Ok(Self::File { path: path.to_owned(), size: meta.len() })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
            Self::Made(contents) => contents.size(),
        }
    }

    /// Writes all of it.
    pub(super) fn write(&self, out: &mut dyn Write) -> Result<(), PackError> {
        match self {
            Self::Bytes(bytes) => out.write_all(bytes).map_err(PackError::Output),
            Self::File { path, .. } => copy(path, out),
            Self::Made(contents) => contents.write(out),
        }
    }
}

/// Copies a file, telling failures of reading from those of writing.
fn copy(path: &Path, out: &mut dyn Write) -> Result<(), PackError> {
    let mut file = File::open(path).map_err(PackError::io(path))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => out.write_all(&buffer[..count]).map_err(PackError::Output)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(PackError::io(path)(error)),
        }
    }
}

impl Node {
    /// A file that everybody may read.
    pub fn file(content: Content) -> Self {
        Self { mode: 0o644, mtime: 0, what: What::File(content) }
    }

    /// A file that everybody may read and run.
    pub fn program(content: Content) -> Self {
        Self { mode: 0o755, mtime: 0, what: What::File(content) }
    }

    /// The file at `path` of this machine; it can be run if its owner can run it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn like(path: &Path) -> Result<Self, PackError> {
        let meta = fs::metadata(path).map_err(PackError::io(path))?;
        let content = Content::File { path: path.to_owned(), size: meta.len() };
        let runs = meta.permissions().mode() & 0o100 != 0;
        Ok(if runs { Self::program(content) } else { Self::file(content) })
    }

    /// A folder. Those above what is added need not be added themselves.
    pub fn folder() -> Self {
        Self { mode: 0o755, mtime: 0, what: What::Folder }
    }

    /// A symbolic link, written as it is.
    pub fn link(target: impl Into<PathBuf>) -> Self {
        Self { mode: 0o777, mtime: 0, what: What::Link(target.into()) }
    }

    /// With these permission bits, such as `0o1777`.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// Last changed so many seconds after 1970; 0 where nobody says otherwise.
    #[must_use]
    pub fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }
}

impl Tree {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts something at `path`, which starts at the root with or without a slash, and the
    /// folders above it where they are missing.
    ///
    /// # Errors
    /// When the path has a `..`, is empty, is taken, leads through what is no folder, or has a
    /// name by which images say that something is gone.
    pub fn add(&mut self, path: impl AsRef<Path>, node: Node) -> Result<(), PackError> {
        let path = path.as_ref();
        let refused = |reason: &str| Err(PackError::refused(path, reason));
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                // A whiteout (OCI image specification, "Image Layer Filesystem Changeset").
                Component::Normal(part) if part.as_encoded_bytes().starts_with(b".wh.") => {
                    return refused("a name that begins with .wh. hides other files of an image");
                }
                Component::Normal(part) => plain.push(part),
                Component::RootDir => {}
                _ => return refused("it leads out of its folder"),
            }
        }
        if plain.as_os_str().is_empty() {
            return refused("it has no name");
        }
        for above in plain.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            match self.nodes.get(above).map(|node| &node.what) {
                // Whoever added it has added those above.
                Some(What::Folder) => break,
                Some(_) => return refused("it lies below what is no folder"),
                None => drop(self.nodes.insert(above.to_owned(), Node::folder())),
            }
        }
        let folder = matches!(node.what, What::Folder);
        match self.nodes.get(&plain).map(|node| &node.what) {
            Some(What::Folder) if folder => {}
            Some(_) => return refused("it is there twice"),
            None => {}
        }
        self.nodes.insert(plain, node);
        Ok(())
    }

    /// Whether something is at `path`, which starts at the root without a slash.
    pub fn has(&self, path: &Path) -> bool {
        self.nodes.contains_key(path)
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        let sizes = self.nodes.values().map(|node| match &node.what {
            What::File(content) => content.size(),
            What::Folder | What::Link(_) => 0,
        });
        sizes.sum()
    }
}

impl Layer {
    /// The layer of these files.
    pub fn new(what: impl Into<String>, tree: Tree) -> Self {
        Self { what: what.into(), tree }
    }

    /// The layers of these files by what they hold, without those that hold nothing.
    pub(super) fn filled<W: Into<String>>(all: impl IntoIterator<Item = (W, Tree)>) -> Vec<Self> {
        let filled = all.into_iter().filter(|(_, tree)| !tree.is_empty());
        filled.map(|(what, tree)| Self::new(what, tree)).collect()
    }

    /// Bytes of its files.
    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// Writes it as a tar archive.
    ///
    /// # Errors
    /// When a file cannot be read or has changed since it was added, or `out` takes no more.
    pub fn write(&self, out: &mut dyn Write) -> Result<(), PackError> {
        let mut archive = tar::Builder::new(out);
        for (path, node) in &self.tree.nodes {
            let mut header = Header::new_gnu();
            header.set_mode(node.mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(node.mtime);
            header.set_size(0);
            match &node.what {
                What::Folder => {
                    header.set_entry_type(EntryType::Directory);
                    // The slash tells readers of the oldest format that it is a folder.
                    let path = path.join("");
                    archive
                        .append_data(&mut header, path, io::empty())
                        .map_err(PackError::Output)?;
                }
                What::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    archive.append_link(&mut header, path, target).map_err(PackError::Output)?;
                }
                What::File(content) => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(content.size());
                    // Only the header: what follows is written, not read.
                    archive
                        .append_data(&mut header, path, io::empty())
                        .map_err(PackError::Output)?;
                    fill(path, content, archive.get_mut())?;
                }
            }
        }
        archive.into_inner().map(drop).map_err(PackError::Output)
    }

    /// The digest of its archive, as it goes into a request.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn packed(&self) -> Result<PackedLayer, PackError> {
        let mut out = Hashing::new(io::sink());
        self.write(&mut out)?;
        let (diff_id, size) = out.finish();
        Ok(PackedLayer { diff_id, size, what: self.what.clone(), upload: None })
    }

    /// Writes its archive compressed to `out`; gives what has to be sent.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn compress(&self, out: impl Write) -> Result<Upload, PackError> {
        let out = Hashing::new(out);
        let mut encoder = zstd::Encoder::new(out, LEVEL).map_err(PackError::Output)?;
        self.write(&mut encoder)?;
        let mut out = encoder.finish().map_err(PackError::Output)?;
        out.flush().map_err(PackError::Output)?;
        let (digest, size) = out.finish();
        Ok(Upload { digest, size })
    }
}

/// Writes a file's data and fills up its last block.
fn fill(path: &Path, content: &Content, out: &mut dyn Write) -> Result<(), PackError> {
    let size = content.size();
    let mut exact = Exact { out, left: size, over: false };
    let written = content.write(&mut exact);
    if exact.over || (written.is_ok() && exact.left != 0) {
        return Err(PackError::refused(path, "it changed while it was packed"));
    }
    written?;
    let padding = size.next_multiple_of(BLOCK) - size;
    out.write_all(&[0; BLOCK as usize][..padding as usize]).map_err(PackError::Output)
}

/// Takes so many bytes and not one more.
struct Exact<'a> {
    out: &'a mut dyn Write,
    left: u64,
    /// There were more.
    over: bool,
}

impl Write for Exact<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            self.over = true;
            return Err(io::ErrorKind::WriteZero.into());
        }
        let count = self.out.write(bytes)?;
        self.left -= count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
impl Layer {
    /// Paths with what they hold: `NAME/`, `NAME -> TARGET`, or `NAME MODE TEXT`.
    pub(super) fn listing(&self) -> Vec<String> {
        let mut bytes = Vec::new();
        self.write(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let show = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            match entry.link_name().unwrap() {
                Some(target) => format!("{path} -> {}", target.display()),
                None if entry.header().entry_type().is_dir() => path,
                None => {
                    let mut text = Vec::new();
                    entry.read_to_end(&mut text).unwrap();
                    let mode = entry.header().mode().unwrap();
                    format!("{path} {mode:o} {}", String::from_utf8_lossy(&text))
                }
            }
        };
        archive.entries().unwrap().map(show).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{digest_from, digest_of};

    fn text(text: &str) -> Node {
        Node::file(Content::Bytes(text.into()))
    }

    #[test]
    fn the_same_tree_is_the_same_archive() {
        let add = |paths: &[&str]| {
            let mut tree = Tree::new();
            for path in paths {
                tree.add(path, text(path.trim_start_matches('/'))).unwrap();
            }
            Layer::new("files", tree)
        };
        let one = add(&["/app/b", "/app/a/c", "etc/x"]);
        let other = add(&["/etc/x", "app/a/c", "app/b"]);
        assert_eq!(one.packed().unwrap(), other.packed().unwrap());
        assert_eq!(
            one.listing(),
            ["app/", "app/a/", "app/a/c 644 app/a/c", "app/b 644 app/b", "etc/", "etc/x 644 etc/x"]
        );
    }

    #[test]
    fn compressed_it_is_what_it_says() {
        let mut tree = Tree::new();
        tree.add("a", text(&"much ".repeat(100_000))).unwrap();
        let layer = Layer::new("files", tree);
        let mut sent = Vec::new();
        let upload = layer.compress(&mut sent).unwrap();
        assert_eq!(upload.size, sent.len() as u64);
        assert_eq!(upload.digest, digest_of(&sent));
        let plain = zstd::Decoder::new(&sent[..]).unwrap();
        assert_eq!(digest_from(plain).unwrap(), layer.packed().unwrap().diff_id);
    }

    #[test]
    fn modes_times_links_and_long_names_are_kept() {
        let mut tree = Tree::new();
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
        tree.add("tmp", Node::folder().mode(0o1777)).unwrap();
        tree.add("bin/run", Node::program(Content::Bytes(vec![1])).mtime(7)).unwrap();
        tree.add("bin/link", Node::link("../../etc/x")).unwrap();
        tree.add(&long, text("long")).unwrap();
        let layer = Layer::new("files", tree);
        let listing = layer.listing();
        assert!(listing.contains(&"bin/link -> ../../etc/x".to_owned()), "{listing:?}");
        assert!(listing.contains(&format!("{long} 644 long")), "{listing:?}");
        let mut bytes = Vec::new();
        layer.write(&mut bytes).unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            match entry.path().unwrap().to_str().unwrap() {
                "tmp/" => assert_eq!(header.mode().unwrap(), 0o1777),
                "bin/run" => {
                    assert_eq!((header.mode().unwrap(), header.mtime().unwrap()), (0o755, 7))
                }
                _ => assert_eq!(header.mtime().unwrap(), 0),
            }
        }
    }

    #[test]
    fn nothing_leads_out_or_lies_twice() {
        let mut tree = Tree::new();
        tree.add("app/file", text("x")).unwrap();
        let hiding = ["app/.wh.file", "app/.wh..wh..opq", ".wh.app/x"];
        let wrong = ["../x", "app/../x", "", "/", "app/file", "app/file/x", "app"];
        for wrong in wrong.into_iter().chain(hiding) {
            assert!(tree.add(wrong, text("y")).is_err(), "{wrong}");
        }
        tree.add("app", Node::folder()).unwrap();
        assert_eq!(tree.size(), 1);
    }

    #[test]
    fn a_file_that_changes_meanwhile_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "four").unwrap();
        let mut tree = Tree::new();
        tree.add("file", Node::like(&path).unwrap()).unwrap();
        let layer = Layer::new("files", tree);
        layer.packed().unwrap();
        for other in ["shorter".split_at(2).0, "it is longer"] {
            fs::write(&path, other).unwrap();
            let error = layer.packed().unwrap_err();
            assert!(error.to_string().contains("changed"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(layer.packed(), Err(PackError::Io { .. })));
    }
}
