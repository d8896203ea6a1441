//! The few files beside its libraries that a program expects of a system: users, how names are
//! looked up, certificates, time zones, a folder for temporary files.
//!
//! Promises: certificates and time zones are this machine's, if it has some; the rest is the
//! same everywhere. Does not know what will run on them.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::PackError;
use super::tar::{Content, Node, Tree};

/// Who a program runs as where nobody says otherwise, as images without a system do.
pub(super) const NONROOT: u32 = 65_532;

/// Where distributions keep all certificates in one file; the first that is there is taken.
const CERTIFICATES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where they go, and who else looks for them elsewhere: OpenSSL as Debian builds it, and as
/// others do.
const CERTIFICATES_HERE: &str = "/etc/ssl/certs/ca-certificates.crt";
const CERTIFICATE_LINKS: [(&str, &str); 2] = [
    ("/etc/ssl/cert.pem", "certs/ca-certificates.crt"),
    ("/usr/lib/ssl/cert.pem", "../../../etc/ssl/certs/ca-certificates.crt"),
];

const ZONES: &str = "/usr/share/zoneinfo";
/// Folders of it that say the same again, and with leap seconds.
const ZONES_AGAIN: [&str; 2] = ["posix", "right"];

/// Adds them to a layer.
///
/// # Errors
/// When one cannot be read, or the layer has something else in its place.
pub(super) fn add(tree: &mut Tree) -> Result<(), PackError> {
    let passwd = format!(
        "root:x:0:0:root:/root:/sbin/nologin\n\
         nonroot:x:{NONROOT}:{NONROOT}:nonroot:/tmp:/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
    );
    let group = format!("root:x:0:\nnonroot:x:{NONROOT}:\nnogroup:x:65534:\n");
    let lookups = "passwd: files\ngroup: files\nhosts: files dns\n";
    for (path, text) in
        [("passwd", passwd), ("group", group), ("nsswitch.conf", lookups.to_owned())]
    {
        tree.add(Path::new("/etc").join(path), Node::file(Content::Bytes(text.into_bytes())))?;
    }
    tree.add("/tmp", Node::folder().mode(0o1777))?;
    if let Some(path) = CERTIFICATES.iter().map(Path::new).find(|path| path.is_file()) {
        tree.add(CERTIFICATES_HERE, Node::file(Content::of_file(path)?))?;
        for (path, target) in CERTIFICATE_LINKS {
            tree.add(path, Node::link(target))?;
        }
    }
    zones(tree, Path::new(ZONES), 0)
}

/// Adds the zones of a folder. A machine without them is in UTC.
fn zones(tree: &mut Tree, folder: &Path, depth: u32) -> Result<(), PackError> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let paths: Result<Vec<PathBuf>, _> = entries.map(|entry| Ok(entry?.path())).collect();
    for path in paths.map_err(PackError::io(folder))? {
        let again = ZONES_AGAIN.iter().any(|name| path == Path::new(ZONES).join(name));
        let meta = path.symlink_metadata().map_err(PackError::io(&path))?;
        // Aliases are links; `localtime` is one that leads to this machine's own zone.
        let real = fs::canonicalize(&path).ok().filter(|real| real.starts_with(ZONES));
        if meta.is_dir() && !again && depth < 4 {
            zones(tree, &path, depth + 1)?;
        } else if meta.is_file() {
            tree.add(&path, Node::file(Content::of_file(&path)?))?;
        } else if meta.is_symlink()
            && let Some(target) = real.filter(|real| real.is_file())
        {
            tree.add(&path, Node::file(Content::of_file(&target)?))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tar::Layer;
    use super::*;

    #[test]
    fn users_names_and_a_folder_for_temporary_files_are_there() {
        let mut tree = Tree::new();
        add(&mut tree).unwrap();
        let listing = Layer::new("system", tree).listing();
        assert!(listing.contains(&"tmp/".to_owned()));
        for file in ["etc/passwd 644 root:x:0:0:", "etc/group 644 root:x:0:", "etc/nsswitch.conf"] {
            assert!(listing.iter().any(|line| line.starts_with(file)), "{file}");
        }
        assert!(!listing.iter().any(|line| line.starts_with("usr/share/zoneinfo/right/")));
    }
}
