//! Label selectors: matching them, and their bounded schema.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// Whether `selector` matches `labels`. An empty selector matches everything. A requirement with an
/// unknown operator, or with values that its operator does not allow, matches nothing: a mistake
/// never widens what is selected.
#[must_use]
pub fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let by_label = selector.match_labels.iter().flatten();
    let by_expression = selector.match_expressions.iter().flatten();
    by_label
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && by_expression
            .into_iter()
            .all(|requirement| meets(requirement, labels))
}

/// Whether any of `selectors` matches `labels`: no selector, no match.
#[must_use]
pub fn any_matches(selectors: &[LabelSelector], labels: &BTreeMap<String, String>) -> bool {
    selectors.iter().any(|selector| matches(selector, labels))
}

/// Whether `selectors` allow `labels`, where an empty list allows everything.
#[must_use]
pub fn allows(selectors: &[LabelSelector], labels: &BTreeMap<String, String>) -> bool {
    selectors.is_empty() || any_matches(selectors, labels)
}

fn meets(requirement: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let value = labels.get(&requirement.key);
    match requirement.operator.as_str() {
        "In" => !values.is_empty() && value.is_some_and(|value| values.contains(value)),
        // As in Kubernetes, an absent label is "not in" any set.
        "NotIn" => !values.is_empty() && value.is_none_or(|value| !values.contains(value)),
        "Exists" => values.is_empty() && value.is_some(),
        "DoesNotExist" => values.is_empty() && value.is_none(),
        _ => false,
    }
}

const KEY_MAX: u32 = 317; // 253 for the prefix, a slash, 63 for the name
const VALUE_MAX: u32 = 63;

/// Schema of one selector, bounded so that the API server can price the rules in it.
pub(crate) fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema_of_selector()
}

/// Schema of a list of selectors.
pub(crate) fn selectors_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": json_schema_of_selector(),
        // Not a set: server-side apply knows no sets of objects, and refuses every object with one.
        "x-kubernetes-list-type": "atomic",
    })
}

fn json_schema_of_selector() -> Schema {
    json_schema!({
        "description": "A label query. All of matchLabels and matchExpressions must hold; an empty selector matches everything.",
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "description": "Labels that must be there, with these values.",
                "type": "object",
                "maxProperties": 16,
                "additionalProperties": { "type": "string", "maxLength": VALUE_MAX },
            },
            "matchExpressions": {
                "description": "Requirements that must all be met.",
                "type": "array",
                "maxItems": 16,
                "x-kubernetes-list-type": "atomic",
                "items": requirement_schema(),
            },
        },
    })
}

fn requirement_schema() -> Value {
    json!({
        "type": "object",
        "required": ["key", "operator"],
        "properties": {
            "key": {
                "description": "The label.",
                "type": "string",
                "minLength": 1,
                "maxLength": KEY_MAX,
            },
            "operator": {
                "description": "In, NotIn, Exists or DoesNotExist.",
                "type": "string",
                "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
            },
            "values": {
                "description": "Values of In and NotIn.",
                "type": "array",
                "maxItems": 64,
                "x-kubernetes-list-type": "atomic",
                "items": { "type": "string", "maxLength": VALUE_MAX },
            },
        },
        "x-kubernetes-validations": [{
            "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
            "message": "In and NotIn need values; Exists and DoesNotExist take none",
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn expression(operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "zone".into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
            }]),
            match_labels: None,
        }
    }

    #[test]
    fn every_operator_follows_kubernetes() {
        let (a, b, none) = (
            labels(&[("zone", "a")]),
            labels(&[("zone", "b")]),
            labels(&[]),
        );
        for (operator, values, expected) in [
            ("In", vec!["a", "c"], [true, false, false]),
            ("NotIn", vec!["a", "c"], [false, true, true]),
            ("Exists", vec![], [true, true, false]),
            ("DoesNotExist", vec![], [false, false, true]),
        ] {
            let selector = expression(operator, &values);
            let got = [&a, &b, &none].map(|labels| matches(&selector, labels));
            assert_eq!(got, expected, "{operator}");
        }
    }

    #[test]
    fn a_mistake_matches_nothing() {
        for (operator, values) in [
            ("In", vec![]),
            ("NotIn", vec![]),
            ("Exists", vec!["a"]),
            ("DoesNotExist", vec!["a"]),
            ("in", vec!["a"]),
            ("Gt", vec!["1"]),
        ] {
            let selector = expression(operator, &values);
            assert!(
                !matches(&selector, &labels(&[("zone", "a")])),
                "{operator} {values:?}"
            );
            assert!(!matches(&selector, &labels(&[])), "{operator} {values:?}");
        }
    }

    #[test]
    fn labels_and_expressions_must_all_hold() {
        let mut selector = expression("In", &["a"]);
        selector.match_labels = Some(labels(&[("rack", "1")]));
        assert!(matches(&selector, &labels(&[("zone", "a"), ("rack", "1")])));
        assert!(!matches(
            &selector,
            &labels(&[("zone", "a"), ("rack", "2")])
        ));
        assert!(!matches(
            &selector,
            &labels(&[("zone", "b"), ("rack", "1")])
        ));
    }

    #[test]
    fn an_empty_selector_matches_everything_and_an_empty_list_is_no_match() {
        assert!(matches(&LabelSelector::default(), &labels(&[])));
        assert!(!any_matches(&[], &labels(&[])));
        assert!(allows(&[], &labels(&[])));
        assert!(!allows(&[expression("Exists", &[])], &labels(&[])));
    }
}
