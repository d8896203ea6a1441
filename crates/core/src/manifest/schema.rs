//! The JSON Schema of a manifest, for editors and for other people's checks.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::fields::Manifest;

/// The JSON Schema (draft 2020-12) of what a person writes. It is generated from the types;
/// `docs/manifest.schema.json` is a copy that a test keeps current.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Manifest>();
    schema.insert("title".to_owned(), json!("stead manifest"));
    schema.insert("examples".to_owned(), examples());
    schema.to_value()
}

fn examples() -> Value {
    json!([
        { "app": "web", "source": "registry.example/web:1.4" },
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
            "lifecycle": { "pre_stop": { "sleep": "0s" }, "grace": "30s" },
            "volumes": [{ "name": "data", "mount": "/data" }],
            "instances": 2,
            "rollout": { "strategy": "in-place", "max_unavailable": 0, "auto_rollback": true },
            "park": { "max_wait": "30s" },
            "isolation": "process",
            "stop_signal": "SIGQUIT"
        }
    ])
}
