//! Options for a Java virtual machine: those that the person gave, and those that stead adds.
//!
//! Pure. Promises: what the person says anywhere (in the command, `JAVA_TOOL_OPTIONS`,
//! `JDK_JAVA_OPTIONS`, `_JAVA_OPTIONS`) is never contradicted, and what cannot be read is taken
//! to say something. Options are added in front of the person's own.

use stead_core::fleet::ArchiveKind;

use crate::sandbox::Resources;

/// Where the archive is in a Container. A folder of its own: it is mounted.
pub(crate) const PLACE: &str = "/.stead/jvm";

/// Variables that hold options.
pub(crate) const VARIABLES: [&str; 3] = ["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"];

/// Options whose value is the next argument.
const WITH_VALUE: [&str; 14] = [
    "-cp",
    "-classpath",
    "--class-path",
    "-p",
    "--module-path",
    "--upgrade-module-path",
    "--add-modules",
    "--limit-modules",
    "--enable-native-access",
    "--add-exports",
    "--add-opens",
    "--add-reads",
    "--patch-module",
    "--source",
];

/// Below this the virtual machine itself takes the serial collector: it is no "server" (see
/// `os::is_server_class_machine` in HotSpot).
const SERVER_MEMORY: u64 = 1792 << 20;

/// What the virtual machine needs beside its heap, whatever the App: classes, code, threads.
const BESIDE_HEAP: u64 = 160 << 20;

/// What the person's own options say about the things that stead has an opinion on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Own {
    heap: bool,
    collector: bool,
    processors: bool,
    archive: bool,
    /// An agent may change classes while they are loaded.
    agent: bool,
    /// Some stand in a file.
    hidden: bool,
}

impl Own {
    /// Reads the arguments (without the program) and the variables.
    pub(crate) fn read<'a>(
        arguments: impl IntoIterator<Item = &'a str>,
        variables: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut own = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            // The program and its own arguments follow.
            if !argument.starts_with(['-', '@']) || matches!(argument, "-jar" | "-m" | "--module") {
                break;
            }
            own.take(argument);
            if WITH_VALUE.contains(&argument) {
                arguments.next();
            }
        }
        for value in variables {
            value.split_whitespace().for_each(|word| own.take(word.trim_matches(['"', '\''])));
        }
        own
    }

    fn take(&mut self, option: &str) {
        let starts = |words: &[&str]| words.iter().any(|word| option.starts_with(word));
        self.hidden |= starts(&["@", "-XX:Flags=", "-XX:VMOptionsFile="]);
        self.agent |= starts(&["-javaagent", "-agentlib", "-agentpath", "-Xrun", "-Xdebug"]);
        self.archive |= starts(&[
            "-Xshare",
            "-XX:SharedArchiveFile=",
            "-XX:SharedClassListFile=",
            "-XX:ArchiveClassesAtExit=",
            "-XX:+AutoCreateSharedArchive",
            "-XX:-UseSharedSpaces",
            "-XX:DumpLoadedClassList=",
            "-XX:AOT",
            "-XX:CRaC",
        ]);
        let sizes = ["MaxHeapSize", "InitialHeapSize", "MinHeapSize", "NewSize", "MaxNewSize"];
        self.heap |= starts(&["-Xmx", "-Xms", "-Xmn", "-XX:MaxRAM", "-XX:+AggressiveHeap"])
            || sizes
                .iter()
                .any(|size| option.strip_prefix("-XX:").is_some_and(|rest| rest.starts_with(size)))
            || starts(&["-XX:InitialRAM", "-XX:MinRAM", "-XX:DefaultMaxRAM"]);
        self.processors |= starts(&["-XX:ActiveProcessorCount=", "-XX:+UseContainerCpuShares"]);
        // All of them are called Use…GC.
        self.collector |= option.starts_with("-XX:+Use") && option.ends_with("GC");
    }

    /// Why an archive of ours is not for these options.
    pub(crate) fn forbid_archive(self) -> Option<&'static str> {
        if self.hidden {
            Some("its options stand in a file, which is not read")
        } else if self.archive {
            Some("its own options say what it starts from")
        } else if self.agent {
            Some("it has an agent, which may change its classes")
        } else {
            None
        }
    }
}

/// Heap, processors and collector for what a Container may use. Without a limit the virtual
/// machine's own choice, which is for a machine, is right.
///
/// All is said aloud, because not every version sees its limits: Java 17 wants a v1 hierarchy of
/// `cpuset` on a hybrid host, and sees none at all where a Container has not got one.
pub(crate) fn defaults(own: Own, limits: &Resources) -> Vec<String> {
    let mut options = Vec::new();
    if own.hidden {
        return options;
    }
    if let (false, Some(memory)) = (own.heap, limits.memory_bytes) {
        // Three quarters, but in a small Container at least what it needs beside, up to half.
        let beside = (memory / 4).max(BESIDE_HEAP.min(memory / 2));
        options.push(format!("-Xmx{}m", ((memory - beside) >> 20).max(2)));
    }
    if let (false, Some(cpu)) = (own.processors, limits.cpu_millis) {
        options.push(format!("-XX:ActiveProcessorCount={}", cpu.div_ceil(1000).max(1)));
    }
    // What it chooses itself where it sees its limits.
    let small_memory = limits.memory_bytes.map(|memory| memory < SERVER_MEMORY);
    let few_processors = limits.cpu_millis.map(|cpu| cpu <= 1000);
    let serial = small_memory == Some(true) || few_processors == Some(true);
    if !own.collector && serial {
        options.push("-XX:+UseSerialGC".into());
    }
    options
}

/// What the archive is called in its folder.
pub(crate) fn file_name(kind: ArchiveKind) -> &'static str {
    match kind {
        ArchiveKind::AppCds => "app.jsa",
        ArchiveKind::AotCache => "app.aot",
    }
}

fn file(kind: ArchiveKind) -> String {
    format!("{PLACE}/{}", file_name(kind))
}

/// Options of a start that uses the archive. One that does not fit is left aside without a word:
/// the probe of a mapping says so to us, and the App's output is the App's.
pub(crate) fn using(kind: ArchiveKind) -> Vec<String> {
    let file = file(kind);
    match kind {
        ArchiveKind::AppCds => vec![
            format!("-XX:SharedArchiveFile={file}"),
            "-Xlog:cds=off".into(),
            "-Xlog:cds+dynamic=off".into(),
        ],
        ArchiveKind::AotCache => {
            vec![format!("-XX:AOTCache={file}"), "-Xlog:aot=off".into(), "-Xlog:cds=off".into()]
        }
    }
}

/// Options of the start whose classes are written down at its end.
pub(crate) fn recording(kind: ArchiveKind) -> Vec<String> {
    match kind {
        ArchiveKind::AppCds => vec![format!("-XX:ArchiveClassesAtExit={}", file(kind))],
        ArchiveKind::AotCache => {
            vec!["-XX:AOTMode=record".into(), format!("-XX:AOTConfiguration={PLACE}/app.conf")]
        }
    }
}

/// Options of the run that makes the archive of what was written down, where that is a run of its
/// own. (The virtual machine could start it by itself, but through a shell, which an image need
/// not have.)
pub(crate) fn assembling(kind: ArchiveKind) -> Option<Vec<String>> {
    match kind {
        ArchiveKind::AppCds => None,
        ArchiveKind::AotCache => Some(vec![
            "-XX:AOTMode=create".into(),
            format!("-XX:AOTConfiguration={PLACE}/app.conf"),
            format!("-XX:AOTCache={}", file(kind)),
        ]),
    }
}

/// Puts options in front of the person's own.
pub(crate) fn insert(argv: &mut Vec<String>, options: impl IntoIterator<Item = String>) {
    let place = argv.len().min(1);
    argv.splice(place..place, options);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(command: &str) -> Own {
        Own::read(command.split(' '), [])
    }

    #[test]
    fn options_of_the_person_are_read_up_to_the_program() {
        assert_eq!(own("-jar app.jar -Xmx1g"), Own::default());
        assert_eq!(own("-cp a.jar:b.jar Main @x -Xmx1g"), Own::default());
        assert_eq!(own("-cp -Xmx1g Main"), Own::default(), "the class path is called so");
        assert!(own("-Dx=y -Xmx1g -jar a.jar").heap);
        assert!(own("--add-opens java.base/java.lang=ALL-UNNAMED -XX:+UseZGC Main").collector);
        assert!(!own("-XX:+UseStringDeduplication -jar a.jar").collector);
        assert!(own("@options -jar a.jar").hidden);
        assert!(own("-XX:AOTCache=x -jar a.jar").archive && own("-Xshare:off Main").archive);
        let variables = Own::read(["-jar", "a.jar"], ["-Dx=1 \"-javaagent:/a b.jar\"", "-Xms8m"]);
        assert!(variables.agent && variables.heap && !variables.collector);
    }

    #[test]
    fn the_heap_leaves_room_for_the_rest() {
        let heap = |mib: u64| {
            let limits = Resources { memory_bytes: Some(mib << 20), ..Resources::default() };
            defaults(Own::default(), &limits)
        };
        assert_eq!(heap(4096), ["-Xmx3072m"]);
        assert_eq!(heap(1024), ["-Xmx768m", "-XX:+UseSerialGC"]);
        assert_eq!(heap(512), ["-Xmx352m", "-XX:+UseSerialGC"]);
        assert_eq!(heap(256), ["-Xmx128m", "-XX:+UseSerialGC"]);
        assert_eq!(heap(4)[0], "-Xmx2m");
    }

    #[test]
    fn nothing_is_added_where_the_person_decided_or_nothing_is_limited() {
        let none: [String; 0] = [];
        assert_eq!(defaults(Own::default(), &Resources::default()), none);
        let limits = Resources {
            memory_bytes: Some(512 << 20),
            cpu_millis: Some(500),
            ..Resources::default()
        };
        let one = "-XX:ActiveProcessorCount=1";
        assert_eq!(defaults(own("-Xmx64m -jar a"), &limits), [one, "-XX:+UseSerialGC"]);
        assert_eq!(defaults(own("-XX:+UseG1GC -jar a"), &limits), ["-Xmx352m", one]);
        // An initial size above our maximum would keep it from starting.
        let own_heap = own("-Xms400m -XX:+UseG1GC -XX:ActiveProcessorCount=2 Main");
        assert_eq!(defaults(own_heap, &limits), none);
        assert_eq!(defaults(own("@file"), &limits), none);
        let much = Resources {
            memory_bytes: Some(4 << 30),
            cpu_millis: Some(1001),
            ..Resources::default()
        };
        assert_eq!(defaults(own("-Xmx1g Main"), &much), ["-XX:ActiveProcessorCount=2"]);
    }

    #[test]
    fn options_stand_before_those_of_the_person() {
        let mut argv: Vec<String> = ["java", "-jar", "a.jar"].map(str::to_owned).into();
        insert(&mut argv, using(ArchiveKind::AotCache));
        assert_eq!(argv[1], "-XX:AOTCache=/.stead/jvm/app.aot");
        assert_eq!(argv[argv.len() - 2..], ["-jar", "a.jar"]);
    }

    #[test]
    fn some_options_leave_no_place_for_an_archive() {
        assert_eq!(own("-jar a.jar").forbid_archive(), None);
        for said in ["@x Main", "-Xshare:auto Main", "-agentlib:jdwp=transport=x Main"] {
            assert!(own(said).forbid_archive().is_some(), "{said}");
        }
    }
}
