//! Tests of the manifest as a whole: texts in, typed manifests or problems out.

mod any;

use super::{Strategy, *};
use crate::error::Code;
use crate::name::AppName;

/// The problems of a text as `CODE PATH LINE:COLUMN`.
fn problems(text: &str) -> Vec<String> {
    let Err(problems) = parse(text, "app.yaml") else { return Vec::new() };
    let place = |at: Position| format!("{}:{}", at.line, at.column);
    let show = |p: Problem| format!("{} {} {}", p.code, p.path, place(p.at.unwrap()));
    problems.list.into_iter().map(show).collect()
}

/// The problems of a manifest that is complete but for `rest`, which begins on line 3.
fn with(rest: &str) -> Vec<String> {
    problems(&format!("app: web\nsource: web:1\n{rest}"))
}

#[test]
fn a_site_says_how_it_is_served_and_nothing_of_containers() {
    let text = "app: web\nsource: ./dist\nhttp: {hosts: [a.com]}\nsite: {fallback: index.html, \
                not_found: /oops.html, cache: {pages: 1m}, headers: {X-Frame-Options: DENY}}";
    let site = parse(text, "t").unwrap().site.unwrap();
    assert_eq!(site.fallback.unwrap().as_str(), "/index.html");
    assert_eq!(site.cache, SiteCache { pages: Span::from_secs(60), ..SiteCache::default() });
    assert_eq!(
        site.headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["x-frame-options"]
    );
    assert_eq!(parse("{app: w, source: s, site: {}}", "t").unwrap().site, Some(Site::default()));
    assert_eq!(with("site: {fallback: none}"), [""; 0]);
    for (rest, found) in [
        ("command: [a]\nsite: {}", "STEAD-M014 command 3:10"),
        ("instances: 3\nsite: {}", "STEAD-M014 instances 3:12"),
        ("site: {}\nenv: {A: b}", "STEAD-M014 env 4:6"),
        ("site: {}\nhttp: {port: 80}", "STEAD-M014 http.port 4:14"),
        ("site: {}\nhealth: {liveness: {tcp: 80}}", "STEAD-M014 health 4:9"),
        ("site: {}\nsidecars: [{name: a, source: b}]", "STEAD-M014 sidecars 4:11"),
        ("site: {}\nvolumes: [{name: d, mount: /d}]", "STEAD-M014 volumes 4:10"),
        ("site: {}\nrollout: {batches: 4}", "STEAD-M014 rollout.batches 4:20"),
        ("site: {fallback: ../x}", "STEAD-M011 site.fallback 3:18"),
        ("site: {fallbak: x}", "STEAD-M004 site.fallbak 3:8"),
        ("site: {headers: {ETag: x}}", "STEAD-M014 site.headers.etag 3:17"),
        ("site: {headers: {X-Stead-Reason: x}}", "STEAD-M014 site.headers.x-stead-reason 3:17"),
        ("site: {headers: {X-A: \"a\\nb\"}}", "STEAD-M019 site.headers.x-a 3:17"),
    ] {
        assert_eq!(with(rest), [found], "{rest}");
    }
}

#[test]
fn a_package_says_what_runs_it() {
    let read = |text: &str| parse(&format!("app: w\nsource: ./w.jar\n{text}"), "t");
    // A version is taken as it is written: 3.10 is not 3.1.
    for (text, base) in [
        ("runtime: {java: 17}", "java:17"),
        ("runtime: {python: 3.10}", "python:3.10"),
        ("runtime: {node: \"20\"}", "node:20"),
    ] {
        assert_eq!(read(text).unwrap().runtime.unwrap().0.to_string(), base);
    }
    assert_eq!(read("").unwrap().runtime, None);
    let bad = read("runtime: {jva: 17}").unwrap_err();
    assert_eq!(bad.list[0].nearest.as_deref(), Some("java"));
    assert_eq!(read("runtme: {java: 17}").unwrap_err().list[0].nearest.as_deref(), Some("runtime"));
    assert_eq!(with("runtime: {java: 17, node: 20}"), ["STEAD-M014 runtime 3:10"]);
    assert_eq!(with("runtime: {}"), ["STEAD-M014 runtime 3:10"]);
    assert_eq!(with("runtime: {java: 17-ea}"), ["STEAD-M019 runtime.java 3:10"]);
    assert_eq!(with("runtime: java"), ["STEAD-M003 runtime 3:10"]);
}

#[test]
fn a_java_program_says_how_it_is_run() {
    let parsed = parse("{app: w, source: s, jvm: {archive: off, threads: virtual}}", "t").unwrap();
    assert_eq!(parsed.jvm, Jvm { archive: JvmArchive::Off, threads: JvmThreads::Virtual });
    assert_eq!(parse("{app: w, source: s}", "t").unwrap().jvm, Jvm::default());
    let bad = parse("{app: w, source: s, jvm: {thread: wisp}}", "t").unwrap_err();
    assert_eq!(bad.list[0].nearest.as_deref(), Some("threads"));
    assert_eq!(with("jvm: {archive: never}"), ["STEAD-M013 jvm.archive 3:16"]);
}

#[test]
fn a_full_manifest_is_read() {
    let text = r#"
app: web
namespace: shop
source: registry.example/web:1.4
command: [/bin/web]
args: [--port, 8080]
env: {LOG_LEVEL: info, WORKERS: 4, VERSION: 1.10, DEBUG: true, EMPTY: ""}
files:
  /etc/web/config.toml: ./config.toml
  /etc/web/motd: {content: "hello\n"}
http: {port: 8080, hosts: [Web.Example.com], protocol: h2c}
ports: []
resources: {cpu: 500m, memory: 256Mi, pids: 512}
health:
  startup:   {http: /healthz, timeout: 90s}
  readiness: {http: /healthz, port: 9090, period: 2s}
  liveness:  {exec: [/bin/check, -q], failures: 5}
lifecycle:
  pre_stop: {sleep: 250ms}
  post_start: [/bin/warm, --all]
  grace: 10s
  slow_start: 20s
  hooks:
    before_update: {exec: [/bin/snapshot], deadline: 5m}
    after_update: {http: /warmed, port: 9090}
    pre_delete: {http: /leave, deadline: 2s}
volumes: [{name: data, mount: /data, shared: true}]
sidecars:
  - name: proxy
    source: proxy:1
    args: [-v]
    env: {LEVEL: 3}
    files: {/etc/proxy.toml: ./proxy.toml}
    resources: {memory: 64Mi}
    health: {readiness: {http: /, port: 9000}}
    volumes: [{name: data, mount: /shared}]
init: []
instances: 12
rollout:
  strategy: in-place
  batches:
    - {instances: 1, match: [{header: {name: X-Gray, value: "yes"}}, {query: {name: q}}], pause: manual}
    - 25%
    - {instances: 50%, weight: 10}
  pause: 1m
  partition: 2
  order: scatter
  priority: {3: 10, 0: -1}
  sticky: 1h
  max_unavailable: 25%
  max_surge: 1
  auto_rollback: false
  keep_previous: 5m
  watch: 30s
  analysis: {latency: false}
park: {max_wait: 5s}
isolation: process
user: 1000:1000
working_dir: /srv
read_only_root: true
stop_signal: QUIT
restart: on-failure
"#;
    let manifest = parse(text, "app.yaml").unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(manifest.key().to_string(), "shop/web");
    assert_eq!(manifest.args, ["--port", "8080"]);
    let env = |name: &str| manifest.env[&name.parse::<EnvName>().unwrap()].as_str();
    let values = [env("WORKERS"), env("VERSION"), env("DEBUG"), env("EMPTY")];
    assert_eq!(values, ["4", "1.10", "true", ""], "values stay as they are written");
    let file = |path: &str| &manifest.files[&path.parse::<AbsPath>().unwrap()];
    assert_eq!(*file("/etc/web/config.toml"), FileSource::Path("./config.toml".to_owned()));
    assert_eq!(*file("/etc/web/motd"), FileSource::Content { content: "hello\n".to_owned() });
    let http = manifest.http.as_ref().unwrap();
    assert_eq!((http.hosts[0].as_str(), http.protocol), ("web.example.com", Protocol::H2c));
    assert_eq!(manifest.resources.memory.unwrap().bytes(), 256 << 20);
    assert_eq!(manifest.health.startup_timeout(), Span::from_secs(90));
    let liveness = manifest.health.liveness.as_ref().unwrap();
    assert_eq!((liveness.failures, liveness.period), (5, Span::from_secs(5)));
    let argv = vec!["/bin/check".to_owned(), "-q".to_owned()];
    assert_eq!(liveness.check, Check::Exec { argv });
    assert_eq!(manifest.lifecycle.pre_stop, Some(PreStop::Sleep(Span::from_millis(250))));
    let lifecycle = &manifest.lifecycle;
    assert_eq!(lifecycle.post_start, ["/bin/warm", "--all"]);
    assert_eq!(lifecycle.slow_start, Span::from_secs(20));
    let hooks = &lifecycle.hooks;
    let run = HookRun::Exec(vec!["/bin/snapshot".to_owned()]);
    assert_eq!(hooks.before_update, Some(Hook { run, deadline: Span::from_secs(300) }));
    let run =
        HookRun::Http { path: "/warmed".parse().unwrap(), port: Some("9090".parse().unwrap()) };
    assert_eq!(hooks.after_update, Some(Hook { run, deadline: Span::from_secs(30) }));
    assert_eq!(hooks.iter().count(), 3);
    let proxy = manifest.sidecar("proxy").unwrap();
    assert_eq!((proxy.source.as_str(), proxy.volumes[0].mount.as_str()), ("proxy:1", "/shared"));
    assert_eq!(proxy.env[&"LEVEL".parse().unwrap()], "3");
    assert!(manifest.sidecar("main").is_none());
    let rollout = &manifest.rollout;
    assert_eq!(rollout.strategy, Some(Strategy::InPlace));
    let Batches::List(batches) = &rollout.batches else { panic!("{rollout:?}") };
    let header = Match::Header { name: "x-gray".parse().unwrap(), value: Some("yes".to_owned()) };
    let query = Match::Query { name: "q".parse().unwrap(), value: None };
    assert_eq!(batches[0].matches, [header, query]);
    assert_eq!((batches[0].pause, batches[2].weight), (Some(Pause::Manual), Some(10)));
    assert_eq!(batches[1], Batch::of(Amount::Percent(25)));
    assert_eq!((rollout.partition, rollout.order), (Amount::Count(2), Order::Scatter));
    let priority: Vec<_> = rollout.priority.iter().map(|(n, weight)| (n.0, *weight)).collect();
    assert_eq!(priority, [(0, -1), (3, 10)]);
    assert_eq!(rollout.pause, Pause::For(Span::from_secs(60)));
    assert_eq!(rollout.keep_previous(Strategy::InPlace), Span::from_secs(300));
    assert_eq!(rollout.analysis, Analysis { latency: false, ..Analysis::default() });
    assert_eq!(
        (rollout.max_surge, rollout.sticky),
        (Amount::Count(1), Some(Span::from_secs(3600)))
    );
    assert_eq!(manifest.rollout.max_unavailable, Amount::Percent(25));
    assert_eq!((manifest.park.max_wait.millis(), manifest.park.max_requests), (5_000, 1000));
    assert_eq!(manifest.stop_signal.unwrap().number(), 3);
    assert_eq!(manifest.restart, RestartPolicy::OnFailure);
}

#[test]
fn defaults_are_those_of_the_minimal_manifest() {
    let minimal = Manifest::minimal(AppName::new("web").unwrap(), "web:1");
    assert_eq!(parse("app: web\nsource: web:1\nenv:\n", "t").unwrap(), minimal);
    let rollout = &minimal.rollout;
    assert_eq!((rollout.strategy, rollout.strategy()), (None, Strategy::Handover));
    let kept = [Strategy::Handover, Strategy::InPlace, Strategy::Recreate]
        .map(|strategy| rollout.keep_previous(strategy).millis());
    assert_eq!(kept, [60_000, 0, 0]);
    assert!(rollout.analysis.is_on());
    assert_eq!((minimal.park.max_wait.millis(), minimal.park.max_requests), (30_000, 1000));
    let stored: Manifest = serde_json::from_str(r#"{"app":"web","source":"web:1"}"#).unwrap();
    assert_eq!(stored, minimal, "serde and the reader agree on defaults");
}

#[test]
fn json_is_accepted_as_yaml() {
    let text = "{\n\t\"app\": \"web\",\n\t\"source\": \"web:1\",\n\t\"http\": {\"port\": 8080}\n}";
    assert_eq!(parse(text, "body").unwrap().http_port(&[]), Some(8080));
}

#[test]
fn files_of_other_systems_are_read() {
    for text in
        ["\u{feff}app: web\nsource: web:1\n", "app: web\r\nsource: web:1\r\nenv:\r\n  A: b\r\n"]
    {
        let manifest = parse(text, "t").unwrap_or_else(|problems| panic!("{text:?}: {problems}"));
        assert_eq!(manifest.source, "web:1");
    }
    let wrong = "app: web\r\nsource: web:1\r\nenv:\r\n  1A: b\r\n";
    assert_eq!(problems(wrong), ["STEAD-M012 env.1A 4:3"]);
}

#[test]
fn three_mistakes_are_three_problems_with_lines() {
    let text = "app: web\nsource: web:1\nreplicas: 3\nhealth:\n  readiness:\n    http: /\n    period: 5 apples\nrollout: {strategy: inplace}\n";
    let shown = parse(text, "app.yaml").unwrap_err().to_string();
    let expected = r#"app.yaml:3:1: error STEAD-M004: unknown key "replicas"
  help: did you mean "instances"?
app.yaml:7:13: error STEAD-M007: health.readiness.period: expected a duration such as 250ms, 5s or 1m30s, at most a year, found "5 apples"
app.yaml:8:21: error STEAD-M013: rollout.strategy: expected handover, in-place or recreate, found "inplace"
  help: did you mean "in-place"?
app.yaml: 3 problems; docs/errors/ has a page for each code"#;
    assert_eq!(shown, expected);
}

#[test]
fn mistakes_of_every_kind_are_found_together() {
    let text = "app: Web\nisolation: vm\ninstances: many\nbanana: 1\n";
    assert_eq!(
        problems(text),
        [
            "STEAD-M005 source 1:1",
            "STEAD-M008 app 1:6",
            "STEAD-M015 isolation 2:12",
            "STEAD-M003 instances 3:12",
            "STEAD-M004 banana 4:1",
        ]
    );
}

#[test]
fn each_mistake_has_its_code_and_place() {
    for (rest, problem) in [
        ("env: [A]", "STEAD-M003 env 3:6"),
        ("env: {A: {}}", "STEAD-M003 env.A 3:10"),
        ("env: {A: }", "STEAD-M003 env.A 3:8"),
        ("env: {1A: x}", "STEAD-M012 env.1A 3:7"),
        ("env: {A: \"a\\0b\"}", "STEAD-M012 env.A 3:10"),
        ("command: nginx", "STEAD-M003 command 3:10"),
        ("command: [\"\"]", "STEAD-M019 command[0] 3:11"),
        ("instances: 1001", "STEAD-M010 instances 3:12"),
        ("instances: \"2\"", "STEAD-M003 instances 3:12"),
        ("instances: -1", "STEAD-M003 instances 3:12"),
        ("instances: 99999999999", "STEAD-M010 instances 3:12"),
        ("http: 8080", "STEAD-M003 http 3:7"),
        ("http: {port: 0}", "STEAD-M010 http.port 3:14"),
        ("http: {port: web}", "STEAD-M010 http.port 3:14"),
        ("http: {hosts: [a.com, A.com]}", "STEAD-M006 http.hosts[1] 3:23"),
        ("http: {hosts: ['http://a.com']}", "STEAD-M009 http.hosts[0] 3:16"),
        ("http: {hosts: [x.default.localhost]}", "STEAD-M009 http.hosts[0] 3:16"),
        ("resources: {cpu: lots}", "STEAD-M007 resources.cpu 3:18"),
        ("resources: {cpu: 1m}", "STEAD-M010 resources.cpu 3:18"),
        ("resources: {memory: 1Mi}", "STEAD-M010 resources.memory 3:21"),
        ("resources: {pids: 1}", "STEAD-M010 resources.pids 3:19"),
        ("secrets: [A, B, A]", "STEAD-M006 secrets[2] 3:17"),
        ("env: {A: b}\nsecrets: [A]", "STEAD-M014 secrets[0] 4:11"),
        ("health: {liveness: {}}", "STEAD-M014 health.liveness 3:20"),
        ("health: {liveness: {http: /, tcp: 80}}", "STEAD-M014 health.liveness 3:20"),
        ("health: {liveness: {exec: []}}", "STEAD-M019 health.liveness 3:20"),
        ("health: {liveness: {tcp: 80, port: 80}}", "STEAD-M014 health.liveness 3:20"),
        ("health: {liveness: {tcp: 80, period: 0s}}", "STEAD-M010 health.liveness.period 3:38"),
        ("health: {startup: {tcp: 80, failures: 3}}", "STEAD-M004 health.startup.failures 3:29"),
        ("lifecycle: {pre_stop: {}}", "STEAD-M014 lifecycle.pre_stop 3:23"),
        ("lifecycle: {pre_stop: {exec: []}}", "STEAD-M019 lifecycle.pre_stop.exec 3:30"),
        ("lifecycle: {grace: 30}", "STEAD-M007 lifecycle.grace 3:20"),
        ("lifecycle: {post_start: warm}", "STEAD-M003 lifecycle.post_start 3:25"),
        ("lifecycle: {post_start: [\"\"]}", "STEAD-M019 lifecycle.post_start 3:25"),
        ("lifecycle: {slow_start: 5}", "STEAD-M007 lifecycle.slow_start 3:25"),
        ("lifecycle: {hooks: {pre_update: {}}}", "STEAD-M004 lifecycle.hooks.pre_update 3:21"),
        ("lifecycle: {hooks: {pre_delete: {}}}", "STEAD-M014 lifecycle.hooks.pre_delete 3:33"),
        (
            "lifecycle: {hooks: {pre_delete: {exec: [a], http: /}}}",
            "STEAD-M014 lifecycle.hooks.pre_delete 3:33",
        ),
        (
            "lifecycle: {hooks: {pre_delete: {exec: [a], port: 80}}}",
            "STEAD-M014 lifecycle.hooks.pre_delete 3:33",
        ),
        (
            "lifecycle: {hooks: {pre_delete: {exec: []}}}",
            "STEAD-M019 lifecycle.hooks.pre_delete.exec 3:40",
        ),
        (
            "lifecycle: {hooks: {pre_delete: {http: bye}}}",
            "STEAD-M011 lifecycle.hooks.pre_delete.http 3:40",
        ),
        (
            "lifecycle: {hooks: {pre_delete: {http: /, deadline: 0s}}}",
            "STEAD-M010 lifecycle.hooks.pre_delete.deadline 3:53",
        ),
        ("sidecars: {name: a}", "STEAD-M003 sidecars 3:11"),
        ("sidecars: [{name: a}]", "STEAD-M005 sidecars[0].source 3:12"),
        ("sidecars: [{name: main, source: a}]", "STEAD-M008 sidecars[0].name 3:19"),
        ("sidecars: [{name: a_b, source: a}]", "STEAD-M008 sidecars[0].name 3:19"),
        ("sidecars: [{name: a, source: \"\"}]", "STEAD-M019 sidecars[0].source 3:30"),
        ("sidecars: [{name: a, source: a, http: {}}]", "STEAD-M004 sidecars[0].http 3:33"),
        (
            "sidecars: [{name: a, source: a}, {name: a, source: b}]",
            "STEAD-M006 sidecars[1].name 3:41",
        ),
        (
            "sidecars: [{name: a, source: a, volumes: [{name: d, mount: /d}]}]",
            "STEAD-M014 sidecars[0].volumes[0].name 3:50",
        ),
        (
            "sidecars: [{name: a, source: a, files: {/proc/a: b}}]",
            "STEAD-M011 sidecars[0].files.\"/proc/a\" 3:50",
        ),
        (
            "sidecars: [{name: a, source: a, resources: {memory: 1Mi}}]",
            "STEAD-M010 sidecars[0].resources.memory 3:53",
        ),
        (
            "sidecars: [{name: a, source: a, health: {liveness: {http: /}}}]",
            "STEAD-M005 sidecars[0].health.liveness.port 3:52",
        ),
        ("rollout: {batches: 0}", "STEAD-M010 rollout.batches 3:20"),
        ("rollout: {batches: many}", "STEAD-M003 rollout.batches 3:20"),
        ("rollout: {batches: {a: 1}}", "STEAD-M003 rollout.batches 3:20"),
        ("rollout: {batches: []}", "STEAD-M010 rollout.batches 3:20"),
        ("rollout: {batches: [0, 100%]}", "STEAD-M010 rollout.batches[0] 3:21"),
        ("rollout: {batches: [25%, x, 100%]}", "STEAD-M007 rollout.batches[1] 3:26"),
        ("rollout: {batches: [50%, 25%]}", "STEAD-M014 rollout.batches[1] 3:26"),
        ("rollout: {batches: [2, 2]}", "STEAD-M014 rollout.batches[1] 3:24"),
        ("rollout: {batches: [100%, 1]}", "STEAD-M014 rollout.batches[1] 3:27"),
        ("rollout: {batches: [50%, {instances: 10%}]}", "STEAD-M014 rollout.batches[1] 3:26"),
        ("rollout: {batches: [{weight: 1}]}", "STEAD-M005 rollout.batches[0].instances 3:21"),
        (
            "rollout: {batches: [{instances: 1, weight: 101}]}",
            "STEAD-M010 rollout.batches[0].weight 3:44",
        ),
        (
            "rollout: {batches: [{instances: 1, weight: 1000}]}",
            "STEAD-M010 rollout.batches[0].weight 3:44",
        ),
        (
            "rollout: {batches: [{instances: 100%, weight: 9}]}",
            "STEAD-M014 rollout.batches[0].weight 3:47",
        ),
        (
            "rollout: {batches: [{instances: 100%, match: [{query: {name: a}}]}]}",
            "STEAD-M014 rollout.batches[0].match 3:46",
        ),
        (
            "rollout: {batches: [1, {instances: 100%, pause: manual}]}",
            "STEAD-M014 rollout.batches[1].pause 3:49",
        ),
        (
            "rollout: {batches: [{instances: 1, match: [{}]}]}",
            "STEAD-M014 rollout.batches[0].match[0] 3:44",
        ),
        (
            "rollout: {batches: [{instances: 1, match: [{header: {name: a b}}]}]}",
            "STEAD-M019 rollout.batches[0].match[0].header.name 3:60",
        ),
        (
            "rollout: {batches: [{instances: 1, match: [{cookie: {name: a=b}}]}]}",
            "STEAD-M019 rollout.batches[0].match[0].cookie.name 3:60",
        ),
        (
            "rollout: {batches: [{instances: 1, match: [{query: {name: a&b}}]}]}",
            "STEAD-M019 rollout.batches[0].match[0].query.name 3:59",
        ),
        (
            "rollout: {batches: [{instances: 1, match: [{query: {name: a, value: \"\\n\"}}]}]}",
            "STEAD-M019 rollout.batches[0].match[0] 3:44",
        ),
        ("rollout: {pause: forever}", "STEAD-M007 rollout.pause 3:18"),
        ("rollout: {partition: 2}", "STEAD-M010 rollout.partition 3:22"),
        ("rollout: {order: random}", "STEAD-M013 rollout.order 3:18"),
        ("rollout: {priority: {first: 1}}", "STEAD-M010 rollout.priority.first 3:22"),
        ("rollout: {priority: {1000: 1}}", "STEAD-M010 rollout.priority.1000 3:28"),
        ("rollout: {priority: {0: high}}", "STEAD-M003 rollout.priority.0 3:25"),
        ("rollout: {priority: {0: 3000000000}}", "STEAD-M010 rollout.priority.0 3:25"),
        ("rollout: {sticky: 0s}", "STEAD-M010 rollout.sticky 3:19"),
        ("rollout: {analysis: maybe}", "STEAD-M003 rollout.analysis 3:21"),
        ("rollout: {analysis: [errors]}", "STEAD-M003 rollout.analysis 3:21"),
        ("rollout: {analysis: {min_requests: 0}}", "STEAD-M010 rollout.analysis.min_requests 3:36"),
        (
            "rollout: {strategy: recreate, keep_previous: 5s}",
            "STEAD-M014 rollout.keep_previous 3:46",
        ),
        (
            "sidecars: [{name: a, source: a}]\nrollout: {strategy: handover}",
            "STEAD-M014 rollout.strategy 4:21",
        ),
        (
            "volumes: [{name: d, mount: /d}]\nrollout: {strategy: handover}",
            "STEAD-M014 rollout.strategy 4:21",
        ),
        ("volumes: [{name: d}]", "STEAD-M005 volumes[0].mount 3:11"),
        ("volumes: [{name: d, mount: data}]", "STEAD-M011 volumes[0].mount 3:28"),
        ("volumes: [{name: d, mount: /a/../b}]", "STEAD-M011 volumes[0].mount 3:28"),
        ("volumes: [{name: d, mount: /proc/x}]", "STEAD-M011 volumes[0].mount 3:28"),
        ("volumes: [{name: D, mount: /a}]", "STEAD-M008 volumes[0].name 3:18"),
        (
            "volumes: [{name: d, mount: /a}, {name: d, mount: /b}]",
            "STEAD-M006 volumes[1].name 3:40",
        ),
        ("files: {etc: ./x}", "STEAD-M011 files.etc 3:9"),
        ("files: {/dev/x: ./x}", "STEAD-M011 files.\"/dev/x\" 3:17"),
        ("files: {/x: {}}", "STEAD-M005 files.\"/x\".content 3:13"),
        ("rollout: {auto_rollback: yes}", "STEAD-M003 rollout.auto_rollback 3:26"),
        ("rollout: {max_unavailable: 101%}", "STEAD-M007 rollout.max_unavailable 3:28"),
        ("user: a b", "STEAD-M019 user 3:7"),
        ("stop_signal: SIGSTOP", "STEAD-M019 stop_signal 3:14"),
        ("restart: no", "STEAD-M013 restart 3:10"),
        ("env: {A: 1, A: 2}", "STEAD-M006 env.A 3:13"),
        ("app: other", "STEAD-M006 app 3:1"),
        ("env: {A: &a 1, B: *a}", "STEAD-M002 env.B 3:19"),
        ("<<: *a", "STEAD-M002  3:5"),
        ("user: !!str 1", "STEAD-M002 user 3:7"),
        ("? [a]\n: b", "STEAD-M002  3:3"),
        ("---\napp: two\n", "STEAD-M002  3:1"),
        ("env:\n\tA: 1", "STEAD-M018  4:1"),
        ("env:\n  A: 1\n \tB: 2", "STEAD-M018  5:2"),
        ("http: {hosts: [*.example.com]}", "STEAD-M002  3:16"),
        ("env: {A: 1", "STEAD-M001  3:1"),
        ("command: a: b", "STEAD-M001  3:11"),
    ] {
        assert_eq!(with(rest), [problem], "{rest}");
    }
}

#[test]
fn what_is_not_built_is_refused_and_what_asks_for_nothing_is_not() {
    for (rest, path) in [
        ("ports: [{port: 5432}]", "ports"),
        ("init: [{name: migrate}]", "init"),
        ("scale: {min: 1, max: 3}", "scale"),
        ("isolation: gvisor", "isolation"),
        ("isolation: vm", "isolation"),
    ] {
        let found = with(rest);
        assert_eq!(found.len(), 1, "{rest}: {found:?}");
        assert!(found[0].starts_with(&format!("STEAD-M015 {path} 3:")), "{rest}: {found:?}");
    }
    for rest in
        ["secrets: []", "secrets: [DB_PASSWORD, API_KEY]", "ports: []", "init: []", "scale:"]
    {
        assert_eq!(with(rest), [""; 0], "{rest}");
    }
}

#[test]
fn what_a_rollout_may_ask_for_is_taken() {
    for rest in [
        "sidecars:",
        "sidecars: []",
        "lifecycle: {hooks: , post_start: []}",
        "rollout: {strategy: handover}",
        "rollout: {strategy: handover}\nvolumes: [{name: d, mount: /d, shared: true}]",
        "rollout: {batches: 1000, max_surge: 100%, pause: manual, keep_previous: 0s}",
        "rollout: {batches: [100%]}",
        "rollout: {batches: [50%, 1]}",
        "rollout: {batches: [1, 2, 2%, \"100%\"]}",
        "rollout: {batches: [{instances: 100%, weight: 100}]}",
        "rollout: {analysis: false}",
        "rollout: {analysis: true}",
        "rollout: {partition: 100%}",
        "rollout: {partition: 3}\ninstances: 0",
    ] {
        assert_eq!(with(rest), [""; 0], "{rest}");
    }
}

#[test]
fn a_refused_strategy_comes_with_advice() {
    let text = "app: web\nsource: web:1\nvolumes: [{name: data, mount: /data}]\nrollout: {strategy: handover}\n";
    let shown = parse(text, "app.yaml").unwrap_err().to_string();
    let expected = "app.yaml:4:21: error STEAD-M014: rollout.strategy: expected a strategy in which only one Container writes to a volume at a time, found handover with an unshared volume
  help: use in-place, or say shared: true of volume data if two Containers may write to it at once
app.yaml: 1 problem; docs/errors/ has a page for each code";
    assert_eq!(shown, expected);
}

#[test]
fn misspelled_keys_of_a_rollout_are_recognised() {
    for (rest, meant) in [
        ("sidecar: []", "sidecars"),
        ("sidecars: [{name: a, image: b, source: c}]", "source"),
        ("lifecycle: {postStart: [a]}", "post_start"),
        ("lifecycle: {slowstart: 5s}", "slow_start"),
        ("lifecycle: {hook: {}}", "hooks"),
        ("lifecycle: {hooks: {beforeUpdate: {}}}", "before_update"),
        ("rollout: {batch: 2}", "batches"),
        ("rollout: {canary: 2}", "batches"),
        ("rollout: {partitions: 0}", "partition"),
        ("rollout: {priorities: {}}", "priority"),
        ("rollout: {stiky: 1h}", "sticky"),
        ("rollout: {maxSurge: 1}", "max_surge"),
        ("rollout: {analisys: true}", "analysis"),
        ("rollout: {analysis: {error: true}}", "errors"),
        ("rollout: {batches: [{instances: 1, wieght: 5}]}", "weight"),
        ("rollout: {batches: [{instances: 1, match: [{headers: {name: a}}]}]}", "header"),
    ] {
        let problems = parse(&format!("app: web\nsource: web:1\n{rest}"), "t").unwrap_err();
        let unknown = problems.list.iter().find(|p| p.code == Code::ManifestUnknownKey).unwrap();
        assert_eq!(unknown.nearest.as_deref(), Some(meant), "{rest}");
    }
}

#[test]
fn an_empty_or_foreign_text_is_one_problem() {
    for text in ["", "# nothing\n", "---\n", "null", "hello", "[1, 2]"] {
        assert_eq!(problems(text).len(), 1, "{text:?}");
    }
}

#[test]
fn bombs_are_refused_quickly() {
    let deep = "[".repeat(100_000);
    let long = format!("app: web\nsource: web:1\nenv: {{A: \"{}\"}}", "x".repeat(5 << 20));
    let laughs = "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
    let many: String = (0..50_000).map(|n| format!("key{n}: 1\n")).collect();
    assert!(problems(&deep)[0].starts_with("STEAD-M017"));
    assert!(problems(&long)[0].starts_with("STEAD-M017"));
    assert!(problems(laughs).iter().any(|p| p.starts_with("STEAD-M002")));
    assert_eq!(problems(&many).len(), 100);
}

#[test]
fn quoted_text_is_short_and_cannot_play_tricks_on_a_terminal() {
    let text = "app: web\nsource: web:1\n\"\\e[31m\": 1\nuser: \"\\e[2J\"\n";
    let shown = parse(text, "t").unwrap_err().to_string();
    assert!(!shown.contains('\u{1b}'), "{shown}");
    let long = "k".repeat(100_000);
    let shown =
        parse(&format!("app: web\nsource: a\n{long}: {long}"), "t").unwrap_err().to_string();
    assert!(shown.len() < 1000, "{} bytes", shown.len());
}

#[test]
fn the_api_takes_only_files_with_content() {
    let text = "app: web\nsource: web:1\nfiles: {/a: ./a, /b: {content: b}}\nsidecars: [{name: s, source: s, files: {/c: ./c}}]";
    let found = parse(text, "t").unwrap().problems();
    let found: Vec<_> = found.iter().map(|p| (p.code, p.path.as_str(), p.at)).collect();
    let missing = |path| (Code::ManifestFileMissing, path, None);
    assert_eq!(found, [missing("files.\"/a\""), missing("sidecars[0].files.\"/c\"")]);
}

#[test]
fn json_is_strict_and_checked_like_text() {
    for bad in [
        r#"{"app":"web","source":"a","replicas":1}"#,
        r#"{"app":"Web","source":"a"}"#,
        r#"{"app":"web","source":"a","http":{"port":0}}"#,
        r#"{"app":"web","source":"a","http":{"hots":[]}}"#,
        r#"{"app":"web","source":"a","health":{"liveness":{"http":"/","tcp":1}}}"#,
        r#"{"app":"web","source":"a","files":{"/x":{"content":"","mode":1}}}"#,
        r#"{"app":"web","source":"a","lifecycle":{"grace":30}}"#,
        r#"{"app":"web","source":"a","lifecycle":{"hooks":{"pre_delete":{"deadline":"1s"}}}}"#,
        r#"{"app":"web","source":"a","sidecars":[{"name":"main","source":"a"}]}"#,
        r#"{"app":"web","source":"a","sidecars":[{"name":"a","source":"a","http":{}}]}"#,
        r#"{"app":"web","source":"a","rollout":{"batches":[{"instances":1,"wait":"1s"}]}}"#,
        r#"{"app":"web","source":"a","rollout":{"batches":"4"}}"#,
        r#"{"app":"web","source":"a","rollout":{"pause":5}}"#,
        r#"{"app":"web","source":"a","rollout":{"priority":{"a":1}}}"#,
        r#"{"app":"web","source":"a","rollout":{"analysis":{"latencies":true}}}"#,
    ] {
        assert!(serde_json::from_str::<Manifest>(bad).is_err(), "{bad}");
    }
    let late = r#"{"app":"web","source":"","instances":2000,"isolation":"vm"}"#;
    let late: Manifest = serde_json::from_str(late).unwrap();
    let codes: Vec<_> = late.problems().into_iter().map(|p| p.code).collect();
    assert_eq!(codes, [Code::ManifestText, Code::ManifestRange, Code::ManifestNotBuilt]);
}

#[test]
fn what_an_earlier_version_stored_is_read() {
    let text = r#"{"app":"web","source":"a","rollout":{"strategy":"in-place","batches":1,
        "max_unavailable":"0","max_surge":"0","pause":"0s","auto_rollback":true,
        "progress_deadline":"10m","keep_previous":"0s"}}"#;
    let rollout = serde_json::from_str::<Manifest>(text).unwrap().rollout;
    assert_eq!(rollout.strategy, Some(Strategy::InPlace));
    assert_eq!(rollout.keep_previous, Some(Span::ZERO));
    let kept = Some(Span::ZERO);
    let rest = Rollout { strategy: rollout.strategy, keep_previous: kept, ..Rollout::default() };
    assert_eq!(rollout, rest);
}

#[test]
fn the_api_description_has_every_type_it_refers_to() {
    let mut types = Vec::new();
    <Manifest as utoipa::ToSchema>::schemas(&mut types);
    types.push(("Manifest".to_owned(), <Manifest as utoipa::PartialSchema>::schema()));
    let text = serde_json::to_string(&types.iter().map(|(_, t)| t).collect::<Vec<_>>()).unwrap();
    let prefix = "\"#/components/schemas/";
    let refers: Vec<&str> =
        text.split(prefix).skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(
        refers.contains(&"Startup") && refers.contains(&"Hook") && refers.contains(&"Batches"),
        "{refers:?}"
    );
    for name in refers {
        assert!(types.iter().any(|(known, _)| known == name), "{name} is not described");
    }
}

/// Each page on a manifest's mistake shows what stead really says.
#[test]
fn error_pages_show_what_stead_says() {
    const PAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/errors");
    let mut examples = 0;
    for code in Code::ALL.iter().filter(|code| code.as_str().starts_with("STEAD-M")) {
        let path = format!("{PAGES}/{code}.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let Some((before, rest)) = page.split_once("```yaml\n") else { continue };
        let (example, rest) = rest.split_once("```\n").unwrap();
        let (between, rest) = rest.split_once("```text\n").unwrap();
        let (_, after) = rest.split_once("```\n").unwrap();
        let problems = parse(example, "app.yaml").unwrap_err();
        assert!(problems.list.iter().any(|problem| problem.code == *code), "{path}");
        let current =
            format!("{before}```yaml\n{example}```\n{between}```text\n{problems}\n```\n{after}");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::File::create(&path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, current.as_bytes()))
                .unwrap();
        }
        let page = std::fs::read_to_string(&path).unwrap();
        assert!(page == current, "run UPDATE=1 cargo test -p stead-core error_pages: {path}");
        examples += 1;
    }
    assert!(examples >= 15, "only {examples} pages have an example");
}
