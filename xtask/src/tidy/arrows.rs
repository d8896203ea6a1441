//! Which crate may use which: `stead → {control, gateway, engine-node} → core`, none sideways.

use serde_json::Value;

use super::Complaint;

/// A crate of the workspace and those it may use. Test-only use of the test kit is always allowed.
const ARROWS: &[(&str, &[&str])] = &[
    ("stead-core", &[]),
    ("stead-holder", &[]),
    ("stead-control", &["stead-core"]),
    ("stead-gateway", &["stead-core"]),
    // The engine speaks the holder's protocol and carries its program.
    ("stead-engine-node", &["stead-core", "stead-holder"]),
    ("stead", &["stead-core", "stead-control", "stead-gateway", "stead-engine-node"]),
    ("stead-testkit", &["stead-core"]),
    // Not part of the product.
    ("stead-bench", &["stead-core", "stead-engine-node", "stead-gateway", "stead-testkit"]),
    ("sample-hello", &[]),
    ("xtask", &[]),
];

/// What the pure core must not be able to reach.
const IMPURE: &[&str] = &[
    "axum",
    "fastrand",
    "getrandom",
    "hyper",
    "hyper-util",
    "libc",
    "nix",
    "rand",
    "reqwest",
    "rusqlite",
    "rustix",
    "socket2",
    "tempfile",
    "tokio",
];

pub(super) fn check(metadata: &Value) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let packages = metadata["packages"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<_> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in packages {
        let Some(name) = package["name"].as_str() else { continue };
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            complaints.push(Complaint::wrong(format!(
                "the crate {name} has no place among the arrows; add it to \
                 xtask/src/tidy/arrows.rs and to ARCHITECTURE.md"
            )));
            continue;
        };
        let dependencies = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
        for dependency in dependencies {
            let Some(used) = dependency["name"].as_str() else { continue };
            let for_tests = dependency["kind"] == "dev";
            if names.contains(&used) {
                let fine = allowed.contains(&used) || for_tests && used == "stead-testkit";
                if !fine {
                    complaints.push(Complaint::wrong(format!("{name} may not use {used}")));
                }
            } else if name == "stead-core" && !for_tests && IMPURE.contains(&used) {
                complaints
                    .push(Complaint::wrong(format!("stead-core is pure and may not use {used}")));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_sideways_arrow_and_an_impure_core_are_seen() {
        let dependency = |name: &str, kind: Option<&str>| json!({"name": name, "kind": kind});
        let metadata = json!({"packages": [
            {"name": "stead-core", "dependencies": [
                dependency("tokio", None), dependency("serde", None), dependency("tokio", Some("dev")),
            ]},
            {"name": "stead-gateway", "dependencies": [
                dependency("stead-core", None), dependency("stead-testkit", Some("dev")),
                dependency("stead-control", None),
            ]},
            {"name": "stead-control", "dependencies": [dependency("stead-testkit", None)]},
            {"name": "stead-testkit", "dependencies": []},
            {"name": "newcomer", "dependencies": []},
        ]});
        let texts: Vec<_> = check(&metadata)
            .into_iter()
            .map(|complaint| match complaint {
                Complaint::Wrong(text) | Complaint::Warning(text) => text,
            })
            .collect();
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert_eq!(texts[0], "stead-core is pure and may not use tokio");
        assert_eq!(texts[1], "stead-gateway may not use stead-control");
        assert_eq!(texts[2], "stead-control may not use stead-testkit");
        assert!(texts[3].contains("newcomer"));
    }
}
