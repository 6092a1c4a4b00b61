//! The codec against bytes written by hand, and against chance.

mod malformed;
mod wire;

use super::{Context, MARKER};

const EXTERNAL: Context = Context {
    four_octet_as: true,
    internal: false,
    ..Context::BEFORE_OPEN
};
const INTERNAL: Context = Context {
    four_octet_as: true,
    internal: true,
    ..Context::BEFORE_OPEN
};
const OLD: Context = Context {
    four_octet_as: false,
    internal: false,
    ..Context::BEFORE_OPEN
};

/// Octets from hexadecimal digits; spaces are for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).unwrap_or_else(|| panic!("{c:?} in {text}")))
        .collect();
    assert!(digits.len().is_multiple_of(2), "{text}");
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap())
        .collect()
}

/// A message with the right header for its body.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len() + 19).unwrap();
    let mut all = MARKER.to_vec();
    all.extend(length.to_be_bytes());
    all.push(kind);
    all.extend(body);
    all
}

/// An UPDATE from the hexadecimal of its attributes and its NLRI.
fn update(attributes: &str, nlri: &str) -> Vec<u8> {
    let attributes = hex(attributes);
    let mut body = vec![0, 0];
    body.extend(u16::try_from(attributes.len()).unwrap().to_be_bytes());
    body.extend(attributes);
    body.extend(hex(nlri));
    message(2, &body)
}
