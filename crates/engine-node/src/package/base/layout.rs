//! A base as an OCI layout, for the image store to take in.
//!
//! Format: OCI image specification, "Image Layout", "Image Manifest", "Image Configuration".

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};
use stead_core::api::package::PackedConfig;
use stead_core::ids::Digest;

use super::super::error::PackError;
use super::super::tar::Layer;
use crate::hash::{Hashing, digest_of};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Not compressed: it goes no further than to the store beside it.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes an image of one layer into the empty folder at `path`.
///
/// # Errors
/// When a file of it cannot be read, or the folder not be written.
pub(crate) fn write_layout(
    layer: &Layer,
    config: &PackedConfig,
    path: &Path,
) -> Result<(), PackError> {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(PackError::io(&blobs))?;
    let unnamed = path.join("layer");
    let file = File::create(&unnamed).map_err(PackError::io(&unnamed))?;
    let mut out = Hashing::new(BufWriter::with_capacity(1 << 20, file));
    layer.write(&mut out)?;
    out.flush().map_err(PackError::io(&unnamed))?;
    let (layer, size) = out.finish();
    let named = blobs.join(layer.hex());
    fs::rename(&unnamed, &named).map_err(PackError::io(&named))?;

    let keep = |value: &Value| -> Result<(Digest, usize), PackError> {
        let bytes = value.to_string();
        let digest = digest_of(&bytes);
        let path = blobs.join(digest.hex());
        fs::write(&path, &bytes).map_err(PackError::io(&path))?;
        Ok((digest, bytes.len()))
    };
    let descriptor = |kind: &str, digest: &Digest, size: u64| json!({ "mediaType": kind, "digest": digest.to_string(), "size": size });
    let (config, config_size) = keep(&stored(config, &layer))?;
    let (manifest, manifest_size) = keep(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor(CONFIG, &config, config_size as u64),
        "layers": [descriptor(LAYER, &layer, size)],
    }))?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [descriptor(MANIFEST, &manifest, manifest_size as u64)],
    });
    for (name, value) in
        [("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })), ("index.json", index)]
    {
        let path = path.join(name);
        fs::write(&path, value.to_string()).map_err(PackError::io(&path))?;
    }
    Ok(())
}

fn stored(config: &PackedConfig, layer: &Digest) -> Value {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let env: Vec<String> =
        config.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    json!({
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "Env": env,
            "User": config.user,
            "WorkingDir": config.working_dir,
            "Labels": config.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [layer.to_string()] },
    })
}
