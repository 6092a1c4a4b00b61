//! Bellrock in the lab: the chart rendered by helm and applied, and the
//! containers of its Deployment and DaemonSet run as processes of the hosts
//! they belong on.
//!
//! A process gets what its container would get: arguments, environment,
//! mounted Secrets and ConfigMaps, user id, capabilities, and a token of its
//! service account, bound to its node. Never the rights of the lab.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar, Node, PodSpec, ServiceAccount, Volume};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cluster::kubeconfig;
use crate::lab::{Lab, program};
use crate::netns::run_in;
use crate::parts::{self, Part};
use crate::probe;
use crate::process::{Process, Task, lock};
use crate::topology::Role;

/// The namespace that the chart is installed in.
pub const NAMESPACE: &str = "bellrock-system";
const READY: Duration = Duration::from_secs(60);
/// Who a container is that must not be root and does not say who else.
const NOBODY: u32 = 65_532;

/// The chart's workloads, as rendered and applied.
#[derive(Clone, Debug)]
pub(crate) struct Installed {
    controller: PodSpec,
    speaker: PodSpec,
}

/// A controller or speaker that runs. Dereferences to its [`Process`].
#[derive(Clone, Debug)]
pub struct Workload {
    process: Arc<Process>,
    netns: PathBuf,
    ready: Option<(u16, String)>,
    kubeconfig: PathBuf,
}

impl Workload {
    /// Its kubeconfig, with its own rights, for the server's address inside
    /// the lab.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Starts it again, after killing it if it runs, and waits until its
    /// readiness probe succeeds.
    pub fn restart(&self) -> Result<()> {
        self.respawn()?;
        self.wait_ready()
    }

    /// Starts it again, after killing it if it runs, and does not wait.
    pub fn respawn(&self) -> Result<()> {
        self.process.restart()
    }

    /// Waits until its readiness probe succeeds, if it has one.
    pub fn wait_ready(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            self.check()?;
            match self.probe() {
                Ok(()) => return Ok(()),
                Err(error) if start.elapsed() > READY => {
                    return Err(error.context(format!(
                        "{} is not ready after {READY:?}; its log is {}",
                        self.name(),
                        self.log().display()
                    )));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Makes its readiness probe once.
    pub fn probe(&self) -> Result<()> {
        let Some((port, path)) = &self.ready else {
            return Ok(());
        };
        let server = (Ipv4Addr::LOCALHOST, *port).into();
        let (status, body) = run_in(&self.netns, || probe::request("GET", server, path))??;
        ensure!((200..400).contains(&status), "{path}: {status} {body}");
        Ok(())
    }
}

impl Deref for Workload {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl Lab {
    /// Renders the chart with `values` (YAML text), applies all of it but the
    /// workloads, and has the API server check those. Can be repeated.
    pub fn install(&self, values: &str) -> Result<()> {
        let rendered = self.render(values)?;
        let (mut kinds, mut objects, mut workloads) = (Vec::new(), Vec::new(), Vec::new());
        for object in rendered {
            match object["kind"].as_str() {
                None => {}
                Some("CustomResourceDefinition") => kinds.push(object),
                Some("Deployment" | "DaemonSet") => workloads.push(object),
                Some(_) => objects.push(object),
            }
        }
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE},
        });
        kinds.push(namespace);
        self.apply(&list(&kinds))?;
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd",
            "--all",
        ])?;
        self.apply(&list(&objects))?;
        let check = ["apply", "--server-side", "--dry-run=server", "-f", "-"];
        self.kubectl_with(&check, &list(&workloads))?;
        let pod = |kind: &str| -> Result<PodSpec> {
            let workload = workloads.iter().find(|object| object["kind"] == kind);
            let workload = workload.with_context(|| format!("the chart renders no {kind}"))?;
            Ok(serde_json::from_value(
                workload["spec"]["template"]["spec"].clone(),
            )?)
        };
        *lock(&self.installed) = Some(Installed {
            controller: pod("Deployment")?,
            speaker: pod("DaemonSet")?,
        });
        Ok(())
    }

    fn render(&self, values: &str) -> Result<Vec<Value>> {
        use std::io::Write;
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/bellrock");
        let home = self.dir().join("helm");
        let mut child = Command::new(parts::path(Part::Helm)?)
            .args(["template", "bellrock"])
            .arg(chart)
            .args(["--namespace", NAMESPACE, "--include-crds", "--values", "-"])
            // The chart looks for what an earlier installation made.
            .arg("--dry-run=server")
            .env("KUBECONFIG", self.kubeconfig())
            .env("HELM_CACHE_HOME", &home)
            .env("HELM_CONFIG_HOME", &home)
            .env("HELM_DATA_HOME", &home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start helm")?;
        let mut input = child.stdin.take().context("helm's input")?;
        input.write_all(values.as_bytes())?;
        drop(input);
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "helm template: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8_lossy(&output.stdout);
        serde_saphyr::from_multiple(&text).context("read the rendered chart")
    }

    /// Starts the controller in the control plane's namespace and waits until
    /// its readiness probe, if it has one, succeeds.
    pub fn start_controller(&self) -> Result<Workload> {
        let controller = self.launch_controller()?;
        controller.wait_ready()?;
        Ok(controller)
    }

    fn launch_controller(&self) -> Result<Workload> {
        let pod = self.installed()?.controller;
        let host = self.topology().with_role(Role::ControlPlane).next();
        let host = host.context("no control plane")?.to_owned();
        self.launch("controller", &host, None, &pod)
    }

    /// Starts the speaker of a node and waits likewise.
    pub fn start_speaker(&self, node: &str) -> Result<Workload> {
        let speaker = self.launch_speaker(node)?;
        speaker.wait_ready()?;
        Ok(speaker)
    }

    fn launch_speaker(&self, node: &str) -> Result<Workload> {
        let pod = self.installed()?.speaker;
        self.launch(&format!("speaker-{node}"), node, Some(node), &pod)
    }

    /// Starts the controller and every node's speaker.
    pub fn start_bellrock(&self) -> Result<(Workload, BTreeMap<String, Workload>)> {
        let controller = self.launch_controller()?;
        let mut speakers = BTreeMap::new();
        for node in self.nodes() {
            speakers.insert(node.to_owned(), self.launch_speaker(node)?);
        }
        for workload in speakers.values().chain([&controller]) {
            workload.wait_ready()?;
        }
        Ok((controller, speakers))
    }

    fn installed(&self) -> Result<Installed> {
        lock(&self.installed)
            .clone()
            .context("install the chart first")
    }

    fn launch(
        &self,
        name: &str,
        host: &str,
        node: Option<&str>,
        pod: &PodSpec,
    ) -> Result<Workload> {
        let [container] = pod.containers.as_slice() else {
            bail!("{name}: {} containers, want one", pod.containers.len());
        };
        let user = user(pod, container)?;
        let folder = Folder::create(self.dir().join("run").join(name), user)?;
        let account = pod.service_account_name.as_deref().unwrap_or("default");
        let config = self.credentials(&folder, account, node)?;

        let mounts = self.mounts(&folder, pod, container)?;
        let context = Surroundings {
            lab: self,
            name,
            host,
            mounts: &mounts,
        };
        let mut env = BTreeMap::new();
        for variable in container.env.iter().flatten() {
            if let Some(value) = context.variable(variable)? {
                env.insert(variable.name.clone(), value);
            }
        }
        env.insert("KUBECONFIG".to_owned(), config.display().to_string());
        let command = container.command.iter().flatten().skip(1);
        let args = command
            .chain(container.args.iter().flatten())
            .map(|arg| context.place(&expand(arg, &env)).into())
            .collect();
        let process = self.start_process(
            host,
            Task {
                name: name.to_owned(),
                program: self.runnable(user)?,
                args,
                env,
                user,
                capabilities: capabilities(container),
                confined: confined(container),
                ..Task::default()
            },
        )?;
        Ok(Workload {
            process,
            netns: self.host(host).path(),
            ready: readiness(container)?,
            kubeconfig: config,
        })
    }

    /// The program, where `user` can run it.
    fn runnable(&self, user: Option<u32>) -> Result<PathBuf> {
        let path = program("bellrock", "BELLROCK_BIN")?;
        let Some(user) = user else { return Ok(path) };
        let user = user.to_string();
        let runs = Command::new("setpriv")
            .args([
                "--reuid",
                &user,
                "--regid",
                &user,
                "--clear-groups",
                "--",
                "test",
                "-x",
            ])
            .arg(&path)
            .status()?;
        if runs.success() {
            return Ok(path);
        }
        let copy = self.dir().join("bellrock");
        if !copy.exists() {
            fs::copy(&path, &copy)?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
        }
        Ok(copy)
    }

    /// A kubeconfig with a token of a service account, bound to the node.
    fn credentials(&self, folder: &Folder, account: &str, node: Option<&str>) -> Result<PathBuf> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin(), NAMESPACE);
        let nodes: Api<Node> = Api::all(self.admin());
        let token = self.block_on(async {
            let bound_object_ref = match node {
                Some(name) => Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Node".to_owned()),
                    name: Some(name.to_owned()),
                    uid: nodes.get(name).await?.uid(),
                }),
                None => None,
            };
            let request = TokenRequest {
                spec: TokenRequestSpec {
                    expiration_seconds: Some(24 * 3600),
                    bound_object_ref,
                    ..TokenRequestSpec::default()
                },
                ..TokenRequest::default()
            };
            accounts
                .create_token_request(account, &Default::default(), &request)
                .await
        });
        let token = token.with_context(|| format!("a token of service account {account}"))?;
        let token = token.status.context("no token in the answer")?.token;
        let ca = folder.write("ca.crt", self.cluster.ca()?.as_bytes())?;
        let token = folder.write("token", token.as_bytes())?;
        let text = kubeconfig(&self.cluster.url(), &ca, &json!({"tokenFile": token}));
        folder.write("kubeconfig", text.as_bytes())
    }

    /// Fills a folder for each volume; from mount path to that folder.
    fn mounts(
        &self,
        folder: &Folder,
        pod: &PodSpec,
        container: &Container,
    ) -> Result<BTreeMap<String, PathBuf>> {
        let mut mounts = BTreeMap::new();
        for mount in container.volume_mounts.iter().flatten() {
            let volume = pod.volumes.iter().flatten().find(|v| v.name == mount.name);
            let volume = volume.with_context(|| format!("no volume {}", mount.name))?;
            let target = folder.sub(&format!("volume-{}", volume.name))?;
            for (name, data) in self.files(volume)? {
                target.write(&name, &data)?;
            }
            mounts.insert(mount.mount_path.clone(), target.path);
        }
        Ok(mounts)
    }

    fn files(&self, volume: &Volume) -> Result<BTreeMap<String, Vec<u8>>> {
        use k8s_openapi::api::core::v1::{ConfigMap, Secret};
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let optional = source.optional.unwrap_or_default();
            let secret: Option<Secret> = self.object(name, optional)?;
            let data = secret.and_then(|secret| secret.data).unwrap_or_default();
            return Ok(data
                .into_iter()
                .map(|(name, bytes)| (name, bytes.0))
                .collect());
        }
        if let Some(source) = &volume.config_map {
            let optional = source.optional.unwrap_or_default();
            let map: Option<ConfigMap> = self.object(&source.name, optional)?;
            let data = map.and_then(|map| map.data).unwrap_or_default();
            return Ok(data
                .into_iter()
                .map(|(name, text)| (name, text.into_bytes()))
                .collect());
        }
        // A folder of the node is a folder of this node's own process.
        if volume.empty_dir.is_some() || volume.host_path.is_some() {
            return Ok(BTreeMap::new());
        }
        bail!(
            "volume {}: only secret, configMap, emptyDir and hostPath are known here",
            volume.name
        )
    }

    fn object<K>(&self, name: &str, optional: bool) -> Result<Option<K>>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
        K::DynamicType: Default,
    {
        let api: Api<K> = Api::namespaced(self.admin(), NAMESPACE);
        let found = self.block_on(async { api.get_opt(name).await })?;
        ensure!(found.is_some() || optional, "{name} is not in {NAMESPACE}");
        Ok(found)
    }
}

/// What a container's environment and paths refer to.
struct Surroundings<'a> {
    lab: &'a Lab,
    name: &'a str,
    host: &'a str,
    mounts: &'a BTreeMap<String, PathBuf>,
}

impl Surroundings<'_> {
    fn variable(&self, variable: &EnvVar) -> Result<Option<String>> {
        use k8s_openapi::api::core::v1::{ConfigMap, Secret};
        if let Some(value) = &variable.value {
            return Ok(Some(self.place(value)));
        }
        let Some(source) = &variable.value_from else {
            return Ok(Some(String::new()));
        };
        if let Some(field) = &source.field_ref {
            let address = || self.lab.address(self.host).to_string();
            return Ok(Some(match field.field_path.as_str() {
                "metadata.name" => format!("bellrock-{}", self.name),
                "metadata.namespace" => NAMESPACE.to_owned(),
                "spec.nodeName" => self.host.to_owned(),
                "status.hostIP" | "status.podIP" => address(),
                other => bail!("{}: field {other} is not known here", variable.name),
            }));
        }
        if let Some(key) = &source.secret_key_ref {
            let secret: Option<Secret> = self
                .lab
                .object(&key.name, key.optional.unwrap_or_default())?;
            let data = secret.and_then(|secret| secret.data?.remove(&key.key));
            return Ok(data.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()));
        }
        if let Some(key) = &source.config_map_key_ref {
            let map: Option<ConfigMap> = self
                .lab
                .object(&key.name, key.optional.unwrap_or_default())?;
            return Ok(map.and_then(|map| map.data?.remove(&key.key)));
        }
        bail!("{}: this kind of source is not known here", variable.name)
    }

    /// Puts the folders of this process in the place of mount paths.
    fn place(&self, text: &str) -> String {
        self.mounts
            .iter()
            .fold(text.to_owned(), |text, (mount, folder)| {
                match text.find(mount.as_str()) {
                    Some(at) => {
                        let (before, rest) = text.split_at(at);
                        let rest = rest.strip_prefix(mount.as_str()).unwrap_or(rest);
                        let whole = rest.is_empty() || rest.starts_with('/');
                        if whole && !before.ends_with(|c: char| c.is_ascii_alphanumeric()) {
                            format!("{before}{}{rest}", folder.display())
                        } else {
                            text
                        }
                    }
                    None => text,
                }
            })
    }
}

/// A folder and files that belong to the user of a process.
struct Folder {
    path: PathBuf,
    user: Option<u32>,
}

impl Folder {
    fn create(path: PathBuf, user: Option<u32>) -> Result<Self> {
        fs::create_dir_all(&path)?;
        chown(&path, user, user)?;
        Ok(Self { path, user })
    }

    fn sub(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name), self.user)
    }

    fn write(&self, name: &str, data: &[u8]) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, data).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        chown(&path, self.user, self.user)?;
        Ok(path)
    }
}

fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

fn user(pod: &PodSpec, container: &Container) -> Result<Option<u32>> {
    let (outer, inner) = (
        pod.security_context.as_ref(),
        container.security_context.as_ref(),
    );
    let id = inner
        .and_then(|c| c.run_as_user)
        .or_else(|| outer.and_then(|c| c.run_as_user));
    let not_root = inner
        .and_then(|c| c.run_as_non_root)
        .or_else(|| outer.and_then(|c| c.run_as_non_root))
        .unwrap_or_default();
    match id {
        Some(0) => {
            ensure!(!not_root, "runAsUser 0 with runAsNonRoot");
            Ok(None)
        }
        Some(id) => Ok(Some(u32::try_from(id)?)),
        None => Ok(not_root.then_some(NOBODY)),
    }
}

/// `drop: [ALL]` and what is added back; everything where nothing is dropped.
fn capabilities(container: &Container) -> Option<Vec<String>> {
    let capabilities = container.security_context.as_ref()?.capabilities.as_ref()?;
    let dropped = capabilities.drop.as_ref()?;
    dropped.iter().any(|name| name == "ALL").then(|| {
        capabilities
            .add
            .iter()
            .flatten()
            .map(|name| name.trim_start_matches("CAP_").to_lowercase())
            .collect()
    })
}

fn confined(container: &Container) -> bool {
    let context = container.security_context.as_ref();
    context.and_then(|c| c.allow_privilege_escalation) == Some(false)
}

fn readiness(container: &Container) -> Result<Option<(u16, String)>> {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    let probe = container.readiness_probe.as_ref();
    let Some(http) = probe.and_then(|probe| probe.http_get.as_ref()) else {
        return Ok(None);
    };
    let port = match &http.port {
        IntOrString::Int(port) => *port,
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .map(|port| port.container_port)
            .with_context(|| format!("no container port is named {name}"))?,
    };
    let path = http.path.clone().unwrap_or_else(|| "/".to_owned());
    Ok(Some((u16::try_from(port)?, path)))
}

/// Replaces `$(NAME)` as Kubernetes does.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    env.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("$({name})"), value)
    })
}
