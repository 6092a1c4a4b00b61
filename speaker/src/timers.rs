//! The timers of the segment as flags.

use bellrock_api::Duration;
use bellrock_arp::Timers;

/// All nodes of a segment should have the same. What is not given is as the
/// protocol's page says.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Timers of the segment (the same on all nodes)")]
pub struct TimerArgs {
    /// Time from one HELLO of a node to the next (10ms to 10s; default 100ms)
    #[arg(long, value_name = "DURATION")]
    pub l2_hello_interval: Option<Duration>,
    /// HELLOs that must be missing before a node is called silent (2 to 20;
    /// default 3)
    #[arg(long, value_name = "COUNT")]
    pub l2_hello_misses: Option<u32>,
    /// What is waited beyond those (1ms to 10s; default 20ms)
    #[arg(long, value_name = "DURATION")]
    pub l2_margin: Option<Duration>,
    /// Probes before an address is claimed (1 to 10; default 2)
    #[arg(long, value_name = "COUNT")]
    pub l2_probes: Option<u8>,
    /// Time from one probe to the next, and from the last to the claim (5ms to
    /// 2s; default 20ms)
    #[arg(long, value_name = "DURATION")]
    pub l2_probe_interval: Option<Duration>,
    /// How much later each next successor begins (at least 5ms more than all
    /// probes take, at most 10s; default 60ms)
    #[arg(long, value_name = "DURATION")]
    pub l2_stagger: Option<Duration>,
    /// Time from one announcement of a held address to the next (1s to 1h;
    /// default 1m)
    #[arg(long, value_name = "DURATION")]
    pub l2_announce_interval: Option<Duration>,
}

impl TimerArgs {
    /// The timers; their limits are the driver's to check.
    #[must_use]
    pub fn timers(&self) -> Timers {
        let default = Timers::default();
        let or = |given: Option<Duration>, default| given.map_or(default, Duration::as_std);
        Timers {
            hello: or(self.l2_hello_interval, default.hello),
            misses: self.l2_hello_misses.unwrap_or(default.misses),
            margin: or(self.l2_margin, default.margin),
            stagger: or(self.l2_stagger, default.stagger),
            probes: self.l2_probes.unwrap_or(default.probes),
            probe_interval: or(self.l2_probe_interval, default.probe_interval),
            first_claim_grace: default.first_claim_grace,
            announce_every: or(self.l2_announce_interval, default.announce_every),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        timers: TimerArgs,
    }

    fn timers(args: &str) -> Result<Timers, clap::Error> {
        let cli = Cli::try_parse_from(["speaker"].into_iter().chain(args.split_whitespace()))?;
        Ok(cli.timers.timers())
    }

    #[test]
    fn what_is_not_given_is_the_default() {
        assert_eq!(timers("").unwrap(), Timers::default());
        let fast = timers("--l2-hello-interval 20ms --l2-margin=5ms").unwrap();
        let ms = Duration::from_millis;
        let expected = Timers {
            hello: ms(20),
            margin: ms(5),
            ..Timers::default()
        };
        assert_eq!(fast, expected);
        let all = "--l2-hello-misses 4 --l2-probes 1 --l2-probe-interval 10ms \
                   --l2-stagger 30ms --l2-announce-interval 5m";
        let expected = Timers {
            misses: 4,
            probes: 1,
            probe_interval: ms(10),
            stagger: ms(30),
            announce_every: ms(300_000),
            ..Timers::default()
        };
        assert_eq!(timers(all).unwrap(), expected);
    }

    #[test]
    fn a_time_without_a_unit_is_refused() {
        let error = timers("--l2-hello-interval 20").err().unwrap().to_string();
        assert!(error.contains("--l2-hello-interval"), "{error}");
    }
}
