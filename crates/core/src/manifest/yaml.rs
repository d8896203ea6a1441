//! Reads YAML, and with it JSON, into a tree whose nodes know their place in the text.
//!
//! It keeps scalars as they are written, so that `1.10` stays `1.10`. What manifests do
//! without is refused here: aliases (which can bomb), tags, several documents, keys that are
//! not text. Size and depth are bounded. It knows nothing of what the keys mean.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, StrInput};

use super::problem::{BadValue, FieldPath, Position, Problem, Step, quote};
use crate::error::Code;

/// Longest text accepted, in bytes: files may come with it.
const LONGEST: usize = 4 << 20;
/// Deepest nesting accepted; a manifest needs a quarter of it.
const DEEPEST: usize = 24;
/// What is expected and found where a text goes deeper.
const TOO_DEEP: (&str, &str) = ("at most 24 levels of nesting", "more");

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

/// What stands at a place.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A text; `plain` when it stands without quotes.
    Scalar { text: String, plain: bool },
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text, each key once.
    Map(Vec<(Key, Node)>),
    /// Something refused already; no need to complain again.
    Refused,
}

/// A key and where it stands.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) at: Position,
    pub(super) text: String,
}

impl Node {
    /// What stands here, for messages.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".to_owned(),
            Value::Scalar { text, .. } => quote(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
            Value::Refused => "something refused".to_owned(),
        }
    }

    /// Where `path` leads, or as near to it as the text goes.
    pub(super) fn locate(&self, path: &FieldPath) -> Position {
        let mut node = self;
        for step in &path.0 {
            let next = match (step, &node.value) {
                (Step::Key(key), Value::Map(entries)) => {
                    entries.iter().find(|(k, _)| k.text == *key).map(|(_, node)| node)
                }
                (Step::Index(index), Value::List(items)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.at
    }
}

/// Reads one document. `None` when its structure could not be made out; then the problems
/// say why. Problems may come with a tree as well.
pub(super) fn load(text: &str) -> (Option<Node>, Vec<Problem>) {
    let lines = u32::try_from(text.lines().count()).unwrap_or(u32::MAX).max(1);
    let parser = Parser::new_from_str(text);
    let mut loader = Loader { text, parser, lines, problems: Vec::new() };
    if text.len() > LONGEST {
        let found = format!("{} bytes", text.len());
        let bad = BadValue::new(Code::ManifestTooBig, "at most 4 MiB of text", found);
        loader.refuse(Position { line: 1, column: 1 }, &FieldPath::default(), bad);
        return (None, loader.problems);
    }
    match loader.document() {
        Ok(root) => (Some(root), loader.problems),
        Err(Stop) => (None, loader.problems),
    }
}

fn alias() -> BadValue {
    BadValue::new(Code::ManifestYaml, "the value itself", "an alias (*…)")
        .hint("write the value out; put a text that begins with '*' into quotes")
}

fn syntax_hint(info: &str) -> &'static str {
    if info.contains("unexpected character") {
        "put a text that begins with this character into quotes"
    } else if info.contains("mapping values are not allowed") {
        "check the indentation, and put a text that contains ': ' into quotes"
    } else {
        "the cause may be on a line before: check indentation, quotes and brackets"
    }
}

/// Reading cannot go on; the problem has been noted.
struct Stop;

struct Loader<'a> {
    text: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    lines: u32,
    problems: Vec<Problem>,
}

impl<'a> Loader<'a> {
    fn refuse(&mut self, at: Position, path: &FieldPath, bad: BadValue) {
        self.problems.push(Problem::new(bad, path, Some(at)));
    }

    /// The parser counts lines from 1 and columns from 0, and stands behind the last line
    /// at the end of the text.
    fn position(&self, mark: Marker) -> Position {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let line = number(mark.line()).clamp(1, self.lines);
        Position { line, column: number(mark.col()).saturating_add(1) }
    }

    fn next(&mut self) -> Result<(Event<'a>, Position), Stop> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.position(span.start))),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, Position { line: self.lines, column: 1 })),
        }
    }

    fn syntax(&mut self, error: &ScanError) -> Stop {
        let at = self.position(*error.marker());
        let (at, bad) = match (error.info(), self.tab_near(at.line)) {
            (info, _) if info.contains("recursion limit") => {
                (at, BadValue::new(Code::ManifestTooBig, TOO_DEEP.0, TOO_DEEP.1))
            }
            (info, _) if info.contains("unknown anchor") => (at, alias()),
            (_, Some(tab)) => {
                let bad = BadValue::new(Code::ManifestTab, "spaces as indentation", "a tab");
                (tab, bad.hint("indent by two spaces for each level"))
            }
            (info, None) => {
                (at, BadValue::new(Code::ManifestSyntax, "YAML", info).hint(syntax_hint(info)))
            }
        };
        self.refuse(at, &FieldPath::default(), bad);
        Stop
    }

    /// The tab that indents `line` or the line after it. Between brackets tabs are fine, so
    /// JSON has none to complain about.
    fn tab_near(&self, line: u32) -> Option<Position> {
        if self.text.trim_start().starts_with(['{', '[']) {
            return None;
        }
        (line..).zip(self.text.lines().skip(line as usize - 1)).take(2).find_map(|(line, text)| {
            let indent = text.len() - text.trim_start_matches([' ', '\t']).len();
            let tab = u32::try_from(text[..indent].find('\t')?).ok()?;
            Some(Position { line, column: tab + 1 })
        })
    }

    fn document(&mut self) -> Result<Node, Stop> {
        let mut root = Node { at: Position { line: 1, column: 1 }, value: Value::Null };
        let mut documents = 0;
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(_) => {
                    documents += 1;
                    let (event, inner) = self.next()?;
                    let node = self.node(event, inner, &FieldPath::default(), 0)?;
                    match documents {
                        1 => root = node,
                        2 => {
                            let bad = BadValue::new(
                                Code::ManifestYaml,
                                "one App in one document",
                                "a second document",
                            );
                            let bad = bad.hint("write one file for each App");
                            self.refuse(at, &FieldPath::default(), bad);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }

    fn node(
        &mut self,
        event: Event<'a>,
        at: Position,
        path: &FieldPath,
        depth: usize,
    ) -> Result<Node, Stop> {
        if depth > DEEPEST {
            let bad = BadValue::new(Code::ManifestTooBig, TOO_DEEP.0, TOO_DEEP.1);
            self.refuse(at, path, bad);
            return Err(Stop);
        }
        let (value, tag) = match event {
            Event::Scalar(text, style, _, tag) => {
                let plain = style == ScalarStyle::Plain;
                let value = match text.as_ref() {
                    "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
                    _ => Value::Scalar { text: text.into_owned(), plain },
                };
                (value, tag)
            }
            Event::SequenceStart(_, tag) => (self.list(path, depth)?, tag),
            Event::MappingStart(_, tag) => (self.map(path, depth)?, tag),
            Event::Alias(_) => {
                self.refuse(at, path, alias());
                (Value::Refused, None)
            }
            _ => (Value::Null, None),
        };
        if tag.is_some() {
            let bad = BadValue::new(Code::ManifestYaml, "a value without a tag", "a tag (!…)")
                .hint("leave the tag out; put text that could be mistaken into quotes");
            self.refuse(at, path, bad);
            return Ok(Node { at, value: Value::Refused });
        }
        Ok(Node { at, value })
    }

    fn list(&mut self, path: &FieldPath, depth: usize) -> Result<Value, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd | Event::StreamEnd) {
                return Ok(Value::List(items));
            }
            let path = path.index(items.len());
            items.push(self.node(event, at, &path, depth + 1)?);
        }
    }

    fn map(&mut self, path: &FieldPath, depth: usize) -> Result<Value, Stop> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut first_at: BTreeMap<String, u32> = BTreeMap::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd | Event::StreamEnd) {
                return Ok(Value::Map(entries));
            }
            let key = match self.node(event, at, path, depth + 1)?.value {
                Value::Scalar { text, .. } => Some(text),
                Value::Null => Some(String::new()),
                Value::Refused => None,
                Value::List(_) | Value::Map(_) => {
                    let bad =
                        BadValue::new(Code::ManifestYaml, "a text as key", "a list or mapping");
                    self.refuse(at, path, bad);
                    None
                }
            };
            let place = key.as_deref().map_or_else(|| path.clone(), |key| path.key(key));
            let (event, value_at) = self.next()?;
            let node = self.node(event, value_at, &place, depth + 1)?;
            let Some(text) = key else { continue };
            if let Some(line) = first_at.get(&text) {
                let found = format!("{} again", quote(&text));
                let bad = BadValue::new(Code::ManifestDuplicate, "each key once", found)
                    .hint(format!("it stands on line {line} already; keep one of the two"));
                self.refuse(at, &place, bad);
                continue;
            }
            first_at.insert(text.clone(), at.line);
            entries.push((Key { at, text }, node));
        }
    }
}
