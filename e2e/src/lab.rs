//! A whole cluster in namespaces: [`Lab::up`] to a [`Lab`], whose drop ends it.
//!
//! ```text
//!                  segment (bridge in a namespace of its own)
//!    cp ── n1 ── n2 ── n3 ── c1 ── r1 (FRR) ── c2
//!    etcd, API    pods: namespaces behind their node
//! ```
//!
//! Nothing of it is in the machine's own network namespace but one loopback
//! port that leads to the API server.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::bellrock::Installed;
use crate::bellrock::Workload;
use crate::capture::Capture;
use crate::cluster::{API_PORT, ApiOptions, Cluster, KubeProxy};
use crate::frr::Frr;
use crate::ground::{self, Ground};
use crate::netns::Netns;
use crate::parts::{self, Part};
use crate::probe;
use crate::process::{Process, Task};
use crate::relay::Relay;
use crate::topology::{Role, Topology};
use crate::wiring::{Addresses, addresses, wire};

/// How long the parts of a lab may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub use crate::pods::{ECHO, PodPlace, deployment, service};

/// Gets a line at each step of a lab's start.
pub type Say = Arc<dyn Fn(&str) + Send + Sync>;

/// What kind of lab.
#[derive(Clone)]
pub struct Options {
    /// The topology file.
    pub topology: PathBuf,
    /// kube-proxy on the nodes.
    pub kube_proxy: KubeProxy,
    /// What the API server is to do beside serving.
    pub api: ApiOptions,
    /// Keep the logs even if nothing fails.
    pub keep_logs: bool,
    /// Gets a line at each step.
    pub say: Say,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            topology: default_topology(),
            kube_proxy: KubeProxy::default(),
            api: ApiOptions::default(),
            keep_logs: false,
            say: Arc::new(|line| eprintln!("{line}")),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("topology", &self.topology)
            .field("kube_proxy", &self.kube_proxy)
            .field("api", &self.api)
            .field("keep_logs", &self.keep_logs)
            .finish_non_exhaustive()
    }
}

/// Three nodes, a client on their segment, a router, a client behind it.
pub fn default_topology() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies/lab.clab.yml")
}

/// A running lab.
pub struct Lab {
    pub(crate) ground: Arc<Ground>,
    pub(crate) cluster: Cluster,
    addresses: BTreeMap<String, Addresses>,
    client: Client,
    kubeconfig: PathBuf,
    relay: Relay,
    runtime: Runtime,
    routers: BTreeMap<String, Frr>,
    hosts: BTreeMap<String, Netns>,
    topology: Topology,
    pub(crate) installed: Mutex<Option<Installed>>,
}

impl fmt::Debug for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lab")
            .field("id", &self.id())
            .field("topology", &self.topology.name)
            .finish_non_exhaustive()
    }
}

impl Lab {
    /// Builds what is missing, starts everything and waits until all nodes are
    /// Ready. Must not be called from inside an async runtime.
    pub fn up(options: &Options) -> Result<Self> {
        ground::check_root()?;
        parts::check_tools(options.kube_proxy)?;
        let topology = Topology::load(&options.topology)?;
        parts::ensure(&Part::NAMESPACES, &*options.say)?;
        ground::sweep()?;
        let ground = Ground::claim()?;
        let started = Self::start(&ground, topology, options);
        if options.keep_logs || started.is_err() {
            ground.keep();
        }
        let logs = ground.dir().join("logs");
        started.with_context(|| format!("lab {}, logs in {}", ground.id(), logs.display()))
    }

    fn start(ground: &Arc<Ground>, topology: Topology, options: &Options) -> Result<Self> {
        let mut steps = Steps::new(&options.say);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("lab")
            .enable_all()
            .build()?;
        let hosts = wire(ground, &topology)?;
        let addresses = addresses(&hosts, &topology)?;
        steps.done("namespaces and cables");

        let plane = topology
            .with_role(Role::ControlPlane)
            .next()
            .context("no control plane")?
            .to_owned();
        let address = addresses
            .get(&plane)
            .context("no address of the control plane")?
            .v4;
        let cluster = Cluster::prepare(ground, &plane, address)?;
        cluster.start_api(options.api)?;
        let mut routers = BTreeMap::new();
        for name in topology.with_role(Role::Router) {
            let file = topology.nodes[name]
                .frr
                .as_ref()
                .context("no FRR configuration")?;
            let config = std::fs::read_to_string(file)
                .with_context(|| format!("read {}", file.display()))?;
            routers.insert(name.to_owned(), Frr::start(&hosts[name], &config)?);
        }
        steps.done("routers");

        let target = SocketAddr::new(address.into(), API_PORT);
        let relay = Relay::open(runtime.handle(), &hosts[&plane], target)?;
        let kubeconfig = cluster.admin_kubeconfig(&format!("https://{}", relay.address()))?;
        let client = runtime.block_on(client(&kubeconfig))?;
        let lab = Self {
            ground: Arc::clone(ground),
            cluster,
            addresses,
            client,
            kubeconfig,
            relay,
            runtime,
            routers,
            hosts,
            topology,
            installed: Mutex::new(None),
        };
        lab.until("the API server is ready", PATIENCE, || lab.api_ready())?;
        steps.done("etcd and API server");

        lab.cluster.start_managers()?;
        for (index, node) in lab.topology.with_role(Role::Node).enumerate() {
            lab.start_node(node, index + 1, &plane, options.api)?;
        }
        lab.until("all nodes are ready", PATIENCE, || lab.nodes_ready())?;
        steps.done("controllers, scheduler, nodes");
        if options.kube_proxy != KubeProxy::None {
            lab.start_kube_proxy(options.kube_proxy)?;
            steps.done("kube-proxy");
        }
        Ok(lab)
    }

    /// Starts kube-proxy on every node and waits until it is ready.
    pub fn start_kube_proxy(&self, mode: KubeProxy) -> Result<()> {
        for node in self.nodes() {
            self.cluster.start_proxy(node, mode)?;
        }
        self.until("kube-proxy is ready", PATIENCE, || self.proxies_ready())
    }

    fn start_node(&self, node: &str, number: usize, plane: &str, api: ApiOptions) -> Result<()> {
        let address = self.address(node);
        let cidr = format!("10.244.{number}.0/24");
        let mut args = vec![
            "agent".to_owned(),
            format!("--node={node}"),
            format!("--address={address}"),
            format!("--pod-cidr={cidr}"),
            format!("--prefix={}", self.ground.prefix()),
            format!("--kubeconfig={}", self.cluster.identity("agent").display()),
        ];
        if api.dual_stack {
            args.push(format!("--address6={}", self.address6(node)));
            args.push(format!("--pod-cidr6=fd10:244:{number}::/64"));
        }
        for (key, value) in &self.topology.nodes[node].labels {
            args.push(format!("--label={key}={value}"));
        }
        self.ground.start(Task {
            name: format!("agent-{node}"),
            netns: Some(self.ground.netns(node)),
            shares_mounts: true,
            program: lab_program()?,
            args: args.into_iter().map(Into::into).collect(),
            ..Task::default()
        })?;
        // The API server reaches pods (webhooks) like a node does.
        self.host(plane)
            .sh(&format!("ip route add {cidr} via {address}"))?;
        Ok(())
    }

    fn api_ready(&self) -> Result<()> {
        let request = axum::http::Request::get("/readyz").body(Vec::new())?;
        self.block_on(async { self.client.request_text(request).await })?;
        Ok(())
    }

    fn nodes_ready(&self) -> Result<()> {
        let wanted: Vec<&str> = self.topology.with_role(Role::Node).collect();
        let nodes: Api<Node> = Api::all(self.admin());
        let accounts: Api<ServiceAccount> = Api::default_namespaced(self.admin());
        let found = self.block_on(async { nodes.list(&Default::default()).await })?;
        for name in wanted {
            let node = found.items.iter().find(|node| node.name_any() == name);
            let node = node.with_context(|| format!("{name} has not registered"))?;
            let ready = node
                .status
                .iter()
                .flat_map(|status| status.conditions.iter().flatten())
                .any(|c| c.type_ == "Ready" && c.status == "True");
            ensure!(ready, "{name} is not ready");
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            ensure!(
                taints.is_none_or(Vec::is_empty),
                "{name} still has taints: {taints:?}"
            );
        }
        self.block_on(async { accounts.get("default").await })
            .context("service account `default`")?;
        Ok(())
    }

    fn proxies_ready(&self) -> Result<()> {
        let health = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_256));
        for node in self.topology.with_role(Role::Node) {
            let (status, body) = self
                .host(node)
                .run(|| probe::request("GET", health, "/healthz"))?
                .with_context(|| format!("kube-proxy on {node}"))?;
            ensure!(status == 200, "kube-proxy on {node}: {status} {body}");
        }
        Ok(())
    }

    /// Ends the API server in order, starts it again and waits until it answers.
    pub fn restart_api(&self) -> Result<()> {
        self.cluster.restart_api()?;
        self.until("the API server is ready", PATIENCE, || self.api_ready())
    }

    /// Waits until `condition` holds. Fails at once, quoting its log, if a
    /// part of the lab ended meanwhile.
    pub fn until<T>(
        &self,
        what: &str,
        within: Duration,
        mut condition: impl FnMut() -> Result<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let error = match condition() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            self.ground.check()?;
            if start.elapsed() > within {
                return Err(error.context(format!("waited {within:?} until {what}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The lab's id: four hexadecimal digits.
    pub fn id(&self) -> &str {
        self.ground.id()
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        self.ground.dir()
    }

    /// Keeps the logs, because something failed.
    pub fn keep_logs(&self) {
        self.ground.keep();
    }

    /// The topology.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The names of the Kubernetes nodes.
    pub fn nodes(&self) -> Vec<&str> {
        self.topology.with_role(Role::Node).collect()
    }

    /// A host by its name in the topology.
    ///
    /// # Panics
    /// If there is none.
    pub fn host(&self, name: &str) -> &Netns {
        self.hosts
            .get(name)
            .unwrap_or_else(|| panic!("the topology has no {name}"))
    }

    /// The address of a host's `eth1`.
    ///
    /// # Panics
    /// If it has none.
    pub fn address(&self, host: &str) -> Ipv4Addr {
        self.addresses
            .get(host)
            .unwrap_or_else(|| panic!("{host} has no address"))
            .v4
    }

    /// The IPv6 address of a host's `eth1`.
    ///
    /// # Panics
    /// If it has none.
    pub fn address6(&self, host: &str) -> Ipv6Addr {
        self.addresses
            .get(host)
            .and_then(|addresses| addresses.v6)
            .unwrap_or_else(|| panic!("{host} has no IPv6 address"))
    }

    /// The FRR of a router.
    ///
    /// # Panics
    /// If it is no router.
    pub fn frr(&self, router: &str) -> &Frr {
        self.routers
            .get(router)
            .unwrap_or_else(|| panic!("{router} is no router"))
    }

    /// A client with all rights.
    pub fn admin(&self) -> Client {
        self.client.clone()
    }

    /// A client with the rights of a controller or speaker, from the machine
    /// itself.
    pub fn client_of(&self, workload: &Workload) -> Result<Client> {
        let mut kubeconfig = Kubeconfig::read_from(workload.kubeconfig())?;
        for cluster in &mut kubeconfig.clusters {
            if let Some(cluster) = &mut cluster.cluster {
                cluster.server = Some(self.server());
            }
        }
        self.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            Ok(Client::try_from(config)?)
        })
    }

    /// Runs a future, such as a request of [`Lab::admin`]'s client, to its end.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Runs a future beside the caller until the lab ends.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    /// A kubeconfig with all rights that works from the machine itself.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The API server's URL as seen from the machine itself.
    pub fn server(&self) -> String {
        format!("https://{}", self.relay.address())
    }

    /// Runs `kubectl` with all rights; its output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.kubectl_with(args, "")
    }

    /// Runs `kubectl ... -o json`; its output, parsed.
    pub fn kubectl_json(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {args:?} said: {text}"))
    }

    /// Creates or updates objects from YAML or JSON text.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let args = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        self.kubectl_with(&args, manifest)
    }

    /// Runs `kubectl` with text on its standard input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Result<String> {
        use std::io::Write;
        let mut child = Command::new(parts::path(Part::Kubectl)?)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.ground.dir().join("kubectl"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        // kubectl may end without having read it all; its status says why.
        let _ = child
            .stdin
            .take()
            .context("kubectl's input")?
            .write_all(input.as_bytes());
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Captures on a host. The filter is `pcap-filter(7)`'s.
    pub fn capture(&self, host: &str, device: &str, filter: &str) -> Result<Capture> {
        Capture::start(self.host(host), device, filter)
    }

    /// Asks once by HTTP.
    pub fn http(
        &self,
        client: &str,
        server: impl Into<IpAddr>,
        port: u16,
    ) -> Result<probe::Answer> {
        probe::http(self.host(client), SocketAddr::new(server.into(), port))
    }

    /// Asks once by UDP.
    pub fn udp(&self, client: &str, server: impl Into<IpAddr>, port: u16) -> Result<probe::Answer> {
        probe::udp(self.host(client), SocketAddr::new(server.into(), port))
    }

    /// Starts a child of the lab in a host's namespace.
    pub fn start_process(&self, host: &str, task: Task) -> Result<Arc<Process>> {
        self.ground.start(Task {
            netns: Some(self.ground.netns(host)),
            ..task
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.ground.keep();
        }
        self.ground.teardown();
    }
}

/// The lab's own program: this one, or the one built beside it.
pub fn lab_program() -> Result<PathBuf> {
    program("bellrock-lab", "BELLROCK_LAB_BIN")
}

/// A program of this workspace: named by an environment variable, or beside
/// the running program, or one folder up (tests are one folder down).
pub fn program(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        ensure!(
            path.is_file(),
            "{variable}: {} is not there",
            path.display()
        );
        return Ok(path);
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no `{name}` beside {}: build it, or set {variable}",
                own.display()
            )
        })
}

struct Steps<'a> {
    say: &'a Say,
    last: Instant,
}

impl<'a> Steps<'a> {
    fn new(say: &'a Say) -> Self {
        Self {
            say,
            last: Instant::now(),
        }
    }

    fn done(&mut self, step: &str) {
        let now = Instant::now();
        let took = now.duration_since(self.last).as_secs_f32();
        (self.say)(&format!("{step:<32} {took:5.1} s"));
        self.last = now;
    }
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}
