//! The dependencies of a lock, installed into a folder that is kept.
//!
//! Promises: the same lock for the same Python is installed once. The interpreter of the same
//! version installs where this machine has one; another one takes only wheels, made for the
//! base's version.

use std::env::consts::ARCH;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use stead_core::api::package::BaseName;

use super::interpreter::Interpreter;
use super::lock::{How, Lock};
use super::{DEPENDENCIES, bytecode};
use crate::hash;
use crate::package::error::PackError;
use crate::package::kept::Kept;
use crate::package::pack::PackOptions;
use crate::package::tool;

/// Raised when the same lock shall be installed anew: another way to install.
const EDITION: u32 = 1;
/// Oldest C library that wheels for another Python than this machine's are taken for.
const MANYLINUX: [&str; 4] = ["manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux1"];

/// The folder with what `lock` says, for the Python of `base`.
///
/// # Errors
/// When pip or uv are missing or fail.
pub(super) fn install(
    root: &Path,
    lock: &Lock,
    base: &BaseName,
    options: &PackOptions,
) -> Result<PathBuf, PackError> {
    let about = format!("{EDITION} {base} {ARCH}\n{}", lock.key);
    let key = hash::digest_of(about);
    Kept::open(&options.cache, "python")?.get(key.hex(), |folder| {
        (options.progress)("installing dependencies");
        let fitting = Interpreter::of_base(base);
        let requirements = match &lock.how {
            How::File(path) => {
                // The installer has another working folder.
                let path = std::path::absolute(path).map_err(PackError::io(path))?;
                Requirements { path, is_complete: false, _file: None }
            }
            How::Exactly(text) => Requirements::of(text, folder)?,
        };
        let installer = Installer::find(fitting.as_ref(), lock)?;
        let mut command = installer.command(&requirements, folder, base, fitting.as_ref());
        command.current_dir(match installer {
            // Python looks for pip where it is started first, and nothing of the project runs.
            Installer::Pip(_) => folder.parent().unwrap_or(Path::new("/")),
            Installer::Uv => root,
        });
        tool::run(&mut command, installer.name(), installer.hint())?;
        // Nothing to install, by its markers, makes no folder.
        fs::create_dir_all(folder).map_err(PackError::io(folder))?;
        tidy(folder)?;
        if let Some(interpreter) = fitting {
            bytecode::compile(&interpreter, folder, DEPENDENCIES)?;
        }
        Ok(())
    })
}

/// A file with requirements.
struct Requirements {
    path: PathBuf,
    /// What they need is among them.
    is_complete: bool,
    /// Goes when it is dropped.
    _file: Option<Written>,
}

struct Written(PathBuf);

impl Drop for Written {
    fn drop(&mut self) {
        // Only a cache's: it goes with what was not used for long.
        let _ = fs::remove_file(&self.0);
    }
}

impl Requirements {
    fn of(text: &str, beside: &Path) -> Result<Self, PackError> {
        let mut path = beside.as_os_str().to_owned();
        path.push(".txt");
        let path = PathBuf::from(path);
        let mut file = fs::File::create(&path).map_err(PackError::io(&path))?;
        let written = Written(path.clone());
        file.write_all(text.as_bytes()).map_err(PackError::io(&path))?;
        Ok(Self { path, is_complete: true, _file: Some(written) })
    }
}

/// Who installs.
enum Installer {
    /// The pip of this interpreter.
    Pip(String),
    Uv,
}

impl Installer {
    /// pip where the interpreter has one, else uv. A lock of uv is installed by uv.
    fn find(fitting: Option<&Interpreter>, lock: &Lock) -> Result<Self, PackError> {
        if lock.file == "uv.lock" {
            return Ok(Self::Uv);
        }
        let usual = fitting.cloned().or_else(Interpreter::usual);
        let has_pip = |interpreter: &Interpreter| {
            let ask = ["-c", "import importlib.util as u; exit(u.find_spec('pip') is None)"];
            let mut command = Command::new(&interpreter.program);
            tool::run(command.current_dir("/").args(ask), "python", "").is_ok()
        };
        if let Some(interpreter) = usual.filter(has_pip) {
            return Ok(Self::Pip(interpreter.program));
        }
        match tool::run(Command::new("uv").arg("--version"), "uv", "") {
            Ok(_) => Ok(Self::Uv),
            Err(_) => Err(PackError::Tool {
                tool: "pip".to_owned(),
                reason: "it is not installed, and uv is not either".to_owned(),
                hint: "install one: `apt-get install python3-pip`".to_owned(),
            }),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Pip(_) => "pip",
            Self::Uv => "uv",
        }
    }

    fn hint(&self) -> &'static str {
        "make the same work in the project's folder first; where a dependency has no wheel for \
         the base's Python, choose the Python of this machine with `runtime: {python: VERSION}`"
    }

    fn command(
        &self,
        requirements: &Requirements,
        folder: &Path,
        base: &BaseName,
        fitting: Option<&Interpreter>,
    ) -> Command {
        let mut command;
        match self {
            Self::Pip(python) => {
                command = Command::new(python);
                command.args(["-m", "pip", "install", "--no-compile", "--no-input"]);
                command.args(["--disable-pip-version-check", "--progress-bar", "off"]);
                // Configuration that makes sense for a person's own environment only.
                command.env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0");
                command.env("PIP_ROOT_USER_ACTION", "ignore");
                if fitting.is_none() {
                    command.args(["--only-binary=:all:", "--implementation", "cp"]);
                    command.args(["--python-version", base.version()]);
                    for platform in MANYLINUX {
                        command.args(["--platform", &format!("{platform}_{ARCH}")]);
                    }
                }
            }
            Self::Uv => {
                command = Command::new("uv");
                command.args(["pip", "install", "--link-mode", "copy", "--no-python-downloads"]);
                match fitting {
                    Some(interpreter) => command.args(["--python", &interpreter.program]),
                    None => command.args([
                        "--only-binary=:all:",
                        "--python-version",
                        base.version(),
                        "--python-platform",
                        &format!("{ARCH}-manylinux_2_28"),
                    ]),
                };
            }
        }
        if requirements.is_complete {
            command.arg("--no-deps");
        }
        command.arg("--target").arg(folder).arg("-r").arg(&requirements.path);
        command
    }
}

/// Makes of what an installer leaves what is the same on every machine.
fn tidy(folder: &Path) -> Result<(), PackError> {
    // uv's own; it names this machine's paths.
    let _ = fs::remove_file(folder.join(".lock"));
    let Ok(scripts) = fs::read_dir(folder.join("bin")) else { return Ok(()) };
    for script in scripts {
        let path = script.map_err(PackError::io(folder))?.path();
        let bytes = fs::read(&path).map_err(PackError::io(&path))?;
        // The first line names the interpreter that installed it.
        let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
        let first = String::from_utf8_lossy(&bytes[..end]);
        if first.starts_with("#!") && first.contains("python") {
            let text = [b"#!/usr/bin/env python3", &bytes[end..]].concat();
            fs::write(&path, text).map_err(PackError::io(&path))?;
        }
    }
    Ok(())
}
