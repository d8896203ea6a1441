//! Base images: what the machine offers, made when asked, kept, forgotten.

use serde_json::Value;

use crate::platform::{Platform, image};

/// The base of this name in a list.
fn find<'a>(bases: &'a Value, name: &str) -> &'a Value {
    let all = bases.as_array().expect("a list");
    all.iter().find(|base| base["base"] == name).unwrap_or(&Value::Null)
}

#[test]
fn a_base_is_offered_made_kept_and_forgotten() {
    let platform = Platform::start();
    let offers = platform.json(&["image", "base"]);
    // The smallest of those that every machine with our tests has.
    let names = offers.as_array().expect("a list").iter().filter_map(|base| base["base"].as_str());
    let python = names.into_iter().find(|name| name.starts_with("python:")).expect("there is one");
    assert_eq!(find(&offers, python)["image"], Value::Null, "{offers:#}");

    let made = platform.json(&["image", "base", "--from-host", python]);
    let digest = made[0]["image"].as_str().expect("it has an image").to_owned();
    assert!(made[0]["size"].as_u64() > Some(1 << 20), "{made:#}");
    let again = platform.json(&["image", "base", "--from-host", python]);
    assert_eq!(again[0]["image"], *digest, "the same installation is the same image");

    platform.json(&["image", "base", "java:99", "--use", &image("trivial", "1")]);
    platform.stead(&["image", "prune"]).expect(0);
    let kept = platform.json(&["image", "base"]);
    assert_eq!(find(&kept, python)["image"], *digest);
    assert_eq!(find(&kept, "java:99")["error"], Value::Null, "{kept:#}");
    let table = platform.stead(&["image", "base"]).expect(0).stdout;
    assert!(table.contains(python) && table.contains("/trivial:1"), "{table}");

    platform.stead(&["image", "base", "--remove", "java:99"]).expect(0);
    platform.stead(&["image", "base", "--remove", "java:99"]).expect(3);
    let freed = platform.json(&["image", "prune"]);
    assert!(freed["freed"].as_u64() > Some(0), "{freed}");
}

#[test]
fn a_base_that_cannot_be_made_is_an_error_that_says_how_to_get_it() {
    let platform = Platform::start();
    let refused = platform.stead(&["image", "base", "--from-host", "java:999"]).expect(1).stderr;
    assert!(refused.contains("STEAD-I013"), "{refused}");
    assert!(refused.contains("apt-get install openjdk-999-jre-headless"), "{refused}");
    let dir = platform.dir.path().display().to_string();
    let args = ["image", "base", "--from-host", "node:20", "--path", &dir];
    let refused = platform.stead(&args).expect(1).stderr;
    assert!(refused.contains(&dir) && refused.contains("bin/node"), "{refused}");
    let args = ["image", "base", "tomcat:10.1", "--from-maven", "9.0.1", "--java", "17"];
    assert!(platform.stead(&args).expect(2).stderr.contains("Tomcat 9.0.1 is not tomcat:10.1"));
    let doctor = platform.stead(&["doctor"]);
    assert!(doctor.stdout.contains("--from-maven"), "{}", doctor.stdout);
}
