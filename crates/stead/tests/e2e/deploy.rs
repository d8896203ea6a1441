//! The main job: deploy, upgrade in place, roll back, restart, scale, stop, enter.

use crate::platform::{Platform, eventually, image};

#[test]
fn nginx_is_upgraded_rolled_back_and_restarted() {
    changed("in-place", &["prepare", "drain", "stop", "start", "ready", "attach"]);
    changed("handover", &["prepare", "start", "ready", "flip", "attach", "drain", "freeze"]);
}

fn changed(strategy: &str, expected: &[&str]) {
    let platform = Platform::start();
    let deploy = |version: &str| {
        let image = image("nginx", version);
        platform.stead(&["deploy", &image, "--app", "web", "--strategy", strategy]).expect(0);
    };
    deploy("1");
    assert_eq!(platform.version("web"), "1");
    let ip = platform.ip("web", 0);

    deploy("2");
    assert_eq!(platform.version("web"), "2");
    assert_eq!(platform.ip("web", 0), ip, "the upgrade was in place");

    let waterfall = platform.json(&["waterfall", "web"]);
    let bars = waterfall["bars"].as_array().expect("a list").iter();
    let phases: Vec<&str> = bars.map(|bar| bar["phase"].as_str().expect("a name")).collect();
    for phase in expected {
        assert!(phases.contains(phase), "{phase} is missing in {phases:?}");
    }

    platform.stead(&["rollback", "web"]).expect(0);
    assert_eq!(platform.version("web"), "1");
    platform.stead(&["restart", "web"]).expect(0);
    assert_eq!(platform.version("web"), "1");
    assert_eq!(platform.ip("web", 0), ip);
    assert_eq!(platform.json(&["releases", "web"]).as_array().expect("a list").len(), 2);
}

#[test]
fn instances_are_scaled_stopped_started_and_deleted() {
    let platform = Platform::start();
    let hello = image("trivial", "1");
    platform.stead(&["deploy", &hello, "--app", "web", "--instances", "3"]).expect(0);
    let instances = platform.json(&["ps", "web"]);
    assert_eq!(instances.as_array().unwrap().len(), 3);
    let mut ips: Vec<&str> =
        instances.as_array().unwrap().iter().map(|i| i["ip"].as_str().unwrap()).collect();
    ips.sort_unstable();
    ips.dedup();
    assert_eq!(ips.len(), 3, "each has its own address");

    platform.stead(&["scale", "web", "1"]).expect(0);
    eventually("one instance is left", || {
        (platform.json(&["ps", "web"]).as_array().unwrap().len() == 1).then_some(())
    });
    platform.stead(&["stop", "web"]).expect(0);
    eventually("it refuses", || {
        platform.get("web", "/").ok().filter(|(status, ..)| *status == 503)
    });
    platform.stead(&["start", "web"]).expect(0);
    eventually("it serves again", || {
        platform.get("web", "/").ok().filter(|(status, ..)| *status == 200)
    });
    platform.stead(&["delete", "web", "--yes"]).expect(0);
    eventually("it is unknown", || {
        platform.get("web", "/").ok().filter(|(status, ..)| *status == 404)
    });
    eventually("nothing is left of it", || {
        (platform.stead(&["status", "web"]).code == 3).then_some(())
    });
}

#[test]
fn one_instance_is_restarted_alone() {
    let platform = Platform::start();
    let hello = image("trivial", "1");
    platform.stead(&["deploy", &hello, "--app", "web", "--instances", "2"]).expect(0);
    let since = |n: usize| platform.json(&["ps", "web"])[n]["container"].clone();
    let before = (since(0), since(1));
    platform.stead(&["restart", "web", "--instance", "1"]).expect(0);
    assert_eq!(since(0), before.0);
    assert_ne!(since(1), before.1);
}

#[test]
fn a_volume_outlives_its_containers_and_settings_reach_the_app() {
    let platform = Platform::start();
    let file = platform.dir.path().join("app.yaml");
    let text = format!(
        "app: store\nsource: {}\nhealth: {{startup: {{tcp: 6379}}}}\n\
         volumes: [{{name: data, mount: /data}}]\nresources: {{memory: 128Mi, cpu: 500m}}\n\
         env: {{GREETING: hello}}\nfiles: {{/etc/extra: {{content: \"from the manifest\"}}}}\n",
        image("redis", "1")
    );
    std::fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    platform.stead(&["deploy", "-f", &file]).expect(0);
    let redis = |args: &[&str]| {
        let args: Vec<&str> =
            ["exec", "store", "--", "/usr/bin/redis-cli"].iter().chain(args).copied().collect();
        platform.stead(&args).expect(0).stdout.trim().to_owned()
    };
    assert_eq!(redis(&["set", "key", "kept"]), "OK");
    platform.stead(&["deploy", &image("redis", "2"), "-f", &file]).expect(0);
    assert_eq!(redis(&["get", "key"]), "kept");
    platform.stead(&["env", "set", "store", "GREETING=again"]).expect(0);
    assert_eq!(redis(&["get", "key"]), "kept");
    let env = platform.json(&["env", "list", "store"]);
    assert_eq!(env["GREETING"], "again");
}

#[test]
fn output_and_exit_codes_are_kept() {
    let platform = Platform::start();
    platform.stead(&["deploy", &image("trivial", "1"), "--app", "web"]).expect(0);
    let logs = platform.stead(&["logs", "web"]).expect(0).stdout;
    assert!(logs.contains("listening on"), "{logs}");
    let code = platform.stead(&["exec", "web", "--", "/no/such/program"]).code;
    assert_ne!(code, 0);
}

#[test]
fn an_archive_is_deployed_without_a_registry() {
    let platform = Platform::start();
    let mut catalogue = stead_testkit::images::Catalogue::new();
    let oci = platform.dir.path().join("hello.tar");
    catalogue.image("trivial", "1").unwrap().write_archive(&oci, "1").unwrap();
    platform.stead(&["deploy", &oci.display().to_string(), "--app", "web"]).expect(0);
    assert_eq!(platform.version("web"), "1");
    let docker = platform.dir.path().join("hello.docker.tar");
    catalogue.image("trivial", "2").unwrap().write_docker_save(&docker, "hello:2").unwrap();
    platform.stead(&["deploy", &docker.display().to_string(), "--app", "web"]).expect(0);
    assert_eq!(platform.version("web"), "2");
}

#[test]
fn namespaces_cannot_reach_each_other() {
    let platform = Platform::start();
    platform.stead(&["namespace", "create", "other"]).expect(0);
    let python = image("python3", "1");
    platform.stead(&["deploy", &python, "--app", "web"]).expect(0);
    platform.stead(&["-n", "other", "deploy", &python, "--app", "peer"]).expect(0);
    platform.stead(&["deploy", &python, "--app", "friend"]).expect(0);
    let ip = platform.ip("web", 0);
    let ask = |namespace: &str, app: &str| {
        let code = format!(
            "import urllib.request as r; print(r.urlopen('http://{ip}:8080/', timeout=2).status)"
        );
        let args = ["-n", namespace, "exec", app, "--", "/usr/bin/python3", "-c", &code];
        platform.stead(&args)
    };
    assert!(ask("default", "friend").expect(0).stdout.contains("200"));
    assert_ne!(ask("other", "peer").code, 0, "another namespace is out of reach");
}
