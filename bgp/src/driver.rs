//! The driver: one task a peer, which alone has the clock and the socket.
#![allow(
    clippy::disallowed_methods,
    reason = "the driver is where the clock is read"
)]

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::config::{Attributes, Error, PeerConfig};
use crate::fsm::{Fsm, Input, Output};
use crate::message::{Decoder, Message};
use crate::reason::{DownReason, StopReason, TcpFailure};
use crate::rib::{AdjRibOut, RibSession};
use crate::socket;
use crate::status::PeerStatus;

const COMMANDS: usize = 256;
const READ: usize = 16 * 1024;
/// UPDATEs are built while less than this waits for the socket.
const OUT_LOW: usize = 64 * 1024;
/// A session ends within [`socket::LINGER`]; this is for a busy machine.
const STOP: Duration = Duration::from_secs(5);

/// A session to one peer, and the task that keeps it up. Dropping it ends the
/// task and the connection at once, without a word to the peer: use
/// [`Peer::stop`] where there is time.
#[derive(Debug)]
pub struct Peer {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<PeerStatus>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
enum Command {
    Change(Vec<(IpNet, Option<Attributes>)>),
    Drain(Duration),
    Stop(StopReason),
}

impl Peer {
    /// Starts a session with the routes that the peer should have. Must be
    /// called in a tokio runtime; the sockets are opened on its threads.
    ///
    /// # Errors
    /// What [`PeerConfig::validate`] refuses.
    pub fn spawn(config: PeerConfig, routes: BTreeMap<IpNet, Attributes>) -> Result<Self, Error> {
        config.validate()?;
        let (commands, inbox) = mpsc::channel(COMMANDS);
        let (sender, status) = watch::channel(PeerStatus::new(SystemTime::now()));
        let task = tokio::spawn(Task::new(config, routes, inbox, sender).run());
        Ok(Self {
            commands,
            status,
            task,
        })
    }

    /// The peer should have this route; replaces the one for the same prefix.
    /// Waits only while 256 earlier changes are not taken up yet, never for
    /// the peer.
    pub async fn announce(&self, prefix: IpNet, attributes: Attributes) {
        self.change(vec![(prefix, Some(attributes))]).await;
    }

    /// The peer should no longer have this route.
    pub async fn withdraw(&self, prefix: IpNet) {
        self.change(vec![(prefix, None)]).await;
    }

    /// Several changes at once, in order: `None` withdraws. They share
    /// UPDATEs.
    pub async fn change(&self, changes: Vec<(IpNet, Option<Attributes>)>) {
        // Fails only after the task's end, when there is nobody to tell.
        let _ = self.commands.send(Command::Change(changes)).await;
    }

    /// Marks all routes with GRACEFUL_SHUTDOWN (RFC 8326), so that the peer
    /// turns to other ways, and holds every later change back for `wait`: the
    /// withdrawals that follow find no traffic left. Again within that time it
    /// does nothing.
    pub async fn drain(&self, wait: Duration) {
        let _ = self.commands.send(Command::Drain(wait)).await;
    }

    /// The session's condition, and a notice of each change of it.
    pub fn status(&self) -> watch::Receiver<PeerStatus> {
        self.status.clone()
    }

    /// Ends the session with a NOTIFICATION and waits until the peer has
    /// closed too, at most a few seconds.
    pub async fn stop(mut self, reason: StopReason) {
        let _ = self.commands.send(Command::Stop(reason)).await;
        if tokio::time::timeout(STOP, &mut self.task).await.is_err() {
            warn!("session did not end in time, its connection is dropped");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;
type Finishing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The connection.
enum Link {
    None,
    Connecting(Connecting),
    Open(TcpStream),
}

/// What woke the task.
enum Event {
    Command(Option<Command>),
    Deadline,
    Connected(io::Result<TcpStream>),
    Ready(io::Result<Ready>),
    Finished,
}

struct Task {
    config: PeerConfig,
    fsm: Fsm,
    rib: AdjRibOut,
    decoder: Decoder,
    link: Link,
    /// The last connection, while its NOTIFICATION is on its way.
    finishing: Option<Finishing>,
    out: Vec<u8>,
    inbox: mpsc::Receiver<Command>,
    sender: watch::Sender<PeerStatus>,
    status: PeerStatus,
    /// Until when changes are held back, and those.
    drain: Option<(Instant, Vec<(IpNet, Option<Attributes>)>)>,
    stopped: bool,
}

impl Task {
    fn new(
        config: PeerConfig,
        routes: BTreeMap<IpNet, Attributes>,
        inbox: mpsc::Receiver<Command>,
        sender: watch::Sender<PeerStatus>,
    ) -> Self {
        let mut rib = AdjRibOut::default();
        for (prefix, attributes) in routes {
            rib.announce(prefix, attributes);
        }
        let status = sender.borrow().clone();
        Self {
            // The standard library's hasher keys are the randomness at hand.
            fsm: Fsm::new(config.clone(), RandomState::new().build_hasher().finish()),
            config,
            rib,
            decoder: Decoder::default(),
            link: Link::None,
            finishing: None,
            out: Vec::new(),
            inbox,
            sender,
            status,
            drain: None,
            stopped: false,
        }
    }

    async fn run(mut self) {
        self.input(Input::Start);
        loop {
            self.fill();
            self.publish();
            if self.stopped && self.finishing.is_none() {
                return;
            }
            match self.event().await {
                Event::Command(Some(command)) => {
                    self.command(command);
                    // Changes that wait behind it share its UPDATEs.
                    for _ in 1..COMMANDS {
                        let Ok(command) = self.inbox.try_recv() else {
                            break;
                        };
                        self.command(command);
                    }
                }
                // The handle is gone, and its drop ends this task.
                Event::Command(None) => return,
                Event::Deadline => {
                    self.drained();
                    self.input(Input::Tick);
                }
                Event::Connected(result) => self.connected(result),
                Event::Ready(result) => self.ready(result),
                Event::Finished => self.finishing = None,
            }
        }
    }

    /// Waits for the next thing to do. Cancel-safe: nothing is taken from a
    /// source before the event is returned.
    async fn event(&mut self) -> Event {
        let drained = self.drain.as_ref().map(|(until, _)| *until);
        let deadline = [self.fsm.next_deadline(), drained]
            .into_iter()
            .flatten()
            .min();
        let timer = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        let interest = if self.out.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let link = async {
            match &mut self.link {
                Link::None => pending().await,
                Link::Connecting(connecting) => Event::Connected(connecting.await),
                Link::Open(stream) => Event::Ready(stream.ready(interest).await),
            }
        };
        let finishing = async {
            match &mut self.finishing {
                Some(finishing) => finishing.await,
                None => pending().await,
            }
        };
        tokio::select! {
            command = self.inbox.recv() => Event::Command(command),
            () = timer => Event::Deadline,
            event = link => event,
            () = finishing => Event::Finished,
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Change(changes) => match &mut self.drain {
                Some((_, held)) => held.extend(changes),
                None => self.change(changes),
            },
            Command::Drain(wait) => {
                if self.drain.is_none() {
                    self.rib.set_graceful_shutdown(true);
                    self.drain = Some((Instant::now() + wait, Vec::new()));
                }
            }
            Command::Stop(reason) => {
                self.stopped = true;
                self.input(Input::Stop(reason));
            }
        }
    }

    fn change(&mut self, changes: Vec<(IpNet, Option<Attributes>)>) {
        for (prefix, attributes) in changes {
            match attributes {
                Some(attributes) => self.rib.announce(prefix, attributes),
                None => self.rib.withdraw(prefix),
            }
        }
    }

    /// Lets go of what was held back, once it is time.
    fn drained(&mut self) {
        if let Some((_, held)) = self.drain.take_if(|(until, _)| *until <= Instant::now()) {
            self.change(held);
            self.rib.set_graceful_shutdown(false);
        }
    }

    fn connected(&mut self, result: io::Result<TcpStream>) {
        self.link = Link::None;
        let opened = result.and_then(|stream| {
            let local = stream.local_addr()?.ip();
            Ok((stream, local))
        });
        match opened {
            Ok((stream, local)) => {
                self.link = Link::Open(stream);
                self.decoder = Decoder::default();
                self.out.clear();
                self.input(Input::TcpConnected(local));
            }
            Err(error) => self.input(Input::TcpFailed(socket::failure(&error))),
        }
    }

    fn ready(&mut self, result: io::Result<Ready>) {
        let done = match result {
            Ok(ready) => self.transfer(ready),
            Err(error) => Err(socket::failure(&error)),
        };
        if let Err(failure) = done {
            self.link = Link::None;
            self.input(Input::TcpFailed(failure));
        }
    }

    /// Moves octets as far as the socket goes, once in each direction.
    fn transfer(&mut self, ready: Ready) -> Result<(), TcpFailure> {
        if ready.is_writable()
            && !self.out.is_empty()
            && let Link::Open(stream) = &self.link
        {
            match stream.try_write(&self.out) {
                Ok(count) => {
                    self.out.drain(..count);
                    self.input(Input::Written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Why the peer closed may be there to be read.
                Err(error) if !ready.is_readable() => return Err(socket::failure(&error)),
                Err(_) => self.out.clear(),
            }
        }
        if (ready.is_readable() || ready.is_read_closed() || ready.is_error())
            && let Link::Open(stream) = &self.link
        {
            let mut octets = [0; READ];
            match stream.try_read(&mut octets) {
                Ok(0) => return Err(TcpFailure::Closed),
                Ok(count) => self.received(octets.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(socket::failure(&error)),
            }
        }
        Ok(())
    }

    fn received(&mut self, octets: &[u8]) {
        self.decoder.push(octets);
        // A message may end the session, and the rest with it.
        while matches!(self.link, Link::Open(_)) {
            match self.decoder.next(self.fsm.context()) {
                None => return,
                Some(Ok(message)) => {
                    self.status.messages_received.count(&message);
                    if let Message::Update(update) = &message
                        && !update.faults.is_empty()
                    {
                        self.status.malformed_updates += 1;
                        debug!(peer = %self.config.address, faults = ?update.faults, "malformed UPDATE");
                    }
                    self.input(Input::Received(message));
                }
                Some(Err(notification)) => self.input(Input::Malformed(notification)),
            }
        }
    }

    /// Feeds the machine and does what it wants done.
    fn input(&mut self, input: Input) {
        self.fsm.handle(input, Instant::now());
        while let Some(output) = self.fsm.poll_output() {
            self.output(output);
        }
        let state = self.fsm.state();
        if self.status.state != state {
            debug!(peer = %self.config.address, from = %self.status.state, to = %state, "state");
            self.status.state = state;
            self.status.since = SystemTime::now();
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Connect => {
                self.link = Link::Connecting(Box::pin(socket::connect(self.config.clone())));
            }
            Output::Send(message) => self.send(&message),
            Output::Close => {
                let rest = std::mem::take(&mut self.out);
                if let Link::Open(stream) = std::mem::replace(&mut self.link, Link::None) {
                    self.finishing = Some(Box::pin(socket::finish(stream, rest)));
                }
            }
            Output::Up(session) => {
                info!(
                    peer = %self.config.address, router_id = %session.peer_router_id,
                    asn = session.peer_asn, hold_time = ?session.hold_time, "session up"
                );
                self.rib.open(RibSession {
                    local: session.local,
                    peer: self.config.address,
                    local_asn: self.config.local_asn,
                    families: session.families,
                    context: session.context,
                    enhanced_refresh: session.enhanced_refresh,
                    next_hop_v4: self.config.next_hop_v4,
                    next_hop_v6: self.config.next_hop_v6,
                    role: self.config.role,
                });
            }
            Output::Down(reason) => self.down(&reason),
            Output::Refresh(family) => self.rib.refresh(family),
        }
    }

    fn down(&mut self, reason: &DownReason) {
        self.rib.close();
        self.out.clear();
        let mut words = reason.to_string();
        let silence = matches!(
            reason,
            DownReason::ConnectTimedOut(_) | DownReason::Tcp(TcpFailure::TimedOut)
        );
        if silence && self.config.password.is_some() {
            // Segments with a wrong signature are dropped without a word.
            words += "; its TCP MD5 password may be another one";
        }
        // An attempt that fails as the last one did is no news.
        if self.status.last_error.as_ref() == Some(&words) {
            debug!(peer = %self.config.address, reason = %words, "session down");
        } else {
            warn!(peer = %self.config.address, reason = %words, "session down");
        }
        self.status.last_error = Some(words);
    }

    fn send(&mut self, message: &Message) {
        match message.encode(self.fsm.context(), &mut self.out) {
            Ok(()) => self.status.messages_sent.count(message),
            // The RIB packs to the limit and nothing else grows.
            Err(error) => warn!(peer = %self.config.address, %error, "message not sent"),
        }
    }

    /// Builds UPDATEs, only as many as the peer is likely to take soon.
    fn fill(&mut self) {
        while self.out.len() < OUT_LOW {
            let Some(message) = self.rib.next_message() else {
                return;
            };
            self.send(&message);
        }
    }

    fn publish(&mut self) {
        let session = self.fsm.session();
        self.status.peer_router_id = session.map(|session| session.peer_router_id);
        self.status.peer_asn = session.map(|session| session.peer_asn);
        self.status.families = self.rib.families();
        self.status.graceful_restart = session.is_some_and(|session| session.graceful_restart);
        self.status.hold_time = session.and_then(|session| session.hold_time);
        self.status.prefixes_wanted = self.rib.wanted();
        self.status.prefixes_sent = self.rib.sent();
        self.status.prefixes_pending = self.rib.pending();
        self.status.prefixes_refused = self.rib.refused();
        self.sender.send_if_modified(|published| {
            let changed = *published != self.status;
            if changed {
                published.clone_from(&self.status);
            }
            changed
        });
    }
}
