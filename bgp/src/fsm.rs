//! The session's state machine, RFC 4271 section 8, for a speaker that always
//! opens the connection itself. Pure: it is told the time, and what it wants
//! done comes out of [`Fsm::poll_output`].
//!
//! ```text
//!            Start, idle hold over                TCP up: OPEN
//!   Idle ----------------------------> Connect --------------> OpenSent
//!    ^                                  |   ^                    |  | OPEN: KEEPALIVE
//!    | NOTIFICATION, error,    TCP fails|   | ConnectRetry       |  v
//!    | hold timer, TCP fails            v   |     TCP fails      | OpenConfirm
//!    | (with exponential pause)        Active <------------------'  | KEEPALIVE
//!    '--------------------------------------------- Established <---'
//! ```
//!
//! Deviations from the RFC, on purpose: ConnectRetry is seconds, not minutes
//! (RFC 4271 section 10 suggests 120 s), and a failed TCP connection leads to
//! Active, not to Idle, so that a router that comes back is found at the pace
//! of ConnectRetry. The idle hold time (`DampPeerOscillations`) doubles from
//! 1 s to 60 s with each session that fails, and starts over after one that
//! lasted a minute. Each pause is jittered by 0.75 to 1.0.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::config::PeerConfig;
use crate::message::{
    Capability, Context, Family, GracefulRestart, Message, Notification, Open, RestartFamily,
    RouteRefresh,
};
use crate::reason::{DownReason, StopReason, TcpFailure};

mod event;
#[cfg(test)]
mod tests;

pub use self::event::{Input, Output, Session, State};

/// "A large value" until the peer's OPEN has come (RFC 4271 section 8.2.2).
const OPEN_HOLD: Duration = Duration::from_secs(4 * 60);
const IDLE_HOLD_FIRST: Duration = Duration::from_secs(1);
const IDLE_HOLD_MAX: Duration = Duration::from_secs(60);
/// A session that lasts this long clears the record of those that failed.
const STABLE: Duration = Duration::from_secs(60);
/// No more than one KEEPALIVE a second (RFC 4271 section 4.4).
const KEEPALIVE_MIN: Duration = Duration::from_secs(1);
const SEND_HOLD_MIN: Duration = Duration::from_secs(8 * 60);

/// A state with what can be known in it.
#[derive(Debug, Clone)]
enum Inner {
    Idle,
    Connect,
    Active,
    OpenSent { local: IpAddr },
    OpenConfirm(Session),
    Established { session: Session, since: Instant },
}

#[derive(Debug, Default)]
struct Timers {
    idle_hold: Option<Instant>,
    connect_retry: Option<Instant>,
    hold: Option<Instant>,
    keepalive: Option<Instant>,
    send_hold: Option<Instant>,
}

/// The state machine of one session.
#[derive(Debug)]
pub struct Fsm {
    config: PeerConfig,
    inner: Inner,
    timers: Timers,
    outputs: VecDeque<Output>,
    jitter: Jitter,
    /// Sessions in a row that failed.
    failures: u32,
    /// Never connects: the peer does.
    passive: bool,
    /// A session was up once.
    was_up: bool,
    /// The peer refused our OPEN for its optional parameters: try one without
    /// any (RFC 5492 section 3).
    bare: bool,
}

impl Fsm {
    /// A machine in Idle. `seed` feeds the jitter of its timers. The
    /// configuration must be [valid](PeerConfig::validate).
    pub fn new(config: PeerConfig, seed: u64) -> Self {
        Self {
            config,
            inner: Inner::Idle,
            timers: Timers::default(),
            outputs: VecDeque::new(),
            jitter: Jitter(seed),
            failures: 0,
            passive: false,
            was_up: false,
            bare: false,
        }
    }

    /// A machine that never connects: [`Fsm::accept`] brings it to life.
    pub fn passive(config: PeerConfig, seed: u64) -> Self {
        Self {
            passive: true,
            ..Self::new(config, seed)
        }
    }

    /// The peer has connected to this address of ours (events 16 and 17); the
    /// machine must be in Idle.
    pub fn accept(&mut self, local: IpAddr, now: Instant) {
        self.send(Message::Open(self.our_open()));
        self.timers = Timers {
            hold: Some(now + OPEN_HOLD),
            ..Timers::default()
        };
        self.inner = Inner::OpenSent { local };
    }

    /// Whether it pauses after a session that failed.
    pub fn rests(&self, now: Instant) -> bool {
        self.timers.idle_hold.is_some_and(|until| until > now)
    }

    /// The peer had a session with us on another connection.
    pub fn was_up(&mut self) {
        self.was_up = true;
    }

    /// Its state.
    pub fn state(&self) -> State {
        match self.inner {
            Inner::Idle => State::Idle,
            Inner::Connect => State::Connect,
            Inner::Active => State::Active,
            Inner::OpenSent { .. } => State::OpenSent,
            Inner::OpenConfirm(_) => State::OpenConfirm,
            Inner::Established { .. } => State::Established,
        }
    }

    /// What was settled with the peer, once its OPEN was good.
    pub fn session(&self) -> Option<&Session> {
        match &self.inner {
            Inner::OpenConfirm(session) | Inner::Established { session, .. } => Some(session),
            Inner::Idle | Inner::Connect | Inner::Active | Inner::OpenSent { .. } => None,
        }
    }

    /// How the next message is to be read.
    pub fn context(&self) -> Context {
        self.session()
            .map_or(Context::BEFORE_OPEN, |session| session.context)
    }

    /// When to call `handle` with [`Input::Tick`] at the latest.
    pub fn next_deadline(&self) -> Option<Instant> {
        let Timers {
            idle_hold,
            connect_retry,
            hold,
            keepalive,
            send_hold,
        } = self.timers;
        [idle_hold, connect_retry, hold, keepalive, send_hold]
            .into_iter()
            .flatten()
            .min()
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes one input at one time.
    pub fn handle(&mut self, input: Input, now: Instant) {
        self.inner = match std::mem::replace(&mut self.inner, Inner::Idle) {
            Inner::Idle => self.idle(input, now),
            Inner::Connect => self.connect(input, now),
            Inner::Active => self.active(input, now),
            Inner::OpenSent { local } => self.open_sent(local, input, now),
            Inner::OpenConfirm(session) => self.open_confirm(session, input, now),
            Inner::Established { session, since } => self.established(session, since, input, now),
        };
    }

    fn idle(&mut self, input: Input, now: Instant) -> Inner {
        match input {
            Input::Start => self.begin(now),
            Input::Tick if due(self.timers.idle_hold, now) => self.begin(now),
            Input::Stop(reason) => self.stop(reason, false),
            Input::Tick
            | Input::TcpConnected(_)
            | Input::TcpFailed(_)
            | Input::Received(_)
            | Input::Malformed(_)
            | Input::Written => Inner::Idle,
        }
    }

    fn connect(&mut self, input: Input, now: Instant) -> Inner {
        match input {
            Input::TcpConnected(local) => {
                self.send(Message::Open(self.our_open()));
                self.timers = Timers {
                    hold: Some(now + OPEN_HOLD),
                    ..Timers::default()
                };
                Inner::OpenSent { local }
            }
            Input::TcpFailed(failure) => self.retry_later(failure, now),
            // ConnectRetryTimer_Expires: drop this attempt and try again.
            Input::Tick if due(self.timers.connect_retry, now) => {
                self.outputs.push_back(Output::Close);
                let reason = DownReason::ConnectTimedOut(self.config.connect_retry);
                self.outputs.push_back(Output::Down(reason));
                self.begin(now)
            }
            Input::Stop(reason) => self.stop(reason, false),
            Input::Tick
            | Input::Start
            | Input::Received(_)
            | Input::Malformed(_)
            | Input::Written => Inner::Connect,
        }
    }

    fn active(&mut self, input: Input, now: Instant) -> Inner {
        match input {
            // ConnectRetryTimer_Expires
            Input::Tick if due(self.timers.connect_retry, now) => self.begin(now),
            Input::Stop(reason) => self.stop(reason, false),
            Input::Tick
            | Input::Start
            | Input::TcpConnected(_)
            | Input::TcpFailed(_)
            | Input::Received(_)
            | Input::Malformed(_)
            | Input::Written => Inner::Active,
        }
    }

    fn open_sent(&mut self, local: IpAddr, input: Input, now: Instant) -> Inner {
        match input {
            // BGPOpen
            Input::Received(Message::Open(open)) => match self.negotiate(local, &open) {
                Ok(session) => {
                    self.send(Message::Keepalive);
                    self.timers.hold = session.hold_time.map(|hold| now + hold);
                    self.timers.keepalive = self.keepalive_at(&session, now);
                    Inner::OpenConfirm(session)
                }
                Err((reason, notification)) => self.fail(reason, Some(notification), now),
            },
            // NotifMsg, NotifMsgVerErr
            Input::Received(Message::Notification(notification)) => {
                self.bare = (notification.code, notification.subcode) == (2, 4);
                self.fail(DownReason::NotificationReceived(notification), None, now)
            }
            // KeepAliveMsg, UpdateMsg (RFC 6608)
            Input::Received(Message::Keepalive | Message::Update(_) | Message::RouteRefresh(_)) => {
                self.protocol_error(Notification::new(5, 1), now)
            }
            Input::Malformed(notification) => self.protocol_error(notification, now),
            // HoldTimer_Expires
            Input::Tick if due(self.timers.hold, now) => self.hold_expired(OPEN_HOLD, now),
            Input::TcpFailed(failure) => {
                self.outputs.push_back(Output::Close);
                self.retry_later(failure, now)
            }
            Input::Stop(reason) => self.stop(reason, true),
            Input::Tick | Input::Start | Input::TcpConnected(_) | Input::Written => {
                Inner::OpenSent { local }
            }
        }
    }

    fn open_confirm(&mut self, session: Session, input: Input, now: Instant) -> Inner {
        match input {
            // KeepAliveMsg
            Input::Received(Message::Keepalive) => {
                self.timers.hold = session.hold_time.map(|hold| now + hold);
                self.timers.send_hold = Some(now + send_hold(&session));
                self.was_up = true;
                self.outputs.push_back(Output::Up(session.clone()));
                Inner::Established {
                    session,
                    since: now,
                }
            }
            Input::Received(Message::Notification(notification)) => {
                self.fail(DownReason::NotificationReceived(notification), None, now)
            }
            // A second OPEN on the one connection, UpdateMsg (RFC 6608)
            Input::Received(Message::Open(_) | Message::Update(_) | Message::RouteRefresh(_)) => {
                self.protocol_error(Notification::new(5, 2), now)
            }
            Input::Malformed(notification) => self.protocol_error(notification, now),
            Input::Tick => match self.tick(&session, now) {
                Ok(()) => Inner::OpenConfirm(session),
                Err(down) => down,
            },
            Input::TcpFailed(failure) => self.fail(DownReason::Tcp(failure), None, now),
            Input::Stop(reason) => self.stop(reason, true),
            Input::Start | Input::TcpConnected(_) | Input::Written => Inner::OpenConfirm(session),
        }
    }

    fn established(
        &mut self,
        session: Session,
        since: Instant,
        input: Input,
        now: Instant,
    ) -> Inner {
        if now.saturating_duration_since(since) >= STABLE {
            self.failures = 0;
        }
        match input {
            // KeepAliveMsg, UpdateMsg
            Input::Received(Message::Keepalive | Message::Update(_)) => {
                self.timers.hold = session.hold_time.map(|hold| now + hold);
                Inner::Established { session, since }
            }
            Input::Received(Message::RouteRefresh(refresh)) => {
                self.timers.hold = session.hold_time.map(|hold| now + hold);
                if let Some(family) = wanted(refresh, &session) {
                    self.outputs.push_back(Output::Refresh(family));
                }
                Inner::Established { session, since }
            }
            Input::Received(Message::Notification(notification)) => {
                self.fail(DownReason::NotificationReceived(notification), None, now)
            }
            // RFC 6608
            Input::Received(Message::Open(_)) => self.protocol_error(Notification::new(5, 3), now),
            Input::Malformed(notification) => self.protocol_error(notification, now),
            Input::Tick => match self.tick(&session, now) {
                Ok(()) => Inner::Established { session, since },
                Err(down) => down,
            },
            Input::Written => {
                self.timers.send_hold = Some(now + send_hold(&session));
                Inner::Established { session, since }
            }
            Input::TcpFailed(failure) => self.fail(DownReason::Tcp(failure), None, now),
            Input::Stop(StopReason::Restart) if session.graceful_restart => {
                self.stop(StopReason::Restart, false)
            }
            Input::Stop(reason) if session.graceful_notification && reason.is_final() => {
                self.send(Message::Notification(reason.notification().hard()));
                self.stop(reason, false)
            }
            Input::Stop(reason) => self.stop(reason, true),
            Input::Start | Input::TcpConnected(_) => Inner::Established { session, since },
        }
    }

    /// The timers of a session whose OPENs are exchanged.
    fn tick(&mut self, session: &Session, now: Instant) -> Result<(), Inner> {
        // HoldTimer_Expires
        if due(self.timers.hold, now) {
            return Err(self.hold_expired(session.hold_time.unwrap_or(OPEN_HOLD), now));
        }
        if due(self.timers.send_hold, now) {
            let reason = DownReason::SendHoldTimerExpired(send_hold(session));
            let notification = Notification::send_hold_timer_expired();
            return Err(self.fail(reason, Some(notification), now));
        }
        // KeepaliveTimer_Expires
        if due(self.timers.keepalive, now) {
            self.send(Message::Keepalive);
            self.timers.keepalive = self.keepalive_at(session, now);
        }
        Ok(())
    }

    /// What we say about ourselves.
    fn our_open(&self) -> Open {
        let config = &self.config;
        let mut open = Open::new(config.local_asn, config.hold_seconds(), config.router_id);
        if self.bare {
            open.capabilities.clear();
            return open;
        }
        let multi = |family: &Family| Capability::MultiProtocol {
            afi: family.afi(),
            safi: family.safi(),
        };
        let mut all: Vec<_> = config.families.iter().map(multi).collect();
        all.push(Capability::RouteRefresh);
        if self.offers_ipv6_next_hop() {
            all.push(Capability::ExtendedNextHop(vec![(1, 1, 2)]));
        }
        if config.extended_messages {
            all.push(Capability::ExtendedMessage);
        }
        if let Some(role) = config.role
            && !config.peer_asn.is_internal(config.local_asn)
        {
            all.push(Capability::Role(role.code()));
        }
        if let Some(restart) = config.restart {
            // Between sessions of one process the forwarding goes on.
            let forwarding = self.was_up || restart.resumed;
            let families = config.families.iter().map(|family| RestartFamily {
                afi: family.afi(),
                safi: family.safi(),
                forwarding,
            });
            all.push(Capability::GracefulRestart(GracefulRestart {
                restarted: !self.was_up && restart.resumed,
                notification: true,
                time: u16::try_from(restart.time.as_secs()).unwrap_or(u16::MAX),
                families: families.collect(),
            }));
        }
        all.push(Capability::FourOctetAs(config.local_asn));
        all.push(Capability::EnhancedRouteRefresh);
        open.capabilities = all;
        open
    }

    /// IPv4 routes over an IPv6 session need it.
    fn offers_ipv6_next_hop(&self) -> bool {
        self.config.address.is_ipv6() && self.config.families.contains(&Family::Ipv4Unicast)
    }

    /// Checks an OPEN against the configuration (RFC 4271 section 6.2).
    fn negotiate(&self, local: IpAddr, open: &Open) -> Result<Session, (DownReason, Notification)> {
        let PeerConfig {
            local_asn,
            peer_asn: expected,
            ..
        } = self.config;
        let peer_asn = open.asn();
        if !expected.accepts(peer_asn, local_asn) {
            let reason = DownReason::BadPeerAs {
                got: peer_asn,
                expected,
            };
            return Err((reason, Notification::new(2, 2)));
        }
        let internal = peer_asn == local_asn;
        if internal && open.router_id == self.config.router_id {
            let notification = Notification::with_data(2, 3, open.router_id.octets());
            return Err((DownReason::SameRouterId, notification)); // RFC 6286
        }
        let role = open
            .role()
            .map_err(|notification| (DownReason::RoleMismatch, notification))?;
        if let (false, Some(ours), Some(theirs)) = (internal, self.config.role, role)
            && !ours.fits(theirs)
        {
            return Err((DownReason::RoleMismatch, Notification::new(2, 11)));
        }
        let hold = open.hold_time.min(self.config.hold_seconds());
        // What was not offered was not negotiated.
        let both = |ours: bool, theirs: bool| ours && theirs && !self.bare;
        let restart = open.graceful_restart();
        let graceful_restart = both(self.config.restart.is_some(), restart.is_some());
        Ok(Session {
            local,
            peer_asn,
            peer_router_id: open.router_id,
            hold_time: (hold > 0).then(|| Duration::from_secs(hold.into())),
            families: Family::ALL
                .into_iter()
                .filter(|family| {
                    let ours = if self.bare {
                        *family == Family::Ipv4Unicast
                    } else {
                        self.config.families.contains(family)
                    };
                    ours && open.has_family(*family)
                })
                .collect(),
            context: Context {
                four_octet_as: both(true, open.four_octet_asn().is_some()),
                internal,
                extended: both(
                    self.config.extended_messages,
                    open.has(&Capability::ExtendedMessage),
                ),
                ipv6_next_hop: both(self.offers_ipv6_next_hop(), open.has_ipv6_next_hop()),
            },
            enhanced_refresh: both(true, open.has(&Capability::EnhancedRouteRefresh)),
            graceful_restart,
            graceful_notification: graceful_restart && restart.is_some_and(|r| r.notification),
        })
    }

    fn keepalive_at(&mut self, session: &Session, now: Instant) -> Option<Instant> {
        let third = session.hold_time? / 3;
        let interval = self
            .config
            .keepalive_time
            .map_or(third, |configured| configured.min(third));
        Some(now + self.jitter.of(interval).max(KEEPALIVE_MIN))
    }

    fn send(&mut self, message: Message) {
        self.outputs.push_back(Output::Send(message));
    }

    fn begin(&mut self, now: Instant) -> Inner {
        let retry = self.config.connect_retry;
        self.timers = Timers {
            connect_retry: Some(now + retry),
            ..Timers::default()
        };
        self.outputs.push_back(Output::Connect);
        Inner::Connect
    }

    fn retry_later(&mut self, failure: TcpFailure, now: Instant) -> Inner {
        if self.passive {
            return self.fail(DownReason::Tcp(failure), None, now);
        }
        self.outputs
            .push_back(Output::Down(DownReason::Tcp(failure)));
        let retry = now + self.jitter.of(self.config.connect_retry);
        self.timers = Timers {
            connect_retry: Some(retry),
            ..Timers::default()
        };
        Inner::Active
    }

    fn protocol_error(&mut self, notification: Notification, now: Instant) -> Inner {
        let reason = DownReason::ProtocolError(notification.clone());
        self.fail(reason, Some(notification), now)
    }

    fn hold_expired(&mut self, after: Duration, now: Instant) -> Inner {
        let notification = Notification::hold_timer_expired();
        self.fail(DownReason::HoldTimerExpired(after), Some(notification), now)
    }

    /// Ends the session and pauses, longer each time in a row.
    fn fail(&mut self, reason: DownReason, tell: Option<Notification>, now: Instant) -> Inner {
        let pause = IDLE_HOLD_FIRST
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX))
            .min(IDLE_HOLD_MAX);
        self.failures = self.failures.saturating_add(1);
        let again = now + self.jitter.of(pause);
        self.close(reason, tell);
        self.timers.idle_hold = Some(again);
        Inner::Idle
    }

    /// Ends everything until the next Start.
    fn stop(&mut self, reason: StopReason, tell: bool) -> Inner {
        let notification = tell.then(|| reason.notification());
        if reason != StopReason::Collision {
            self.failures = 0;
        }
        self.close(DownReason::Stopped(reason), notification);
        Inner::Idle
    }

    fn close(&mut self, reason: DownReason, tell: Option<Notification>) {
        if let Some(notification) = tell {
            self.send(Message::Notification(notification));
        }
        self.outputs.push_back(Output::Close);
        self.outputs.push_back(Output::Down(reason));
        self.timers = Timers::default();
    }
}

fn due(timer: Option<Instant>, now: Instant) -> bool {
    timer.is_some_and(|at| at <= now)
}

/// RFC 9687 section 3.1: 8 minutes or twice the hold time, what is longer.
fn send_hold(session: &Session) -> Duration {
    session
        .hold_time
        .map_or(SEND_HOLD_MIN, |hold| (hold * 2).max(SEND_HOLD_MIN))
}

/// The family to send again. A request for one that was not negotiated, or
/// with a subtype that was not (RFC 7313), is ignored.
fn wanted(refresh: RouteRefresh, session: &Session) -> Option<Family> {
    let named = |family: &&Family| (family.afi(), family.safi()) == (refresh.afi, refresh.safi);
    session
        .families
        .iter()
        .find(named)
        .copied()
        .filter(|_| refresh.subtype == 0)
}

/// SplitMix64: enough to keep sessions out of step.
#[derive(Debug)]
struct Jitter(u64);

impl Jitter {
    /// 0.75 to 1.0 of `duration` (RFC 4271 section 10).
    fn of(&mut self, duration: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let quarter = duration / 4;
        // The top 16 bits as a fraction of the quarter that is random.
        let part = u32::try_from(z >> 48).unwrap_or(0);
        duration.saturating_sub(quarter) + quarter * part / 0x1_0000
    }
}
