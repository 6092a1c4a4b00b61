//! What a peer must not send, and the answer that the RFCs ask for. The bytes
//! are written from the RFCs and from published descriptions of messages that
//! broke other implementations.

use super::*;
use crate::message::*;

const GOOD: &str = "400101 00 400206 0201 0000fc01 400304 c0000202";
const NLRI: &str = "20 c6336401";
const OPEN: &str = "04 fc00 005a c0000201";

fn answer(octets: &[u8], context: Context) -> Notification {
    match Message::decode(octets, context) {
        Err(answer) => answer,
        Ok(message) => panic!("{octets:02x?} was taken as {message:?}"),
    }
}

#[test]
fn a_bad_header_is_answered_with_code_1() {
    let mut first = message(4, &[]);
    first[0] = 0xfe;
    let mut last = message(4, &[]);
    last[15] = 0;
    let header = |length: u16, kind: u8| {
        let mut octets = MARKER.to_vec();
        octets.extend(length.to_be_bytes());
        octets.push(kind);
        octets
    };
    for (octets, subcode, data) in [
        (first, 1, vec![]),
        (last, 1, vec![]),
        (header(0, 4), 2, vec![0, 0]),
        (header(18, 4), 2, vec![0, 18]),
        (header(4097, 2), 2, vec![0x10, 0x01]),
        (header(65535, 2), 2, vec![0xff, 0xff]),
        (header(20, 4), 2, vec![0, 20]),
        (header(28, 1), 2, vec![0, 28]),
        (header(22, 2), 2, vec![0, 22]),
        (header(20, 3), 2, vec![0, 20]),
        (header(19, 0), 3, vec![0]),
        (header(19, 6), 3, vec![6]),
        (header(4096, 255), 3, vec![255]),
    ] {
        let mut decoder = Decoder::default();
        decoder.push(&octets);
        let expected = Notification::with_data(1, subcode, data);
        // The header alone is enough to know.
        assert_eq!(decoder.next(EXTERNAL), Some(Err(expected)), "{octets:02x?}");
    }
}

#[test]
fn a_wrong_marker_is_seen_at_its_first_octet() {
    let mut decoder = Decoder::default();
    decoder.push(b"H");
    assert_eq!(decoder.next(EXTERNAL), Some(Err(Notification::new(1, 1))));
}

#[test]
fn a_route_refresh_of_the_wrong_length_is_answered_with_the_whole_message() {
    for body in [
        "",
        "0001 00",
        "0001 00 01 00",
        "0001 00 01 01 40 0003 01 20",
    ] {
        let octets = message(5, &hex(body));
        assert_eq!(
            answer(&octets, EXTERNAL),
            Notification::with_data(7, 1, octets)
        );
    }
}

#[test]
fn a_bad_open_is_answered_with_code_2() {
    for (why, body, subcode, data) in [
        ("version 3", "03 fc00 005a c0000201 00", 1, vec![0, 4]),
        ("version 5", "05 fc00 005a c0000201 00", 1, vec![0, 4]),
        ("AS 0", "04 0000 005a c0000201 00", 2, vec![]),
        (
            "AS 0 in capability 65",
            "04 fc00 005a c0000201 08 02 06 4104 00000000",
            2,
            vec![],
        ),
        ("hold time 1", "04 fc00 0001 c0000201 00", 6, vec![0, 1]),
        ("hold time 2", "04 fc00 0002 c0000201 00", 6, vec![0, 2]),
        (
            "identifier 0",
            "04 fc00 005a 00000000 00",
            3,
            vec![0, 0, 0, 0],
        ),
        (
            "parameters longer than the message",
            "04 fc00 005a c0000201 02",
            0,
            vec![],
        ),
        (
            "parameters shorter than the message",
            "04 fc00 005a c0000201 00 0200",
            0,
            vec![],
        ),
        (
            "one octet for 107 (CVE-2022-43681)",
            "04 fc00 005a c0000201 6b ff",
            0,
            vec![],
        ),
        (
            "extended, 1 of 2 octets (CVE-2022-40302)",
            "04 fc00 005a c0000201 ff ff 00 02 00 01",
            0,
            vec![],
        ),
        (
            "extended without a length",
            "04 fc00 005a c0000201 ff ff",
            0,
            vec![],
        ),
        (
            "extended with half a length",
            "04 fc00 005a c0000201 ff ff 00",
            0,
            vec![],
        ),
        (
            "extended, parameter past the end",
            "04 fc00 005a c0000201 ff ff 0004 02 0009 00",
            0,
            vec![],
        ),
        (
            "authentication parameter",
            "04 fc00 005a c0000201 03 01 01 00",
            4,
            vec![],
        ),
        (
            "unknown parameter",
            "04 fc00 005a c0000201 02 7f 00",
            4,
            vec![],
        ),
        (
            "parameter without a length",
            "04 fc00 005a c0000201 01 02",
            0,
            vec![],
        ),
        (
            "parameter past the end",
            "04 fc00 005a c0000201 04 02 09 0200",
            0,
            vec![],
        ),
        (
            "capability past its parameter",
            "04 fc00 005a c0000201 04 02 02 4104",
            0,
            vec![],
        ),
        (
            "capability without a length",
            "04 fc00 005a c0000201 03 02 01 41",
            0,
            vec![],
        ),
        (
            "four-octet AS of no octets (GHSA-gjrg-jjr3-56cm)",
            "04 fc00 005a c0000201 0a 02 08 4100 0104 00010001",
            0,
            vec![],
        ),
        (
            "multiprotocol of 3 octets",
            "04 fc00 005a c0000201 07 02 05 0103 000100",
            0,
            vec![],
        ),
        (
            "route refresh with a value",
            "04 fc00 005a c0000201 05 02 03 0201 00",
            0,
            vec![],
        ),
    ] {
        let octets = message(1, &hex(body));
        assert_eq!(
            answer(&octets, EXTERNAL),
            Notification::with_data(2, subcode, data),
            "{why}"
        );
    }
}

#[test]
fn capabilities_that_are_not_ours_are_ignored_whatever_they_hold() {
    for (why, capabilities) in [
        (
            "long-lived graceful restart of 3 octets (CVE-2023-31489)",
            "4703 000101",
        ),
        (
            "software version longer than its capability (CVE-2025-43971)",
            "4b07 0a 000000000000",
        ),
        ("software version of no octets", "4b00"),
        ("FQDN longer than its capability", "4903 ff 61 62"),
        ("graceful restart of 1 octet", "4001 00"),
        ("extended messages with a value", "0602 0000"),
    ] {
        let value = hex(capabilities);
        let length = u8::try_from(value.len()).unwrap();
        let mut body = hex(OPEN);
        body.extend([length + 2, 2, length]);
        body.extend(value);
        let decoded = Message::decode(&message(1, &body), EXTERNAL);
        assert!(
            matches!(decoded, Ok(Message::Open(_))),
            "{why}: {decoded:?}"
        );
    }
}

#[test]
fn an_update_that_cannot_be_told_apart_is_answered_with_code_3() {
    let raw = |body: &str| message(2, &hex(body));
    let reach = |value: &str| {
        let length = hex(value).len();
        (
            format!("800e {length:02x} {value}"),
            hex(&format!("800e {length:02x} {value}")),
        )
    };
    let unrecognised = hex("40c8 01 00");
    let bad_origin = hex("400101 03");
    for (why, octets, subcode, data) in [
        (
            "withdrawn longer than the message",
            raw("0005 0000"),
            1,
            vec![],
        ),
        (
            "attributes longer than the message",
            raw("0000 0005 400101"),
            1,
            vec![],
        ),
        ("attributes' length missing", raw("0002 0800"), 1, vec![]),
        ("withdrawn /33", raw("0006 21 c633640100 0000"), 10, vec![]),
        (
            "withdrawn past its field (CVE-2026-37462)",
            raw("0002 20 c6 0000"),
            10,
            vec![],
        ),
        ("/33", update(GOOD, "21 c633640100"), 10, vec![]),
        ("/255", update(GOOD, "ff c6336401"), 10, vec![]),
        ("prefix past the end", update(GOOD, "20 c63364"), 10, vec![]),
        (
            "path id without add-path",
            update(GOOD, "00000001 20 c6336401 ff"),
            10,
            vec![],
        ),
        (
            "two MP_REACH_NLRI",
            {
                let one = reach("0002 01 10 20010db8000000000000000000000001 00").0;
                update(&format!("{one}{one}"), "")
            },
            1,
            vec![],
        ),
        (
            "two MP_UNREACH_NLRI",
            update("800f03 000201 800f03 000201", ""),
            1,
            vec![],
        ),
        (
            "unrecognized well-known (CVE-2026-41642)",
            update(&format!("{GOOD} 40c8 01 00"), NLRI),
            2,
            unrecognised,
        ),
        (
            "ORIGIN claims 32 octets, no route (FRR 22563)",
            update("400120 00", ""),
            1,
            vec![],
        ),
        ("ORIGIN 3, no route", update("400101 03", ""), 6, bad_origin),
        (
            "AS_PATH past its end, no route",
            update("400206 0202 0000fc00", ""),
            11,
            hex("400206 0202 0000fc00"),
        ),
        (
            "NEXT_HOP of 3 octets, no route",
            update("400303 c00002", ""),
            5,
            hex("400303 c00002"),
        ),
        (
            "End-of-RIB with half an attribute (CVE-2023-47235)",
            update("800f03 000201 4001", ""),
            1,
            vec![],
        ),
        (
            "wrong flags, only withdrawn routes",
            { raw("0005 20 c6336401 0004 c00101 00") },
            4,
            hex("c00101 00"),
        ),
    ] {
        assert_eq!(
            answer(&octets, EXTERNAL),
            Notification::with_data(3, subcode, data),
            "{why}"
        );
    }
    for (why, value) in [
        ("3 octets", "000201"),
        (
            "next hop past the end (CVE-2023-46752)",
            "0002 01 10 20010db800000000",
        ),
        (
            "no reserved octet",
            "0002 01 10 20010db8000000000000000000000001",
        ),
        ("IPv6 next hop of 4 octets", "0002 01 04 c0000201 00"),
        (
            "IPv6 next hop of 24 octets",
            "0002 01 18 20010db8000000000000000000000001 fe80000000000000 00",
        ),
        (
            "IPv4 with an IPv6 next hop that was not agreed",
            "0001 01 10 20010db8000000000000000000000001 00",
        ),
        (
            "/129",
            "0002 01 10 20010db8000000000000000000000001 00 81 20010db8",
        ),
        (
            "prefix past the end",
            "0002 01 10 20010db8000000000000000000000001 00 80 20010db8",
        ),
        ("unknown family, next hop past the end", "4004 47 20 0000"),
    ] {
        let (attributes, whole) = reach(value);
        let answer = answer(&update(&attributes, ""), EXTERNAL);
        assert_eq!(
            answer,
            Notification::with_data(3, 9, whole),
            "MP_REACH_NLRI: {why}"
        );
    }
    for (why, value) in [
        ("2 octets", "0002"),
        ("/129", "000201 81 20"),
        ("short", "000101 20 c6"),
    ] {
        let length = hex(value).len();
        let whole = format!("800f {length:02x} {value}");
        let answer = answer(&update(&whole, ""), EXTERNAL);
        assert_eq!(
            answer,
            Notification::with_data(3, 9, hex(&whole)),
            "MP_UNREACH_NLRI: {why}"
        );
    }
}

fn faults(attributes: &str, context: Context) -> Vec<(u8, Treatment)> {
    match Message::decode(&update(attributes, NLRI), context) {
        Ok(Message::Update(update)) => {
            assert_eq!(update.nlri.len(), 1, "the routes are still named");
            update
                .faults
                .iter()
                .map(|fault| (fault.attribute, fault.treatment))
                .collect()
        }
        other => panic!("{attributes}: {other:?}"),
    }
}

#[test]
fn errors_in_one_attribute_make_its_routes_count_as_withdrawn() {
    let path = |value: &str| {
        let length = hex(value).len();
        format!("400101 00 4002 {length:02x} {value} 400304 c0000202")
    };
    let with = |more: &str| format!("{GOOD} {more}");
    for (why, attributes, attribute) in [
        (
            "no ORIGIN",
            "400206 0201 0000fc01 400304 c0000202".into(),
            1,
        ),
        ("no AS_PATH", "400101 00 400304 c0000202".into(), 2),
        ("no NEXT_HOP", "400101 00 400206 0201 0000fc01".into(), 3),
        (
            "ORIGIN optional",
            "c00101 00 400206 0201 0000fc01 400304 c0000202".into(),
            1,
        ),
        (
            "ORIGIN of 2 octets",
            "400102 0000 400206 0201 0000fc01 400304 c0000202".into(),
            1,
        ),
        (
            "ORIGIN of no octets",
            "400100 400206 0201 0000fc01 400304 c0000202".into(),
            1,
        ),
        (
            "ORIGIN 3",
            "400101 03 400206 0201 0000fc01 400304 c0000202".into(),
            1,
        ),
        ("segment type 0", path("0001 0000fc01"), 2),
        (
            "segment type 3 outside a confederation",
            path("0301 0000fc01"),
            2,
        ),
        ("segment type 5", path("0501 0000fc01"), 2),
        ("segment of no AS", path("0200"), 2),
        ("segment past the end", path("0203 0000fc01"), 2),
        ("half an AS number", path("0201 0000"), 2),
        ("one octet too many", path("0201 0000fc01 02"), 2),
        ("AS 0 (RFC 7607)", path("0201 00000000"), 2),
        (
            "NEXT_HOP of no octets (CVE-2026-30405)",
            "400101 00 400206 0201 0000fc01 400300".into(),
            3,
        ),
        (
            "NEXT_HOP of 3 octets",
            "400101 00 400206 0201 0000fc01 400303 c00002".into(),
            3,
        ),
        (
            "NEXT_HOP of 16 octets",
            "400101 00 400206 0201 0000fc01 400310 20010db8000000000000000000000001".into(),
            3,
        ),
        ("MED of 3 octets", with("800403 000000"), 4),
        ("MED transitive", with("c00404 00000000"), 4),
        ("COMMUNITIES of no octets", with("c00800"), 8),
        ("COMMUNITIES of 3 octets", with("c00803 000000"), 8),
        (
            "extended communities of 7 octets",
            with("c01007 00000000000000"),
            16,
        ),
        (
            "large communities of 11 octets",
            with("c0200b 0000000000000000000000"),
            32,
        ),
        (
            "IPv6 extended communities of 19 octets (CVE-2026-37461)",
            with("c01913 00000000000000000000000000000000000000"),
            25,
        ),
        ("only-to-customer of 1 octet", with("c02301 00"), 35),
        (
            "only-to-customer that claims 1024 octets",
            with("d0230400 0000fc01"),
            35,
        ),
        ("an attribute past the end", with("c00808 fc000007"), 8),
        ("flags alone at the end", with("40"), 0),
        ("extended length cut", with("5008 00"), 8),
    ] {
        let found = faults(&attributes, EXTERNAL);
        assert_eq!(found, [(attribute, Treatment::TreatAsWithdraw)], "{why}");
    }
    for (why, attributes, missing) in [
        ("no attributes at all (CVE-2023-41358)", "", 3),
        (
            "one unknown attribute (CVE-2023-46753)",
            "c01f10 00000000000000000000000000000000",
            3,
        ),
        ("MP_UNREACH_NLRI alone (CVE-2023-47234)", "800f03 000201", 3),
    ] {
        let found = faults(attributes, EXTERNAL);
        assert_eq!(found.len(), missing, "{why}: {found:?}");
        assert!(
            found
                .iter()
                .all(|(_, treatment)| *treatment == Treatment::TreatAsWithdraw)
        );
    }
    for (why, attributes) in [
        ("LOCAL_PREF of 3 octets", with("400503 000064")),
        ("ORIGINATOR_ID of 5 octets", with("800905 c000020100")),
        ("CLUSTER_LIST of 6 octets", with("800a06 c00002010000")),
    ] {
        let found = faults(&attributes, INTERNAL);
        assert!(
            matches!(found[..], [(_, Treatment::TreatAsWithdraw)]),
            "{why}: {found:?}"
        );
    }
}

#[test]
fn attributes_that_change_no_route_are_discarded() {
    let with = |more: &str| format!("{GOOD} {more}");
    for (why, attributes, attribute) in [
        ("ATOMIC_AGGREGATE with a value", with("400601 00"), 6),
        (
            "AGGREGATOR of 6 octets from a four-octet speaker",
            with("c00706 fc01c0000202"),
            7,
        ),
        (
            "AGGREGATOR in AS 0 (RFC 7607)",
            with("c00708 00000000c0000202"),
            7,
        ),
        ("LOCAL_PREF from another AS", with("400504 00000064"), 5),
        ("malformed LOCAL_PREF from another AS", with("400501 00"), 5),
        ("ORIGINATOR_ID from another AS", with("800904 c0000201"), 9),
        ("CLUSTER_LIST from another AS", with("800a01 00"), 10),
        (
            "AS4_PATH from a four-octet speaker (CVE-2026-41643)",
            format!("c01103 020100 {GOOD}"),
            17,
        ),
        ("a second ORIGIN", with("400101 02"), 1),
        ("a second NEXT_HOP, malformed", with("400301 00"), 3),
    ] {
        let found = faults(&attributes, EXTERNAL);
        assert_eq!(found, [(attribute, Treatment::AttributeDiscard)], "{why}");
    }
}

#[test]
fn attributes_that_are_not_ours_are_ignored_whatever_they_hold() {
    let long_path: String = (0..16)
        .map(|_| format!("02ff {}", "0000fc01".repeat(255)))
        .collect();
    // 16 segments of 255 AS numbers do not fit one message; 3 do.
    let long_path = &long_path[..(5 + 255 * 8) * 3];
    let length = hex(long_path).len();
    for (why, attributes) in [
        (
            "tunnel encapsulation overrun (CVE-2023-38802)",
            format!("{GOOD} c017 06 0007 0004 01ff"),
        ),
        (
            "entropy label with garbage",
            format!("{GOOD} c01c 03 ffffff"),
        ),
        (
            "ATTR_SET with garbage",
            format!("{GOOD} c080 05 0000000040"),
        ),
        (
            "PREFIX_SID overrun (CVE-2024-31948)",
            format!("{GOOD} c028 06 0100ff000000"),
        ),
        (
            "unknown optional non-transitive",
            format!("{GOOD} 80fd 01 ff"),
        ),
        (
            "partial bit and low bits",
            format!("{GOOD} ff08 0004 fc000007"),
        ),
        (
            "length of two octets for one",
            "500100 01 00 400206 0201 0000fc01 400304 c0000202".into(),
        ),
        (
            "reverse order",
            "400304 c0000202 400206 0201 0000fc01 400101 00".into(),
        ),
        (
            "a long path",
            format!("400101 00 5002 {length:04x} {long_path} 400304 c0000202"),
        ),
        (
            "other families",
            format!("800e 06 0003 04 00 00 ff {GOOD} 800f 04 4004 47 ff"),
        ),
    ] {
        assert_eq!(faults(&attributes, EXTERNAL), [], "{why}");
    }
}

#[test]
fn a_prefix_both_withdrawn_and_announced_is_no_error_and_trailing_bits_are_ignored() {
    let mut body = hex("0005 20 c6336401 0014");
    body.extend(hex(GOOD));
    body.extend(hex("20 c6336401 09 0aff"));
    let Ok(Message::Update(update)) = Message::decode(&message(2, &body), EXTERNAL) else {
        panic!()
    };
    assert_eq!(update.withdrawn, update.nlri[..1]);
    assert_eq!(update.nlri[1].to_string(), "10.128.0.0/9");
}
