//! Killing parts of the platform at the worst moments.

use std::time::{Duration, Instant};

use stead_testkit::load::Mix;

use crate::load::Load;
use crate::platform::{Platform, eventually, image};

/// Moments at which `serve` is killed, counted from the start of a deploy.
const KILLS: u64 = 20;

#[test]
fn serve_killed_within_deploys_loses_nothing_and_converges() {
    let platform = Platform::start();
    let images = [image("trivial", "1"), image("trivial", "2")];
    platform.stead(&["deploy", &images[0], "--app", "web"]).expect(0);
    let ip = platform.ip("web", 0);
    let load = Load::start(&platform, Mix::SIXTEEN);
    for round in 0..KILLS {
        let wanted = usize::try_from(round % 2 + 1).unwrap() % 2;
        let mut deploy = platform
            .command(&["deploy", &images[wanted], "--app", "web"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("the binary runs");
        // Spread over the few milliseconds that a deploy takes, and a little beyond. This is
        // no wait for something: it is the moment under test.
        std::thread::sleep(Duration::from_micros(round * 2_500));
        let killed = platform.kill("serve");
        eventually("another serve", || platform.pid("serve").filter(|pid| *pid != killed));
        // The CLI may have been cut off: what it says does not matter here.
        let _ = deploy.wait();
        eventually("the app has converged", || {
            let app = platform.stead(&["-o", "json", "status", "web"]);
            let settled = app.code == 0 && app.json()["state"] == "running";
            settled.then_some(())
        });
        let version = platform.version("web");
        assert!(version == "1" || version == "2", "round {round}: version {version:?}");
        assert_eq!(platform.ip("web", 0), ip, "round {round}");
    }
    let report = load.stop();
    report.assert_lossless(500);
}

#[test]
fn a_killed_gateway_serves_again_from_its_table_on_disk() {
    let platform = Platform::start();
    platform.stead(&["deploy", &image("trivial", "1"), "--app", "web"]).expect(0);
    // The table on disk must be enough: nobody is there to send another one at first.
    platform.kill("gateway");
    let begun = Instant::now();
    eventually("it answers again", || {
        platform.get("web", "/").ok().filter(|(status, ..)| *status == 200)
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn exits_while_serve_is_down_are_seen_afterwards() {
    let platform = Platform::start();
    platform
        .stead(&["deploy", &image("trivial", "1"), "--app", "web", "--env", "EXIT_AFTER_MS=1500"])
        .expect(0);
    eventually("its crash was counted and it runs again", || {
        let instances = platform.json(&["ps", "web"]);
        (instances[0]["crashes"].as_u64()? > 0 && instances[0]["state"] == "ready").then_some(())
    });
    platform.kill("serve");
    eventually("it goes on crashing and coming back", || {
        let ps = platform.stead(&["-o", "json", "ps", "web"]);
        if ps.code != 0 {
            return None;
        }
        (ps.json()[0]["crashes"].as_u64()? > 0).then_some(())
    });
}

#[test]
fn a_reboot_brings_every_app_back() {
    let platform = Platform::start();
    platform
        .stead(&["deploy", &image("trivial", "1"), "--app", "web", "--instances", "2"])
        .expect(0);
    // What a reboot leaves: the data folder, and nothing that ran.
    platform.stead(&["down", "--all"]).expect(0);
    std::fs::remove_dir_all(platform.run_dir()).ok();
    platform.up();
    eventually("it serves again", || {
        platform.get("web", "/").ok().filter(|(status, ..)| *status == 200)
    });
    eventually("both instances are ready", || {
        let app = platform.json(&["status", "web"]);
        (app["ready"] == 2).then_some(())
    });
}
