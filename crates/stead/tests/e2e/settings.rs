//! One change is one restart, and what needs none gets none: by the processes that answer.

use crate::platform::{Platform, eventually, image};

/// The sidecar's raw TCP says which process and version it is, on the App's own loopback.
#[track_caller]
fn sidecar(platform: &Platform, name: &str) -> String {
    platform.page("web", &format!("/tcp/ask?name={name}&to=127.0.0.1:7001")).1
}

#[test]
fn a_variable_restarts_once_memory_not_at_all() {
    let platform = Platform::start();
    let trivial = image("trivial", "1");
    let with = |memory: u32, greeting: &str| {
        format!("resources: {{memory: {memory}Mi}}\nenv: {{GREETING: {greeting}}}")
    };
    platform.deploy("web", &trivial, &with(64, "one")).expect(0);
    let first = platform.process("web");
    let counted = platform.page("web", "/count").1;

    let file = platform.manifest("web", &trivial, &with(96, "one"));
    let plan = platform.stead(&["deploy", "-f", &file, "--plan"]).expect(0).stdout;
    assert!(plan.contains("resources.memory"), "{plan}");
    assert!(plan.contains("none is restarted"), "{plan}");
    platform.stead(&["deploy", "-f", &file]).expect(0);
    assert_eq!(platform.process("web"), first, "more memory is no restart");
    let again = platform.page("web", "/count").1;
    assert_ne!(again, counted, "its memory went on");

    let container = || platform.json(&["ps", "web"])[0]["container"].clone();
    let before = container();
    platform.stead(&["env", "set", "web", "GREETING=two"]).expect(0);
    assert_eq!(platform.page("web", "/env/GREETING").1, "two\n");
    assert_ne!(platform.process("web"), first);
    assert_ne!(container(), before);
    let started = platform.stead(&["events", "web"]).expect(0).stdout;
    let starts =
        started.lines().filter(|line| line.contains("web") && line.contains("start")).count();
    assert!(starts > 0, "{started}");
}

#[test]
fn a_sidecar_changes_apart_from_its_app() {
    let platform = Platform::start();
    let main = image("trivial", "1");
    let with = |version: &str| {
        format!(
            "sidecars: [{{name: helper, source: \"{}\", env: {{PORT: \"9090\", TCP_PORT: \"7001\"}}}}]",
            image("trivial", version)
        )
    };
    platform.deploy("web", &main, &with("1")).expect(0);
    let first = platform.process("web");
    assert!(sidecar(&platform, "a").starts_with("1 "));

    let file = platform.manifest("web", &main, &with("2"));
    let plan = platform.stead(&["deploy", "-f", &file, "--plan"]).expect(0).stdout;
    assert!(plan.contains("Only sidecars are restarted (helper)"), "{plan}");
    platform.stead(&["deploy", "-f", &file]).expect(0);
    assert!(sidecar(&platform, "b").starts_with("2 "));
    assert_eq!(platform.process("web"), first, "the app itself went on");

    // And the other way round.
    let helper = sidecar(&platform, "b");
    platform.deploy("web", &image("trivial", "2"), &with("2")).expect(0);
    assert_eq!(platform.version("web"), "2");
    let same = sidecar(&platform, "c");
    let process = |line: &str| line.split(' ').nth(2).map(str::to_owned);
    assert_eq!(process(&same), process(&helper), "the sidecar went on");
}

#[test]
fn hooks_run_in_order_where_they_belong() {
    let platform = Platform::start();
    let hooks = "instances: 1\nlifecycle:\n  hooks:\n    before_update: {http: /hook/before}\n\
                 \x20   after_update: {http: /hook/after}\n    pre_delete: {http: /hook/delete}";
    platform.deploy("web", &image("trivial", "1"), hooks).expect(0);
    platform.deploy("web", &image("trivial", "2"), hooks).expect(0);
    assert_eq!(platform.version("web"), "2");
    let logs = eventually("both are in the logs", || {
        let logs = platform.stead(&["logs", "web"]).expect(0).stdout;
        (logs.contains("/hook/before") && logs.contains("/hook/after")).then_some(logs)
    });
    assert!(logs.contains("/hook/before on 1"), "{logs}");
    assert!(logs.contains("/hook/after on 2"), "{logs}");
    let phases = platform.json(&["waterfall", "web"]);
    let bars = phases["bars"].as_array().expect("a list");
    let hook = bars.iter().filter(|bar| bar["phase"] == "hook").count();
    assert_eq!(hook, 2, "{phases:#}");
}

#[test]
fn a_hook_that_fails_undoes_the_release() {
    let platform = Platform::start();
    platform.deploy("web", &image("trivial", "1"), "").expect(0);
    let hooks = "lifecycle: {hooks: {after_update: {http: /no-such-page, deadline: 2s}}}";
    let ran = platform.deploy("web", &image("trivial", "2"), hooks).expect(4);
    assert!(ran.stderr.contains("STEAD-E009"), "{}", ran.stderr);
    assert_eq!(platform.version("web"), "1");
}
