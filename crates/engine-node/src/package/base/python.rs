//! CPython: the interpreter and its standard library, without what others installed into it.

use std::fs;
use std::path::{Path, PathBuf};

use stead_core::api::package::{PackedConfig, RuntimeName};

use super::super::error::PackError;
use super::root::Root;
use super::scan::{defined, version_in};
use super::{Installed, below_home, folders_in, program_folders};

/// Parts of the standard library that no service uses: tests, editors, what installs packages,
/// what links C programs, and packages of the machine.
const LEFT_OUT: [&str; 9] = [
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
];

/// Every CPython 3 here: the system's, those on `PATH`, those of pyenv and uv.
pub(super) fn find() -> Vec<Installed> {
    let system = ["/usr", "/usr/local"].map(PathBuf::from);
    let on_path = program_folders();
    let on_path = on_path.iter().filter_map(|folder| Some(folder.parent()?.to_owned()));
    let several = [below_home(".pyenv/versions"), below_home(".local/share/uv/python")];
    let several = several.into_iter().flatten().flat_map(|place| folders_in(&place));
    system.into_iter().chain(on_path).chain(several).flat_map(|prefix| at(&prefix)).collect()
}

/// Those installed under this prefix.
pub(super) fn at(prefix: &Path) -> Vec<Installed> {
    let Ok(prefix) = fs::canonicalize(prefix) else { return Vec::new() };
    let entries = fs::read_dir(prefix.join("bin")).into_iter().flatten().filter_map(Result::ok);
    let mut versions: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let minor = name.strip_prefix("python3.")?;
            minor.bytes().all(|byte| byte.is_ascii_digit()).then(|| format!("3.{minor}"))
        })
        .filter(|version| library(&prefix, version).is_some())
        .collect();
    versions.sort();
    let installed = |version: String| Installed {
        runtime: RuntimeName::Python,
        exact: exact(&prefix, &version).unwrap_or_else(|| version.clone()),
        version,
        home: prefix.clone(),
    };
    versions.into_iter().map(installed).collect()
}

/// The folder of the standard library.
fn library(prefix: &Path, version: &str) -> Option<PathBuf> {
    let folders = ["lib", "lib64"].map(|lib| prefix.join(lib).join(format!("python{version}")));
    folders.into_iter().find(|folder| folder.join("os.py").is_file())
}

fn exact(prefix: &Path, version: &str) -> Option<String> {
    let python = format!("python{version}");
    let start = format!("{version}.");
    // Up to 3.7 the name of the ABI had an m.
    let headers = ["", "m"].map(|end| format!("include/{python}{end}/patchlevel.h"));
    headers
        .iter()
        .find_map(|header| defined(&prefix.join(header), "PY_VERSION"))
        .or_else(|| version_in(&prefix.join("bin").join(&python), &start))
        .or_else(|| version_in(&prefix.join(format!("lib/lib{python}.so.1.0")), &start))
}

/// What to take, how to run it, and what to know.
pub(super) fn make(
    prefix: &Path,
    version: &str,
) -> Result<(Root, PackedConfig, Vec<String>), PackError> {
    let mut root = Root::default();
    let name = format!("python{version}");
    let bin = prefix.join("bin");
    root.file(&bin.join(&name))?;
    for link in ["python3", "python"] {
        root.link(&bin.join(link), &name);
    }
    let own = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let other_optimisation = name.ends_with(".opt-1.pyc") || name.ends_with(".opt-2.pyc");
        !LEFT_OUT.contains(&&*name)
            && !name.starts_with("config-")
            && !name.starts_with("_tkinter.")
            && !other_optimisation
    };
    for lib in ["lib", "lib64"] {
        root.folder(&prefix.join(lib).join(&name), &own)?;
    }
    for file in ["/etc/ssl/openssl.cnf", "/usr/lib/ssl/openssl.cnf", "/etc/mime.types"] {
        root.file_if_there(Path::new(file))?;
    }
    let config = PackedConfig {
        cmd: vec!["python3".into(), "--version".into()],
        env: [
            ("PATH".into(), format!("{}:/usr/bin:/bin", bin.display())),
            // Where OpenSSL looks depends on who built it.
            ("SSL_CERT_FILE".into(), "/etc/ssl/certs/ca-certificates.crt".into()),
        ]
        .into(),
        ..PackedConfig::default()
    };
    Ok((root, config, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_may_hold_several() {
        let dir = tempfile::tempdir().unwrap();
        let make = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        make("bin/python3.9", "x\x003.9.2\x00");
        make("bin/python3.11", "");
        make("bin/python3.12", "");
        make("bin/python3.11-config", "");
        make("lib/python3.9/os.py", "");
        make("lib64/python3.11/os.py", "");
        make("include/python3.11/patchlevel.h", "#define PY_VERSION \"3.11.7\"\n");
        let found = at(dir.path());
        let found: Vec<_> =
            found.iter().map(|one| (one.version.as_str(), one.exact.as_str())).collect();
        assert_eq!(found, [("3.11", "3.11.7"), ("3.9", "3.9.2")]);
    }
}
