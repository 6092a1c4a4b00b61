//! The demo's screen: chapters, checks with what was measured, no cursor
//! games, so that it reads the same in a terminal and in a log.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::lab::Say;

/// Counts and prints checks.
#[derive(Debug)]
pub(crate) struct Screen {
    checks: usize,
    start: Instant,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self {
            checks: 0,
            start: Instant::now(),
        }
    }

    /// A new part of the story.
    pub(crate) fn chapter(&self, title: &str) {
        println!("\n{title}");
    }

    /// A line between checks.
    pub(crate) fn note(&self, line: &str) {
        println!("      {line}");
    }

    /// Where the lab reports its steps.
    pub(crate) fn progress(&self) -> Say {
        Arc::new(|line| println!("      {line}"))
    }

    /// Makes one check. What it returns was measured, and ends the line.
    pub(crate) fn check<T>(
        &mut self,
        name: &str,
        measure: impl FnOnce() -> Result<(T, String)>,
    ) -> Result<T> {
        match measure() {
            Ok((value, measured)) => {
                self.checks += 1;
                println!("  ok  {name:<58} {measured}");
                Ok(value)
            }
            Err(error) => {
                println!("FAIL  {name}");
                Err(error).with_context(|| format!("check failed: {name}"))
            }
        }
    }

    pub(crate) fn checks(&self) -> usize {
        self.checks
    }

    /// The last lines.
    pub(crate) fn end(&self, what: &str) {
        println!("\n      {:.0} s in all", self.start.elapsed().as_secs_f64());
        println!("{what}: {} checks passed", self.checks);
    }
}
