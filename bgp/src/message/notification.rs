//! NOTIFICATION: why a session ended, RFC 4271 section 4.5, in words.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::reader::Reader;

/// Longest shutdown communication that we send: older receivers take no more
/// than 128 octets (RFC 8203), RFC 9003 allows 255.
const SHUTDOWN_TEXT: usize = 128;

/// A NOTIFICATION. Its `Display` is a sentence for people; text that the peer
/// chose is quoted and escaped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Error code (IANA "BGP Error (Notification) Codes").
    pub code: u8,
    /// Error subcode, 0 if unspecific.
    pub subcode: u8,
    /// What the code's RFC defines: the offending attribute, a length, a text.
    pub data: Vec<u8>,
}

impl Notification {
    /// Any code without data.
    pub fn new(code: u8, subcode: u8) -> Self {
        Self {
            code,
            subcode,
            data: Vec::new(),
        }
    }

    /// Any code with data.
    pub fn with_data(code: u8, subcode: u8, data: impl Into<Vec<u8>>) -> Self {
        Self {
            code,
            subcode,
            data: data.into(),
        }
    }

    /// Hold Timer Expired (RFC 4271 section 6.5).
    pub fn hold_timer_expired() -> Self {
        Self::new(4, 0)
    }

    /// Send Hold Timer Expired (RFC 9687).
    pub fn send_hold_timer_expired() -> Self {
        Self::new(8, 0)
    }

    /// Cease, Administrative Shutdown (RFC 4486), with a shutdown
    /// communication (RFC 9003) if there is a text. A text of more than 128
    /// octets is cut at a character.
    pub fn administrative_shutdown(text: Option<&str>) -> Self {
        let text = text.unwrap_or_default();
        let text = text
            .get(..text.floor_char_boundary(SHUTDOWN_TEXT))
            .unwrap_or_default();
        match u8::try_from(text.len()) {
            Ok(length) if length > 0 => {
                let mut data = vec![length];
                data.extend(text.as_bytes());
                Self::with_data(6, 2, data)
            }
            Ok(_) | Err(_) => Self::new(6, 2),
        }
    }

    /// Cease, Peer De-configured (RFC 4486).
    pub fn peer_deconfigured() -> Self {
        Self::new(6, 3)
    }

    /// Cease, Other Configuration Change (RFC 4486).
    pub fn configuration_change() -> Self {
        Self::new(6, 6)
    }

    /// Cease, Connection Collision Resolution (RFC 4486).
    pub fn collision() -> Self {
        Self::new(6, 7)
    }

    /// Cease, BFD Down (RFC 9384).
    pub fn bfd_down() -> Self {
        Self::new(6, 10)
    }

    /// Cease, Hard Reset (RFC 8538 section 3.1): the same reason, but routes
    /// are not kept for a graceful restart.
    pub fn hard(&self) -> Self {
        let mut data = vec![self.code, self.subcode];
        data.extend(&self.data);
        Self::with_data(6, 9, data)
    }

    /// The shutdown communication of RFC 9003, if this is a Cease that may
    /// carry one and its text is valid UTF-8 of the stated length.
    pub fn shutdown_communication(&self) -> Option<&str> {
        if self.code != 6 || !matches!(self.subcode, 2 | 4) {
            return None;
        }
        let mut reader = Reader::new(&self.data);
        let length = reader.u8()?;
        let text = std::str::from_utf8(reader.bytes(usize::from(length))?).ok()?;
        (!text.is_empty()).then_some(text)
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        Some(Self {
            code: reader.u8()?,
            subcode: reader.u8()?,
            data: reader.rest().to_vec(),
        })
    }

    pub(super) fn put(&self, context: super::Context, out: &mut Vec<u8>) {
        out.push(self.code);
        out.push(self.subcode);
        let room = context
            .max_len()
            .saturating_sub(super::HEADER_LEN)
            .saturating_sub(2);
        out.extend(self.data.iter().take(room));
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        words(f, self.code, self.subcode)?;
        if let Some(text) = self.shutdown_communication() {
            return write!(f, ", saying {text:?}");
        }
        if let (6, 9, [code, subcode, ..]) = (self.code, self.subcode, self.data.as_slice()) {
            write!(f, ", for ")?;
            words(f, *code, *subcode)?;
        }
        Ok(())
    }
}

fn words(f: &mut fmt::Formatter<'_>, code: u8, subcode: u8) -> fmt::Result {
    let name = match code {
        1 => "Message Header Error",
        2 => "OPEN Message Error",
        3 => "UPDATE Message Error",
        4 => "Hold Timer Expired",
        5 => "Finite State Machine Error",
        6 => "Cease",
        7 => "ROUTE-REFRESH Message Error",
        8 => "Send Hold Timer Expired",
        _ => "unknown error",
    };
    let detail = match (code, subcode) {
        (1, 1) => "Connection Not Synchronized",
        (1, 2) => "Bad Message Length",
        (1, 3) => "Bad Message Type",
        (2, 1) => "Unsupported Version Number",
        (2, 2) => "Bad Peer AS",
        (2, 3) => "Bad BGP Identifier",
        (2, 4) => "Unsupported Optional Parameter",
        (2, 6) => "Unacceptable Hold Time",
        (2, 7) => "Unsupported Capability",
        (2, 11) => "Role Mismatch",
        (3, 1) => "Malformed Attribute List",
        (3, 2) => "Unrecognized Well-known Attribute",
        (3, 3) => "Missing Well-known Attribute",
        (3, 4) => "Attribute Flags Error",
        (3, 5) => "Attribute Length Error",
        (3, 6) => "Invalid ORIGIN Attribute",
        (3, 8) => "Invalid NEXT_HOP Attribute",
        (3, 9) => "Optional Attribute Error",
        (3, 10) => "Invalid Network Field",
        (3, 11) => "Malformed AS_PATH",
        (5, 1) => "Unexpected Message in OpenSent",
        (5, 2) => "Unexpected Message in OpenConfirm",
        (5, 3) => "Unexpected Message in Established",
        (6, 1) => "Maximum Number of Prefixes Reached",
        (6, 2) => "Administrative Shutdown",
        (6, 3) => "Peer De-configured",
        (6, 4) => "Administrative Reset",
        (6, 5) => "Connection Rejected",
        (6, 6) => "Other Configuration Change",
        (6, 7) => "Connection Collision Resolution",
        (6, 8) => "Out of Resources",
        (6, 9) => "Hard Reset",
        (6, 10) => "BFD Down",
        (7, 1) => "Invalid Message Length",
        (_, 0) => return write!(f, "{name} (code {code})"),
        (_, _) => return write!(f, "{name} (code {code}, subcode {subcode})"),
    };
    write!(f, "{name}: {detail} (code {code}, subcode {subcode})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shutdown_text_survives_the_wire_and_is_quoted() {
        let sent = Notification::administrative_shutdown(Some("node drained\n"));
        assert_eq!(sent.shutdown_communication(), Some("node drained\n"));
        assert_eq!(
            sent.to_string(),
            "Cease: Administrative Shutdown (code 6, subcode 2), saying \"node drained\\n\""
        );
    }

    #[test]
    fn a_long_shutdown_text_is_cut_at_a_character() {
        let sent = Notification::administrative_shutdown(Some(&"é".repeat(100)));
        assert_eq!(sent.data.len(), 129);
        let sent = Notification::administrative_shutdown(Some(&format!("x{}", "é".repeat(100))));
        assert_eq!(sent.shutdown_communication().unwrap().len(), 127);
    }

    #[test]
    fn a_shutdown_text_that_lies_about_its_length_or_is_not_utf8_is_not_read() {
        for data in [vec![5, b'h', b'i'], vec![2, 0xff, 0xfe], vec![0], vec![]] {
            let notification = Notification::with_data(6, 2, data);
            assert_eq!(notification.shutdown_communication(), None);
            assert_eq!(
                notification.to_string(),
                "Cease: Administrative Shutdown (code 6, subcode 2)"
            );
        }
    }

    #[test]
    fn every_code_has_words_and_a_hard_reset_names_its_cause() {
        for code in 0..=255 {
            for subcode in 0..=255 {
                assert!(!Notification::new(code, subcode).to_string().is_empty());
            }
        }
        assert_eq!(
            Notification::with_data(6, 9, [6, 3]).to_string(),
            "Cease: Hard Reset (code 6, subcode 9), for Cease: Peer De-configured (code 6, subcode 3)"
        );
        assert_eq!(
            Notification::new(99, 7).to_string(),
            "unknown error (code 99, subcode 7)"
        );
        assert_eq!(
            Notification::hold_timer_expired().to_string(),
            "Hold Timer Expired (code 4)"
        );
    }
}
