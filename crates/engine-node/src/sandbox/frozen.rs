//! Containers that stand still: they keep their memory and use no processor.
//!
//! Guarantees: one that is frozen is seen as such after a restart of `serve`, with the moment it
//! was frozen; it can be stopped as it is. Freezing is done on the v2 tree of control groups,
//! which every host here has, so that all processes of a Container stand still at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stead_core::time::Time;
use tokio::time::timeout;

use super::held::Sandbox;
use super::{SandboxError, ViewState};
use crate::cgroup::Group;

/// How long processes may take to stand still. One in a system call that cannot be interrupted
/// does so only after it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a group that is being frozen.
const GLANCE: Duration = Duration::from_micros(200);

impl Sandbox {
    /// Stops a running Container in its tracks: it keeps its memory and uses no processor. Does
    /// nothing if it is frozen.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] if it does not run; [`SandboxError::Step`] if it cannot be
    /// frozen, and then it goes on.
    pub async fn freeze(&self, container: &str) -> Result<(), SandboxError> {
        let (pid, started) = match self.state(container)? {
            ViewState::Running { pid, started } => (pid, started),
            ViewState::Frozen { .. } => return Ok(()),
            _ => return Err(self.wrong_state(container, "does not run")),
        };
        let since = crate::clock::now();
        let note = note(&self.held().folder, container);
        let written = write_note(&note, since);
        let group = self.group(container);
        let frozen = match written.and_then(|()| group.freeze(true)) {
            Ok(()) => settled(&group, true).await,
            Err(error) => Err(error),
        };
        if let Err(error) = frozen {
            self.let_go(container);
            return Err(SandboxError::step(format!("freezing container {container}"))(error));
        }
        self.change(container, |state| {
            if matches!(state, ViewState::Running { .. }) {
                *state = ViewState::Frozen { pid, started, since };
            }
        });
        Ok(())
    }

    /// Lets a frozen Container go on. Does nothing if it is not frozen.
    ///
    /// # Errors
    /// [`SandboxError::Step`].
    pub async fn thaw(&self, container: &str) -> Result<(), SandboxError> {
        self.state(container)?;
        let group = self.group(container);
        self.let_go(container);
        let step = SandboxError::step(format!("thawing container {container}"));
        settled(&group, false).await.map_err(step)
    }

    /// Asks for thawing without waiting for it.
    pub(crate) fn let_go(&self, container: &str) {
        // One that has ended has no group, and is not frozen either.
        let _ = self.group(container).freeze(false);
        let _ = fs::remove_file(note(&self.held().folder, container));
        self.change(container, |state| {
            if let ViewState::Frozen { pid, started, .. } = *state {
                *state = ViewState::Running { pid, started };
            }
        });
    }

    /// Has the kernel take back what memory of a Container it can: caches, and with swap the
    /// rest too. Does nothing where the memory controller is not on cgroup v2.
    ///
    /// # Errors
    /// [`SandboxError::NotFound`]; [`SandboxError::Step`]. That less could be taken back than is
    /// in use is no error.
    pub async fn reclaim(&self, container: &str) -> Result<(), SandboxError> {
        self.state(container)?;
        let group = self.group(container);
        let reclaiming = tokio::task::spawn_blocking(move || group.reclaim());
        let done = reclaiming.await.map_err(io::Error::other).and_then(|done| done);
        done.map_err(SandboxError::step(format!("reclaiming memory of container {container}")))
    }
}

/// What a Container that runs, as its holder says, really is.
pub(crate) fn found(folder: &Path, container: &str, group: &Group, state: ViewState) -> ViewState {
    let ViewState::Running { pid, started } = state else { return state };
    match group.is_to_freeze() {
        Ok(true) => {
            let noted = fs::read_to_string(note(folder, container)).ok();
            let since =
                noted.and_then(|text| text.parse().ok()).map_or_else(crate::clock::now, Time);
            ViewState::Frozen { pid, started, since }
        }
        _ => state,
    }
}

async fn settled(group: &Group, frozen: bool) -> io::Result<()> {
    let done = async {
        while group.is_frozen()? != frozen {
            tokio::time::sleep(GLANCE).await;
        }
        Ok(())
    };
    timeout(PATIENCE, done).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The kernel does not tell since when a group is frozen.
fn note(folder: &Path, container: &str) -> PathBuf {
    folder.join("frozen").join(container)
}

fn write_note(note: &Path, since: Time) -> io::Result<()> {
    if let Some(folder) = note.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(note, since.0.to_string())
}
