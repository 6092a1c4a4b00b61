//! What a page of the book says of metrics, compared with what a process serves.

use std::collections::BTreeSet;

/// A row of a table for each metric of an OpenMetrics text: name as in queries,
/// type, labels, help. A metric without a sample has no row.
pub fn rows(text: &str) -> BTreeSet<String> {
    let mut rows = BTreeSet::new();
    let (mut help, mut kind) = ("", "");
    let mut described = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            (described, help) = rest.split_once(' ').unwrap_or((rest, ""));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            kind = rest.rsplit(' ').next().unwrap_or_default();
        } else if !line.starts_with('#') {
            let sample = line.split(['{', ' ']).next().unwrap_or_default();
            let name = if kind == "counter" { sample } else { described };
            let labels = labels(line).join(", ");
            let help = help.trim_end_matches('.');
            rows.insert(format!("| `{name}` | {kind} | {labels} | {help} |"));
        }
    }
    rows
}

/// The names of a sample's labels, without that of a histogram's buckets.
fn labels(sample: &str) -> Vec<String> {
    let inside = sample.split_once('{').and_then(|(_, rest)| {
        let (inside, _) = rest.rsplit_once('}')?;
        Some(inside)
    });
    let mut names = Vec::new();
    let mut rest = inside.unwrap_or_default();
    while let Some((name, after)) = rest.split_once("=\"") {
        if name != "le" {
            names.push(format!("`{name}`"));
        }
        rest = match after.split_once('"') {
            Some((_, rest)) => rest.trim_start_matches(','),
            None => "",
        };
    }
    names
}

/// The rows of a page that are about metrics with this prefix.
pub fn documented(page: &str, prefix: &str) -> BTreeSet<String> {
    let start = format!("| `{prefix}_");
    page.lines()
        .filter(|line| line.starts_with(&start))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_each_metric_of_a_text() {
        let text = "\
# HELP x_up 1 while it is up.
# TYPE x_up gauge
x_up{peer=\"a, b\",kind=\"\"} 1
x_up{peer=\"c\",kind=\"\"} 0
# HELP x_asked Questions.
# TYPE x_asked counter
x_asked_total 3
# HELP x_took_seconds How long.
# TYPE x_took_seconds histogram
# UNIT x_took_seconds seconds
x_took_seconds_sum 0.1
x_took_seconds_bucket{le=\"+Inf\"} 1
# EOF
";
        let page = "\
| name |\n| `x_up` | gauge | `peer`, `kind` | 1 while it is up |
| `x_asked_total` | counter |  | Questions |
| `y_up` | gauge |  | Another's |
| `x_took_seconds` | histogram |  | How long |";
        assert_eq!(rows(text), documented(page, "x"));
    }
}
