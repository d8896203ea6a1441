//! Images from files: an OCI layout folder, an OCI archive, or what `docker save` writes.
//!
//! Promises: the file is read where it lies, its blobs are found by name within it and never
//! outside; what is read is checked like what comes from a registry. Does not know where
//! layers go.
//!
//! Formats: OCI image specification, "Image Layout"; Docker's "Image Specification v1.2",
//! `manifest.json`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Deserialize;
use stead_core::ids::Digest;

use super::archive::{Archive, Kind};
use super::beneath::Beneath;
use super::error::{ImageError, LayerError};
use super::layer::Coding;
use super::manifest::{self, Descriptor, Document, MAX_CONFIG, MAX_MANIFEST, Manifest};
use super::progress::Progress;
use super::pull::{Origin, Pull};
use super::reference::Reference;
use super::scratch::Scratch;
use super::store::{Image, ImageStore, Inner};
use crate::hash;

/// Most files in an archive; each is remembered.
const MAX_FILES: usize = 100_000;
/// Most bytes of their names.
const MAX_NAMES: usize = 16 << 20;
const PART: usize = 256 << 10;
/// Annotations that name an image within a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

impl ImageStore {
    /// The image in the file or folder at `path`, under `name`, or under the name it carries
    /// itself. Where `path` holds several, `name` says which.
    ///
    /// # Errors
    /// When it is none of the forms read, holds several images and none called `name`, or is
    /// refused for what any pull would be.
    pub async fn import(
        &self,
        path: &Path,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Arc<Image>, ImageError> {
        let (inner, owned, wanted) = (Arc::clone(&self.inner), path.to_owned(), name.cloned());
        let found = tokio::task::spawn_blocking(move || find(&inner, &owned, wanted.as_ref()));
        let Found { local, digest, own_name } =
            found.await.expect("reading an archive does not panic")?;
        let name = name.or(own_name.as_ref());
        if let Some(image) = self.inner.touch(&digest, name)? {
            return Ok(image);
        }
        let pull = Pull { inner: &self.inner, origin: Origin::Local(Arc::new(local)), progress };
        pull.run(&path.display().to_string(), &digest, name).await
    }
}

/// The image found in a file or folder.
struct Found {
    local: Local,
    digest: Digest,
    own_name: Option<Reference>,
}

/// A file or folder that images are read from.
pub(super) struct Local {
    path: PathBuf,
    source: Source,
    /// Blobs that do not lie where a layout has them.
    elsewhere: HashMap<Digest, String>,
    /// Layers that are stored compressed while their manifest names them as they are: digest
    /// and size as stored.
    compressed: HashMap<Digest, (Digest, u64)>,
    /// Documents made for an image that came without.
    made: HashMap<Digest, Vec<u8>>,
}

enum Source {
    Folder(Beneath),
    Archive {
        file: Arc<File>,
        /// Offset and size, bytes.
        files: HashMap<Vec<u8>, (u64, u64)>,
        /// Keeps the decompressed copy of a compressed archive.
        _copy: Option<Scratch>,
    },
}

/// A blob within a [`Local`], as a stream.
pub(super) struct LocalBlob {
    path: PathBuf,
    range: Range,
}

/// Bytes of a file.
#[derive(Clone)]
struct Range {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..want], self.offset)?;
        self.offset += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

impl LocalBlob {
    /// The next part, `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ImageError> {
        let mut range = self.range.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut part = vec![0; PART];
            let got = range.read(&mut part)?;
            part.truncate(got);
            Ok((range, part))
        });
        let (range, part) = read
            .await
            .expect("reading a file does not panic")
            .map_err(ImageError::io(format!("{} cannot be read", self.path.display())))?;
        self.range = range;
        Ok((!part.is_empty()).then(|| Bytes::from(part)))
    }
}

impl Local {
    /// An image of these documents whose layers lie in a folder of blobs: for each layer its
    /// digest in the manifest, and digest and size as it is stored there.
    pub(super) fn composed(
        folder: &Path,
        documents: [Vec<u8>; 2],
        layers: impl IntoIterator<Item = (Digest, (Digest, u64))>,
    ) -> Result<Self, ImageError> {
        let cannot_read = ImageError::io(format!("{} cannot be read", folder.display()));
        let compressed: HashMap<_, _> = layers.into_iter().collect();
        let places = compressed.iter().map(|(layer, (blob, _))| (layer, blob.hex().to_owned()));
        Ok(Self {
            path: folder.to_owned(),
            source: Source::Folder(Beneath::open(folder).map_err(cannot_read)?),
            elsewhere: places.map(|(layer, place)| (layer.clone(), place)).collect(),
            compressed,
            made: documents.map(|bytes| (super::digest_of(&bytes), bytes)).into(),
        })
    }

    /// Digest and size of a layer as it is stored, where its manifest names these.
    pub(super) fn stored(&self, digest: &Digest, size: u64) -> (Digest, u64) {
        self.compressed.get(digest).cloned().unwrap_or_else(|| (digest.clone(), size))
    }

    pub(super) fn manifest(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        if let Some(bytes) = self.made.get(digest) {
            return Ok(bytes.clone());
        }
        let bytes = self.read_all(&self.place(digest), MAX_MANIFEST)?;
        super::check(
            &format!("manifest in {}", self.path.display()),
            &bytes,
            digest,
            bytes.len() as u64,
        )?;
        Ok(bytes)
    }

    pub(super) fn small_blob(
        &self,
        what: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, ImageError> {
        if let Some(bytes) = self.made.get(digest) {
            return Ok(bytes.clone());
        }
        let bytes = self.read_all(&self.place(digest), MAX_CONFIG)?;
        super::check(what, &bytes, digest, size)?;
        Ok(bytes)
    }

    pub(super) fn blob(&self, digest: &Digest) -> Result<LocalBlob, ImageError> {
        let place = self.place(digest);
        Ok(LocalBlob { path: self.path.clone(), range: self.open(&place)? })
    }

    fn place(&self, digest: &Digest) -> String {
        match self.elsewhere.get(digest) {
            Some(place) => place.clone(),
            None => format!("blobs/sha256/{}", digest.hex()),
        }
    }

    fn read_all(&self, name: &str, limit: u64) -> Result<Vec<u8>, ImageError> {
        let range = self.open(name)?;
        if range.left > limit {
            return Err(self.not_an_image(format!("its {name} has more than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        let read = { range }.read_to_end(&mut bytes);
        read.map_err(ImageError::io(format!("{} cannot be read", self.path.display())))?;
        Ok(bytes)
    }

    fn open(&self, name: &str) -> Result<Range, ImageError> {
        self.find(name)?.ok_or_else(|| self.not_an_image(format!("its {name} is missing")))
    }

    fn find(&self, name: &str) -> Result<Option<Range>, ImageError> {
        let folder = match &self.source {
            Source::Folder(folder) => folder,
            Source::Archive { file, files, .. } => {
                let found = files.get(&clean(name.as_bytes()));
                return Ok(found.map(|&(offset, left)| Range {
                    file: Arc::clone(file),
                    offset,
                    left,
                }));
            }
        };
        let cannot = ImageError::io(format!("{}/{name} cannot be read", self.path.display()));
        // Not blocking: it could be a pipe.
        let file: File = match folder.get(name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(file) => file.into(),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(cannot(errno.into())),
        };
        let metadata = file.metadata().map_err(cannot)?;
        if !metadata.is_file() {
            return Err(self.not_an_image(format!("its {name} is not a file")));
        }
        Ok(Some(Range { file: Arc::new(file), offset: 0, left: metadata.len() }))
    }

    fn not_an_image(&self, reason: String) -> ImageError {
        ImageError::NotAnImage { path: self.path.clone(), reason }
    }
}

fn find(inner: &Inner, path: &Path, wanted: Option<&Reference>) -> Result<Found, ImageError> {
    let local = Local {
        path: path.to_owned(),
        source: source(inner, path)?,
        elsewhere: HashMap::new(),
        compressed: HashMap::new(),
        made: HashMap::new(),
    };
    // Docker writes both since version 25; the layout has the original digests.
    if local.find("index.json")?.is_some() {
        in_layout(local, wanted, inner)
    } else if local.find("manifest.json")?.is_some() {
        in_docker_archive(local, wanted, inner)
    } else {
        Err(local.not_an_image("it has neither index.json nor manifest.json".into()))
    }
}

/// Finds an image for `super::fuzzing`.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn find_any(store: &ImageStore, path: &Path) -> Result<(Local, Digest), ImageError> {
    find(&store.inner, path, None).map(|found| (found.local, found.digest))
}

fn in_layout(local: Local, wanted: Option<&Reference>, inner: &Inner) -> Result<Found, ImageError> {
    let bytes = local.read_all("index.json", MAX_MANIFEST)?;
    let Document::Index(entries) = Document::parse("index.json", &bytes)? else {
        return Err(local.not_an_image("its index.json is not an index".into()));
    };
    let is_called = |entry: &&Descriptor, name: &Reference| {
        let full = entry.annotations.get(CONTAINERD_NAME);
        let tag = entry.annotations.get(REF_NAME);
        full.or(tag).and_then(|text| text.parse().ok()).is_some_and(|own: Reference| own == *name)
            || (tag.is_some() && tag.map(String::as_str) == name.tag())
    };
    let named = wanted.and_then(|name| entries.iter().find(|entry| is_called(entry, name)));
    let chosen = match (named, &entries[..]) {
        (Some(named), _) => named,
        (None, [only]) => only,
        (None, []) => return Err(local.not_an_image("it holds no image".into())),
        // The variants of one image, or several images, which platforms cannot tell apart.
        // One image under several names.
        (None, [first, rest @ ..]) if rest.iter().all(|entry| entry.digest == first.digest) => {
            first
        }
        (None, several) if several.iter().all(|entry| entry.annotations.is_empty()) => {
            manifest::choose(several, &inner.options.platform)?
        }
        (None, several) => {
            let names = several
                .iter()
                .filter_map(|e| e.annotations.get(CONTAINERD_NAME).or(e.annotations.get(REF_NAME)));
            return Err(local.not_an_image(which_one(names)));
        }
    };
    let own_name = chosen.annotations.get(CONTAINERD_NAME).and_then(|name| name.parse().ok());
    Ok(Found { digest: chosen.digest.clone(), own_name, local })
}

fn in_docker_archive(
    mut local: Local,
    wanted: Option<&Reference>,
    inner: &Inner,
) -> Result<Found, ImageError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        repo_tags: Option<Vec<String>>,
        layers: Vec<String>,
    }
    let bytes = local.read_all("manifest.json", MAX_MANIFEST)?;
    let mut saved: Vec<Saved> = serde_json::from_slice(&bytes)
        .map_err(|e| local.not_an_image(format!("its manifest.json is not docker's: {e}")))?;
    let names = |saved: &Saved| -> Vec<Reference> {
        saved.repo_tags.iter().flatten().filter_map(|tag| tag.parse().ok()).collect()
    };
    let named = wanted.and_then(|name| saved.iter().position(|s| names(s).contains(name)));
    let image = match (named, saved.len()) {
        (Some(position), _) => saved.swap_remove(position),
        (None, 1) => saved.swap_remove(0),
        (None, 0) => return Err(local.not_an_image("it holds no image".into())),
        (None, _) => {
            return Err(local
                .not_an_image(which_one(saved.iter().flat_map(|s| s.repo_tags.iter().flatten()))));
        }
    };
    let config = local.read_all(&image.config, MAX_CONFIG)?;
    let config_digest = super::digest_of(&config);
    let what = format!("config in {}", local.path.display());
    let (_, diff_ids) =
        manifest::read_config(&what, &config, &inner.options.platform, image.layers.len())?;
    let mut layers = Vec::new();
    for (place, diff_id) in image.layers.iter().zip(diff_ids) {
        let range = local.open(place)?;
        let size = range.left;
        let digest = stored_digest(range, diff_id)
            .map_err(ImageError::io(format!("{} cannot be read", local.path.display())))?;
        local.elsewhere.insert(digest.clone(), place.clone());
        layers.push((digest, size));
    }
    let manifest = Manifest::of_parts((config_digest.clone(), config.len() as u64), layers);
    let manifest = serde_json::to_vec(&manifest).expect("a manifest has only string keys");
    let digest = super::digest_of(&manifest);
    local.elsewhere.insert(config_digest, image.config.clone());
    local.made.insert(digest.clone(), manifest);
    Ok(Found { local, digest, own_name: names(&image).into_iter().next() })
}

/// The digest of a layer as stored: its diff id, unless it was stored compressed.
fn stored_digest(range: Range, diff_id: Digest) -> io::Result<Digest> {
    let mut magic = Vec::new();
    range.clone().take(4).read_to_end(&mut magic)?;
    match Coding::of(&magic) {
        Coding::Plain => Ok(diff_id),
        Coding::Gzip | Coding::Zstd => hash::digest_from(range),
    }
}

fn which_one<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<_> = names.take(10).map(String::as_str).collect();
    format!("it holds several images, name one of: {}", names.join(", "))
}

fn source(inner: &Inner, path: &Path) -> Result<Source, ImageError> {
    let cannot_read = || ImageError::io(format!("{} cannot be read", path.display()));
    let not_an_image =
        |reason: &str| ImageError::NotAnImage { path: path.to_owned(), reason: reason.to_owned() };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(not_an_image("it does not exist"));
        }
        Err(error) => return Err(cannot_read()(error)),
    };
    if metadata.is_dir() {
        return Ok(Source::Folder(Beneath::open(path).map_err(cannot_read())?));
    }
    if !metadata.is_file() {
        return Err(not_an_image("it is neither a file nor a folder"));
    }
    let mut file = Arc::new(File::open(path).map_err(cannot_read())?);
    let mut copy = None;
    let mut magic = [0; 4];
    let got = file.read_at(&mut magic, 0).map_err(cannot_read())?;
    let coding = Coding::of(&magic[..got]);
    if coding != Coding::Plain {
        let scratch = inner.scratch().map_err(cannot_read())?;
        let limits = &inner.options.limits;
        let by_ratio = metadata.len().saturating_mul(limits.ratio).max(limits.ratio_from);
        let plain =
            decompress(&file, coding, &scratch, limits.bytes.min(by_ratio)).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                        ImageError::DiskFull
                    }
                    _ => not_an_image(&format!("it cannot be decompressed: {error}")),
                }
            })?;
        file = Arc::new(plain);
        copy = Some(scratch);
    }
    let files = list(&file).map_err(|error| match error {
        LayerError::Io(error) => cannot_read()(error),
        error => not_an_image(&format!("expected a tar archive, but the {error}")),
    })?;
    Ok(Source::Archive { file, files, _copy: copy })
}

fn decompress(file: &File, coding: Coding, scratch: &Scratch, limit: u64) -> io::Result<File> {
    let stored = BufReader::with_capacity(PART, file);
    let decoder: Box<dyn Read> = match coding {
        Coding::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stored)),
        Coding::Zstd => Box::new(zstd::Decoder::with_buffer(stored)?),
        Coding::Plain => Box::new(stored),
    };
    let path = scratch.path().join("archive.tar");
    let mut plain = File::create_new(&path)?;
    if io::copy(&mut decoder.take(limit + 1), &mut plain)? > limit {
        return Err(io::Error::other(format!("it grows to more than {limit} bytes")));
    }
    File::open(path)
}

/// Where each file of an archive lies. Links count as the files they lead to.
fn list(file: &File) -> Result<HashMap<Vec<u8>, (u64, u64)>, LayerError> {
    let mut archive =
        Archive::new(Counted { reader: BufReader::with_capacity(PART, file), bytes: 0 });
    let mut files = HashMap::new();
    let mut links = Vec::new();
    let mut names = 0;
    while let Some(entry) = archive.next()? {
        names += entry.path.len() + entry.link.len();
        if names > MAX_NAMES {
            let reason = format!("the names of its files exceed {MAX_NAMES} bytes");
            return Err(LayerError::TooLarge(reason));
        }
        if files.len() + links.len() == MAX_FILES {
            return Err(LayerError::TooLarge(format!("more than {MAX_FILES} files")));
        }
        let path = clean(&entry.path);
        match entry.kind {
            Kind::File if entry.extents.is_none() => {
                files.insert(path, (archive.reader().bytes, entry.size));
            }
            // Old versions of docker store a layer used twice as a link to the other one.
            Kind::Symlink => {
                let folder = path.iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
                links.push((path.clone(), clean(&[&path[..folder], &entry.link].concat())));
            }
            Kind::HardLink => links.push((path, clean(&entry.link))),
            _ => {}
        }
    }
    for (path, target) in links {
        if let Some(&place) = files.get(&target) {
            files.insert(path, place);
        }
    }
    Ok(files)
}

/// A path as a key: nothing is opened by it.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Counts what was read.
struct Counted<R> {
    reader: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.reader.read(buffer)?;
        self.bytes += got as u64;
        Ok(got)
    }
}
