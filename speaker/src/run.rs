//! Wiring: arguments, watches, tasks, shutdown.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use bellrock_api::{
    BGPAdvertisement, BGPPeer, Community, IPAddressPool, L2Advertisement, VirtualIP,
};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::forward::Forwarding;
use crate::apply::l2::L2;
use crate::core::Core;
use crate::plan::Settings;
use crate::routes::Routes;
use crate::status::{self, Recorder, View};
use crate::watch::{Kind, follow};
use crate::{convert, http};

/// How many updates may wait for the loop; the watches wait beyond that.
const UPDATE_QUEUE: usize = 8192;

/// Options of `bellrock speaker`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Namespace that Bellrock runs in; pools, advertisements and peers are
    /// read from there only
    #[arg(long, env = "BELLROCK_NAMESPACE", default_value = "bellrock-system")]
    pub namespace: String,
    /// Name of the Node object of the node that this speaker runs on
    #[arg(long, env = "BELLROCK_NODE_NAME")]
    pub node_name: String,
    /// File with the key that authenticates the speakers' own frames on the
    /// segment; the same on all nodes, at least 16 bytes
    #[arg(long, value_name = "FILE")]
    pub key_file: PathBuf,
    /// Name of the cluster in the speakers' own frames; clusters that share a
    /// segment need different names
    #[arg(long, default_value = "default")]
    pub cluster: String,
    /// EtherType of the speakers' own frames (hexadecimal)
    #[arg(long, default_value = "88b5", value_parser = ethertype)]
    pub ethertype: u16,
    /// Do not answer ARP on interfaces whose names begin so (repeatable);
    /// replaces the default list of container and tunnel interfaces
    #[arg(long, value_name = "PREFIX")]
    pub exclude_interface: Vec<String>,
    /// Announce from this node even if it is labelled
    /// node.kubernetes.io/exclude-from-external-load-balancers
    #[arg(long)]
    pub ignore_exclude_label: bool,
    /// Address for /healthz, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9618")]
    pub listen: SocketAddr,
}

fn ethertype(text: &str) -> Result<u16, String> {
    let digits = text.trim_start_matches("0x");
    let value = u16::from_str_radix(digits, 16).map_err(|_| "not a hexadecimal number")?;
    // Smaller values are frame lengths (IEEE 802.3).
    if value < 0x600 {
        return Err("an EtherType is at least 0600".to_owned());
    }
    Ok(value)
}

/// Runs the speaker until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<()> {
    let key = std::fs::read(&args.key_file)
        .with_context(|| format!("read the segment key {}", args.key_file.display()))?;
    let stop = CancellationToken::new();
    stop_on_signal(&stop)?;

    let mut config = bellrock_arp::Config::new(&args.node_name, &args.cluster, key);
    config.ethertype = args.ethertype;
    if !args.exclude_interface.is_empty() {
        config.exclude_interfaces = args.exclude_interface.clone();
    }
    let (handle, ownership) =
        bellrock_arp::Handle::start(config).context("start answering on the segment")?;
    let forwarding = Forwarding::start()?;

    let client = Client::try_default().await.context("find the API server")?;
    let (view, viewed) = channel::channel(View::starting(&args.node_name));
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve(args.listen, viewed.clone(), stop.clone()));
    tasks.spawn(status::publish(
        client.clone(),
        args.node_name.clone(),
        viewed,
        stop.clone(),
    ));
    let recorder = Recorder::start(&mut tasks, client.clone(), &args.node_name, stop.clone());
    let updates = watch(&mut tasks, &client, &args.namespace);

    let settings = Settings {
        ignore_exclude_label: args.ignore_exclude_label,
    };
    tracing::info!(node = args.node_name, "speaker started");
    Core::new(
        args.node_name,
        settings,
        forwarding,
        L2::new(handle),
        Routes::open()?,
    )
    .run(updates, ownership, recorder, view, stop.clone())
    .await;
    stop.cancel();
    tasks.shutdown().await;
    tracing::info!("stopped; forwarding stays in the kernel");
    Ok(())
}

/// Starts a watch for each kind. They end with `tasks`.
fn watch(
    tasks: &mut JoinSet<()>,
    client: &Client,
    namespace: &str,
) -> mpsc::Receiver<crate::watch::Update> {
    let (updates, receiver) = mpsc::channel(UPDATE_QUEUE);
    macro_rules! follow {
        ($kind:ident, $api:expr, $config:expr, $parse:path) => {
            tasks.spawn(follow($api, $config, Kind::$kind, $parse, updates.clone()));
        };
    }
    let all = watcher::Config::default;
    // Only Services of type LoadBalancer, and no slices of headless ones. A
    // Service that changes its type is reported as deleted.
    let balancers = all().fields("spec.type=LoadBalancer");
    let slices = all().labels("kubernetes.io/service-name,!service.kubernetes.io/headless");
    let ours = |client: &Client| client.clone();
    follow!(
        Service,
        Api::<Service>::all(ours(client)),
        balancers,
        convert::service
    );
    follow!(
        EndpointSlice,
        Api::<EndpointSlice>::all(ours(client)),
        slices,
        convert::slice
    );
    follow!(Node, Api::<Node>::all(ours(client)), all(), convert::node);
    follow!(
        VirtualIp,
        Api::<VirtualIP>::all(ours(client)),
        all(),
        convert::virtual_ip
    );
    let pools = Api::<IPAddressPool>::namespaced(client.clone(), namespace);
    follow!(Pool, pools, all(), convert::pool);
    let l2 = Api::<L2Advertisement>::namespaced(client.clone(), namespace);
    follow!(L2Advertisement, l2, all(), convert::l2_advertisement);
    let bgp = Api::<BGPAdvertisement>::namespaced(client.clone(), namespace);
    follow!(BgpAdvertisement, bgp, all(), convert::bgp_advertisement);
    let peers = Api::<BGPPeer>::namespaced(client.clone(), namespace);
    follow!(BgpPeer, peers, all(), convert::bgp_peer);
    let communities = Api::<Community>::namespaced(client.clone(), namespace);
    follow!(Community, communities, all(), convert::communities);
    receiver
}

fn stop_on_signal(stop: &CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}
