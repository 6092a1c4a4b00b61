//! Services that come, go and change their minds, as many tenants at once would have it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use bellrock_api::annotations::{ADDRESS_POOL, LOAD_BALANCER_IPS, SHARING_KEY};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::lab::Lab;

/// Changes a second, all together.
const RATE: u32 = 12;

/// Clients that make them.
const CLIENTS: u32 = 4;

/// Two tenants that give the same sharing keys: they must not meet.
pub(crate) const NAMESPACES: [&str; 2] = ["default", "tenant"];

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
        let client = lab.admin();
        let mut dice = Dice::new(seed);
        let all: Vec<(u64, Value)> = (0..services).map(|n| (n, service(n, &mut dice))).collect();
        lab.block_on(
            stream::iter(all)
                .map(Ok)
                .try_for_each_concurrent(16, |(n, service)| {
                    let api = api(&client, n);
                    async move {
                        let service = serde_json::from_value(service)?;
                        api.create(&PostParams::default(), &service).await?;
                        anyhow::Ok(())
                    }
                }),
        )?;
        let counts = Arc::new(Counts::default());
        for number in 0..CLIENTS {
            let (client, counts) = (client.clone(), Arc::clone(&counts));
            let dice = Dice::new(seed.wrapping_add(u64::from(number) + 1).wrapping_mul(7919));
            lab.spawn(keep_changing(client, counts, dice, services));
        }
        Ok(Self { counts })
    }

    /// Ends it; true when the last change is made.
    pub(crate) fn has_stopped(&self) -> bool {
        self.counts.stop.store(true, Ordering::Release);
        self.counts.ended.load(Ordering::Acquire) == usize::try_from(CLIENTS).unwrap_or_default()
    }
}

async fn keep_changing(client: Client, counts: Arc<Counts>, mut dice: Dice, services: u64) {
    while !counts.stop.load(Ordering::Acquire) {
        let counter = match change(&client, &mut dice, services).await {
            Ok(()) => &counts.made,
            Err(_) => &counts.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(1) * CLIENTS / RATE).await;
    }
    counts.ended.fetch_add(1, Ordering::Release);
}

/// The second tenant's namespace, which has to be there.
pub(crate) fn tenant() -> String {
    let name = NAMESPACES[1];
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } }).to_string()
}

/// Where the Service of a number is.
pub(crate) fn namespace(n: u64) -> &'static str {
    NAMESPACES[usize::try_from(n % 2).unwrap_or_default()]
}

fn api(client: &Client, n: u64) -> Api<Service> {
    Api::namespaced(client.clone(), namespace(n))
}

fn name(n: u64) -> String {
    format!("s-{n}")
}

/// A new Service.
pub(crate) fn service(n: u64, dice: &mut Dice) -> Value {
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
            "externalTrafficPolicy": traffic_policy(dice), "selector": selector(dice),
            "ports": [{ "port": port(dice) }],
        },
    })
}

fn traffic_policy(dice: &mut Dice) -> &'static str {
    ["Cluster", "Cluster", "Local"][usize::try_from(dice.roll(3)).unwrap_or_default()]
}

/// That of one of two workloads, or none. There are no pods: it is only about who may share.
fn selector(dice: &mut Dice) -> Value {
    match dice.roll(4) {
        0 => json!(null),
        1 => json!({ "app": "other" }),
        _ => json!({ "app": "main" }),
    }
}

fn sharing_key(dice: &mut Dice) -> String {
    format!("key-{}", dice.roll(12))
}

fn port(dice: &mut Dice) -> u64 {
    80 + dice.roll(12)
}

/// One change of one Service, whatever it is like now.
async fn change(client: &Client, dice: &mut Dice, services: u64) -> Result<()> {
    let n = dice.roll(services);
    let (api, name) = (api(client, n), name(n));
    let annotation =
        |name: &str, value: Value| json!({ "metadata": { "annotations": { name: value } } });
    let patch = match dice.roll(22) {
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
        // Both at once, as a switch to another workload is made, or one of them.
        19 => json!({ "spec": {
            "externalTrafficPolicy": traffic_policy(dice), "selector": selector(dice),
        } }),
        20 => match dice.roll(2) {
            0 => json!({ "spec": { "externalTrafficPolicy": traffic_policy(dice) } }),
            _ => json!({ "spec": { "selector": selector(dice) } }),
        },
        _ => json!({ "spec": { "ports": [{ "port": port(dice) }] } }),
    };
    api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(())
}
