//! What runs a package's code: one runtime and its version.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema as ApiSchema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::problem::BadValue;
use crate::api::package::{BaseName, RuntimeName};
use crate::error::Code;

/// The runtime of a package, written `{java: 17}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime(pub BaseName);

impl Runtime {
    /// A runtime of a version as it is written.
    pub(super) fn new(name: RuntimeName, version: &str) -> Result<Self, BadValue> {
        let bad = || BadValue::text(Code::ManifestText, "a version such as 17 or 3.11", version);
        BaseName::new(name, version).map(Self).ok_or_else(bad)
    }
}

impl Serialize for Runtime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.0.runtime.word(), self.0.version())?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Runtime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = Map::deserialize(deserializer)?;
        let mut entries = map.iter();
        let (Some((name, Value::String(version))), None) = (entries.next(), entries.next()) else {
            return Err(D::Error::custom("expected one runtime with its version as a text"));
        };
        format!("{name}:{version}").parse().map(Self).map_err(D::Error::custom)
    }
}

impl JsonSchema for Runtime {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Runtime".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let version = json!({
            "anyOf": [{ "type": "string", "pattern": r"^[0-9]+(\.[0-9]+)*$" }, { "type": "number" }]
        });
        let names = RuntimeName::ALL.map(|name| (name.word().to_owned(), version.clone()));
        json_schema!({
            "type": "object",
            "properties": Map::from_iter(names),
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1,
        })
    }
}

impl PartialSchema for Runtime {
    fn schema() -> RefOr<ApiSchema> {
        Object::builder()
            .schema_type(Type::Object)
            .description(Some("A runtime and its version."))
            .examples([json!({ "java": "17" })])
            .into()
    }
}

impl ToSchema for Runtime {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_json_is_what_a_person_writes() {
        let runtime = Runtime("python:3.10".parse().unwrap());
        let json = serde_json::to_value(&runtime).unwrap();
        assert_eq!(json, json!({ "python": "3.10" }));
        assert_eq!(serde_json::from_value::<Runtime>(json).unwrap(), runtime);
        for wrong in [json!({}), json!({ "java": "17", "node": "20" }), json!({ "perl": "5" })] {
            assert!(serde_json::from_value::<Runtime>(wrong).is_err());
        }
    }
}
