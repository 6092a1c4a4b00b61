//! What each fuzz target does with its input. The tests of `bellrock-bfd`
//! replay the corpus through the same functions.

mod script;

use bellrock_bfd::packet::{Control, LENGTH};

/// A datagram: what is understood is written as it was read.
pub fn packet(data: &[u8]) {
    let Ok(decoded) = Control::decode(data) else {
        return;
    };
    let written = decoded.control.encode();
    let again = Control::decode(&written).map(|decoded| (decoded.control, decoded.authentication));
    assert_eq!(again, Ok((decoded.control, None)));
    assert_eq!(written[4..], data[4..LENGTH]);
}

/// A script of packets, changes and time for the sessions of one node.
pub fn engine(data: &[u8]) {
    script::run(data);
}
