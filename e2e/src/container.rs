//! What a kubelet would give a container, given to a process of the lab:
//! environment, mounted Secrets and ConfigMaps, user, capabilities.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, PodSpec, Secret, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Api;
use serde::de::DeserializeOwned;

use crate::bellrock::NAMESPACE;
use crate::lab::Lab;

/// Who a container is that must not be root and does not say who else.
const NOBODY: u32 = 65_532;

/// What a container's environment and paths refer to.
pub(crate) struct Surroundings<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) name: &'a str,
    pub(crate) host: &'a str,
    pub(crate) mounts: &'a BTreeMap<String, PathBuf>,
}

impl Surroundings<'_> {
    pub(crate) fn variable(&self, variable: &EnvVar) -> Result<Option<String>> {
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
    pub(crate) fn place(&self, text: &str) -> String {
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
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    user: Option<u32>,
}

impl Folder {
    pub(crate) fn create(path: PathBuf, user: Option<u32>) -> Result<Self> {
        fs::create_dir_all(&path)?;
        chown(&path, user, user)?;
        Ok(Self { path, user })
    }

    pub(crate) fn sub(&self, name: &str) -> Result<Self> {
        Self::create(self.path.join(name), self.user)
    }

    pub(crate) fn write(&self, name: &str, data: &[u8]) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, data).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        chown(&path, self.user, self.user)?;
        Ok(path)
    }
}

pub(crate) fn user(pod: &PodSpec, container: &Container) -> Result<Option<u32>> {
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
pub(crate) fn capabilities(container: &Container) -> Option<Vec<String>> {
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

pub(crate) fn confined(container: &Container) -> bool {
    let context = container.security_context.as_ref();
    context.and_then(|c| c.allow_privilege_escalation) == Some(false)
}

/// A readiness probe.
#[derive(Clone, Debug)]
pub(crate) enum Readiness {
    /// `GET` this path of this port.
    Http(u16, String),
    /// Run the container's program with these arguments.
    Exec(Vec<String>),
}

pub(crate) fn readiness(container: &Container) -> Result<Option<Readiness>> {
    let Some(probe) = container.readiness_probe.as_ref() else {
        return Ok(None);
    };
    if let Some(exec) = &probe.exec {
        let args = exec.command.iter().flatten().skip(1).cloned().collect();
        return Ok(Some(Readiness::Exec(args)));
    }
    let Some(http) = &probe.http_get else {
        bail!("this kind of readiness probe is not known here");
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
    Ok(Some(Readiness::Http(u16::try_from(port)?, path)))
}

/// Replaces `$(NAME)` as Kubernetes does.
pub(crate) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    env.iter().fold(text.to_owned(), |text, (name, value)| {
        text.replace(&format!("$({name})"), value)
    })
}

impl Lab {
    /// Fills a folder for each volume; from mount path to that folder.
    pub(crate) fn mounts(
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
