//! The process: client, tasks, signals, shutdown.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::{Client, Config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::driver::Driver;
use crate::election::Candidate;
use crate::metrics::Metrics;
use crate::publish::Herald;
use crate::{Args, http, strip, webhook};

/// How long Events that wait may still be published.
const EVENTS_GRACE: Duration = Duration::from_millis(300);

/// How long the last call about the lease may take.
const RESIGN_GRACE: Duration = Duration::from_secs(5);

/// Runs the controller until SIGTERM or SIGINT; with `--strip-finalizers` or `--remove-webhook`,
/// until that is done.
///
/// # Errors
/// When there is no way to find the API server (no kubeconfig and not in a pod), or signals cannot
/// be handled. An API server that does not answer is no error: it is tried again.
pub async fn run(args: Args) -> Result<()> {
    let stop = CancellationToken::new();
    stop_on_signal(&stop)?;
    let identity = args.identity.clone().unwrap_or_else(own_name);
    let config = Config::infer()
        .await
        .context("find the API server: set KUBECONFIG or run in a pod")?;
    tracing::info!(
        server = %config.cluster_url,
        namespace = args.namespace,
        classes = args.load_balancer_class.join(","),
        classless = args.serve_classless,
        identity,
        "controller started"
    );
    let client = Client::try_from(config).context("set up the client")?;
    if args.strip_finalizers || args.remove_webhook {
        if let (true, Some(name)) = (args.remove_webhook, &args.webhook) {
            webhook::remove(client.clone(), name).await?;
        }
        if args.strip_finalizers {
            strip::run(client, &args.namespace).await?;
        }
        return Ok(());
    }

    let metrics = Arc::new(Metrics::new());
    let (waiting, viewed) = channel::channel(Some("starting".to_owned()));
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve(
        args.listen,
        Arc::clone(&metrics),
        viewed,
        stop.clone(),
    ));

    let resign = CancellationToken::new();
    let (candidate, tenure) = Candidate::new(client.clone(), &args.namespace, identity);
    let candidate = tokio::spawn(candidate.run(resign.clone()));
    let (herald, publish) = Herald::new(&client, tenure.fence.clone(), Arc::clone(&metrics));
    let publish = tokio::spawn(publish);
    let (ask, questions) = mpsc::channel(webhook::QUESTIONS);
    if let Some(name) = args.webhook.clone() {
        let fence = tenure.fence.clone();
        let (keeper, config) = webhook::Keeper::new(client.clone(), &args.namespace, name, fence);
        tasks.spawn(keeper.run(stop.clone()));
        let (listen, client) = (args.webhook_listen, client.clone());
        tasks.spawn(webhook::serve(listen, config, client, ask, stop.clone()));
    }
    let (settings, namespace) = (args.settings(), args.namespace.clone());
    Driver::new(
        settings, client, namespace, herald, metrics, waiting, tenure, questions,
    )
    .run(stop.clone())
    .await;
    stop.cancel();
    let _ = tokio::time::timeout(EVENTS_GRACE, publish).await;
    // The lease is given up when nothing is written any more.
    resign.cancel();
    let _ = tokio::time::timeout(RESIGN_GRACE, candidate).await;
    // An open connection to /metrics must not hold the process.
    let served = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), served).await;
    tracing::info!("stopped");
    Ok(())
}

/// The host's name and the process's id.
fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), std::process::id())
}

fn stop_on_signal(stop: &CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}
