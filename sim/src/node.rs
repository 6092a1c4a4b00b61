//! A node: its speaker's real state machines, and the machine around them.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bellrock_arp::frame::{Credentials, ETHERTYPE};
use bellrock_arp::ownership::{Segment, SegmentConfig};
use bellrock_arp::{Assignment, Held, Instant, MacAddr, Timers};

use crate::cluster::name;

/// Frames that wait in the sockets of a process that stands still.
const BACKLOG: usize = 400;

pub(crate) struct Node {
    pub(crate) number: usize,
    pub(crate) mac: MacAddr,
    /// The speaker, while it runs.
    pub(crate) segment: Option<Segment>,
    /// The process, or all of the machine, stands still.
    pub(crate) frozen: bool,
    pub(crate) backlog: VecDeque<Rc<[u8]>>,
    pub(crate) carrier: bool,
    /// What its speaker last heard from the API server.
    pub(crate) told: BTreeMap<usize, Assignment>,
    pub(crate) incarnation: u64,
    /// When its next timer event is queued for.
    pub(crate) timer: Option<Instant>,
    /// Frames sent in the second that began then.
    pub(crate) sent: (Instant, u64),
}

impl Node {
    pub(crate) fn new(number: usize) -> Self {
        let [high, low] = u16::try_from(number).unwrap_or_default().to_be_bytes();
        Self {
            number,
            mac: MacAddr(2, 0, 0, 0, high, low),
            segment: None,
            frozen: false,
            backlog: VecDeque::new(),
            carrier: true,
            told: BTreeMap::new(),
            incarnation: 1_000_000,
            timer: None,
            sent: (Instant(0), 0),
        }
    }

    /// The speaker answers and is answered.
    pub(crate) fn runs(&self) -> bool {
        self.segment.is_some() && !self.frozen
    }

    pub(crate) fn start(&mut self, timers: &Timers, now: Instant) {
        self.incarnation += 1_000;
        self.backlog.clear();
        self.told.clear();
        self.begin(timers, None, now);
    }

    /// Another process of the same speaker, which knows what the one before it
    /// was told.
    pub(crate) fn go_on(&mut self, timers: &Timers, held: Held, now: Instant) {
        self.incarnation += 1_000;
        self.backlog.clear();
        self.begin(timers, Some(held), now);
    }

    fn begin(&mut self, timers: &Timers, held: Option<Held>, now: Instant) {
        self.timer = None;
        self.segment = Some(Segment::new(
            SegmentConfig {
                node: name(self.number),
                interface: "eth0".to_owned(),
                credentials: Credentials::new("sim", b"0123456789abcdef"),
                ethertype: ETHERTYPE,
                timers: timers.clone(),
                incarnation: self.incarnation,
                mac: self.mac,
                held,
            },
            now,
        ));
    }

    /// Keeps a frame for a process that stands still.
    pub(crate) fn keep(&mut self, frame: Rc<[u8]>) {
        if self.backlog.len() < BACKLOG {
            self.backlog.push_back(frame);
        }
    }
}
