//! A Node.js project with its `package-lock.json`.
//!
//! Promises: the dependencies are those of the lock, installed by the person's own npm once for
//! each lock and kept; they are a layer of their own below the project's. Nothing of the
//! project is executed; scripts of dependencies run when npm runs them. Does not build: what
//! `npm run build` makes has to be there.
//!
//! In the image the project lies in `/app`, its dependencies in `/app/node_modules`.

mod install;
mod project;
mod start;

use std::path::Path;

use stead_core::api::package::{BaseName, PackageKind, RuntimeName};

use super::error::PackError;
use super::ignore;
use super::pack::{Needs, Pack, PackOptions};
use super::tar::{Layer, Tree};
use super::tool;
use super::versions::Versions;
use project::Project;
use start::Start;

/// Where the project lies in the image.
const PROJECT: &str = "/app";
/// Where its dependencies lie, from the project and in the folder they are installed in.
const MODULES: &str = "node_modules";
/// What to get where nothing says which Node.js.
const USUAL: u32 = 20;

/// Whether the folder at `path` is a Node.js project.
pub(super) fn is_folder(path: &Path) -> bool {
    path.join(project::FILE).is_file()
}

/// Cuts the project at `root` into layers.
///
/// # Errors
/// When nothing says how it is started, it has dependencies and no lock, or they cannot be
/// installed.
pub(super) fn pack(root: &Path, options: &PackOptions) -> Result<Pack, PackError> {
    let project = Project::read(root)?;
    let mut notes = Vec::new();
    let local = local();
    let base = base(root, &project, options, local, &mut notes)?;
    let mut found = ignore::walk(root)?;
    // Whatever `.steadignore` takes back: what is installed is what the lock says.
    found.retain(|found| !found.path.starts_with(MODULES));
    notes.extend(ignore::left_out(root, &found));

    let mut layers = Vec::new();
    let installed = install::install(root, &project, &base, local, options)?;
    if let Some(folder) = &installed {
        let modules = folder.join(MODULES);
        let mut all = ignore::walk_all(&modules)?;
        // npm's own notes; they name the project's version.
        all.retain(|found| found.path != Path::new(".package-lock.json"));
        let mut tree = Tree::new();
        ignore::add(&mut tree, Path::new(PROJECT).join(MODULES), &modules, &all)?;
        if !tree.is_empty() {
            notes.push("dependencies from package-lock.json".to_owned());
            layers.push(Layer::new("dependencies", tree));
        }
        let skipped = project.install_scripts();
        if !skipped.is_empty() {
            notes.push(format!("package.json's own {} did not run", skipped.join(", ")));
        }
    }
    let start = Start::find(root, &project, &found, installed.as_deref(), options.told_port())?;
    notes.push(format!("starts as `{}`, says {}", start.command.join(" "), start.says));
    notes.extend(start.notes);
    let mut tree = Tree::new();
    ignore::add(&mut tree, PROJECT, root, &found)?;
    layers.push(Layer::new("project", tree));

    let mut env = start.env;
    env.entry("NODE_ENV".to_owned()).or_insert_with(|| "production".to_owned());
    Ok(Pack {
        kind: PackageKind::Node,
        base: Some(base),
        layers,
        config: options.config(start.command, PROJECT, env),
        notes,
    })
}

/// The major version of this machine's Node.js, which npm installs for.
fn local() -> Option<u32> {
    let said = tool::run(std::process::Command::new("node").arg("--version"), "node", "").ok()?;
    said.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// The base: the Node.js of this machine if the platform has it too; else another that the
/// platform has.
fn base(
    root: &Path,
    project: &Project,
    options: &PackOptions,
    local: Option<u32>,
    notes: &mut Vec<String>,
) -> Result<BaseName, PackError> {
    let pinned = match ignore::read(root, ".nvmrc")? {
        None => ignore::read(root, ".node-version")?,
        pinned => pinned,
    };
    let named = match &pinned {
        Some(text) => Some((".nvmrc or .node-version", text.trim())),
        None => project.engine().map(|text| ("engines.node", text)),
    };
    let versions = named.and_then(|(_, text)| Versions::read(text));
    let because = match named {
        Some((name, text)) if versions.is_some() => format!("{name} says {text}"),
        Some((name, text)) => {
            notes.push(format!("{name} is {text:?}, which is not understood and not heeded"));
            "it runs on Node.js".to_owned()
        }
        None => "it runs on Node.js".to_owned(),
    };
    let fits = |version: &[u32]| versions.as_ref().is_none_or(|versions| versions.allow(version));
    let local = local.filter(|local| fits(&[*local]));
    let name = local.and_then(|local| BaseName::new(RuntimeName::Node, &local.to_string()));
    let known = name.is_some_and(|name| options.known.contains(&name));
    let fits = |version: &[u32]| match (&options.runtime, local) {
        (None, Some(local)) if known => version == [local],
        _ => fits(version),
    };
    let least = || (USUAL..100).chain(1..USUAL).find(|major| fits(&[*major]));
    let usual = local.or_else(least).unwrap_or(USUAL).to_string();
    let needs = Needs { runtime: RuntimeName::Node, usual: &usual, fits: &fits, because: &because };
    options.base(root, &needs)
}

#[cfg(test)]
mod tests;
