//! What a client does: asks once, asks a hundred times a second, holds
//! connections. Everything runs on threads that have entered the client's
//! namespace.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use serde::Serialize;

use crate::netns::Netns;

/// What the lab's echo server answered.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Answer {
    /// The pod.
    pub pod: String,
    /// The client's address as the pod saw it.
    pub client: SocketAddr,
}

const PATIENCE: Duration = Duration::from_secs(2);

/// By what the echo server is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum By {
    /// HTTP, on a TCP connection of its own.
    Tcp,
    /// One UDP datagram.
    Udp,
}

/// What becomes of a question.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A pod answered.
    Answered(Answer),
    /// Somebody said that nobody serves there; or the caller's own node did
    /// not let the question out.
    Refused,
    /// The question, or its answer, got lost.
    Lost,
}

/// Asks once from `ns`. An error is an answer of somebody who is not the echo
/// server.
pub fn ask(ns: &Netns, by: By, server: SocketAddr, patience: Duration) -> Result<Outcome> {
    let result = ns.run(|| match by {
        By::Tcp => http_here(server, patience),
        By::Udp => udp_here(server, patience),
    })?;
    let error = match result {
        Ok(answer) => return Ok(Outcome::Answered(answer)),
        Err(error) => error,
    };
    match error.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused | io::ErrorKind::PermissionDenied) => {
            Ok(Outcome::Refused)
        }
        Some(
            io::ErrorKind::TimedOut
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable,
        ) => Ok(Outcome::Lost),
        _ => Err(error),
    }
}

/// One HTTP request from `ns` on a connection of its own; gives up after 2 s.
pub fn http(ns: &Netns, server: SocketAddr) -> Result<Answer> {
    ns.run(|| http_here(server, PATIENCE))?
        .with_context(|| format!("HTTP from {} to {server}", ns.name()))
}

fn http_here(server: SocketAddr, patience: Duration) -> Result<Answer> {
    let (status, _, body) = exchange("GET", server, "/", patience)?;
    if status != 200 {
        bail!("status {status}: {body}");
    }
    let value: serde_json::Value = serde_json::from_str(&body)?;
    let field = |name: &str| {
        value[name]
            .as_str()
            .with_context(|| format!("no {name} in {body}"))
    };
    Ok(Answer {
        pod: field("pod")?.to_owned(),
        client: field("client")?.parse()?,
    })
}

/// One HTTP request in the namespace of the calling thread: status and body.
pub fn request(method: &str, server: SocketAddr, path: &str) -> Result<(u16, String)> {
    let (status, _, body) = exchange(method, server, path, PATIENCE)?;
    Ok((status, body))
}

/// One HTTP request in the namespace of the calling thread: status, head and
/// body. Connecting and each part of the answer may take `patience`.
pub fn exchange(
    method: &str,
    server: SocketAddr,
    path: &str,
    patience: Duration,
) -> Result<(u16, String, String)> {
    let mut stream = TcpStream::connect_timeout(&server, patience).context("connect")?;
    stream.set_read_timeout(Some(patience))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .context("read the answer")?;
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.context("no HTTP status")?;
    Ok((status, head.to_owned(), body.to_owned()))
}

/// One UDP datagram from `ns` and its answer; gives up after 2 s.
pub fn udp(ns: &Netns, server: SocketAddr) -> Result<Answer> {
    ns.run(|| udp_here(server, PATIENCE))?
        .with_context(|| format!("UDP from {} to {server}", ns.name()))
}

fn udp_here(server: SocketAddr, patience: Duration) -> Result<Answer> {
    let socket = socket(server, 0)?;
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"0")?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).context("no answer")?;
    parse_datagram(&buffer[..length])
        .map(|(answer, _)| answer)
        .context("not an answer of the echo server")
}

fn parse_datagram(bytes: &[u8]) -> Option<(Answer, u64)> {
    let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
    let answer = Answer {
        pod: words.next()?.to_owned(),
        client: words.next()?.parse().ok()?,
    };
    Some((answer, words.next()?.parse().ok()?))
}

/// A connected UDP socket with this source port (0: any).
fn socket(server: SocketAddr, port: u16) -> io::Result<UdpSocket> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, port))?;
    socket.connect(server)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// How the [`Prober`] probes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between two probes.
    pub every: Duration,
    /// How long an answer may take.
    pub patience: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            every: Duration::from_millis(10),
            patience: Duration::from_millis(400),
        }
    }
}

/// A run of unanswered probes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outage {
    /// When its first probe was sent, in milliseconds since the prober began.
    pub start_ms: f64,
    /// From its first probe to the first answered probe after it, in
    /// milliseconds; if none followed, to the last probe.
    pub length_ms: f64,
    /// How many probes it is.
    pub lost: usize,
}

/// What a [`Prober`] found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Probes sent.
    pub sent: usize,
    /// Probes answered in time.
    pub answered: usize,
    /// Every run of unanswered probes, in order.
    pub outages: Vec<Outage>,
    /// The slowest answer, in milliseconds.
    pub slowest_ms: f64,
    /// Who answered how often.
    pub pods: std::collections::BTreeMap<String, usize>,
}

impl Report {
    /// The longest outage, in milliseconds; 0 if there was none.
    pub fn longest_ms(&self) -> f64 {
        self.outages.iter().map(|o| o.length_ms).fold(0.0, f64::max)
    }
}

/// Sends a UDP datagram every 10 ms, each from a fresh source port so that no
/// connection-tracking entry pins it, and counts what stays unanswered.
#[derive(Debug)]
pub struct Prober {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: Option<JoinHandle<Report>>,
}

impl Prober {
    /// Begins to probe `server` from `ns`.
    pub fn start(ns: &Netns, server: SocketAddr, pace: Pace) -> Result<Self> {
        let file = std::fs::File::open(ns.path()).context("open namespace")?;
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (halt, count) = (Arc::clone(&stop), Arc::clone(&answered));
        let (ready, entered) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let result = setns(file, CloneFlags::CLONE_NEWNET);
            let _ = ready.send(result);
            if result.is_err() {
                return Report::default();
            }
            probe(server, pace, &halt, &count)
        });
        entered.recv()?.context("enter namespace")?;
        Ok(Self {
            stop,
            answered,
            thread: Some(thread),
        })
    }

    /// How many probes have been answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Stops sending, waits for the last answers, and reports.
    pub fn stop(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().context("already stopped")?.join() {
            Ok(report) => Ok(report),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Probes from the namespace of the calling thread until `stop`.
pub fn probe(server: SocketAddr, pace: Pace, stop: &AtomicBool, count: &AtomicU64) -> Report {
    struct Pending {
        sent: Instant,
        index: usize,
        socket: UdpSocket,
    }
    let begin = Instant::now();
    let mut sent: Vec<(Instant, Option<Duration>)> = Vec::new();
    let mut pending: VecDeque<Pending> = VecDeque::new();
    let mut pods = std::collections::BTreeMap::new();
    let mut next = begin;
    loop {
        let now = Instant::now();
        let stopping = stop.load(Ordering::Relaxed);
        if !stopping && now >= next {
            let index = sent.len();
            sent.push((now, None));
            // A send that the kernel refuses is an unanswered probe.
            if let Ok(socket) = fresh(server, index)
                && socket.send(index.to_string().as_bytes()).is_ok()
            {
                pending.push_back(Pending {
                    sent: now,
                    index,
                    socket,
                });
            }
            next += pace.every;
            if next < now {
                next = now + pace.every;
            }
        }
        while pending
            .front()
            .is_some_and(|p| now.duration_since(p.sent) > pace.patience)
        {
            pending.pop_front();
        }
        if stopping && pending.is_empty() {
            break;
        }
        let wait = next.saturating_duration_since(Instant::now());
        let wait =
            PollTimeout::try_from(wait + Duration::from_micros(999)).unwrap_or(PollTimeout::ZERO);
        let mut polled: Vec<PollFd<'_>> = pending
            .iter()
            .map(|p| PollFd::new(p.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        if poll(&mut polled, wait).is_err() {
            continue;
        }
        drop(polled);
        pending.retain(|probe| {
            let mut buffer = [0; 512];
            match probe.socket.recv(&mut buffer) {
                Ok(length) => {
                    if let Some((answer, index)) = parse_datagram(&buffer[..length])
                        && u64::try_from(probe.index).is_ok_and(|own| own == index)
                    {
                        *pods.entry(answer.pod).or_insert(0) += 1;
                        count.fetch_add(1, Ordering::Relaxed);
                        sent[probe.index].1 = Some(probe.sent.elapsed());
                    }
                    false
                }
                // Refused or unreachable: it will not be answered.
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            }
        });
    }
    report(begin, &sent, pods)
}

/// A socket with a source port that the last 40,000 probes did not have.
fn fresh(server: SocketAddr, index: usize) -> io::Result<UdpSocket> {
    let port = u16::try_from(20_000 + index % 40_000).unwrap_or(0);
    socket(server, port).or_else(|_| socket(server, 0))
}

fn report(
    begin: Instant,
    sent: &[(Instant, Option<Duration>)],
    pods: std::collections::BTreeMap<String, usize>,
) -> Report {
    let ms = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let mut outages: Vec<Outage> = Vec::new();
    let mut open: Option<(Instant, usize)> = None;
    let mut close = |open: &mut Option<(Instant, usize)>, end: Instant| {
        if let Some((start, lost)) = open.take() {
            outages.push(Outage {
                start_ms: ms(start.duration_since(begin)),
                length_ms: ms(end.duration_since(start)),
                lost,
            });
        }
    };
    for (at, answer) in sent {
        match (answer, &mut open) {
            (Some(_), _) => close(&mut open, *at),
            (None, Some((_, lost))) => *lost += 1,
            (None, None) => open = Some((*at, 1)),
        }
    }
    if let Some((last, _)) = sent.last() {
        close(&mut open, *last);
    }
    let answers = sent.iter().filter_map(|(_, answer)| *answer);
    Report {
        sent: sent.len(),
        answered: answers.clone().count(),
        outages,
        slowest_ms: answers.max().map_or(0.0, ms),
        pods,
    }
}

/// Long-lived TCP connections to the echo server's stream port.
#[derive(Debug)]
pub struct Connections {
    streams: Vec<TcpStream>,
}

impl Connections {
    /// Opens `count` connections from `ns`; each has answered once.
    pub fn open(ns: &Netns, server: SocketAddr, count: usize) -> Result<Self> {
        let streams = ns.run(|| {
            (0..count)
                .map(|_| {
                    let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
                    stream.set_nodelay(true)?;
                    Ok(stream)
                })
                .collect::<io::Result<Vec<_>>>()
        })?;
        let mut connections = Self {
            streams: streams.context("open connections")?,
        };
        let alive = connections.alive(PATIENCE);
        if alive != count {
            bail!("{alive} of {count} connections to {server} answer");
        }
        Ok(connections)
    }

    /// How many still echo a line within `patience` each. One that does not
    /// is closed and never counted again.
    pub fn alive(&mut self, patience: Duration) -> usize {
        self.streams
            .retain_mut(|stream| ping(stream, patience).is_ok());
        self.streams.len()
    }
}

fn ping(stream: &mut TcpStream, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"still there\n")?;
    let mut reply = [0; 12];
    stream.read_exact(&mut reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_unanswered_probes_are_outages_measured_to_the_next_answered_one() {
        let begin = Instant::now();
        let pattern = "++--+---";
        let sent: Vec<_> = pattern
            .chars()
            .zip(0_u64..)
            .map(|(c, i)| {
                let at = begin + Duration::from_millis(10 * i);
                (at, (c == '+').then_some(Duration::from_millis(i)))
            })
            .collect();
        let report = report(begin, &sent, std::collections::BTreeMap::new());
        assert_eq!((report.sent, report.answered), (8, 3));
        assert_eq!(
            report.outages,
            [
                Outage {
                    start_ms: 20.0,
                    length_ms: 20.0,
                    lost: 2
                },
                Outage {
                    start_ms: 50.0,
                    length_ms: 20.0,
                    lost: 3
                },
            ]
        );
        assert!((report.slowest_ms - 4.0).abs() < 0.001);
    }
}
