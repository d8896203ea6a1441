//! Base images: a runtime as it is installed on this machine, with all it needs to run in a
//! Container that has nothing else.
//!
//! Promises: nothing is downloaded and nothing is executed; what makes an image keeps its path,
//! so that whatever the runtime was told about places when it was installed still holds; the
//! same installation makes the same image. Does not know where images are kept.
//!
//! Times of files are kept too: CPython checks its byte code by them, and a Java archive of
//! class data the jars it was made from.

mod java;
mod layout;
mod node;
mod python;
mod root;
mod scan;
mod tomcat;

use std::path::{Path, PathBuf};

use stead_core::api::package::{BaseName, PackedConfig, RuntimeName};
use stead_core::engine::HostRuntime;

use super::error::PackError;
use super::system;
use super::tar::Layer;

pub(crate) use layout::write_layout;
pub use tomcat::{Tomcat, read_tomcat};

/// The label of a base image that says which base it is, such as `java:17`.
pub const BASE_LABEL: &str = "io.stead.base";
/// The label of a base image that says what exactly it holds, such as `17.0.15`.
pub const EXACT_LABEL: &str = "io.stead.base.exact";

/// A base image, not written yet.
#[derive(Debug)]
pub struct Base {
    /// Everything in it.
    pub layer: Layer,
    /// How it is run: its environment, its user, the interpreter as the command.
    pub config: PackedConfig,
    /// What a person should know, such as libraries that are not installed.
    pub notes: Vec<String>,
}

/// A runtime that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Installed {
    runtime: RuntimeName,
    /// Such as `17.0.15`.
    exact: String,
    /// The parts that name it, such as `17` or `3.11`.
    version: String,
    /// The folder it is installed in.
    home: PathBuf,
}

/// The runtimes installed on this machine, one of each version: the one that a person would
/// get by its name.
pub fn installed() -> Vec<HostRuntime> {
    let mut all: Vec<HostRuntime> = Vec::new();
    for runtime in RuntimeName::ALL {
        for found in find(runtime) {
            let Some(base) = BaseName::new(runtime, &found.version) else { continue };
            if all.iter().all(|known| known.base != base) {
                let path = found.home.to_string_lossy().into_owned();
                all.push(HostRuntime { base, exact: found.exact, path });
            }
        }
    }
    all.sort_by_key(|found| (found.base.runtime, found.base.numbers()));
    all
}

/// Makes the base `name` of what is installed in `path`, or anywhere.
///
/// # Errors
/// [`PackError::Unfit`] when nothing that fits the name is there; the hint says what is.
pub fn make(name: &BaseName, path: Option<&Path>) -> Result<(Base, HostRuntime), PackError> {
    let found = match path {
        Some(path) => vec![in_folder(name.runtime, path)?],
        None => find(name.runtime),
    };
    let fits = |found: &&Installed| is_version(name.version(), &found.exact);
    let Some(installed) = found.iter().find(fits) else {
        return Err(none_fits(name, path, &found));
    };
    let (root, mut config, mut notes) = match name.runtime {
        RuntimeName::Java => java::make(&installed.home)?,
        RuntimeName::Python => python::make(&installed.home, &installed.version)?,
        RuntimeName::Node => node::make(&installed.home)?,
        RuntimeName::Tomcat => return Err(none_fits(name, path, &found)),
    };
    config.user = system::NONROOT.to_string();
    config.env.entry("LANG".into()).or_insert_with(|| "C.UTF-8".into());
    config.labels.insert(BASE_LABEL.into(), name.to_string());
    config.labels.insert(EXACT_LABEL.into(), installed.exact.clone());
    let (layer, missing) = root.finish(&format!("{} {}", name.runtime.word(), installed.exact))?;
    notes.extend(missing);
    let path = installed.home.to_string_lossy().into_owned();
    let runtime = HostRuntime { base: name.clone(), exact: installed.exact.clone(), path };
    Ok((Base { layer, config, notes }, runtime))
}

/// The command that gets a runtime onto this machine, as its distribution has it.
pub fn how_to_get(name: &BaseName) -> String {
    let version = name.version();
    match name.runtime {
        RuntimeName::Java => format!("apt-get install openjdk-{version}-jre-headless"),
        RuntimeName::Python => format!("apt-get install python{version}"),
        RuntimeName::Node => "apt-get install nodejs".into(),
        RuntimeName::Tomcat => {
            format!("stead image base tomcat:{version} --from-maven {version}.N --java 17")
        }
    }
}

/// Every installation of a runtime, the preferred ones first.
fn find(runtime: RuntimeName) -> Vec<Installed> {
    let mut found: Vec<Installed> = match runtime {
        RuntimeName::Java => java::find(),
        RuntimeName::Python => python::find(),
        RuntimeName::Node => node::find(),
        RuntimeName::Tomcat => Vec::new(),
    };
    let mut seen = Vec::new();
    found.retain(|one| {
        let key = (one.home.clone(), one.version.clone());
        !seen.contains(&key) && {
            seen.push(key);
            true
        }
    });
    found
}

fn in_folder(runtime: RuntimeName, path: &Path) -> Result<Installed, PackError> {
    let found = match runtime {
        RuntimeName::Java => java::at(path),
        RuntimeName::Python => python::at(path).into_iter().next(),
        RuntimeName::Node => node::at(path),
        RuntimeName::Tomcat => None,
    };
    found.ok_or_else(|| {
        let (reason, hint) = match runtime {
            RuntimeName::Java => ("it has no bin/java and release", "name a JDK's folder"),
            RuntimeName::Python => {
                ("it has no bin/python3.N and lib/python3.N", "name a prefix, such as /usr")
            }
            RuntimeName::Node => ("it has no bin/node", "name a prefix, such as /usr"),
            RuntimeName::Tomcat => (
                "Tomcat is taken from Maven Central, not from the machine",
                "`stead image base tomcat:10.1 --from-maven 10.1.N --java 17`",
            ),
        };
        PackError::unfit(path, reason, hint)
    })
}

/// Whether `exact` is of this version: each part of the one begins the other.
fn is_version(version: &str, exact: &str) -> bool {
    let mut numbers = exact.split(|c: char| !c.is_ascii_digit());
    version.split('.').all(|part| numbers.next() == Some(part))
}

fn none_fits(name: &BaseName, path: Option<&Path>, found: &[Installed]) -> PackError {
    let place = path.unwrap_or(Path::new("this machine"));
    let offers: Vec<String> = found
        .iter()
        .map(|one| format!("{}:{} ({})", name.runtime.word(), one.version, one.exact))
        .collect();
    let offers = match offers.is_empty() {
        true => format!("no {}", name.runtime.word()),
        false => offers.join(", "),
    };
    let hint = format!(
        "get it with `{}`, or name one that is there; or take an image: `stead image base {name} --use REFERENCE`",
        how_to_get(name)
    );
    PackError::unfit(place, format!("it has {offers}, and {name} was asked for"), hint)
}

/// Folders that patterns such as `HOME/.pyenv/versions/*` mean, by name.
fn folders_in(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok);
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

/// What lies below the home of who runs this, if there is one.
fn below_home(path: &str) -> Option<PathBuf> {
    std::env::var_os("HOME").map(|home| Path::new(&home).join(path))
}

/// Folders of programs: `PATH`, then where distributions and people put them.
fn program_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    let named = std::env::split_paths(&path).filter(|folder| folder.is_absolute()).chain(usual);
    // `/bin` is a link to `/usr/bin`, and `/` is no prefix that anything is installed in.
    named.filter_map(|folder| std::fs::canonicalize(folder).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_begins_what_is_installed() {
        for (version, exact) in
            [("17", "17.0.15"), ("3.11", "3.11.2"), ("25", "25"), ("8", "8.0.402")]
        {
            assert!(is_version(version, exact), "{version} {exact}");
        }
        for (version, exact) in
            [("1", "17.0.15"), ("3.1", "3.11.2"), ("17.1", "17.0.15"), ("17.0", "17")]
        {
            assert!(!is_version(version, exact), "{version} {exact}");
        }
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        let dir = tempfile::tempdir().unwrap();
        let name: BaseName = "java:17".parse().unwrap();
        let error = make(&name, Some(dir.path())).unwrap_err();
        assert!(error.to_string().contains("bin/java"), "{error}");
        let name: BaseName = "java:999".parse().unwrap();
        let error = make(&name, None).unwrap_err();
        assert!(error.hint().contains("openjdk-999-jre-headless"), "{}", error.hint());
        let name: BaseName = "tomcat:10.1".parse().unwrap();
        assert!(make(&name, None).unwrap_err().hint().contains("--from-maven"));
    }
}
