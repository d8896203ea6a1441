//! What must hold for any bytes that are taken for a manifest or for one of stead's documents.
//!
//! Each target is a function that panics where a promise is broken. libFuzzer calls them with
//! bytes of its own making (`cargo xtask fuzz`); the tests call them with the seeds. Compiled
//! for these two alone.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::package::ComposeRequest;
use crate::api::{
    DeployRequest, EnvRequest, Record, RestartRequest, RollbackRequest, ScaleRequest,
    SecretRequest, SteerRequest, TokenRequest,
};
use crate::app::{App, Release};
use crate::error::Code;
use crate::manifest::{self, Manifest, Site};
use crate::routes::site::{Answer, Asked, Found, SiteIndex, answer, normal_path};
use crate::routes::{HostIndex, RouteTable, ToGateway, ToServe};

/// A target: its name, and what shall hold for any bytes.
pub type Target = (&'static str, fn(&[u8]));

/// The targets.
pub const TARGETS: &[Target] = &[
    ("manifest", manifest),
    ("requests", requests),
    ("documents", documents),
    ("routes", routes),
    ("site", site),
];

/// A text gives a manifest that says the same when written and read again, or problems that
/// lie within the text and can be shown on a terminal.
fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match manifest::parse(text, "app.yaml") {
        Ok(manifest) => {
            // Whoever reads the text reads the files it names; the type alone knows none.
            let others =
                manifest.problems().into_iter().find(|p| p.code != Code::ManifestFileMissing);
            assert_eq!(others, None);
            let written = serde_json::to_string(&manifest).expect("its keys are strings");
            let read: Manifest = serde_json::from_str(&written).expect("it was written so");
            assert_eq!(read, manifest);
            assert_eq!(manifest::parse(&written, "again").as_ref(), Ok(&manifest));
            assert_eq!(manifest::diff(&manifest, &manifest), []);
        }
        Err(problems) => {
            assert!(!problems.list.is_empty());
            let lines = text.lines().count().max(1);
            for problem in &problems.list {
                let at = problem.at.expect("the manifest came as text");
                assert!(at.column >= 1 && (1..=lines).contains(&(at.line as usize)), "{problem:?}");
            }
            let shown = problems.to_string();
            let harmful = shown.chars().find(|c| c.is_control() && *c != '\n');
            assert_eq!(harmful, None, "{shown:?}");
        }
    }
}

/// Bodies of requests.
fn requests(bytes: &[u8]) {
    if let Some(DeployRequest { manifest, .. }) = reads_what_it_writes(bytes) {
        manifest.problems();
    }
    reads_what_it_writes::<ComposeRequest>(bytes);
    reads_what_it_writes::<RollbackRequest>(bytes);
    reads_what_it_writes::<RestartRequest>(bytes);
    reads_what_it_writes::<ScaleRequest>(bytes);
    reads_what_it_writes::<SteerRequest>(bytes);
    reads_what_it_writes::<SecretRequest>(bytes);
    reads_what_it_writes::<EnvRequest>(bytes);
    reads_what_it_writes::<TokenRequest>(bytes);
}

/// Documents of the store. A damaged one must not take the rest down.
fn documents(bytes: &[u8]) {
    if let Some(app) = reads_what_it_writes::<App>(bytes) {
        app.lineup();
        crate::rollout::wanted(&app, &Default::default());
    }
    reads_what_it_writes::<Release>(bytes);
    reads_what_it_writes::<Record>(bytes);
}

/// What a gateway is told, keeps on disk and answers.
fn routes(bytes: &[u8]) {
    let told = reads_what_it_writes::<ToGateway>(bytes).and_then(ToGateway::into_change);
    let mut table = reads_what_it_writes::<RouteTable>(bytes).unwrap_or_default();
    if let Some(change) = told {
        // A change that comes too late is refused, and changes nothing.
        let before = table.clone();
        if table.apply(change).is_err() {
            assert_eq!(table, before);
        }
    }
    let index = HostIndex::build(&table, Clone::clone);
    for rule in table.apps.values().flat_map(|routes| &routes.hosts) {
        index.find(&rule.host, &rule.path_prefix);
        index.find(&rule.path_prefix, &rule.host);
    }
    reads_what_it_writes::<ToServe>(bytes);
}

/// Three lines of a request (path, `Accept-Encoding`, `Range`), and the index of a site behind
/// them: nothing outside the site is ever named, nor a byte that a file does not have.
fn site(bytes: &[u8]) {
    let mut parts = bytes.splitn(4, |&byte| byte == b'\n');
    let mut line = || std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or_default();
    let (path, accepted, range) = (line(), line(), line());
    if let Some(normal) = normal_path(path) {
        let inner = normal.strip_prefix('/').expect("it begins at the root");
        let inner = inner.strip_suffix('/').unwrap_or(inner);
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
        assert!(normal == "/" || inner.split('/').all(plain), "{normal:?}");
    }
    let Ok(index) = SiteIndex::parse(parts.next().unwrap_or_default()) else { return };
    let written = serde_json::to_vec(&index).expect("its keys are strings");
    assert_eq!(SiteIndex::parse(&written).as_ref(), Ok(&index));
    let entry = match index.find(&Site::default(), path) {
        Found::Entry(entry) | Found::Missing(Some(entry)) => entry,
        Found::Moved(to) => {
            // Two slashes would be another host.
            assert!(to.starts_with('/') && !to.starts_with("//") && to.ends_with('/'), "{to:?}");
            assert!(to.bytes().all(|byte| byte.is_ascii_graphic()), "{to:?}");
            return assert!(matches!(index.find(&Site::default(), &to), Found::Entry(_)));
        }
        Found::Missing(None) | Found::Malformed => return,
    };
    let (_, file) = entry.choose(Some(accepted));
    let parts = file.file.split('/').all(|part| !matches!(part, "" | "." | ".."));
    assert!(parts, "{:?}", file.file);
    let asked = Asked { range: Some(range), if_range: Some(accepted), ..Asked::default() };
    for asked in [Asked { if_range: None, ..asked }, asked] {
        if let Answer::Part(part) = answer(&asked, &file.etag(), 0, file.size) {
            assert!(part.start() <= part.end() && *part.end() < file.size, "{part:?}");
        }
    }
}

/// Whatever is read can be written, and reads the same again.
fn reads_what_it_writes<T>(bytes: &[u8]) -> Option<T>
where
    T: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let value: T = serde_json::from_slice(bytes).ok()?;
    let written = serde_json::to_vec(&value).expect("its keys are strings");
    let read: T = serde_json::from_slice(&written).expect("it was written so");
    assert_eq!(read, value);
    Some(value)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "seeds are files")]
    fn every_target_holds_for_its_seeds() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
        for (name, target) in super::TARGETS {
            let mut fed = 0;
            for seed in fs::read_dir(seeds.join(name)).unwrap() {
                target(&fs::read(seed.unwrap().path()).unwrap());
                fed += 1;
            }
            assert!(fed > 0, "{name} has no seeds");
        }
    }
}
