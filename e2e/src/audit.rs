//! The API server's audit log: who wrote what and when, in the server's own words.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::lab::Lab;
use crate::suite::NAMESPACE;

/// Reads are left out; of what allocation is about, the objects are kept.
pub(crate) const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  verbs: [get, list, watch]
- level: RequestResponse
  resources:
  - group: ""
    resources: [services, services/status]
  - group: bellrock.dev
    resources: [virtualips]
- level: RequestResponse
  namespaces: [bellrock-system]
  resources:
  - group: coordination.k8s.io
    resources: [leases]
- level: Metadata
"#;

/// A write that was answered.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Who wrote.
    pub user: String,
    /// create, update, patch, delete or deletecollection.
    pub verb: String,
    /// The resource, and the subresource after a slash.
    pub resource: String,
    /// The object's namespace, empty if it has none.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The HTTP status.
    pub code: u64,
    /// When the request came.
    pub received: Timestamp,
    /// When it was answered.
    pub answered: Timestamp,
    /// The body of the request, where it is kept.
    pub request: Value,
    /// The answer, where it is kept.
    pub response: Value,
}

impl Entry {
    /// The write that a line of the log tells of; `None` for a line that tells of none.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut event: Value = serde_json::from_str(line).ok()?;
        if event["stage"] != "ResponseComplete" {
            return None;
        }
        let (request, response) = (
            event["requestObject"].take(),
            event["responseObject"].take(),
        );
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let time = |field: &str| event[field].as_str()?.parse().ok();
        let object = &event["objectRef"];
        let (mut resource, sub) = (text(&object["resource"]), text(&object["subresource"]));
        if !sub.is_empty() {
            resource = format!("{resource}/{sub}");
        }
        let mut name = text(&object["name"]);
        if name.is_empty() {
            name = text(&response["metadata"]["name"]);
        }
        Some(Self {
            user: text(&event["user"]["username"]),
            verb: text(&event["verb"]),
            resource,
            namespace: text(&object["namespace"]),
            name,
            code: event["responseStatus"]["code"].as_u64()?,
            received: time("requestReceivedTimestamp")?,
            answered: time("stageTimestamp")?,
            request,
            response,
        })
    }

    /// Whether it was made.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Whether our controller made it.
    #[must_use]
    pub fn by_controller(&self) -> bool {
        self.user == format!("system:serviceaccount:{NAMESPACE}:bellrock-controller")
    }

    /// Whether it is part of giving or taking an address: not a lease, an Event or a pool's
    /// counters.
    #[must_use]
    pub fn is_allocation(&self) -> bool {
        matches!(
            self.resource.as_str(),
            "services" | "services/status" | "virtualips"
        )
    }

    /// Whether it is an Event about an object of this namespace, which is the Event's own.
    #[must_use]
    pub fn is_event_in(&self, namespace: &str) -> bool {
        self.resource == "events" && self.namespace == namespace
    }
}

/// The log from its end on.
#[derive(Debug)]
struct Tail {
    reader: BufReader<File>,
    /// As much of a line as is written.
    line: String,
}

impl Tail {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut reader = BufReader::new(file);
        reader.seek(SeekFrom::End(0))?;
        Ok(Self {
            reader,
            line: String::new(),
        })
    }

    /// What was written since.
    fn read(&mut self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        loop {
            self.reader.read_line(&mut self.line)?;
            if !self.line.ends_with('\n') {
                return Ok(entries);
            }
            entries.extend(Entry::parse(&self.line));
            self.line.clear();
        }
    }
}

impl Lab {
    /// Waits until the API server has not been asked to write for so long, but for leases: those
    /// are written by the clock.
    pub fn until_no_writes(&self, quiet: Duration, within: Duration) -> Result<()> {
        let mut tail = Tail::open(&self.cluster.audit_log())?;
        let mut last = Instant::now();
        let mut what = String::new();
        self.until("nobody writes", within, || {
            let written = tail.read()?;
            if let Some(entry) = written.iter().rfind(|entry| entry.resource != "leases") {
                last = Instant::now();
                what = format!("{} writes {} {}", entry.user, entry.resource, entry.name);
            }
            ensure!(last.elapsed() >= quiet, "{what}");
            Ok(())
        })
    }

    /// The writes of the audit log after the first `skip` lines, and how many lines there are by
    /// now. The last line may still be being written; it is not counted then.
    pub fn audit(&self, skip: usize) -> Result<(Vec<Entry>, usize)> {
        let mut entries = Vec::new();
        let lines = self.each_audited(skip, |entry| entries.push(entry))?;
        Ok((entries, lines))
    }

    /// As [`Lab::audit`], without keeping them.
    pub fn each_audited(&self, skip: usize, mut take: impl FnMut(Entry)) -> Result<usize> {
        let path = self.cluster.audit_log();
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let mut reader = BufReader::new(file);
        let (mut lines, mut line) = (0, String::new());
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            if !line.ends_with('\n') {
                return Ok(lines);
            }
            lines += 1;
            if lines > skip
                && let Some(entry) = Entry::parse(&line)
            {
                take(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_tail_is_what_is_written_since_line_by_line() {
        let line = |name: &str| {
            let time = "2026-01-01T00:00:00Z";
            let event = serde_json::json!({
                "stage": "ResponseComplete", "verb": "create", "user": { "username": "someone" },
                "objectRef": { "resource": "services", "name": name },
                "responseStatus": { "code": 201 },
                "requestReceivedTimestamp": time, "stageTimestamp": time,
            });
            format!("{event}\n")
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut log = File::create(&path).unwrap();
        log.write_all(line("before").as_bytes()).unwrap();
        let mut tail = Tail::open(&path).unwrap();
        let mut names = || -> Vec<String> {
            let entries = tail.read().unwrap().into_iter();
            entries.map(|entry| entry.name).collect()
        };
        assert!(names().is_empty());
        let (first, second) = (line("first"), line("second"));
        let (half, rest) = second.split_at(20);
        log.write_all(format!("{first}{half}").as_bytes()).unwrap();
        assert_eq!(names(), ["first"]);
        log.write_all(rest.as_bytes()).unwrap();
        assert_eq!(names(), ["second"]);
        assert!(names().is_empty());
    }
}
