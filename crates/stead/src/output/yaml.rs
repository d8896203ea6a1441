//! YAML of a JSON document: block form, every text that is not a plain word quoted as JSON
//! quotes it, which is valid YAML 1.2.

use serde_json::Value;

/// The document as YAML, ending in a line end.
pub(super) fn to_string(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(&mut out, value, 0),
        Value::Array(list) if !list.is_empty() => block(&mut out, value, 0),
        _ => {
            out.push_str(&scalar(value));
            out.push('\n');
        }
    }
    out
}

/// Writes a map or list that is not empty, each line indented by `depth` levels.
fn block(out: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                out.push_str(&indent);
                out.push_str(&text(key));
                out.push(':');
                nested(out, value, depth);
            }
        }
        Value::Array(list) => {
            for value in list {
                out.push_str(&indent);
                out.push('-');
                nested(out, value, depth);
            }
        }
        _ => unreachable!("only maps and lists have a block form"),
    }
}

fn nested(out: &mut String, value: &Value, depth: usize) {
    let deep = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    if deep {
        out.push('\n');
        block(out, value, depth + 1);
    } else {
        out.push(' ');
        out.push_str(&scalar(value));
        out.push('\n');
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(string) => text(string),
        other => other.to_string(),
    }
}

/// A plain word where no reader could take it for anything else, else a quoted one.
fn text(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/' | b'.'))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_document_reads_as_the_same_document() {
        let value = json!({
            "app": "default/web", "count": 3, "no": "no", "none": null, "empty": [], "map": {},
            "list": [{"a": "1", "b": [1, 2]}, "x: y", "line\nend"],
        });
        let text = to_string(&value);
        assert_eq!(
            text,
            "app: default/web\ncount: 3\nempty: []\nlist:\n  -\n    a: \"1\"\n    b:\n      - 1\n      - 2\n  \
             - \"x: y\"\n  - \"line\\nend\"\nmap: {}\n\"no\": \"no\"\nnone: null\n"
        );
        assert_eq!(to_string(&json!([])), "[]\n");
    }
}
