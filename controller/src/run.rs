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
use crate::metrics::Metrics;
use crate::publish::Herald;
use crate::{Args, http, watch};

/// Reports that may wait for the loop; the watches wait beyond that.
const REPORTS: usize = 4096;

/// Runs the controller until SIGTERM or SIGINT.
///
/// # Errors
/// When there is no way to find the API server (no kubeconfig and not in a pod), or signals cannot
/// be handled. An API server that does not answer is no error: it is tried again.
pub async fn run(args: Args) -> Result<()> {
    let stop = CancellationToken::new();
    stop_on_signal(&stop)?;
    let config = Config::infer()
        .await
        .context("find the API server: set KUBECONFIG or run in a pod")?;
    tracing::info!(
        server = %config.cluster_url,
        namespace = args.namespace,
        classes = args.load_balancer_class.join(","),
        classless = args.serve_classless,
        "controller started"
    );
    let client = Client::try_from(config).context("set up the client")?;

    let metrics = Arc::new(Metrics::new());
    let (waiting, viewed) = channel::channel(Some("starting".to_owned()));
    let mut tasks = JoinSet::new();
    tasks.spawn(http::serve(
        args.listen,
        Arc::clone(&metrics),
        viewed,
        stop.clone(),
    ));
    allocate(&args, client, metrics, waiting, stop.clone()).await;
    stop.cancel();
    // An open connection to /metrics must not hold the process.
    let served = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), served).await;
    tracing::info!("stopped");
    Ok(())
}

/// What one controller of a cluster does at a time: everything that writes.
async fn allocate(
    args: &Args,
    client: Client,
    metrics: Arc<Metrics>,
    waiting: channel::Sender<http::Waiting>,
    stop: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let (herald, publish) = Herald::new(&client, Arc::clone(&metrics));
    tasks.spawn(publish);
    let (reports, received) = mpsc::channel(REPORTS);
    watch::start(&mut tasks, &client, &args.namespace, &reports);
    drop(reports);
    let namespace = args.namespace.clone();
    Driver::new(args.settings(), client, namespace, herald, metrics, waiting)
        .run(received, stop)
        .await;
    tasks.shutdown().await;
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
