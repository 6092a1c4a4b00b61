//! What the API server itself takes: the two writes that a new Service costs, a VirtualIP and a
//! status, sent for each of many Services by a loop that watches nothing and decides nothing.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use bellrock_api::{Claim, L2Placement, PortClaim, Protocol, VirtualIP, VirtualIPSpec};
use futures_util::{TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::lab::Lab;

/// Services under way at a time: with fewer the API server is not busy, with more it is no faster.
const CLIENTS: usize = 16;

/// The seconds that the writes for the `count` Services that are there take.
pub(super) fn measure(lab: &Lab, count: usize) -> Result<f64> {
    let client = lab.admin();
    let vips: Api<VirtualIP> = Api::all(client.clone());
    let services: Api<Service> = Api::default_namespaced(client);
    let (made, patched) = (&vips, &services);
    let seconds = lab.block_on(async {
        let start = Instant::now();
        let list = services.list(&ListParams::default()).await?.items;
        let pending = list
            .into_iter()
            .filter(|service| service.name_any().starts_with("s-"))
            .take(count);
        stream::iter((0u32..).zip(pending).map(Ok))
            .try_for_each_concurrent(CLIENTS, |(n, service)| async move {
                write(made, patched, n, &service).await
            })
            .await?;
        anyhow::Ok(start.elapsed().as_secs_f64())
    })?;
    lab.block_on(vips.delete_collection(&DeleteParams::default(), &ListParams::default()))?;
    Ok(seconds)
}

async fn write(
    vips: &Api<VirtualIP>,
    services: &Api<Service>,
    n: u32,
    service: &Service,
) -> Result<()> {
    let [_, _, high, low] = n.to_be_bytes();
    let ip = format!("10.32.{high}.{low}");
    let name = service.name_any();
    let mut vip = VirtualIP::new(&ip, spec(&ip, service));
    vip.labels_mut().insert(
        "app.kubernetes.io/managed-by".to_owned(),
        "bellrock".to_owned(),
    );
    vips.create(&PostParams::default(), &vip)
        .await
        .with_context(|| format!("VirtualIP {ip}"))?;
    services
        .patch_status(
            &name,
            &PatchParams::default(),
            &Patch::Merge(&status(&ip, service)),
        )
        .await
        .with_context(|| format!("status of {name}"))?;
    Ok(())
}

/// As the controller writes it.
fn spec(ip: &str, service: &Service) -> VirtualIPSpec {
    VirtualIPSpec {
        address: ip.to_owned(),
        pool: Some("main".to_owned()),
        claims: vec![Claim {
            namespace: service.namespace().unwrap_or_default(),
            name: service.name_any(),
            uid: service.uid(),
            ports: vec![PortClaim {
                protocol: Protocol::Tcp,
                port: 80,
            }],
            sharing_key: None,
            external_traffic_policy: None,
            selector: BTreeMap::new(),
        }],
        l2: Some(L2Placement {
            node: "n1".to_owned(),
            successors: vec!["n2".to_owned(), "n3".to_owned()],
        }),
    }
}

/// As the controller writes it.
fn status(ip: &str, service: &Service) -> Value {
    json!({
        "metadata": { "uid": service.uid(), "resourceVersion": service.resource_version() },
        "status": {
            "loadBalancer": { "ingress": [{ "ip": ip, "ipMode": "VIP" }] },
            "conditions": [{
                "type": "bellrock.dev/LoadBalancer", "status": "True", "reason": "Allocated",
                "message": format!("{ip} from pool main"),
                "lastTransitionTime": Timestamp::now(),
            }],
        },
    })
}
