//! Rules of a site: nothing runs, so nothing may be asked of what would.

use std::collections::BTreeSet;

use super::Broken;
use crate::error::Code;
use crate::manifest::diff::diff;
use crate::manifest::fields::Manifest;
use crate::manifest::problem::{BadValue, FieldPath};

/// What a manifest with `site` may say besides; the rest is of Containers.
const ALLOWED: [&str; 8] = [
    "app",
    "namespace",
    "source",
    "site",
    "http.hosts",
    "park",
    "rollout.auto_rollback",
    "rollout.progress_deadline",
];
/// Headers that say what is sent and how: the gateway's affair.
const OURS: [&str; 19] = [
    "accept-ranges",
    "allow",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "keep-alive",
    "last-modified",
    "location",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
];
/// Begins what the gateway says of itself.
const OURS_TOO: &str = "x-stead-";
/// Longest value of a header, in bytes, and most headers.
const LONGEST_VALUE: usize = 8 << 10;
const MOST_HEADERS: u32 = 64;

pub(super) fn check(manifest: &Manifest, broken: &mut Broken) {
    let Some(site) = &manifest.site else { return };
    let bare = Manifest::minimal(manifest.app.clone(), manifest.source.clone());
    let foreign: BTreeSet<String> =
        diff(&bare, manifest).into_iter().filter_map(|change| foreign(&change.path)).collect();
    for field in foreign {
        let keys: Vec<&str> = field.split('.').collect();
        let bad = BadValue::new(Code::ManifestConflict, "nothing", "a value beside `site`");
        let hint = "the gateway serves a site by itself and nothing runs: leave it out";
        broken.add(FieldPath::of(&keys), bad.hint(hint));
    }
    let path = FieldPath::of(&["site", "headers"]);
    let count = u32::try_from(site.headers.len()).unwrap_or(u32::MAX);
    broken.range(path.clone(), count, 0, MOST_HEADERS);
    for (name, value) in &site.headers {
        let path = path.key(name.as_str());
        if OURS.contains(&name.as_str()) || name.as_str().starts_with(OURS_TOO) {
            let expected = "a header that the gateway does not set itself";
            let bad = BadValue::text(Code::ManifestConflict, expected, name.as_str());
            broken.add(path, bad.hint("for Cache-Control there is site.cache"));
        } else if value.len() > LONGEST_VALUE
            || !value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        {
            let expected = "a header's value: printable ASCII of at most 8 KiB";
            broken.add(path, BadValue::text(Code::ManifestText, expected, value));
        }
    }
}

/// The field of a manifest to which `path` belongs, where a site may not have it.
fn foreign(path: &str) -> Option<String> {
    let within = |of: &str| {
        path.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if ALLOWED.iter().any(|allowed| within(allowed)) {
        return None;
    }
    let deep = ["http.", "rollout."].iter().any(|nested| path.starts_with(nested));
    Some(path.split('.').take(if deep { 2 } else { 1 }).collect::<Vec<_>>().join("."))
}
