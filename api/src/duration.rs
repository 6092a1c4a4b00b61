//! Durations as Kubernetes writes them: `90s`, `1m30s`, `1.5h`, `250ms`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Pattern of a duration in a schema. A superset of nothing that [`Duration`] refuses, except overflow.
pub(crate) const PATTERN: &str = r"^([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)){1,4}$";

/// A non-negative span of time, written as Go's `time.Duration` is: one or more decimal numbers,
/// each with a unit of `ms`, `s`, `m` or `h`. Resolution: one nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

/// Why a text is not a [`Duration`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid duration {text:?}: write numbers with units ms, s, m or h, such as \"90s\" or \"1m30s\""
)]
pub struct DurationError {
    /// The text as given.
    pub text: String,
}

impl Duration {
    /// A duration of whole seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// The duration as the standard library has it.
    #[must_use]
    pub const fn as_std(self) -> std::time::Duration {
        self.0
    }
}

impl From<std::time::Duration> for Duration {
    fn from(inner: std::time::Duration) -> Self {
        Self(inner)
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let bad = || DurationError {
            text: text.to_owned(),
        };
        if text.is_empty() {
            return Err(bad());
        }
        let mut nanos: u128 = 0;
        let mut rest = text;
        while !rest.is_empty() {
            let (whole, after) = split_digits(rest);
            if whole.is_empty() {
                return Err(bad());
            }
            let (fraction, after) = match after.strip_prefix('.') {
                Some(tail) => {
                    let (fraction, after) = split_digits(tail);
                    if fraction.is_empty() || fraction.len() > 9 {
                        return Err(bad());
                    }
                    (fraction, after)
                }
                None => ("", after),
            };
            let (unit, after) = strip_unit(after).ok_or_else(bad)?;
            let whole: u64 = whole.parse().map_err(|_| bad())?;
            // Nine digits at most: the numerator of a fraction of 10^9.
            let billionths: u128 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
            nanos += u128::from(whole) * unit + billionths * unit / 1_000_000_000;
            rest = after;
        }
        // u64 nanoseconds are 584 years.
        let nanos = u64::try_from(nanos).map_err(|_| bad())?;
        Ok(Self(std::time::Duration::from_nanos(nanos)))
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at(end)
}

/// The unit in nanoseconds, and what follows it.
fn strip_unit(text: &str) -> Option<(u128, &str)> {
    // "ms" before "m".
    const UNITS: [(&str, u128); 4] = [
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    UNITS
        .iter()
        .find_map(|(name, nanos)| text.strip_prefix(name).map(|after| (*nanos, after)))
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_secs();
        let (hours, minutes, seconds) = (total / 3600, total / 60 % 60, total % 60);
        let nanos = self.0.subsec_nanos();
        if total == 0 && nanos != 0 && nanos.is_multiple_of(1_000_000) {
            return write!(f, "{}ms", nanos / 1_000_000);
        }
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if minutes > 0 {
            write!(f, "{minutes}m")?;
        }
        if nanos > 0 {
            let fraction = format!("{nanos:09}");
            write!(f, "{seconds}.{}s", fraction.trim_end_matches('0'))
        } else if seconds > 0 || total == 0 {
            write!(f, "{seconds}s")
        } else {
            Ok(())
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "pattern": PATTERN,
            "x-kubernetes-validations": [{
                "rule": "duration(self) <= duration('87600h')",
                "message": "must be at most 87600h",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_usual_spellings_are_understood() {
        for (text, millis) in [
            ("0s", 0),
            ("90s", 90_000),
            ("1m30s", 90_000),
            ("3m", 180_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("0.25s", 250),
            ("1h0m0s", 3_600_000),
        ] {
            assert_eq!(
                text.parse::<Duration>().unwrap().as_std(),
                std::time::Duration::from_millis(millis),
                "{text}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused_with_a_hint() {
        for text in [
            "",
            "90",
            "s",
            "-1s",
            "1d",
            "1 s",
            "1.s",
            ".5s",
            "1s ",
            "99999999999999h",
            "１s",
        ] {
            let error = text.parse::<Duration>().unwrap_err();
            assert!(error.to_string().contains("such as"), "{text}");
        }
    }

    #[test]
    fn the_canonical_form_has_no_empty_parts() {
        for (text, canonical) in [
            ("90s", "1m30s"),
            ("3600s", "1h"),
            ("0ms", "0s"),
            ("0.5s", "500ms"),
            ("61.25s", "1m1.25s"),
        ] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), canonical);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in any::<u64>()) {
            let duration = Duration(std::time::Duration::from_nanos(nanos));
            prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<Duration>();
        }
    }
}
