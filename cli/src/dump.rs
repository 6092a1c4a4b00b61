//! Where the answers come from: a live cluster, or a file that somebody saved
//! from one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bellrock_api::{
    BGPAdvertisement, BGPPeer, Community, IPAddressPool, L2Advertisement, SpeakerStatus, VirtualIP,
};
use bellrock_speaker::cluster::{Change, Cluster, Dirty};
use bellrock_speaker::convert;
use bellrock_speaker::watch::Parsed;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Which cluster to look at.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Read the objects from a file instead of the API server ("-": standard
    /// input), as saved by:
    /// kubectl get -A -o yaml svc,endpointslices,nodes,virtualips,ipaddresspools,l2advertisements,bgpadvertisements,bgppeers,communities,speakerstatuses
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: Option<PathBuf>,
    /// Kubeconfig to use, instead of $KUBECONFIG or the one in the home folder
    #[arg(long, value_name = "FILE", conflicts_with = "filename")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use, instead of its current one
    #[arg(long, value_name = "NAME", conflicts_with = "filename")]
    pub(crate) context: Option<String>,
    /// Namespace that Bellrock runs in
    #[arg(long, env = "BELLROCK_NAMESPACE", default_value = "bellrock-system")]
    pub(crate) bellrock_namespace: String,
}

/// Every object that an explanation needs.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) virtual_ips: Vec<VirtualIP>,
    pub(crate) pools: Vec<IPAddressPool>,
    pub(crate) l2_advertisements: Vec<L2Advertisement>,
    pub(crate) bgp_advertisements: Vec<BGPAdvertisement>,
    pub(crate) peers: Vec<BGPPeer>,
    pub(crate) communities: Vec<Community>,
    pub(crate) speakers: Vec<SpeakerStatus>,
    /// Objects that do not parse, and why.
    pub(crate) unreadable: Vec<String>,
    /// The moment that the objects are of, in seconds since 1970: now, or the
    /// newest time in the dump.
    pub(crate) moment: i64,
}

impl Source {
    /// Loads everything.
    pub(crate) async fn load(&self) -> Result<Dump> {
        match &self.filename {
            Some(path) => self.read_file(path),
            None => self.read_cluster().await,
        }
    }

    async fn read_cluster(&self) -> Result<Dump> {
        let client = self
            .client()
            .await
            .context("find a cluster (is KUBECONFIG set?)")?;
        let mut dump = Dump {
            services: all(&client).await?,
            slices: all(&client).await?,
            nodes: all(&client).await?,
            moment: Timestamp::now().as_second(),
            ..Dump::default()
        };
        let namespace = Some(self.bellrock_namespace.as_str());
        for (resource, namespace) in [
            (ApiResource::erase::<VirtualIP>(&()), None),
            (ApiResource::erase::<SpeakerStatus>(&()), None),
            (ApiResource::erase::<IPAddressPool>(&()), namespace),
            (ApiResource::erase::<L2Advertisement>(&()), namespace),
            (ApiResource::erase::<BGPAdvertisement>(&()), namespace),
            (ApiResource::erase::<BGPPeer>(&()), namespace),
            (ApiResource::erase::<Community>(&()), namespace),
        ] {
            let api: Api<DynamicObject> = match namespace {
                Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                None => Api::all_with(client.clone(), &resource),
            };
            for object in list(api, &resource.kind).await? {
                let mut value = serde_json::to_value(object)?;
                if let Some(object) = value.as_object_mut() {
                    object.insert("kind".to_owned(), Value::String(resource.kind.clone()));
                }
                self.take(value, &mut dump);
            }
        }
        Ok(dump)
    }

    async fn client(&self) -> Result<Client> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..Default::default()
        };
        let config = match (&self.kubeconfig, &self.context) {
            (None, None) => return Ok(Client::try_default().await?),
            (Some(path), _) => {
                Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?
            }
            (None, Some(_)) => Config::from_kubeconfig(&options).await?,
        };
        Ok(Client::try_from(config)?)
    }

    fn read_file(&self, path: &Path) -> Result<Dump> {
        let text = if path == Path::new("-") {
            std::io::read_to_string(std::io::stdin())
        } else {
            std::fs::read_to_string(path)
        };
        let text = text.with_context(|| format!("read {}", path.display()))?;
        self.parse(&text)
            .with_context(|| format!("read {}", path.display()))
    }

    /// Reads YAML or JSON documents; lists are taken apart, objects of other
    /// kinds are passed over, and so are ours outside our namespace.
    pub(crate) fn parse(&self, text: &str) -> Result<Dump> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).context("not YAML or JSON")?;
        let mut dump = Dump::default();
        for document in documents {
            self.take(document, &mut dump);
        }
        let renewed = dump.speakers.iter().filter_map(renewed);
        dump.moment = renewed.max().unwrap_or_default();
        Ok(dump)
    }

    fn take(&self, document: Value, dump: &mut Dump) {
        let kind = document
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        if let Some(Value::Array(items)) = document.get("items") {
            let of_list = kind.strip_suffix("List").unwrap_or_default();
            for item in items {
                let mut item = item.clone();
                // Items of a typed list carry no kind of their own.
                if let (Some(object), false) = (item.as_object_mut(), of_list.is_empty()) {
                    object
                        .entry("kind")
                        .or_insert_with(|| Value::String(of_list.to_owned()));
                }
                self.take(item, dump);
            }
            return;
        }
        if let Err(error) = self.sort(&kind, document, dump) {
            dump.unreadable.push(format!("{error:#}"));
        }
    }

    fn sort(&self, kind: &str, document: Value, dump: &mut Dump) -> Result<()> {
        match kind {
            "Service" => dump.services.push(object(document)?),
            "EndpointSlice" => dump.slices.push(object(document)?),
            "Node" => dump.nodes.push(object(document)?),
            "VirtualIP" => dump.virtual_ips.push(object(document)?),
            "SpeakerStatus" => dump.speakers.push(object(document)?),
            "IPAddressPool" => self.push(&mut dump.pools, object(document)?),
            "L2Advertisement" => self.push(&mut dump.l2_advertisements, object(document)?),
            "BGPAdvertisement" => self.push(&mut dump.bgp_advertisements, object(document)?),
            "BGPPeer" => self.push(&mut dump.peers, object(document)?),
            "Community" => self.push(&mut dump.communities, object(document)?),
            _ => {}
        }
        Ok(())
    }

    fn push<K: ResourceExt>(&self, list: &mut Vec<K>, object: K) {
        if object
            .namespace()
            .is_none_or(|namespace| namespace == self.bellrock_namespace)
        {
            list.push(object);
        }
    }
}

impl Dump {
    /// The snapshot that speakers would decide from, and the objects that
    /// they refuse.
    pub(crate) fn cluster(&self) -> (Cluster, Vec<String>) {
        let mut cluster = Cluster::default();
        let mut invalid = self.unreadable.clone();
        let mut take = |name: String, parsed: Parsed| match parsed {
            Parsed::Change(change) => cluster.apply(change, "", &mut Dirty::default()),
            Parsed::Ignored => {}
            Parsed::Invalid { message, .. } => invalid.push(format!("{name}: {message}")),
        };
        macro_rules! take_all {
            ($($kind:literal $list:ident $parse:ident,)+) => {
                $(for object in &self.$list {
                    take(format!("{} {}", $kind, object.name_any()), convert::$parse(object));
                })+
            };
        }
        take_all! {
            "Service" services service,
            "EndpointSlice" slices slice,
            "Node" nodes node,
            "VirtualIP" virtual_ips virtual_ip,
            "L2Advertisement" l2_advertisements l2_advertisement,
            "BGPAdvertisement" bgp_advertisements bgp_advertisement,
            "BGPPeer" peers bgp_peer,
            "Community" communities communities,
        }
        for pool in &self.pools {
            let labels = pool.labels().clone();
            let change = Change::Pool(pool.name_any(), Some(labels));
            cluster.apply(change, "", &mut Dirty::default());
        }
        (cluster, invalid)
    }
}

/// When a speaker wrote its status last, in seconds since 1970.
pub(crate) fn renewed(speaker: &SpeakerStatus) -> Option<i64> {
    Some(speaker.status.as_ref()?.renewed.as_ref()?.0.as_second())
}

fn object<K: DeserializeOwned>(document: Value) -> Result<K> {
    let name = document
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let kind = document
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let what = format!("{kind} {name}");
    serde_json::from_value(document).with_context(|| format!("{what} does not parse"))
}

async fn all<K>(client: &Client) -> Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    list(Api::all(client.clone()), &K::kind(&())).await
}

async fn list<K>(api: Api<K>, kind: &str) -> Result<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(error)) if error.code == 404 => {
            anyhow::bail!("the cluster has no {kind}: is Bellrock installed there?")
        }
        Err(error) => Err(error).with_context(|| format!("list {kind} objects")),
    }
}
