//! The control plane: etcd, kube-apiserver, kube-controller-manager and
//! kube-scheduler in one namespace, and a kube-proxy on each node. Each has an
//! identity of its own and the rights that Kubernetes' own RBAC gives it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::audit;
use crate::ground::Ground;
use crate::parts::{self, Part};
use crate::pki::Pki;
use crate::process::{Process, Task, lock};

/// Port of the API server.
pub const API_PORT: u16 = 6443;
/// Addresses of ClusterIP Services.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The same of the second family, in a lab that has one.
const SERVICE_CIDR_6: &str = "fd96::/112";
/// Addresses of all pods; each node has a /24 of it.
pub const POD_CIDR: &str = "10.244.0.0/16";
/// The same of the second family; each node has a /64 of it.
const POD_CIDR_6: &str = "fd10:244::/32";

/// How ClusterIP and NodePort are carried on the nodes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum KubeProxy {
    /// kube-proxy in its nftables mode.
    #[default]
    Nftables,
    /// kube-proxy in its iptables mode.
    Iptables,
    /// No kube-proxy.
    None,
}

impl KubeProxy {
    const fn mode(self) -> Option<&'static str> {
        match self {
            Self::Nftables => Some("nftables"),
            Self::Iptables => Some("iptables"),
            Self::None => None,
        }
    }
}

impl KubeProxy {
    /// The program that it drives the kernel with, and its package; empty if
    /// none.
    pub(crate) const fn tool(self) -> (&'static str, &'static str) {
        match self {
            Self::Nftables => ("nft", "nftables"),
            Self::Iptables => ("iptables", "iptables"),
            Self::None => ("", ""),
        }
    }
}

impl std::str::FromStr for KubeProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nftables" => Ok(Self::Nftables),
            "iptables" => Ok(Self::Iptables),
            "none" => Ok(Self::None),
            other => Err(format!("{other:?} is not nftables, iptables or none")),
        }
    }
}

/// Who uses the API, and the groups that give the right to.
const IDENTITIES: [(&str, &str, &str); 5] = [
    ("admin", "admin", "system:masters"),
    ("agent", "bellrock-lab:agent", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("proxy", "system:kube-proxy", ""),
];

/// What the API server is to do beside serving.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApiOptions {
    /// Keep an audit log of writes.
    pub audit: bool,
    /// Give nodes, pods and Services addresses of both families.
    pub dual_stack: bool,
}

/// The control plane's files and where it runs.
#[derive(Debug)]
pub struct Cluster {
    ground: Arc<Ground>,
    host: String,
    address: Ipv4Addr,
    pki: Pki,
    api: Mutex<Option<Arc<Process>>>,
    pod_cidrs: Mutex<String>,
}

impl Cluster {
    /// Makes keys and identities for a control plane on `host`, whose address
    /// on the segment is `address`.
    pub fn prepare(ground: &Arc<Ground>, host: &str, address: Ipv4Addr) -> Result<Self> {
        let names: Vec<String> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            host,
            "127.0.0.1",
            "10.96.0.1",
            &address.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        let pki = Pki::create(&ground.dir().join("pki"), &names)?;
        let cluster = Self {
            ground: Arc::clone(ground),
            host: host.to_owned(),
            address,
            pki,
            api: Mutex::default(),
            pod_cidrs: Mutex::new(POD_CIDR.to_owned()),
        };
        let mut lines = String::new();
        for (file, user, group) in IDENTITIES {
            let token = random()?;
            lines.push_str(&format!("{token},{user},{user},\"{group}\"\n"));
            cluster.pki.write(&format!("{file}.token"), &token)?;
            cluster.kubeconfig(&format!("{file}.kubeconfig"), &cluster.url(), &token)?;
        }
        cluster.pki.write("tokens.csv", &lines)?;
        Ok(cluster)
    }

    /// The API server's address on the segment.
    pub fn url(&self) -> String {
        format!("https://{}:{API_PORT}", self.address)
    }

    /// The kubeconfig of one of the lab's own identities.
    pub fn identity(&self, name: &str) -> PathBuf {
        self.pki.path(&format!("{name}.kubeconfig"))
    }

    /// The certificate that clients trust.
    pub fn ca(&self) -> Result<String> {
        Ok(fs::read_to_string(self.pki.path("ca.crt"))?)
    }

    /// The admin's kubeconfig for a server address outside the lab.
    pub fn admin_kubeconfig(&self, server: &str) -> Result<PathBuf> {
        let token = fs::read_to_string(self.pki.path("admin.token"))?;
        self.kubeconfig("outside.kubeconfig", server, &token)
    }

    fn kubeconfig(&self, file: &str, server: &str, token: &str) -> Result<PathBuf> {
        let text = kubeconfig(server, &self.pki.path("ca.crt"), &json!({"token": token}));
        self.pki.write(file, &text)
    }

    fn run(&self, part: Part, args: Vec<String>) -> Result<Arc<Process>> {
        self.ground.start(Task {
            name: part.name().to_owned(),
            netns: Some(self.ground.netns(&self.host)),
            program: parts::path(part)?,
            args: args.into_iter().map(Into::into).collect(),
            ..Task::default()
        })
    }

    fn file(&self, name: &str) -> String {
        self.pki.path(name).display().to_string()
    }

    /// Starts etcd and the API server.
    pub fn start_api(&self, options: ApiOptions) -> Result<()> {
        let data = self.ground.dir().join("etcd");
        self.run(
            Part::Etcd,
            vec![
                format!("--data-dir={}", data.display()),
                "--listen-client-urls=http://127.0.0.1:2379".into(),
                "--advertise-client-urls=http://127.0.0.1:2379".into(),
                "--listen-peer-urls=http://127.0.0.1:2380".into(),
                "--initial-advertise-peer-urls=http://127.0.0.1:2380".into(),
                "--initial-cluster=default=http://127.0.0.1:2380".into(),
                "--log-level=warn".into(),
                "--unsafe-no-fsync".into(),
            ],
        )?;
        let mut args = Vec::new();
        let mut service_cidrs = SERVICE_CIDR.to_owned();
        if options.dual_stack {
            service_cidrs = format!("{SERVICE_CIDR},{SERVICE_CIDR_6}");
            *lock(&self.pod_cidrs) = format!("{POD_CIDR},{POD_CIDR_6}");
        }
        if options.audit {
            let policy = self.pki.write("audit-policy.yaml", audit::POLICY)?;
            args.push(format!("--audit-policy-file={}", policy.display()));
            args.push(format!("--audit-log-path={}", self.audit_log().display()));
            // In MB: it is read whole.
            args.push("--audit-log-maxsize=4000".into());
        }
        args.extend(vec![
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--secure-port={API_PORT}"),
            format!("--advertise-address={}", self.address),
            format!("--tls-cert-file={}", self.file("apiserver.crt")),
            format!("--tls-private-key-file={}", self.file("apiserver.key")),
            format!("--cert-dir={}", self.file("")),
            format!("--token-auth-file={}", self.file("tokens.csv")),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-key-file={}", self.file("accounts.pub")),
            format!(
                "--service-account-signing-key-file={}",
                self.file("accounts.key")
            ),
            format!("--service-cluster-ip-range={service_cidrs}"),
            "--allow-privileged=true".into(),
            "--profiling=false".into(),
            // Webhooks are called at their endpoints: nothing here carries the addresses of
            // Services.
            "--enable-aggregator-routing=true".into(),
        ]);
        *lock(&self.api) = Some(self.run(Part::Apiserver, args)?);
        Ok(())
    }

    /// The API server's audit log.
    pub fn audit_log(&self) -> PathBuf {
        self.ground.dir().join("audit.log")
    }

    /// Ends the API server in order, and starts it again.
    pub fn restart_api(&self) -> Result<()> {
        let Some(api) = lock(&self.api).clone() else {
            bail!("the API server has not been started");
        };
        // It waits for watches to end, and cuts them then.
        let _ = api.terminate(std::time::Duration::from_secs(20));
        api.restart()
    }

    /// Starts what works on the API once it answers.
    pub fn start_managers(&self) -> Result<()> {
        self.run(
            Part::ControllerManager,
            vec![
                format!(
                    "--kubeconfig={}",
                    self.file("controller-manager.kubeconfig")
                ),
                format!("--root-ca-file={}", self.file("ca.crt")),
                format!(
                    "--service-account-private-key-file={}",
                    self.file("accounts.key")
                ),
                "--use-service-account-credentials=true".into(),
                // The defaults take seconds to start the controllers, and
                // minutes to make the slices of many Services.
                "--kube-api-qps=1000".into(),
                "--kube-api-burst=2000".into(),
                "--leader-elect=false".into(),
                "--secure-port=0".into(),
                "--profiling=false".into(),
            ],
        )?;
        self.run(
            Part::Scheduler,
            vec![
                format!("--kubeconfig={}", self.file("scheduler.kubeconfig")),
                "--kube-api-qps=1000".into(),
                "--kube-api-burst=2000".into(),
                "--leader-elect=false".into(),
                "--secure-port=0".into(),
                "--profiling=false".into(),
            ],
        )?;
        Ok(())
    }

    /// Starts kube-proxy on a node.
    pub fn start_proxy(&self, node: &str, proxy: KubeProxy) -> Result<()> {
        let Some(mode) = proxy.mode() else {
            return Ok(());
        };
        // JSON is YAML.
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": mode,
            "hostnameOverride": node,
            "clusterCIDR": *lock(&self.pod_cidrs),
            "detectLocalMode": "ClusterCIDR",
            "clientConnection": {"kubeconfig": self.file("proxy.kubeconfig")},
            "conntrack": {"maxPerCore": 0, "min": 0},
        });
        let file = self
            .pki
            .write(&format!("proxy-{node}.yaml"), &config.to_string())?;
        self.ground.start(Task {
            name: format!("kube-proxy-{node}"),
            netns: Some(self.ground.netns(node)),
            program: parts::path(Part::Proxy)?,
            args: vec![format!("--config={}", file.display()).into()],
            ..Task::default()
        })?;
        Ok(())
    }
}

/// The text of a kubeconfig with one cluster, one user and one context.
pub fn kubeconfig(server: &str, ca: &Path, user: &serde_json::Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": "lab",
            "cluster": {"server": server, "certificate-authority": ca},
        }],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    })
    .to_string()
}

/// 128 random bits in hexadecimal digits.
fn random() -> Result<String> {
    let mut bytes = [0; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .ok()
        .context("no randomness")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
