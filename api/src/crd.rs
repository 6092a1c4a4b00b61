//! The custom resource definitions, made from the Rust types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value};

/// Every definition, in a stable order (by file name of [`crd_yaml`]).
///
/// Use these, not `Kind::crd()`: they are free of formats that the API server does not know.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    definitions()
        .into_iter()
        .filter_map(|definition| serde_json::from_value(definition).ok())
        .collect()
}

/// Every definition as YAML with its file name, as the chart carries them. Byte for byte the same
/// for the same types.
#[must_use]
pub fn crd_yaml() -> Vec<(String, String)> {
    definitions()
        .into_iter()
        .filter_map(|definition| {
            let plural = definition.pointer("/spec/names/plural")?.as_str()?;
            let yaml = serde_saphyr::to_string(&definition).ok()?;
            Some((format!("bellrock.dev_{plural}.yaml"), yaml))
        })
        .collect()
}

fn definitions() -> Vec<Value> {
    [
        crate::BFDProfile::crd(),
        crate::BGPAdvertisement::crd(),
        crate::BGPPeer::crd(),
        crate::Community::crd(),
        crate::IPAddressPool::crd(),
        crate::L2Advertisement::crd(),
        crate::SpeakerStatus::crd(),
        crate::VirtualIP::crd(),
    ]
    .into_iter()
    .filter_map(|definition| serde_json::to_value(definition).ok())
    .map(tidy)
    .map(with_default_spec)
    .collect()
}

/// An advertisement needs no spec: without one it is as with an empty one.
fn with_default_spec(mut definition: Value) -> Value {
    let kind = definition.pointer("/spec/names/kind");
    let kind = kind.and_then(Value::as_str).unwrap_or_default();
    if !kind.ends_with("Advertisement") {
        return definition;
    }
    let versions = definition.pointer_mut("/spec/versions");
    for version in versions.and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") else {
            continue;
        };
        if let Some(spec) = schema.pointer_mut("/properties/spec") {
            spec["default"] = Value::Object(Map::new());
        }
        if let Some(schema) = schema.as_object_mut() {
            schema.remove("required");
        }
    }
    definition
}

/// Integer formats of Rust that the API server does not know are dropped, descriptions are
/// unwrapped to one line a paragraph and freed of links, and whole numbers are written as such.
fn tidy(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .into_iter()
                .filter(|(key, value)| !(key == "format" && unknown_format(value)))
                .map(|(key, value)| match value {
                    Value::String(text) if key == "description" => (key, prose(&text).into()),
                    value => (key, tidy(value)),
                })
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(tidy).collect()),
        Value::Number(number) => match number.as_f64() {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "whole and within 2^53, where f64 and i64 agree"
            )]
            Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < 9e15 => {
                Value::from(float as i64)
            }
            _ => Value::Number(number),
        },
        other @ (Value::Null | Value::Bool(_) | Value::String(_)) => other,
    }
}

fn prose(doc: &str) -> String {
    doc.split("\n\n")
        .map(|paragraph| without_links(&paragraph.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// ``[`Name`](target)`` and ``[`Name`]`` become `Name`.
fn without_links(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[`") {
        plain.push_str(before);
        let Some((name, after)) = after.split_once("`]") else {
            rest = after;
            break;
        };
        plain.push_str(name);
        rest = match after
            .strip_prefix('(')
            .and_then(|target| target.split_once(')'))
        {
            Some((_, after)) => after,
            None => after,
        };
    }
    plain.push_str(rest);
    plain
}

fn unknown_format(format: &Value) -> bool {
    format
        .as_str()
        .is_some_and(|format| format.starts_with("uint"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_eight_definitions_in_the_order_of_their_files() {
        let files: Vec<String> = crd_yaml().into_iter().map(|(file, _)| file).collect();
        assert_eq!(files.len(), 8);
        assert_eq!(crds().len(), 8);
        assert!(files.is_sorted());
    }

    #[test]
    fn the_yaml_reads_back_as_the_definition() {
        for ((file, yaml), definition) in crd_yaml().iter().zip(definitions()) {
            let read: Value = serde_saphyr::from_str(yaml).unwrap();
            assert_eq!(read, definition, "{file}");
        }
    }
}
