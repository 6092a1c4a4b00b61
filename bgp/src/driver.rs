//! The driver: one task a peer, which alone has the clock and the socket.
#![allow(
    clippy::disallowed_methods,
    reason = "the driver is where the clock is read"
)]

use std::collections::BTreeMap;
use std::future::pending;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use ipnet::IpNet;
use tokio::io::Ready;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::config::{Attributes, Error, Password, PeerConfig};
use crate::connection::{Connection, Event as Happened, Link};
use crate::fsm::{Input, Output};
use crate::message::Message;
use crate::pair::{Pair, Slot};
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
    address: IpAddr,
    password: Option<Password>,
}

/// Routes to announce, and those to withdraw.
type Changes = Vec<(IpNet, Option<Attributes>)>;

#[derive(Debug)]
enum Command {
    Change(Changes),
    Drain(Duration),
    BfdDown,
    Accept(TcpStream),
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
        let (address, password) = (config.address, config.password.clone());
        let task = tokio::spawn(Task::new(config, routes, inbox, sender).run());
        Ok(Self {
            commands,
            status,
            task,
            address,
            password,
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

    /// BFD says that the path has failed: the session, if there is one, ends
    /// with Cease, BFD Down (RFC 9384), and another is tried for after the
    /// connect retry time: to a peer that keeps routes over a restart, one at
    /// once would be that restart. It does not keep them: what it sends would
    /// not arrive.
    pub async fn bfd_down(&self) {
        let _ = self.commands.send(Command::BfdDown).await;
    }

    /// The session's condition, and a notice of each change of it.
    pub fn status(&self) -> watch::Receiver<PeerStatus> {
        self.status.clone()
    }

    /// Where connections that the peer opens are handed in.
    pub(crate) fn door(&self) -> Door {
        Door(self.commands.clone())
    }

    /// The peer's address.
    pub(crate) fn address(&self) -> IpAddr {
        self.address
    }

    /// Its TCP MD5 password.
    pub(crate) fn password(&self) -> Option<&Password> {
        self.password.as_ref()
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

/// Takes connections that a peer opened.
#[derive(Debug, Clone)]
pub(crate) struct Door(mpsc::Sender<Command>);

impl Door {
    /// Hands one in; it is closed if the peer is gone or busy.
    pub(crate) fn hand_in(&self, stream: TcpStream) {
        let _ = self.0.try_send(Command::Accept(stream));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What woke the task.
enum Event {
    Command(Option<Command>),
    Deadline,
    Link(Slot, Happened),
}

struct Task {
    config: PeerConfig,
    pair: Pair,
    rib: AdjRibOut,
    active: Connection,
    passive: Connection,
    inbox: mpsc::Receiver<Command>,
    sender: watch::Sender<PeerStatus>,
    status: PeerStatus,
    /// Until when changes are held back, and those.
    drain: Option<(Instant, Changes)>,
    /// When to begin again, after an end of our own will.
    again: Option<Instant>,
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
            pair: Pair::new(&config, RandomState::new().build_hasher().finish()),
            config,
            rib,
            active: Connection::default(),
            passive: Connection::default(),
            inbox,
            sender,
            status,
            drain: None,
            again: None,
            stopped: false,
        }
    }

    fn connection(&mut self, slot: Slot) -> &mut Connection {
        match slot {
            Slot::Active => &mut self.active,
            Slot::Passive => &mut self.passive,
        }
    }

    async fn run(mut self) {
        self.pair.start(Instant::now());
        self.act();
        loop {
            self.fill();
            self.publish();
            let farewell = self.active.finishing.is_some() || self.passive.finishing.is_some();
            if self.stopped && !farewell {
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
                    let now = Instant::now();
                    if self.again.take_if(|at| *at <= now).is_some() {
                        self.pair.start(now);
                    }
                    self.pair.tick(now);
                    self.act();
                }
                Event::Link(slot, Happened::Connected(result)) => self.connected(slot, result),
                Event::Link(slot, Happened::Ready(result)) => self.ready(slot, result),
                Event::Link(slot, Happened::Finished) => self.connection(slot).finishing = None,
            }
        }
    }

    /// Waits for the next thing to do. Cancel-safe: nothing is taken from a
    /// source before the event is returned.
    async fn event(&mut self) -> Event {
        let drained = self.drain.as_ref().map(|(until, _)| *until);
        let deadline = [self.pair.next_deadline(), drained, self.again]
            .into_iter()
            .flatten()
            .min();
        let timer = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            command = self.inbox.recv() => Event::Command(command),
            () = timer => Event::Deadline,
            event = self.active.event() => Event::Link(Slot::Active, event),
            event = self.passive.event() => Event::Link(Slot::Passive, event),
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
            Command::BfdDown => {
                if self.pair.up().is_some() && !self.stopped {
                    let now = Instant::now();
                    self.pair.stop(&StopReason::BfdDown, now);
                    self.act();
                    self.again = Some(now + self.config.connect_retry);
                }
            }
            Command::Accept(stream) => {
                if let Err(error) = self.accept(stream) {
                    debug!(peer = %self.config.address, %error, "connection not taken");
                }
            }
            Command::Stop(reason) => {
                self.stopped = true;
                self.again = None;
                self.pair.stop(&reason, Instant::now());
                self.act();
            }
        }
    }

    fn change(&mut self, changes: Changes) {
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

    /// Takes a connection that the peer opened, or drops it.
    fn accept(&mut self, stream: TcpStream) -> io::Result<()> {
        let local = stream.local_addr()?.ip();
        let expected = self.config.source.is_none_or(|source| source == local);
        if self.stopped || !expected {
            return Ok(());
        }
        stream.set_nodelay(true)?;
        socket::tune(&socket2::SockRef::from(&stream), &self.config)?;
        if self.pair.accept(local, Instant::now()) {
            // What a replaced connection still had to say goes first.
            self.act_until_open(stream);
        }
        Ok(())
    }

    fn act_until_open(&mut self, stream: TcpStream) {
        let mut stream = Some(stream);
        while let Some((slot, output)) = self.pair.poll_output() {
            let begins = slot == Slot::Passive && matches!(output, Output::Send(Message::Open(_)));
            if begins && let Some(stream) = stream.take() {
                self.passive.open(stream);
            }
            self.output(slot, output);
        }
        self.look();
    }

    fn connected(&mut self, slot: Slot, result: io::Result<TcpStream>) {
        self.connection(slot).link = Link::None;
        let opened = result.and_then(|stream| {
            let local = stream.local_addr()?.ip();
            Ok((stream, local))
        });
        match opened {
            Ok((stream, local)) => {
                self.connection(slot).open(stream);
                self.input(slot, Input::TcpConnected(local));
            }
            Err(error) => self.input(slot, Input::TcpFailed(socket::failure(&error))),
        }
    }

    fn ready(&mut self, slot: Slot, result: io::Result<Ready>) {
        let done = match result {
            Ok(ready) => self.transfer(slot, ready),
            Err(error) => Err(socket::failure(&error)),
        };
        if let Err(failure) = done {
            self.connection(slot).link = Link::None;
            self.input(slot, Input::TcpFailed(failure));
        }
    }

    /// Moves octets as far as the socket goes, once in each direction.
    fn transfer(&mut self, slot: Slot, ready: Ready) -> Result<(), TcpFailure> {
        let connection = self.connection(slot);
        if ready.is_writable()
            && !connection.out.is_empty()
            && let Link::Open(stream) = &connection.link
        {
            match stream.try_write(&connection.out) {
                Ok(count) => {
                    connection.out.drain(..count);
                    self.input(slot, Input::Written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Why the peer closed may be there to be read.
                Err(error) if !ready.is_readable() => return Err(socket::failure(&error)),
                Err(_) => connection.out.clear(),
            }
        }
        if (ready.is_readable() || ready.is_read_closed() || ready.is_error())
            && let Link::Open(stream) = &self.connection(slot).link
        {
            let mut octets = [0; READ];
            match stream.try_read(&mut octets) {
                Ok(0) => return Err(TcpFailure::Closed),
                Ok(count) => self.received(slot, octets.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(socket::failure(&error)),
            }
        }
        Ok(())
    }

    fn received(&mut self, slot: Slot, octets: &[u8]) {
        self.connection(slot).decoder.push(octets);
        // A message may end the session, and the rest with it.
        while self.connection(slot).is_open() {
            let context = self.pair.context(slot);
            match self.connection(slot).decoder.next(context) {
                None => return,
                Some(Ok(message)) => {
                    self.status.messages_received.count(&message);
                    if let Message::Update(update) = &message
                        && !update.faults.is_empty()
                    {
                        self.status.malformed_updates += 1;
                        debug!(peer = %self.config.address, faults = ?update.faults, "malformed UPDATE");
                    }
                    self.input(slot, Input::Received(message));
                }
                Some(Err(notification)) => self.input(slot, Input::Malformed(notification)),
            }
        }
    }

    /// Feeds the machines and does what they want done.
    fn input(&mut self, slot: Slot, input: Input) {
        self.pair.handle(slot, input, Instant::now());
        self.act();
    }

    fn act(&mut self) {
        while let Some((slot, output)) = self.pair.poll_output() {
            self.output(slot, output);
        }
        self.look();
    }

    fn look(&mut self) {
        let state = self.pair.state();
        if self.status.state != state {
            debug!(peer = %self.config.address, from = %self.status.state, to = %state, "state");
            self.status.state = state;
            self.status.since = SystemTime::now();
        }
    }

    fn output(&mut self, slot: Slot, output: Output) {
        match output {
            Output::Connect => {
                let connecting = Box::pin(socket::connect(self.config.clone()));
                self.connection(slot).link = Link::Connecting(connecting);
            }
            Output::Send(message) => self.send(slot, &message),
            Output::Close => self.connection(slot).close(),
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
            Output::Down(reason) => self.down(slot, &reason),
            Output::Refresh(family) => self.rib.refresh(family),
        }
    }

    fn down(&mut self, slot: Slot, reason: &DownReason) {
        // The other connection's session may be up.
        if self.pair.up().is_none() {
            self.rib.close();
        }
        self.connection(slot).out.clear();
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

    fn send(&mut self, slot: Slot, message: &Message) {
        let context = self.pair.context(slot);
        let encoded = message.encode(context, &mut self.connection(slot).out);
        match encoded {
            Ok(()) => self.status.messages_sent.count(message),
            // The RIB packs to the limit and nothing else grows.
            Err(error) => warn!(peer = %self.config.address, %error, "message not sent"),
        }
    }

    /// Builds UPDATEs, only as many as the peer is likely to take soon.
    fn fill(&mut self) {
        let Some(slot) = self.pair.up() else {
            return;
        };
        while self.connection(slot).out.len() < OUT_LOW {
            let Some(message) = self.rib.next_message() else {
                return;
            };
            self.send(slot, &message);
        }
    }

    fn publish(&mut self) {
        let session = self.pair.session();
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
