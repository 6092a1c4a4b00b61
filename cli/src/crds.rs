//! `bellrock crds`: the CustomResourceDefinitions, printed or applied.

use anyhow::{Context, Result};
use clap::Subcommand;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};

use crate::table::say;

/// Field manager of what is applied.
const MANAGER: &str = "bellrock-crds";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Bring those of the cluster up to date, by server-side apply; objects are
    /// kept
    Apply,
}

pub(crate) async fn run(args: &Args) -> Result<()> {
    match args.action {
        None => print(),
        Some(Action::Apply) => apply().await,
    }
}

fn print() -> Result<()> {
    let all = bellrock_api::crd_yaml()
        .into_iter()
        .map(|(_, yaml)| format!("---\n{yaml}"));
    say(&all.collect::<String>())
}

async fn apply() -> Result<()> {
    let client = Client::try_default().await.context("find the API server")?;
    let api: Api<CustomResourceDefinition> = Api::all(client);
    // Helm, which made them, never comes back to them.
    let params = PatchParams::apply(MANAGER).force();
    for definition in bellrock_api::crds() {
        let name = definition.name_any();
        api.patch(&name, &params, &Patch::Apply(&definition))
            .await
            .with_context(|| format!("apply {name}"))?;
        say(&format!("{name} applied\n"))?;
    }
    Ok(())
}
