//! The figures of a benchmark, and what they have to be.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// What a figure has to be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
    /// It is there to compare with.
    None,
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::None => true,
        }
    }
}

/// Name, unit and target of a figure.
pub type Wanted = (&'static str, &'static str, Target);

/// What was measured so far.
#[derive(Debug)]
pub struct Figures {
    wanted: &'static [Wanted],
    measured: BTreeMap<&'static str, f64>,
}

impl Figures {
    /// Nothing measured yet of what is `wanted`.
    pub fn new(wanted: &'static [Wanted]) -> Self {
        Self {
            wanted,
            measured: BTreeMap::new(),
        }
    }

    /// Keeps a figure, and prints it as `bench: NAME VALUE UNIT`.
    ///
    /// # Panics
    /// If nobody wants it.
    pub fn note(&mut self, name: &str, value: f64) {
        let (name, unit, _) = self
            .wanted
            .iter()
            .find(|(wanted, ..)| *wanted == name)
            .unwrap_or_else(|| panic!("{name} has no target"));
        println!("bench: {name} {value:.3} {unit}");
        self.measured.insert(name, value);
    }

    /// A figure that was measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.measured.get(name).copied()
    }

    /// What is missing or misses its target.
    pub fn missed(&self) -> Vec<String> {
        let judge = |(name, unit, target): &Wanted| match self.get(name) {
            Some(value) if target.is_met(value) => None,
            Some(value) => Some(format!("{name} is {value:.3} {unit}, want {target:?}")),
            None => Some(format!("{name} was not measured")),
        };
        self.wanted.iter().filter_map(judge).collect()
    }

    /// Fails if a figure is missing or misses its target.
    pub fn verdict(&self) -> Result<()> {
        let missed = self.missed();
        ensure!(missed.is_empty(), "targets missed: {}", missed.join("; "));
        Ok(())
    }
}

/// The value that so many of a hundred do not exceed (nearest rank); NaN if
/// there is none.
pub fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_figure_and_a_missed_target_fail() {
        const WANTED: [Wanted; 3] = [
            ("t.slow_ms", "ms", Target::AtMost(5.0)),
            ("t.fast", "1/s", Target::AtLeast(10.0)),
            ("t.peer_ms", "ms", Target::None),
        ];
        let mut figures = Figures::new(&WANTED);
        figures.note("t.slow_ms", 5.0);
        figures.note("t.peer_ms", 99.0);
        assert_eq!(figures.missed(), ["t.fast was not measured"]);
        figures.note("t.fast", 10.0);
        figures.verdict().unwrap();
        figures.note("t.slow_ms", 5.1);
        figures.note("t.fast", 9.9);
        let error = figures.verdict().unwrap_err().to_string();
        assert!(
            error.contains("t.slow_ms is 5.100 ms, want AtMost(5.0)"),
            "{error}"
        );
        assert!(
            error.contains("t.fast is 9.900 1/s, want AtLeast(10.0)"),
            "{error}"
        );
    }

    #[test]
    fn percentiles_are_of_the_sorted_values() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert!((percentile(&values, 50) - 50.0).abs() < 1e-9);
        assert!((percentile(&values, 99) - 99.0).abs() < 1e-9);
        assert!((percentile(&values, 100) - 100.0).abs() < 1e-9);
        assert!((percentile(&[3.0], 1) - 3.0).abs() < 1e-9);
        assert!(percentile(&[], 50).is_nan());
    }
}
