//! Folders that are no longer needed: moved aside at once, deleted in the background.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

/// The folder things are moved to, on the same file system as they are.
#[derive(Debug, Clone)]
pub(crate) struct Trash {
    folder: PathBuf,
    wake: mpsc::UnboundedSender<()>,
}

impl Trash {
    /// Starts to delete what an earlier run left, and then whatever comes.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let (wake, mut woken) = mpsc::unbounded_channel();
        let emptied = folder.clone();
        tokio::spawn(async move {
            loop {
                let emptied = emptied.clone();
                let _ = tokio::task::spawn_blocking(move || empty(&emptied)).await;
                if woken.recv().await.is_none() {
                    return;
                }
            }
        });
        let _ = wake.send(());
        Ok(Self { folder, wake })
    }

    /// Moves a folder here. It is no error if there is none.
    pub(crate) fn throw(&self, folder: &Path) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{unique}", std::process::id(), crate::clock::now().0);
        match fs::rename(folder, self.folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                let _ = self.wake.send(());
                Ok(())
            }
        }
    }
}

fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Err(error) = fs::remove_dir_all(entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "trash is not deleted yet");
        }
    }
}
