//! The forwarding table has a thread of its own: netlink is synchronous, and
//! a first load of many Services takes a while.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};
use bellrock_forward::{Forwarder, Node, Report, SecondChance, Service, ServiceKey};
use tokio::sync::oneshot;

use crate::plan::Forwarding as Mode;

/// How long someone else's change of the table lasts at the most while nothing
/// is asked. A look costs two small messages.
const LOOK: Duration = Duration::from_millis(250);

type Reply = oneshot::Sender<Result<Report, bellrock_forward::Error>>;

/// Addresses that cannot have a second chance, and why.
type Refusals = oneshot::Sender<Result<BTreeMap<IpAddr, String>, bellrock_forward::Error>>;

enum Request {
    Sync(Node, BTreeMap<ServiceKey, Service>, Reply),
    Apply(BTreeMap<ServiceKey, Option<Service>>, Reply),
    SetNode(Node, Reply),
    Chances(BTreeMap<IpAddr, SecondChance>, Refusals),
    Check(Reply),
}

/// The forwarding thread's other end. Dropping it ends the thread; the table
/// stays, so that traffic outlives the speaker.
#[derive(Debug)]
pub struct Forwarding {
    requests: mpsc::SyncSender<Request>,
    thread: std::thread::JoinHandle<()>,
}

impl Forwarding {
    /// Opens the netlink socket in the calling thread's network namespace and
    /// starts the thread. Where somebody else forwards, the thread only sees
    /// to it that there is no table of ours.
    pub fn start(mode: Mode) -> Result<Self> {
        let forwarder = match mode {
            Mode::Nftables => {
                let forwarder = Forwarder::open().context("open netlink for nftables")?;
                Some(forwarder)
            }
            Mode::KubeProxy | Mode::None => None,
        };
        let (requests, queue) = mpsc::sync_channel(4);
        let thread = std::thread::Builder::new()
            .name("forward".to_owned())
            .spawn(move || match forwarder {
                Some(forwarder) => serve(forwarder, &queue),
                None => stay_away(&queue),
            })
            .context("start the forwarding thread")?;
        Ok(Self { requests, thread })
    }

    /// An error if the thread has ended: nothing is forwarded anew then.
    pub fn check_alive(&self) -> Result<()> {
        anyhow::ensure!(
            !self.thread.is_finished(),
            "the forwarding thread has ended"
        );
        Ok(())
    }

    /// Makes the table exactly this, keeping what is right already.
    pub async fn sync(
        &self,
        node: Node,
        services: BTreeMap<ServiceKey, Service>,
    ) -> Result<Report> {
        self.ask(|reply| Request::Sync(node, services, reply)).await
    }

    /// Changes these Services.
    pub async fn apply(&self, changes: BTreeMap<ServiceKey, Option<Service>>) -> Result<Report> {
        self.ask(|reply| Request::Apply(changes, reply)).await
    }

    /// Changes the node's own entries.
    pub async fn set_node(&self, node: Node) -> Result<Report> {
        self.ask(|reply| Request::SetNode(node, reply)).await
    }

    /// What was done since the last call to put the table back, because somebody
    /// else changed or flushed it: `replaced` or `disturbed` says what. The
    /// thread looks by itself, four times a second.
    pub async fn check(&self) -> Result<Report> {
        self.ask(Request::Check).await
    }

    /// Gives these addresses a second chance, and no others; those that cannot
    /// have one, and why.
    pub async fn set_second_chances(
        &self,
        chances: BTreeMap<IpAddr, SecondChance>,
    ) -> Result<BTreeMap<IpAddr, String>> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Chances(chances, reply))
            .ok()
            .context("the forwarding thread has ended")?;
        Ok(answer.await.context("the forwarding thread has ended")??)
    }

    async fn ask(&self, request: impl FnOnce(Reply) -> Request) -> Result<Report> {
        let (reply, answer) = oneshot::channel();
        // The queue holds a few requests and one caller waits for each answer,
        // so this does not block.
        self.requests
            .send(request(reply))
            .ok()
            .context("the forwarding thread has ended")?;
        Ok(answer.await.context("the forwarding thread has ended")??)
    }
}

fn serve(mut forwarder: Forwarder, queue: &mpsc::Receiver<Request>) {
    // What was put back and nobody was told of yet.
    let mut restored = None;
    let mut look = true;
    loop {
        let request = if look {
            queue.recv_timeout(LOOK)
        } else {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        let (result, reply) = match request {
            Ok(Request::Sync(node, services, reply)) => (forwarder.sync(&node, &services), reply),
            Ok(Request::Apply(changes, reply)) => (forwarder.apply(changes), reply),
            Ok(Request::SetNode(node, reply)) => (forwarder.set_node(&node), reply),
            Ok(Request::Chances(chances, reply)) => {
                let _ = reply.send(forwarder.set_second_chances(&chances));
                continue;
            }
            Ok(Request::Check(reply)) => {
                let result = check(&mut forwarder);
                (
                    result.map(|now| now.or(restored.take()).unwrap_or_default()),
                    reply,
                )
            }
            Err(RecvTimeoutError::Timeout) => {
                // Tried again when it is asked for, which tells the error.
                match check(&mut forwarder) {
                    Ok(report) => restored = report.or(restored),
                    Err(_) => look = false,
                }
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        look = result.is_ok();
        // The asker may be gone: it is shutting down.
        let _ = reply.send(result);
    }
}

/// Removes the table whenever it is asked for something. The speaker that this
/// one takes over from may put its table back once more before it ends.
fn stay_away(queue: &mpsc::Receiver<Request>) {
    while let Ok(request) = queue.recv() {
        match request {
            Request::Chances(_, reply) => {
                let _ = reply.send(Ok(BTreeMap::new()));
            }
            Request::Sync(_, _, reply)
            | Request::Apply(_, reply)
            | Request::SetNode(_, reply)
            | Request::Check(reply) => {
                let _ = reply.send(Forwarder::remove_table().map(|()| Report::default()));
            }
        }
    }
}

/// Puts the table back if somebody else touched it.
fn check(forwarder: &mut Forwarder) -> Result<Option<Report>, bellrock_forward::Error> {
    if !forwarder.check()? {
        return Ok(None);
    }
    let mut report = forwarder.apply(BTreeMap::new())?;
    if report.batches > 0 && report.replaced.is_none() {
        let elements = || "some of its elements were changed".to_owned();
        report.disturbed.get_or_insert_with(elements);
    }
    Ok(Some(report))
}
