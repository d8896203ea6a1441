//! What packages can run on: bases that are here, runtimes of which one can be made.

use stead_core::api::package::{BaseView, RuntimeName};
use stead_core::engine::HostRuntime;
use stead_engine_node::package::base;

use super::Finding;
use crate::cli::base::usual;

/// One finding for each runtime.
pub(super) fn findings(bases: &[BaseView]) -> Vec<Finding> {
    let installed = base::installed();
    RuntimeName::ALL.into_iter().map(|runtime| finding(runtime, bases, &installed)).collect()
}

fn finding(runtime: RuntimeName, bases: &[BaseView], installed: &[HostRuntime]) -> Finding {
    let of_base = bases.iter().filter(|base| base.base.runtime == runtime && base.image.is_some());
    let mut here = Vec::new();
    for base in of_base {
        if let Some(error) = &base.error {
            return Finding::note(runtime.word(), error.message.clone(), error.hint.clone());
        }
        here.push(base.base.to_string());
    }
    let offered: Vec<String> = installed
        .iter()
        .filter(|found| found.base.runtime == runtime)
        .map(|found| found.base.to_string())
        .filter(|name| !here.contains(name))
        .collect();
    let mut lines = Vec::new();
    if !here.is_empty() {
        lines.push(format!("{} here", here.join(", ")));
    }
    if !offered.is_empty() {
        lines.push(format!("{} installed, a base is made when needed", offered.join(", ")));
    }
    match lines.is_empty() {
        false => Finding::ok(runtime.word(), lines.join("; ")),
        true => Finding::note(
            runtime.word(),
            "none, for packages that need it",
            base::how_to_get(&usual(runtime)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_runtime_that_is_nowhere_comes_with_the_command_that_gets_it() {
        let none = finding(RuntimeName::Node, &[], &[]);
        assert_eq!(none.verdict, Verdict::Note);
        assert_eq!(none.fix.as_deref(), Some("apt-get install nodejs"));
        let tomcat = finding(RuntimeName::Tomcat, &[], &[]);
        assert!(tomcat.fix.unwrap().starts_with("stead image base tomcat:10.1 --from-maven"));

        let base: stead_core::api::package::BaseName = "java:17".parse().unwrap();
        let (exact, path) = ("17.0.15".to_owned(), "/usr/lib/jvm/17".to_owned());
        let offered = HostRuntime { base: base.clone(), exact, path };
        let here = finding(RuntimeName::Java, &[], &[offered]);
        assert_eq!(here.verdict, Verdict::Ok);
        assert!(here.found.contains("java:17 installed"), "{}", here.found);
    }
}
