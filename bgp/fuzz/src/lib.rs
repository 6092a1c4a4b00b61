//! What each fuzz target does with its input. The tests of `bellrock-bgp`
//! replay the corpus through the same functions.

mod script;

use bellrock_bgp::message::{Context, Decoder, Message};

/// The context that a byte stands for.
fn context(bits: u8) -> Context {
    Context {
        four_octet_as: bits & 1 != 0,
        internal: bits & 2 != 0,
        extended: bits & 4 != 0,
        ipv6_next_hop: bits & 8 != 0,
    }
}

/// A stream of octets, after two bytes that say how it is read and in what
/// pieces. What is understood without a fault, and written, reads as the same.
pub fn message(data: &[u8]) {
    let [bits, piece, stream @ ..] = data else {
        return;
    };
    let context = context(*bits);
    let whole = decode(context, stream, stream.len().max(1));
    let pieces = decode(context, stream, usize::from(*piece).max(1));
    assert_eq!(whole, pieces, "pieces make no difference");
}

fn decode(context: Context, stream: &[u8], piece: usize) -> Vec<String> {
    let mut decoder = Decoder::default();
    let mut read = Vec::new();
    for octets in stream.chunks(piece) {
        decoder.push(octets);
        while let Some(next) = decoder.next(context) {
            read.push(format!("{next:?}"));
            match next {
                Ok(message) => again(&message, context),
                Err(notification) => {
                    // It is what the peer is told, so it can be written.
                    let mut out = Vec::new();
                    let told = Message::Notification(notification);
                    assert_eq!(told.encode(context, &mut out), Ok(()));
                    return read;
                }
            }
        }
    }
    read
}

fn again(message: &Message, context: Context) {
    if let Message::Update(update) = message
        && !update.faults.is_empty()
    {
        return;
    }
    let mut out = vec![0];
    if message.encode(context, &mut out).is_err() {
        assert_eq!(out, [0], "what does not fit leaves nothing behind");
        return;
    }
    assert!(out.len() <= 1 + context.max_len());
    let Ok(reread) = Message::decode(&out[1..], context) else {
        panic!("what was written cannot be read: {message:?}");
    };
    // Not the same in every octet: attributes that mean nothing to us are not
    // kept. But what is written of it is settled.
    let mut once_more = vec![0];
    assert_eq!(reread.encode(context, &mut once_more), Ok(()));
    assert_eq!(out, once_more);
}

/// A script of connections, messages, routes and time for one peer.
pub fn session(data: &[u8]) {
    script::run(data);
}
