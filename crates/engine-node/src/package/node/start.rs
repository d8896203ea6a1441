//! How a Node.js project is started.
//!
//! Promises: as `npm start` would, without npm and without a shell: signals reach the program.
//! What is started is part of the package, or an error says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use super::MODULES;
use super::project::{FILE, Project};
use crate::package::error::PackError;
use crate::package::ignore::{self, Found};
use crate::package::words;

/// The program of the base.
const NODE: &str = "node";
/// Deepest chain of scripts that call each other.
const MAX_DEPTH: usize = 8;
/// Files that are started where nothing else is said; `npm start` takes the first, too.
const FILES: [&str; 2] = ["server.js", "index.js"];
/// Options of Node.js whose value is the next word.
const WITH_VALUE: [&str; 7] =
    ["-r", "--require", "--import", "--loader", "--experimental-loader", "--env-file", "-C"];

/// What starts it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) command: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// Where it is written.
    pub(super) says: &'static str,
    pub(super) notes: Vec<String>,
}

impl Start {
    /// How the project at `root`, of which `found` is packed, with its dependencies in
    /// `installed`, is started on `port`.
    ///
    /// # Errors
    /// When nothing says so, a shell is needed, or what is started is not there.
    pub(super) fn find(
        root: &Path,
        project: &Project,
        found: &[Found],
        installed: Option<&Path>,
        port: u16,
    ) -> Result<Self, PackError> {
        let packed = found.iter().map(|found| found.path.clone()).collect();
        let search = Search { root, project, packed, installed, port };
        let procfile = ignore::read(root, "Procfile")?.unwrap_or_default();
        if let Some((line, note)) = words::procfile(&procfile) {
            let mut start = search.line(line, "Procfile", 0)?;
            start.notes.extend(note);
            return Ok(start);
        }
        if let Some(line) = project.script("start") {
            let mut start = search.line(line, "scripts.start", 0)?;
            for skipped in ["prestart", "poststart"].iter().filter(|n| project.script(n).is_some())
            {
                start.notes.push(format!("{skipped} of package.json does not run"));
            }
            return Ok(start);
        }
        let says = if project.text("main").is_some() { "main" } else { "its name" };
        let files = project.text("main").into_iter().chain(FILES);
        let (mut files, mut missing) = (files.map(str::to_owned), None);
        let file = files.find(|file| {
            let is_there = search.resolve(file).is_some();
            missing.get_or_insert_with(|| file.clone());
            is_there
        });
        match file {
            Some(file) => {
                let command = vec![NODE.to_owned(), file];
                Ok(Self { command, env: BTreeMap::new(), says, notes: Vec::new() })
            }
            None if says == "main" => Err(search.missing(&missing.unwrap_or_default())),
            None if root.join("index.html").is_file() => Err(PackError::unfit(
                root,
                "nothing says how it is started",
                "if it is a web site, name the folder that its build makes, such as ./dist; or \
                 write `site: {}` into the manifest, if there is nothing to build",
            )),
            None => Err(PackError::unfit(
                root,
                "nothing says how it is started",
                "write `scripts: {\"start\": \"node FILE\"}` into package.json",
            )),
        }
    }
}

struct Search<'a> {
    root: &'a Path,
    project: &'a Project,
    packed: BTreeSet<PathBuf>,
    installed: Option<&'a Path>,
    port: u16,
}

impl Search<'_> {
    /// What a command line starts.
    fn line(&self, line: &str, says: &'static str, depth: usize) -> Result<Start, PackError> {
        let known = BTreeMap::from([("PORT".to_owned(), self.port.to_string())]);
        let unfit = |reason: String| {
            let hint = "write a file `Procfile` with a line such as `web: node dist/server.js`";
            Err(PackError::unfit(&self.root.join(FILE), reason, hint))
        };
        let words::Command { env, words } = match words::command(line, &known) {
            Ok(command) => command,
            Err(reason) => return unfit(format!("`{line}`: {reason}")),
        };
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let command: Vec<String> = match words.as_slice() {
            ["node", arguments @ ..] => {
                self.check(arguments)?;
                owned(&words)
            }
            ["npm", "run" | "run-script", name] | ["npm", name @ "start"] => {
                let Some(line) = self.project.script(name).filter(|_| depth < MAX_DEPTH) else {
                    return unfit(format!("`{line}` calls no script of package.json"));
                };
                let mut start = self.line(line, says, depth + 1)?;
                start.env.extend(env);
                return Ok(start);
            }
            ["npx", program, arguments @ ..] | [program, arguments @ ..] => {
                if !self.is_script(program) {
                    return unfit(format!(
                        "`{line}` starts {program}, which is no script of Node.js among its \
                         dependencies (those of `devDependencies` are not installed)"
                    ));
                }
                let path = format!("{MODULES}/.bin/{program}");
                [NODE.to_owned(), path].into_iter().chain(owned(arguments)).collect()
            }
            [] => return unfit(format!("`{line}` has no program")),
        };
        Ok(Start { command, env, says, notes: Vec::new() })
    }

    /// Makes sure that the file is there which these arguments make Node.js start.
    fn check(&self, arguments: &[&str]) -> Result<(), PackError> {
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            if WITH_VALUE.contains(argument) {
                arguments.next();
            } else if matches!(*argument, "-e" | "--eval" | "-p" | "--print") {
                return Ok(());
            } else if !argument.starts_with('-') {
                return match self.resolve(argument) {
                    Some(_) => Ok(()),
                    None => Err(self.missing(argument)),
                };
            }
        }
        Err(self.missing("a file to start"))
    }

    fn missing(&self, file: &str) -> PackError {
        let reason = format!("{file}, which starts it, is not there or left out");
        let hint = "build it first (`npm run build`), and do not name it in .steadignore";
        PackError::unfit(self.root, reason, hint)
    }

    /// The packed file that `node NAME` starts (Node.js, "Modules: CommonJS modules").
    fn resolve(&self, name: &str) -> Option<PathBuf> {
        let mut plain = PathBuf::new();
        for part in Path::new(name).components() {
            match part {
                Component::Normal(part) => plain.push(part),
                Component::CurDir => {}
                Component::ParentDir if plain.pop() => {}
                _ => return None,
            }
        }
        if plain.starts_with(MODULES) {
            return self.installed?.join(&plain).exists().then_some(plain);
        }
        let endings = ["", ".js", ".json", ".node", "/index.js"];
        let mut files = endings.iter().map(|ending| match ending.strip_prefix('/') {
            Some(file) => plain.join(file),
            None => PathBuf::from(format!("{}{ending}", plain.display())),
        });
        files.find(|file| self.packed.contains(file))
    }

    /// Whether a program of the dependencies is a script of Node.js.
    fn is_script(&self, program: &str) -> bool {
        let Some(installed) = self.installed.filter(|_| !program.contains('/')) else {
            return false;
        };
        let mut first = Vec::new();
        let path = installed.join(MODULES).join(".bin").join(program);
        let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut first));
        let line = first.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        read.is_ok() && line.starts_with("#!") && line.contains("node")
    }
}
