//! Good and bad objects against the generated definitions.
//!
//! The files in `fixtures/` are lists of cases, one file a kind:
//!
//! ```yaml
//! - case: what is shown, in words
//!   name: name of the object              # default: test
//!   was: the spec before                  # default: the object is new
//!   spec: the spec                        # or `status`
//!   refused: part of the message          # default: accepted
//!   by: rule | schema                     # what refuses it; default: rule
//! ```
//!
//! Here the CEL rules are evaluated without an API server, and every accepted object goes through
//! the Rust types and back. What the plain schema refuses (`by: schema`) only a real API server
//! can tell.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use bellrock_api as api;
use kube::core::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    case: String,
    #[serde(default = "default_name")]
    name: String,
    was: Option<Value>,
    spec: Option<Value>,
    status: Option<Value>,
    refused: Option<String>,
    #[serde(default)]
    by: By,
}

#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum By {
    #[default]
    Rule,
    Schema,
}

fn default_name() -> String {
    "test".to_owned()
}

struct Kind {
    kind: String,
    schema: Value,
    cases: Vec<Case>,
}

impl Kind {
    fn object(&self, case: &Case, spec: Option<&Value>) -> Value {
        let mut object = json!({
            "apiVersion": format!("{}/{}", api::GROUP, api::VERSION),
            "kind": self.kind,
            "metadata": { "name": case.name },
        });
        for (key, part) in [("spec", spec), ("status", case.status.as_ref())] {
            if let Some(part) = part {
                object[key] = part.clone();
            }
        }
        object
    }
}

fn kinds() -> Vec<Kind> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut files: BTreeSet<_> = fs::read_dir(&fixtures)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let kinds = api::crds()
        .into_iter()
        .map(|crd| {
            let crd = serde_json::to_value(crd).unwrap();
            let text = |pointer: &str| crd.pointer(pointer).unwrap().as_str().unwrap().to_owned();
            let file = fixtures.join(format!("{}.yaml", text("/spec/names/singular")));
            let yaml =
                fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            files.remove(&file);
            Kind {
                kind: text("/spec/names/kind"),
                schema: crd
                    .pointer("/spec/versions/0/schema/openAPIV3Schema")
                    .unwrap()
                    .clone(),
                cases: serde_saphyr::from_str(&yaml)
                    .unwrap_or_else(|e| panic!("{}: {e}", file.display())),
            }
        })
        .collect();
    assert!(files.is_empty(), "files of no kind: {files:?}");
    kinds
}

#[test]
fn the_rules_accept_and_refuse_what_the_cases_say() {
    let validator = kube_cel::Validator::new();
    let mut wrong = Vec::new();
    for kind in kinds() {
        for case in kind
            .cases
            .iter()
            .filter(|case| case.refused.is_none() || case.by == By::Rule)
        {
            let object = kind.object(case, case.spec.as_ref());
            let was = case
                .was
                .as_ref()
                .map(|was| kube_cel::apply_defaults(&kind.schema, &kind.object(case, Some(was))));
            let messages =
                match validator.validate_with_defaults(&kind.schema, &object, was.as_ref()) {
                    Ok(()) => Vec::new(),
                    Err(errors) => errors
                        .as_slice()
                        .iter()
                        .map(|e| e.message.clone())
                        .collect(),
                };
            let as_said = match &case.refused {
                None => messages.is_empty(),
                Some(part) => messages.iter().any(|message| message.contains(part)),
            };
            if !as_said {
                wrong.push(format!("{}: {}: {messages:?}", kind.kind, case.case));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_rule_refuses_at_least_one_case() {
    for kind in kinds() {
        let mut rules = BTreeMap::new();
        walk(&kind.schema, &mut |schema| {
            for rule in schema["x-kubernetes-validations"]
                .as_array()
                .into_iter()
                .flatten()
            {
                rules.insert(rule["message"].as_str().unwrap().to_owned(), false);
            }
        });
        for (message, seen) in &mut rules {
            *seen = kind
                .cases
                .iter()
                .filter_map(|c| c.refused.as_ref())
                .any(|p| message.contains(p));
        }
        // The rule inside selectors is the same one in every kind.
        rules.retain(|message, seen| !*seen && !message.starts_with("In and NotIn"));
        assert!(rules.is_empty(), "{}: no case for {rules:?}", kind.kind);
    }
}

#[test]
fn every_property_is_set_by_an_accepted_case() {
    for kind in kinds() {
        let mut unused = BTreeSet::new();
        collect_properties(&kind.schema, "", &mut unused);
        for case in kind.cases.iter().filter(|case| case.refused.is_none()) {
            used_properties(&kind.object(case, case.spec.as_ref()), "", &mut unused);
        }
        // Written by the controller; conditions are Kubernetes' own.
        unused.retain(|path| !path.starts_with(".status") || kind.kind == "SpeakerStatus");
        unused.retain(|path| !path.contains("Selectors[]."));
        assert!(unused.is_empty(), "{}: {unused:?}", kind.kind);
    }
}

#[test]
fn accepted_objects_survive_the_rust_types() {
    for kind in kinds() {
        for case in kind.cases.iter().filter(|case| case.refused.is_none()) {
            let object = kind.object(case, case.spec.as_ref());
            let object = kube_cel::apply_defaults(&kind.schema, &object);
            let back = match kind.kind.as_str() {
                "BFDProfile" => round_trip::<api::BFDProfile>(&object),
                "BGPAdvertisement" => round_trip::<api::BGPAdvertisement>(&object),
                "BGPPeer" => round_trip::<api::BGPPeer>(&object),
                "Community" => round_trip::<api::Community>(&object),
                "IPAddressPool" => round_trip::<api::IPAddressPool>(&object),
                "L2Advertisement" => round_trip::<api::L2Advertisement>(&object),
                "SpeakerStatus" => round_trip::<api::SpeakerStatus>(&object),
                "VirtualIP" => round_trip::<api::VirtualIP>(&object),
                other => panic!("unknown kind {other}"),
            };
            assert_eq!(back, object, "{}: {}", kind.kind, case.case);
        }
    }
}

fn round_trip<T: DeserializeOwned + Serialize>(object: &Value) -> Value {
    let typed: T = serde_json::from_value(object.clone()).unwrap();
    serde_json::to_value(&typed).unwrap()
}

#[test]
fn pool_entries_that_the_rules_accept_also_parse() {
    for kind in kinds()
        .into_iter()
        .filter(|kind| kind.kind == "IPAddressPool")
    {
        for case in kind.cases.iter().filter(|c| c.by == By::Rule) {
            let Ok(spec) =
                serde_json::from_value::<api::IPAddressPoolSpec>(case.spec.clone().unwrap())
            else {
                continue;
            };
            if spec.service_allocation.is_none() {
                assert_eq!(
                    spec.ranges().is_ok(),
                    case.refused.is_none(),
                    "{}",
                    case.case
                );
            }
        }
    }
}

#[test]
fn every_list_and_text_in_a_spec_is_bounded_so_that_rules_can_be_priced() {
    for kind in kinds() {
        walk(&kind.schema["properties"]["spec"], &mut |schema| {
            let bounded = match schema["type"].as_str() {
                Some("array") => {
                    schema.get("maxItems").is_some()
                        && schema.get("x-kubernetes-list-type").is_some()
                }
                Some("string") => schema.get("maxLength").is_some() || schema.get("enum").is_some(),
                Some("object") if schema.get("additionalProperties").is_some() => {
                    schema.get("maxProperties").is_some()
                }
                _ => true,
            };
            assert!(bounded, "{}: {schema}", kind.kind);
        });
    }
}

#[test]
fn descriptions_read_as_prose() {
    for kind in kinds() {
        walk(&kind.schema, &mut |schema| {
            if let Some(text) = schema["description"].as_str() {
                assert!(
                    !text.contains("](") && !text.contains("[`"),
                    "{}: {text}",
                    kind.kind
                );
            }
        });
    }
}

#[test]
fn a_named_object_is_made_by_the_generated_constructors() {
    let vip = api::VirtualIP::new("192.0.2.10", api::VirtualIPSpec::default());
    assert_eq!(
        vip.metadata,
        ObjectMeta {
            name: Some("192.0.2.10".into()),
            ..Default::default()
        }
    );
    let status = api::SpeakerStatus::new("node-1", api::SpeakerStatusSpec {});
    let written = serde_json::to_value(&status).unwrap();
    assert_eq!(written["spec"], Value::Null);
    assert_eq!(written["kind"], "SpeakerStatus");
}

fn walk(schema: &Value, visit: &mut dyn FnMut(&Value)) {
    visit(schema);
    for property in schema["properties"]
        .as_object()
        .into_iter()
        .flat_map(|p| p.values())
    {
        walk(property, visit);
    }
    for nested in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(nested) {
            walk(inner, visit);
        }
    }
}

fn collect_properties(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        collect_properties(property, &path, into);
        into.insert(path);
    }
    if let Some(items) = schema.get("items") {
        collect_properties(items, &format!("{path}[]"), into);
    }
}

fn used_properties(value: &Value, path: &str, unused: &mut BTreeSet<String>) {
    unused.remove(path);
    match value {
        Value::Object(object) => {
            for (name, inner) in object {
                used_properties(inner, &format!("{path}.{name}"), unused);
            }
        }
        Value::Array(items) => {
            for inner in items {
                used_properties(inner, &format!("{path}[]"), unused);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
