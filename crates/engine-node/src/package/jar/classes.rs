//! What classes say: the Java they need, and what they refer to.

use super::super::error::PackError;
use super::super::zip::Archive;

/// Versions of Java that are kept for years, and so are the ones that machines have.
const LONG_TERM: [u32; 5] = [8, 11, 17, 21, 25];

/// The lowest Java that runs the classes whose names are told; `None` where there are none.
/// Classes for later ones (`META-INF/versions`) and module descriptors do not count.
pub(in crate::package) fn java(
    archive: &Archive,
    counts: impl Fn(&str) -> bool,
) -> Result<Option<u32>, PackError> {
    let mut highest = None;
    for entry in archive.entries() {
        let name = entry.name.as_str();
        let is_class = name.ends_with(".class")
            && !name.ends_with("module-info.class")
            && !name.contains("META-INF/versions/");
        if !is_class || !counts(name) {
            continue;
        }
        let mut head = [0; 8];
        let whole = archive.head(entry, &mut head)? == head.len();
        if whole && head.starts_with(&[0xca, 0xfe, 0xba, 0xbe]) {
            // "The class File Format", table 4.1-A: Java 8 is 52.
            let major = u32::from(u16::from_be_bytes([head[6], head[7]]));
            highest = highest.max(Some(major.saturating_sub(44).max(8)));
        }
    }
    Ok(highest)
}

/// The version to get for those that need `java`: the next that is kept for years.
pub(in crate::package) fn usual(java: u32) -> String {
    LONG_TERM.into_iter().find(|long| *long >= java).unwrap_or(java).to_string()
}

/// Whether any class whose name is told refers to `word`, such as `jakarta/servlet/`.
pub(in crate::package) fn refer(
    archive: &Archive,
    counts: impl Fn(&str) -> bool,
    word: &str,
) -> Result<bool, PackError> {
    /// No class is larger: what refers to servlets is small.
    const LARGEST: u64 = 4 << 20;
    let finder = memchr::memmem::Finder::new(word);
    for entry in archive.entries() {
        let is_class = entry.name.ends_with(".class") && entry.size <= LARGEST;
        if is_class && counts(&entry.name) {
            let bytes = archive.read(entry, LARGEST)?;
            if finder.find(&bytes).is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
