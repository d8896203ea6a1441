//! `stead image save`: an image into a file, or into a folder as an OCI layout.
//!
//! Promises that what has the name asked for is whole: it is written beside, checked to its
//! end, and then put in place. It writes only the names that a layout has.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use indicatif::ProgressBar;
use stead_core::error::{Code, UserError};
use tokio::sync::mpsc;

/// Pieces that may wait for the disk.
const WAITING: usize = 4;

/// Where an image goes.
pub(super) enum Target {
    /// One archive.
    File(PathBuf),
    /// An OCI layout in a folder.
    Folder(PathBuf),
}

impl Target {
    /// A path with a slash at its end, or of a folder that is there, is a folder.
    pub(super) fn of(path: PathBuf) -> Result<Self, UserError> {
        let is_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir();
        if !is_folder {
            // What is written takes the place of what is there, which must not be a device.
            if path.symlink_metadata().is_ok_and(|meta| !meta.is_file()) {
                return Err(UserError::new(
                    Code::BadRequest,
                    format!("{} is there, and is no file", path.display()),
                    "name a new file, or one to write over",
                ));
            }
            return Ok(Self::File(path));
        }
        let is_empty = fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none());
        if path.exists() && !is_empty {
            return Err(UserError::new(
                Code::BadRequest,
                format!("folder {} is not empty", path.display()),
                "name a new folder, with a slash at its end, or a file",
            ));
        }
        Ok(Self::Folder(path))
    }

    /// Writes the archive that `body` carries.
    pub(super) async fn write(self, body: Incoming, bar: &ProgressBar) -> Result<()> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let writing = tokio::task::spawn_blocking(move || {
            let pieces = Pieces { receiver, piece: Bytes::new(), ended: false };
            match self {
                Self::File(path) => archive(&path, pieces),
                Self::Folder(path) => layout(&path, pieces),
            }
        });
        let fed = feed(body, sender, bar).await;
        let written = writing.await.context("the writing was broken off")?;
        // Without its bytes the writing fails too; the network is the cause then.
        fed.and(written)
    }
}

/// Hands the body's pieces on, and an empty one at its end.
async fn feed(mut body: Incoming, sender: mpsc::Sender<Bytes>, bar: &ProgressBar) -> Result<()> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            UserError::new(
                Code::PlatformDown,
                format!("the image broke off: {error}"),
                "try again; the platform's log says more",
            )
        })?;
        let Ok(piece) = frame.into_data() else { continue };
        bar.inc(piece.len() as u64);
        if !piece.is_empty() && sender.send(piece).await.is_err() {
            // The writer says why.
            return Ok(());
        }
    }
    let _ = sender.send(Bytes::new()).await;
    Ok(())
}

fn archive(path: &Path, mut pieces: Pieces) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let cannot = || format!("{} cannot be written", path.display());
    let mut file = tempfile::Builder::new()
        .prefix(".stead-save-")
        .tempfile_in(folder.unwrap_or(Path::new(".")))
        .with_context(cannot)?;
    io::copy(&mut pieces, &mut file).with_context(cannot)?;
    file.as_file().sync_all().with_context(cannot)?;
    // As if made by anybody: the temporary file is its owner's alone.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}

fn layout(path: &Path, pieces: Pieces) -> Result<()> {
    let cannot = || format!("{} cannot be written", path.display());
    fs::create_dir_all(path.join("blobs/sha256")).with_context(cannot)?;
    let mut index = None;
    let mut archive = tar::Archive::new(pieces);
    for entry in archive.entries().with_context(cannot)? {
        let mut entry = entry.with_context(cannot)?;
        let name = entry.path().with_context(cannot)?.into_owned();
        if name == Path::new("index.json") {
            // Last: without it a folder is no layout.
            let mut content = Vec::new();
            entry.read_to_end(&mut content).with_context(cannot)?;
            index = Some(content);
        } else if name == Path::new("oci-layout") || is_blob(&name) {
            let mut file = File::create(path.join(name)).with_context(cannot)?;
            io::copy(&mut entry, &mut file).with_context(cannot)?;
        }
    }
    // The rest of the stream says whether it was all.
    io::copy(&mut archive.into_inner(), &mut io::sink()).with_context(cannot)?;
    let index = index.context("the archive has no index.json")?;
    File::create(path.join("index.json"))
        .and_then(|mut file| file.write_all(&index))
        .with_context(cannot)
}

fn is_blob(name: &Path) -> bool {
    let hex = name.strip_prefix("blobs/sha256").ok().and_then(Path::to_str);
    hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The pieces as a stream; one that ends without the empty piece broke off.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && !self.ended {
            let broke_off = || io::Error::other("the image broke off");
            self.piece = self.receiver.blocking_recv().ok_or_else(broke_off)?;
            self.ended = self.piece.is_empty();
        }
        let got = buffer.len().min(self.piece.len());
        buffer[..got].copy_from_slice(&self.piece.split_to(got));
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_told_by_its_slash_or_by_being_there() {
        let dir = tempfile::tempdir().unwrap();
        let of = |path: PathBuf| Target::of(path).map(|target| matches!(target, Target::Folder(_)));
        assert_eq!(of(dir.path().join("new.tar")), Ok(false));
        assert_eq!(of(dir.path().join("new/")), Ok(true));
        assert_eq!(of(dir.path().to_owned()), Ok(true));
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(of(dir.path().to_owned()).is_err(), "nothing of another is written over");
        assert_eq!(of(dir.path().join("file")), Ok(false));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/stdout", &link).unwrap();
        for special in [link, "/dev/null".into()] {
            assert!(of(special).is_err(), "a device would be replaced");
        }
    }

    #[test]
    fn only_what_a_layout_has_is_written() {
        let hex = "a".repeat(64);
        for (name, is) in [
            (format!("blobs/sha256/{hex}"), true),
            (format!("blobs/sha256/../{hex}"), false),
            (format!("/blobs/sha256/{hex}"), false),
            ("blobs/sha256/..".to_owned(), false),
        ] {
            assert_eq!(is_blob(Path::new(&name)), is, "{name}");
        }
    }

    #[test]
    fn what_broke_off_is_not_put_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, receiver) = mpsc::channel(4);
        sender.try_send(Bytes::from_static(b"half")).unwrap();
        drop(sender);
        let pieces = Pieces { receiver, piece: Bytes::new(), ended: false };
        assert!(archive(&dir.path().join("saved.tar"), pieces).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
