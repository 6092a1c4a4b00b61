//! Many sessions, with our own driver at both ends: other peers would be late
//! themselves where both cores are busy.

use std::net::IpAddr;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use bellrock_bfd::{EventReceiver, Handle, Path, Settings, State};
use bellrock_e2e::netns::wait_for;

use crate::ground::Ground;

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 10));

pub(crate) struct Sessions {
    ends: [(Handle, EventReceiver); 2],
    count: u8,
    _ground: Ground,
}

impl Sessions {
    /// `count` sessions, at most 100, of three packets at this interval, all up.
    pub(crate) fn new(count: u8, interval: Duration) -> Self {
        let ground = Ground::new();
        let mut settings = Settings::default();
        settings.timers.transmit = interval;
        settings.timers.receive = interval;
        let far = |n: u8| IpAddr::from([192, 0, 2, 100 + n]);
        for n in 0..count {
            ground
                .router
                .sh(&format!("ip addr add {}/24 dev eth0", far(n)))
                .unwrap();
        }
        let ends = [&ground.node, &ground.router].map(|ns| ns.run(Handle::start).unwrap().unwrap());
        for n in 0..count {
            let [(node, _), (router, _)] = &ends;
            node.add(Path::single(far(n)), settings).unwrap();
            let back = Path {
                local: Some(far(n)),
                ..Path::single(NODE)
            };
            router.add(back, settings).unwrap();
        }
        let sessions = Self {
            ends,
            count,
            _ground: ground,
        };
        wait_for("all sessions", Duration::from_secs(60), || {
            let up = sessions.up();
            anyhow::ensure!(up == 2 * usize::from(sessions.count), "{up} are up");
            Ok(())
        });
        sessions
    }

    fn up(&self) -> usize {
        let snapshots = self.ends.iter().map(|(handle, _)| handle.snapshot());
        snapshots
            .flat_map(|snapshot| snapshot.sessions.into_values())
            .filter(|session| session.state == State::Up)
            .count()
    }

    fn downs(&self) -> u64 {
        let snapshots = self.ends.iter().map(|(handle, _)| handle.snapshot());
        snapshots
            .flat_map(|snapshot| snapshot.sessions.into_values())
            .map(|session| session.counters.downs)
            .sum()
    }

    /// Percent of a core that one end takes.
    pub(crate) fn cpu(&self, time: Duration) -> f64 {
        let (start, before) = (Instant::now(), threads());
        std::thread::sleep(time);
        let used = threads() - before;
        100.0 * used / start.elapsed().as_secs_f64() / 2.0
    }

    /// Sessions that go down while every core is busy.
    pub(crate) fn downs_while_busy(&self, time: Duration) -> f64 {
        let real_time = self
            .ends
            .iter()
            .all(|(handle, _)| handle.snapshot().no_real_time.is_none());
        assert!(real_time, "no real-time priority: run as root");
        let before = self.downs();
        let cores = std::thread::available_parallelism().unwrap().get();
        let mut burners: Vec<Child> = (0..cores)
            .map(|_| {
                Command::new("sh")
                    .args(["-c", "while :; do :; done"])
                    .spawn()
                    .unwrap()
            })
            .collect();
        let start = Instant::now();
        while start.elapsed() < time {
            std::thread::sleep(Duration::from_secs(10).min(time));
            println!(
                "{:.0} s: {} of {} up",
                start.elapsed().as_secs_f64(),
                self.up(),
                2 * usize::from(self.count)
            );
        }
        for burner in &mut burners {
            burner.kill().unwrap();
            burner.wait().unwrap();
        }
        let downs = u32::try_from(self.downs() - before).unwrap();
        f64::from(downs)
    }
}

/// Seconds of processor time that the threads named `bfd` took so far.
fn threads() -> f64 {
    let mut ticks = 0.0;
    for entry in std::fs::read_dir("/proc/self/task").unwrap() {
        let Ok(stat) = std::fs::read_to_string(entry.unwrap().path().join("stat")) else {
            continue;
        };
        let Some((_, rest)) = stat.split_once("(bfd) ") else {
            continue;
        };
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // utime and stime, fields 14 and 15 of proc(5).
        ticks += fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    }
    ticks / 100.0
}
