//! `healthCheckNodePort`: tells balancers whether this node has endpoints of a
//! Service under policy Local, and how many, as kube-proxy does.
//!
//! Anybody may ask, so each question has little time and few are answered at
//! once. Any path is answered, as by kube-proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bellrock_api::NodeReason;
use bellrock_forward::ServiceKey;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch as channel};
use tokio::task::JoinHandle;

use crate::plan::HealthCheck;

/// Questions that are answered at once, over all ports. More wait.
const AT_ONCE: usize = 64;
/// How long a question and its answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longer than a question's head need be.
const QUESTION: usize = 8192;
/// Connections that the kernel holds for a port.
const BACKLOG: u32 = 64;
/// Time between two tries to get a port that another process holds.
const AGAIN: Duration = Duration::from_secs(1);

/// What a port says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    service: ServiceKey,
    endpoints: u32,
}

/// Ports that cannot be had, and why.
type Taken = Arc<Mutex<BTreeMap<SocketAddr, String>>>;

/// The health check ports of all Services. Dropping it closes them.
#[derive(Debug)]
pub struct HealthChecks {
    listen: BTreeSet<IpAddr>,
    checks: BTreeMap<ServiceKey, HealthCheck>,
    servers: BTreeMap<SocketAddr, Server>,
    healthy: channel::Sender<bool>,
    permits: Arc<Semaphore>,
    taken: Taken,
}

#[derive(Debug)]
struct Server {
    answer: channel::Sender<Answer>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for HealthChecks {
    fn default() -> Self {
        Self {
            listen: BTreeSet::new(),
            checks: BTreeMap::new(),
            servers: BTreeMap::new(),
            healthy: channel::Sender::new(false),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            taken: Taken::default(),
        }
    }
}

impl HealthChecks {
    /// Sets one Service's check, or takes it away.
    pub fn set(&mut self, service: &ServiceKey, check: Option<HealthCheck>) {
        let before = match check {
            Some(check) => self.checks.insert(service.clone(), check),
            None => self.checks.remove(service),
        };
        let left = before.filter(|before| check.is_none_or(|now| now.port != before.port));
        if let Some(before) = left {
            for address in self.listen.clone() {
                self.close(SocketAddr::new(address, before.port));
            }
            // Another Service may have been given the port already.
            let heirs = self.checks.clone().into_iter();
            for (heir, check) in heirs.filter(|(_, check)| check.port == before.port) {
                self.serve_everywhere(&heir, check);
            }
        }
        if let Some(check) = check {
            self.serve_everywhere(service, check);
        }
    }

    fn serve_everywhere(&mut self, service: &ServiceKey, check: HealthCheck) {
        for address in self.listen.clone() {
            self.serve(address, service, check);
        }
    }

    /// Sets the addresses that all of them listen on.
    pub fn listen_on(&mut self, addresses: &BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.listen, addresses.clone());
        let gone = |socket: &&SocketAddr| !addresses.contains(&socket.ip());
        let closed: Vec<_> = self.servers.keys().filter(gone).copied().collect();
        for socket in closed {
            self.close(socket);
        }
        for address in addresses.difference(&before) {
            for (service, check) in self.checks.clone() {
                self.serve(*address, &service, check);
            }
        }
    }

    /// Whether this node forwards as it should.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.send_if_modified(|known| {
            let changed = *known != healthy;
            *known = healthy;
            changed
        });
    }

    /// Ports that another process holds.
    pub fn taken(&self) -> Vec<(NodeReason, String)> {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken
            .iter()
            .map(|(socket, why)| (NodeReason::HealthCheckPortTaken, format!("{socket}: {why}")))
            .collect()
    }

    fn close(&mut self, socket: SocketAddr) {
        self.servers.remove(&socket);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.remove(&socket);
    }

    fn serve(&mut self, address: IpAddr, service: &ServiceKey, check: HealthCheck) {
        let answer = Answer {
            service: service.clone(),
            endpoints: check.endpoints(address.is_ipv4()),
        };
        let socket = SocketAddr::new(address, check.port);
        if let Some(server) = self.servers.get(&socket) {
            server.answer.send_replace(answer);
            return;
        }
        let (answer, answers) = channel::channel(answer);
        let task = tokio::spawn(serve(
            socket,
            answers,
            self.healthy.subscribe(),
            Arc::clone(&self.permits),
            Arc::clone(&self.taken),
        ));
        self.servers.insert(socket, Server { answer, task });
    }
}

async fn serve(
    socket: SocketAddr,
    answers: channel::Receiver<Answer>,
    healthy: channel::Receiver<bool>,
    permits: Arc<Semaphore>,
    taken: Taken,
) {
    let note = |error: Option<&io::Error>| {
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => taken.insert(socket, error.to_string()),
            None => taken.remove(&socket),
        };
    };
    let listener = loop {
        match listen(socket) {
            Ok(listener) => break listener,
            Err(error) => note(Some(&error)),
        }
        tokio::time::sleep(AGAIN).await;
    };
    note(None);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Not before: a port that nobody asks must not hold one.
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                    return;
                };
                let text = response(&answers.borrow(), *healthy.borrow());
                tokio::spawn(async move {
                    // A client that is too slow, or gone, has itself to blame.
                    let _ = tokio::time::timeout(PATIENCE, reply(stream, &text)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%socket, %error, "health check not accepted");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Shares the port with the speaker that this one takes over from, or hands
/// over to.
fn listen(socket: SocketAddr) -> io::Result<TcpListener> {
    let new = match socket {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    new.set_reuseaddr(true)?;
    new.set_reuseport(true)?;
    new.bind(socket)?;
    new.listen(BACKLOG)
}

async fn reply(mut stream: TcpStream, text: &str) -> io::Result<()> {
    let mut question = Vec::new();
    while !question.windows(4).any(|end| end == b"\r\n\r\n") && question.len() < QUESTION {
        if stream.read_buf(&mut question).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

#[derive(Serialize)]
struct Body<'a> {
    service: Name<'a>,
    #[serde(rename = "localEndpoints")]
    local_endpoints: u32,
    #[serde(rename = "serviceProxyHealthy")]
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'a> {
    namespace: &'a str,
    name: &'a str,
}

fn response(answer: &Answer, healthy: bool) -> String {
    let body = Body {
        service: Name {
            namespace: &answer.service.namespace,
            name: &answer.service.name,
        },
        local_endpoints: answer.endpoints,
        service_proxy_healthy: healthy,
    };
    let body = serde_json::to_string_pretty(&body).unwrap_or_default();
    let status = if answer.endpoints > 0 && healthy {
        "200 OK"
    } else {
        "503 Service Unavailable"
    };
    format!(
        "HTTP/1.1 {status}\r\n\
         Content-Type: application/json\r\n\
         X-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {}\r\n\
         Content-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        answer.endpoints,
        body.len(),
    )
}

#[cfg(test)]
mod tests;
