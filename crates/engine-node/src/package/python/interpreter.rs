//! The Python interpreters of this machine.

use std::process::Command;

use stead_core::api::package::BaseName;

use crate::package::tool;

/// An interpreter that can be run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interpreter {
    pub(super) program: String,
    /// Major and minor.
    pub(super) version: [u32; 2],
}

impl Interpreter {
    /// The one that a person gets who does not care.
    pub(super) fn usual() -> Option<Self> {
        ["python3", "python"].into_iter().find_map(Self::of).filter(|it| it.version[0] == 3)
    }

    /// One of the version of `base`, if this machine has it.
    pub(super) fn of_base(base: &BaseName) -> Option<Self> {
        let [major, minor, ..] = base.numbers()[..] else { return None };
        let version = [major, minor];
        let usual = Self::usual().filter(|usual| usual.version == version);
        usual.or_else(|| Self::of(&format!("python{major}.{minor}")))
    }

    fn of(program: &str) -> Option<Self> {
        // The interpreter itself rather than the script of a version manager before it, which
        // does work of its own after each installation.
        let ask = "import sys; print(sys.version_info[0], sys.version_info[1], sys.executable)";
        // What cannot be asked is not there: version managers leave names that only complain.
        let said = tool::run(Command::new(program).args(["-I", "-c", ask]), program, "").ok()?;
        let mut parts = said.trim_end().splitn(3, ' ');
        let version = [parts.next()?.parse().ok()?, parts.next()?.parse().ok()?];
        let program = parts.next().filter(|path| path.starts_with('/'))?.to_owned();
        Some(Self { program, version })
    }
}
