//! A start command as people write it for a shell (`web:` in a Procfile, `scripts.start` in
//! package.json), taken apart without one: images need not have a shell.
//!
//! Promises: what is accepted means to us what it means to a POSIX shell; what would need a
//! shell is refused. Of variables only those are known that stead itself sets. Does not know
//! which programs there are.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// A command taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command {
    /// `NAME=value` in front of the program.
    pub(super) env: BTreeMap<String, String>,
    /// Program and arguments: at least one word.
    pub(super) words: Vec<String>,
}

/// Why a command cannot be taken apart: what in it only a shell can do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NeedsShell {
    #[error("there is no program in it")]
    Empty,
    #[error("a quote is not closed")]
    OpenQuote,
    #[error("{0:?} needs a shell")]
    Special(char),
    #[error("the variable {0} is not known when it is packed")]
    Variable(String),
}

/// Takes `line` apart; `known` are the variables that may stand in it.
pub(super) fn command(line: &str, known: &BTreeMap<String, String>) -> Result<Command, NeedsShell> {
    let mut words = split(line, known)?.into_iter().peekable();
    let mut env = BTreeMap::new();
    while let Some((name, value)) = words.peek().and_then(|word| assignment(word)) {
        env.insert(name, value);
        words.next();
    }
    // `exec` keeps a shell from staying in between; nothing is in between here.
    words.next_if(|word| word == "exec");
    let words: Vec<String> = words.collect();
    if words.is_empty() { Err(NeedsShell::Empty) } else { Ok(Command { env, words }) }
}

/// The command of the process `web` in a Procfile, and what to tell a person of the others.
pub(super) fn procfile(text: &str) -> Option<(&str, Option<String>)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let processes = lines.filter_map(|line| line.split_once(':'));
    let (mut web, mut others) = (None, Vec::new());
    for (name, command) in processes.map(|(name, command)| (name.trim(), command.trim())) {
        match name {
            "web" => web = Some(command),
            _ => others.push(name),
        }
    }
    let note = || format!("only `web` of the Procfile is packed, not {}", others.join(", "));
    Some((web?, (!others.is_empty()).then(note)))
}

fn assignment(word: &str) -> Option<(String, String)> {
    let (name, value) = word.split_once('=')?;
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(is_name_part);
    is_name.then(|| (name.to_owned(), value.to_owned()))
}

fn is_name_part(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// Word splitting and quoting: POSIX.1-2024, "Shell Command Language", 2.2 and 2.6.
fn split(line: &str, known: &BTreeMap<String, String>) -> Result<Vec<String>, NeedsShell> {
    let mut words = Vec::new();
    // `None` between words: `''` is a word, though it is empty.
    let mut word: Option<String> = None;
    let mut rest = line.chars().peekable();
    while let Some(character) = rest.next() {
        match character {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => single_quoted(&mut rest, word.get_or_insert_default())?,
            '"' => double_quoted(&mut rest, known, word.get_or_insert_default())?,
            '\\' => {
                word.get_or_insert_default().push(rest.next().ok_or(NeedsShell::OpenQuote)?);
            }
            // A value would be split at its blanks here; the known ones have none.
            '$' => word.get_or_insert_default().push_str(&variable(&mut rest, known)?),
            '|' | '&' | ';' | '<' | '>' | '(' | ')' | '`' | '*' | '?' => {
                return Err(NeedsShell::Special(character));
            }
            '#' | '~' if word.is_none() => return Err(NeedsShell::Special(character)),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    Ok(words)
}

fn single_quoted(rest: &mut Peekable<Chars<'_>>, word: &mut String) -> Result<(), NeedsShell> {
    for character in rest {
        if character == '\'' {
            return Ok(());
        }
        word.push(character);
    }
    Err(NeedsShell::OpenQuote)
}

fn double_quoted(
    rest: &mut Peekable<Chars<'_>>,
    known: &BTreeMap<String, String>,
    word: &mut String,
) -> Result<(), NeedsShell> {
    while let Some(character) = rest.next() {
        match character {
            '"' => return Ok(()),
            '\\' => match rest.next().ok_or(NeedsShell::OpenQuote)? {
                escaped @ ('$' | '`' | '"' | '\\') => word.push(escaped),
                other => word.extend(['\\', other]),
            },
            '$' => word.push_str(&variable(rest, known)?),
            '`' => return Err(NeedsShell::Special('`')),
            _ => word.push(character),
        }
    }
    Err(NeedsShell::OpenQuote)
}

/// What follows a `$`: `NAME`, `{NAME}` or `{NAME:-default}`.
fn variable(
    rest: &mut Peekable<Chars<'_>>,
    known: &BTreeMap<String, String>,
) -> Result<String, NeedsShell> {
    let is_braced = rest.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(character) = rest.next_if(|next| is_name_part(*next)) {
        name.push(character);
    }
    let mut value = known.get(&name).cloned();
    if is_braced && rest.next_if_eq(&':').is_some() {
        if rest.next_if_eq(&'-').is_none() {
            return Err(NeedsShell::Special('$'));
        }
        let mut default = String::new();
        while let Some(character) = rest.next_if(|next| *next != '}') {
            if matches!(character, '$' | '`' | '"' | '\'' | '\\' | ' ') {
                return Err(NeedsShell::Special(character));
            }
            default.push(character);
        }
        value = value.or(Some(default));
    }
    if is_braced && rest.next_if_eq(&'}').is_none() || name.is_empty() {
        return Err(NeedsShell::Special('$'));
    }
    value.ok_or(NeedsShell::Variable(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> BTreeMap<String, String> {
        BTreeMap::from([("PORT".to_owned(), "8080".to_owned())])
    }

    fn words(line: &str) -> Vec<String> {
        command(line, &port()).unwrap().words
    }

    #[test]
    fn commands_are_split_as_a_shell_splits_them() {
        assert_eq!(
            words("gunicorn app:app  -b 0.0.0.0:$PORT"),
            ["gunicorn", "app:app", "-b", "0.0.0.0:8080"]
        );
        assert_eq!(
            words(r#"exec run "a b" 'c $PORT' d\ e '' "p=${PORT}""#),
            ["run", "a b", "c $PORT", "d e", "", "p=8080"]
        );
        assert_eq!(words("run ${PORT:-3000} ${WORKERS:-2}"), ["run", "8080", "2"]);
        assert_eq!(words(r#"run "a\"b" "c\d" a#b"#), ["run", "a\"b", "c\\d", "a#b"]);
    }

    #[test]
    fn variables_in_front_are_the_programs_environment() {
        let command = command("NODE_ENV=production A='b c' node --x=y server.js", &port()).unwrap();
        assert_eq!(command.words, ["node", "--x=y", "server.js"]);
        let env = [("A", "b c"), ("NODE_ENV", "production")];
        assert!(command.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(env));
    }

    #[test]
    fn a_procfile_names_what_serves() {
        let text = "# how it runs\nrelease: ./migrate\nweb:  gunicorn a:app -b :$PORT \n";
        let (web, note) = procfile(text).unwrap();
        assert_eq!(web, "gunicorn a:app -b :$PORT");
        assert!(note.unwrap().ends_with("not release"));
        assert_eq!(procfile("web: a"), Some(("a", None)));
        for none in ["", "release: ./migrate", "# web: a"] {
            assert_eq!(procfile(none), None, "{none}");
        }
    }

    #[test]
    fn what_only_a_shell_can_do_is_refused() {
        for line in [
            "a && b",
            "a | b",
            "a; b",
            "a > f",
            "a $(b)",
            "a `b`",
            "a *.js",
            "~/a",
            "# a",
            "a $",
            "a ${B",
            "a ${B:=c}",
            "a \"`b`\"",
        ] {
            let refused = command(line, &port());
            assert!(matches!(refused, Err(NeedsShell::Special(_))), "{line}: {refused:?}");
        }
        assert_eq!(command("a $HOME", &port()), Err(NeedsShell::Variable("HOME".into())));
        assert_eq!(command("a 'b", &port()), Err(NeedsShell::OpenQuote));
        assert_eq!(command("A=b", &port()), Err(NeedsShell::Empty));
        assert_eq!(command(" ", &port()), Err(NeedsShell::Empty));
    }
}
