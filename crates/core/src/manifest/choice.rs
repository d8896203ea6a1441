//! Fields that take one of a few words.

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::BadValue;
use super::suggest;
use crate::error::Code;

/// Declares a choice between words. The words are its form in YAML, JSON and messages.
macro_rules! choice {
    ($(#[$doc:meta])* $type:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        #[derive(Serialize, Deserialize, ToSchema, JsonSchema)]
        #[schemars(inline)]
        pub enum $type {
            $($(#[$word_doc])* #[serde(rename = $word)] $variant,)+
        }

        impl $type {
            /// Every word, in the order of this declaration.
            pub const WORDS: &'static [&'static str] = &[$($word,)+];

            /// The word a person writes.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl FromStr for $type {
            type Err = BadValue;

            fn from_str(text: &str) -> Result<Self, BadValue> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(bad_choice(Self::WORDS, text)),
                }
            }
        }
    };
}

fn bad_choice(words: &[&str], text: &str) -> BadValue {
    let expected = match words {
        [start @ .., last] if !start.is_empty() => format!("{} or {last}", start.join(", ")),
        _ => words.concat(),
    };
    let near = suggest::nearest(text, words.iter().copied());
    BadValue::text(Code::ManifestChoice, expected, text).nearest(near)
}

choice!(
    /// What an App speaks on its HTTP port.
    Protocol {
        /// HTTP/1.1, WebSocket included.
        #[default]
        Http1 = "http1",
        /// HTTP/2 without TLS, as gRPC servers speak it.
        H2c = "h2c",
    }
);
choice!(
    /// How an Instance changes from one Release to the next.
    Strategy {
        /// The new Container starts beside the old one and takes over when it is ready. An App
        /// that cannot run twice changes in place instead, and says why.
        #[default]
        Handover = "handover",
        /// The old Container stops, then the new one starts in the same Sandbox; requests
        /// wait meanwhile where no other Instance can take them.
        InPlace = "in-place",
        /// A new Sandbox with a new address.
        Recreate = "recreate",
    }
);
choice!(
    /// Which Instances change first.
    Order {
        /// From the highest ordinal down.
        #[default]
        Descending = "descending",
        /// From the lowest ordinal up.
        Ascending = "ascending",
        /// Far apart from each other.
        Scatter = "scatter",
    }
);
choice!(
    /// How strongly Instances are kept apart.
    Isolation {
        /// By namespaces of the Linux kernel, with a user namespace and a seccomp filter.
        #[default]
        Process = "process",
        /// By a kernel in user space.
        Gvisor = "gvisor",
        /// By a virtual machine.
        Vm = "vm",
    }
);
choice!(
    /// Whether starts of a Java program are sped up by an archive of its classes.
    JvmArchive {
        /// Recorded by a copy of the App that gets no requests, after its first healthy start,
        /// and used where it was measured to be faster. Not of an App that changes in place or
        /// has a volume that is not shared: a second copy might do harm.
        #[default]
        Auto = "auto",
        /// Recorded whatever the App is. The copy sees empty volumes instead of the App's.
        On = "on",
        /// Never.
        Off = "off",
    }
);
choice!(
    /// What the threads of a Java program are.
    JvmThreads {
        /// Threads of the operating system, unless the program says otherwise.
        #[default]
        Platform = "platform",
        /// Virtual threads for requests: Spring Boot 3.2 or later on Java 21 or later.
        Virtual = "virtual",
        /// Coroutines for all threads: Wisp, on Alibaba Dragonwell 8, 11 or 17.
        Wisp = "wisp",
    }
);
choice!(
    /// Whether a Container that ended by itself is started again, with a growing pause.
    RestartPolicy {
        /// Whatever its exit code.
        #[default]
        Always = "always",
        /// Only if it failed: an exit code other than 0, or a signal.
        OnFailure = "on-failure",
        /// Not at all.
        Never = "never",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_json_agree() {
        for word in Strategy::WORDS {
            let strategy: Strategy = word.parse().unwrap();
            assert_eq!(strategy.word(), *word);
            assert_eq!(serde_json::to_value(strategy).unwrap(), *word);
        }
        let bad = "inplace".parse::<Strategy>().unwrap_err();
        assert_eq!(bad.nearest.as_deref(), Some("in-place"));
        assert_eq!(bad.expected, "handover, in-place or recreate");
    }
}
