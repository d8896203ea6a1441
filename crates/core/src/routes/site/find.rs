//! From the path of a request to an entry of the index.

use std::fmt::Write;

use super::{SiteEntry, SiteIndex};
use crate::manifest::Site;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<'a> {
    /// A file. The path may have been a folder's, or nobody's where the site answers those
    /// with one page.
    Entry(&'a SiteEntry),
    /// A folder that was asked for without its final slash: the path to ask for, encoded.
    /// Relative links of its page would lead astray otherwise.
    Moved(String),
    /// Nothing, and the page that says so.
    Missing(Option<&'a SiteEntry>),
    /// The path is not one.
    Malformed,
}

/// The page of a folder.
const FOLDER_PAGE: &str = "index.html";
/// The page for what is not there, where the manifest names none.
const MISSING_PAGE: &str = "/404.html";

impl SiteIndex {
    /// What `path` leads to: the path of a request as it came, without its query.
    pub fn find(&self, rules: &Site, path: &str) -> Found<'_> {
        let Some(path) = normal_path(path) else { return Found::Malformed };
        let folder = path.ends_with('/');
        let direct = match folder {
            true => self.entries.get(&format!("{path}{FOLDER_PAGE}")),
            false => self.entries.get(&path),
        };
        if let Some(entry) = direct {
            return Found::Entry(entry);
        }
        if !folder && self.entries.contains_key(&format!("{path}/{FOLDER_PAGE}")) {
            return Found::Moved(encoded(&format!("{path}/")));
        }
        // A program that is not there is better missed than answered with a page.
        let names_file = path.rsplit('/').next().is_some_and(|last| last.contains('.'));
        if let Some(page) = rules.fallback.as_ref().filter(|_| !names_file)
            && let Some(entry) = self.entries.get(page.as_str())
        {
            return Found::Entry(entry);
        }
        let page = rules.not_found.as_ref().map_or(MISSING_PAGE, |page| page.as_str());
        Found::Missing(self.entries.get(page))
    }
}

/// The path of a request, decoded once, with `.`, `..` and empty segments resolved; it begins
/// with one slash. `None` when it is not a path: an escape that is none, a character that no
/// name has, bytes that are no text, or a slash that was escaped, which could be taken for two
/// different things.
pub fn normal_path(path: &str) -> Option<String> {
    let mut segments: Vec<String> = Vec::new();
    let parts = path.strip_prefix('/')?.split('/');
    let mut folder = false;
    for part in parts {
        let segment = decoded(part)?;
        if segment.contains(|c: char| c == '/' || c.is_control()) {
            return None;
        }
        folder = true;
        match segment.as_str() {
            "" | "." => {}
            // As browsers do, the root is its own parent.
            ".." => drop(segments.pop()),
            _ => {
                segments.push(segment);
                folder = false;
            }
        }
    }
    let mut normal = String::with_capacity(path.len());
    for segment in &segments {
        normal.push('/');
        normal.push_str(segment);
    }
    if folder {
        normal.push('/');
    }
    Some(normal)
}

fn decoded(part: &str) -> Option<String> {
    if !part.contains('%') {
        return Some(part.to_owned());
    }
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => u8::try_from(digit(rest.next())? * 16 + digit(rest.next())?).ok()?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// A path as it stands in a URI (RFC 3986, 3.3).
pub(super) fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes everything");
        }
    }
    text
}
