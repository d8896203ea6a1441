//! What a project's lock file says has to be installed.
//!
//! Promises: what is installed is a function of [`Lock::key`]. Lock files of Poetry and Pipenv
//! are read here, so that neither is needed; uv's is read by uv.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::project::Project;
use crate::package::error::PackError;
use crate::package::{ignore, tool};

/// Deepest chain of requirements files that include each other.
const MAX_DEPTH: usize = 16;

/// A lock file.
#[derive(Debug)]
pub(super) struct Lock {
    /// Its name.
    pub(super) file: &'static str,
    /// All text that decides what is installed.
    pub(super) key: String,
    pub(super) how: How,
    /// What a person should know of it.
    pub(super) note: Option<String>,
}

/// How it is installed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum How {
    /// From the project's own requirements file, with what that needs.
    File(PathBuf),
    /// From these requirements and nothing else: they are complete.
    Exactly(String),
}

impl Lock {
    /// The lock of the project at `root`; `None` when it has no dependencies.
    ///
    /// # Errors
    /// When there are dependencies and no lock, or the lock cannot be used.
    pub(super) fn find(root: &Path, project: &Project) -> Result<Option<Self>, PackError> {
        let has = |name: &str| root.join(name).is_file();
        let lock = if has("requirements.txt") {
            requirements(root)?
        } else if has("uv.lock") {
            uv(root)?
        } else if let Some(text) = ignore::read(root, "poetry.lock")? {
            exactly("poetry.lock", poetry(&root.join("poetry.lock"), &text)?)
        } else if let Some(text) = ignore::read(root, "Pipfile.lock")? {
            exactly("Pipfile.lock", pipenv(&root.join("Pipfile.lock"), &text)?)
        } else if project.has_dependencies || has("Pipfile") {
            let reason = "it has dependencies and no lock file";
            let hint = "make one: `uv lock`, `poetry lock`, `pipenv lock`, or \
                        `pip freeze > requirements.txt` in its environment";
            return Err(PackError::unfit(root, reason, hint));
        } else {
            return Ok(None);
        };
        Ok(Some(lock).filter(|lock| !lock.key.trim().is_empty()))
    }
}

fn exactly(file: &'static str, text: String) -> Lock {
    Lock { file, key: text.clone(), how: How::Exactly(text), note: None }
}

fn requirements(root: &Path) -> Result<Lock, PackError> {
    let file = root.join("requirements.txt");
    let mut reading = Requirements::default();
    reading.file(&file, 0)?;
    let note = (!reading.unpinned.is_empty()).then(|| {
        let names = reading.unpinned.join(", ");
        format!("not pinned, so what was found first stays until the file changes: {names}")
    });
    Ok(Lock { file: "requirements.txt", key: reading.key, how: How::File(file), note })
}

#[derive(Default)]
struct Requirements {
    key: String,
    unpinned: Vec<String>,
}

impl Requirements {
    /// Reads a requirements file and what it includes (pip, "Requirements File Format").
    fn file(&mut self, path: &Path, depth: usize) -> Result<(), PackError> {
        if depth > MAX_DEPTH {
            return Err(PackError::refused(path, "requirements files include each other"));
        }
        let text = std::fs::read_to_string(path).map_err(PackError::io(path))?;
        for line in text.replace("\\\n", " ").lines() {
            let line = line.split(" #").next().unwrap_or_default().trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (first, rest) = line.split_once([' ', '=']).unwrap_or((line, ""));
            match first {
                "-r" | "--requirement" | "-c" | "--constraint" => {
                    let folder = path.parent().unwrap_or(Path::new(""));
                    self.file(&folder.join(rest.trim()), depth + 1)?;
                }
                "-e" | "--editable" => return Err(local(path, line)),
                _ if line.starts_with(['.', '/']) || line.contains("file:") => {
                    return Err(local(path, line));
                }
                // Where to look: that is the person's own affair.
                _ if line.starts_with('-') => self.line(line),
                _ => {
                    if !line.contains("==") && !line.contains('@') {
                        let end = |c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c);
                        self.unpinned.push(line.split(end).next().unwrap_or(line).to_owned());
                    }
                    self.line(line);
                }
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) {
        self.key.push_str(&line.split_whitespace().collect::<Vec<_>>().join(" "));
        self.key.push('\n');
    }
}

fn local(path: &Path, line: &str) -> PackError {
    let reason = format!("`{line}` installs from a folder of this machine");
    let hint = "leave the project itself out, which is packed as it is, and make a wheel of \
                anything else";
    PackError::unfit(path, reason, hint)
}

fn uv(root: &Path) -> Result<Lock, PackError> {
    let mut command = Command::new("uv");
    command.current_dir(root).args([
        "export",
        "--frozen",
        "--no-dev",
        "--no-emit-workspace",
        "--no-header",
        "--no-annotate",
        "--offline",
    ]);
    let hint = "install uv, or keep `uv export --no-dev --no-emit-project -o requirements.txt` \
                beside the lock";
    let text = tool::run(&mut command, "uv", hint)?;
    if text.lines().any(|line| line.starts_with(['.', '/']) || line.starts_with("-e")) {
        return Err(local(&root.join("uv.lock"), "a workspace or path dependency"));
    }
    Ok(exactly("uv.lock", text))
}

#[derive(Deserialize)]
struct PoetryLock {
    #[serde(default)]
    package: Vec<PoetryPackage>,
}

#[derive(Deserialize)]
struct PoetryPackage {
    name: String,
    version: String,
    #[serde(default)]
    optional: bool,
    /// Until Poetry 1.4.
    category: Option<String>,
    /// Since Poetry 2.
    groups: Option<Vec<String>>,
    markers: Option<toml::Value>,
    #[serde(default)]
    files: Vec<PoetryFile>,
    source: Option<toml::Value>,
}

#[derive(Deserialize)]
struct PoetryFile {
    hash: String,
}

/// The requirements that a `poetry.lock` stands for. Those written by Poetry 1.5 to 1.8 do not
/// say what is only for development: then everything is installed.
fn poetry(path: &Path, text: &str) -> Result<String, PackError> {
    let lock: PoetryLock = toml::from_str(text)
        .map_err(|error| PackError::unfit(path, error.message(), "lock the project anew"))?;
    let mut lines = String::new();
    for package in lock.package {
        let is_main = match (&package.groups, &package.category) {
            (Some(groups), _) => groups.iter().any(|group| group == "main"),
            (None, Some(category)) => category == "main",
            (None, None) => true,
        };
        if !is_main || package.optional {
            continue;
        }
        if package.source.is_some_and(|source| source.get("type").is_some_and(is_elsewhere)) {
            let reason = format!("{} comes from a folder, a file or git", package.name);
            let hint = "keep `poetry export -o requirements.txt` beside the lock";
            return Err(PackError::unfit(path, reason, hint));
        }
        let marker = match package.markers {
            Some(toml::Value::String(marker)) => Some(marker),
            Some(toml::Value::Table(by_group)) => {
                by_group.get("main").and_then(toml::Value::as_str).map(str::to_owned)
            }
            _ => None,
        };
        let hashes: Vec<String> = package.files.into_iter().map(|file| file.hash).collect();
        push(&mut lines, &package.name, &package.version, marker.as_deref(), hashes);
    }
    Ok(lines)
}

fn is_elsewhere(kind: &toml::Value) -> bool {
    matches!(kind.as_str(), Some("directory" | "file" | "git" | "url"))
}

#[derive(Deserialize)]
struct PipenvLock {
    default: BTreeMap<String, PipenvPackage>,
}

#[derive(Deserialize)]
struct PipenvPackage {
    version: Option<String>,
    markers: Option<String>,
    #[serde(default)]
    hashes: Vec<String>,
}

/// The requirements that a `Pipfile.lock` stands for.
fn pipenv(path: &Path, text: &str) -> Result<String, PackError> {
    let lock: PipenvLock = serde_json::from_str(text)
        .map_err(|error| PackError::unfit(path, error.to_string(), "lock the project anew"))?;
    let mut lines = String::new();
    for (name, package) in lock.default {
        let version = package.version.as_deref().and_then(|version| version.strip_prefix("=="));
        let Some(version) = version else {
            let reason = format!("{name} comes from a folder, a file or git");
            let hint = "keep `pipenv requirements > requirements.txt` beside the lock";
            return Err(PackError::unfit(path, reason, hint));
        };
        push(&mut lines, &name, version, package.markers.as_deref(), package.hashes);
    }
    Ok(lines)
}

fn push(lines: &mut String, name: &str, version: &str, marker: Option<&str>, hashes: Vec<String>) {
    lines.push_str(&format!("{name}=={version}"));
    if let Some(marker) = marker {
        lines.push_str(&format!(" ; {marker}"));
    }
    for hash in hashes {
        lines.push_str(&format!(" --hash={hash}"));
    }
    lines.push('\n');
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn find(files: &[(&str, &str)]) -> Result<Option<Lock>, PackError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Lock::find(dir.path(), &Project::read(dir.path())?)
    }

    fn key(files: &[(&str, &str)]) -> String {
        find(files).unwrap().unwrap().key
    }

    #[test]
    fn requirements_are_read_with_what_they_include() {
        let text = "# web\nflask == 3.0 \\\n  --hash=sha256:ab # good\n-r more.txt\n-c=bounds.txt\n\
                    --index-url https://pypi.example/simple\ngunicorn[gevent]>=22\n";
        let files = [("requirements.txt", text), ("more.txt", "x==1\n"), ("bounds.txt", "y<2\n")];
        let lock = find(&files).unwrap().unwrap();
        let expected = "flask == 3.0 --hash=sha256:ab\nx==1\ny<2\n\
                        --index-url https://pypi.example/simple\ngunicorn[gevent]>=22\n";
        assert_eq!(lock.key, expected);
        assert!(lock.note.unwrap().ends_with(": y, gunicorn"));
        // Only what is installed counts.
        assert_eq!(
            key(&[("requirements.txt", "# a\nx==1")]),
            key(&[("requirements.txt", "x==1 ")])
        );
        for wrong in ["-e .", ".", "./lib", "x @ file:///tmp/x.whl", "-r requirements.txt"] {
            assert!(find(&[("requirements.txt", wrong)]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_lock_of_poetry_gives_what_the_app_needs() {
        let text = r#"
            [[package]]
            name = "flask"
            version = "3.0"
            groups = ["main", "dev"]
            files = [{file = "a.whl", hash = "sha256:ab"}, {file = "b", hash = "sha256:cd"}]
            [[package]]
            name = "colorama"
            version = "0.4"
            groups = ["main"]
            markers = {main = "sys_platform == 'win32'"}
            [[package]]
            name = "pytest"
            version = "8"
            groups = ["dev"]
            [[package]]
            name = "old-pytest"
            version = "8"
            category = "dev"
            [[package]]
            name = "extra"
            version = "1"
            optional = true
        "#;
        let expected = "flask==3.0 --hash=sha256:ab --hash=sha256:cd\n\
                        colorama==0.4 ; sys_platform == 'win32'\n";
        assert_eq!(key(&[("poetry.lock", text)]), expected);
        let git = "[[package]]\nname = 'x'\nversion = '1'\nsource = {type = 'git', url = 'u'}";
        assert!(find(&[("poetry.lock", git)]).unwrap_err().to_string().contains("x comes from"));
    }

    #[test]
    fn a_lock_of_pipenv_gives_what_the_app_needs() {
        let text = r#"{"_meta": {}, "default": {
            "flask": {"version": "==3.0", "hashes": ["sha256:ab"], "index": "pypi"},
            "click": {"version": "==8", "markers": "python_version >= '3.7'"}},
            "develop": {"pytest": {"version": "==8"}}}"#;
        let expected = "click==8 ; python_version >= '3.7'\nflask==3.0 --hash=sha256:ab\n";
        assert_eq!(key(&[("Pipfile.lock", text)]), expected);
        let local = r#"{"default": {"x": {"path": "./x"}}}"#;
        assert!(find(&[("Pipfile.lock", local)]).is_err());
    }

    #[test]
    fn dependencies_without_a_lock_are_refused() {
        let project = "[project]\nname = 'x'\ndependencies = ['flask']";
        let error = find(&[("pyproject.toml", project)]).unwrap_err();
        assert!(error.hint().contains("uv lock"), "{error}");
        let poetry = "[tool.poetry.dependencies]\npython = '^3.9'\n";
        assert!(find(&[("pyproject.toml", poetry)]).unwrap().is_none());
        assert!(find(&[("pyproject.toml", &format!("{poetry}flask = '*'"))]).is_err());
        assert!(find(&[("app.py", "")]).unwrap().is_none());
        assert!(find(&[("requirements.txt", "# none\n")]).unwrap().is_none());
    }
}
