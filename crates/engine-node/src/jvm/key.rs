//! What an archive is good for, in one word.
//!
//! Two starts with the same key load the same classes of the same files into the same virtual
//! machine. Whatever else could make an archive unusable the virtual machine itself checks, and
//! then does without.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use sha2::{Digest as _, Sha256};
use stead_core::ids::Digest;
use stead_core::name::NamespaceName;

use super::flags::VARIABLES;
use super::release::Jdk;
use crate::sandbox::ContainerSpec;

/// Raised when archives are recorded or kept in another way.
const FORMAT: u32 = 1;

/// Variables besides those with options that say what is loaded.
const LOADING: [&str; 2] = ["CLASSPATH", "JAVA_HOME"];

/// Options that say how much of the machine is used.
const SIZES: [&str; 2] = ["-Xmx", "-XX:ActiveProcessorCount="];

/// Names an archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key(String);

impl Key {
    /// Of what starts in `namespace` as `spec` says, before anything about archives is in its
    /// command. The sizes are left out: they change with every limit, and archives do not care.
    /// An archive is code, recorded by whoever ran first: no other Namespace runs it.
    pub(crate) fn of(
        namespace: &NamespaceName,
        image: &Digest,
        jdk: &Jdk,
        spec: &ContainerSpec,
    ) -> Self {
        let mut hash = Sha256::new();
        let mut add = |what: &str, value: &[u8]| {
            hash.update(what.len().to_le_bytes());
            hash.update(what);
            hash.update(value.len().to_le_bytes());
            hash.update(value);
        };
        add("format", &FORMAT.to_le_bytes());
        add("namespace", namespace.as_str().as_bytes());
        add("image", image.as_str().as_bytes());
        add("jdk", &jdk.build);
        let is_size = |argument: &str| SIZES.iter().any(|size| argument.starts_with(size));
        for argument in spec.argv.iter().filter(|argument| !is_size(argument)) {
            add("argument", argument.as_bytes());
        }
        add("folder", spec.cwd.as_bytes());
        let says = |name: &str| VARIABLES.contains(&name) || LOADING.contains(&name);
        for (name, value) in spec.env.iter().filter(|(name, _)| says(name)) {
            add(name, value.as_bytes());
        }
        for (name, value) in spec.secrets.iter().filter(|(name, _)| says(name)) {
            add(name, value.expose().as_bytes());
        }
        add("machine", MACHINE.as_bytes());
        let hash: [u8; 32] = hash.finalize().into();
        Self(hash[..16].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the processor can do, and how much there is of the machine: the virtual machine chooses
/// by both.
static MACHINE: LazyLock<String> = LazyLock::new(|| {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let first = cpus.lines().take_while(|line| !line.is_empty());
    let flags = first.filter(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags: String = flags.collect();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().next().unwrap_or_default();
    format!("{} {memory} {flags}", std::thread::available_parallelism().map_or(0, usize::from))
});

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// That is no key.
#[derive(Debug)]
pub(crate) struct NoKey;

impl FromStr for Key {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let fits = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if fits { Ok(Self(text.to_owned())) } else { Err(NoKey) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jdk(build: u8) -> Jdk {
        Jdk { name: "Java 17".into(), feature: 17, dragonwell: false, build: [build; 32] }
    }

    fn image(letter: &str) -> Digest {
        format!("sha256:{}", letter.repeat(64)).parse().unwrap()
    }

    fn of(image: &Digest, jdk: &Jdk, spec: &ContainerSpec) -> Key {
        Key::of(&NamespaceName::default(), image, jdk, spec)
    }

    fn spec(argv: &str, env: &[(&str, &str)]) -> ContainerSpec {
        ContainerSpec {
            argv: argv.split(' ').map(str::to_owned).collect(),
            env: env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            ..ContainerSpec::default()
        }
    }

    #[test]
    fn a_key_changes_with_what_is_loaded_and_with_nothing_else() {
        let plain = of(&image("a"), &jdk(1), &spec("java -jar a", &[("A", "1")]));
        let same = [
            of(&image("a"), &jdk(1), &spec("java -jar a", &[("A", "2"), ("B", "3")])),
            of(&image("a"), &jdk(1), &spec("java -Xmx512m -jar a", &[])),
            of(&image("a"), &jdk(1), &spec("java -XX:ActiveProcessorCount=3 -jar a", &[])),
        ];
        assert!(same.iter().all(|key| *key == plain));
        let tool = [("JAVA_TOOL_OPTIONS", "-Dx=y")];
        let mut others = vec![
            of(&image("b"), &jdk(1), &spec("java -jar a", &[])),
            of(&image("a"), &jdk(2), &spec("java -jar a", &[])),
            of(&image("a"), &jdk(1), &spec("java -jar b", &[])),
            of(&image("a"), &jdk(1), &spec("java -jar a b", &[])),
            of(&image("a"), &jdk(1), &spec("java -XX:+UseSerialGC -jar a", &[])),
            of(&image("a"), &jdk(1), &spec("java -jar a", &tool)),
            of(&image("a"), &jdk(1), &spec("java -jar a", &[("CLASSPATH", "x")])),
        ];
        let elsewhere = "prod".parse().unwrap();
        others.push(Key::of(&elsewhere, &image("a"), &jdk(1), &spec("java -jar a", &[])));
        others.push(plain.clone());
        let count = others.len();
        others.sort();
        others.dedup();
        assert_eq!(others.len(), count);
        assert_eq!(plain.to_string().parse::<Key>().unwrap(), plain);
        assert!("../../etc".parse::<Key>().is_err());
    }
}
