//! A program's version, found in the program: nothing is executed to ask for it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Largest program that is read, bytes.
const MAX_PROGRAM: u64 = 512 << 20;

type Key = (PathBuf, Vec<u8>, i64, u64);
/// What was found before: a program of a hundred megabytes is not read each time it is asked for.
static KNOWN: LazyLock<Mutex<HashMap<Key, Option<String>>>> = LazyLock::new(Mutex::default);

/// The first version of three parts in the file at `path` that stands alone and begins with
/// `start`, such as `3.11.2` for `3.11.`, or `v20.1.0` for `v`.
pub(super) fn version_in(path: &Path, start: &str) -> Option<String> {
    let meta = fs::metadata(path).ok().filter(|meta| meta.len() <= MAX_PROGRAM)?;
    let key = (path.to_owned(), start.as_bytes().to_vec(), meta.mtime(), meta.len());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known().get(&key) {
        return found.clone();
    }
    let found = fs::read(path).ok().and_then(|bytes| find(&bytes, start));
    known().insert(key, found.clone());
    found
}

fn find(bytes: &[u8], start: &str) -> Option<String> {
    let searched = [b"\0", start.as_bytes()].concat();
    memchr::memmem::find_iter(bytes, &searched).find_map(|at| {
        let text = &bytes[at + 1..];
        let rest = &text[start.len()..];
        let length = rest.iter().take(16).position(|b| !(b.is_ascii_digit() || *b == b'.'))?;
        let text = std::str::from_utf8(&text[..start.len() + length]).ok()?;
        // A build of a version in the making ends with a plus sign.
        let ends = matches!(rest[length], 0 | b'+') && !text.ends_with('.');
        (ends && text.matches('.').count() == 2).then(|| text.to_owned())
    })
}

/// Paths below `folder` that the file at `path` names, up to `ending`.
pub(super) fn paths_in(path: &Path, folder: &str, ending: &str) -> Vec<PathBuf> {
    let small = fs::metadata(path).is_ok_and(|meta| meta.len() <= MAX_PROGRAM);
    let bytes = if small { fs::read(path).unwrap_or_default() } else { Vec::new() };
    let of_path = |b: &u8| b.is_ascii_alphanumeric() || b"/._-@".contains(b);
    let mut found: Vec<PathBuf> = memchr::memmem::find_iter(&bytes, folder.as_bytes())
        .filter_map(|at| {
            let text = &bytes[at..];
            let length = text.iter().take(4096).position(|b| !of_path(b))?;
            let text = std::str::from_utf8(&text[..length]).ok()?;
            (text.ends_with(ending) && !text.contains("..")).then(|| PathBuf::from(text))
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The value of `#define NAME VALUE` in a header, without quotes.
pub(super) fn defined(header: &Path, name: &str) -> Option<String> {
    let text = fs::read_to_string(header).ok()?;
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let is_it = words.next() == Some("#define") && words.next() == Some(name);
        is_it.then(|| words.next().unwrap_or_default().trim_matches('"').to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_stands_alone() {
        let bytes = b"x3.11.1\0\x003.11.\0\x003.11.2x\0\x003.11.7\0";
        assert_eq!(find(bytes, "3.11.").unwrap(), "3.11.7");
        assert_eq!(find(b"\x003.13.0+\0", "3.13.").unwrap(), "3.13.0");
        assert_eq!(find(b"\x003.13.0", "3.13."), None);
        assert_eq!(find(b"", "3.13."), None);
        assert_eq!(find(b"\0v128\0\0v20.1.0\0", "v").unwrap(), "v20.1.0");
    }

    #[test]
    fn paths_and_definitions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node");
        fs::write(
            &file,
            b"\0/usr/share/nodejs/acorn/a.js\0q('/usr/share/nodejs/../x.js')/usr/share/nodejs/b\0",
        )
        .unwrap();
        assert_eq!(
            paths_in(&file, "/usr/share/nodejs/", ".js"),
            [Path::new("/usr/share/nodejs/acorn/a.js")]
        );
        fs::write(&file, "#define A 1\n#define PY_VERSION   \"3.11.7\"\n").unwrap();
        assert_eq!(defined(&file, "PY_VERSION").unwrap(), "3.11.7");
        assert_eq!(defined(&file, "B"), None);
    }
}
