//! What differs between two manifests of one App, and what each difference costs.
//!
//! Each difference belongs to one Part of an Instance: a change of a sidecar asks nothing of
//! the App beside it, and the other way round.
//!
//! Pure comparison of what is written: whether two sources are the same image is for the
//! planner to decide, by digest.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::fields::{Http, Jvm, Manifest};
use super::sidecar::Sidecar;
use super::text::EnvName;
use crate::fleet::Part;

/// What a difference asks of a running Instance. The later ones include the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing: it takes effect around the Instance.
    None,
    /// New limits on the running Container; no restart.
    ResourcesOnly,
    /// A new Container in the same Sandbox, with the same IP and volumes.
    RestartContainer,
    /// A new Sandbox.
    RecreateSandbox,
}

/// One field that differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FieldChange {
    /// The field, such as `env.LOG_LEVEL`.
    pub path: String,
    /// The old value; `None` where there was none.
    #[schema(value_type = Option<Object>)]
    pub from: Option<Value>,
    /// The new value; `None` where there is none now.
    #[schema(value_type = Option<Object>)]
    pub to: Option<Value>,
    /// What the change asks of a running Instance.
    pub effect: Effect,
    /// Which Container of the Instance it asks that of.
    pub part: Part,
}

/// The most costly effect among changes.
pub fn strongest(changes: &[FieldChange]) -> Effect {
    changes.iter().map(|change| change.effect).max().unwrap_or(Effect::None)
}

/// What the change from `old` to `new` asks of one Part of a running Instance.
///
/// A sidecar that is in one of them only asks for a Container: the one to start or to stop.
pub fn effect_on(part: &Part, old: &Manifest, new: &Manifest) -> Effect {
    if std::ptr::eq(old, new) {
        return Effect::None;
    }
    let of_part = diff(old, new).into_iter().filter(|change| change.part == *part);
    of_part.map(|change| change.effect).max().unwrap_or(Effect::None)
}

/// Every field in which `new` differs from `old`, in the order of the manifest's fields.
pub fn diff(old: &Manifest, new: &Manifest) -> Vec<FieldChange> {
    use Effect::{None, RecreateSandbox, ResourcesOnly, RestartContainer};

    // A new field does not compile here until its effect is decided.
    let Manifest {
        app,
        namespace,
        source,
        runtime,
        command,
        args,
        env,
        secrets,
        files,
        http,
        site,
        resources,
        jvm: Jvm { archive, threads },
        health,
        lifecycle,
        volumes,
        sidecars,
        instances,
        rollout,
        park,
        isolation,
        user,
        working_dir,
        read_only_root,
        stop_signal,
        restart,
    } = old;

    let mut changes = Changes { part: Part::Main, found: Vec::new() };
    changes.compare("app", app, &new.app, RecreateSandbox);
    changes.compare("namespace", namespace, &new.namespace, RecreateSandbox);
    // Of a site nothing runs.
    let runs = if new.site.is_some() { None } else { RestartContainer };
    changes.compare("source", source, &new.source, runs);
    // Another one makes another image, which is told by its digest.
    changes.compare("runtime", runtime, &new.runtime, None);
    changes.compare("command", command, &new.command, RestartContainer);
    changes.compare("args", args, &new.args, RestartContainer);
    changes.compare("env", env, &new.env, RestartContainer);
    // Their order means nothing.
    let names = |list: &[EnvName]| list.iter().cloned().collect::<BTreeSet<_>>();
    changes.compare("secrets", &names(secrets), &names(&new.secrets), RestartContainer);
    changes.compare("files", files, &new.files, RestartContainer);
    let (Http { port, hosts, protocol }, to) =
        (http.clone().unwrap_or_default(), new.http.clone().unwrap_or_default());
    // A restart proves that the App listens on the new port before requests go there.
    changes.compare("http.port", &port, &to.port, RestartContainer);
    changes.compare("http.hosts", &hosts, &to.hosts, None);
    changes.compare("http.protocol", &protocol, &to.protocol, RestartContainer);
    changes.compare("site", site, &new.site, None);
    changes.compare("resources", resources, &new.resources, ResourcesOnly);
    // It is for the next start to use one or not.
    changes.compare("jvm.archive", archive, &new.jvm.archive, None);
    changes.compare("jvm.threads", threads, &new.jvm.threads, RestartContainer);
    changes.compare("health", health, &new.health, None);
    changes.compare("lifecycle", lifecycle, &new.lifecycle, None);
    changes.compare("volumes", volumes, &new.volumes, RecreateSandbox);
    changes.compare("instances", instances, &new.instances, None);
    changes.compare("rollout", rollout, &new.rollout, None);
    changes.compare("park", park, &new.park, None);
    changes.compare("isolation", isolation, &new.isolation, RecreateSandbox);
    changes.compare("user", user, &new.user, RestartContainer);
    changes.compare("working_dir", working_dir, &new.working_dir, RestartContainer);
    changes.compare("read_only_root", read_only_root, &new.read_only_root, RestartContainer);
    changes.compare("stop_signal", stop_signal, &new.stop_signal, None);
    changes.compare("restart", restart, &new.restart, None);
    changes.sidecars(sidecars, &new.sidecars);
    changes.found
}

struct Changes {
    /// Of which Part the fields are compared.
    part: Part,
    found: Vec<FieldChange>,
}

impl Changes {
    /// Sidecars are the same by their name; their order means nothing.
    fn sidecars(&mut self, old: &[Sidecar], new: &[Sidecar]) {
        let names: BTreeSet<_> = old.iter().chain(new).map(|sidecar| &sidecar.name).collect();
        for name in names {
            let of = |list: &[Sidecar]| list.iter().find(|s| s.name == *name).cloned();
            self.part = Part::Sidecar(name.to_string());
            match (of(old), of(new)) {
                (Some(old), Some(new)) => self.sidecar(&old, &new),
                (old, new) => {
                    self.compare(&format!("sidecars.{name}"), &old, &new, Effect::RestartContainer)
                }
            }
        }
    }

    fn sidecar(&mut self, old: &Sidecar, new: &Sidecar) {
        use Effect::{None, ResourcesOnly, RestartContainer};

        let Sidecar { name, source, command, args, env, files, resources, health, volumes } = old;
        let path = |field| format!("sidecars.{name}.{field}");
        self.compare(&path("source"), source, &new.source, RestartContainer);
        self.compare(&path("command"), command, &new.command, RestartContainer);
        self.compare(&path("args"), args, &new.args, RestartContainer);
        self.compare(&path("env"), env, &new.env, RestartContainer);
        self.compare(&path("files"), files, &new.files, RestartContainer);
        self.compare(&path("resources"), resources, &new.resources, ResourcesOnly);
        self.compare(&path("health"), health, &new.health, None);
        self.compare(&path("volumes"), volumes, &new.volumes, RestartContainer);
    }

    fn compare<T: Serialize + PartialEq>(&mut self, path: &str, old: &T, new: &T, effect: Effect) {
        if old != new {
            let json = |field: &T| {
                serde_json::to_value(field).expect("fields are plain data with text keys")
            };
            self.descend(path, json(old), json(new), effect);
        }
    }

    /// Goes down to the single values that differ. Lists are one value each: an order is
    /// part of their meaning.
    fn descend(&mut self, path: &str, old: Value, new: Value, effect: Effect) {
        match (old, new) {
            (old, new) if old == new => {}
            (Value::Object(old), Value::Object(mut new)) => {
                for (key, from) in old {
                    let to = new.remove(&key).unwrap_or(Value::Null);
                    self.descend(&format!("{path}.{key}"), from, to, effect);
                }
                for (key, to) in new {
                    self.descend(&format!("{path}.{key}"), Value::Null, to, effect);
                }
            }
            (old, new) => {
                let present = |value: Value| Some(value).filter(|value| !value.is_null());
                let (from, to) = (present(old), present(new));
                let (path, part) = (path.to_owned(), self.part.clone());
                self.found.push(FieldChange { path, from, to, effect, part });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn changes(old: &str, new: &str) -> Vec<(String, Effect)> {
        let read = |rest: &str| parse(&format!("app: web\nsource: web:1\n{rest}"), "t").unwrap();
        diff(&read(old), &read(new)).into_iter().map(|c| (c.path, c.effect)).collect()
    }

    #[test]
    fn each_field_has_its_price() {
        use Effect::{None, RecreateSandbox, ResourcesOnly, RestartContainer};
        for (old, new, path, effect) in [
            ("env: {A: 1}", "env: {A: 2}", "env.A", RestartContainer),
            ("env: {A: 1}", "", "env.A", RestartContainer),
            ("", "secrets: [A]", "secrets", RestartContainer),
            ("", "resources: {memory: 1Gi}", "resources.memory", ResourcesOnly),
            ("instances: 1", "instances: 3", "instances", None),
            ("runtime: {java: 17}", "runtime: {java: 25}", "runtime.java", None),
            ("", "jvm: {archive: off}", "jvm.archive", None),
            ("", "jvm: {threads: virtual}", "jvm.threads", RestartContainer),
            ("", "http: {hosts: [a.com]}", "http.hosts", None),
            ("site: {}", "site: {fallback: i.html}", "site.fallback", None),
            ("http: {port: 80}", "http: {port: 81}", "http.port", RestartContainer),
            ("", "volumes: [{name: d, mount: /d}]", "volumes", RecreateSandbox),
            ("", "files: {/etc/x: {content: a}}", "files./etc/x", RestartContainer),
            ("", "health: {liveness: {tcp: 80}}", "health.liveness", None),
            ("command: [a]", "command: [b]", "command", RestartContainer),
            ("", "lifecycle: {post_start: [warm]}", "lifecycle.post_start", None),
            ("", "lifecycle: {slow_start: 10s}", "lifecycle.slow_start", None),
            (
                "",
                "lifecycle: {hooks: {pre_delete: {http: /bye}}}",
                "lifecycle.hooks.pre_delete",
                None,
            ),
            ("", "rollout: {batches: 4}", "rollout.batches", None),
            ("", "rollout: {strategy: recreate}", "rollout.strategy", None),
            ("", "rollout: {keep_previous: 60s}", "rollout.keep_previous", None),
            ("", "rollout: {priority: {3: 10}}", "rollout.priority.3", None),
            ("", "rollout: {analysis: {latency: false}}", "rollout.analysis.latency", None),
        ] {
            assert_eq!(changes(old, new), [(path.to_owned(), effect)], "{old} → {new}");
        }
    }

    #[test]
    fn the_dearest_change_decides() {
        let web = parse("{app: web, source: web:1}", "t").unwrap();
        let mut next = web.clone();
        assert_eq!(strongest(&diff(&web, &next)), Effect::None);
        next.resources.pids = 100;
        assert_eq!(strongest(&diff(&web, &next)), Effect::ResourcesOnly);
        next.source = "web:2".to_owned();
        assert_eq!(strongest(&diff(&web, &next)), Effect::RestartContainer);
        let change = &diff(&web, &next)[0];
        assert_eq!(change.from, Some("web:1".into()));
        assert_eq!(change.to, Some("web:2".into()));
    }

    #[test]
    fn each_part_pays_for_its_own_changes() {
        use Effect::{None, RecreateSandbox, ResourcesOnly, RestartContainer};
        let read = |rest: &str| parse(&format!("app: web\nsource: web:1\n{rest}"), "t").unwrap();
        let proxy = "volumes: [{name: d, mount: /d}]\nsidecars: [{name: log, source: log:1}, {name: proxy, source: img:1";
        let old = read(&format!("{proxy}}}]"));
        let of = |new: &Manifest| {
            let part = |name: &str| Part::Sidecar(name.to_owned());
            [Part::Main, part("proxy"), part("log")].map(|part| effect_on(&part, &old, new))
        };
        for (rest, proxys) in [
            ("", None),
            (", env: {A: b}", RestartContainer),
            (", args: [a]", RestartContainer),
            (", files: {/a: {content: b}}", RestartContainer),
            (", volumes: [{name: d, mount: /d}]", RestartContainer),
            (", resources: {memory: 64Mi}", ResourcesOnly),
            (", health: {liveness: {tcp: 1}}", None),
        ] {
            assert_eq!(of(&read(&format!("{proxy}{rest}}}]"))), [None, proxys, None], "{rest}");
        }
        let mut new = old.clone();
        new.sidecars.reverse();
        assert_eq!(diff(&old, &new), [], "their order means nothing");
        new.sidecars[0].source = "img:2".to_owned();
        assert_eq!(of(&new), [None, RestartContainer, None]);
        new.sidecars.remove(1);
        assert_eq!(of(&new), [None, RestartContainer, RestartContainer], "one is to stop");
        let paths = |changes: Vec<FieldChange>| changes.into_iter().map(|c| c.path);
        assert!(paths(diff(&old, &new)).eq(["sidecars.log", "sidecars.proxy.source"]));
        new.env.insert("A".parse().unwrap(), "b".to_owned());
        assert_eq!(of(&new)[0], RestartContainer);
        new.volumes.clear();
        assert_eq!(of(&new)[0], RecreateSandbox);
    }
}
