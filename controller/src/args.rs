//! Options of `bellrock controller`.

use std::net::SocketAddr;

use crate::core::Settings;

/// Options of `bellrock controller`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Namespace that Bellrock runs in; pools and advertisements are read
    /// from there only
    #[arg(long, env = "BELLROCK_NAMESPACE", default_value = "bellrock-system")]
    pub namespace: String,
    /// Serve Services with this loadBalancerClass (repeatable)
    #[arg(
        long,
        value_name = "CLASS",
        env = "BELLROCK_LOAD_BALANCER_CLASS",
        value_delimiter = ',',
        default_value = "bellrock.dev/bellrock"
    )]
    pub load_balancer_class: Vec<String>,
    /// Serve Services that name no loadBalancerClass too; set to false beside
    /// another default provider
    #[arg(
        long,
        value_name = "BOOL",
        env = "BELLROCK_SERVE_CLASSLESS",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        default_value_t = true,
        default_missing_value = "true"
    )]
    pub serve_classless: bool,
    /// Place addresses on nodes that are labelled
    /// node.kubernetes.io/exclude-from-external-load-balancers too (clusters
    /// of one node need it; give it to the speakers as well)
    #[arg(long)]
    pub ignore_exclude_label: bool,
    /// Hold Services by the finalizer bellrock.dev/load-balancer-cleanup until
    /// their addresses are released
    #[arg(long)]
    pub cleanup_finalizer: bool,
    /// Take that finalizer off every Service, see to it that no controller
    /// adds it again for an hour, and exit (before an uninstallation)
    #[arg(long)]
    pub strip_finalizers: bool,
    /// Delete the ValidatingWebhookConfiguration of --webhook, and exit (before
    /// an uninstallation, whose pools it would hold while Services use them)
    #[arg(long, requires = "webhook")]
    pub remove_webhook: bool,
    /// Name of this controller among those that stand for leader; another one
    /// may have it only when this process has ended [default: host name and
    /// process id]
    #[arg(long, value_name = "NAME", env = "BELLROCK_POD_NAME")]
    pub identity: Option<String>,
    /// Address for /healthz, /readyz and /metrics
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9617")]
    pub listen: SocketAddr,
    /// Name of the Service, Secret and ValidatingWebhookConfiguration of the
    /// webhook that judges pools and advertisements [default: no webhook]
    #[arg(long, value_name = "NAME")]
    pub webhook: Option<String>,
    /// Address for the webhook
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:9616")]
    pub webhook_listen: SocketAddr,
}

impl Args {
    /// What they mean to the decision core.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            classes: self.load_balancer_class.iter().cloned().collect(),
            serve_classless: self.serve_classless,
            ignore_exclude_label: self.ignore_exclude_label,
            cleanup_finalizer: self.cleanup_finalizer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn classes_can_be_chosen_and_classless_services_left_to_others() {
        let parse =
            |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.args.settings());
        let default = parse("x").unwrap();
        assert!(default.serve_classless);
        assert_eq!(default.classes, ["bellrock.dev/bellrock".to_owned()].into());
        let other =
            parse("x --load-balancer-class a.b/c --load-balancer-class d --serve-classless=false")
                .unwrap();
        assert!(!other.serve_classless);
        assert_eq!(other.classes, ["a.b/c".to_owned(), "d".to_owned()].into());
        assert!(parse("x --serve-classless=maybe").is_err());
        // No Service has an empty class: this serves none.
        assert_eq!(
            parse("x --load-balancer-class=").unwrap().classes,
            [String::new()].into()
        );
    }
}
