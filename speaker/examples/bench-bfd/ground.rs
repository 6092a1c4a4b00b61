//! A node, a switch and a router.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bellrock_e2e::bird::Bird;
use bellrock_e2e::frr::Frr;
use bellrock_e2e::netns::{Netns, veth, wait_for};

const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Ground {
    pub(crate) node: Netns,
    switch: Netns,
    pub(crate) router: Netns,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let [node, switch, router] = ["node", "switch", "router"].map(|r| Netns::new(r).unwrap());
        switch.bridge("br0").unwrap();
        for (host, port, address) in [
            (&node, "to-node", "192.0.2.10"),
            (&router, "to-router", "192.0.2.1"),
        ] {
            veth(host, "eth0", &switch, port).unwrap();
            switch
                .sh(&format!("ip link set {port} master br0"))
                .unwrap();
            host.sh(&format!("ip addr add {address}/24 dev eth0"))
                .unwrap();
        }
        node.sh("ip link set lo up; ip addr add 198.51.100.1/32 dev lo")
            .unwrap();
        Self {
            node,
            switch,
            router,
        }
    }

    /// The switch carries nothing between the two any more; both have carrier.
    pub(crate) fn cut(&self) {
        self.switch
            .sh("bridge link set dev to-router state 0")
            .unwrap();
    }

    pub(crate) fn mend(&self) {
        self.switch
            .sh("bridge link set dev to-router state 3")
            .unwrap();
    }

    pub(crate) fn wait_route(&self) {
        wait_for("the route in the router's kernel", LONG, || {
            let routes = self.router.sh("ip route show 198.51.100.1")?;
            ensure!(!routes.is_empty(), "there is none");
            Ok(())
        });
    }

    /// Each change of the router's routes, with the moment it was heard.
    pub(crate) fn watch_routes(&self) -> Receiver<(Instant, String)> {
        let mut ip = self.router.command("ip");
        let mut child = ip
            .args(["monitor", "route"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
            let _ = child.kill();
            let _ = child.wait();
        });
        lines
    }

    /// An echo request to the address every 5 ms, from the router.
    pub(crate) fn ping(&self) -> Ping {
        let mut ping = self.router.command("ping");
        let ping = ping
            .args(["-q", "-i", "0.005", "198.51.100.1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Ping(ping)
    }
}

pub(crate) struct Ping(Child);

impl Ping {
    /// How many were sent, and answered.
    pub(crate) fn end(self) -> (u32, u32) {
        bellrock_e2e::netns::sh(&format!("kill -INT {}", self.0.id())).unwrap();
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let count = |words: &str| {
            let line = text.lines().find(|line| line.contains(words))?;
            let before = line.split(words).next()?;
            before.split_whitespace().last()?.parse().ok()
        };
        (
            count("packets transmitted").unwrap(),
            count("received").unwrap(),
        )
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Router {
    Frr,
    Bird,
}

pub(crate) enum Running {
    Frr(Frr),
    Bird(Bird),
}

impl Router {
    pub(crate) const ALL: [Self; 2] = [Self::Bird, Self::Frr];

    /// Three packets at this interval; with `restart`, a router that keeps
    /// routes while our control plane restarts.
    pub(crate) fn start(self, ground: &Ground, interval: u32, restart: bool) -> Running {
        match self {
            Self::Frr => {
                let minds = if restart {
                    " neighbor 192.0.2.10 bfd check-control-plane-failure\n"
                } else {
                    ""
                };
                let config = format!(
                    "bfd\n profile fast\n  transmit-interval {interval}\n  \
                     receive-interval {interval}\n  detect-multiplier 3\n exit\nexit\n\
                     router bgp 64513\n bgp router-id 192.0.2.1\n \
                     no bgp ebgp-requires-policy\n bgp graceful-restart\n \
                     neighbor 192.0.2.10 remote-as 64512\n neighbor 192.0.2.10 passive\n \
                     neighbor 192.0.2.10 bfd\n neighbor 192.0.2.10 bfd profile fast\n{minds}exit\n"
                );
                Running::Frr(Frr::start(&ground.router, &config).unwrap())
            }
            Self::Bird => {
                let config = format!(
                    "router id 192.0.2.1;\nprotocol device {{}}\n\
                     protocol kernel {{ ipv4 {{ import none; export all; }}; }}\n\
                     protocol bfd {{ interface \"eth0\" {{ min tx interval {interval} ms; \
                     min rx interval {interval} ms; multiplier 3; }}; }}\n\
                     protocol bgp node {{\n local 192.0.2.1 as 64513;\n \
                     neighbor 192.0.2.10 as 64512;\n passive;\n bfd on;\n error wait time 1, 2;\n error forget time 1;\n \
                     ipv4 {{ import all; export none; }};\n}}\n"
                );
                Running::Bird(Bird::start(&ground.router, &config).unwrap())
            }
        }
    }
}

impl Running {
    fn is_up(&self) -> anyhow::Result<bool> {
        match self {
            Self::Frr(frr) => {
                let all = frr.json("show bfd peers json")?;
                let peer = all.as_array().context("a list")?.iter().next();
                Ok(peer.is_some_and(|peer| peer["status"] == "up"))
            }
            Self::Bird(bird) => {
                let text = bird.birdc("show bfd sessions")?;
                Ok(text
                    .lines()
                    .any(|line| line.starts_with("192.0.2.10") && line.contains(" Up ")))
            }
        }
    }

    pub(crate) fn wait_up(&self) {
        wait_for("the router's BFD", LONG, || {
            ensure!(self.is_up()?, "it is down");
            Ok(())
        });
    }

    pub(crate) fn wait_down(&self) {
        wait_for("the end of the router's BFD session", LONG, || {
            ensure!(!self.is_up()?, "it is up");
            Ok(())
        });
    }
}
