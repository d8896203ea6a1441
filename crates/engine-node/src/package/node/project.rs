//! What `package.json` says of a project.

use std::path::Path;

use serde_json::{Map, Value};

use crate::package::error::PackError;
use crate::package::ignore;

/// Its name.
pub(super) const FILE: &str = "package.json";
/// Scripts that npm runs when it installs, of the project itself.
const INSTALL_SCRIPTS: [&str; 5] =
    ["preinstall", "install", "postinstall", "prepublish", "prepare"];

/// The file, as it is: npm understands more of it than packing has to.
#[derive(Debug)]
pub(super) struct Project {
    fields: Map<String, Value>,
}

impl Project {
    /// Reads the file of the project at `root`.
    ///
    /// # Errors
    /// When it is not there or no JSON object, or the project is one of several in a workspace.
    pub(super) fn read(root: &Path) -> Result<Self, PackError> {
        let path = root.join(FILE);
        let text = ignore::read(root, FILE)?.unwrap_or_default();
        let fields: Map<String, Value> = serde_json::from_str(&text).map_err(|error| {
            PackError::unfit(&path, format!("it is malformed: {error}"), "mend the file")
        })?;
        if fields.contains_key("workspaces") {
            let hint = "name the folder of one project that has a package-lock.json of its own, \
                        or bundle it and name the folder with the bundle";
            return Err(PackError::unfit(&path, "workspaces are not packed", hint));
        }
        Ok(Self { fields })
    }

    /// A field that is text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }

    /// A script by its name.
    pub(super) fn script(&self, name: &str) -> Option<&str> {
        self.fields.get("scripts")?.get(name)?.as_str()
    }

    /// Which versions of Node.js it says it runs on.
    pub(super) fn engine(&self) -> Option<&str> {
        self.fields.get("engines")?.get("node")?.as_str()
    }

    /// Whether it names anything that has to be installed for it to run.
    pub(super) fn has_dependencies(&self) -> bool {
        ["dependencies", "optionalDependencies"]
            .iter()
            .filter_map(|name| self.fields.get(*name)?.as_object())
            .any(|dependencies| !dependencies.is_empty())
    }

    /// Scripts of its own that npm would run when it installs, and packing does not.
    pub(super) fn install_scripts(&self) -> Vec<&'static str> {
        INSTALL_SCRIPTS.into_iter().filter(|name| self.script(name).is_some()).collect()
    }

    /// The part of the file that decides what is installed.
    pub(super) fn for_install(&self) -> Value {
        let is_wanted = |name: &str| {
            let name = name.to_ascii_lowercase();
            name.ends_with("dependencies")
                || name.ends_with("dependenciesmeta")
                || name == "overrides"
        };
        let wanted = self.fields.iter().filter(|(name, _)| is_wanted(name));
        Value::Object(wanted.map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}
