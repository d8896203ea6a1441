//! OCI images for tests, made from bytes and from the files of Debian packages.
//!
//! Promises: the same input gives the same digests, so a version is upgraded to itself without a
//! new pull; versions of one image share their base layer. No network, no container tool.
//! It does not know how stead reads images: nothing here is shared with the engine, so that a
//! mistake in the one is seen by the other.

mod catalogue;
mod debian;
mod hostile;
mod layer;
mod write;

pub use catalogue::{Catalogue, NGINX_PORT, REDIS_PORT, TRIVIAL_PORT, trivial_program};
pub use hostile::{Attack, ESCAPED, attacks};
pub use layer::{Compression, Layer, LayerBuilder};

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// `sha256:…` of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// What runs, and how: the interesting part of an OCI image configuration.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Program and arguments.
    pub entrypoint: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Working directory; empty for `/`.
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty for root.
    pub user: String,
    /// TCP port the program listens on.
    pub port: Option<u16>,
}

impl Settings {
    /// Runs this program with these arguments.
    pub fn run<const N: usize>(entrypoint: [&str; N]) -> Self {
        Self { entrypoint: entrypoint.map(str::to_owned).to_vec(), ..Self::default() }
    }

    /// Listens on this port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// With this variable in the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// An image: layers, configuration and manifest, as they travel.
#[derive(Debug, Clone)]
pub struct Image {
    /// Base first.
    pub layers: Vec<Arc<Layer>>,
    /// The image configuration, JSON.
    pub config: Vec<u8>,
    /// The image manifest, JSON.
    pub manifest: Vec<u8>,
}

impl Image {
    /// An image of these layers, base first.
    pub fn new(layers: Vec<Arc<Layer>>, settings: &Settings) -> Self {
        let diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        Self::with_diff_ids(layers, settings, diff_ids)
    }

    /// As [`Image::new`], but the configuration claims these digests of the unpacked layers:
    /// for an image that lies.
    pub fn with_diff_ids(
        layers: Vec<Arc<Layer>>,
        settings: &Settings,
        diff_ids: Vec<String>,
    ) -> Self {
        let config = to_json(&config(settings, &diff_ids));
        let layer = |layer: &Arc<Layer>| descriptor(layer.compression.media_type(), &layer.bytes);
        let manifest = to_json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, &config),
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        }));
        Self { layers, config, manifest }
    }

    /// The digest that names the image: that of its manifest.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// All blobs but the manifest, each with its digest.
    pub fn blobs(&self) -> impl Iterator<Item = (String, &[u8])> {
        let layers = self.layers.iter().map(|layer| layer.bytes.as_slice());
        layers.chain([self.config.as_slice()]).map(|bytes| (digest(bytes), bytes))
    }
}

fn config(settings: &Settings, diff_ids: &[String]) -> Value {
    let env: Vec<_> = settings.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut config = json!({ "Entrypoint": settings.entrypoint, "Env": env });
    if !settings.working_dir.is_empty() {
        config["WorkingDir"] = json!(settings.working_dir);
    }
    if !settings.user.is_empty() {
        config["User"] = json!(settings.user);
    }
    if let Some(port) = settings.port {
        let mut ports = serde_json::Map::new();
        ports.insert(format!("{port}/tcp"), json!({}));
        config["ExposedPorts"] = Value::Object(ports);
    }
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn to_json(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a JSON value can always be written")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(version: &str) -> Image {
        let base = LayerBuilder::new().file("/bin/thing", 0o755, b"program").build();
        let top = LayerBuilder::new().file("/etc/version", 0o644, version.as_bytes()).build();
        Image::new(
            vec![Arc::new(base), Arc::new(top)],
            &Settings::run(["/bin/thing"]).port(80).env("A", "b"),
        )
    }

    #[test]
    fn the_same_input_gives_the_same_digest_and_versions_share_their_base() {
        assert_eq!(image("1").digest(), image("1").digest());
        assert_ne!(image("1").digest(), image("2").digest());
        assert_eq!(image("1").layers[0].digest(), image("2").layers[0].digest());
    }

    #[test]
    fn the_manifest_names_each_blob_by_digest_and_size() {
        let image = image("1");
        let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        let mut named = manifest["layers"].as_array().unwrap().clone();
        named.push(manifest["config"].clone());
        let blobs: Vec<_> = image.blobs().collect();
        assert_eq!(named.len(), blobs.len());
        for (descriptor, (digest, bytes)) in named.iter().zip(blobs) {
            assert_eq!(descriptor["digest"], digest);
            assert_eq!(descriptor["size"], bytes.len());
        }
        let config: Value = serde_json::from_slice(&image.config).unwrap();
        assert_eq!(config["config"]["ExposedPorts"], json!({"80/tcp": {}}));
        assert_eq!(config["rootfs"]["diff_ids"][0], image.layers[0].diff_id);
    }
}
