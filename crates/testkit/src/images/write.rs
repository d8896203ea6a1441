//! Images on disk: OCI layout folder, OCI archive, `docker save` archive.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::{INDEX_TYPE, Image, MANIFEST_TYPE, descriptor, digest, to_json};

impl Image {
    /// Writes an OCI image layout into a folder, which is made.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_layout(&self, folder: &Path, tag: &str) -> io::Result<()> {
        for (path, content) in self.layout(tag) {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(path, content)?;
        }
        Ok(())
    }

    /// Writes an OCI archive: the layout as a tar.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_archive(&self, file: &Path, tag: &str) -> io::Result<()> {
        write_tar(file, self.layout(tag))
    }

    /// Writes what `docker save` writes (image specification 1.2), under the name `name:tag`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_docker_save(&self, file: &Path, name_and_tag: &str) -> io::Result<()> {
        let hex = |digest: String| digest.trim_start_matches("sha256:").to_owned();
        let mut files = Vec::new();
        let mut layers = Vec::new();
        for layer in &self.layers {
            let path = format!("{}/layer.tar", hex(layer.diff_id.clone()));
            files.push((path.clone(), layer.tar.clone()));
            layers.push(path);
        }
        let config = format!("{}.json", hex(digest(&self.config)));
        files.push((config.clone(), self.config.clone()));
        let manifest = json!([{ "Config": config, "RepoTags": [name_and_tag], "Layers": layers }]);
        files.push(("manifest.json".to_owned(), to_json(&manifest)));
        write_tar(file, files)
    }

    fn layout(&self, tag: &str) -> Vec<(String, Vec<u8>)> {
        let mut manifest = descriptor(MANIFEST_TYPE, &self.manifest);
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [manifest],
        });
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), to_json(&index)),
        ];
        let manifest = (self.digest(), self.manifest.as_slice());
        for (digest, bytes) in self.blobs().chain([manifest]) {
            files.push((format!("blobs/{}", digest.replace(':', "/")), bytes.to_vec()));
        }
        files
    }
}

fn write_tar(file: &Path, files: Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let mut tar = tar::Builder::new(io::BufWriter::new(fs::File::create(file)?));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(0);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content.as_slice())?;
    }
    tar.into_inner()?.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{LayerBuilder, Settings};
    use super::*;

    #[test]
    fn a_layout_names_what_it_holds() {
        let layer = LayerBuilder::new().file("/a", 0o644, b"a").build();
        let image = Image::new(vec![Arc::new(layer)], &Settings::run(["/a"]));
        let folder = tempfile::tempdir().unwrap();
        image.write_layout(folder.path(), "7").unwrap();

        let index = fs::read(folder.path().join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["manifests"][0]["digest"], image.digest());
        for (digest, bytes) in image.blobs() {
            let blob = folder.path().join("blobs").join(digest.replace(':', "/"));
            assert_eq!(fs::read(blob).unwrap(), bytes);
        }
    }

    #[test]
    fn a_docker_archive_names_its_layers() {
        let layer = LayerBuilder::new().file("/a", 0o644, b"a").build();
        let image = Image::new(vec![Arc::new(layer)], &Settings::run(["/a"]));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("saved.tar");
        image.write_docker_save(&file, "thing:1").unwrap();

        let mut archive = tar::Archive::new(fs::File::open(file).unwrap());
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].ends_with("/layer.tar"), "{names:?}");
        assert_eq!(names[2], "manifest.json");
    }
}
