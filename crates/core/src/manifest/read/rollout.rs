//! How the part of a manifest that says how a Release replaces another is read.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::{Fields, Read, Reader};
use crate::error::Code;
use crate::ids::Ordinal;
use crate::manifest::batches::{Batch, Batches};
use crate::manifest::matching::Match;
use crate::manifest::problem::{BadValue, FieldPath};
use crate::manifest::rollout::{Analysis, Rollout};
use crate::manifest::yaml::{Node, Value};

impl Read for Rollout {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let defaults = Self::default();
        let mut fields = Fields::of(node, path, reader)?;
        let rollout = Self {
            strategy: fields.get("strategy"),
            batches: fields.get("batches").unwrap_or(defaults.batches),
            pause: fields.get("pause").unwrap_or(defaults.pause),
            partition: fields.get("partition").unwrap_or(defaults.partition),
            order: fields.get("order").unwrap_or(defaults.order),
            priority: fields.get("priority").map(|Priority(map)| map).unwrap_or_default(),
            sticky: fields.get("sticky"),
            max_unavailable: fields.get("max_unavailable").unwrap_or(defaults.max_unavailable),
            max_surge: fields.get("max_surge").unwrap_or(defaults.max_surge),
            auto_rollback: fields.get("auto_rollback").unwrap_or(defaults.auto_rollback),
            progress_deadline: fields
                .get("progress_deadline")
                .unwrap_or(defaults.progress_deadline),
            keep_previous: fields.get("keep_previous"),
            watch: fields.get("watch").unwrap_or(defaults.watch),
            analysis: fields.get("analysis").unwrap_or(defaults.analysis),
        };
        fields.finish();
        Some(rollout)
    }
}

impl Read for Batches {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::Scalar { plain: true, .. } => u32::read(node, path, reader).map(Self::Count),
            Value::List(_) => {
                let before = reader.problems.len();
                let list = Vec::read(node, path, reader)?;
                // What is missing from the list would make the rest look wrong.
                (reader.problems.len() == before).then_some(Self::List(list))
            }
            _ => reader.wrong_type(node, path, "a number of batches, or a list of them"),
        }
    }
}

impl Read for Batch {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::Scalar { .. } => {
                reader.parsed(node, path, "a number of Instances or a share of them").map(Self::of)
            }
            Value::Map(_) => {
                let mut fields = Fields::of(node, path, reader)?;
                let instances = fields.must("instances");
                let weight = fields.get("weight").map(|Weight(weight)| weight);
                let matches = fields.get("match").unwrap_or_default();
                let pause = fields.get("pause");
                fields.finish();
                Some(Self { instances: instances?, weight, matches, pause })
            }
            _ => {
                let expected = "a batch such as 1, 25% or {instances, weight, match, pause}";
                reader.wrong_type(node, path, expected)
            }
        }
    }
}

/// A share of the requests in per cent.
struct Weight(u8);

impl Read for Weight {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let share = u8::try_from(u32::read(node, path, reader)?).ok().filter(|share| *share <= 100);
        let bad = || BadValue::new(Code::ManifestRange, "a value from 0 to 100", node.describe());
        reader.built(node, path, share.ok_or_else(bad)).map(Self)
    }
}

impl Read for Match {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let before = reader.problems.len();
        let mut fields = Fields::of(node, path, reader)?;
        let (header, cookie, query) =
            (fields.get("header"), fields.get("cookie"), fields.get("query"));
        fields.finish();
        if reader.problems.len() > before {
            return None;
        }
        let made = match (header, cookie, query) {
            (Some(Carried { name, value }), None, None) => Ok(Self::Header { name, value }),
            (None, Some(Carried { name, value }), None) => Ok(Self::Cookie { name, value }),
            (None, None, Some(Carried { name, value })) => Ok(Self::Query { name, value }),
            (None, None, None) => Err("none"),
            _ => Err("several of them"),
        };
        let conflict = |found| {
            let expected = "exactly one of header, cookie and query";
            BadValue::new(Code::ManifestConflict, expected, found)
        };
        reader.built(node, path, made.map_err(conflict))
    }
}

/// What a [`Match`] looks for.
struct Carried<Name> {
    name: Name,
    value: Option<String>,
}

impl<Name: Read> Read for Carried<Name> {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let mut fields = Fields::of(node, path, reader)?;
        let (name, value) = (fields.must("name"), fields.get("value"));
        fields.finish();
        Some(Self { name: name?, value })
    }
}

/// Weights of Instances.
struct Priority(BTreeMap<Ordinal, i32>);

impl Read for Priority {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let map = BTreeMap::<Key, i32>::read(node, path, reader)?;
        Some(Self(map.into_iter().map(|(Key(ordinal), weight)| (ordinal, weight)).collect()))
    }
}

/// An Instance's ordinal as a key.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key(Ordinal);

impl FromStr for Key {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let expected = "the ordinal of an Instance, from 0";
        text.parse().map(Self).map_err(|_| BadValue::text(Code::ManifestRange, expected, text))
    }
}

impl Read for Analysis {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::Scalar { .. } => bool::read(node, path, reader).map(Self::switched),
            Value::Map(_) => {
                let defaults = Self::default();
                let mut fields = Fields::of(node, path, reader)?;
                let analysis = Self {
                    errors: fields.get("errors").unwrap_or(defaults.errors),
                    latency: fields.get("latency").unwrap_or(defaults.latency),
                    min_requests: fields.get("min_requests").unwrap_or(defaults.min_requests),
                };
                fields.finish();
                Some(analysis)
            }
            _ => {
                let expected = "true, false or {errors, latency, min_requests}";
                reader.wrong_type(node, path, expected)
            }
        }
    }
}
