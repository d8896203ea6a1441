//! What differs between two manifests of one App, and what each difference costs.
//!
//! Pure comparison of what is written: whether two sources are the same image is for the
//! planner to decide, by digest.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::fields::{Http, Manifest};

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
}

/// The most costly effect among changes.
pub fn strongest(changes: &[FieldChange]) -> Effect {
    changes.iter().map(|change| change.effect).max().unwrap_or(Effect::None)
}

/// Every field in which `new` differs from `old`, in the order of the manifest's fields.
pub fn diff(old: &Manifest, new: &Manifest) -> Vec<FieldChange> {
    use Effect::{None, RecreateSandbox, ResourcesOnly, RestartContainer};

    // A new field does not compile here until its effect is decided.
    let Manifest {
        app,
        namespace,
        source,
        command,
        args,
        env,
        secrets,
        files,
        http,
        resources,
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

    let mut changes = Changes(Vec::new());
    changes.compare("app", app, &new.app, RecreateSandbox);
    changes.compare("namespace", namespace, &new.namespace, RecreateSandbox);
    changes.compare("source", source, &new.source, RestartContainer);
    changes.compare("command", command, &new.command, RestartContainer);
    changes.compare("args", args, &new.args, RestartContainer);
    changes.compare("env", env, &new.env, RestartContainer);
    changes.compare("secrets", secrets, &new.secrets, RestartContainer);
    changes.compare("files", files, &new.files, RestartContainer);
    let (Http { port, hosts, protocol }, to) =
        (http.clone().unwrap_or_default(), new.http.clone().unwrap_or_default());
    // A restart proves that the App listens on the new port before requests go there.
    changes.compare("http.port", &port, &to.port, RestartContainer);
    changes.compare("http.hosts", &hosts, &to.hosts, None);
    changes.compare("http.protocol", &protocol, &to.protocol, RestartContainer);
    changes.compare("resources", resources, &new.resources, ResourcesOnly);
    changes.compare("health", health, &new.health, None);
    changes.compare("lifecycle", lifecycle, &new.lifecycle, None);
    changes.compare("volumes", volumes, &new.volumes, RecreateSandbox);
    changes.compare("sidecars", sidecars, &new.sidecars, RestartContainer);
    changes.compare("instances", instances, &new.instances, None);
    changes.compare("rollout", rollout, &new.rollout, None);
    changes.compare("park", park, &new.park, None);
    changes.compare("isolation", isolation, &new.isolation, RecreateSandbox);
    changes.compare("user", user, &new.user, RestartContainer);
    changes.compare("working_dir", working_dir, &new.working_dir, RestartContainer);
    changes.compare("read_only_root", read_only_root, &new.read_only_root, RestartContainer);
    changes.compare("stop_signal", stop_signal, &new.stop_signal, None);
    changes.compare("restart", restart, &new.restart, None);
    changes.0
}

struct Changes(Vec<FieldChange>);

impl Changes {
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
                self.0.push(FieldChange { path: path.to_owned(), from, to, effect });
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
            ("", "resources: {memory: 1Gi}", "resources.memory", ResourcesOnly),
            ("instances: 1", "instances: 3", "instances", None),
            ("", "http: {hosts: [a.com]}", "http.hosts", None),
            ("http: {port: 80}", "http: {port: 81}", "http.port", RestartContainer),
            ("", "volumes: [{name: d, mount: /d}]", "volumes", RecreateSandbox),
            ("", "files: {/etc/x: {content: a}}", "files./etc/x", RestartContainer),
            ("", "health: {liveness: {tcp: 80}}", "health.liveness", None),
            ("command: [a]", "command: [b]", "command", RestartContainer),
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
}
