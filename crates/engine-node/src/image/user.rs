//! Who an image's program runs as.
//!
//! Promises: names are looked up in the image's own files, seen through its layers as
//! overlayfs will show them, links resolved inside the image. Does not know the machine's
//! users.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, OFlags, statat};
use rustix::io::Errno;

use super::beneath::Beneath;
use super::error::ImageError;

/// Largest passwd or group file, bytes.
const MAX_FILE: u64 = 4 << 20;
/// Most links followed, as in the kernel.
const MAX_LINKS: usize = 40;
/// Ids above this are not mapped into a sandbox.
const MAX_ID: u32 = 65_535;

/// The ids a program runs with, as seen in its container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups; empty when the group was named.
    pub groups: Vec<u32>,
    /// The home directory, where the image knows it.
    pub home: Option<String>,
}

/// The user that `user`, of the form `[USER[:GROUP]]`, means in an image of these layers,
/// base first. Numbers need not be known to the image; names must be.
///
/// # Errors
/// [`ImageError::BadUser`] when a name is unknown, an id is out of range, or the form is
/// wrong; [`ImageError::Io`] when a layer cannot be read.
pub fn resolve_user(layers: &[PathBuf], user: &str) -> Result<User, ImageError> {
    let bad = |reason: String| ImageError::BadUser { user: user.to_owned(), reason };
    let (user_part, group_part) = match user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let user_part = if user_part.is_empty() { "0" } else { user_part };
    let image = Layers::open(layers)?;
    let passwd = image.read("etc/passwd")?;
    let group_file = image.read("etc/group")?;
    let number = |text: &str| text.parse::<u32>().ok();

    let known = lines(&passwd).find(|fields| match number(user_part) {
        Some(uid) => fields.get(2).and_then(|f| number(f)) == Some(uid),
        None => fields[0] == user_part,
    });
    let (uid, own_gid) = match (&known, number(user_part)) {
        (Some(fields), _) => {
            let id = |i: usize| fields.get(i).and_then(|field| number(field));
            id(2)
                .zip(id(3))
                .ok_or_else(|| bad("its line in the image's /etc/passwd is malformed".into()))?
        }
        (None, Some(uid)) => (uid, 0),
        (None, None) => {
            return Err(bad(format!("{user_part:?} is not in the image's /etc/passwd")));
        }
    };
    let mut found = User { uid, gid: own_gid, ..User::default() };
    if let Some(fields) = &known {
        found.home = fields.get(5).filter(|home| !home.is_empty()).map(|home| (*home).to_owned());
        let name = fields[0];
        if group_part.is_none() {
            found.groups = lines(&group_file)
                .filter(|fields| {
                    fields.get(3).is_some_and(|m| m.split(',').any(|m| m.trim() == name))
                })
                .filter_map(|fields| number(fields.get(2)?))
                .filter(|gid| *gid != own_gid)
                .collect();
            found.groups.sort_unstable();
            found.groups.dedup();
        }
    }
    if let Some(group) = group_part {
        let known = lines(&group_file).find(|fields| fields[0] == group);
        found.gid = match (known.and_then(|fields| number(fields.get(2)?)), number(group)) {
            (Some(gid), _) | (None, Some(gid)) => gid,
            (None, None) => return Err(bad(format!("{group:?} is not in the image's /etc/group"))),
        };
    }
    match [found.uid, found.gid].iter().chain(&found.groups).find(|id| **id > MAX_ID) {
        Some(id) => Err(bad(format!("id {id} is larger than {MAX_ID}"))),
        None => Ok(found),
    }
}

/// The fields of each line; comments and lines without fields are left out.
fn lines(file: &str) -> impl Iterator<Item = Vec<&str>> {
    file.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

/// Layers seen as one tree.
struct Layers {
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

impl Layers {
    fn open(layers: &[PathBuf]) -> Result<Self, ImageError> {
        let open = |path: &PathBuf| {
            Beneath::open(path)
                .map_err(ImageError::io(format!("layer {} cannot be read", path.display())))
        };
        Ok(Self { layers: layers.iter().rev().map(open).collect::<Result<_, _>>()? })
    }

    /// The content of the file at `path`, links followed; empty if it does not exist. What is
    /// not UTF-8 in it is replaced.
    fn read(&self, path: &str) -> Result<String, ImageError> {
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
                        return Ok(String::new());
                    }
                    done.pop();
                    if target.starts_with('/') {
                        done.clear();
                    }
                    todo.extend(target.rsplit('/').map(str::to_owned));
                }
                Node::File(file) if todo.is_empty() => {
                    let mut content = Vec::new();
                    let file = std::fs::File::from(file);
                    file.take(MAX_FILE).read_to_end(&mut content).map_err(failed())?;
                    return Ok(String::from_utf8_lossy(&content).into_owned());
                }
                Node::File(_) | Node::Other | Node::Missing => return Ok(String::new()),
            }
        }
        Ok(String::new())
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
