//! Secrets reach the App and nobody else: no disk, no log, no answer, no command line.

use std::io::{Read, Write};
use std::path::Path;

use crate::platform::{Platform, Ran, eventually, image};

/// Values that occur nowhere by chance.
const FIRST: &str = "correct-horse-7f3a";
const SECOND: &str = "battery-staple-9c1d";

fn set(platform: &Platform, args: &[&str], value: &str) -> Ran {
    let args: Vec<&str> = ["secrets", "set", "web"].iter().chain(args).copied().collect();
    platform.told(&args, value)
}

/// What the App has.
fn inside(platform: &Platform) -> String {
    platform.page("web", "/env/DB_PASSWORD").1.trim_end().to_owned()
}

/// How many processes the last Rollout started.
fn starts(platform: &Platform) -> usize {
    let waterfall = platform.json(&["waterfall", "web"]);
    let bars = waterfall["bars"].as_array().expect("a list");
    bars.iter().filter(|bar| bar["phase"] == "start").count()
}

#[test]
fn a_secret_is_in_the_app_and_nowhere_else() {
    let platform = Platform::start();
    let trivial = image("trivial", "1");
    let named = "secrets: [DB_PASSWORD]";
    let refused = platform.deploy("web", &trivial, named).expect(2);
    assert!(refused.stderr.contains("STEAD-R007"), "{}", refused.stderr);
    assert!(refused.stderr.contains("stead secrets set web DB_PASSWORD"), "{}", refused.stderr);

    set(&platform, &["DB_PASSWORD"], FIRST).expect(0);
    platform.deploy("web", &trivial, named).expect(0);
    assert_eq!(inside(&platform), FIRST);
    let before = platform.process("web");
    set(&platform, &["DB_PASSWORD"], FIRST).expect(0);
    assert_eq!(platform.process("web"), before, "it has that value already");

    set(&platform, &["DB_PASSWORD"], SECOND).expect(0);
    assert_eq!(inside(&platform), SECOND);
    assert_eq!(starts(&platform), 1, "one change is one restart");
    let list = platform.json(&["secrets", "list", "web"]);
    assert_eq!((&list[0]["version"], &list[0]["used"]), (&2.into(), &2.into()), "{list:#}");

    platform.stead(&["rollback", "web"]).expect(0);
    assert_eq!(inside(&platform), FIRST, "a rollback brings the old value back");
    platform.stead(&["restart", "web"]).expect(0);
    assert_eq!(inside(&platform), FIRST, "and so does a process started anew");
    let plan =
        platform.stead(&["deploy", "-f", &platform.manifest("web", &trivial, named), "--plan"]);
    let plan = plan.expect(0).stdout;
    assert!(plan.contains("secrets.DB_PASSWORD"), "{plan}");
    assert!(plan.contains("version 1") && plan.contains("version 2"), "{plan}");

    crash(&platform);
    // One that knows nothing yet takes the App over, and starts it once more.
    let serve = platform.kill("serve");
    eventually("another serve answers", || {
        (platform.pid("serve")? != serve && platform.app("web").is_some()).then_some(())
    });
    crash(&platform);
    platform.stead(&["restart", "web"]).expect(0);
    assert_eq!(inside(&platform), FIRST);

    nothing_shows(&platform);
}

/// Ends the App's process from inside, and waits until it runs again with its secret.
fn crash(platform: &Platform) {
    let before = platform.process("web");
    let mut stream = std::net::TcpStream::connect(platform.http).expect("the gateway listens");
    let request = "POST /exit?code=3 HTTP/1.1\r\nHost: web.default.localhost\r\n\
                   Content-Length: 0\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it is sent");
    // No answer is expected of a process that ended.
    let _ = stream.read_to_end(&mut Vec::new());
    eventually("it runs again", || {
        let (status, _, body) = platform.get("web", "/env/DB_PASSWORD").ok()?;
        (status == 200 && platform.process("web") != before).then(|| {
            assert_eq!(body.trim_end(), FIRST);
        })
    });
}

fn nothing_shows(platform: &Platform) {
    let mut answers = Vec::new();
    for args in [
        &["logs", "web"][..],
        &["events", "web"],
        &["-o", "json", "events", "web"],
        &["-o", "json", "releases", "web"],
        &["-o", "json", "ps", "web"],
        &["-o", "json", "status", "web"],
        &["-o", "json", "waterfall", "web"],
        &["-o", "json", "secrets", "list", "web"],
        &["-o", "json", "env", "list", "web"],
    ] {
        let ran = platform.stead(args).expect(0);
        answers.push((args.join(" "), (ran.stdout + &ran.stderr).into_bytes()));
    }
    for path in ["/namespaces/default/apps/web/rollouts", "/doctor", "/version"] {
        let answer = platform.ask(path).expect("the API answers");
        answers.push((path.to_owned(), answer.to_string().into_bytes()));
    }
    for entry in std::fs::read_dir("/proc").expect("proc is mounted").flatten() {
        // A process may have ended meanwhile.
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        answers.push((entry.path().display().to_string(), line));
    }
    files(platform.dir.path(), &mut answers);
    let read =
        |part: &str| answers.iter().any(|(what, text)| what.contains(part) && !text.is_empty());
    for part in ["data/state.db", "data/events.db", "run/fleets/", "data/log", "logs web"] {
        assert!(read(part), "{part} was not looked at");
    }
    for (what, text) in &answers {
        for value in [FIRST, SECOND] {
            let found = text.windows(value.len()).any(|part| part == value.as_bytes());
            assert!(!found, "a secret shows in {what}");
        }
    }
}

fn files(folder: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("it is there");
        if kind.is_dir() {
            files(&entry.path(), into);
        } else if kind.is_file() {
            let text = std::fs::read(entry.path()).unwrap_or_default();
            into.push((entry.path().display().to_string(), text));
        }
    }
}
