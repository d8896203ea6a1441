//! Layers seen as one tree, as overlayfs will show them.
//!
//! Promises: links are resolved inside the image, whatever it holds; what a higher layer hides is
//! not seen. Does not know what is looked for.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, OFlags, statat};
use rustix::io::Errno;

use super::beneath::Beneath;
use super::error::ImageError;

/// Largest file that is read, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Most links followed, as in the kernel.
const MAX_LINKS: usize = 40;

/// The layers of one image.
pub(crate) struct Tree {
    /// Topmost first.
    layers: Vec<Beneath>,
}

/// What a path is, in the topmost layer that has it.
enum Node {
    Folder,
    Link(String),
    File(OwnedFd),
    /// Something that is neither.
    Other,
    Missing,
}

/// A file of an image.
pub(crate) struct Found {
    /// Its path from the root, without links and without a leading slash.
    pub(crate) path: String,
    file: std::fs::File,
}

impl Found {
    /// Whether anybody may run it.
    pub(crate) fn is_program(&self) -> bool {
        use std::os::unix::fs::PermissionsExt;
        self.file.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
    }
}

impl Tree {
    /// Opens layers, base first.
    pub(crate) fn open(layers: &[PathBuf]) -> Result<Self, ImageError> {
        let open = |path: &PathBuf| {
            Beneath::open(path)
                .map_err(ImageError::io(format!("layer {} cannot be read", path.display())))
        };
        Ok(Self { layers: layers.iter().rev().map(open).collect::<Result<_, _>>()? })
    }

    /// The content of the file at `path`, links followed; empty if it does not exist. What is
    /// not UTF-8 in it is replaced.
    pub(crate) fn read(&self, path: &str) -> Result<String, ImageError> {
        let Some(found) = self.find(path)? else { return Ok(String::new()) };
        let mut content = Vec::new();
        found
            .file
            .take(MAX_FILE)
            .read_to_end(&mut content)
            .map_err(ImageError::io(format!("{path} of the image cannot be read")))?;
        Ok(String::from_utf8_lossy(&content).into_owned())
    }

    /// The file at `path`, links followed, if there is one.
    pub(crate) fn find(&self, path: &str) -> Result<Option<Found>, ImageError> {
        let failed = || ImageError::io(format!("{path} of the image cannot be read"));
        // Resolved so far, and what is left, last part first.
        let mut done: Vec<String> = Vec::new();
        let mut todo: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            match self.node(&done.join("/")).map_err(|e| failed()(e.into()))? {
                Node::Folder => {}
                Node::Link(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Ok(None);
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    todo.extend(target.rsplit('/').map(str::to_owned));
                }
                Node::File(file) if todo.is_empty() => {
                    let (path, file) = (done.join("/"), std::fs::File::from(file));
                    return Ok(Some(Found { path, file }));
                }
                Node::File(_) | Node::Other | Node::Missing => return Ok(None),
            }
        }
        Ok(None)
    }

    /// `path` holds no link but perhaps its last part. A layer hides those below it where it
    /// has a whiteout, an opaque folder, or something that is not a folder.
    fn node(&self, path: &str) -> Result<Node, Errno> {
        for layer in &self.layers {
            let mut hides = false;
            let ends = path.match_indices('/').map(|(i, _)| i).chain([path.len()]);
            for end in ends {
                let (prefix, is_last) = (&path[..end], end == path.len());
                let entry =
                    match layer.get_plain(prefix.as_bytes(), OFlags::PATH | OFlags::NOFOLLOW) {
                        Ok(entry) => entry,
                        Err(Errno::NOENT) => break,
                        // A folder of the layers above is something else here: hidden with all below.
                        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Node::Missing),
                        Err(errno) => return Err(errno),
                    };
                let stat = statat(&entry, "", AtFlags::EMPTY_PATH)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {
                        hides |= is_opaque(layer, prefix)?;
                        if is_last {
                            return Ok(Node::Folder);
                        }
                    }
                    _ if !is_last => return Ok(Node::Missing),
                    FileType::Symlink => {
                        let target = rustix::fs::readlinkat(&entry, "", Vec::new())?;
                        return Ok(Node::Link(target.to_string_lossy().into_owned()));
                    }
                    FileType::RegularFile => {
                        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
                        return Ok(Node::File(layer.get_plain(prefix.as_bytes(), flags)?));
                    }
                    FileType::CharacterDevice if stat.st_rdev == 0 => return Ok(Node::Missing),
                    _ => return Ok(Node::Other),
                }
            }
            if hides {
                return Ok(Node::Missing);
            }
        }
        Ok(Node::Missing)
    }
}

fn is_opaque(layer: &Beneath, folder: &str) -> Result<bool, Errno> {
    let open = layer.get_plain(folder.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut value = [0; 1];
    match rustix::fs::fgetxattr(&open, "trusted.overlay.opaque", &mut value) {
        Ok(1) => Ok(value[0] == b'y'),
        Ok(_) | Err(Errno::NODATA | Errno::NOTSUP | Errno::RANGE) => Ok(false),
        Err(errno) => Err(errno),
    }
}
