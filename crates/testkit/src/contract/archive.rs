//! What an exported image holds, read without the engine's help.
//!
//! Format: OCI image specification, "Image Layout", as a tar archive.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Read};

use serde_json::Value;

use crate::images::digest;

/// The files of one layer by path; their mode, and their content or what they point to.
pub(super) type Files = BTreeMap<String, (u32, Vec<u8>)>;

/// What is in an image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    /// Base first.
    pub(super) layers: Vec<Files>,
    /// How it is run: `config` of the image configuration.
    pub(super) run: Value,
}

impl Content {
    /// Of an OCI archive of one image.
    pub(super) fn of(archive: &[u8]) -> Result<Self, String> {
        let files = layer(archive)?;
        let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map_err(text);
        let (_, index) = files.get("index.json").ok_or("the archive has no index.json")?;
        let blob = |descriptor: &Value| {
            let name = descriptor["digest"].as_str().unwrap_or_default();
            let found = files.get(&format!("blobs/{}", name.replace(':', "/")));
            let (_, bytes) = found.ok_or_else(|| format!("the archive has no blob {name:?}"))?;
            match digest(bytes) == name && descriptor["size"] == bytes.len() {
                true => Ok(bytes.as_slice()),
                false => Err(format!("blob {name} of the archive is another one")),
            }
        };
        let manifest = json(blob(&json(index)?["manifests"][0])?)?;
        let config = json(blob(&manifest["config"])?)?;
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let layers = layers.map(|found| layer(blob(found)?)).collect::<Result<_, String>>()?;
        Ok(Self { layers, run: config["config"].clone() })
    }
}

/// The files of a tar archive.
pub(super) fn layer(tar: &[u8]) -> Result<Files, String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().map_err(text)?.map(read);
    let files: Vec<_> = entries.collect::<Result<_, _>>().map_err(text)?;
    // The root itself is a matter of taste.
    Ok(files.into_iter().filter(|(path, _)| !matches!(path.as_str(), "" | ".")).collect())
}

fn read(entry: io::Result<tar::Entry<'_, &[u8]>>) -> io::Result<(String, (u32, Vec<u8>))> {
    let mut entry = entry?;
    let path =
        entry.path()?.to_string_lossy().trim_start_matches("./").trim_matches('/').to_owned();
    let mut content = Vec::new();
    match entry.link_name_bytes() {
        Some(target) => content.extend_from_slice(&target),
        None => drop(entry.read_to_end(&mut content)?),
    }
    // What only hides another file has no mode of its own.
    let hides = path.rsplit('/').next().is_some_and(|name| name.starts_with(".wh."));
    let mode = if hides { 0 } else { entry.header().mode()? };
    Ok((path, (mode, content)))
}

fn text(error: impl Display) -> String {
    format!("the archive cannot be read: {error}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::images::{Compression, Image, LayerBuilder, Settings};

    fn content(content: &[u8], mode: u32, settings: &Settings) -> Content {
        let layer = LayerBuilder::new().file("/etc/.wh.old", 0o644, b"");
        let layer = layer.file("/etc/name", mode, content).build_as(Compression::None);
        let file = tempfile::NamedTempFile::new().unwrap();
        Image::new(vec![Arc::new(layer)], settings).write_archive(file.path(), "1").unwrap();
        Content::of(&fs::read(file.path()).unwrap()).unwrap()
    }

    #[test]
    fn an_archive_is_told_from_any_other() {
        let settings = Settings::run(["/bin/a"]);
        let one = content(b"one", 0o644, &settings);
        assert_eq!(one, content(b"one", 0o644, &settings));
        assert_eq!(one.layers[0]["etc/name"], (0o644, b"one".to_vec()));
        assert_eq!(one.layers[0]["etc/.wh.old"], (0, Vec::new()));
        assert_eq!(one.run["Entrypoint"][0], "/bin/a");
        assert_ne!(one, content(b"two", 0o644, &settings));
        assert_ne!(one, content(b"one", 0o600, &settings));
        assert_ne!(one, content(b"one", 0o644, &settings.env("A", "b")));
    }

    #[test]
    fn what_is_no_archive_of_an_image_is_refused() {
        assert!(Content::of(b"").is_err());
        let tar = LayerBuilder::new().file("/index.json", 0o644, b"{}");
        let tar = tar.build_as(Compression::None).bytes;
        assert!(Content::of(&tar).unwrap_err().contains("no blob"));
    }
}
