//! Wiring: arguments, watches, tasks, shutdown.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use bellrock_api::{
    BFDProfile, BGPAdvertisement, BGPPeer, Community, IPAddressPool, L2Advertisement, VirtualIP,
};
use bellrock_forward::Forwarder;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject};
use kube::config::Kubeconfig;
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::forward::Forwarding;
use crate::apply::l2::L2;
use crate::core::{Core, Edges};
use crate::plan::{self, Settings, Surroundings};
use crate::routes::Routes;
use crate::status::{self, Recorder, View};
use crate::succession::{self, Heirs, Place, Post};
use crate::surroundings::KubeProxy;
use crate::timers::TimerArgs;
use crate::uninstall::Installation;
use crate::watch::{Kind, Update, each, follow};
use crate::{convert, secrets, serve};

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
    /// Do not answer on interfaces whose names begin so (repeatable);
    /// replaces the default list of container and tunnel interfaces
    #[arg(long, value_name = "PREFIX")]
    pub exclude_interface: Vec<String>,
    /// A network that pods have addresses in beside those of Node.spec.podCIDRs
    /// (repeatable); callers from there are inside the cluster
    #[arg(long, value_name = "CIDR")]
    pub pod_network: Vec<IpNet>,
    /// Announce from this node even if it is labelled
    /// node.kubernetes.io/exclude-from-external-load-balancers
    #[arg(long)]
    pub ignore_exclude_label: bool,
    /// Who forwards what is sent to addresses: nftables (the speaker itself),
    /// kube-proxy, or none (somebody else)
    #[arg(long, value_name = "WHO", default_value = "nftables")]
    pub forwarding: plan::Forwarding,
    /// Whether kube-proxy is on the node. Where it is not, the speaker forwards
    /// the node ports of all Services and serves their health check ports
    #[arg(long, value_enum, default_value_t)]
    pub kube_proxy: KubeProxy,
    /// Have node ports listen on the node's addresses in this network
    /// (repeatable); by default on its primary address of each family
    #[arg(long, value_name = "CIDR")]
    pub node_port_addresses: Vec<IpNet>,
    /// Address for BGP peers to connect to, usually port 179 (repeatable);
    /// without it the speaker opens every session itself
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub bgp_listen: Vec<SocketAddr>,
    /// Address for /healthz, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9618")]
    pub listen: SocketAddr,
    /// Unix socket for the same, of this process alone: on the host's network
    /// the port may still be that of the speaker that this one replaces
    #[arg(long, value_name = "PATH")]
    pub health_socket: Option<PathBuf>,
    /// The DaemonSet that the speaker belongs to: when it is deleted, the
    /// speaker removes the forwarding as it ends
    #[arg(long, env = "BELLROCK_DAEMON_SET", value_name = "NAME")]
    pub daemon_set: Option<String>,
    /// The timers of the segment.
    #[command(flatten)]
    pub timers: TimerArgs,
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
    config.timers = args.timers.timers();
    if !args.exclude_interface.is_empty() {
        config.exclude_interfaces = args
            .exclude_interface
            .iter()
            .map(|prefix| format!("{prefix}*"))
            .collect();
    }
    let place = match succession::look(&args.namespace, &args.cluster).await {
        Ok(place) => Some(place),
        Err(error) => {
            tracing::warn!(%error, "cannot look for another speaker on this node");
            None
        }
    };
    config.standby = matches!(place, Some(Place::Taken(_)));
    let post = if config.standby {
        Post::Standby
    } else {
        Post::Serving(None)
    };
    let (handle, ownership) =
        bellrock_arp::Handle::start(config).context("start answering on the segment")?;
    let forwarding = Forwarding::start(args.forwarding)?;

    let client = Client::try_default().await.context("find the API server")?;
    let (view, viewed) = channel::channel(View::starting(&args.node_name));
    let mut tasks = JoinSet::new();
    let (post_sender, post) = channel::channel(post);
    let server = serve::serve(args.listen, viewed.clone(), stop.clone());
    let mut serves = post.clone();
    tasks.spawn(async move {
        // The port is the other speaker's before.
        let _ = serves.wait_for(|post| *post != Post::Standby).await;
        server.await;
    });
    let (ready, can_go_on) = channel::channel(false);
    let heirs = Heirs::default();
    if let Some(place) = place {
        let names = (args.namespace.clone(), args.cluster.clone());
        let (heirs, stop) = (heirs.clone(), stop.clone());
        let work = succession::hold(place, names, post_sender, can_go_on, heirs, stop);
        tasks.spawn(work);
    }
    if let Some(path) = &args.health_socket {
        let listener = serve::listen(path)
            .with_context(|| format!("listen on the health socket {}", path.display()))?;
        tasks.spawn(serve::serve_socket(listener, viewed.clone(), stop.clone()));
    }
    let installation = args.daemon_set.clone().map(|name| {
        let api = Api::namespaced(client.clone(), &args.namespace);
        let (installation, work) = Installation::new(api, name);
        tasks.spawn(work);
        Arc::new(installation)
    });
    tasks.spawn(status::publish(
        client.clone(),
        args.node_name.clone(),
        viewed,
        stop.clone(),
    ));
    let recorder = Recorder::start(&mut tasks, client.clone(), &args.node_name, stop.clone());
    let (updates, receiver) = mpsc::channel(UPDATE_QUEUE);
    watch(&mut tasks, &client, &args.namespace, &updates);
    let (wanted, names) = channel::channel(BTreeSet::new());
    let api = Api::namespaced(client.clone(), &args.namespace);
    tasks.spawn(secrets::follow(api, names, updates));

    let settings = Settings {
        ignore_exclude_label: args.ignore_exclude_label,
        pod_networks: args.pod_network,
        protected: api_servers(),
        forwarding: args.forwarding,
        node_port_networks: args.node_port_addresses,
        // Until the first look nothing is taken from kube-proxy.
        surroundings: Surroundings {
            kube_proxy: args.kube_proxy != KubeProxy::Absent,
            ..Surroundings::default()
        },
        silent: BTreeSet::new(),
    };
    let edges = Edges {
        forwarding,
        l2: L2::new(handle),
        routes: Routes::open()?,
        secrets: wanted,
        kube_proxy: args.kube_proxy,
        post,
        ready,
        heirs,
        bgp_listen: args.bgp_listen,
        installation: installation.clone(),
        recorder,
        view,
    };
    tracing::info!(node = args.node_name, "speaker started");
    let core = Core::new(args.node_name, settings, edges);
    let mut running = std::pin::pin!(core.run(receiver, ownership, stop.clone()));
    let result = loop {
        tokio::select! {
            result = &mut running => break result,
            // A watch, or another task that goes on until the end.
            Some(ended) = tasks.join_next() => if !stop.is_cancelled() {
                break Err(anyhow!("a task of the speaker has ended: {ended:?}"));
            },
        }
    };
    stop.cancel();
    let uninstalled = match &installation {
        Some(installation) => installation.is_over().await,
        None => false,
    };
    tasks.shutdown().await;
    match &result {
        Ok(()) if uninstalled => {
            tokio::task::spawn_blocking(Forwarder::remove_table)
                .await?
                .context("remove the forwarding table")?;
            tracing::info!("uninstalled; forwarding is removed");
        }
        Ok(()) => tracing::info!("stopped; forwarding stays in the kernel"),
        Err(error) => tracing::error!(error = format!("{error:#}"), "giving up"),
    }
    result
}

/// Addresses of the API server, where it is given by address: they must never
/// be announced, nor what is sent to them be refused.
fn api_servers() -> BTreeSet<IpAddr> {
    #[allow(
        clippy::disallowed_methods,
        reason = "how a pod is told of the API server"
    )]
    let service = std::env::var("KUBERNETES_SERVICE_HOST").ok();
    let kubeconfig = Kubeconfig::read().ok();
    let clusters = kubeconfig.into_iter().flat_map(|config| config.clusters);
    let servers = clusters.filter_map(|cluster| cluster.cluster?.server);
    let hosts = servers.filter_map(|server| {
        let uri: http::Uri = server.parse().ok()?;
        Some(uri.host()?.trim_matches(['[', ']']).to_owned())
    });
    hosts
        .chain(service)
        .filter_map(|host| host.parse().ok())
        .collect()
}

/// Starts a watch for each kind. They end with `tasks`.
fn watch(
    tasks: &mut JoinSet<()>,
    client: &Client,
    namespace: &str,
    updates: &mpsc::Sender<Update>,
) {
    // Only Services of types that are reached from outside, and no slices of
    // headless ones. A Service that changes its type is reported as deleted.
    let reachable = "spec.type!=ClusterIP,spec.type!=ExternalName";
    let reachable = watcher::Config::default().fields(reachable);
    let named = "kubernetes.io/service-name,!service.kubernetes.io/headless";
    let slices = watcher::Config::default().labels(named);
    let all = watcher::Config::default;
    let everywhere = client.clone();
    macro_rules! follow {
        ($kind:ident, $api:expr, $config:expr, $parse:expr) => {
            tasks.spawn(follow($api, $config, Kind::$kind, $parse, updates.clone()))
        };
    }
    follow!(
        Service,
        Api::<Service>::all(everywhere.clone()),
        reachable,
        convert::service
    );
    follow!(
        EndpointSlice,
        Api::<EndpointSlice>::all(everywhere.clone()),
        slices,
        convert::slice
    );
    follow!(Node, Api::<Node>::all(everywhere), all(), convert::node);

    // Objects of our own kinds are parsed one by one: one that does not parse
    // must not hide the others.
    macro_rules! ours {
        ($kind:ident, $object:ty, $api:expr, $parse:path, $gone:path) => {
            follow!($kind, $api, all(), each::<$object>($parse, $gone))
        };
    }
    let here = |resource: &ApiResource| {
        Api::<DynamicObject>::namespaced_with(client.clone(), namespace, resource)
    };
    let of = |resource: ApiResource| here(&resource);
    let virtual_ips = ApiResource::erase::<VirtualIP>(&());
    let virtual_ips = Api::<DynamicObject>::all_with(client.clone(), &virtual_ips);
    ours!(
        VirtualIp,
        VirtualIP,
        virtual_ips,
        convert::virtual_ip,
        convert::no_virtual_ip
    );
    follow!(
        Pool,
        of(ApiResource::erase::<IPAddressPool>(&())),
        all(),
        convert::pool
    );
    let l2 = of(ApiResource::erase::<L2Advertisement>(&()));
    ours!(
        L2Advertisement,
        L2Advertisement,
        l2,
        convert::l2_advertisement,
        convert::no_l2
    );
    let bgp = of(ApiResource::erase::<BGPAdvertisement>(&()));
    ours!(
        BgpAdvertisement,
        BGPAdvertisement,
        bgp,
        convert::bgp_advertisement,
        convert::no_bgp
    );
    let peers = of(ApiResource::erase::<BGPPeer>(&()));
    ours!(BgpPeer, BGPPeer, peers, convert::bgp_peer, convert::no_peer);
    let profiles = of(ApiResource::erase::<BFDProfile>(&()));
    ours!(
        BfdProfile,
        BFDProfile,
        profiles,
        convert::bfd_profile,
        convert::no_bfd_profile
    );
    let communities = of(ApiResource::erase::<Community>(&()));
    ours!(
        Community,
        Community,
        communities,
        convert::communities,
        convert::no_community
    );
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
