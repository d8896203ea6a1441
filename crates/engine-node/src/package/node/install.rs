//! The dependencies of a lock, installed into a folder that is kept.
//!
//! Promises: the same lock for the same Node.js is installed once, by `npm ci` in a folder that
//! holds nothing else of the project, so that none of its scripts can run.

use std::env::consts::ARCH;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use stead_core::api::package::BaseName;

use super::project::{FILE, Project};
use crate::hash;
use crate::package::error::PackError;
use crate::package::kept::Kept;
use crate::package::pack::PackOptions;
use crate::package::{ignore, tool};

/// Raised when the same lock shall be installed anew: another way to install.
const EDITION: u32 = 1;
/// npm's lock files; the first has the last word, as for npm.
const LOCKS: [&str; 2] = ["npm-shrinkwrap.json", "package-lock.json"];
/// Those of others.
const FOREIGN_LOCKS: [&str; 4] = ["pnpm-lock.yaml", "yarn.lock", "bun.lock", "bun.lockb"];
/// npm's configuration of a project, such as its registry.
const SETTINGS: &str = ".npmrc";

/// The folder with `node_modules` as the lock says, for the Node.js of `base`, installed with
/// that of this machine, whose major version is `local`. `None` when nothing is needed.
///
/// # Errors
/// When there is no lock, or npm is missing or fails.
pub(super) fn install(
    root: &Path,
    project: &Project,
    base: &BaseName,
    local: Option<u32>,
    options: &PackOptions,
) -> Result<Option<PathBuf>, PackError> {
    if !project.has_dependencies() {
        return Ok(None);
    }
    let lock = Lock::read(root)?;
    if let Some(package) = lock.built_here()
        && local.is_some_and(|local| local.to_string() != base.version())
    {
        let reason = format!(
            "{package} builds itself for the Node.js that installs it, {}, and it shall run on {base}",
            local.unwrap_or_default()
        );
        let hint = "install with the same version, or choose this one: `runtime: {node: VERSION}`";
        return Err(PackError::unfit(root, reason, hint));
    }
    let manifest = project.for_install().to_string();
    let settings = ignore::read(root, SETTINGS)?;
    let about = format!("{EDITION} {base} {ARCH}\n{manifest}\n{}", lock.normal);
    let key = hash::digest_of(about);
    let folder = Kept::open(&options.cache, "node")?.get(key.hex(), |folder| {
        (options.progress)("installing dependencies");
        let write = |name: &str, text: &str| write(&folder.join(name), text);
        fs::create_dir_all(folder.join(super::MODULES)).map_err(PackError::io(folder))?;
        write(FILE, &manifest)?;
        write(lock.file, &lock.normal)?;
        if let Some(settings) = &settings {
            write(SETTINGS, settings)?;
        }
        let mut command = Command::new("npm");
        command.current_dir(folder).args(["ci", "--omit=dev", "--no-audit", "--no-fund"]);
        command.env("npm_config_update_notifier", "false");
        let hint = "make `npm ci --omit=dev` work in the project's folder first; npm comes with \
                    Node.js (`apt-get install npm`)";
        tool::run(&mut command, "npm", hint)?;
        // It may hold a token.
        let _ = fs::remove_file(folder.join(SETTINGS));
        Ok(())
    })?;
    Ok(Some(folder))
}

/// Writes a file that nobody else may read: npm's configuration may hold a token, and stays here
/// when a person gives up while npm runs.
fn write(path: &Path, text: &str) -> Result<(), PackError> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(PackError::io(path))
}

/// npm's lock file.
struct Lock {
    file: &'static str,
    /// Its text without the project's own name and version, which decide nothing.
    normal: String,
    content: Value,
}

impl Lock {
    fn read(root: &Path) -> Result<Self, PackError> {
        for file in LOCKS {
            let Some(text) = ignore::read(root, file)? else { continue };
            let path = root.join(file);
            let unfit = |reason: String, hint: &str| Err(PackError::unfit(&path, reason, hint));
            let anew = "lock anew with `npm install`";
            let mut content: Value = match serde_json::from_str(&text) {
                Ok(content) => content,
                Err(error) => return unfit(format!("it is malformed: {error}"), anew),
            };
            let Some(packages) = content.get_mut("packages").and_then(Value::as_object_mut) else {
                return unfit("it was written by npm 6 or older".to_owned(), anew);
            };
            let inside = |place: &&String| place.is_empty() || place.starts_with("node_modules/");
            if let Some(place) = packages.keys().find(|place| !inside(place)) {
                let reason = format!("{place} is a folder of this machine, not of a registry");
                return unfit(reason, "publish it, or bundle the project");
            }
            if let Some(own) = packages.get_mut("").and_then(Value::as_object_mut) {
                own.retain(|name, _| !matches!(name.as_str(), "name" | "version" | "license"));
            }
            for own in ["name", "version"] {
                content.as_object_mut().and_then(|content| content.remove(own));
            }
            return Ok(Self { file, normal: content.to_string(), content });
        }
        let foreign = FOREIGN_LOCKS.into_iter().find(|name| root.join(name).is_file());
        let reason = match foreign {
            Some(name) => format!("{name} is not read; package-lock.json is missing"),
            None => "it has dependencies and no package-lock.json".to_owned(),
        };
        let hint = "`npm install --package-lock-only` makes one; or bundle the project, so that \
                    it has no dependencies";
        Err(PackError::unfit(root, reason, hint))
    }

    /// A package that is compiled where it is installed.
    fn built_here(&self) -> Option<&str> {
        let packages = self.content.get("packages")?.as_object()?;
        let is_built = |package: &Value| {
            let is = |name: &str| package.get(name).and_then(Value::as_bool).unwrap_or(false);
            is("hasInstallScript") && !is("dev")
        };
        let place = packages.iter().find(|(_, package)| is_built(package))?.0;
        place.rsplit("node_modules/").next()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_reads_what_npm_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SETTINGS);
        write(&path, "token").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap(), "token");
    }
}
