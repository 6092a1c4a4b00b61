//! Services that come, go and change their minds, as many tenants at once would have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use bellrock_api::annotations::{ADDRESS_POOL, LOAD_BALANCER_IPS, SHARING_KEY};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::lab::Lab;

/// Changes a second, all together.
const RATE: u32 = 12;

/// Clients that make them.
const CLIENTS: u32 = 4;

/// A generator of pseudo-random numbers (xorshift64*).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// One of `sides` numbers, from 0.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides.max(1)
    }
}

/// What was done so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) made: AtomicUsize,
    /// What the API server did not take: a change of a Service that is not there, or no server.
    pub(crate) refused: AtomicUsize,
    stop: AtomicBool,
    ended: AtomicUsize,
}

/// A churn that goes on until it is told to stop.
#[derive(Debug)]
pub(crate) struct Churn {
    pub(crate) counts: Arc<Counts>,
}

impl Churn {
    /// Creates all Services, then begins to change them.
    pub(crate) fn start(lab: &Lab, services: u64, seed: u64) -> Result<Self> {
        let api: Api<Service> = Api::default_namespaced(lab.admin());
        let mut dice = Dice::new(seed);
        let all: Vec<Value> = (0..services).map(|n| service(n, &mut dice)).collect();
        lab.block_on(
            stream::iter(all)
                .map(Ok)
                .try_for_each_concurrent(16, |service| {
                    let api = api.clone();
                    async move {
                        let service = serde_json::from_value(service)?;
                        api.create(&PostParams::default(), &service).await?;
                        anyhow::Ok(())
                    }
                }),
        )?;
        let counts = Arc::new(Counts::default());
        for client in 0..CLIENTS {
            let (api, counts) = (api.clone(), Arc::clone(&counts));
            let dice = Dice::new(seed.wrapping_add(u64::from(client) + 1).wrapping_mul(7919));
            lab.spawn(keep_changing(api, counts, dice, services));
        }
        Ok(Self { counts })
    }

    /// Ends it; true when the last change is made.
    pub(crate) fn has_stopped(&self) -> bool {
        self.counts.stop.store(true, Ordering::Release);
        self.counts.ended.load(Ordering::Acquire) == usize::try_from(CLIENTS).unwrap_or_default()
    }
}

async fn keep_changing(api: Api<Service>, counts: Arc<Counts>, mut dice: Dice, services: u64) {
    while !counts.stop.load(Ordering::Acquire) {
        let counter = match change(&api, &mut dice, services).await {
            Ok(()) => &counts.made,
            Err(_) => &counts.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1) * CLIENTS / RATE).await;
    }
    counts.ended.fetch_add(1, Ordering::Release);
}

fn name(n: u64) -> String {
    format!("s-{n}")
}

/// A new Service.
fn service(n: u64, dice: &mut Dice) -> Value {
    let policy = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    let policy = policy[usize::try_from(dice.roll(3)).unwrap_or_default()];
    let annotations = if dice.roll(4) == 0 {
        json!({ SHARING_KEY: sharing_key(dice) })
    } else {
        json!({})
    };
    json!({
        "metadata": { "name": name(n), "annotations": annotations },
        "spec": {
            "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
            "ipFamilyPolicy": policy,
            "ports": [{ "port": port(dice) }],
        },
    })
}

fn sharing_key(dice: &mut Dice) -> String {
    format!("key-{}", dice.roll(12))
}

fn port(dice: &mut Dice) -> u64 {
    80 + dice.roll(12)
}

/// One change of one Service, whatever it is like now.
async fn change(api: &Api<Service>, dice: &mut Dice, services: u64) -> Result<()> {
    let n = dice.roll(services);
    let name = name(n);
    let annotation =
        |name: &str, value: Value| json!({ "metadata": { "annotations": { name: value } } });
    let patch = match dice.roll(20) {
        // Gone, and in most cases there again at once: the next does not know of the last.
        0..=5 => {
            let gone = api.delete(&name, &DeleteParams::default()).await;
            if gone.is_err() || dice.roll(3) > 0 {
                let service = serde_json::from_value(service(n, dice))?;
                api.create(&PostParams::default(), &service).await?;
            }
            return Ok(());
        }
        // Another type, and with it another class.
        6 => json!({ "spec": { "type": "ClusterIP", "loadBalancerClass": null } }),
        7..=9 => {
            let class = [
                json!(null),
                json!("bellrock.dev/bellrock"),
                json!("example.com/other"),
            ];
            let class = &class[usize::try_from(dice.roll(3)).unwrap_or_default()];
            let off = json!({ "spec": { "type": "ClusterIP", "loadBalancerClass": null } });
            api.patch(&name, &PatchParams::default(), &Patch::Merge(&off))
                .await?;
            json!({ "spec": {
                "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                "loadBalancerClass": class,
            } })
        }
        10 | 11 => json!({ "spec": { "ipFamilyPolicy": "SingleStack" } }),
        12 | 13 => json!({ "spec": { "ipFamilyPolicy": "RequireDualStack" } }),
        14 | 15 => {
            let pools = [json!("a"), json!("b"), json!("small"), json!(null)];
            let pool = &pools[usize::try_from(dice.roll(4)).unwrap_or_default()];
            annotation(ADDRESS_POOL, pool.clone())
        }
        16 => match dice.roll(3) {
            0 => annotation(LOAD_BALANCER_IPS, json!(null)),
            // Wanted by several: most do not get it.
            _ => annotation(
                LOAD_BALANCER_IPS,
                json!(format!("10.34.0.{}", dice.roll(16))),
            ),
        },
        17 | 18 => match dice.roll(4) {
            0 => annotation(SHARING_KEY, json!(null)),
            _ => annotation(SHARING_KEY, json!(sharing_key(dice))),
        },
        _ => json!({ "spec": { "ports": [{ "port": port(dice) }] } }),
    };
    api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}
