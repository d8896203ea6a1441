//! What a person hands over: an image reference, or something on this machine.
//!
//! Tells them apart without asking anybody, and turns an OCI layout folder into the archive
//! that the platform takes in. It does not look into image archives: the platform refuses what
//! is no image. What kinds of Packages there are, `package` of the engine knows.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http_body_util::StreamBody;
use hyper::body::{Body, Frame};
use stead_core::api::package::PackageKind;
use stead_core::error::{Code, UserError};
use stead_engine_node::package::recognise;
use stead_engine_node::pieces;

/// What a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// An image in a registry, or one that the platform has.
    Reference(String),
    /// An archive: `docker save` or OCI.
    Archive(PathBuf),
    /// A folder with an OCI layout.
    Layout(PathBuf),
    /// What is packed here into layers of an image.
    Package(PathBuf, PackageKind),
}

/// What works, for the hints of errors.
const WORKS: &str = "what works: an image reference, an OCI archive or layout, the output of \
                     `docker save`, a jar, a war, a program, a folder with an index.html, or a \
                     Python or Node.js project";

impl Source {
    /// Finds out what `text` names. Relative paths start at `base`.
    pub(crate) fn find(text: &str, base: &Path) -> Result<Self, UserError> {
        let path = base.join(text);
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => Self::folder(text, path),
            Ok(meta) if meta.is_file() => Self::file(text, path),
            // A pipe could be read only once, and some devices for ever.
            Ok(_) => Err(UserError::new(
                Code::NotAnImage,
                format!("{text} is neither a file nor a folder"),
                "write what it gives into a file, and name that",
            )),
            Err(_) if looks_like_path(text) => Err(UserError::new(
                Code::NotAnImage,
                format!("{text} does not exist"),
                "check the path; an image reference looks like registry.example/web:1.4",
            )),
            Err(_) => Ok(Self::Reference(text.to_owned())),
        }
    }

    fn folder(text: &str, path: PathBuf) -> Result<Self, UserError> {
        if path.join("oci-layout").is_file() {
            Ok(Self::Layout(path))
        } else if looks_like_path(text) {
            Self::package(text, path, "a folder of which stead can make no app")
        } else {
            // A folder may be called like an image; an image is what is meant more often.
            Ok(Self::Reference(text.to_owned()))
        }
    }

    fn file(text: &str, path: PathBuf) -> Result<Self, UserError> {
        let mut magic = Vec::with_capacity(512);
        let read = File::open(&path).and_then(|file| file.take(512).read_to_end(&mut magic));
        if let Err(error) = read {
            let message = format!("{text} cannot be read: {error}");
            return Err(UserError::new(Code::NotAnImage, message, "check its permissions"));
        }
        let tar = magic.get(257..262) == Some(b"ustar".as_slice());
        let gzip = magic.starts_with(&[0x1f, 0x8b]);
        let zstd = magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
        if tar || gzip || zstd {
            Ok(Self::Archive(path))
        } else {
            Self::package(text, path, "neither an image nor a package")
        }
    }

    fn package(text: &str, path: PathBuf, otherwise: &str) -> Result<Self, UserError> {
        match recognise(&path)? {
            Some(kind) => Ok(Self::Package(path, kind)),
            None => Err(UserError::new(Code::NotAnImage, format!("{text} is {otherwise}"), WORKS)),
        }
    }

    /// The image archive's bytes, read while they are sent. `None` for what is none.
    pub(crate) fn archive(
        &self,
    ) -> Option<impl Body<Data = Bytes, Error = io::Error> + Send + 'static> {
        let source = self.clone();
        let sent = matches!(self, Self::Archive(_) | Self::Layout(_));
        sent.then(|| body(move |out| source.write(out)))
    }

    fn write(&self, mut out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Reference(_) | Self::Package(..) => Ok(()),
            Self::Archive(path) => io::copy(&mut File::open(path)?, &mut out).map(drop),
            Self::Layout(path) => pack(path, out),
        }
    }
}

fn looks_like_path(text: &str) -> bool {
    const ENDINGS: [&str; 6] = [".jar", ".war", ".zip", ".tar", ".tgz", ".tar.gz"];
    let ends = |ending: &&str| text.ends_with(*ending);
    text.starts_with(['.', '/', '~']) || text.ends_with('/') || ENDINGS.iter().any(ends)
}

/// Writes the files of a layout as a tar archive. Links are left out: a layout has none.
fn pack(layout: &Path, out: &mut dyn Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    tar.follow_symlinks(false);
    for name in ["oci-layout", "index.json"] {
        tar.append_path_with_name(layout.join(name), name)?;
    }
    let blobs = Path::new("blobs/sha256");
    for entry in fs::read_dir(layout.join(blobs))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            tar.append_path_with_name(entry.path(), blobs.join(entry.file_name()))?;
        }
    }
    tar.into_inner().map(drop)
}

/// What `write` writes, on a thread of its own, as the body of a request.
pub(crate) fn body(
    write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
) -> impl Body<Data = Bytes, Error = io::Error> + Send + 'static {
    StreamBody::new(pieces::stream(write).map_ok(Frame::data))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn a_source_is_told_by_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
        write("app.jar", b"PK\x03\x04 cut off");
        write("server", b"\x7fELFrest");
        write("save.tar.gz", &[0x1f, 0x8b, 8, 0]);
        write("notes.txt", b"hello");
        fs::create_dir(dir.path().join("empty")).unwrap();
        fs::create_dir(dir.path().join("dist")).unwrap();
        write("dist/index.html", b"<p>");
        fs::create_dir(dir.path().join("nginx")).unwrap();
        let find = |text: &str| Source::find(text, dir.path());
        let code = |text: &str| find(text).unwrap_err().code;

        let package = |name: &str, kind| Ok(Source::Package(dir.path().join(name), kind));
        assert_eq!(code("app.jar"), Code::PackageRefused);
        assert_eq!(find("server"), package("server", PackageKind::Program));
        assert_eq!(find("dist/"), package("dist/", PackageKind::Site));
        assert_eq!(code("./empty"), Code::NotAnImage);
        assert_eq!(code("notes.txt"), Code::NotAnImage);
        let _pipe = std::os::unix::net::UnixListener::bind(dir.path().join("pipe")).unwrap();
        assert!(find("./pipe").unwrap_err().message.contains("neither a file nor a folder"));
        assert_eq!(code("./gone.tar"), Code::NotAnImage);
        assert_eq!(code("gone.jar"), Code::NotAnImage);
        assert_eq!(find("save.tar.gz"), Ok(Source::Archive(dir.path().join("save.tar.gz"))));
        for reference in ["nginx", "nginx:1", "127.0.0.1:5000/a/b@sha256:00"] {
            assert_eq!(find(reference), Ok(Source::Reference(reference.to_owned())));
        }
    }

    #[tokio::test]
    async fn a_layout_is_sent_as_an_archive() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        fs::write(root.join("oci-layout"), "{}").unwrap();
        fs::write(root.join("index.json"), "{}").unwrap();
        let blob = vec![7u8; (1 << 20) + 1];
        fs::write(root.join("blobs/sha256/ab"), &blob).unwrap();
        let source = Source::find("./layout", &root.join("..")).unwrap_err();
        assert_eq!(source.code, Code::NotAnImage);

        let source = Source::find(root.to_str().unwrap(), Path::new("/")).unwrap();
        let bytes = source.archive().unwrap().collect().await.unwrap().to_bytes();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            if names.last().unwrap().ends_with("ab") {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                assert!(content == blob);
            }
        }
        assert_eq!(names, ["oci-layout", "index.json", "blobs/sha256/ab"]);
    }

    #[tokio::test]
    async fn a_file_that_goes_away_ends_the_upload_with_an_error() {
        let source = Source::Archive(PathBuf::from("/nonexistent/archive.tar"));
        assert!(source.archive().unwrap().collect().await.is_err());
    }
}
