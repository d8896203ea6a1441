//! What `pyproject.toml` says of a project.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::package::error::PackError;
use crate::package::ignore;

/// What packing needs of it. Empty where there is no such file.
#[derive(Debug, Default)]
pub(super) struct Project {
    pub(super) name: Option<String>,
    /// Commands by name, each `package.module:function`.
    pub(super) scripts: BTreeMap<String, String>,
    pub(super) requires_python: Option<String>,
    /// Whether it names anything that has to be installed.
    pub(super) has_dependencies: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    project: Standard,
    tool: Tool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Standard {
    name: Option<String>,
    scripts: BTreeMap<String, String>,
    requires_python: Option<String>,
    dependencies: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tool {
    poetry: Poetry,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Poetry {
    name: Option<String>,
    /// A table is for scripts that are files, which are no commands of a package.
    scripts: BTreeMap<String, toml::Value>,
    dependencies: BTreeMap<String, toml::Value>,
}

impl Project {
    /// Reads the file of the project at `root`.
    ///
    /// # Errors
    /// When it is there and not TOML of this form.
    pub(super) fn read(root: &Path) -> Result<Self, PackError> {
        const NAME: &str = "pyproject.toml";
        let Some(text) = ignore::read(root, NAME)? else { return Ok(Self::default()) };
        let file: File = toml::from_str(&text).map_err(|error| {
            let reason = format!("it is malformed: {}", error.message());
            PackError::unfit(&root.join(NAME), reason, "mend the file")
        })?;
        let (standard, poetry) = (file.project, file.tool.poetry);
        let words = |(name, value): (String, toml::Value)| Some((name, value.as_str()?.to_owned()));
        let of_poetry = poetry.scripts.into_iter().filter_map(words);
        let needs = poetry.dependencies.keys().any(|name| name != "python");
        Ok(Self {
            name: standard.name.or(poetry.name),
            scripts: of_poetry.chain(standard.scripts).collect(),
            requires_python: standard.requires_python,
            has_dependencies: needs || !standard.dependencies.is_empty(),
        })
    }
}
