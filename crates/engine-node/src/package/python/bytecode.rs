//! Byte code, so that a Container need not compile what it starts: its user may not write it.
//!
//! Promises: it never checks its source, so times of files do not matter; it names the paths of
//! the image. It is made by an interpreter of the base's version or not at all. Files that do
//! not compile are left to say so when they are used.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};
use stead_core::ids::Digest;

use super::PROJECT;
use super::interpreter::Interpreter;
use crate::package::error::PackError;
use crate::package::ignore::{Found, Kind};
use crate::package::kept::Kept;
use crate::package::pack::PackOptions;
use crate::package::tool;

/// Compiles what lies in `folder` and will lie at `place` in the image.
pub(super) fn compile(
    interpreter: &Interpreter,
    folder: &Path,
    place: &str,
) -> Result<(), PackError> {
    let mut command = Command::new(&interpreter.program);
    command.args(["-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]);
    command.arg("-s").arg(folder).args(["-p", place]).arg(folder);
    match tool::run(&mut command, "python", "") {
        // Some packages ship files for other versions.
        Ok(_) | Err(PackError::Tool { .. }) => Ok(()),
        Err(other) => Err(other),
    }
}

/// A folder with the byte code of the project at `root`, of which `found` is packed, in the same
/// folders. It is kept, and made once for the same sources.
pub(super) fn of_project(
    interpreter: &Interpreter,
    root: &Path,
    found: &[Found],
    options: &PackOptions,
) -> Result<PathBuf, PackError> {
    let is_source = |found: &&Found| {
        matches!(found.kind, Kind::File { .. }) && found.path.extension().is_some_and(|e| e == "py")
    };
    let sources: Vec<&Path> =
        found.iter().filter(is_source).map(|found| found.path.as_path()).collect();
    let mut hash = Sha256::new();
    hash.update(format!("{:?}", interpreter.version));
    for path in &sources {
        let from = root.join(path);
        let text = fs::read(&from).map_err(PackError::io(&from))?;
        hash.update(format!("{}\0{}\0", path.display(), text.len()));
        hash.update(&text);
    }
    let key = Digest::from_sha256(hash.finalize().into());
    Kept::open(&options.cache, "python-code")?.get(key.hex(), |folder| {
        fs::create_dir_all(folder).map_err(PackError::io(folder))?;
        let at = |path: &&Path| folder.join(path);
        for path in &sources {
            let to = at(path);
            let above = to.parent().unwrap_or(folder);
            fs::create_dir_all(above).map_err(PackError::io(above))?;
            fs::copy(root.join(path), &to).map_err(PackError::io(&to))?;
        }
        compile(interpreter, folder, PROJECT)?;
        for path in sources.iter().map(at) {
            fs::remove_file(&path).map_err(PackError::io(&path))?;
        }
        Ok(())
    })
}
