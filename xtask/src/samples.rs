//! What the samples need from package registries, fetched before the tests enter their
//! namespaces, where there is no network.
//!
//! Promises: everything is fetched once for each lock file, by the tools people use, into
//! `target/samples`; the tests find it there. Does not know what the tests do with it.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::run::{program, root, target};

/// Fetches what is missing.
///
/// # Errors
/// When it cannot be fetched.
pub(crate) fn prepare() -> anyhow::Result<()> {
    let folder = target().join("samples");
    once(&folder.join("wheels"), "samples/python-web/requirements.txt", |wheels| {
        let what = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest"];
        let from = ["-r", "samples/python-web/requirements.txt"];
        program("python3", what).arg(wheels).args(&from).run()
    })?;
    once(&folder.join("npm"), "samples/node-web/package-lock.json", |cache| {
        // Installed to fill npm's cache; the cache is what stays.
        let place = cache.join("once");
        fs::create_dir_all(&place)?;
        for file in ["package.json", "package-lock.json"] {
            fs::copy(root().join("samples/node-web").join(file), place.join(file))?;
        }
        let install = program("npm", ["ci", "--no-audit", "--no-fund", "--silent", "--cache"]);
        install.arg(cache).within(&place).run()?;
        Ok(fs::remove_dir_all(&place)?)
    })
}

/// Fills `folder` unless it was filled for the lock file as it is now, which is kept in it.
fn once(
    folder: &Path,
    lock: &str,
    fill: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let wanted = fs::read(root().join(lock)).with_context(|| lock.to_owned())?;
    let mark = folder.join("lock");
    if fs::read(&mark).is_ok_and(|filled| filled == wanted) {
        return Ok(());
    }
    println!("fetching what {lock} names");
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fill(folder).with_context(|| format!("fetching what {lock} names"))?;
    fs::write(&mark, wanted).context("a mark that it is there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_filled_once_for_a_lock() {
        let folder = std::env::temp_dir().join(format!("stead-xtask-{}", std::process::id()));
        let fill = |text: &'static str| {
            move |folder: &Path| Ok(fs::write(folder.join("file"), text)?)
        };
        let fails = |_: &Path| anyhow::bail!("no network");
        let read = || fs::read_to_string(folder.join("file")).unwrap();
        assert!(once(&folder, "deny.toml", fails).is_err());
        once(&folder, "deny.toml", fill("first")).unwrap();
        once(&folder, "deny.toml", fill("again")).unwrap();
        assert_eq!(read(), "first");
        once(&folder, "clippy.toml", fill("other")).unwrap();
        assert_eq!(read(), "other");
        fs::remove_dir_all(&folder).unwrap();
    }
}
