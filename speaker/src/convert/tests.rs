//! What BGPPeers and their Secrets turn into.

use bellrock_bgp::Password;
use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::*;

fn peer(spec: &Value) -> Result<cluster::Peer, String> {
    let mut all = json!({ "myASN": 64512, "peerASN": 64513, "peerAddress": "192.0.2.1" });
    let (Some(all_fields), Some(fields)) = (all.as_object_mut(), spec.as_object()) else {
        panic!("objects")
    };
    all_fields.extend(fields.clone());
    let object = json!({
        "apiVersion": "bellrock.dev/v1beta1", "kind": "BGPPeer",
        "metadata": { "name": "tor" }, "spec": all,
    });
    match bgp_peer(&serde_json::from_value(object).unwrap()) {
        Parsed::Change(Change::Peer(_, Some(peer))) => Ok(peer),
        Parsed::Invalid { message, .. } => Err(message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_password_is_taken_up_to_eighty_octets_and_never_repeated() {
    let hush = "h".repeat(80);
    let taken = peer(&json!({ "password": hush })).unwrap();
    let text = PeerPassword::Text(Password::new(hush.clone()));
    assert_eq!(taken.password, Some(text));
    assert!(!format!("{taken:?}").contains("hh"));
    // Octets, not characters.
    for long in [format!("{hush}h"), "\u{e9}".repeat(41)] {
        let message = peer(&json!({ "password": long })).unwrap_err();
        assert!(message.contains("TCP MD5 takes 1 to 80"), "{message}");
        assert!(!message.contains("hh") && !message.contains('\u{e9}'));
    }
    let secret = peer(&json!({ "passwordSecret": { "name": "tor" } })).unwrap();
    assert_eq!(secret.password, Some(PeerPassword::Secret("tor".into())));
}

#[test]
fn the_local_as_stands_in_for_ours() {
    assert_eq!(peer(&json!({})).unwrap().local_asn, 64512);
    let replaced = peer(&json!({ "localASN": 65000 })).unwrap();
    assert_eq!(replaced.local_asn, 65000);
}

#[test]
fn distance_and_role_are_those_of_the_session() {
    let plain = peer(&json!({})).unwrap();
    assert_eq!((plain.ttl_security, plain.role), (None, None));
    for (name, role) in [
        ("Provider", Role::Provider),
        ("RouteServer", Role::RouteServer),
        ("RouteServerClient", Role::RouteServerClient),
        ("Customer", Role::Customer),
        ("Peer", Role::Peer),
    ] {
        let peer = peer(&json!({ "ttlSecurityHops": 1, "role": name })).unwrap();
        assert_eq!((peer.ttl_security, peer.role), (Some(1), Some(role)));
    }
}

#[test]
fn what_this_release_does_not_do_is_refused_by_name() {
    for (field, value) in [("interface", json!("eth0")), ("vrf", json!("red"))] {
        let message = peer(&json!({ field: value })).unwrap_err();
        assert_eq!(message, format!("{field} is not supported by this release"));
    }
}

#[test]
fn a_secret_must_be_of_the_kind_that_holds_passwords() {
    let secret = |kind: &str, key: &str, value: &[u8]| core::Secret {
        type_: Some(kind.to_owned()),
        data: Some([(key.to_owned(), ByteString(value.to_vec()))].into()),
        ..core::Secret::default()
    };
    let basic = "kubernetes.io/basic-auth";
    let good = password_secret(&secret(basic, "password", b"hush"));
    assert_eq!(good, Ok(Password::new("hush")));
    for (object, said) in [
        (secret("Opaque", "password", b"hush"), "not of type"),
        (secret(basic, "username", b"hush"), "no key"),
        (secret(basic, "password", b"\xff"), "not UTF-8"),
        (secret(basic, "password", &[b'h'; 81]), "81 octets"),
        (secret(basic, "password", b""), "0 octets"),
    ] {
        let message = password_secret(&object).unwrap_err();
        assert!(message.contains(said), "{message}");
        assert!(!message.contains("hush"));
    }
}
