//! Where the platform keeps what.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::settings::Settings;

/// The API's socket in the run folder; `stead_control` names it so.
pub(crate) const API_SOCKET: &str = "stead.sock";
/// What the platform was started with, in the run folder.
pub(super) const SETTINGS: &str = "platform.json";
/// The data folder where none is given.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/stead";
/// The run folder of the default data folder.
const DEFAULT_RUN_DIR: &str = "/run/stead";
/// A log above this many bytes is put aside when its process starts.
const LARGEST_LOG: u64 = 16 << 20;

/// The run folder that commands look in: `STEAD_RUN_DIR`, else the default one.
pub(crate) fn default_run_dir() -> PathBuf {
    match std::env::var_os("STEAD_RUN_DIR") {
        Some(dir) if !dir.is_empty() => dir.into(),
        _ => DEFAULT_RUN_DIR.into(),
    }
}

/// The two folders of one platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// What survives a reboot.
    pub(crate) data_dir: PathBuf,
    /// What does not: sockets, locks, process records.
    pub(crate) run_dir: PathBuf,
}

impl Layout {
    /// The folders as given. Without a data folder: the one that the run folder was last used
    /// with. Without a run folder: `STEAD_RUN_DIR`; without that, one that belongs to the data
    /// folder alone, so that several platforms can live side by side.
    pub(crate) fn new(data_dir: Option<&Path>, run_dir: Option<&Path>) -> io::Result<Self> {
        let run_dir = match run_dir {
            Some(dir) => Some(std::path::absolute(dir)?),
            None if std::env::var_os("STEAD_RUN_DIR").is_some() => Some(default_run_dir()),
            None => None,
        };
        Self::find(data_dir, run_dir)
    }

    fn find(data_dir: Option<&Path>, run_dir: Option<PathBuf>) -> io::Result<Self> {
        let default = Path::new(DEFAULT_DATA_DIR);
        match (data_dir, run_dir) {
            (None, run_dir) => {
                let run_dir = run_dir.unwrap_or_else(|| DEFAULT_RUN_DIR.into());
                let known = Settings::layout_of(&run_dir);
                Ok(known.unwrap_or_else(|| Self { data_dir: default.to_owned(), run_dir }))
            }
            (Some(data_dir), run_dir) => {
                let data_dir = std::path::absolute(data_dir)?;
                let run_dir = run_dir.unwrap_or_else(|| match data_dir == default {
                    true => DEFAULT_RUN_DIR.into(),
                    false => format!("{DEFAULT_RUN_DIR}-{}", tag(&data_dir)).into(),
                });
                Ok(Self { data_dir, run_dir })
            }
        }
    }

    /// Makes the folders, readable by their owner alone: they hold tokens and sockets.
    pub(crate) fn make(&self) -> io::Result<()> {
        for dir in [&self.data_dir, &self.run_dir, &self.log_dir(), &self.processes()] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
                io::Error::new(error.kind(), format!("{} cannot be made: {error}", dir.display()))
            })?;
        }
        Ok(())
    }

    /// A short name that no other platform on this machine has: of its cgroups, nftables
    /// table and links. At most eight characters.
    pub(crate) fn name(&self) -> String {
        if self.data_dir == Path::new(DEFAULT_DATA_DIR) {
            "stead".to_owned()
        } else {
            format!("st{}", &tag(&self.data_dir)[..6])
        }
    }

    /// The socket of the API.
    pub(crate) fn api_socket(&self) -> PathBuf {
        self.run_dir.join(API_SOCKET)
    }

    /// The folder of the processes' logs.
    pub(crate) fn log_dir(&self) -> PathBuf {
        self.data_dir.join("log")
    }

    /// The log of one process.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.log_dir().join(format!("{name}.log"))
    }

    /// Opens the log of one process for appending. A large one is put aside first.
    pub(crate) fn open_log(&self, name: &str) -> io::Result<File> {
        let path = self.log(name);
        if fs::metadata(&path).is_ok_and(|meta| meta.len() > LARGEST_LOG) {
            fs::rename(&path, path.with_extension("log.1"))?;
        }
        OpenOptions::new().create(true).append(true).mode(0o600).open(path)
    }

    /// The gateway's state: its last route table.
    pub(crate) fn gateway_state(&self) -> PathBuf {
        self.data_dir.join("gateway")
    }

    /// The lock that the supervisor holds.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run_dir.join("supervisor.lock")
    }

    /// The supervisor's pid, for a service manager.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.run_dir.join("supervisor.pid")
    }

    /// What the platform was started with.
    pub(crate) fn settings(&self) -> PathBuf {
        self.run_dir.join(SETTINGS)
    }

    /// The folder of process records.
    pub(crate) fn processes(&self) -> PathBuf {
        self.run_dir.join("processes")
    }

    /// The last lines of a process's log after its first `from` bytes, for an error message.
    pub(crate) fn tail_of_log(&self, name: &str, from: u64, lines: usize) -> String {
        let text = fs::read(self.log(name)).unwrap_or_default();
        let text = text.get(usize::try_from(from).unwrap_or(0)..).unwrap_or_default();
        let text =
            String::from_utf8_lossy(&text[text.len().saturating_sub(8 << 10)..]).into_owned();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

/// Eight hex digits that belong to a folder.
fn tag(dir: &Path) -> String {
    let hash = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Replaces a file in one step: a reader sees the old or the new content, never a part.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_side_by_side_share_no_folder_and_no_name() {
        let of = |dir: &str| Layout::find(Some(Path::new(dir)), None).unwrap();
        let (a, b) = (of("/srv/a"), of("/srv/b"));
        assert_ne!(a.run_dir, b.run_dir);
        assert_ne!(a.name(), b.name());
        assert!(a.name().len() <= 8, "it becomes part of a link's name");
        let default = of(DEFAULT_DATA_DIR);
        assert_eq!(default.name(), "stead");
        assert_eq!(default.run_dir, Path::new(DEFAULT_RUN_DIR));
        let given = Layout::new(Some(Path::new("/srv/a")), Some(Path::new("/run/x"))).unwrap();
        assert_eq!(given.run_dir, Path::new("/run/x"));
    }

    #[test]
    fn a_large_log_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let layout = Layout::new(Some(dir.path()), Some(&run)).unwrap();
        layout.make().unwrap();
        fs::write(layout.log("serve"), "one\ntwo\nthree\n").unwrap();
        layout.open_log("serve").unwrap();
        assert_eq!(layout.tail_of_log("serve", 4, 2), "two\nthree");
        assert_eq!(layout.tail_of_log("serve", 8, 2), "three");
        File::options()
            .write(true)
            .open(layout.log("serve"))
            .unwrap()
            .set_len(LARGEST_LOG + 1)
            .unwrap();
        layout.open_log("serve").unwrap();
        assert_eq!(fs::metadata(layout.log("serve")).unwrap().len(), 0);
        assert!(layout.log_dir().join("serve.log.1").exists());
    }
}
