//! Many Services at once, and a watch that sees when each has its address.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, pin_mut, stream};
use k8s_openapi::api::core::v1::Service;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::lab::Lab;
use crate::observe::external_address;
use crate::process::lock;

/// Requests under way at a time.
const CLIENTS: usize = 24;

/// How long the slowest step may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Without a write for so long, the API server is idle.
const IDLE: Duration = Duration::from_millis(200);

/// When each Service was first seen with an address.
type Seen = Arc<Mutex<HashMap<String, Instant>>>;

/// The Services of one lab.
pub(super) struct Flood<'a> {
    lab: &'a Lab,
    api: Api<Service>,
    seen: Seen,
    made: Mutex<Vec<String>>,
    began: Mutex<Instant>,
}

impl<'a> Flood<'a> {
    /// Starts the watch.
    pub(super) fn start(lab: &'a Lab) -> Result<Self> {
        let api: Api<Service> = Api::default_namespaced(lab.admin());
        let seen = Seen::default();
        let (watched, found) = (api.clone(), Arc::clone(&seen));
        lab.spawn(async move {
            let events = watcher(watched, watcher::Config::default());
            pin_mut!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(Event::Apply(service) | Event::InitApply(service)) => {
                        if external_address(&service).is_some() {
                            let mut seen = lock(&found);
                            seen.entry(service.name_any()).or_insert_with(Instant::now);
                        }
                    }
                    Ok(Event::Delete(service)) => {
                        lock(&found).remove(&service.name_any());
                    }
                    Ok(Event::Init | Event::InitDone) | Err(_) => {}
                }
            }
        });
        Ok(Self {
            lab,
            api,
            seen,
            made: Mutex::default(),
            began: Mutex::new(Instant::now()),
        })
    }

    /// A Service that costs nobody but the allocator anything: no pods, no node ports.
    fn service(name: &str) -> Result<Service> {
        Ok(serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
                "ports": [{ "port": 80 }],
            },
        }))?)
    }

    /// Creates Services.
    pub(super) fn create(&self, count: usize) -> Result<()> {
        let names: Vec<String> = (0..count).map(|n| format!("s-{n}")).collect();
        self.lab
            .block_on(stream::iter(&names).map(Ok).try_for_each_concurrent(
                CLIENTS,
                |name| async move {
                    let service = Self::service(name)?;
                    self.api.create(&PostParams::default(), &service).await?;
                    anyhow::Ok(())
                },
            ))?;
        lock(&self.made).extend(names);
        Ok(())
    }

    /// Time is counted from here.
    pub(super) fn begin(&self) {
        *lock(&self.began) = Instant::now();
    }

    /// Waits until so many Services have an address; the seconds to the last of them.
    pub(super) fn until_addressed(&self, count: usize) -> Result<f64> {
        let began = *lock(&self.began);
        self.lab
            .until("every Service has an address", PATIENCE, || {
                let seen = lock(&self.seen);
                ensure!(seen.len() == count, "{} of {count}", seen.len());
                let last = seen.values().max().context("none")?;
                Ok(last.duration_since(began).as_secs_f64())
            })
    }

    /// Deletes every Service, and waits until the watch has seen it.
    pub(super) fn delete_all(&self) -> Result<()> {
        let names = std::mem::take(&mut *lock(&self.made));
        self.lab
            .block_on(stream::iter(&names).map(Ok).try_for_each_concurrent(
                CLIENTS,
                |name| async move {
                    self.api.delete(name, &DeleteParams::default()).await?;
                    anyhow::Ok(())
                },
            ))?;
        self.lab.until("all are gone", PATIENCE, || {
            ensure!(lock(&self.seen).is_empty());
            Ok(())
        })
    }

    /// Creates Services one after the other, each when the API server is idle: the Event of the
    /// last is written too. The seconds from sending each request to its answer, and to seeing its
    /// address.
    pub(super) fn one_by_one(&self, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut answers, mut addresses) = (Vec::new(), Vec::new());
        for n in 0..count {
            let name = format!("more-{n}");
            let service = Self::service(&name)?;
            self.lab.until_no_writes(IDLE, PATIENCE)?;
            let start = Instant::now();
            self.lab
                .block_on(self.api.create(&PostParams::default(), &service))?;
            answers.push(start.elapsed().as_secs_f64());
            let seen = self.lab.until("it has an address", PATIENCE, || {
                let seen = lock(&self.seen);
                seen.get(&name).copied().context("not yet")
            })?;
            addresses.push(seen.duration_since(start).as_secs_f64());
        }
        Ok((answers, addresses))
    }
}
