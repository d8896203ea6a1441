//! What each source file keeps to: size, an opening that says what it promises, a name that is a
//! noun, nothing left to do, and no registry but the public ones.

use std::fs;
use std::path::{Path, PathBuf};

use super::Complaint;

/// Lines without tests: above the first a warning, above the second an error.
const LONG: usize = 400;
const TOO_LONG: usize = 800;

/// Files that may be longer, each with its reason.
const LONGER: &[(&str, &str)] = &[];

/// Folders that hold Rust of ours.
const SOURCES: &[&str] = &["bench", "crates", "fuzz", "samples", "xtask"];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"];

pub(super) fn check(root: &Path) -> anyhow::Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    for folder in SOURCES {
        for file in rust_files(&root.join(folder))? {
            let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
            complaints.extend(check_file(&name, &fs::read_to_string(&file)?));
        }
    }
    complaints.extend(check_lock(&fs::read_to_string(root.join("Cargo.lock"))?));
    Ok(complaints)
}

fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn check_file(name: &str, text: &str) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    // What a file of unit tests promises is plain from the module it belongs to.
    if !text.starts_with("//!") && !name.ends_with("/tests.rs") {
        complaints.push(Complaint::wrong(format!(
            "{name} does not open with `//!`: say what it promises and what it does not know"
        )));
    }
    let mut words = name.trim_end_matches(".rs").split('/');
    if let Some(word) = words.find(|word| EMPTY_NAMES.contains(word)) {
        complaints.push(Complaint::wrong(format!("{name}: the name {word:?} says nothing")));
    }
    // Spelt in two parts, so that this file keeps its own rule.
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimpl", "emented!")];
    for (number, line) in text.lines().enumerate() {
        if let Some(word) = unfinished.iter().find(|word| line.contains(**word)) {
            complaints.push(Complaint::wrong(format!(
                "{name}:{}: {word}: finish it, or return an error that says it is missing",
                number + 1
            )));
        }
    }
    complaints.extend(check_size(name, text));
    complaints
}

fn check_size(name: &str, text: &str) -> Option<Complaint> {
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    let excused = LONGER.iter().any(|(file, _)| *file == name);
    // Tests read from top to bottom: a long list of them hides nothing.
    let long = if name.contains("/tests") { TOO_LONG } else { LONG };
    if lines > TOO_LONG && !excused {
        return Some(Complaint::wrong(format!(
            "{name} has {lines} lines without tests: split it, or give a reason in \
             xtask/src/tidy/files.rs"
        )));
    }
    (lines > long && !excused)
        .then(|| Complaint::Warning(format!("{name} has {lines} lines without tests")))
}

/// A lock file that names a mirror works on one machine only.
fn check_lock(text: &str) -> Option<Complaint> {
    let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let foreign = text.lines().find(|line| line.starts_with("source = ") && *line != public)?;
    Some(Complaint::wrong(format!("Cargo.lock names another registry: {foreign}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_file_is_fine() {
        assert_eq!(check_file("crates/core/src/fleet.rs", "//! The fleet.\nfn f() {}\n"), []);
    }

    #[test]
    fn each_rule_is_noticed() {
        let todo = format!("//! Text.\n// {}: later\n", concat!("TO", "DO"));
        let long = format!("//! Text.\n{}", "fn f() {}\n".repeat(900));
        let tests = format!("//! Text.\n#[cfg(test)]\n{}", "fn f() {}\n".repeat(900));
        let count = |name: &str, text: &str| check_file(name, text).len();
        assert_eq!(count("crates/x/src/lib.rs", "fn f() {}\n"), 1);
        assert_eq!(count("crates/x/src/utils/lib.rs", "//! Text.\n"), 1);
        assert_eq!(count("crates/x/src/lib.rs", &todo), 1);
        assert_eq!(count("crates/x/src/lib.rs", &long), 1);
        assert_eq!(count("crates/x/src/lib.rs", &tests), 0);
    }

    #[test]
    fn a_mirror_in_the_lock_file_is_noticed() {
        let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n";
        assert_eq!(check_lock(public), None);
        assert!(check_lock("source = \"sparse+https://mirror.example/\"\n").is_some());
    }
}
