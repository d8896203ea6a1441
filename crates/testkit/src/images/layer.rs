//! One layer: a deterministic tar, compressed or not.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use flate2::write::GzEncoder;

use super::digest;

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// gzip, the usual.
    Gzip,
    /// gzip at its hardest: for a bomb.
    GzipBest,
}

impl Compression {
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::GzipBest => "application/vnd.oci.image.layer.v1.tar+gzip",
        }
    }
}

/// A layer as it travels.
#[derive(Debug)]
pub struct Layer {
    /// The tar, compressed as `compression` says.
    pub bytes: Vec<u8>,
    /// Digest of the tar before compression.
    pub diff_id: String,
    /// How `bytes` is compressed.
    pub compression: Compression,
    /// The tar before compression, which `docker save` writes.
    pub(super) tar: Vec<u8>,
}

impl Layer {
    /// A layer of this tar, whatever it holds.
    pub fn of_tar(tar: Vec<u8>, compression: Compression) -> Self {
        let gzip = |level| gzip(&tar, level).expect("writing to memory does not fail");
        let bytes = match compression {
            Compression::None => tar.clone(),
            Compression::Gzip => gzip(flate2::Compression::fast()),
            Compression::GzipBest => gzip(flate2::Compression::best()),
        };
        Self { bytes, diff_id: digest(&tar), compression, tar }
    }

    /// Digest of the layer as it travels.
    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }
}

fn gzip(bytes: &[u8], level: flate2::Compression) -> io::Result<Vec<u8>> {
    // The default header carries no time, so equal tars give equal layers.
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes)?;
    encoder.finish()
}

#[derive(Debug)]
enum Entry {
    Directory { mode: u32, owner: u32 },
    File { mode: u32, content: Vec<u8> },
    Symlink { target: String },
}

/// Gathers the files of a layer. Parents of a file need not be named.
#[derive(Debug, Default)]
pub struct LayerBuilder {
    entries: BTreeMap<String, Entry>,
}

impl LayerBuilder {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A directory owned by root.
    #[must_use]
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.owned_directory(path, mode, 0)
    }

    /// A directory owned by this user and group id.
    #[must_use]
    pub fn owned_directory(mut self, path: &str, mode: u32, owner: u32) -> Self {
        self.entries.insert(clean(path), Entry::Directory { mode, owner });
        self
    }

    /// A regular file owned by root.
    #[must_use]
    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.entries.insert(clean(path), Entry::File { mode, content: content.to_vec() });
        self
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.entries.insert(clean(path), Entry::Symlink { target: target.to_owned() });
        self
    }

    /// A copy of a file of this machine, links followed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn copy(self, from: impl AsRef<Path>, to: &str) -> io::Result<Self> {
        let from = from.as_ref();
        let content = fs::read(from).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", from.display()))
        })?;
        let mode = fs::metadata(from)?.mode() & 0o777;
        Ok(self.file(to, mode, &content))
    }

    /// A copy of a folder of this machine, but for what `skip` says, in order of name.
    ///
    /// # Errors
    /// When the folder or something in it cannot be read.
    pub fn copy_tree(
        mut self,
        from: &Path,
        to: &str,
        skip: &dyn Fn(&Path) -> bool,
    ) -> io::Result<Self> {
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let target = format!("{to}/{name}");
            if skip(&path) {
                continue;
            }
            self = if path.is_dir() {
                self.copy_tree(&path, &target, skip)?
            } else if path.exists() {
                self.copy(&path, &target)?
            } else {
                self
            };
        }
        Ok(self)
    }

    /// The layer, compressed with gzip.
    pub fn build(self) -> Layer {
        self.build_as(Compression::Gzip)
    }

    /// The layer.
    pub fn build_as(mut self, compression: Compression) -> Layer {
        self.add_parents();
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            append(&mut tar, path, entry).expect("writing to memory does not fail");
        }
        let tar = tar.into_inner().expect("writing to memory does not fail");
        Layer::of_tar(tar, compression)
    }

    /// Names each parent directory that was not named: no reader has to guess its mode.
    fn add_parents(&mut self) {
        let paths: Vec<String> = self.entries.keys().cloned().collect();
        for path in paths {
            for (end, _) in path.match_indices('/') {
                self.entries
                    .entry(path[..end].to_owned())
                    .or_insert(Entry::Directory { mode: 0o755, owner: 0 });
            }
        }
    }
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, entry: &Entry) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match entry {
        Entry::Directory { mode, owner } => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(*mode);
            header.set_uid((*owner).into());
            header.set_gid((*owner).into());
            tar.append_data(&mut header, path, io::empty())
        }
        Entry::File { mode, content } => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content.as_slice())
        }
        Entry::Symlink { target } => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, path, target)
        }
    }
}

fn clean(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_names_parents_before_their_children() {
        let layer = LayerBuilder::new()
            .file("/usr/share/thing/a", 0o600, b"text")
            .symlink("/thing", "usr/share/thing")
            .build_as(Compression::None);
        let mut archive = tar::Archive::new(layer.bytes.as_slice());
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap())
            })
            .collect();
        let expected = [
            ("thing", 0o777),
            ("usr", 0o755),
            ("usr/share", 0o755),
            ("usr/share/thing", 0o755),
            ("usr/share/thing/a", 0o600),
        ];
        assert_eq!(found, expected.map(|(path, mode)| (path.to_owned(), mode)));
        assert_eq!(layer.diff_id, layer.digest());
    }
}
