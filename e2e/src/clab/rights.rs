//! What Bellrock's processes may do: in the kernel, and at the API server.
//! Both are compared with what the book says.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::checkout;
use super::story::NAMESPACE;
use super::world::World;

/// A process of Bellrock on a node.
#[derive(Clone, Debug)]
pub(super) struct Process {
    /// The subcommand: controller or speaker.
    pub(super) command: String,
    /// `/proc/PID/status`, field by field.
    status: BTreeMap<String, String>,
    /// Whether its root is mounted read-only.
    read_only: bool,
}

impl Process {
    /// Resident memory in MB.
    pub(super) fn resident_mb(&self) -> Result<f64> {
        let words = self.field("VmRSS")?;
        let kib: f64 = words
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .parse()?;
        Ok(kib / 1024.0)
    }

    fn field(&self, name: &str) -> Result<&str> {
        let value = self
            .status
            .get(name)
            .with_context(|| format!("no {name} in its status"))?;
        Ok(value)
    }

    /// Its rights as the book lists them, one a line.
    fn rights(&self) -> Result<String> {
        let mut text = String::new();
        for (name, field) in [
            ("capabilities, effective", "CapEff"),
            ("capabilities, permitted", "CapPrm"),
            ("capabilities, inheritable", "CapInh"),
            ("capabilities, bounding", "CapBnd"),
            ("capabilities, ambient", "CapAmb"),
        ] {
            let set = u64::from_str_radix(self.field(field)?, 16)?;
            text.push_str(&format!("{name}: {}\n", capabilities(set)));
        }
        let user = self
            .field("Uid")?
            .split_whitespace()
            .next()
            .unwrap_or_default();
        text.push_str(&format!("user: {user}\n"));
        let flag = |on: bool| if on { "yes" } else { "no" };
        text.push_str(&format!(
            "no new privileges: {}\n",
            flag(self.field("NoNewPrivs")? == "1")
        ));
        text.push_str(&format!(
            "seccomp filter: {}\n",
            flag(self.field("Seccomp")? == "2")
        ));
        text.push_str(&format!("read-only root: {}\n", flag(self.read_only)));
        Ok(text)
    }
}

fn capabilities(set: u64) -> String {
    let names: Vec<String> = (0..64)
        .filter(|bit| set >> bit & 1 == 1)
        .map(|bit| match bit {
            10 => "NET_BIND_SERVICE".to_owned(),
            12 => "NET_ADMIN".to_owned(),
            13 => "NET_RAW".to_owned(),
            other => format!("number {other}"),
        })
        .collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// Bellrock's processes on a node, as the kernel shows them.
pub(super) fn processes(world: &World, node: &str) -> Result<Vec<Process>> {
    // The kernel says what runs: a path inside the container's own root.
    let script = r#"
        for pid in /proc/[0-9]*; do
            case $(tr '\0' ' ' <"$pid/cmdline" 2>/dev/null) in
            "/bellrock controller "*) echo "== controller" ;;
            "/bellrock speaker "*) echo "== speaker" ;;
            *) continue ;;
            esac
            grep ' / / ' "$pid/mountinfo" | grep -q ' ro[, ]' && echo "root: ro" || echo "root: rw"
            cat "$pid/status"
        done
    "#;
    let shown = world.sh(node, script)?;
    let mut found: Vec<Process> = Vec::new();
    for line in shown.lines() {
        if let Some(command) = line.strip_prefix("== ") {
            found.push(Process {
                command: command.to_owned(),
                status: BTreeMap::new(),
                read_only: false,
            });
        } else if let (Some(process), Some((name, value))) =
            (found.last_mut(), line.split_once(':'))
        {
            let value = value.trim().to_owned();
            if name == "root" {
                process.read_only = value == "ro";
            }
            process.status.insert(name.to_owned(), value);
        }
    }
    Ok(found)
}

/// Checks that each process has the rights that the book lists, and no others.
pub(super) fn check_processes(world: &World) -> Result<String> {
    let mut seen = BTreeMap::new();
    for node in world.nodes() {
        for process in processes(world, node)? {
            let documented = block(&format!("{} process", process.command))?;
            let found = process.rights()?;
            ensure!(
                found.trim() == documented.trim(),
                "the {} on {node} has\n{found}\nbut the book says\n{documented}",
                process.command
            );
            *seen.entry(process.command).or_insert(0) += 1;
        }
    }
    ensure!(
        seen.get("speaker") == Some(&world.nodes().len()) && seen.contains_key("controller"),
        "processes found: {seen:?}"
    );
    let all: Vec<String> = seen
        .iter()
        .map(|(name, count)| format!("{count} {name}"))
        .collect();
    Ok(all.join(", "))
}

/// Checks that `kubectl auth can-i --list` says of an account what the book
/// says: its block `NAME account`, and the rows of `options` in their place.
pub(super) fn check_account(world: &World, name: &str, options: Option<&str>) -> Result<String> {
    let user = format!("--as=system:serviceaccount:{NAMESPACE}:bellrock-{name}");
    let groups = [
        "--as-group=system:serviceaccounts".to_owned(),
        format!("--as-group=system:serviceaccounts:{NAMESPACE}"),
        "--as-group=system:authenticated".to_owned(),
    ];
    let mut args = vec!["auth", "can-i", "--list", "--namespace", NAMESPACE, &user];
    args.extend(groups.iter().map(String::as_str));
    let found = rows(&world.kubectl(&args)?);
    let mut documented = rows(&block(&format!("{name} account"))?);
    if let Some(options) = options {
        for row in rows(&block(options)?) {
            documented.retain(|base| object(base) != object(&row));
            documented.insert(row);
        }
    }
    documented.extend(rows(&block("everybody")?));
    let new: Vec<&String> = found.difference(&documented).collect();
    let gone: Vec<&String> = documented.difference(&found).collect();
    ensure!(
        new.is_empty() && gone.is_empty(),
        "the {name}'s account: not in the book: {new:#?}, in the book only: {gone:#?}"
    );
    Ok(format!("{} rows", found.len()))
}

/// A row without its last column, the verbs.
fn object(row: &str) -> &str {
    row.rsplit_once('[').map_or(row, |(object, _)| object)
}

/// The lines of a table, without its layout.
fn rows(table: &str) -> BTreeSet<String> {
    let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    table
        .lines()
        .map(squeeze)
        .filter(|line| !line.is_empty())
        .collect()
}

/// A block of the book's page on rights: the one after `<!-- NAME -->`.
fn block(name: &str) -> Result<String> {
    let path = checkout().join("docs/rights.md");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (_, rest) = text
        .split_once(&format!("<!-- {name} -->"))
        .with_context(|| format!("{} has no block {name:?}", path.display()))?;
    let inner = rest.split("```").nth(1).context("no block follows")?;
    let (_, lines) = inner.split_once('\n').context("an empty block")?;
    Ok(lines.to_owned())
}

/// Rights that a run of the story need not use, and what they are for.
const RARELY: [(&str, &str); 6] = [
    ("controller get services", "to try again after a conflict"),
    ("controller get virtualips", "to try again after a conflict"),
    (
        "controller delete validatingwebhookconfigurations",
        "before an uninstallation, which is still to come",
    ),
    (
        "controller patch events",
        "an Event that repeats is counted",
    ),
    (
        "speaker create speakerstatuses",
        "the API server asks for it where a first patch creates",
    ),
    (
        "speaker get secrets",
        "only where a BGPPeer names a password",
    ),
];

/// Checks by the API server's audit log that every right that the chart gives
/// was used, and that nothing was asked for beyond them.
pub(super) fn check_use(world: &World) -> Result<String> {
    let granted = granted(world)?;
    let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
    let log = world.sh("cp", "cat /var/log/bellrock-lab/audit.log")?;
    for line in log.lines() {
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let user = text(&event["user"]["username"]);
        let Some(account) = user
            .rsplit_once(":bellrock-")
            .map(|(_, account)| account.to_owned())
        else {
            continue;
        };
        let object = &event["objectRef"];
        let (mut resource, sub) = (text(&object["resource"]), text(&object["subresource"]));
        if !sub.is_empty() {
            resource = format!("{resource}/{sub}");
        }
        let right = format!("{account} {} {resource}", text(&event["verb"]));
        if event["annotations"]["authorization.k8s.io/decision"] == "forbid" {
            refused.insert(right);
        } else if event["responseStatus"]["code"] != 403 {
            // What an admission policy denies has got past the roles, and is no use of a right.
            used.insert(right);
        }
    }
    ensure!(
        refused.is_empty(),
        "asked for, but not granted: {refused:?}"
    );
    let excused: BTreeSet<String> = RARELY
        .iter()
        .map(|(right, _)| (*right).to_owned())
        .collect();
    ensure!(
        excused.is_subset(&granted),
        "not granted any more, but excused: {excused:?}"
    );
    let idle: Vec<&String> = granted
        .difference(&used)
        .filter(|right| !excused.contains(*right))
        .collect();
    ensure!(idle.is_empty(), "granted, but never used: {idle:#?}");
    Ok(format!(
        "{} rights used, {} rarely",
        granted.len() - excused.len(),
        excused.len()
    ))
}

/// Every right that the chart's roles give, as `ACCOUNT VERB RESOURCE`.
fn granted(world: &World) -> Result<BTreeSet<String>> {
    let mut rights = BTreeSet::new();
    for account in ["controller", "speaker"] {
        let name = format!("bellrock-{account}");
        for args in [
            vec!["get", "clusterrole", &name],
            vec!["get", "role", &name, "--namespace", NAMESPACE],
        ] {
            let role = world.kubectl_json(&args)?;
            for rule in role["rules"].as_array().into_iter().flatten() {
                let list = |field: &str| {
                    let values = rule[field].as_array().cloned().unwrap_or_default();
                    values
                        .into_iter()
                        .filter_map(|value| value.as_str().map(str::to_owned))
                };
                for resource in list("resources") {
                    for verb in list("verbs") {
                        rights.insert(format!("{account} {verb} {resource}"));
                    }
                }
            }
        }
    }
    Ok(rights)
}
