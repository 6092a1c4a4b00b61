//! Pairs of octets and structs, and what is discarded in which order.

use proptest::prelude::*;

use super::*;

fn n(value: u32) -> Discriminator {
    NonZeroU32::new(value).unwrap()
}

fn up() -> Control {
    Control {
        diagnostic: Diagnostic::None,
        state: State::Up,
        poll: false,
        final_answer: false,
        control_plane_independent: false,
        demand: false,
        multiplier: NonZeroU8::new(3).unwrap(),
        my_discriminator: n(0x0102_0304),
        your_discriminator: Some(n(0xa1a2_a3a4)),
        desired_min_tx: 50_000,
        required_min_rx: 300_000,
        required_min_echo_rx: 0,
    }
}

/// Written by hand after the picture in RFC 5880 section 4.1.
const UP: [u8; 24] = [
    0x20, 0xc0, 3, 24, 1, 2, 3, 4, 0xa1, 0xa2, 0xa3, 0xa4, 0, 0, 0xc3, 0x50, 0, 4, 0x93, 0xe0, 0,
    0, 0, 0,
];

fn with(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut octets = UP.to_vec();
    for (at, value) in changes {
        octets[*at] = *value;
    }
    octets
}

#[test]
fn hand_written_octets_and_structs_are_the_same_both_ways() {
    let pairs = [
        (UP.to_vec(), up()),
        (
            // Diag 7, AdminDown, P, Your Discriminator 0.
            with(&[(0, 0x27), (1, 0x20), (8, 0), (9, 0), (10, 0), (11, 0)]),
            Control {
                diagnostic: Diagnostic::AdministrativelyDown,
                state: State::AdminDown,
                poll: true,
                your_discriminator: None,
                ..up()
            },
        ),
        (
            // Diag 1, Down, F, C, D.
            with(&[(0, 0x21), (1, 0x5a)]),
            Control {
                diagnostic: Diagnostic::ControlDetectionTimeExpired,
                state: State::Down,
                final_answer: true,
                control_plane_independent: true,
                demand: true,
                ..up()
            },
        ),
        (
            // A reserved Diag, Init, multiplier 255, Echo 1 s.
            with(&[
                (0, 0x3f),
                (1, 0x80),
                (2, 255),
                (21, 0x0f),
                (22, 0x42),
                (23, 0x40),
            ]),
            Control {
                diagnostic: Diagnostic::Other(31),
                state: State::Init,
                multiplier: NonZeroU8::MAX,
                required_min_echo_rx: 1_000_000,
                ..up()
            },
        ),
    ];
    for (octets, control) in pairs {
        let decoded = Control::decode(&octets).unwrap();
        assert_eq!(decoded.control, control);
        assert_eq!(decoded.authentication, None);
        assert_eq!(control.encode().as_slice(), octets);
    }
}

#[test]
fn each_check_of_the_rfc_has_its_kind_and_the_first_that_fails_counts() {
    // Each datagram fails all checks after the one that it is named for, too.
    let version = [0x00, 0x05, 0, 23, 0, 0, 0, 0];
    let short = [0x20, 0x05, 0, 25, 0, 0, 0, 0];
    let beyond = [0x20, 0x05, 0, 27, 0, 0, 0, 0];
    let zeros = |head: [u8; 4]| [head.as_slice(), &[0; 20]].concat();
    let cases = [
        (version.to_vec(), Discard::Version),
        (short.to_vec(), Discard::LengthShort),
        (beyond.to_vec(), Discard::LengthBeyond),
        (zeros([0x20, 0x01, 0, 24]), Discard::Multiplier),
        (zeros([0x20, 0x01, 1, 24]), Discard::Multipoint),
        (zeros([0x20, 0x00, 1, 24]), Discard::MyDiscriminator),
    ];
    for (octets, discard) in cases {
        assert_eq!(Control::decode(&octets), Err(discard), "{octets:02x?}");
    }
}

#[test]
fn versions_0_and_2_to_7_are_discarded() {
    for version in (0..8).filter(|version| *version != 1) {
        let octets = with(&[(0, version << 5)]);
        assert_eq!(Control::decode(&octets), Err(Discard::Version), "{version}");
    }
}

#[test]
fn a_length_below_the_minimum_or_beyond_the_datagram_is_discarded() {
    for length in 0..24 {
        let octets = with(&[(3, length)]);
        assert_eq!(Control::decode(&octets), Err(Discard::LengthShort));
    }
    for length in 25..=255 {
        let octets = with(&[(3, length)]);
        assert_eq!(Control::decode(&octets), Err(Discard::LengthBeyond));
    }
    // What is cut off before Length has none; later, Length says more.
    for cut in 0..24 {
        let discard = if cut < 4 {
            Discard::LengthShort
        } else {
            Discard::LengthBeyond
        };
        assert_eq!(Control::decode(&UP[..cut]), Err(discard), "{cut}");
    }
    // An authentication section needs two octets more.
    for (length, expected) in [
        (24, Err(Discard::LengthShort)),
        (25, Err(Discard::LengthShort)),
        (26, Ok(Some(4))),
        (28, Ok(Some(4))),
        (29, Err(Discard::LengthBeyond)),
    ] {
        let mut octets = with(&[(1, 0xc4), (3, length)]);
        octets.extend([4, 28, 1, 0]);
        let found = Control::decode(&octets).map(|decoded| decoded.authentication);
        assert_eq!(found, expected, "{length}");
    }
}

#[test]
fn octets_beyond_length_are_ignored() {
    let mut octets = UP.to_vec();
    octets.extend([9; 40]);
    assert_eq!(Control::decode(&octets).unwrap().control, up());
}

#[test]
fn every_kind_of_discard_is_listed_once_in_order_with_a_name_of_its_own() {
    let sorted: std::collections::BTreeSet<_> = Discard::ALL.into_iter().collect();
    assert!(sorted.into_iter().eq(Discard::ALL));
    let names: std::collections::BTreeSet<_> =
        Discard::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(names.len(), Discard::ALL.len());
}

proptest! {
    #[test]
    fn no_octets_panic_and_what_decodes_is_written_as_it_was(
        mut octets in proptest::collection::vec(any::<u8>(), 0..64),
        plausible in any::<bool>(),
    ) {
        if plausible && octets.len() >= 4 {
            octets[0] = 0x20 | octets[0] & 0x1f;
            octets[3] = 24 + octets[3] % 8;
        }
        if let Ok(decoded) = Control::decode(&octets) {
            let written = decoded.control.encode();
            prop_assert_eq!(&written[4..], &octets[4..24]);
            prop_assert_eq!(written[0], octets[0]);
            prop_assert_eq!(written[1], octets[1] & !AUTHENTICATION);
            prop_assert_eq!(decoded.authentication.is_some(), octets[1] & AUTHENTICATION != 0);
        }
    }
}
