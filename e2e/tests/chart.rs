//! The chart by itself: what it renders, and what it refuses. The objects are
//! put before a real API server in the lab.
#![allow(
    clippy::unwrap_used,
    reason = "a test says no more than that it failed"
)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bellrock_e2e::parts::{self, Part};
use serde_json::{Value, json};

fn charts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts")
}

/// `helm template` with these values.
fn render(values: &str) -> Result<String, String> {
    render_with(&["--kube-version", "1.34.0"], values)
}

/// The same with more flags.
fn render_with(flags: &[&str], values: &str) -> Result<String, String> {
    let home = std::env::temp_dir().join(format!("bellrock-chart-{}", std::process::id()));
    let mut child = Command::new(parts::path(Part::Helm).unwrap())
        .args(["template", "bellrock", "--namespace", "bellrock-system"])
        .args(["--values", "-"])
        .args(flags)
        .arg(charts().join("bellrock"))
        .env("HELM_CACHE_HOME", &home)
        .env("HELM_CONFIG_HOME", &home)
        .env("HELM_DATA_HOME", &home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(values.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// What is rendered now is what is kept in `file`. To take a change over:
/// BELLROCK_SNAPSHOTS=write.
fn is_kept(rendered: &str, file: &Path) {
    if std::env::var("BELLROCK_SNAPSHOTS").is_ok_and(|value| value == "write") {
        std::fs::write(file, rendered).unwrap();
    }
    let kept = std::fs::read_to_string(file).unwrap_or_default();
    let differs = rendered
        .lines()
        .zip(kept.lines())
        .find(|(now, then)| now != then)
        .or((rendered != kept).then_some(("", "its length")));
    assert_eq!(
        differs,
        None,
        "{}: rendered, kept; take it over with BELLROCK_SNAPSHOTS=write",
        file.display()
    );
}

/// Whoever changes a template sees what it does to the objects.
#[test]
fn what_it_renders_is_what_was_reviewed() {
    for name in ["default", "everything"] {
        let folder = charts().join("tests");
        let values = std::fs::read_to_string(folder.join(format!("{name}.values.yaml"))).unwrap();
        let file = folder.join(format!("{name}.rendered.yaml"));
        is_kept(&render(&values).unwrap(), &file);
    }
}

/// For those without helm, as docs/install.md has it.
#[test]
fn the_plain_manifests_are_what_the_chart_renders() {
    let flags = ["--kube-version", "1.34.0", "--include-crds", "--no-hooks"];
    let values = "l2: {existingSecret: bellrock-l2}";
    let rendered = render_with(&flags, values).unwrap();
    // Helm says who made it, and there it is nobody.
    let lines = rendered
        .lines()
        .filter(|line| !line.contains("app.kubernetes.io/managed-by: Helm"))
        .map(|line| format!("{line}\n"));
    let namespace = "# Made of the chart; see docs/install.md.\n---\napiVersion: v1\nkind: Namespace\n\
                     metadata:\n  name: bellrock-system\n  labels:\n    \
                     pod-security.kubernetes.io/enforce: privileged\n";
    let all = namespace.to_owned() + &lines.collect::<String>();
    is_kept(&all, &charts().join("plain/bellrock.yaml"));
}

#[test]
fn wrong_values_are_refused_and_named() {
    for (values, words) in [
        ("pool: {}", "additional properties 'pool' not allowed"),
        (
            "speaker: {fowarding: none}",
            "additional properties 'fowarding' not allowed",
        ),
        (
            "speaker: {forwarding: iptables}",
            "'/speaker/forwarding': value must be one of 'nftables', 'kube-proxy', 'none'",
        ),
        (
            "speaker: {kubeProxy: true}",
            "'/speaker/kubeProxy': value must be one of 'detect', 'present', 'absent'",
        ),
        (
            "speaker: {nodePortAddresses: [192.0.2.1]}",
            "'/speaker/nodePortAddresses/0': '192.0.2.1' does not match",
        ),
        (
            "speaker: {podNetworks: 10.0.0.0/8}",
            "'/speaker/podNetworks': got string, want array",
        ),
        (
            "speaker: {bgpListen: ['179']}",
            "'/speaker/bgpListen/0': '179' does not match",
        ),
        (
            "speaker: {bgpListen: ['::1:179']}",
            "'/speaker/bgpListen/0': '::1:179' does not match",
        ),
        (
            "controller: {replicas: two}",
            "'/controller/replicas': got string, want integer",
        ),
        (
            "controller: {loadBalancerClasses: ['a b']}",
            "'/controller/loadBalancerClasses/0': 'a b' does not match",
        ),
        ("crds: false", "'/crds': got boolean, want object"),
        (
            "apiServer: {host: api, port: '6443'}",
            "'/apiServer/port': got string, want integer",
        ),
        (
            "networkPolicy: {enable: true}",
            "additional properties 'enable' not allowed",
        ),
        ("webhook: true", "'/webhook': got boolean, want object"),
        (
            "webhook: {enabled: 'true'}",
            "'/webhook/enabled': got string, want boolean",
        ),
        ("image: {tag: 0.1}", "'/image/tag': got number, want string"),
        (
            "monitoring: {serviceMonitor: {interval: 30}}",
            "'/monitoring/serviceMonitor/interval': got number, want string",
        ),
        ("logFormat: xml", "'/logFormat': value must be one of"),
        ("clusterName: ''", "'/clusterName': minLength"),
        ("pools: {Main: {}}", "invalid propertyName 'Main'"),
        ("bgpPeers: {tor: 1}", "'/bgpPeers/tor': got number"),
        ("pools: [192.0.2.0/24]", "'/pools': got array, want object"),
    ] {
        let error = render(values).unwrap_err();
        assert!(error.contains(words), "{values}: {words} in\n{error}");
    }
}

#[test]
fn a_cluster_that_is_too_old_is_told_so() {
    render_with(&["--kube-version", "1.30.0"], "").unwrap();
    let error = render_with(&["--kube-version", "1.29.9"], "").unwrap_err();
    assert!(error.contains("kubeVersion: >=1.30.0-0"), "{error}");
}

/// Runs promtool in `folder`; it must find nothing wrong.
fn promtool(args: &[&str], folder: &Path) {
    let mut command = Command::new("promtool");
    let output = command.args(args).current_dir(folder).output().unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// promtool plays the metrics of `alerts.test.yaml` against the chart's alerts.
#[test]
fn every_alert_fires_when_it_should_and_not_before() {
    let folder = charts().join("tests");
    let alerts = std::fs::read_to_string(charts().join("bellrock/alerts.yaml")).unwrap();
    let played = std::fs::read_to_string(folder.join("alerts.test.yaml")).unwrap();
    let page = std::fs::read_to_string(charts().join("../docs/metrics.md")).unwrap();
    for alert in alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let fires = format!("alertname: {alert}\n        exp_alerts:");
        assert!(played.contains(&fires), "nothing makes {alert} fire");
        assert!(page.contains(&format!("`{alert}`")), "{alert} in the book");
    }
    let metrics = alerts
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("bellrock_"));
    for metric in metrics {
        let listed = format!("| `{metric}` |");
        assert!(page.contains(&listed), "{metric} is served by nobody");
    }
    promtool(&["test", "rules", "alerts.test.yaml"], &folder);
}

/// promtool parses its queries, and each asks for metrics that are served.
#[test]
fn the_dashboard_asks_for_what_there_is() {
    let board = std::fs::read_to_string(charts().join("bellrock/dashboard.json")).unwrap();
    let board: Value = serde_json::from_str(&board).unwrap();
    let page = std::fs::read_to_string(charts().join("../docs/metrics.md")).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let queries: Vec<&str> = targets.map(|it| it["expr"].as_str().unwrap()).collect();
    assert!(queries.len() > 10, "{queries:?}");
    for query in &queries {
        let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for metric in words.filter(|word| word.starts_with("bellrock_")) {
            let metric = metric.strip_suffix("_bucket").unwrap_or(metric);
            let listed = format!("| `{metric}` |");
            assert!(page.contains(&listed), "{metric} is served by nobody");
        }
    }
    let rules: Vec<Value> = queries
        .iter()
        .zip(0..)
        .map(|(expr, n)| json!({ "record": format!("query:{n}"), "expr": expr }))
        .collect();
    let rules = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rules.yaml"), rules.to_string()).unwrap();
    promtool(&["check", "rules", "rules.yaml"], folder.path());
}
