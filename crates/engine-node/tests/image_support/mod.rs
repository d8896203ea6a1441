//! Images for tests: tar streams, good and hostile, and the documents around them.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

pub mod hostile;
pub mod registry;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use stead_core::ids::Digest;
use stead_engine_node::image::{Image, ImageError, ImageStore, Reference, StoreOptions};
use tar::Header;

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// A tar stream being written, entry by entry, checked by nobody.
#[derive(Default, Clone)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any entry: `edit` may break the header, whose checksum is set afterwards.
    pub fn raw(
        mut self,
        kind: u8,
        path: &str,
        link: &str,
        data: &[u8],
        edit: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_gnu();
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.as_old_mut().linkflag = [kind];
        header.set_size(data.len() as u64);
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.data(data)
    }

    fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.raw(b'0', path, "", data.as_ref(), |_| {})
    }

    pub fn file_with(self, path: &str, data: &str, edit: impl FnOnce(&mut Header)) -> Self {
        self.raw(b'0', path, "", data.as_bytes(), edit)
    }

    pub fn dir(self, path: &str) -> Self {
        self.raw(b'5', path, "", b"", |_| {})
    }

    pub fn dir_with(self, path: &str, edit: impl FnOnce(&mut Header)) -> Self {
        self.raw(b'5', path, "", b"", edit)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path, target, b"", |_| {})
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path, target, b"", |_| {})
    }

    /// Pax records for the entry that follows.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', "pax", "", &data, |_| {})
    }

    /// A GNU long name for the entry that follows.
    pub fn long_name(self, name: &str) -> Self {
        self.raw(b'L', "././@LongLink", "", format!("{name}\0").as_bytes(), |_| {})
    }

    /// Whole blocks, as they are.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// What was written so far, without an end.
    pub fn unfinished(self) -> Vec<u8> {
        self.0
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).unwrap()
}

/// A layer as stored, and the digest of what it decompresses to.
#[derive(Clone)]
pub struct Layer {
    pub media_type: &'static str,
    pub stored: Vec<u8>,
    pub diff_id: Digest,
}

impl Layer {
    pub fn plain(tar: Vec<u8>) -> Self {
        let diff_id = digest(&tar);
        Self { media_type: "application/vnd.oci.image.layer.v1.tar", stored: tar, diff_id }
    }

    pub fn gzip(tar: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        Self { media_type, stored: gzip(tar), diff_id: digest(tar) }
    }

    pub fn zstd(tar: &[u8]) -> Self {
        let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
        Self { media_type, stored: zstd(tar), diff_id: digest(tar) }
    }
}

/// An image's documents.
#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<Layer>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl TestImage {
    pub fn new(layers: Vec<Layer>) -> Self {
        Self::for_platform(layers, "amd64")
    }

    pub fn for_platform(layers: Vec<Layer>, architecture: &str) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {
                "Entrypoint": ["/bin/web"], "Cmd": null, "Env": ["PATH=/bin"], "User": "web",
                "WorkingDir": "/srv", "ExposedPorts": {"8080/tcp": {}}, "StopSignal": "SIGINT",
                "Labels": {"team": "x"}, "Volumes": {"/data": {}},
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        Self::with_config(layers, serde_json::to_vec(&config).unwrap())
    }

    pub fn with_config(layers: Vec<Layer>, config: Vec<u8>) -> Self {
        let list: Vec<_> =
            layers.iter().map(|layer| descriptor(layer.media_type, &layer.stored)).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": list,
        });
        Self { layers, config, manifest: serde_json::to_vec(&manifest).unwrap() }
    }

    pub fn digest(&self) -> Digest {
        digest(&self.manifest)
    }

    /// Every blob: manifest, config, layers.
    pub fn blobs(&self) -> Vec<&[u8]> {
        let layers = self.layers.iter().map(|layer| layer.stored.as_slice());
        [self.manifest.as_slice(), self.config.as_slice()].into_iter().chain(layers).collect()
    }

    /// Writes an OCI layout folder.
    pub fn write_layout(&self, folder: &Path) {
        let entry = descriptor("application/vnd.oci.image.manifest.v1+json", &self.manifest);
        write_layout(folder, &[entry], &self.blobs());
    }

    /// A `docker save` archive of the old form.
    pub fn docker_save(&self, tag: &str) -> Vec<u8> {
        let mut tar = Tar::new().file("config.json", &self.config);
        let mut places = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let place = format!("{number}/layer.tar");
            tar = tar.dir(&format!("{number}/")).file(&place, &layer.stored);
            places.push(place);
        }
        let manifest = serde_json::json!([{
            "Config": "config.json", "RepoTags": [tag], "Layers": places,
        }]);
        tar.file("manifest.json", manifest.to_string()).finish()
    }
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

pub fn write_layout(folder: &Path, entries: &[serde_json::Value], blobs: &[&[u8]]) {
    fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    for blob in blobs {
        fs::write(folder.join("blobs/sha256").join(digest(blob).hex()), blob).unwrap();
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries});
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
}

/// A store in memory, with a neighbour that nothing may touch.
pub struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        // In memory: the disk of a busy machine would make every sync wait.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/canary"), "alive").unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("store")
    }

    pub fn open(&self) -> ImageStore {
        self.open_with(options())
    }

    pub fn open_with(&self, options: StoreOptions) -> ImageStore {
        ImageStore::open(&self.root(), options).unwrap()
    }

    /// Nothing was written beside the store, nor through a link out of it.
    pub fn assert_untouched(&self) {
        assert_eq!(fs::read_to_string(self.path("outside/canary")).unwrap(), "alive");
        assert_eq!(names(&self.path("outside")), ["canary"]);
        let beside = names(self.folder.path());
        assert!(
            beside.iter().all(|name| ["outside", "store", "layout"].contains(&name.as_str())),
            "{beside:?}"
        );
    }

    /// No image, and nothing unfinished. Layers that were found right may stay for the next try.
    pub fn assert_nothing_but_layers(&self) {
        self.assert_untouched();
        for folder in ["images", "tmp"] {
            assert_eq!(names(&self.root().join(folder)), [""; 0], "{folder}");
        }
    }

    /// Nor any layer.
    pub fn assert_clean(&self) {
        self.assert_nothing_but_layers();
        assert_eq!(names(&self.root().join("layers")), [""; 0]);
    }
}

pub fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    options.platform.architecture = "amd64".into();
    options.platform.variant = None;
    options
}

pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Options whose failures fail fast.
pub fn quick() -> StoreOptions {
    let mut options = options();
    options.registry.first_pause = Duration::from_millis(1);
    options.registry.longest_pause = Duration::from_secs(5);
    options
}

pub fn web() -> TestImage {
    let base =
        Tar::new().file("etc/passwd", "web:x:1000:100::/srv:/bin/sh\n").file("bin/web", "v1");
    let top = Tar::new().file("bin/web", "v2");
    TestImage::new(vec![Layer::gzip(&base.finish()), Layer::zstd(&top.finish())])
}

/// An image whose one layer is `size` bytes of noise, so that it stays large.
pub fn large(size: usize) -> TestImage {
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    })
    .take(size)
    .collect();
    TestImage::new(vec![Layer::plain(Tar::new().file("noise", noise).finish())])
}

/// Pulls what a reference names now.
pub async fn pull(store: &ImageStore, reference: &Reference) -> Result<Arc<Image>, ImageError> {
    let digest = store.resolve(reference).await?;
    store.pull(reference, &digest, &()).await
}
