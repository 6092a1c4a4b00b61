//! Readiness probes, from the node to its pod, as the kubelet makes them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What to ask and how often.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Probe {
    port: u16,
    /// The path of an HTTP probe; a TCP probe only connects.
    path: Option<String>,
    pub(super) period: Duration,
    timeout: Duration,
    pub(super) successes: u32,
    pub(super) failures: u32,
}

impl Probe {
    /// The pod's probe, or a GET of the echo server's `/ready` each second.
    pub(super) fn of(pod: &Pod) -> Result<Self> {
        let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        let Some(probe) = container.and_then(|c| c.readiness_probe.as_ref()) else {
            return Ok(Self {
                port: 8080,
                path: Some("/ready".to_owned()),
                period: Duration::from_secs(1),
                timeout: Duration::from_secs(1),
                successes: 1,
                failures: 3,
            });
        };
        let (port, path) = match (&probe.http_get, &probe.tcp_socket) {
            (Some(http), _) => {
                let path = http.path.clone().unwrap_or_else(|| "/".to_owned());
                (&http.port, Some(path))
            }
            (None, Some(tcp)) => (&tcp.port, None),
            (None, None) => anyhow::bail!("only httpGet and tcpSocket probes are known here"),
        };
        let seconds = |value: Option<i32>, default: u64| {
            let value = value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default);
            Duration::from_secs(value.max(1))
        };
        let times = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default)
        };
        Ok(Self {
            port: number(container, port)?,
            path,
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            successes: times(probe.success_threshold, 1),
            failures: times(probe.failure_threshold, 3),
        })
    }

    /// Probes once.
    pub(super) async fn once(&self, pod: IpAddr) -> bool {
        let attempt = ask(SocketAddr::new(pod, self.port), self.path.as_deref());
        matches!(
            tokio::time::timeout(self.timeout, attempt).await,
            Ok(Ok(()))
        )
    }
}

fn number(container: Option<&Container>, port: &IntOrString) -> Result<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => container
            .and_then(|c| c.ports.as_ref())
            .and_then(|ports| ports.iter().find(|p| p.name.as_ref() == Some(name)))
            .map(|port| port.container_port)
            .with_context(|| format!("no container port is named {name}"))?,
    };
    u16::try_from(number).context("probe port")
}

async fn ask(server: SocketAddr, path: Option<&str>) -> Result<()> {
    let mut stream = TcpStream::connect(server).await?;
    let Some(path) = path else { return Ok(()) };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let head = String::from_utf8_lossy(&answer);
    let status: u16 = head.split(' ').nth(1).context("no status")?.parse()?;
    ensure!((200..400).contains(&status), "status {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(probe: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{
            "name": "echo",
            "ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": probe,
        }]}}))
        .unwrap()
    }

    #[test]
    fn the_pods_own_probe_counts_with_the_kubelets_defaults() {
        let probe = Probe::of(&pod(&json!({"httpGet": {"path": "/x", "port": "web"}}))).unwrap();
        assert_eq!((probe.port, probe.path.as_deref()), (8080, Some("/x")));
        assert_eq!(probe.period, Duration::from_secs(10));
        assert_eq!((probe.successes, probe.failures), (1, 3));
        let probe = pod(&json!({"tcpSocket": {"port": 8081}, "periodSeconds": 2}));
        let probe = Probe::of(&probe).unwrap();
        assert_eq!((probe.port, probe.path), (8081, None));
        assert_eq!(probe.period, Duration::from_secs(2));
    }

    #[test]
    fn a_probe_that_this_agent_cannot_make_is_an_error() {
        assert!(Probe::of(&pod(&json!({"exec": {"command": ["true"]}}))).is_err());
        assert!(Probe::of(&pod(&json!({"tcpSocket": {"port": "nobody"}}))).is_err());
    }
}
