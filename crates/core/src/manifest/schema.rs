//! The JSON Schema of a manifest, for editors and for other people's checks.

use schemars::Schema;
use schemars::generate::SchemaSettings;
use schemars::transform::transform_subschemas;
use serde_json::{Value, json};

use super::fields::Manifest;

/// The JSON Schema (draft 2020-12) of what a person writes. It is generated from the types;
/// `docs/manifest.schema.json` is a copy that a test keeps current.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Manifest>();
    unwrap_lines(&mut schema);
    schema.insert("title".to_owned(), json!("stead manifest"));
    schema.insert("examples".to_owned(), examples());
    schema.to_value()
}

/// Descriptions come from comments, whose lines end where the margin is.
fn unwrap_lines(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    transform_subschemas(&mut unwrap_lines, schema);
}

fn examples() -> Value {
    json!([
        { "app": "web", "source": "registry.example/web:1.4" },
        {
            "app": "web",
            "source": "registry.example/web:1.4",
            "rollout": { "batches": 4, "pause": "manual", "analysis": false }
        },
        {
            "app": "docs",
            "source": "./dist",
            "site": { "fallback": "index.html", "cache": { "files": "1h" } }
        },
        {
            "app": "web",
            "namespace": "default",
            "source": "registry.example/web:1.4",
            "args": ["--verbose"],
            "env": { "LOG_LEVEL": "info", "WORKERS": 4 },
            "files": { "/etc/web/config.toml": "./config.toml" },
            "http": { "port": 8080, "hosts": ["web.example.com"], "protocol": "http1" },
            "resources": { "cpu": "500m", "memory": "256Mi", "pids": 512 },
            "health": {
                "startup": { "http": "/healthz", "timeout": "60s" },
                "readiness": { "http": "/healthz", "period": "5s" },
                "liveness": { "tcp": 8080, "period": "10s" }
            },
            "lifecycle": {
                "pre_stop": { "sleep": "0s" },
                "grace": "30s",
                "slow_start": "10s",
                "hooks": { "before_update": { "exec": ["/bin/snapshot"], "deadline": "5m" } }
            },
            "volumes": [{ "name": "data", "mount": "/data" }],
            "sidecars": [{ "name": "proxy", "source": "registry.example/proxy:2" }],
            "instances": 12,
            "rollout": {
                "strategy": "in-place",
                "batches": [
                    {
                        "instances": 1,
                        "match": [{ "header": { "name": "x-gray", "value": "yes" } }],
                        "pause": "manual"
                    },
                    "25%",
                    { "instances": "50%", "weight": 20, "pause": "5m" }
                ],
                "order": "scatter",
                "priority": { "3": 10 },
                "max_unavailable": 0,
                "auto_rollback": true
            },
            "park": { "max_wait": "30s" },
            "isolation": "process",
            "stop_signal": "SIGQUIT"
        }
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    /// The schema's copy in the documentation.
    const COPY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/manifest.schema.json");

    #[test]
    fn the_copy_in_docs_is_current() {
        let current = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
        if std::env::var_os("UPDATE").is_some() {
            std::fs::File::create(COPY)
                .and_then(|mut file| std::io::Write::write_all(&mut file, current.as_bytes()))
                .unwrap();
        }
        let copy = std::fs::read_to_string(COPY).unwrap();
        assert!(copy == current, "run UPDATE=1 cargo test -p stead-core schema");
    }

    /// Whether the schema accepts an instance, by an independent implementation.
    fn accepts(instance: &Value) -> bool {
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.add_resource("manifest.json", schema()).unwrap();
        let root = compiler.compile("manifest.json", &mut schemas).unwrap();
        schemas.validate(instance, root).is_ok()
    }

    #[test]
    fn examples_are_accepted_by_the_schema_and_by_the_reader() {
        for example in examples().as_array().unwrap() {
            assert!(accepts(example), "{example}");
            let manifest = parse(&example.to_string(), "example").unwrap();
            let stored = serde_json::to_value(&manifest).unwrap();
            assert!(accepts(&stored), "what is stored is a manifest too: {stored}");
        }
    }

    #[test]
    fn the_schema_refuses_what_the_reader_refuses() {
        for (key, value) in [
            ("replicas", json!(3)),
            ("instances", json!(1001)),
            ("app", json!("Web")),
            ("http", json!({ "port": 0 })),
            ("http", json!({ "hosts": ["http://a.com"] })),
            ("resources", json!({ "memory": "256mb" })),
            ("lifecycle", json!({ "grace": 30 })),
            ("lifecycle", json!({ "pre_stop": { "sleep": "1s", "exec": ["a"] } })),
            ("lifecycle", json!({ "hooks": { "pre_delete": { "http": "bye" } } })),
            ("sidecars", json!([{ "name": "proxy" }])),
            ("sidecars", json!([{ "name": "proxy", "source": "a", "instances": 2 }])),
            ("rollout", json!({ "strategy": "inplace" })),
            ("rollout", json!({ "batches": 0 })),
            ("rollout", json!({ "batches": [] })),
            ("rollout", json!({ "batches": ["half"] })),
            ("rollout", json!({ "batches": [{ "weight": 5 }] })),
            ("rollout", json!({ "batches": [{ "instances": 1, "weight": 101 }] })),
            ("rollout", json!({ "batches": [{ "instances": 1, "match": [{ "ip": "::1" }] }] })),
            ("rollout", json!({ "pause": "5 minutes" })),
            ("rollout", json!({ "order": "random" })),
            ("rollout", json!({ "priority": { "first": 1 } })),
            ("rollout", json!({ "analysis": "maybe" })),
            ("volumes", json!([{ "name": "data" }])),
            ("health", json!({ "liveness": { "http": "healthz" } })),
        ] {
            let mut instance = json!({ "app": "web", "source": "web:1" });
            instance[key] = value;
            assert!(!accepts(&instance), "schema: {instance}");
            assert!(parse(&instance.to_string(), "t").is_err(), "reader: {instance}");
        }
    }
}
