//! What is not a jar: a program, a Python project, a Node.js project and a folder of files, each
//! deployed by one command on a machine that has no image, and upgraded under load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use stead_testkit::load::{Mix, Plan};

use crate::load::{Load, ledgers_are_clean};
use crate::platform::{Platform, Ran, fetch, header};

/// Enough requests that a lost one would have been seen.
const ENOUGH: u64 = 400;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("it is built from it")
}

/// What `cargo xtask prepare` has fetched: there is no network here.
fn fetched(what: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = target.unwrap_or_else(|| workspace().join("target")).join("samples").join(what);
    assert!(folder.join("lock").is_file(), "run `cargo xtask prepare` first");
    folder
}

/// A copy of a sample, to be changed.
fn sample(platform: &Platform, name: &str) -> PathBuf {
    let copy = platform.dir.path().join(name);
    let from = workspace().join("samples").join(name);
    let copied = Command::new("cp").arg("-r").arg(from).arg(&copy).status().expect("cp runs");
    assert!(copied.success());
    copy
}

fn change(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("it was copied");
    assert!(text.contains(from), "{}", file.display());
    fs::write(file, text.replace(from, to)).expect("it is ours");
}

/// `stead deploy FOLDER …` by a person whose pip and npm look into folders of this machine only.
fn deploy(platform: &Platform, source: &Path, more: &[&str]) -> Ran {
    let source = source.display().to_string();
    let args: Vec<&str> = ["deploy", &source, "--app", "web"].iter().chain(more).copied().collect();
    let mut command = platform.command(&args);
    command
        .env("XDG_CACHE_HOME", platform.dir.path().join("cache"))
        .env("PIP_NO_INDEX", "1")
        .env("PIP_FIND_LINKS", fetched("wheels"))
        .env("npm_config_cache", fetched("npm"))
        .env("npm_config_offline", "true");
    command.output().expect("the binary runs").into()
}

/// Changes the App `web` under load, by `upgrade`, from version 1 to version 2.
fn upgraded(platform: &Platform, upgrade: impl FnOnce()) {
    assert_eq!(platform.version("web"), "1");
    let ip = platform.ip("web", 0);
    let load = Load::start(platform, Mix::SIXTEEN);
    load.more(150);
    upgrade();
    load.more(150);
    platform.stead(&["rollback", "web"]).expect(0);
    load.more(100);
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    assert!(report.of_version("1") > 0 && report.of_version("2") > 0, "{report}");
    assert_eq!(platform.ip("web", 0), ip);
    ledgers_are_clean(platform, "web", ENOUGH);
}

#[test]
fn a_program_is_deployed_with_its_libraries_and_upgraded() {
    let platform = Platform::start();
    let program = platform.dir.path().join("server");
    // As cargo builds it: linked with the system's C library.
    let built = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition=2024", "--crate-name=hello", "-o"])
        .arg(&program)
        .arg(workspace().join("samples/hello/src/main.rs"))
        .status();
    assert!(built.expect("rustc runs").success());
    let manifest = |version: &str| {
        let file = platform.dir.path().join(format!("{version}.yaml"));
        let health = "health: {readiness: {http: /healthz}}";
        let env = format!("env: {{VERSION: \"{version}\"}}");
        let text = format!("app: web\nsource: ./server\n{health}\n{env}\n");
        fs::write(&file, text).expect("it is ours");
        file.display().to_string()
    };
    let deploy = |version: &str| platform.stead(&["deploy", "-f", &manifest(version)]).expect(0);
    deploy("1");
    upgraded(&platform, || {
        let mut bytes = fs::read(&program).expect("it was built");
        // Behind the end of what is loaded: another program that does the same.
        bytes.extend(b"another version");
        fs::write(&program, bytes).expect("it is ours");
        let said = deploy("2").stdout;
        assert!(said.contains("(1 layers)"), "only the program changed: {said}");
    });
    let said = deploy("2").stdout;
    assert!(said.contains("nothing to send"), "{said}");

    fs::write(&program, "#!/bin/sh\n").expect("it is ours");
    let refused = platform.stead(&["deploy", "-f", &manifest("3")]).expect(2);
    assert!(refused.stderr.contains("STEAD-I010"), "{}", refused.stderr);
}

#[test]
fn a_python_project_is_deployed_and_upgraded() {
    let platform = Platform::start();
    let project = sample(&platform, "python-web");
    let said = deploy(&platform, &project, &[]).expect(0).stdout;
    assert!(said.contains("waitress-serve") || said.contains("Procfile"), "{said}");
    upgraded(&platform, || {
        change(&project.join("app.py"), r#""VERSION", "1""#, r#""VERSION", "2""#);
        let said = deploy(&platform, &project, &[]).expect(0).stdout;
        assert!(said.contains("(1 layers)"), "the dependencies stay: {said}");
    });
    let said = deploy(&platform, &project, &[]).expect(0).stdout;
    assert!(said.contains("nothing to send"), "{said}");
}

#[test]
fn a_node_project_is_deployed_and_upgraded() {
    let platform = Platform::start();
    let project = sample(&platform, "node-web");
    deploy(&platform, &project, &[]).expect(0);
    let (_, uptime) = platform.page("web", "/uptime");
    assert!(uptime.contains("second") || uptime.contains("ms"), "{uptime}");
    upgraded(&platform, || {
        change(&project.join("server.js"), r#"VERSION ?? "1""#, r#"VERSION ?? "2""#);
        let said = deploy(&platform, &project, &[]).expect(0).stdout;
        assert!(said.contains("(1 layers)"), "the dependencies stay: {said}");
    });
}

#[test]
fn a_folder_of_files_is_served_by_the_gateway_and_upgraded() {
    let platform = Platform::start();
    let folder = sample(&platform, "site");
    let plan = platform.json(&["deploy", &folder.display().to_string(), "--app", "web", "--plan"]);
    assert_eq!(plan["package"]["kind"], "site", "{plan:#}");
    deploy(&platform, &folder, &[]).expect(0);
    let instances = platform.json(&["ps", "web"]);
    assert!(instances.as_array().is_some_and(Vec::is_empty), "{instances:#}");

    let get = |path: &str, lines: &str| {
        fetch(platform.http, "web.default.localhost", path, lines).expect("the gateway answers")
    };
    let (page, body) = get("/", "");
    assert!(page.starts_with("HTTP/1.1 200") && body.contains("A site on stead"), "{page}");
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    let (script, _) = get("/assets/app.3f2a9c1b.js", "");
    assert!(header(&script, "cache-control").contains("immutable"), "{script}");
    assert!(get("/docs/", "").1.contains("Documentation"));
    assert!(get("/.well-known/security.txt", "").1.starts_with("Contact"));
    assert!(get("/no/such/page", "").0.starts_with("HTTP/1.1 404"));
    let (small, _) = get("/", "Accept-Encoding: br\r\n");
    assert_eq!(header(&small, "content-encoding"), "br", "{small}");

    let mut plan = Plan::new(platform.http, "web.default.localhost");
    plan.version_header = "etag".to_owned();
    let load = Load::with(plan.mix(Mix { keep_alive: 6, one_shot: 4, ..Mix::NOBODY }));
    load.more(200);
    change(&folder.join("index.html"), "A site on stead", "Another site on stead");
    deploy(&platform, &folder, &[]).expect(0);
    load.more(200);
    let (second, body) = get("/", "");
    assert!(body.contains("Another site"), "{body}");
    platform.stead(&["rollback", "web"]).expect(0);
    load.more(100);
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    let (first, second) = (header(&page, "etag"), header(&second, "etag"));
    assert_ne!(first, second);
    for etag in [first, second] {
        assert!(report.of_version(&etag) > 0, "{etag}: {report}");
    }
    ledgers_are_clean(&platform, "web", ENOUGH);
}
