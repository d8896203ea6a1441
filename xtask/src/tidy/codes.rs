//! Every error code has a page under `docs/errors/`, and every page a code.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::Complaint;

const SOURCE: &str = "crates/core/src/error.rs";
const PAGES: &str = "docs/errors";

pub(super) fn check(root: &Path) -> anyhow::Result<Vec<Complaint>> {
    let source = fs::read_to_string(root.join(SOURCE)).context(SOURCE)?;
    let mut pages = BTreeSet::new();
    if let Ok(entries) = fs::read_dir(root.join(PAGES)) {
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(code) = name.strip_suffix(".md").filter(|name| *name != "README") {
                pages.insert(code.to_owned());
            }
        }
    }
    Ok(compare(&codes(&source), &pages))
}

/// The quoted `"STEAD-…"` of the table of codes.
fn codes(source: &str) -> BTreeSet<String> {
    let quoted = source.split('"').skip(1).step_by(2);
    quoted.filter(|text| text.starts_with("STEAD-")).map(str::to_owned).collect()
}

fn compare(codes: &BTreeSet<String>, pages: &BTreeSet<String>) -> Vec<Complaint> {
    let lonely_codes = codes.difference(pages).map(|code| {
        Complaint::wrong(format!("the error code {code} has no page {PAGES}/{code}.md"))
    });
    let lonely_pages = pages.difference(codes).map(|page| {
        Complaint::wrong(format!("{PAGES}/{page}.md explains a code that {SOURCE} does not have"))
    });
    lonely_codes.chain(lonely_pages).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_pages_are_compared_both_ways() {
        let codes = codes("A = \"STEAD-A001\", Failed;\n B = \"STEAD-B001\", Failed; \"other\"");
        let pages = ["STEAD-B001", "STEAD-C001"].map(str::to_owned).into();
        let complaints = compare(&codes, &pages);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
    }
}
