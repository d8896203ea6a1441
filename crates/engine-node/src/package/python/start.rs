//! How a Python project is started.
//!
//! Promises: it is written in the project, or an error says how to write it. Console scripts
//! are started by the interpreter, without a shell and whatever their first line names.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::project::Project;
use super::{AS_NODE, DEPENDENCIES};
use crate::package::error::PackError;
use crate::package::ignore::{self, Found, Kind};
use crate::package::{node, words};

/// The interpreter of the base.
const PYTHON: &str = "python3";
/// Files that are started where nothing else is said.
const FILES: [&str; 2] = ["app.py", "main.py"];
const HINT: &str = "write a file `Procfile` with a line such as `web: gunicorn app:app -b \
                    0.0.0.0:$PORT`";

/// What starts it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// Where it is written.
    pub(super) says: &'static str,
    pub(super) note: Option<String>,
}

impl Start {
    /// How the project at `root`, with its dependencies in `installed`, is started on `port`.
    ///
    /// # Errors
    /// When nothing says so, or a shell is needed.
    pub(super) fn find(
        root: &Path,
        project: &Project,
        installed: Option<&Path>,
        port: u16,
    ) -> Result<Self, PackError> {
        let procfile = ignore::read(root, "Procfile")?.unwrap_or_default();
        if let Some((line, note)) = words::procfile(&procfile) {
            let known = BTreeMap::from([("PORT".to_owned(), port.to_string())]);
            let command = words::command(line, &known).map_err(|reason| {
                let hint = "write it without a shell, or start a script of the project";
                PackError::unfit(&root.join("Procfile"), format!("`web`: {reason}"), hint)
            })?;
            let env = command.env;
            let command = interpreted(command.words, project, installed);
            return Ok(Self { command, env, says: "Procfile", note });
        }
        let env = BTreeMap::new();
        if let Some(function) = script(root, project)? {
            let command = call(function);
            return Ok(Self { command, env, says: "pyproject.toml", note: None });
        }
        match FILES.into_iter().find(|file| root.join(file).is_file()) {
            Some(file) => {
                let command = vec![PYTHON.to_owned(), file.to_owned()];
                Ok(Self { command, env, says: "its name", note: None })
            }
            None => {
                let hint = match node::is_folder(root) {
                    true => format!("{HINT}; or, as it has a package.json, too: {AS_NODE}"),
                    false => HINT.to_owned(),
                };
                Err(PackError::unfit(root, "nothing says how it is started", hint))
            }
        }
    }
}

impl Start {
    /// Makes sure that what it starts is among what is packed of the project at `root`. Gives
    /// what a person should know where only the base can tell.
    ///
    /// # Errors
    /// When it is not.
    pub(super) fn check(&self, root: &Path, found: &[Found]) -> Result<Option<String>, PackError> {
        let file = match self.command.as_slice() {
            [program, file, ..] if program == PYTHON && !file.starts_with('-') => file,
            [program, ..] if program == PYTHON => return Ok(None),
            [program, ..] if !program.contains('/') => {
                return Ok(Some(format!(
                    "{program} is no program of its dependencies: the base must have it"
                )));
            }
            [program, ..] => program,
            [] => return Ok(None),
        };
        let path = Path::new(file);
        if path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Ok(None);
        }
        let path: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        let is_there = found.iter().any(|found| match found.kind {
            Kind::File { .. } => found.path.starts_with(&path),
            Kind::Link { .. } => path.starts_with(&found.path),
        });
        match is_there {
            true => Ok(None),
            false => {
                let reason = format!("{file}, which starts it, is not there or left out");
                let hint = "correct the Procfile, or do not name it in .steadignore";
                Err(PackError::unfit(root, reason, hint))
            }
        }
    }
}

/// The function of the project's one script, or of the one that has its name.
fn script<'a>(root: &Path, project: &'a Project) -> Result<Option<&'a str>, PackError> {
    let named = project.name.as_ref().and_then(|name| project.scripts.get(name));
    match (project.scripts.len(), named) {
        (_, Some(function)) => Ok(Some(function)),
        (0, None) => Ok(None),
        (1, None) => Ok(project.scripts.values().next().map(String::as_str)),
        (_, None) => {
            let names: Vec<&str> = project.scripts.keys().map(String::as_str).collect();
            let reason = format!("pyproject.toml has several scripts: {}", names.join(", "));
            let hint = format!("write a file `Procfile` with the line `web: {}`", names[0]);
            Err(PackError::unfit(root, reason, hint))
        }
    }
}

/// The command with its program as the interpreter finds it in the image.
fn interpreted(words: Vec<String>, project: &Project, installed: Option<&Path>) -> Vec<String> {
    let program = words[0].as_str();
    let is_installed = installed.is_some_and(|folder| folder.join("bin").join(program).is_file());
    let mut command = match project.scripts.get(program) {
        Some(function) => call(function),
        None if is_installed => vec![PYTHON.to_owned(), format!("{DEPENDENCIES}/bin/{program}")],
        None if program == "python" => vec![PYTHON.to_owned()],
        None => vec![program.to_owned()],
    };
    command.extend(words.into_iter().skip(1));
    command
}

/// Calls `package.module:function`, as the script that an installer writes.
fn call(function: &str) -> Vec<String> {
    // Extras may follow in brackets; they say what else has to be installed.
    let function = function.split('[').next().unwrap_or(function).trim();
    let (module, name) = function.split_once(':').unwrap_or((function, "main"));
    let (module, name) = (module.trim(), name.trim());
    let first = name.split('.').next().unwrap_or(name);
    let code = format!("import sys; from {module} import {first}; sys.exit({name}())");
    vec![PYTHON.to_owned(), "-c".to_owned(), code]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn find(files: &[(&str, &str)]) -> Result<Start, PackError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let installed = dir.path().join("installed");
        Start::find(dir.path(), &Project::read(dir.path())?, Some(&installed), 5000)
    }

    #[test]
    fn the_procfile_comes_first() {
        let procfile = "web: A=b gunicorn app:app -b 0.0.0.0:$PORT\nworker: celery";
        let start = find(&[("Procfile", procfile), ("app.py", ""), ("installed/bin/gunicorn", "")])
            .unwrap();
        let expected = ["python3", "/opt/app/python/bin/gunicorn", "app:app", "-b", "0.0.0.0:5000"];
        assert_eq!(start.command, expected);
        assert_eq!(start.env["A"], "b");
        assert!(start.note.unwrap().contains("worker"));
        let start = find(&[("Procfile", "web: python manage.py runserver")]).unwrap();
        assert_eq!(start.command, ["python3", "manage.py", "runserver"]);
        let error = find(&[("Procfile", "web: a && b")]).unwrap_err();
        assert!(error.to_string().contains("needs a shell"), "{error}");
    }

    #[test]
    fn of_a_project_in_both_languages_it_says_how_to_choose() {
        let hint = |files: &[(&str, &str)]| find(files).unwrap_err().hint().to_owned();
        assert!(hint(&[("package.json", "{}")]).contains("runtime: {node"));
        assert!(!hint(&[]).contains("node"));
    }

    #[test]
    fn a_script_of_the_project_is_called() {
        let project =
            |scripts: &str| format!("[project]\nname = 'it'\n[project.scripts]\n{scripts}");
        let one = project("serve = 'it.web:cli.run'");
        let start = find(&[("pyproject.toml", &one), ("main.py", "")]).unwrap();
        let code = "import sys; from it.web import cli; sys.exit(cli.run())";
        assert_eq!(start.command, ["python3", "-c", code]);
        let two = project("serve = 'it.web:main'\nload = 'it:load'");
        let error = find(&[("pyproject.toml", &two)]).unwrap_err();
        assert!(error.to_string().contains("load, serve"), "{error}");
        let procfile = ("Procfile", "web: serve --port $PORT");
        let start = find(&[("pyproject.toml", &two), procfile]).unwrap();
        assert_eq!(start.command[3..], ["--port", "5000"]);
        let own = project("it = 'it:main'\nload = 'it:load'");
        assert!(find(&[("pyproject.toml", &own)]).unwrap().command[2].contains("import main"));
    }

    #[test]
    fn what_is_started_is_packed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("bin")).unwrap();
        for file in ["app.py", "bin/run", "Procfile", ".steadignore"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        std::os::unix::fs::symlink("bin", dir.path().join("link")).unwrap();
        let check = |line: &str| {
            fs::write(dir.path().join("Procfile"), format!("web: {line}\n")).unwrap();
            let start = Start::find(dir.path(), &Project::default(), None, 80).unwrap();
            start.check(dir.path(), &ignore::walk(dir.path()).unwrap())
        };
        for there in ["python app.py", "python -m app", "./bin/run x", "link/run", "python ."] {
            assert_eq!(check(there).unwrap(), None, "{there}");
        }
        for gone in ["python gone.py", "./run", "bin/gone"] {
            assert!(check(gone).unwrap_err().to_string().contains("not there"), "{gone}");
        }
        assert!(check("gunicorn app:app").unwrap().unwrap().contains("base must have it"));
        fs::write(dir.path().join(".steadignore"), "*.py\n").unwrap();
        assert!(check("python app.py").unwrap_err().to_string().contains("left out"));
    }

    #[test]
    fn files_of_usual_names_are_started_and_else_nothing() {
        let start = find(&[("main.py", ""), ("x.py", "")]).unwrap();
        assert_eq!(start.command, ["python3", "main.py"]);
        assert!(find(&[("x.py", "")]).unwrap_err().hint().contains("Procfile"));
    }
}
