//! Which Release a request goes to: rules, the Release met before, weights, slow starts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stead_core::ids::ReleaseNo;
use stead_core::routes::{AppRoutes, Rule, Split, Sticky, ToServe, Weight};
use stead_gateway::AccessLogTarget;

use crate::kit::*;

fn weights(weights: &[(u32, u32)]) -> Split {
    let weight =
        |(release, weight): &(u32, u32)| Weight { release: ReleaseNo(*release), weight: *weight };
    Split { weights: weights.iter().map(weight).collect(), ..Split::default() }
}

fn rule(release: u32, when: &str) -> Rule {
    serde_json::from_str(&format!(r#"{{"release": {release}, "when": [{when}]}}"#)).unwrap()
}

async fn ask(client: &mut Raw, path: &str, fields: &str) -> Answer {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n")).await;
    let answer = client.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_send_requests_to_a_release_without_weight() {
    let control = Control::start();
    let (old, new) = (TestApp::start(1).await, TestApp::start(2).await);
    let rules = vec![
        rule(2, r#"{"header": {"name": "x-gray", "value": "yes"}}, {"query": {"name": "gray"}}"#),
        rule(2, r#"{"cookie": {"name": "gray", "value": "1"}}"#),
    ];
    let split = Split { rules, ..weights(&[(1, 100)]) };
    let both = AppRoutes { split: split.clone(), ..routes([old.open(), new.open()]) };
    control.put(APP, both).await;
    let mut config = control.config();
    let log = control.dir.path().join("access.log");
    config.access_log = AccessLogTarget::File(log.clone());
    let gateway = control.gateway_with(config).await;
    let addr = gateway.http_addrs()[0];
    let mut client = Raw::connect(addr).await;
    for (path, fields, release) in [
        ("/", "", &old),
        ("/", "X-Gray: yes\r\n", &new),
        ("/", "X-Gray: no\r\n", &old),
        ("/?a=b&gray", "", &new),
        ("/?grey", "", &old),
        ("/", "Cookie: a=b; gray=1\r\n", &new),
    ] {
        let answer = ask(&mut client, path, fields).await;
        assert_eq!(answer.body, release.container.as_str(), "{path} {fields}");
        assert!(!answer.headers.contains_key("set-cookie"));
    }
    let mut sender = h2_client(addr).await;
    let mut request = h2_request("/", empty());
    request.headers_mut().insert("x-gray", "yes".parse().unwrap());
    let before = new.requests();
    assert_eq!(within(sender.send_request(request)).await.unwrap().status(), 200);
    assert_eq!(new.requests(), before + 1);

    // Without a Backend of the new one nobody waits, and neither without one of the old.
    let generation =
        control.put(APP, AppRoutes { split: split.clone(), ..routes([old.open()]) }).await;
    control.heard_drained(&new, generation).await;
    assert_eq!(ask(&mut client, "/?gray", "").await.body, old.container.as_str());
    control.put(APP, AppRoutes { split, ..routes([new.open()]) }).await;
    assert_eq!(ask(&mut client, "/", "").await.body, new.container.as_str());

    // The ledger and the access log know which Release it was.
    let report = gateway.report();
    let counted: Vec<_> =
        report.apps[0].releases.iter().map(|r| (r.release.0, r.outcomes.completed)).collect();
    assert_eq!(counted, [(1, 4), (2, 5)]);
    until("log", || std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() == 9))
        .await;
    let mut logged = BTreeMap::new();
    for line in std::fs::read_to_string(&log).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        *logged.entry(line["release"].as_u64().unwrap()).or_insert(0) += 1;
    }
    assert_eq!(logged, BTreeMap::from([(1, 4), (2, 5)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_stays_with_the_release_it_met_until_that_is_gone() {
    let control = Control::start();
    let (old, new) = (TestApp::start(1).await, TestApp::start(2).await);
    let sticky = Some(Sticky { max_age_ms: 3_600_000 });
    let split = Split { sticky, ..weights(&[(1, 50), (2, 50)]) };
    let both = AppRoutes { split: split.clone(), ..routes([old.open(), new.open()]) };
    control.put(APP, both.clone()).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    let mut met = None;
    for _ in 0..100 {
        let answer = ask(&mut client, "/", "").await;
        let cookie = &answer.headers["set-cookie"];
        let release = if answer.body == new.container.as_str() { 2 } else { 1 };
        assert_eq!(
            *cookie,
            format!("stead-release={release}; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax")
        );
        if release == 2 {
            met = Some(cookie.split(';').next().unwrap().to_owned());
            break;
        }
    }
    let cookie = format!("Cookie: a=b; {}\r\n", met.expect("one of a hundred by half"));
    for _ in 0..50 {
        let answer = ask(&mut client, "/", &cookie).await;
        assert_eq!(answer.body, new.container.as_str());
        assert!(!answer.headers.contains_key("set-cookie"), "it has it");
    }
    // A rule is stronger.
    let rules = vec![rule(1, r#"{"header": {"name": "x-old"}}"#)];
    let ruled = AppRoutes { split: Split { rules, ..split }, ..both.clone() };
    control.put(APP, ruled).await;
    let answer = ask(&mut client, "/", &format!("X-Old: 1\r\n{cookie}")).await;
    assert_eq!(answer.body, old.container.as_str());
    assert!(answer.headers["set-cookie"].starts_with("stead-release=1;"));
    // Its Release goes: it meets the other, and as there is no choice nothing is kept.
    let generation =
        control.put(APP, AppRoutes { backends: vec![old.open(), new.draining()], ..both }).await;
    control.heard_drained(&new, generation).await;
    let answer = ask(&mut client, "/", &cookie).await;
    assert_eq!(answer.body, old.container.as_str());
    assert!(!answer.headers.contains_key("set-cookie"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_backend_gets_little_at_first_and_one_that_was_there_its_share() {
    let control = Control::start();
    let (old, new) = (TestApp::start(1).await, TestApp::start(2).await);
    let slow = |backends| AppRoutes { slow_start_ms: 3_600_000, ..routes(backends) };
    control.put(APP, slow(vec![old.open()])).await;
    let mut gateway = control.gateway().await;
    control.put(APP, slow(vec![old.open(), new.open()])).await;
    let hits = async |addr| {
        let mut client = Raw::connect(addr).await;
        let before = new.requests();
        for _ in 0..400 {
            client.get("/").await;
        }
        new.requests() - before
    };
    // A tenth of a share is 36 of 400: 10 and 80 are more than four standard deviations away.
    let cold = hits(gateway.http_addrs()[0]).await;
    assert!((10..80).contains(&cold), "{cold} of 400");
    // Frozen and thawed: it has been warm.
    let generation = control.put(APP, slow(vec![old.open()])).await;
    control.heard_drained(&new, generation).await;
    control.put(APP, slow(vec![old.open(), new.open()])).await;
    let again = hits(gateway.http_addrs()[0]).await;
    assert!((150..250).contains(&again), "{again} of 400");
    // A successor does not begin anew.
    let mut config = control.config();
    config.http = gateway.http_addrs();
    gateway = control.gateway_with(config).await;
    let after = hits(gateway.http_addrs()[0]).await;
    assert!((150..250).contains(&after), "{after} of 400");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_watched_is_reported_often_and_alone() {
    let control = Control::start();
    let app = TestApp::start(1).await;
    control.put(APP, routes([app.open()])).await;
    let other = TestApp::start(1).await;
    let mut elsewhere = routes([other.open()]);
    elsewhere.hosts[0].host = "other.default.localhost".into();
    control.put("default/other", elsewhere).await;
    let gateway = control.gateway().await;
    let mut client = Raw::connect(gateway.http_addrs()[0]).await;
    client.get("/").await;
    client.send("GET / HTTP/1.1\r\nHost: other.default.localhost\r\n\r\n").await;
    client.answer().await;
    let is_partial = |m: &ToServe| matches!(m, ToServe::Report(report) if report.partial);
    assert!(!control.has_heard(is_partial));
    control.put(APP, AppRoutes { report_ms: Some(50), ..routes([app.open()]) }).await;
    let began = Instant::now();
    for round in 1..=10_u64 {
        client.get("/").await;
        control
            .heard("a partial report", |m| {
                matches!(m, ToServe::Report(report) if report.partial
                    && report.apps.len() == 1 && report.apps[0].received == 1 + round)
            })
            .await;
    }
    assert!(began.elapsed() < Duration::from_secs(5), "ten rounds of 50 ms");
    control.put(APP, routes([app.open()])).await;
    let partial = || control.count_heard(is_partial);
    let before = partial();
    let whole = |m: &ToServe| matches!(m, ToServe::Report(report) if !report.partial);
    let reports = control.count_heard(whole);
    until("two more reports", || control.count_heard(whole) > reports + 1).await;
    assert_eq!(partial(), before);
}
