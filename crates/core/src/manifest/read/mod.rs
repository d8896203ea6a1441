//! From the tree of a text to a [`Manifest`], collecting every problem on the way.
//!
//! A field that is absent or wrong takes its default, so that reading goes on to the end;
//! the manifest is handed out only if nothing was wrong. Each type names its keys once, in
//! its `read`: what is not asked for there is an unknown key.

mod rollout;
mod sections;

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::error::Code;
use crate::manifest::check;
use crate::manifest::choice::{
    Isolation, JvmArchive, JvmThreads, Order, Protocol, RestartPolicy, Strategy,
};
use crate::manifest::fields::Manifest;
use crate::manifest::problem::{BadValue, FieldPath, Position, Problem, Problems};
use crate::manifest::quantity::{Amount, Cpu, Memory, Pause, Span};
use crate::manifest::signal::StopSignal;
use crate::manifest::suggest;
use crate::manifest::text::{
    AbsPath, CookieName, EnvName, HeaderName, HostName, HttpPath, ParameterName, Port, SidecarName,
    SitePath, UserSpec, VolumeName, bad_name,
};
use crate::manifest::unbuilt;
use crate::manifest::yaml::{self, Key, Node, Value};
use crate::name::{AppName, NamespaceName};

/// Most problems that are reported for one manifest.
const MOST: usize = 100;

/// Reads a manifest from YAML or JSON. `origin` is what messages call the text, such as the
/// name of its file.
///
/// # Errors
/// Every problem of the text, in its order, each with line and column; the first hundred
/// where there are more.
pub fn parse(text: &str, origin: &str) -> Result<Manifest, Problems> {
    let (root, mut list) = yaml::load(text);
    let manifest = root.and_then(|root| {
        let mut reader = Reader { problems: Vec::new() };
        let manifest = Manifest::read(&root, &FieldPath::default(), &mut reader);
        list.append(&mut reader.problems);
        let manifest = manifest?;
        for (path, bad) in check::all(&manifest).into_iter().take(MOST) {
            // A field that could not be read was reported already; its default is no news.
            let problem = Problem::new(bad, &path, Some(root.locate(&path)));
            if !list.iter().any(|other| other.path == problem.path) {
                list.push(problem);
            }
        }
        Some(manifest)
    });
    list.sort_by_key(|problem| problem.at);
    list.truncate(MOST);
    match manifest {
        Some(manifest) if list.is_empty() => Ok(manifest),
        _ => Err(Problems { origin: origin.to_owned(), list }),
    }
}

/// Collects what is wrong.
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn refuse(&mut self, at: Position, path: &FieldPath, bad: BadValue) {
        self.problems.push(Problem::new(bad, path, Some(at)));
    }

    fn wrong_type<T>(&mut self, node: &Node, path: &FieldPath, expected: &str) -> Option<T> {
        if !matches!(node.value, Value::Refused) {
            let bad = BadValue::new(Code::ManifestType, expected, node.describe());
            self.refuse(node.at, path, bad);
        }
        None
    }

    /// A text, taken as it is written.
    fn text<'n>(&mut self, node: &'n Node, path: &FieldPath, expected: &str) -> Option<&'n str> {
        match &node.value {
            Value::Scalar { text, .. } => Some(text),
            Value::Null => {
                let bad = BadValue::new(Code::ManifestType, expected, "nothing")
                    .hint("write \"\" for an empty text");
                self.refuse(node.at, path, bad);
                None
            }
            _ => self.wrong_type(node, path, expected),
        }
    }

    fn parsed<T: FromStr<Err = BadValue>>(
        &mut self,
        node: &Node,
        path: &FieldPath,
        expected: &str,
    ) -> Option<T> {
        let text = self.text(node, path, expected)?;
        text.parse().map_err(|bad| self.refuse(node.at, path, bad)).ok()
    }

    /// A value made of others, all of which were read.
    fn built<T>(&mut self, node: &Node, path: &FieldPath, made: Result<T, BadValue>) -> Option<T> {
        made.map_err(|bad| self.refuse(node.at, path, bad)).ok()
    }
}

/// The entries of a mapping, taken one by one.
struct Fields<'n, 'r> {
    at: Position,
    path: FieldPath,
    entries: Vec<(&'n Key, &'n Node)>,
    known: Vec<&'static str>,
    reader: &'r mut Reader,
}

impl<'n, 'r> Fields<'n, 'r> {
    fn of(node: &'n Node, path: &FieldPath, reader: &'r mut Reader) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            return reader.wrong_type(node, path, "a mapping of keys to values");
        };
        let entries = entries.iter().map(|(key, node)| (key, node)).collect();
        Some(Self { at: node.at, path: path.clone(), entries, known: Vec::new(), reader })
    }

    /// The node under `key`, which is known from now on. A key with nothing behind it counts
    /// as left out.
    fn node(&mut self, key: &'static str) -> Option<&'n Node> {
        self.known.push(key);
        let place = self.entries.iter().position(|(k, _)| k.text == key)?;
        let (_, node) = self.entries.remove(place);
        Some(node).filter(|node| !matches!(node.value, Value::Null))
    }

    /// The value under `key`, `None` if it is left out or wrong.
    fn get<T: Read>(&mut self, key: &'static str) -> Option<T> {
        let node = self.node(key)?;
        T::read(node, &self.path.key(key), self.reader)
    }

    /// The value under `key`, which must be there.
    fn must<T: Read>(&mut self, key: &'static str) -> Option<T> {
        if let Some(node) = self.node(key) {
            return T::read(node, &self.path.key(key), self.reader);
        }
        let bad = BadValue::new(Code::ManifestMissingKey, format!("the key {key:?}"), "nothing");
        self.reader.refuse(self.at, &self.path.key(key), bad);
        None
    }

    /// Refuses a key whose feature is to come, unless it asks for nothing.
    fn unbuilt(&mut self, key: &'static str) {
        let Some(node) = self.node(key) else { return };
        let empty = matches!(&node.value, Value::List(items) if items.is_empty());
        if !empty && !matches!(node.value, Value::Refused) {
            self.reader.refuse(node.at, &self.path.key(key), unbuilt::key(key));
        }
    }

    /// Reports the keys that nobody asked for.
    fn finish(self) {
        for (key, node) in self.entries.into_iter().take(MOST) {
            if matches!(node.value, Value::Refused) {
                continue;
            }
            let near = suggest::translated(&key.text, &self.known)
                .or_else(|| suggest::nearest(&key.text, self.known.iter().copied()));
            let expected = format!("one of {}", self.known.join(", "));
            let bad = BadValue::text(Code::ManifestUnknownKey, expected, &key.text).nearest(near);
            self.reader.refuse(key.at, &self.path.key(&key.text), bad);
        }
    }
}

/// What can be read from a node. `None` means that the problem has been noted.
trait Read: Sized {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self>;
}

/// Types read from a text, with what is expected where no text stands.
macro_rules! read_from_text {
    ($($type:ty: $expected:expr;)+) => {$(
        impl Read for $type {
            fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
                reader.parsed(node, path, $expected)
            }
        }
    )+};
}

read_from_text! {
    AbsPath: "an absolute path";
    Amount: "a number of Instances or a share of them";
    CookieName: "the name of a cookie";
    Cpu: "an amount of CPU such as 500m";
    EnvName: "a variable's name";
    HeaderName: "the name of a header";
    HostName: "a host name";
    HttpPath: "the path of an HTTP request such as /healthz";
    Isolation: "one of process, gvisor, vm";
    JvmArchive: "one of auto, on, off";
    JvmThreads: "one of platform, virtual, wisp";
    Memory: "an amount of memory such as 256Mi";
    Order: "one of descending, ascending, scatter";
    ParameterName: "the name of a parameter";
    Pause: "a duration such as 30s, or manual";
    Port: "a port from 1 to 65535";
    Protocol: "http1 or h2c";
    RestartPolicy: "one of always, on-failure, never";
    SidecarName: "a name";
    SitePath: "the path of a file in the site";
    Span: "a duration such as 5s";
    StopSignal: "a signal such as SIGTERM";
    Strategy: "one of handover, in-place, recreate";
    UserSpec: "a user such as app or 1000:1000";
    VolumeName: "a name";
}

impl Read for AppName {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let text = reader.text(node, path, "a name")?;
        reader.built(node, path, Self::new(text).map_err(|_| bad_name("web", text)))
    }
}

impl Read for NamespaceName {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let text = reader.text(node, path, "a name")?;
        reader.built(node, path, Self::new(text).map_err(|_| bad_name("default", text)))
    }
}

impl Read for String {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        reader.text(node, path, "a text").map(str::to_owned)
    }
}

impl Read for bool {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::Scalar { text, plain: true } if text == "true" => Some(true),
            Value::Scalar { text, plain: true } if text == "false" => Some(false),
            _ => reader.wrong_type(node, path, "true or false"),
        }
    }
}

impl Read for u32 {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::Scalar { text, plain: true }
                if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) =>
            {
                let expected = format!("a number of at most {}", u32::MAX);
                let bad = |_| BadValue::new(Code::ManifestRange, expected, node.describe());
                reader.built(node, path, text.parse().map_err(bad))
            }
            _ => reader.wrong_type(node, path, "a whole number"),
        }
    }
}

impl Read for i32 {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let whole = |text: &str| {
            let digits = text.strip_prefix('-').unwrap_or(text);
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
        };
        match &node.value {
            Value::Scalar { text, plain: true } if whole(text) => {
                let expected = format!("a number from {} to {}", i32::MIN, i32::MAX);
                let bad = |_| BadValue::new(Code::ManifestRange, expected, node.describe());
                reader.built(node, path, text.parse().map_err(bad))
            }
            _ => reader.wrong_type(node, path, "a whole number"),
        }
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        match &node.value {
            Value::List(items) => {
                let items = items.iter().enumerate();
                Some(items.filter_map(|(i, node)| T::read(node, &path.index(i), reader)).collect())
            }
            Value::Scalar { text, .. } => {
                let bad = BadValue::new(Code::ManifestType, "a list", node.describe());
                reader.refuse(node.at, path, bad.hint(format!("write it as a list: [{text:?}]")));
                None
            }
            _ => reader.wrong_type(node, path, "a list"),
        }
    }
}

impl<K: FromStr<Err = BadValue> + Ord, V: Read> Read for BTreeMap<K, V> {
    fn read(node: &Node, path: &FieldPath, reader: &mut Reader) -> Option<Self> {
        let Value::Map(entries) = &node.value else {
            return reader.wrong_type(node, path, "a mapping of names to values");
        };
        let mut map = Self::new();
        for (key, node) in entries {
            let path = path.key(&key.text);
            let name = key.text.parse().map_err(|bad| reader.refuse(key.at, &path, bad)).ok();
            let value = V::read(node, &path, reader);
            if let (Some(name), Some(value)) = (name, value) {
                map.insert(name, value);
            }
        }
        Some(map)
    }
}
