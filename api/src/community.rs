//! `Community`: names for BGP communities, and how communities are written.

#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a public copy of the struct inside a function"
)]

use std::fmt;
use std::str::FromStr;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Aliases that a BGPAdvertisement may use in place of numbers.
#[derive(
    CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "bellrock.dev",
    version = "v1beta1",
    kind = "Community",
    plural = "communities",
    namespaced,
    derive = "PartialEq",
    category = "bellrock",
    doc = "Names for BGP communities.",
    printcolumn(
        name = "Names",
        type_ = "string",
        json_path = ".spec.communities[*].name"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CommunitySpec {
    /// The aliases; each name once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub communities: Vec<CommunityAlias>,
}

/// A name for a community.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CommunityAlias {
    /// The name, as BGPAdvertisements use it.
    #[schemars(
        length(min = 1, max = 64),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub name: String,

    /// The community: "64512:100", "large:64512:1:2", "rt:64512:100" or "soo:64512:100".
    #[schemars(length(min = 3, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]{1,5}:[0-9]{1,5}|large:[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}|(rt|soo):[0-9]{1,10}:[0-9]{1,10})$')").message("value must be ASN:VALUE, large:A:B:C, rt:ASN:VALUE or soo:ASN:VALUE"))]
    #[x_kube(validation = Rule::new("!self.matches('^[0-9]{1,5}:[0-9]{1,5}$') || self.split(':').all(n, int(n) <= 65535)").message("both halves of a standard community must be at most 65535"))]
    #[x_kube(validation = Rule::new("self.split(':').all(n, !n.matches('^[0-9]{1,10}$') || int(n) <= 4294967295)").message("each number must be at most 4294967295"))]
    pub value: String,
}

/// A BGP community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CommunityValue {
    /// `ASN:VALUE` (RFC 1997).
    Standard(u16, u16),
    /// `large:GLOBAL:LOCAL1:LOCAL2` (RFC 8092).
    Large(u32, u32, u32),
    /// `rt:ASN:VALUE` (RFC 4360, RFC 5668): a route target.
    RouteTarget(AsSpecific),
    /// `soo:ASN:VALUE` (RFC 4360, RFC 5668): a site of origin.
    SiteOfOrigin(AsSpecific),
}

/// The two numbers of an AS-specific extended community, in the layout that holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AsSpecific {
    /// Two octets of AS number, four of value (RFC 4360 3.1).
    TwoOctet(u16, u32),
    /// Four octets of AS number, two of value (RFC 5668).
    FourOctet(u32, u16),
}

/// Why a text is not a community.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommunityError {
    /// The text has none of the forms of a community.
    #[error(
        "{text:?} is not a community: write ASN:VALUE, large:A:B:C, rt:ASN:VALUE or soo:ASN:VALUE"
    )]
    Form {
        /// The text as given.
        text: String,
    },
    /// A number is too large for its place.
    #[error("a number in community {text:?} is too large")]
    Range {
        /// The text as given.
        text: String,
    },
}

impl FromStr for CommunityValue {
    type Err = CommunityError;

    fn from_str(text: &str) -> Result<Self, CommunityError> {
        let form = || CommunityError::Form {
            text: text.to_owned(),
        };
        let number = |part: &str| {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(form());
            }
            part.parse::<u32>().map_err(|_| CommunityError::Range {
                text: text.to_owned(),
            })
        };
        let half = |part: &str| {
            u16::try_from(number(part)?).map_err(|_| CommunityError::Range {
                text: text.to_owned(),
            })
        };
        let specific = |asn: &str, value: &str| {
            let (asn, value) = (number(asn)?, number(value)?);
            match (u16::try_from(asn), u16::try_from(value)) {
                (Ok(asn), _) => Ok(AsSpecific::TwoOctet(asn, value)),
                (Err(_), Ok(value)) => Ok(AsSpecific::FourOctet(asn, value)),
                (Err(_), Err(_)) => Err(CommunityError::Range {
                    text: text.to_owned(),
                }),
            }
        };
        let parts: Vec<&str> = text.split(':').collect();
        match parts.as_slice() {
            ["large", a, b, c] => Ok(Self::Large(number(a)?, number(b)?, number(c)?)),
            ["rt", asn, value] => Ok(Self::RouteTarget(specific(asn, value)?)),
            ["soo", asn, value] => Ok(Self::SiteOfOrigin(specific(asn, value)?)),
            [a, b] => Ok(Self::Standard(half(a)?, half(b)?)),
            _ => Err(form()),
        }
    }
}

impl fmt::Display for AsSpecific {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoOctet(asn, value) => write!(f, "{asn}:{value}"),
            Self::FourOctet(asn, value) => write!(f, "{asn}:{value}"),
        }
    }
}

impl fmt::Display for CommunityValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(a, b) => write!(f, "{a}:{b}"),
            Self::Large(a, b, c) => write!(f, "large:{a}:{b}:{c}"),
            Self::RouteTarget(numbers) => write!(f, "rt:{numbers}"),
            Self::SiteOfOrigin(numbers) => write!(f, "soo:{numbers}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_form_is_read_and_written_back() {
        for (text, value) in [
            ("64512:100", CommunityValue::Standard(64512, 100)),
            (
                "large:4200000000:1:2",
                CommunityValue::Large(4_200_000_000, 1, 2),
            ),
            (
                "rt:64512:70000",
                CommunityValue::RouteTarget(AsSpecific::TwoOctet(64512, 70000)),
            ),
            (
                "soo:4200000000:7",
                CommunityValue::SiteOfOrigin(AsSpecific::FourOctet(4_200_000_000, 7)),
            ),
        ] {
            assert_eq!(text.parse(), Ok(value), "{text}");
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn wrong_forms_and_large_numbers_are_told_apart() {
        for text in [
            "",
            "64512",
            "a:b",
            "1:2:3",
            "large:1:2",
            "large:1:2:3:4",
            ":",
            "1:-1",
            "ext:1:2",
        ] {
            assert_eq!(
                text.parse::<CommunityValue>(),
                Err(CommunityError::Form { text: text.into() }),
                "{text}"
            );
        }
        for text in [
            "65536:1",
            "1:65536",
            "large:4294967296:1:1",
            "rt:70000:70000",
        ] {
            assert_eq!(
                text.parse::<CommunityValue>(),
                Err(CommunityError::Range { text: text.into() }),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z0-9:]{0,30}") {
            if let Ok(value) = text.parse::<CommunityValue>() {
                prop_assert_eq!(value.to_string().parse::<CommunityValue>(), Ok(value));
            }
        }
    }
}
