//! A real API server and our definitions: it accepts and refuses what the
//! cases of `api/tests/fixtures` say. There the rules are evaluated alone;
//! here the plain schema counts too.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::path::Path;

use bellrock_e2e::cluster::KubeProxy;
use bellrock_e2e::lab::{Lab, Options};
use bellrock_e2e::suite::NAMESPACE;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde::Deserialize;
use serde_json::{Value, json};

/// One case, in the form that `api/tests/schema.rs` describes.
#[derive(Deserialize)]
struct Case {
    case: String,
    #[serde(default = "default_name")]
    name: String,
    was: Option<Value>,
    spec: Option<Value>,
    status: Option<Value>,
    refused: Option<String>,
}

fn default_name() -> String {
    "test".to_owned()
}

struct Kind {
    api: Api<DynamicObject>,
    resource: ApiResource,
}

impl Kind {
    fn object(&self, case: &Case, spec: Option<&Value>) -> DynamicObject {
        let mut object = DynamicObject::new(&case.name, &self.resource);
        if let Some(spec) = spec {
            object.data = json!({ "spec": spec });
        }
        object
    }

    /// What the server says to the object of a case; nothing is kept.
    async fn ask(&self, case: &Case) -> Result<(), kube::Error> {
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        if case.was.is_none() && case.status.is_none() {
            let object = self.object(case, case.spec.as_ref());
            self.api.create(&dry, &object).await?;
            // Whoever applies on the server's side (Argo CD, Flux) sends it so: there, lists are
            // merged by their types.
            let apply = PatchParams {
                dry_run: true,
                ..PatchParams::apply("test")
            };
            let patch = Patch::Apply(&object);
            return self.api.patch(&case.name, &apply, &patch).await.map(drop);
        }
        let before = self.object(case, case.was.as_ref());
        let mut now = self
            .api
            .create(&PostParams::default(), &before)
            .await
            .unwrap();
        let said = if let Some(status) = &case.status {
            let params = PatchParams {
                dry_run: true,
                ..PatchParams::default()
            };
            let patch = Patch::Merge(json!({ "status": status }));
            self.api
                .patch_status(&case.name, &params, &patch)
                .await
                .map(drop)
        } else {
            now.data = json!({ "spec": case.spec });
            self.api.replace(&case.name, &dry, &now).await.map(drop)
        };
        self.api
            .delete(&case.name, &DeleteParams::default())
            .await
            .unwrap();
        said
    }
}

#[test]
fn the_api_server_accepts_and_refuses_what_the_cases_say() {
    let lab = Lab::up(&Options {
        kube_proxy: KubeProxy::None,
        ..Options::default()
    })
    .unwrap();
    lab.install("").unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/tests/fixtures");
    let (mut asked, mut wrong) = (0, Vec::new());
    for crd in bellrock_api::crds() {
        let kind = kind(&lab, &crd);
        let file = fixtures.join(format!(
            "{}.yaml",
            crd.spec.names.singular.as_deref().unwrap()
        ));
        let cases: Vec<Case> =
            serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        for case in cases {
            asked += 1;
            let said = lab
                .block_on(kind.ask(&case))
                .map_err(|error| error.to_string());
            let right = match (&case.refused, &said) {
                (None, Ok(())) => true,
                (Some(part), Err(error)) => error.contains(part.as_str()),
                _ => false,
            };
            if !right {
                wrong.push(format!("{} {:?}: {said:?}", kind.resource.kind, case.case));
            }
        }
    }
    assert!(asked > 100, "{asked} cases");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn kind(lab: &Lab, crd: &CustomResourceDefinition) -> Kind {
    let names = &crd.spec.names;
    let resource = ApiResource {
        group: bellrock_api::GROUP.to_owned(),
        version: bellrock_api::VERSION.to_owned(),
        api_version: format!("{}/{}", bellrock_api::GROUP, bellrock_api::VERSION),
        kind: names.kind.clone(),
        plural: names.plural.clone(),
    };
    let api = if crd.spec.scope == "Namespaced" {
        Api::namespaced_with(lab.admin(), NAMESPACE, &resource)
    } else {
        Api::all_with(lab.admin(), &resource)
    };
    Kind { api, resource }
}
