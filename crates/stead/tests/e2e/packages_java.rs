//! A Spring Boot jar and a plain war, each deployed by one command on a machine that has no image,
//! and upgraded under load by sending what differs.

use std::fs;
use std::path::{Path, PathBuf};

use stead_testkit::load::{Mix, Plan};

use crate::load::{Load, ledgers_are_clean};
use crate::platform::Platform;

/// Enough requests that a lost one would have been seen.
const ENOUGH: u64 = 120;
/// Clients that an application server answers which knows no uploads.
const READERS: Mix = Mix { keep_alive: 4, one_shot: 2, ..Mix::NOBODY };
/// Requests per second of all of them: a Java server that starts needs the machine, too.
const PACE: f64 = 25.0;
/// A server may take long to start on a machine that does much else, and archives of classes are
/// another test's.
const PATIENT: &str = "health: {startup: {tcp: 8080, timeout: 5m}}\njvm: {archive: off}";
/// The share of a package, in hundredths, that a version with one other class may cost.
const MOST: u64 = 2;

/// What `cargo xtask prepare` has built: Maven would need a network.
fn built(sample: &str, file: &str) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = target.unwrap_or_else(|| workspace.join("target")).join("samples").join(sample);
    assert!(folder.join("lock").is_file(), "run `cargo xtask prepare` first");
    folder.join(file).display().to_string()
}

/// Bytes that a deploy says it sent.
fn sent(said: &str) -> u64 {
    if said.contains("nothing to send") {
        return 0;
    }
    let (_, rest) = said.split_once(": sent ").expect(said);
    let mut words = rest.split(' ');
    let amount: f64 = words.next().and_then(|word| word.parse().ok()).expect(said);
    let unit = match words.next().expect(said) {
        "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        other => panic!("{other} in {said}"),
    };
    (amount * unit) as u64
}

fn deploy(platform: &Platform, app: &str, package: &str) -> String {
    platform.deploy(app, package, PATIENT).expect(0).stdout
}

/// Changes an App under load from version 1 to version 2, which has one other class.
fn upgraded(platform: &Platform, app: &str, package: &str) {
    assert_eq!(platform.version(app), "1");
    let ip = platform.ip(app, 0);
    let plan = Plan::new(platform.http, format!("{app}.default.localhost")).mix(READERS);
    let load = Load::with(Plan { per_second: Some(PACE), ..plan });
    load.more(40);
    let sent = sent(&deploy(platform, app, package));
    load.more(40);
    platform.stead(&["rollback", app]).expect(0);
    load.more(40);
    let report = load.stop();
    report.assert_lossless(ENOUGH);
    assert!(report.of_version("1") > 0 && report.of_version("2") > 0, "{report}");
    assert_eq!(platform.ip(app, 0), ip);
    ledgers_are_clean(platform, app, ENOUGH);

    let size = fs::metadata(package).expect("it was built").len();
    let most = size * MOST / 100;
    assert!(0 < sent && sent < most, "{sent} bytes of {size} were sent");
}

#[test]
fn a_spring_boot_jar_is_deployed_and_upgraded() {
    let platform = Platform::start();
    let (first, second) =
        (built("petstore", "petstore-1.jar"), built("petstore", "petstore-2.jar"));
    let plan = platform.json(&["deploy", &first, "--plan"]);
    let package = &plan["package"];
    assert_eq!((&package["kind"], &package["base"]), (&"jar".into(), &"java:17".into()));
    let layers = package["layers"].as_array().expect("a list");
    let names: Vec<&str> = layers.iter().map(|layer| layer["what"].as_str().unwrap()).collect();
    assert_eq!(names, ["dependencies", "application"]);
    assert!(layers.iter().all(|layer| layer["here"] == false), "{plan:#}");
    assert_eq!(platform.json(&["apps"]).as_array().map(Vec::len), Some(0), "a plan is no deploy");

    let said = deploy(&platform, "petstore", &first);
    assert!(sent(&said) > 40 << 20, "{said}");
    let (status, _, page) = platform.get("petstore", "/").expect("the gateway answers");
    assert!(status == 200 && page.contains("Byron the cat"), "{page}");
    // Another file with the same content is the same package.
    let copy = platform.dir.path().join("petstore-1.0.jar");
    fs::copy(&first, &copy).expect("there is room");
    assert_eq!(sent(&deploy(&platform, "petstore", &copy.display().to_string())), 0);
    // Without a manifest the App is called like the file, less its version.
    let plan = platform.json(&["deploy", &copy.display().to_string(), "--plan"]);
    assert_eq!(plan["app"], "default/petstore");
    assert!(plan["package"]["layers"].as_array().unwrap().iter().all(|l| l["here"] == true));

    upgraded(&platform, "petstore", &second);
}

#[test]
fn a_war_is_deployed_on_tomcat_and_upgraded() {
    let platform = Platform::start();
    let (first, second) = (built("servlet", "servlet-1.war"), built("servlet", "servlet-2.war"));
    let refused = platform.stead(&["deploy", &first]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("STEAD-I013"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--from-maven"), "it says how: {}", refused.stderr);

    // Maven has it already: `cargo xtask prepare` asked for this version.
    let tomcat = fs::read_to_string(built("tomcat", "lock")).expect("it was fetched");
    let base = ["image", "base", "tomcat:10.1", "--from-maven", tomcat.trim(), "--java", "17"];
    platform.stead(&base).expect(0);
    deploy(&platform, "servlet", &first);
    let (status, _, page) = platform.get("servlet", "/about.html").expect("the gateway answers");
    assert!(status == 200 && page.contains("beside the servlet"), "{status} {page}");
    assert_eq!(sent(&deploy(&platform, "servlet", &first)), 0);
    upgraded(&platform, "servlet", &second);
}
