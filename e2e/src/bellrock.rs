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
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Node, PodSpec, ServiceAccount};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::kubeconfig;
use crate::container::{
    Folder, Readiness, Surroundings, capabilities, confined, expand, readiness, user,
};
use crate::lab::{Lab, program};
use crate::netns::run_in;
use crate::parts::{self, Part};
use crate::probe;
use crate::process::{Process, Task, lock};
use crate::topology::Role;

/// The namespace that the chart is installed in.
pub const NAMESPACE: &str = "bellrock-system";
const READY: Duration = Duration::from_secs(60);

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
    program: PathBuf,
    ready: Option<Readiness>,
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
        match &self.ready {
            None => {}
            Some(Readiness::Http(port, path)) => {
                let server = (Ipv4Addr::LOCALHOST, *port).into();
                let (status, body) = run_in(&self.netns, || probe::request("GET", server, path))??;
                ensure!((200..400).contains(&status), "{path}: {status} {body}");
            }
            Some(Readiness::Exec(args)) => {
                let output = Command::new(&self.program).args(args).output()?;
                ensure!(
                    output.status.success(),
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
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
            // What helm runs at its own times is no part of what is installed.
            if object["metadata"]["annotations"]["helm.sh/hook"].is_string() {
                continue;
            }
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
        let version = self.kubectl_json(&["version", "-o", "json"])?;
        let version = version["serverVersion"]["gitVersion"].as_str();
        let version = version.context("the API server's version")?;
        let mut child = Command::new(parts::path(Part::Helm)?)
            .args(["template", "bellrock"])
            .arg(chart)
            .args(["--namespace", NAMESPACE, "--include-crds", "--values", "-"])
            // Helm asks the server for it when it installs.
            .args(["--kube-version", version])
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

    /// Starts another replica beside the first, on other ports, and waits
    /// likewise.
    pub fn start_second_controller(&self) -> Result<Workload> {
        let text = serde_json::to_string(&self.installed()?.controller)?;
        let elsewhere = text.replace("9617", "9619").replace("9616", "9615");
        let pod = serde_json::from_str(&elsewhere)?;
        let controller = self.launch_controller_as("controller-2", &pod)?;
        controller.wait_ready()?;
        Ok(controller)
    }

    pub(crate) fn launch_controller(&self) -> Result<Workload> {
        self.launch_controller_as("controller", &self.installed()?.controller)
    }

    fn launch_controller_as(&self, name: &str, pod: &PodSpec) -> Result<Workload> {
        let host = self.topology().with_role(Role::ControlPlane).next();
        let host = host.context("no control plane")?.to_owned();
        self.launch(name, &host, None, pod)
    }

    /// Starts the speaker of a node and waits likewise.
    pub fn start_speaker(&self, node: &str) -> Result<Workload> {
        let speaker = self.launch_speaker(node)?;
        speaker.wait_ready()?;
        Ok(speaker)
    }

    /// Starts another speaker of a node beside the one that is there, as a
    /// rollout does, and waits likewise. Each that runs has its own `number`.
    pub fn start_next_speaker(&self, node: &str, number: u32) -> Result<Workload> {
        let speaker = self.launch_speaker_as(&format!("speaker-{node}-{number}"), node)?;
        speaker.wait_ready()?;
        Ok(speaker)
    }

    fn launch_speaker(&self, node: &str) -> Result<Workload> {
        self.launch_speaker_as(&format!("speaker-{node}"), node)
    }

    fn launch_speaker_as(&self, name: &str, node: &str) -> Result<Workload> {
        self.launch(name, node, Some(node), &self.installed()?.speaker)
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
        let ready = readiness(container)?.map(|ready| match ready {
            Readiness::Exec(args) => {
                let placed = args.iter().map(|arg| context.place(&expand(arg, &env)));
                Readiness::Exec(placed.collect())
            }
            http => http,
        });
        let program = self.runnable(user)?;
        let process = self.start_process(
            host,
            Task {
                name: name.to_owned(),
                program: program.clone(),
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
            program,
            ready,
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
}

fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}
