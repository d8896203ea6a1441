//! A jar's manifest: its main attributes.
//!
//! Format: "JAR File Specification", section "Manifest Specification": `Name: value` lines of
//! at most 72 bytes, the rest on lines that begin with a space; names in any case. Sections
//! about single entries are left out: they carry signatures, which no longer fit.

/// Bytes of a line, its end not counted.
const WIDTH: usize = 72;

/// Main attributes, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::package) struct Manifest {
    attributes: Vec<(String, String)>,
}

impl Manifest {
    /// Reads one. Lines that make no sense are left out: the JVM says what is wrong with them.
    pub(in crate::package) fn parse(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text).replace("\r\n", "\n").replace('\r', "\n");
        let mut attributes: Vec<(String, String)> = Vec::new();
        for line in text.lines().take_while(|line| !line.is_empty()) {
            match (line.strip_prefix(' '), attributes.last_mut()) {
                (Some(rest), Some((_, value))) => value.push_str(rest),
                _ => {
                    if let Some((name, value)) = line.split_once(':') {
                        let value = value.strip_prefix(' ').unwrap_or(value);
                        attributes.push((name.to_owned(), value.to_owned()));
                    }
                }
            }
        }
        Self { attributes }
    }

    /// The value of an attribute, unless it is blank.
    pub(in crate::package) fn get(&self, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    /// Sets an attribute, in its old place or at the end.
    pub(in crate::package) fn set(&mut self, name: &str, value: String) {
        match self.attributes.iter_mut().find(|(key, _)| key.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => self.attributes.push((name.to_owned(), value)),
        }
    }

    /// Takes over those attributes of another whose names are told.
    pub(in crate::package) fn inherit(&mut self, other: &Self, kept: impl Fn(&str) -> bool) {
        let kept = other.attributes.iter().filter(|(name, _)| kept(name));
        self.attributes.extend(kept.cloned());
    }

    /// As it stands in a jar. The version comes first, as the JVM wants it.
    pub(in crate::package) fn write(&self) -> Vec<u8> {
        let mut out = String::new();
        let version = |name: &str| name.eq_ignore_ascii_case("Manifest-Version");
        out.push_str("Manifest-Version: 1.0\r\n");
        for (name, value) in self.attributes.iter().filter(|(name, _)| !version(name)) {
            let mut width = 0;
            for letter in format!("{name}: {value}").chars() {
                if width + letter.len_utf8() > WIDTH {
                    out.push_str("\r\n ");
                    width = 1;
                }
                out.push(letter);
                width += letter.len_utf8();
            }
            out.push_str("\r\n");
        }
        out.push_str("\r\n");
        out.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut manifest = Manifest::parse(
            b"main-class: a.B\r\nManifest-Version: 1.0\r\nLong: one\r\n  two\r\n\r\nName: x\r\nA: b\r\n",
        );
        assert_eq!(manifest.get("Main-Class"), Some("a.B"));
        assert_eq!(manifest.get("Long"), Some("one two"));
        assert_eq!(manifest.get("A"), None, "it is about an entry");
        let path: Vec<String> = (0..100).map(|n| format!("lib/döner-{n}.jar")).collect();
        manifest.set("Class-Path", path.join(" "));
        manifest.set("Main-Class", "c.D".to_owned());
        let mut other = Manifest::default();
        other.inherit(&manifest, |name| name != "Long");
        let text = other.write();
        assert!(text.starts_with(b"Manifest-Version: 1.0\r\nmain-class: c.D\r\n"));
        assert!(text.split(|byte| *byte == b'\n').all(|line| line.len() <= WIDTH + 1));
        let again = Manifest::parse(&text);
        assert_eq!(again.get("Class-Path"), Some(path.join(" ").as_str()));
        assert_eq!(again.get("Main-Class"), Some("c.D"));
        assert_eq!(again.get("Long"), None);
    }

    #[test]
    fn nonsense_is_no_attribute() {
        let manifest = Manifest::parse(b" lost\nno colon\nEmpty:\nA:b\n");
        assert_eq!((manifest.get("Empty"), manifest.get("A")), (None, Some("b")));
        assert_eq!(Manifest::parse(b""), Manifest::default());
    }
}
