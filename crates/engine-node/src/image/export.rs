//! Images on their way out: an OCI archive, or what `docker save` writes.
//!
//! Promises: what is written is read again as the same files, by stead and by others; the same
//! image gives the same bytes; memory stays bounded. The archive's digests are its own: layers
//! are written anew from their folders, as plain archives, so another image comes of it. Does
//! not know where the bytes go.
//!
//! Formats: OCI image specification, "Image Layout"; Docker's "Image Specification v1.2".

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};
use stead_core::api::package::ArchiveFormat;
use stead_core::engine::ByteStream;
use stead_core::ids::Digest;

use super::config;
use super::error::ImageError;
use super::manifest::{Manifest, Platform};
use super::reference::Reference;
use super::retar;
use super::store::{EXPORTS, Image, ImageStore};
use crate::hash::Hashing;
use crate::pieces;

impl ImageStore {
    /// The image as one archive, under the names it has. It is held until the stream ends.
    ///
    /// # Errors
    /// When it is not here, or too many are on their way already. That a layer cannot be read
    /// ends the stream with the error.
    pub fn export(&self, digest: &Digest, format: ArchiveFormat) -> Result<ByteStream, ImageError> {
        let image =
            self.get(digest).ok_or_else(|| ImageError::NotHere { digest: digest.clone() })?;
        let turn = Arc::clone(&self.inner.exports).try_acquire_owned();
        let turn = turn.map_err(|_| ImageError::ExportsBusy { limit: EXPORTS })?;
        let names = self.list().into_iter().find(|found| found.digest == *digest);
        let names = names.map(|found| found.names).unwrap_or_default();
        let platform = self.inner.options.platform.clone();
        Ok(Box::pin(pieces::stream(move |out| {
            let _turn = turn;
            Layers::of(&image)?.write(&image, &platform, format, &names, out)
        })))
    }
}

/// The layers as archives: where they lie, what they will be.
struct Layers(Vec<(PathBuf, Digest, u64)>);

impl Layers {
    /// Measures them: a tar archive says a file's size and name before its content.
    fn of(image: &Arc<Image>) -> io::Result<Self> {
        let measure = |path: &PathBuf| {
            let mut out = Hashing::new(io::sink());
            retar::write(path, &mut out)?;
            let (digest, size) = out.finish();
            Ok((path.clone(), digest, size))
        };
        image.layers.iter().map(measure).collect::<io::Result<_>>().map(Self)
    }

    fn write(
        &self,
        image: &Image,
        platform: &Platform,
        format: ArchiveFormat,
        names: &[String],
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let diff_ids = self.0.iter().map(|(_, digest, _)| digest.clone()).collect();
        let config = config::write(&image.config, platform, diff_ids);
        let config_digest = super::digest_of(&config);
        let mut tar = Tar(out);
        match format {
            ArchiveFormat::Oci => {
                let layers = self.0.iter().map(|(_, digest, size)| (digest.clone(), *size));
                let manifest = Manifest::of_parts(
                    (config_digest.clone(), config.len() as u64),
                    layers.collect(),
                );
                let manifest = to_json(&manifest);
                let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
                tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
                tar.file("index.json", &to_json(&index(&manifest, names)))?;
                tar.file(&blob(&super::digest_of(&manifest)), &manifest)?;
                tar.file(&blob(&config_digest), &config)?;
                self.each(&mut tar, blob)?;
            }
            ArchiveFormat::Docker => {
                let place = |digest: &Digest| format!("{}/layer.tar", digest.hex());
                let config_place = format!("{}.json", config_digest.hex());
                let places: Vec<_> = self.0.iter().map(|(_, digest, _)| place(digest)).collect();
                let manifest =
                    json!([{"Config": config_place, "RepoTags": names, "Layers": places}]);
                tar.file("manifest.json", &to_json(&manifest))?;
                tar.file(&config_place, &config)?;
                self.each(&mut tar, place)?;
            }
        }
        tar.end()
    }

    /// Writes the layers where `place` says, each once.
    fn each(&self, tar: &mut Tar<'_>, place: impl Fn(&Digest) -> String) -> io::Result<()> {
        let mut written = BTreeSet::new();
        for (path, digest, size) in &self.0 {
            // Layers of the same content are one file.
            if written.insert(digest) {
                tar.header(&place(digest), *size)?;
                retar::write(path, &mut tar.0)?;
                tar.pad(*size)?;
            }
        }
        Ok(())
    }
}

/// The `index.json` of a layout with one image. Each name is an entry of its own.
fn index(manifest: &[u8], names: &[String]) -> Value {
    let entry = |annotations: Value| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": super::digest_of(manifest), "size": manifest.len(),
            "annotations": annotations,
        })
    };
    let named = |name: &String| {
        let reference: Option<Reference> = name.parse().ok();
        let tag = reference.as_ref().and_then(Reference::tag).unwrap_or("latest");
        // As Docker's and containerd's own tools write it.
        entry(json!({
            "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag,
        }))
    };
    let entries: Vec<_> = match names {
        [] => vec![entry(json!({}))],
        names => names.iter().map(named).collect(),
    };
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries})
}

fn to_json(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("it has only string keys")
}

/// Plain files in a tar archive.
struct Tar<'a>(&'a mut dyn Write);

impl Tar<'_> {
    fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.header(path, content.len() as u64)?;
        self.0.write_all(content)?;
        self.pad(content.len() as u64)
    }

    fn header(&mut self, path: &str, size: u64) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path)?;
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.0.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        self.0.write_all(&[0; 512][..(size.next_multiple_of(512) - size) as usize])
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.write_all(&[0; 1024])
    }
}
