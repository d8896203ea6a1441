//! How each part of a manifest is read: its keys, each named once, and what stands in for
//! those left out.

use super::{Fields, Read, Reader};
use crate::api::package::RuntimeName;
use crate::error::Code;
use crate::manifest::fields::{
    FileSource, Http, Jvm, Lifecycle, Manifest, Park, PreStop, Resources, Volume,
};
use crate::manifest::health::{Health, Probe, ProbeText, Startup, StartupText};
use crate::manifest::hooks::{Hook, HookText, Hooks};
use crate::manifest::problem::{BadValue, FieldPath};
use crate::manifest::runtime::Runtime;
use crate::manifest::sidecar::{Sidecar, SidecarVolume};
use crate::manifest::site::{Site, SiteCache};
use crate::manifest::text::SitePath;
use crate::manifest::unbuilt;
use crate::manifest::yaml::{Node, Value};
use crate::name::AppName;

impl Read for FileSource {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::Scalar { text, .. } => Some(Self::Path(text.clone())),
            Value::Map(_) => {
                let mut fields = Fields::of(node, path, reader)?;
                let content = fields.must("content");
                fields.finish();
                content.map(|content| Self::Content { content })
            }
            _ => reader.wrong_type(node, path, "the path of a file, or {content: …}"),
        }
    }
}

impl Read for Http {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let http = Self {
            port: fields.get("port"),
            hosts: fields.get("hosts").unwrap_or_default(),
            protocol: fields.get("protocol").unwrap_or_default(),
        };
        fields.finish();
        Some(http)
    }
}

impl Read for Site {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let site = Self {
            fallback: fields.get::<Page>("fallback").and_then(|page| page.0),
            not_found: fields.get("not_found"),
            cache: fields.get("cache").unwrap_or_default(),
            headers: fields.get("headers").unwrap_or_default(),
        };
        fields.finish();
        Some(site)
    }
}

/// A page of a site, or `none`.
struct Page(Option<SitePath>);

impl Read for Page {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        if matches!(&node.value, Value::Scalar { text, plain: true } if text == "none") {
            return Some(Self(None));
        }
        SitePath::read(node, path, reader).map(|page| Self(Some(page)))
    }
}

impl Read for SiteCache {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let defaults = Self::default();
        let mut fields = Fields::of(node, path, reader)?;
        let cache = Self {
            pages: fields.get("pages").unwrap_or(defaults.pages),
            files: fields.get("files").unwrap_or(defaults.files),
            hashed: fields.get("hashed").unwrap_or(defaults.hashed),
        };
        fields.finish();
        Some(cache)
    }
}

impl Read for Resources {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let resources = Self {
            cpu: fields.get("cpu"),
            memory: fields.get("memory"),
            pids: fields.get("pids").unwrap_or(Self::default().pids),
        };
        fields.finish();
        Some(resources)
    }
}

impl Read for Runtime {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let before = reader.problems.len();
        let mut fields = Fields::of(node, path, reader)?;
        let named = RuntimeName::ALL.map(|name| (name, fields.get::<String>(name.word())));
        fields.finish();
        if reader.problems.len() > before {
            return None;
        }
        let mut named = named.into_iter().filter_map(|(name, version)| Some((name, version?)));
        match (named.next(), named.next()) {
            (Some((name, version)), None) => {
                let path = path.key(name.word());
                reader.built(node, &path, Self::new(name, &version))
            }
            (found, _) => {
                let found = if found.is_some() { "several" } else { "none" };
                let expected = "one runtime with its version, such as java: 17";
                reader.built(
                    node,
                    path,
                    Err(BadValue::new(Code::ManifestConflict, expected, found)),
                )
            }
        }
    }
}

impl Read for Jvm {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let jvm = Self {
            archive: fields.get("archive").unwrap_or_default(),
            threads: fields.get("threads").unwrap_or_default(),
        };
        fields.finish();
        Some(jvm)
    }
}

impl Read for Health {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let health = Self {
            startup: fields.get("startup"),
            readiness: fields.get("readiness"),
            liveness: fields.get("liveness"),
        };
        fields.finish();
        Some(health)
    }
}

impl Read for Startup {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let before = reader.problems.len();
        let mut fields = Fields::of(node, path, reader)?;
        let text = StartupText {
            http: fields.get("http"),
            tcp: fields.get("tcp"),
            exec: fields.get("exec"),
            port: fields.get("port"),
            period: fields.get("period"),
            timeout: fields.get("timeout"),
        };
        fields.finish();
        // A part that is wrong must not be reported once more as missing.
        if reader.problems.len() > before {
            return None;
        }
        reader.built(node, path, text.try_into())
    }
}

impl Read for Probe {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let before = reader.problems.len();
        let mut fields = Fields::of(node, path, reader)?;
        let text = ProbeText {
            http: fields.get("http"),
            tcp: fields.get("tcp"),
            exec: fields.get("exec"),
            port: fields.get("port"),
            period: fields.get("period"),
            timeout: fields.get("timeout"),
            failures: fields.get("failures"),
        };
        fields.finish();
        if reader.problems.len() > before {
            return None;
        }
        reader.built(node, path, text.try_into())
    }
}

impl Read for Lifecycle {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let defaults = Self::default();
        let mut fields = Fields::of(node, path, reader)?;
        let lifecycle = Self {
            pre_stop: fields.get("pre_stop"),
            post_start: fields.get("post_start").unwrap_or_default(),
            grace: fields.get("grace").unwrap_or(defaults.grace),
            slow_start: fields.get("slow_start").unwrap_or(defaults.slow_start),
            hooks: fields.get("hooks").unwrap_or_default(),
        };
        fields.finish();
        Some(lifecycle)
    }
}

impl Read for PreStop {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let before = reader.problems.len();
        let mut fields = Fields::of(node, path, reader)?;
        let parts = (fields.get("sleep"), fields.get("exec"));
        fields.finish();
        if reader.problems.len() > before {
            return None;
        }
        let made = match parts {
            (Some(sleep), None) => Ok(Self::Sleep(sleep)),
            (None, Some(argv)) => Ok(Self::Exec(argv)),
            (None, None) => Err("none"),
            (Some(_), Some(_)) => Err("both"),
        };
        let conflict =
            |found| BadValue::new(Code::ManifestConflict, "exactly one of sleep and exec", found);
        reader.built(node, path, made.map_err(conflict))
    }
}

impl Read for Hooks {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let hooks = Self {
            before_update: fields.get("before_update"),
            after_update: fields.get("after_update"),
            pre_delete: fields.get("pre_delete"),
        };
        fields.finish();
        Some(hooks)
    }
}

impl Read for Hook {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let before = reader.problems.len();
        let mut fields = Fields::of(node, path, reader)?;
        let text = HookText {
            exec: fields.get("exec"),
            http: fields.get("http"),
            port: fields.get("port"),
            deadline: fields.get("deadline"),
        };
        fields.finish();
        if reader.problems.len() > before {
            return None;
        }
        reader.built(node, path, text.try_into())
    }
}

impl Read for Volume {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let (name, mount) = (fields.must("name"), fields.must("mount"));
        let shared = fields.get("shared").unwrap_or_default();
        fields.finish();
        Some(Self { name: name?, mount: mount?, shared })
    }
}

impl Read for Sidecar {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let (name, source) = (fields.must("name"), fields.must("source"));
        let sidecar = (
            fields.get("command").unwrap_or_default(),
            fields.get("args").unwrap_or_default(),
            fields.get("env").unwrap_or_default(),
            fields.get("files").unwrap_or_default(),
            fields.get("resources").unwrap_or_default(),
            fields.get("health").unwrap_or_default(),
            fields.get("volumes").unwrap_or_default(),
        );
        fields.finish();
        let (command, args, env, files, resources, health, volumes) = sidecar;
        let (name, source) = (name?, source?);
        Some(Self { name, source, command, args, env, files, resources, health, volumes })
    }
}

impl Read for SidecarVolume {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let (name, mount) = (fields.must("name"), fields.must("mount"));
        fields.finish();
        Some(Self { name: name?, mount: mount? })
    }
}

impl Read for Park {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let defaults = Self::default();
        let mut fields = Fields::of(node, path, reader)?;
        let park = Self {
            max_wait: fields.get("max_wait").unwrap_or(defaults.max_wait),
            max_requests: fields.get("max_requests").unwrap_or(defaults.max_requests),
        };
        fields.finish();
        Some(park)
    }
}

impl Read for Manifest {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        // Stand-ins for what must be there let reading and checking go on to the end.
        let app = fields.must("app");
        let namespace = fields.get("namespace").unwrap_or_default();
        let source: Option<String> = fields.must("source");
        let app = app.unwrap_or_else(|| AppName::new("app").expect("\"app\" is a DNS label"));
        let defaults = Self::minimal(app, source.unwrap_or_else(|| "source".to_owned()));
        let manifest = Self {
            namespace,
            runtime: fields.get("runtime"),
            command: fields.get("command").unwrap_or_default(),
            args: fields.get("args").unwrap_or_default(),
            env: fields.get("env").unwrap_or_default(),
            secrets: fields.get("secrets").unwrap_or_default(),
            files: fields.get("files").unwrap_or_default(),
            http: fields.get("http"),
            site: fields.get("site"),
            resources: fields.get("resources").unwrap_or_default(),
            jvm: fields.get("jvm").unwrap_or_default(),
            health: fields.get("health").unwrap_or_default(),
            lifecycle: fields.get("lifecycle").unwrap_or_default(),
            volumes: fields.get("volumes").unwrap_or_default(),
            sidecars: fields.get("sidecars").unwrap_or_default(),
            instances: fields.get("instances").unwrap_or(defaults.instances),
            rollout: fields.get("rollout").unwrap_or_default(),
            park: fields.get("park").unwrap_or_default(),
            isolation: fields.get("isolation").unwrap_or_default(),
            user: fields.get("user"),
            working_dir: fields.get("working_dir"),
            read_only_root: fields.get("read_only_root").unwrap_or_default(),
            stop_signal: fields.get("stop_signal"),
            restart: fields.get("restart").unwrap_or_default(),
            ..defaults
        };
        for key in unbuilt::KEYS {
            fields.unbuilt(key);
        }
        fields.finish();
        Some(manifest)
    }
}
