//! The segment: switches in a row, with the tables in which they learn where a
//! hardware address is, and the links to them, each of which may fail in one
//! direction or both.

use std::collections::BTreeMap;
use std::time::Duration;

use bellrock_arp::frame::{ETHERTYPE, GROUP};
use bellrock_arp::{Instant, MacAddr};

use crate::rng::Rng;

/// How long a switch remembers (IEEE 802.1D).
const AGEING: Duration = Duration::from_secs(300);

/// A node, a client or a foreign host.
pub(crate) type Station = usize;

/// Where a switch sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Station(Station),
    /// To the switch before, or after.
    Left,
    Right,
}

/// A cable's two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cable {
    /// From the station to its switch, or from a switch to the one after.
    pub(crate) out: bool,
    /// The other way.
    pub(crate) back: bool,
}

impl Cable {
    pub(crate) const WHOLE: Self = Self {
        out: true,
        back: true,
    };
    pub(crate) const CUT: Self = Self {
        out: false,
        back: false,
    };
}

#[derive(Clone, Debug)]
struct Link {
    switch: usize,
    cable: Cable,
}

/// What the wire does to frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Frames of a hundred that are lost, and that come twice.
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    /// The most that a frame takes.
    pub(crate) delay: Duration,
    /// Whether frames to one station may overtake each other.
    pub(crate) reorder: bool,
    /// Switches pass no frame to the nodes' group: multicast snooping.
    pub(crate) filtered: bool,
}

impl Weather {
    pub(crate) const CALM: Self = Self {
        loss: 0,
        duplicates: 0,
        delay: Duration::from_micros(300),
        reorder: false,
        filtered: false,
    };
}

pub(crate) struct Wire {
    links: Vec<Link>,
    trunks: Vec<Cable>,
    /// For each switch: hardware address to port.
    tables: Vec<BTreeMap<MacAddr, (Port, Instant)>>,
    pub(crate) weather: Weather,
    /// When the last frame on its way to each station arrives.
    last: Vec<Instant>,
    rng: Rng,
}

impl Wire {
    /// `switches` in a row, and each station's switch.
    pub(crate) fn new(switches: usize, stations: &[usize], rng: Rng) -> Self {
        Self {
            links: stations
                .iter()
                .map(|switch| Link {
                    switch: *switch,
                    cable: Cable::WHOLE,
                })
                .collect(),
            trunks: vec![Cable::WHOLE; switches - 1],
            tables: vec![BTreeMap::new(); switches],
            weather: Weather::CALM,
            last: vec![Instant(0); stations.len()],
            rng,
        }
    }

    pub(crate) fn trunks(&self) -> usize {
        self.trunks.len()
    }

    pub(crate) fn set_trunk(&mut self, trunk: usize, cable: Cable) {
        if let Some(old) = self.trunks.get_mut(trunk) {
            *old = cable;
        }
    }

    /// `seen`: the switch notices (the carrier goes), and forgets who was there.
    pub(crate) fn set_cable(&mut self, station: Station, cable: Cable, seen: bool) {
        let Some(link) = self.links.get_mut(station) else {
            return;
        };
        link.cable = cable;
        if seen {
            let switch = link.switch;
            if let Some(table) = self.tables.get_mut(switch) {
                table.retain(|_, (port, _)| *port != Port::Station(station));
            }
        }
    }

    /// Whether frames of `from` reach `to`.
    pub(crate) fn reaches(&self, from: Station, to: Station) -> bool {
        let (Some(a), Some(b)) = (self.links.get(from), self.links.get(to)) else {
            return false;
        };
        let trunk = |index: usize| self.trunks.get(index).copied().unwrap_or(Cable::CUT);
        a.cable.out
            && b.cable.back
            && (a.switch..b.switch).all(|index| trunk(index).out)
            && (b.switch..a.switch).all(|index| trunk(index).back)
    }

    pub(crate) fn connected(&self, one: Station, other: Station) -> bool {
        self.reaches(one, other) && self.reaches(other, one)
    }

    /// The stations that a frame comes to; the switches learn on the way.
    fn route(&mut self, from: Station, source: MacAddr, to: MacAddr, now: Instant) -> Vec<Station> {
        let mut found = Vec::new();
        let Some(link) = self.links.get(from).filter(|link| link.cable.out) else {
            return found;
        };
        let mut queue = vec![(link.switch, Port::Station(from))];
        while let Some((switch, came)) = queue.pop() {
            let Some(table) = self.tables.get_mut(switch) else {
                continue;
            };
            table.insert(source, (came, now));
            let known = match table.get(&to) {
                Some((port, at)) if to.is_unicast() && now.since(*at) < AGEING => Some(*port),
                _ => None,
            };
            let goes = |port| port != came && known.is_none_or(|known| known == port);
            for (station, link) in self.links.iter().enumerate() {
                if link.switch == switch && link.cable.back && goes(Port::Station(station)) {
                    found.push(station);
                }
            }
            if goes(Port::Right) && self.trunks.get(switch).is_some_and(|cable| cable.out) {
                queue.push((switch + 1, Port::Left));
            }
            let left = switch.checked_sub(1);
            if let Some(left) = left
                && goes(Port::Left)
                && self.trunks.get(left).is_some_and(|cable| cable.back)
            {
                queue.push((left, Port::Right));
            }
        }
        found
    }

    /// Where a packet to a hardware address comes, if it is not lost.
    pub(crate) fn path(
        &mut self,
        from: Station,
        source: MacAddr,
        to: MacAddr,
        now: Instant,
    ) -> Vec<Station> {
        self.route(from, source, to, now)
    }

    /// Who gets a frame, and when.
    pub(crate) fn send(
        &mut self,
        from: Station,
        frame: &[u8],
        now: Instant,
    ) -> Vec<(Station, Instant)> {
        let Some((to, source, ethertype)) = header(frame) else {
            return Vec::new();
        };
        let mut all = Vec::new();
        for station in self.route(from, source, to, now) {
            let weather = self.weather;
            if (weather.filtered && to == GROUP && ethertype == ETHERTYPE)
                || self.rng.chance(weather.loss)
            {
                continue;
            }
            all.push((station, self.arrival(station, now)));
            if self.rng.chance(weather.duplicates) {
                all.push((station, self.arrival(station, now)));
            }
        }
        all
    }

    fn arrival(&mut self, station: Station, now: Instant) -> Instant {
        let most = u64::try_from(self.weather.delay.as_micros()).unwrap_or_default();
        let mut at = now + Duration::from_micros(self.rng.range(20, most.max(20)));
        if !self.weather.reorder
            && let Some(last) = self.last.get_mut(station)
        {
            at = at.max(*last);
            *last = at;
        }
        at
    }
}

/// Destination, source and EtherType.
fn header(frame: &[u8]) -> Option<(MacAddr, MacAddr, u16)> {
    let mac = |at: usize| {
        let octets: [u8; 6] = frame.get(at..at + 6)?.try_into().ok()?;
        Some(MacAddr::from(octets))
    };
    let ethertype = frame.get(12..14)?.try_into().ok()?;
    Some((mac(0)?, mac(6)?, u16::from_be_bytes(ethertype)))
}
