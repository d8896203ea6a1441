//! Runtimes of this machine, made into base images and run in Containers.
#![allow(clippy::unwrap_used)]

mod node_harness;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use node_harness::{Node, PATIENCE, patch};
use serde_json::json;
use stead_core::api::package::{BaseName, RuntimeName};
use stead_core::engine::{Engine, HostRuntime, LogQuery, MadeBase};
use stead_core::error::Code;
use stead_core::name::AppKey;
use stead_testkit::sim::{app_key, fleet, release_of, settings};

/// The versions of a runtime that the machine has.
async fn installed(node: &Node, runtime: RuntimeName) -> Vec<HostRuntime> {
    let all = node.engine().host_runtimes().await.unwrap();
    all.into_iter().filter(|found| found.base.runtime == runtime).collect()
}

async fn made(node: &Node, base: &BaseName) -> MadeBase {
    node.engine().make_base(base, None).await.unwrap()
}

/// What a command writes that runs on a base, up to the line that begins with `last`.
async fn run(
    node: &Node,
    app: &AppKey,
    base: &MadeBase,
    command: &[&str],
    last: &str,
) -> Vec<String> {
    let mut manifest = settings(app, &base.image.names[0]);
    let change = json!({
        "command": command, "restart": "never", "resources": {"memory": "300Mi", "cpu": "1500m"},
    });
    patch(&mut manifest, change);
    let release = release_of(manifest, base.image.digest.clone());
    node.apply(&fleet(app, 1, 1, (1, 0), &[(1, release)])).await;
    let begun = Instant::now();
    loop {
        let lines = node.engine().logs(app, LogQuery::default()).await.unwrap();
        let lines: Vec<String> = lines.map(|line| line.text).collect().await;
        if lines.iter().any(|line| line.trim_start().starts_with(last)) {
            return lines;
        }
        assert!(begun.elapsed() < PATIENCE, "no line {last:?}: {lines:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn has(lines: &[String], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jvm_of_the_machine_stays_within_its_memory_and_maps_its_classes() {
    let node = Node::new('y').await;
    let all = installed(&node, RuntimeName::Java).await;
    assert!(!all.is_empty(), "no Java is installed; `cargo xtask prepare` installs one");
    for found in all {
        let base = made(&node, &found.base).await;
        assert_eq!(base.runtime, found);
        // What was made of the same installation is the same image.
        assert_eq!(made(&node, &found.base).await.image.digest, base.image.digest);

        let app = app_key(&format!("java-{}", found.base.version()));
        let command =
            ["java", "-Xshare:on", "-XX:+PrintFlagsFinal", "-XshowSettings:system", "-version"];
        let lines = run(&node, &app, &base, &command, "OpenJDK 64-Bit").await;
        assert!(has(&lines, &found.exact), "{lines:#?}");
        // It maps the archive of its own classes, whatever became of their times.
        assert!(has(&lines, "sharing)"), "{lines:#?}");
        let flag = |name: &str| {
            let line = lines.iter().find(|line| line.split_whitespace().nth(1) == Some(name));
            line.unwrap().split_whitespace().nth(3).unwrap().parse::<u64>().unwrap()
        };
        assert!(flag("MaxHeapSize") <= 300 << 20, "{lines:#?}");
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_of_the_machine_run_with_all_that_their_libraries_load() {
    let node = Node::new('z').await;
    python(&node).await;
    node_js(&node).await;
    missing(&node).await;
    node.end().await;
}

async fn python(node: &Node) {
    let found = installed(node, RuntimeName::Python).await;
    // The newest: pyenv leaves old ones behind.
    let found = found.last().expect("`cargo xtask prepare` installs a Python");
    let base = made(node, &found.base).await;
    let program = "import ctypes, hashlib, json, lzma, os, socket, sqlite3, ssl, sys, urllib.request\n\
                   from zoneinfo import ZoneInfo\n\
                   context = ssl.create_default_context()\n\
                   print('utf8', sys.flags.utf8_mode or sys.stdout.encoding)\n\
                   print('certificates', len(context.get_ca_certs()) > 10)\n\
                   print('zone', ZoneInfo('Europe/Berlin').key, 'user', os.getuid())\n\
                   print('names', socket.getaddrinfo('localhost', 80)[0][4][0])\n\
                   print('done', sys.version.split()[0], flush=True)\n";
    let lines = run(node, &app_key("python"), &base, &["python3", "-c", program], "done").await;
    for part in ["utf-8", "certificates True", "zone Europe/Berlin user 65532", "names"] {
        assert!(has(&lines, part), "{part}: {lines:#?}");
    }
    assert!(has(&lines, &format!("done {}", found.exact)), "{lines:#?}");
}

async fn node_js(node: &Node) {
    let found = installed(node, RuntimeName::Node).await;
    let found = found.first().expect("`cargo xtask prepare` installs Node.js");
    let base = made(node, &found.base).await;
    let program = "const {createHash} = require('crypto'); require('https');\
                   console.log('hash', createHash('sha256').update('').digest('hex').slice(0, 8));\
                   console.log('done', process.version)";
    let lines = run(node, &app_key("node"), &base, &["node", "-e", program], "done").await;
    assert!(has(&lines, "hash e3b0c442"), "{lines:#?}");
    assert!(has(&lines, &format!("done v{}", found.exact)), "{found:?}: {lines:#?}");
}

async fn missing(node: &Node) {
    let before = node.engine().images().await.unwrap().len();
    let error = node.engine().make_base(&"java:999".parse().unwrap(), None).await.unwrap_err();
    let stead_core::engine::EngineError::User(error) = error else { panic!("{error}") };
    assert_eq!(error.code, Code::PackageUnfit);
    assert!(error.message.contains("java:999"), "{error}");
    // Nothing of it stays.
    assert_eq!(node.engine().images().await.unwrap().len(), before);
    let left = std::fs::read_dir(node.config.data_dir.join("images/tmp")).unwrap().count();
    assert_eq!(left, 0);
}
