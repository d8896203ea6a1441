//! Root file systems from the programs that Debian packages put on this machine.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::layer::LayerBuilder;

const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\n\
                      nginx:x:101:101:nginx:/nonexistent:/sbin/nologin\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\nnginx:x:101:\nnogroup:x:65534:\n";

/// What nearly every program expects: users, groups and places to write.
pub(super) fn skeleton() -> LayerBuilder {
    LayerBuilder::new()
        .file("/etc/passwd", 0o644, PASSWD.as_bytes())
        .file("/etc/group", 0o644, GROUP.as_bytes())
        .file("/etc/nsswitch.conf", 0o644, b"passwd: files\ngroup: files\nhosts: files dns\n")
        .directory("/root", 0o700)
        .directory("/run", 0o755)
        .directory("/tmp", 0o1777)
        .directory("/var/tmp", 0o1777)
}

/// Adds a program at its own path, with the shared libraries and the loader it names.
pub(super) fn program(mut layer: LayerBuilder, path: &str) -> io::Result<LayerBuilder> {
    let file = installed(path)?;
    for library in libraries(&file)? {
        let name = library.to_string_lossy().into_owned();
        layer = layer.copy(&library, &name)?;
    }
    layer.copy(&file, path)
}

/// Adds the libraries that the shared objects of a folder name (Python's extension modules).
pub(super) fn libraries_of_folder(
    mut layer: LayerBuilder,
    folder: &Path,
) -> io::Result<LayerBuilder> {
    let mut all = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "so") {
            all.extend(libraries(&path)?);
        }
    }
    for library in all {
        let name = library.to_string_lossy().into_owned();
        layer = layer.copy(&library, &name)?;
    }
    Ok(layer)
}

/// The file, or an error that says what to do.
pub(super) fn installed(path: &str) -> io::Result<PathBuf> {
    let file = PathBuf::from(path);
    if file.exists() {
        return Ok(file);
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("{path} is not installed; `cargo xtask prepare` installs what tests need"),
    ))
}

/// Absolute paths in what `ldd` prints; none for a static program.
fn libraries(file: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(file).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}
