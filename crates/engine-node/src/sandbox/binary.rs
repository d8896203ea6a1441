//! The holder's program: carried inside this one, written out once per version.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The holder, linked statically by the build script.
static HOLDER: &[u8] = include_bytes!(env!("STEAD_HOLDER"));

/// Makes sure that the program is in the folder and returns its path.
///
/// The name holds a hash, so holders of an older version keep their own file.
pub(crate) fn install(folder: &Path) -> io::Result<PathBuf> {
    install_as(folder, "holder", HOLDER, 0o500)
}

/// Writes content to `folder/NAME-HASH` unless it is there already.
pub(crate) fn install_as(
    folder: &Path,
    name: &str,
    content: &[u8],
    mode: u32,
) -> io::Result<PathBuf> {
    let hash = Sha256::digest(content);
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let path = folder.join(format!("{name}-{hash}"));
    let right = |about: fs::Metadata| {
        about.len() == content.len() as u64 && about.permissions().mode() & 0o777 == mode
    };
    if fs::metadata(&path).is_ok_and(right) {
        return Ok(path);
    }
    fs::create_dir_all(folder)?;
    // Two processes may do this at once: each writes its own file, and either rename will do.
    let fresh = folder.join(format!(".{name}-{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&fresh, &path)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_copy_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = install_as(folder.path(), "thing", b"content", 0o500).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"cut").unwrap();
        assert_eq!(install_as(folder.path(), "thing", b"content", 0o500).unwrap(), path);
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o500);
    }
}
