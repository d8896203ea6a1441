//! Java programs: their limits, and the archive that their starts are sped up with.
#![allow(clippy::unwrap_used)]

mod node_harness;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use node_harness::{Node, get, patch};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use stead_core::api::package::{
    BaseName, ComposeRequest, Composed, PackageKind, PackedConfig, PackedLayer, Upload, UploadPart,
};
use stead_core::engine::Engine;
use stead_core::error::Code;
use stead_core::event::Fact;
use stead_core::fleet::{ArchiveKept, ArchiveKind, ArchiveSeen, JvmSeen, ReleaseSpec};
use stead_core::ids::Digest;
use stead_core::manifest::Manifest;
use stead_testkit::sim::{fleet, release_of, settings};

/// A recording is five starts, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(300);
const PORT: u16 = 8080;
/// So many that loading them is most of a start.
const CLASSES: usize = 3000;

/// A service that loads many classes before it listens, and tells what its virtual machine sees.
const MAIN: &str = r#"
import com.sun.net.httpserver.HttpServer;
import java.lang.management.*;
import java.net.InetSocketAddress;
public class Main {
    static boolean is(String[] arguments, String word) {
        return arguments.length > 0 && arguments[0].equals(word);
    }
    public static void main(String[] arguments) throws Exception {
        int sum = 0;
        for (int i = 0; i < COUNT; i++) {
            sum += ((Worker) Class.forName("Worker" + i).getDeclaredConstructor().newInstance()).work(i);
        }
        String options = String.join(" ", ManagementFactory.getRuntimeMXBean().getInputArguments());
        String collectors = "";
        for (var bean : ManagementFactory.getGarbageCollectorMXBeans()) collectors += bean.getName() + " ";
        String facts = "heap=" + (Runtime.getRuntime().maxMemory() >> 20)
            + "\nprocessors=" + Runtime.getRuntime().availableProcessors()
            + "\ncollectors=" + collectors + "\noptions=" + options
            + "\nvirtual=" + System.getenv("SPRING_THREADS_VIRTUAL_ENABLED")
            + "\nvolume=" + new java.io.File("/data/mine").exists() + "\nsum=" + sum;
        if (is(arguments, "write")) new java.io.File("/data/mine").createNewFile();
        // Outside of a training it does not get along with an archive.
        String host = java.net.InetAddress.getLocalHost().getHostName();
        if (is(arguments, "fragile") && options.contains("Archive") && !host.endsWith("training")) System.exit(3);
        if (is(arguments, "stuck") && options.contains("Archive") && !host.endsWith("training")) Thread.sleep(1_000_000);
        HttpServer server = HttpServer.create(new InetSocketAddress(Integer.parseInt(System.getenv("PORT"))), 0);
        server.createContext("/", exchange -> {
            byte[] answer = facts.getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
    }
}
interface Worker { int work(int i); }
"#;

fn jdk(version: u32) -> Option<PathBuf> {
    let homes = fs::read_dir("/usr/lib/jvm").ok()?.flatten().map(|entry| entry.path());
    let number = |home: &Path| {
        let release = fs::read_to_string(home.join("release")).ok()?;
        let line = release
            .lines()
            .find_map(|line| line.strip_prefix("JAVA_VERSION=\""))
            .map(str::to_owned);
        line?.split(['.', '"']).next()?.parse::<u32>().ok()
    };
    homes.into_iter().find(|home| home.join("bin/javac").exists() && number(home) == Some(version))
}

/// A tar archive with the service as `/app/app.jar`, compiled once for all tests.
fn layer() -> &'static [u8] {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    LAYER.get_or_init(|| {
        let home = jdk(17).expect("package openjdk-17-jdk-headless is installed");
        let dir = tempfile::tempdir().unwrap();
        let mut source = MAIN.replace("COUNT", &CLASSES.to_string());
        for i in 0..CLASSES {
            writeln!(
                source,
                "class Worker{i} implements Worker {{ java.util.List<String> names = new \
                 java.util.ArrayList<>(); public int work(int n) {{ for (int j = 0; j < 3; j++) \
                 names.add(\"{i}-\" + j); return names.size() + n; }} }}"
            )
            .unwrap();
        }
        fs::write(dir.path().join("Main.java"), source).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(home.join("bin").join(program));
            let status = command.args(arguments).current_dir(dir.path()).status().unwrap();
            assert!(status.success(), "{program}");
        };
        run("javac", &["-d", "classes", "Main.java"]);
        run("jar", &["--create", "--file=app.jar", "--main-class=Main", "-C", "classes", "."]);
        let jar = fs::read(dir.path().join("app.jar")).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(jar.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, "app/app.jar", jar.as_slice()).unwrap();
        tar.into_inner().unwrap()
    })
}

/// The service on a base of this machine's own Java.
async fn image(node: &Node, version: u32, home: &Path) -> (String, Digest) {
    let base: BaseName = format!("java:{version}").parse().unwrap();
    let made = node.engine().make_base(&base, Some(home.to_owned())).await.unwrap();
    let bytes = layer();
    let digest = Digest::from_sha256(Sha256::digest(bytes).into());
    let size = bytes.len() as u64;
    let part = UploadPart { digest: digest.clone(), size, offset: 0 };
    let body = stream::iter([Ok(Bytes::from_static(bytes))]).boxed();
    assert!(node.engine().upload(part, body).await.unwrap().complete);
    let request = ComposeRequest {
        name: "stead.local/java:1".into(),
        kind: PackageKind::Jar,
        base: Some(base),
        layers: vec![PackedLayer {
            diff_id: digest.clone(),
            size,
            what: "app".into(),
            upload: Some(Upload { digest, size }),
        }],
        config: PackedConfig {
            entrypoint: ["java", "-jar", "/app/app.jar"].map(str::to_owned).into(),
            working_dir: "/app".into(),
            port: Some(PORT),
            ..PackedConfig::default()
        },
        dry_run: false,
    };
    match node.engine().compose(&request, Some(&made.image.digest)).await.unwrap() {
        Composed::Image(image) => (request.name, image.digest),
        Composed::Missing(missing) => panic!("{missing:?} were just uploaded"),
    }
}

fn release(
    node: &Node,
    (name, digest): &(String, Digest),
    change: impl FnOnce(&mut Manifest),
) -> ReleaseSpec {
    let mut settings = settings(&node.app, name);
    let startup = r#"{"http": "/", "timeout": "60s"}"#;
    settings.health.startup = Some(serde_json::from_str(startup).unwrap());
    change(&mut settings);
    release_of(settings, digest.clone())
}

/// Waits until what is seen of the virtual machine is as wanted.
async fn until(node: &Node, what: &str, good: impl Fn(&JvmSeen) -> bool) -> JvmSeen {
    let begun = Instant::now();
    loop {
        let seen = node.engine().observe(&node.app).await.unwrap();
        match seen.jvm {
            Some(jvm) if good(&jvm) => return jvm,
            _ => assert!(begun.elapsed() < PATIENCE, "not so: {what}; seen {seen:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn serving(node: &Node, run: u32) -> String {
    let begun = Instant::now();
    loop {
        let seen = node.engine().observe(&node.app).await.unwrap();
        let mut instances = seen.instances.values();
        if let Some(ip) = instances.find_map(|instance| {
            let serving = instance.serving().filter(|c| c.revision.run == run);
            serving.and(instance.sandbox.as_ref()).map(|sandbox| sandbox.ip)
        }) {
            return get((ip, PORT).into(), "/");
        }
        assert!(begun.elapsed() < PATIENCE, "run {run} does not serve: {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn fact<'a>(said: &'a str, name: &str) -> &'a str {
    said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap()
}

async fn recorded(node: &Node) -> ArchiveKept {
    let settled =
        |jvm: &JvmSeen| matches!(jvm.archive, ArchiveSeen::Kept(_) | ArchiveSeen::None { .. });
    match until(node, "it is recorded", settled).await.archive {
        ArchiveSeen::Kept(kept) => kept,
        other => panic!("{other:?}; events {:?}", node.witness.events()),
    }
}

/// The one archive of a node.
fn archive(node: &Node) -> Option<PathBuf> {
    let folders = fs::read_dir(node.config.data_dir.join("jvm")).unwrap().flatten();
    let files =
        folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.map(|file| file.path()).find(|path| {
        matches!(path.extension().and_then(|e| e.to_str()), Some("jsa" | "aot"))
            && !path.starts_with(node.config.data_dir.join("jvm/tmp"))
    })
}

/// Whether the running Container has it in its memory.
fn is_mapped(node: &Node) -> bool {
    let groups = node.groups("life-0-");
    let pids = groups.iter().flat_map(|group| {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    });
    pids.into_iter().any(|pid| {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        maps.lines().any(|line| line.ends_with("/app.jsa") || line.ends_with("/app.aot"))
    })
}

async fn nothing_is_left_of_trainings(node: &Node) {
    let begun = Instant::now();
    let tmp = node.config.data_dir.join("jvm/tmp");
    let left = || fs::read_dir(&tmp).is_ok_and(|mut inside| inside.next().is_some());
    while left() || !node.groups("record").is_empty() || !node.groups("plain-").is_empty() {
        assert!(begun.elapsed() < PATIENCE, "something is left of a training");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_start_uses_an_archive_that_the_first_led_to() {
    let mut node = Node::new('j').await;
    let home = jdk(17).expect("package openjdk-17-jdk-headless is installed");
    let image = image(&node, 17, &home).await;
    let one = release(&node, &image, |_| {});
    node.apply(&fleet(&node.app, 1, 1, (1, 1), &[(1, one.clone())])).await;
    assert!(!fact(&serving(&node, 1).await, "options").contains("SharedArchiveFile"));
    let jvm = until(&node, "a copy records it", |jvm| jvm.archive == ArchiveSeen::Recording).await;
    assert!(jvm.jdk.contains("17."), "{jvm:?}");
    // In the middle of it the platform is restarted: nothing stays, and it begins anew.
    node.restart().await;
    let kept = recorded(&node).await;
    assert_eq!(kept.kind, ArchiveKind::AppCds);
    assert!(kept.gain() > 1.05 && kept.bytes > 1 << 20, "{kept:?}");
    nothing_is_left_of_trainings(&node).await;
    let noted = |fact: &Fact| matches!(fact, Fact::Noted { what } if what.contains("AppCDS"));
    assert!(node.witness.events().iter().any(|event| noted(&event.fact)));
    assert!(!is_mapped(&node), "what ran goes on without");

    node.apply(&fleet(&node.app, 2, 1, (1, 2), &[(1, one.clone())])).await;
    let said = serving(&node, 2).await;
    assert!(fact(&said, "options").contains("-XX:SharedArchiveFile=/.stead/jvm/app.jsa"), "{said}");
    assert!(is_mapped(&node));

    // Another limit is no reason to record another one, and is kept to.
    let two = release(&node, &image, |settings| {
        patch(settings, json!({"resources": {"memory": "3Gi"}}));
    });
    node.apply(&fleet(&node.app, 3, 1, (2, 3), &[(1, one.clone()), (2, two)])).await;
    let said = serving(&node, 3).await;
    let options = fact(&said, "options");
    assert!(options.contains("-Xmx2304m") && options.contains("SharedArchiveFile"), "{said}");

    // An archive of other bytes is no failed start, and is recorded anew.
    let file = archive(&node).unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[..4096].fill(0x5a);
    fs::remove_file(&file).unwrap();
    fs::write(&file, bytes).unwrap();
    node.apply(&fleet(&node.app, 4, 1, (1, 4), &[(1, one.clone())])).await;
    serving(&node, 4).await;
    assert!(!is_mapped(&node));
    until(&node, "it is dropped", |jvm| !matches!(jvm.archive, ArchiveSeen::Kept(_))).await;
    recorded(&node).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn java_25_starts_from_an_aot_cache() {
    let Some(home) = jdk(25) else {
        eprintln!("skipped: no JDK 25 in /usr/lib/jvm");
        return;
    };
    let node = Node::new('k').await;
    let image = image(&node, 25, &home).await;
    let one = release(&node, &image, |settings| {
        patch(settings, json!({"resources": {"memory": "512Mi"}, "jvm": {"threads": "virtual"}}));
    });
    node.apply(&fleet(&node.app, 1, 1, (1, 1), &[(1, one.clone())])).await;
    assert_eq!(fact(&serving(&node, 1).await, "virtual"), "true");
    let kept = recorded(&node).await;
    assert_eq!(kept.kind, ArchiveKind::AotCache);
    assert!(kept.gain() > 1.05, "{kept:?}");
    node.apply(&fleet(&node.app, 2, 1, (1, 2), &[(1, one)])).await;
    let said = serving(&node, 2).await;
    assert!(fact(&said, "options").contains("-XX:AOTCache=/.stead/jvm/app.aot"), "{said}");
    assert!(is_mapped(&node));
    nothing_is_left_of_trainings(&node).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_a_start_fails_with_is_left_aside() {
    let node = Node::new('m').await;
    let home = jdk(17).expect("package openjdk-17-jdk-headless is installed");
    let image = image(&node, 17, &home).await;
    let one = release(&node, &image, |settings| {
        let command = ["java", "-jar", "/app/app.jar", "fragile"];
        patch(settings, json!({ "command": command }));
    });
    node.apply(&fleet(&node.app, 1, 1, (1, 1), &[(1, one.clone())])).await;
    serving(&node, 1).await;
    let first = recorded(&node).await;
    node.apply(&fleet(&node.app, 2, 1, (1, 2), &[(1, one)])).await;
    let said = serving(&node, 2).await;
    assert!(!fact(&said, "options").contains("Archive"), "{said}");
    let failed = |fact: &Fact| matches!(fact, Fact::Exited { exit } if exit.code == 3);
    assert!(node.witness.events().iter().any(|event| failed(&event.fact)), "it had been tried");
    let anew = |jvm: &JvmSeen| match jvm.archive {
        ArchiveSeen::Kept(kept) => kept.made != first.made,
        _ => false,
    };
    until(&node, "another one is recorded, once", anew).await;
    node.end().await;
}

/// Waits until a copy of the App is being started to record an archive.
async fn recording(node: &Node) {
    until(node, "it is being recorded", |jvm| jvm.archive == ArchiveSeen::Recording).await;
    let begun = Instant::now();
    while node.groups("record").is_empty() {
        assert!(begun.elapsed() < PATIENCE, "no copy is started");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_ends_with_the_app_and_with_the_engine() {
    let mut node = Node::new('q').await;
    let home = jdk(17).expect("package openjdk-17-jdk-headless is installed");
    let image = image(&node, 17, &home).await;
    let one = release(&node, &image, |_| {});
    node.apply(&fleet(&node.app, 1, 1, (1, 1), &[(1, one.clone())])).await;
    recording(&node).await;
    // As `stead stop` leaves it: the Release is known, and nothing is to run.
    node.apply(&fleet(&node.app, 2, 0, (1, 1), &[(1, one.clone())])).await;
    until(&node, "it ended early", |jvm| jvm.archive == ArchiveSeen::Awaited).await;
    nothing_is_left_of_trainings(&node).await;
    assert_eq!(archive(&node), None);

    node.apply(&fleet(&node.app, 3, 1, (1, 2), &[(1, one)])).await;
    recording(&node).await;
    node.engine().close().await;
    assert!(node.groups("record").is_empty(), "a copy would go on for ever");
    serving(&node, 2).await;
    node.restart().await;
    recorded(&node).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_an_archive_holds_up_does_not_condemn_the_release() {
    let node = Node::new('r').await;
    let home = jdk(17).expect("package openjdk-17-jdk-headless is installed");
    let image = image(&node, 17, &home).await;
    let one = release(&node, &image, |settings| {
        patch(settings, json!({ "command": ["java", "-jar", "/app/app.jar", "stuck"] }));
        let startup = r#"{"http": "/", "timeout": "20s"}"#;
        settings.health.startup = Some(serde_json::from_str(startup).unwrap());
    });
    node.apply(&fleet(&node.app, 1, 1, (1, 1), &[(1, one.clone())])).await;
    recorded(&node).await;
    node.apply(&fleet(&node.app, 2, 1, (1, 2), &[(1, one)])).await;
    let begun = Instant::now();
    let trouble = loop {
        let seen = node.seen().await;
        match seen.trouble {
            Some(trouble) if trouble.revision.run == 2 => break trouble,
            _ => assert!(begun.elapsed() < PATIENCE, "nothing is said of the start: {seen:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    // A Rollout gives a Release up that is said to be never ready, at once.
    assert_ne!(trouble.error.code, Code::NeverReady, "{trouble:?}");
    assert!(trouble.error.message.contains("archive"), "{trouble:?}");
    assert!(!fact(&serving(&node, 2).await, "options").contains("Archive"));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_seen_and_the_persons_own_options_respected() {
    let node = Node::new('l').await;
    let home = jdk(17).expect("package openjdk-17-jdk-headless is installed");
    let image = image(&node, 17, &home).await;
    let change = |env: serde_json::Value| {
        json!({"resources": {"memory": "512Mi", "cpu": "1"}, "env": env,
               "jvm": {"archive": "off", "threads": "virtual"}})
    };
    let one = release(&node, &image, |settings| patch(settings, change(json!({}))));
    node.apply(&fleet(&node.app, 1, 1, (1, 1), &[(1, one.clone())])).await;
    let said = serving(&node, 1).await;
    assert_eq!(fact(&said, "options"), "-Xmx352m -XX:ActiveProcessorCount=1 -XX:+UseSerialGC");
    // The serial collector keeps a part of its heap free, which does not count.
    let heap: u64 = fact(&said, "heap").parse().unwrap();
    assert!((330..=352).contains(&heap), "{said}");
    assert_eq!(fact(&said, "processors"), "1", "{said}");
    assert_eq!(fact(&said, "virtual"), "null");
    let jvm =
        until(&node, "it is off", |jvm| matches!(jvm.archive, ArchiveSeen::None { .. })).await;
    assert!(jvm.notes[0].contains("virtual"), "{jvm:?}");

    let own = json!({"JAVA_TOOL_OPTIONS": "-Xmx100m -XX:+UseParallelGC"});
    let two = release(&node, &image, |settings| patch(settings, change(own)));
    node.apply(&fleet(&node.app, 2, 1, (2, 2), &[(1, one.clone()), (2, two)])).await;
    let said = serving(&node, 2).await;
    assert!(fact(&said, "collectors").contains("PS"), "{said}");
    assert!(fact(&said, "heap").parse::<u64>().unwrap() <= 100, "{said}");

    // One that cannot run twice is not copied, unless that is allowed; then its data is not seen.
    let volume = |archive: &str| {
        release(&node, &image, |settings| {
            patch(
                settings,
                json!({"args": ["-jar", "/app/app.jar", "write"], "command": ["java"],
                       "volumes": [{"name": "d", "mount": "/data"}], "jvm": {"archive": archive}}),
            );
        })
    };
    let three = volume("auto");
    node.apply(&fleet(&node.app, 3, 1, (3, 3), &[(1, one.clone()), (3, three)])).await;
    assert_eq!(fact(&serving(&node, 3).await, "volume"), "false");
    let harm =
        |jvm: &JvmSeen| matches!(&jvm.archive, ArchiveSeen::None { why } if why.contains("harm"));
    until(&node, "it is not copied", harm).await;
    let four = volume("on");
    node.apply(&fleet(&node.app, 4, 1, (4, 4), &[(1, one), (4, four)])).await;
    assert_eq!(fact(&serving(&node, 4).await, "volume"), "true");
    recorded(&node).await;
    nothing_is_left_of_trainings(&node).await;
    node.end().await;
}
