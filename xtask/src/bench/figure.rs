//! One measured figure beside its peer and its goal, and how it is shown. Pure.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt;

/// What was promised of a figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Value over peer's value is at most this.
    RatioAtMost(f64),
    /// The value itself is at most this.
    ValueAtMost(f64),
    /// The value equals the peer's: all of them.
    AllOfPeer,
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::RatioAtMost(limit) => write!(f, "ratio <= {limit}"),
            Goal::ValueAtMost(limit) => write!(f, "value <= {limit}"),
            Goal::AllOfPeer => write!(f, "ratio = 1"),
        }
    }
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    name: String,
    unit: &'static str,
    value: f64,
    peer: Option<f64>,
    goal: Option<Goal>,
    counts: bool,
}

impl Figure {
    /// A figure without a peer and without a goal.
    pub fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Figure {
        Figure { name: name.into(), unit, value, peer: None, goal: None, counts: true }
    }

    /// With what the peer reached, in the same unit.
    pub fn beside(self, peer: f64) -> Figure {
        Figure { peer: Some(peer), ..self }
    }

    /// With what was promised. `counts`: whether the sample is as large as the promise asks for; if not, it is neither met nor missed.
    pub fn goal(self, goal: Goal, counts: bool) -> Figure {
        Figure { goal: Some(goal), counts, ..self }
    }

    /// Value over the peer's value.
    fn ratio(&self) -> Option<f64> {
        self.peer.map(|peer| self.value / peer)
    }

    /// Whether the goal is met; nothing where there is none, or where too little was measured to say.
    pub fn met(&self) -> Option<bool> {
        let goal = self.goal.filter(|_| self.counts)?;
        match goal {
            Goal::RatioAtMost(limit) => self.ratio().map(|ratio| ratio <= limit),
            Goal::ValueAtMost(limit) => Some(self.value <= limit),
            Goal::AllOfPeer => self.peer.map(|peer| self.value == peer),
        }
    }
}

/// A figure as programs read it. Numbers are rounded to a thousandth.
#[derive(Serialize)]
struct Row {
    name: String,
    unit: &'static str,
    value: f64,
    peer: Option<f64>,
    ratio: Option<f64>,
    goal: Option<String>,
    met: Option<bool>,
}

/// All figures as one line: an array of {name, unit, value, peer, ratio, goal, met}.
///
/// # Errors
/// None that these types can cause.
pub fn json(figures: &[Figure]) -> serde_json::Result<String> {
    let rows: Vec<Row> = figures
        .iter()
        .map(|figure| Row {
            name: figure.name.clone(),
            unit: figure.unit,
            value: rounded(figure.value),
            peer: figure.peer.map(rounded),
            ratio: figure.ratio().filter(|ratio| ratio.is_finite()).map(rounded),
            goal: figure.goal.map(|goal| goal.to_string()),
            met: figure.met(),
        })
        .collect();
    serde_json::to_string(&rows)
}

/// All figures for people.
pub fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["FIGURE", "VALUE", "PEER", "UNIT", "RATIO", "GOAL", "MET"]);
    for figure in figures {
        let number = |value: Option<f64>| value.map(shown).unwrap_or_else(|| "-".to_string());
        let met = match (figure.goal, figure.met()) {
            (None, _) => "-",
            (Some(_), Some(true)) => "yes",
            (Some(_), Some(false)) => "NO",
            (Some(_), None) => "too few measured",
        };
        table.add_row([
            figure.name.clone(),
            shown(figure.value),
            number(figure.peer),
            figure.unit.to_string(),
            figure.ratio().filter(|ratio| ratio.is_finite()).map_or_else(|| "-".to_string(), |r| format!("{r:.3}")),
            figure.goal.map_or_else(|| "-".to_string(), |goal| goal.to_string()),
            met.to_string(),
        ]);
    }
    for column in [1, 2, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn shown(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(value: f64, counts: bool) -> Figure {
        Figure::new("window", "ms", value).beside(100.0).goal(Goal::RatioAtMost(1.05), counts)
    }

    #[test]
    fn a_goal_is_met_up_to_its_limit() {
        assert_eq!(window(105.0, true).met(), Some(true));
        assert_eq!(window(105.1, true).met(), Some(false));
        assert_eq!(Figure::new("demo", "min", 12.0).goal(Goal::ValueAtMost(12.0), true).met(), Some(true));
        assert_eq!(Figure::new("soak", "points", 29.0).beside(30.0).goal(Goal::AllOfPeer, true).met(), Some(false));
        assert_eq!(Figure::new("soak", "points", 30.0).beside(30.0).goal(Goal::AllOfPeer, true).met(), Some(true));
    }

    #[test]
    fn too_small_a_sample_decides_nothing() {
        assert_eq!(window(50.0, false).met(), None);
        assert!(table(&[window(50.0, false)]).contains("too few measured"));
    }

    #[test]
    fn programs_read_one_line() {
        let figures = [window(90.0, true), Figure::new("p99", "ms", 1.23456)];
        assert_eq!(
            json(&figures).unwrap(),
            r#"[{"name":"window","unit":"ms","value":90.0,"peer":100.0,"ratio":0.9,"goal":"ratio <= 1.05","met":true},"#
                .to_string()
                + r#"{"name":"p99","unit":"ms","value":1.235,"peer":null,"ratio":null,"goal":null,"met":null}]"#
        );
    }

    #[test]
    fn nothing_over_nothing_is_no_ratio() {
        let figure = Figure::new("soak", "points", 0.0).beside(0.0);
        assert!(json(std::slice::from_ref(&figure)).unwrap().contains("\"ratio\":null"));
        assert!(!table(&[figure]).contains("NaN"));
    }
}
