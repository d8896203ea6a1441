//! A Python project with its lock file.
//!
//! Promises: the dependencies are those of the lock, installed by the person's own pip or uv
//! once for each lock and kept; they are a layer of their own below the project's. Nothing of
//! the project is executed. Does not know web frameworks: how the project is started is
//! written down in it.
//!
//! In the image: the project in `/app`, its dependencies in `/opt/app/python`, both on
//! `PYTHONPATH`; files named `*.pth` have no effect there.

mod bytecode;
mod install;
mod interpreter;
mod lock;
mod project;
mod start;

use std::path::Path;

use stead_core::api::package::{BaseName, PackageKind, RuntimeName};

use super::error::PackError;
use super::pack::{Needs, Pack, PackOptions};
use super::tar::{Layer, Tree};
use super::versions::Versions;
use super::{ignore, node};
use interpreter::Interpreter;
use lock::Lock;
use project::Project;
use start::Start;

/// Where the project lies in the image.
const PROJECT: &str = "/app";
/// Where its dependencies lie.
const DEPENDENCIES: &str = "/opt/app/python";
/// What to do where a project in both languages is one of Node.js first.
const AS_NODE: &str = "`runtime: {node: 20}` in the manifest packs it as a Node.js project";
/// What to get where nothing says which Python.
const USUAL: &str = "3.11";
/// A folder with one of these is a Python project.
const SIGNS: [&str; 7] = [
    "requirements.txt",
    "pyproject.toml",
    "uv.lock",
    "poetry.lock",
    "Pipfile.lock",
    "Pipfile",
    "manage.py",
];
/// A folder with one of these is one, too, unless it is a Node.js project.
const FILES: [&str; 2] = ["app.py", "main.py"];

/// Whether the folder at `path` is a Python project.
pub(super) fn is_folder(path: &Path) -> bool {
    let has = |names: &[&str]| names.iter().any(|name| path.join(name).is_file());
    has(&SIGNS) || (has(&FILES) && !node::is_folder(path))
}

/// Cuts the project at `root` into layers.
///
/// # Errors
/// When nothing says how it is started, it has dependencies and no lock, or they cannot be
/// installed.
pub(super) fn pack(root: &Path, options: &PackOptions) -> Result<Pack, PackError> {
    let project = Project::read(root)?;
    let lock = Lock::find(root, &project)?;
    let mut notes = Vec::new();
    if node::is_folder(root) {
        notes.push(format!("it has a package.json, too: {AS_NODE}"));
    }
    let wanted = wanted(root, &project, &mut notes)?;
    let local = Interpreter::usual();
    let base = base(root, options, &wanted, local.as_ref())?;

    let mut layers = Vec::new();
    let mut installed = None;
    if let Some(lock) = &lock {
        notes.push(format!("dependencies from {}", lock.file));
        notes.extend(lock.note.clone());
        let folder = install::install(root, lock, &base, options)?;
        let mut tree = Tree::new();
        ignore::add(&mut tree, DEPENDENCIES, &folder, &ignore::walk_all(&folder)?)?;
        layers.push(Layer::new("dependencies", tree));
        installed = Some(folder);
    }
    let start = Start::find(root, &project, installed.as_deref(), options.told_port())?;
    notes.push(format!("starts as `{}`, says {}", start.command.join(" "), start.says));
    let mut found = ignore::walk(root)?;
    notes.extend(start.check(root, &found)?);
    notes.extend(start.note);
    let mut tree = Tree::new();
    // Whatever `.steadignore` takes back: byte code of this machine looks at times.
    found.retain(|found| !found.path.iter().any(|part| part == "__pycache__"));
    notes.extend(ignore::left_out(root, &found));
    ignore::add(&mut tree, PROJECT, root, &found)?;
    if let Some(interpreter) = Interpreter::of_base(&base) {
        let code = bytecode::of_project(&interpreter, root, &found, options)?;
        ignore::add(&mut tree, PROJECT, &code, &ignore::walk_all(&code)?)?;
    }
    layers.push(Layer::new("project", tree));

    let mut env = start.env;
    let paths = if root.join("src").is_dir() { "/app:/app/src" } else { PROJECT };
    env.entry("PYTHONPATH".to_owned()).or_insert_with(|| format!("{paths}:{DEPENDENCIES}"));
    env.entry("PYTHONUNBUFFERED".to_owned()).or_insert_with(|| "1".to_owned());
    Ok(Pack {
        kind: PackageKind::Python,
        base: Some(base),
        layers,
        config: options.config(start.command, PROJECT, env),
        notes,
    })
}

/// Which versions the project says it runs on, and where it says so.
struct Wanted {
    versions: Option<Versions>,
    says: String,
}

fn wanted(root: &Path, project: &Project, notes: &mut Vec<String>) -> Result<Wanted, PackError> {
    let file = ignore::read(root, ".python-version")?;
    let pinned = file.as_deref().and_then(|text| text.lines().next()).map(str::trim);
    let named = pinned
        .map(|text| (".python-version", text))
        .or(project.requires_python.as_deref().map(|text| ("requires-python", text)));
    let Some((name, text)) = named else {
        return Ok(Wanted { versions: None, says: "it runs on Python 3".to_owned() });
    };
    let versions = Versions::read(text);
    if versions.is_none() {
        notes.push(format!("{name} is {text:?}, which is not understood and not heeded"));
    }
    Ok(Wanted { versions, says: format!("{name} says {text}") })
}

/// The base: the Python of this machine if the platform has it too, for its wheels certainly
/// fit; else another that the platform has.
fn base(
    root: &Path,
    options: &PackOptions,
    wanted: &Wanted,
    local: Option<&Interpreter>,
) -> Result<BaseName, PackError> {
    let fits = |version: &[u32]| {
        version[0] == 3
            && version.len() > 1
            && wanted.versions.as_ref().is_none_or(|versions| versions.allow(version))
    };
    let local = local.map(|local| local.version).filter(|version| fits(version));
    let usual = local.map(|[major, minor]| format!("{major}.{minor}"));
    let known = usual.as_deref().and_then(|usual| BaseName::new(RuntimeName::Python, usual));
    let known = known.is_some_and(|usual| options.known.contains(&usual));
    let fits = |version: &[u32]| match (&options.runtime, local) {
        (None, Some(local)) if known => version == local,
        _ => fits(version),
    };
    let least = (0..30).find(|minor| fits(&[3, *minor])).map(|minor| format!("3.{minor}"));
    let usual = usual.or(least.filter(|_| !fits(&[3, 11]))).unwrap_or_else(|| USUAL.to_owned());
    let needs =
        Needs { runtime: RuntimeName::Python, usual: &usual, fits: &fits, because: &wanted.says };
    options.base(root, &needs)
}

#[cfg(test)]
mod tests;
