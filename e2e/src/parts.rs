//! The real programs of a lab and of tests, built once from their Go modules.
//!
//! `e2e/parts` holds one small module per project that pins its version. The
//! programs are built into
//! `${BELLROCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bellrock}/parts`, in a
//! folder named after the module and a hash of everything that goes into the
//! build, so that a version bump builds anew and nothing else does.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

#[cfg(feature = "lab")]
use crate::cluster::KubeProxy;
use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

/// The version of Kubernetes.
pub const VERSION: &str = "v1.36.3";

/// A program of the lab.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// The key-value store under the API server.
    Etcd,
    /// The API server.
    Apiserver,
    /// The controllers that make EndpointSlices, ReplicaSets and so on.
    ControllerManager,
    /// Puts pods on nodes.
    Scheduler,
    /// ClusterIP and NodePort on each node.
    Proxy,
    /// The command line.
    Kubectl,
    /// Renders the chart.
    Helm,
    /// Runs the pods of a node of the cluster lab.
    Kubelet,
    /// Deploys the topology of the cluster lab.
    Containerlab,
    /// MetalLB's controller, to measure beside ours.
    Metallb,
    /// MetalLB's speaker.
    MetallbSpeaker,
    /// A router that our BGP is tested against.
    Gobgpd,
    /// Its command line.
    Gobgp,
}

impl Part {
    /// All of them, in the order they are built.
    pub const ALL: [Self; 13] = [
        Self::Etcd,
        Self::Apiserver,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Proxy,
        Self::Kubectl,
        Self::Helm,
        Self::Kubelet,
        Self::Containerlab,
        Self::Metallb,
        Self::MetallbSpeaker,
        Self::Gobgpd,
        Self::Gobgp,
    ];

    /// What the lab of network namespaces needs.
    pub const NAMESPACES: [Self; 7] = [
        Self::Etcd,
        Self::Apiserver,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Proxy,
        Self::Kubectl,
        Self::Helm,
    ];

    /// The program's file name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Proxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
            Self::Kubelet => "kubelet",
            Self::Containerlab => "containerlab",
            Self::Metallb => "metallb-controller",
            Self::MetallbSpeaker => "metallb-speaker",
            Self::Gobgpd => "gobgpd",
            Self::Gobgp => "gobgp",
        }
    }

    /// The part of that file name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }

    const fn module(self) -> &'static Module {
        match self {
            Self::Etcd => &ETCD,
            Self::Helm => &HELM,
            Self::Containerlab => &CONTAINERLAB,
            Self::Metallb | Self::MetallbSpeaker => &METALLB,
            Self::Gobgpd | Self::Gobgp => &GOBGP,
            _ => &KUBERNETES,
        }
    }

    fn package(self) -> String {
        match self {
            Self::Etcd => ".".to_owned(),
            Self::Helm => "helm.sh/helm/v3/cmd/helm".to_owned(),
            Self::Containerlab => "github.com/srl-labs/containerlab".to_owned(),
            Self::Metallb => "go.universe.tf/metallb/controller".to_owned(),
            Self::MetallbSpeaker => "go.universe.tf/metallb/speaker".to_owned(),
            Self::Gobgpd | Self::Gobgp => format!("github.com/osrg/gobgp/v4/cmd/{}", self.name()),
            _ => format!("k8s.io/kubernetes/cmd/{}", self.name()),
        }
    }

    /// About how long the build takes on two cores with cold caches.
    const fn about(self) -> &'static str {
        match self {
            Self::Apiserver => "4 minutes",
            Self::ControllerManager
            | Self::Helm
            | Self::Containerlab
            | Self::Metallb
            | Self::MetallbSpeaker => "1 minute",
            _ => "20 seconds",
        }
    }
}

struct Module {
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    kubernetes: bool,
    patch: Option<&'static Patch>,
}

/// A change to one file of a module that is built.
#[derive(Debug)]
struct Patch {
    module: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

macro_rules! module {
    ($name:literal, $kubernetes:literal, $($file:literal),+) => {
        Module {
            name: $name,
            kubernetes: $kubernetes,
            patch: None,
            files: &[$(($file, include_str!(concat!("../parts/", $name, "/", $file)))),+],
        }
    };
}

static ETCD: Module = module!("etcd", false, "go.mod", "go.sum", "main.go");
static HELM: Module = module!("helm", false, "go.mod", "go.sum", "tools.go");
static METALLB: Module = module!("metallb", false, "go.mod", "go.sum", "tools.go");
static GOBGP: Module = module!("gobgp", false, "go.mod", "go.sum", "tools.go");
static CONTAINERLAB: Module = Module {
    patch: Some(&Patch {
        module: "github.com/srl-labs/containerlab",
        file: "utils/kernel_module.go",
        // It wants to see ip_tables among the loaded modules; a kernel that
        // cannot load any has no list of them, and what it has is built in.
        from: "\tif err != nil {\n\t\treturn false, err\n\t}\n\n\tscanner",
        to: "\tif os.IsNotExist(err) {\n\t\treturn true, nil\n\t}\n\tif err != nil {\n\t\treturn false, err\n\t}\n\n\tscanner",
    }),
    ..module!("containerlab", false, "go.mod", "go.sum", "tools.go")
};
static KUBERNETES: Module = module!("kubernetes", true, "go.mod", "go.sum", "tools.go");

impl Module {
    fn flags(&self) -> Vec<String> {
        let mut linker = "-s -w".to_owned();
        if self.kubernetes {
            let version = "-X k8s.io/component-base/version";
            linker.push_str(&format!(
                " {version}.gitVersion={VERSION} {version}.gitMajor=1 {version}.gitMinor=36"
            ));
        }
        vec!["-trimpath".to_owned(), "-ldflags".to_owned(), linker]
    }

    fn folder(&self) -> Result<PathBuf> {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        for (name, text) in self.files {
            hash.update(name.as_bytes());
            hash.update(text.as_bytes());
        }
        hash.update(self.flags().join("\0").as_bytes());
        if let Some(patch) = self.patch {
            hash.update(format!("{patch:?}").as_bytes());
        }
        let digest = hash.finish();
        let short: String = digest
            .as_ref()
            .iter()
            .take(6)
            .map(|b| format!("{b:02x}"))
            .collect();
        Ok(cache()?
            .join("parts")
            .join(format!("{}-{short}", self.name)))
    }
}

pub(crate) fn cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = variable("BELLROCK_CACHE") {
        return Ok(path.into());
    }
    let base = match variable("XDG_CACHE_HOME") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(variable("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("bellrock"))
}

/// Where a part is once it has been built.
pub fn path(part: Part) -> Result<PathBuf> {
    Ok(part.module().folder()?.join(part.name()))
}

/// Builds what is missing of `parts`; `say` gets a line before and after each
/// build.
pub fn ensure(parts: &[Part], say: &dyn Fn(&str)) -> Result<()> {
    let missing = |part: &Part| path(*part).map(|path| !path.exists());
    let mut todo = Vec::new();
    for part in parts {
        if missing(part)? {
            todo.push(*part);
        }
    }
    if todo.is_empty() {
        return Ok(());
    }
    let lock = cache()?.join("parts.lock");
    fs::create_dir_all(cache()?.join("parts"))?;
    let file = File::create(&lock).with_context(|| format!("open {}", lock.display()))?;
    let _lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((file, _)) => {
            say("waiting for another build of the lab's parts");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?
        }
    };
    for (index, part) in todo.iter().enumerate() {
        if !missing(part)? {
            continue;
        }
        let name = part.name();
        let of = format!("{}/{}", index + 1, todo.len());
        say(&format!(
            "building {name} ({of}), about {} once",
            part.about()
        ));
        let start = Instant::now();
        build(*part).with_context(|| format!("build {name}"))?;
        say(&format!(
            "built {name} in {:.0} s",
            start.elapsed().as_secs_f32()
        ));
    }
    Ok(())
}

fn build(part: Part) -> Result<()> {
    let module = part.module();
    let folder = module.folder()?;
    let source = folder.join("module");
    fs::create_dir_all(&source)?;
    for (name, text) in module.files {
        fs::write(source.join(name), text)?;
    }
    let fresh = folder.join(format!(".{}.new", part.name()));
    if let Some(patch) = module.patch {
        apply(patch, &source)?;
    }
    let output = go()?
        .arg("build")
        .args(module.flags())
        .arg("-o")
        .arg(&fresh)
        .arg(part.package())
        .current_dir(&source)
        .env("GOWORK", "off")
        .env_remove("GOFLAGS")
        .output()
        .context("run go build")?;
    if !output.status.success() {
        bail!(
            "go build: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::rename(&fresh, folder.join(part.name()))?;
    Ok(())
}

/// Makes the build use a patched copy of a module.
fn apply(patch: &Patch, source: &Path) -> Result<()> {
    let folder = fetched(patch.module, source)?;
    let copy = source.join("patched");
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    let copied = Command::new("cp")
        .args(["--recursive", "--no-preserve=mode"])
        .arg(&folder)
        .arg(&copy)
        .status()
        .context("copy the module")?;
    ensure!(copied.success(), "copy {}: {copied}", folder.display());
    let file = copy.join(patch.file);
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    ensure!(
        text.matches(patch.from).count() == 1,
        "{} is not as expected",
        file.display()
    );
    fs::write(&file, text.replace(patch.from, patch.to))?;
    let mut module = File::options().append(true).open(source.join("go.mod"))?;
    writeln!(module, "\nreplace {} => ./patched", patch.module)?;
    Ok(())
}

/// The folder of a module that the module in `source` requires.
fn fetched(module: &str, source: &Path) -> Result<PathBuf> {
    let fetched = go()?
        .args(["mod", "download", "-json", module])
        .current_dir(source)
        .env("GOWORK", "off")
        .env_remove("GOFLAGS")
        .output()
        .context("run go mod download")?;
    let said: serde_json::Value = serde_json::from_slice(&fetched.stdout)
        .with_context(|| String::from_utf8_lossy(&fetched.stderr).into_owned())?;
    let folder = said["Dir"].as_str();
    Ok(folder
        .with_context(|| format!("{module}: {}", said["Error"]))?
        .into())
}

/// Where the source of `module`, which a part that has been built requires, is.
pub fn source(part: Part, module: &str) -> Result<PathBuf> {
    fetched(module, &part.module().folder()?.join("module"))
}

/// Go, from the PATH or from where its installer puts it.
fn go() -> Result<Command> {
    let candidates = ["go", "/usr/local/go/bin/go"];
    let program = candidates.into_iter().find(|program| {
        Command::new(program)
            .arg("version")
            .output()
            .is_ok_and(|output| output.status.success())
    });
    let program = program
        .context("Go 1.26 or newer is needed to build the lab's parts: https://go.dev/dl")?;
    Ok(Command::new(program))
}

/// Checks that the programs of the distribution that a lab uses are there.
#[cfg(feature = "lab")]
pub fn check_tools(proxy: KubeProxy) -> Result<()> {
    let needed = [
        proxy.tool(),
        ("ip", "iproute2"),
        ("nsenter", "util-linux"),
        ("setpriv", "util-linux"),
        ("sysctl", "procps"),
        ("vtysh", "frr"),
        ("tcpdump", "tcpdump"),
        ("tshark", "tshark"),
    ];
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let has = |program: &str| {
        std::env::split_paths(&paths)
            .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
            .any(|folder| folder.join(program).exists())
    };
    let missing: Vec<&str> = needed
        .into_iter()
        .filter(|(program, _)| !program.is_empty() && !has(program))
        .map(|(_, package)| package)
        .collect();
    ensure!(
        missing.is_empty(),
        "the lab needs these packages: {} (on Debian and Ubuntu: apt-get install {0})",
        missing.join(" ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_place_outside_the_checkout_that_names_its_module() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for part in Part::ALL {
            let path = path(part).unwrap();
            assert!(!path.starts_with(checkout), "{}", path.display());
            assert_eq!(Part::named(part.name()), Some(part));
            assert!(path.to_string_lossy().contains(part.module().name));
        }
    }

    #[test]
    fn the_version_that_is_stamped_is_the_version_that_is_built() {
        let (_, module) = KUBERNETES.files[0];
        assert!(module.contains(&format!("k8s.io/kubernetes {VERSION}")));
    }
}
