//! Logins and mirrors: given by the command line, good for the next pull, shown nowhere.

use crate::platform::{Platform, Ran, eventually, guarded, image};

/// A password, and what `htpasswd -B` makes of it.
const PASSWORD: &str = "secret";
const HTPASSWD: &str = "user:$2y$04$Xmx4hvIe8QC.eGL6gWZWTOBX/6aiAs7wwt2R1uJPWcE1iVOlHuNjS\n";

fn log_in(platform: &Platform, host: &str, password: &str) -> Ran {
    let args = ["registry", "login", host, "-u", "user", "--password-stdin"];
    platform.told(&args, password)
}

#[test]
fn a_login_is_tried_kept_sealed_and_good_for_the_next_pull() {
    let platform = Platform::start();
    let open = image("trivial", "1");
    let htpasswd = platform.dir.path().join("htpasswd");
    std::fs::write(&htpasswd, HTPASSWD).expect("the folder is ours");
    let registry = guarded(&htpasswd);
    let (host, reference) = (registry.address().to_string(), registry.reference("trivial", "1"));
    assert_ne!(open, reference);

    let refused = platform.deploy("web", &reference, "").expect(1);
    assert!(refused.stderr.contains("STEAD-I002"), "{}", refused.stderr);
    assert!(refused.stderr.contains("stead registry login"), "{}", refused.stderr);
    let wrong = log_in(&platform, &host, "wrong").expect(1);
    assert!(wrong.stderr.contains("STEAD-I002"), "{}", wrong.stderr);
    assert_eq!(platform.json(&["registry", "ls"]), serde_json::json!([]), "it was not kept");

    log_in(&platform, &host, PASSWORD).expect(0);
    platform.deploy("web", &reference, "").expect(0);
    let list = platform.stead(&["registry", "ls"]).expect(0).stdout;
    assert!(list.contains(&host) && list.contains("user"), "{list}");
    let shown = platform.stead(&["-o", "json", "registry", "ls"]).expect(0).stdout;
    assert!(!shown.contains(PASSWORD) && !shown.contains("sealed"), "{shown}");
    for file in ["state.db", "state.db-wal", "events.db", "log/serve.log"] {
        let file = platform.dir.path().join("data").join(file);
        let text = std::fs::read(&file).unwrap_or_default();
        for clear in ["user:secret", "\"secret\"", "dXNlcjpzZWNyZXQ="] {
            let found = text.windows(clear.len()).any(|part| part == clear.as_bytes());
            assert!(!found, "the password shows in {}", file.display());
        }
    }

    // One that knows nothing yet opens what the one before it sealed.
    let serve = platform.kill("serve");
    eventually("another serve answers", || {
        (platform.pid("serve")? != serve && platform.app("web").is_some()).then_some(())
    });
    platform.stead(&["image", "pull", &reference]).expect(0);

    platform.stead(&["registry", "logout", &host]).expect(0);
    platform.stead(&["registry", "logout", &host]).expect(3);
    let refused = platform.stead(&["image", "pull", &reference]).expect(1);
    assert!(refused.stderr.contains("STEAD-I002"), "{}", refused.stderr);
}

#[test]
fn a_mirror_stands_in_for_a_registry_that_is_away() {
    let platform = Platform::start();
    let there = image("trivial", "1");
    let (mirror, _) = there.split_once('/').expect("a reference has a host");
    let away = "127.0.0.1:9";
    let reference = format!("{away}/trivial:1");
    let refused = platform.stead(&["image", "pull", &reference]).expect(1);
    assert!(refused.stderr.contains("STEAD-I003"), "{}", refused.stderr);

    let dead = platform.stead(&["registry", "mirror", "add", away, "127.0.0.1:10"]).expect(1);
    assert!(dead.stderr.contains("STEAD-I003"), "a mirror is tried first: {}", dead.stderr);
    platform.stead(&["registry", "mirror", "add", away, away]).expect(2);
    platform.stead(&["registry", "mirror", "add", away, "https://mirror.example"]).expect(2);

    platform.stead(&["registry", "mirror", "add", away, mirror]).expect(0);
    // The registry itself would have to say what the tag names.
    platform.stead(&["image", "pull", &reference]).expect(1);
    platform.stead(&["registry", "mirror", "add", away, mirror, "--tags"]).expect(0);
    platform.deploy("web", &reference, "").expect(0);
    let list = platform.stead(&["registry", "mirror", "ls"]).expect(0).stdout;
    assert!(list.contains(away) && list.contains(mirror) && list.contains("yes"), "{list}");

    platform.stead(&["registry", "mirror", "rm", away, mirror]).expect(0);
    platform.stead(&["registry", "mirror", "rm", away, mirror]).expect(3);
    platform.stead(&["image", "pull", &reference]).expect(1);
}
