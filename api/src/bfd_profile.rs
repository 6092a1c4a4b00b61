//! `BFDProfile`: timers for BFD sessions (RFC 5880).

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Timers and modes of BFD sessions. Times are in milliseconds.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "bellrock.dev",
    version = "v1beta1",
    kind = "BFDProfile",
    plural = "bfdprofiles",
    namespaced,
    derive = "PartialEq",
    category = "bellrock",
    doc = "Timers of the BFD sessions that watch BGP peers.",
    printcolumn(
        name = "Receive",
        type_ = "integer",
        json_path = ".spec.receiveInterval"
    ),
    printcolumn(
        name = "Transmit",
        type_ = "integer",
        json_path = ".spec.transmitInterval"
    ),
    printcolumn(
        name = "Multiplier",
        type_ = "integer",
        json_path = ".spec.detectMultiplier"
    ),
    printcolumn(name = "Passive", type_ = "boolean", json_path = ".spec.passiveMode"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct BFDProfileSpec {
    /// Shortest interval between control packets that this side can receive.
    #[serde(default = "interval")]
    #[schemars(range(min = 10, max = 60000))]
    pub receive_interval: u32,

    /// Shortest interval between control packets that this side wishes to send.
    #[serde(default = "interval")]
    #[schemars(range(min = 10, max = 60000))]
    pub transmit_interval: u32,

    /// How many missing packets end the session.
    #[serde(default = "multiplier")]
    #[schemars(range(min = 2, max = 255))]
    pub detect_multiplier: u8,

    /// Shortest interval between echo packets that this side can handle.
    #[serde(default = "echo")]
    #[schemars(range(min = 10, max = 60000))]
    pub echo_interval: u32,

    /// Send echo packets. Only for peers one hop away.
    #[serde(default)]
    pub echo_mode: bool,

    /// Send nothing until the peer does.
    #[serde(default)]
    pub passive_mode: bool,

    /// Lowest TTL or hop limit that is accepted, for peers more than one hop away (RFC 5883).
    #[serde(default = "ttl")]
    #[schemars(range(min = 1, max = 254))]
    pub minimum_ttl: u8,
}

impl Default for BFDProfileSpec {
    fn default() -> Self {
        Self {
            receive_interval: interval(),
            transmit_interval: interval(),
            detect_multiplier: multiplier(),
            echo_interval: echo(),
            echo_mode: false,
            passive_mode: false,
            minimum_ttl: ttl(),
        }
    }
}

fn interval() -> u32 {
    300
}

fn multiplier() -> u8 {
    3
}

fn echo() -> u32 {
    50
}

fn ttl() -> u8 {
    254
}
