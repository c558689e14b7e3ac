//! Figures, each beside its aim.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
    /// It is there to explain others.
    None,
}

/// A figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    pub aim: Aim,
    pub met: Option<bool>,
    /// The parts that it was made from.
    pub of: String,
}

/// All of them.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub quick: bool,
    pub figures: Vec<Figure>,
}

impl Report {
    /// Adds one, and says so on the standard error, as some take minutes.
    pub fn add(&mut self, what: &str, value: f64, unit: &'static str, aim: Aim, of: String) {
        let met = match aim {
            Aim::AtLeast(least) => Some(value >= least),
            Aim::AtMost(most) => Some(value <= most),
            Aim::None => None,
        };
        eprintln!("{what}: {value:.3} {unit} ({of})");
        let what = what.to_owned();
        self.figures.push(Figure { what, value, unit, aim, met, of });
    }

    /// For people.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header(["what", "aim", "measured", "", "of"]);
        for figure in &self.figures {
            let aim = match figure.aim {
                Aim::AtLeast(least) => format!("≥ {least}"),
                Aim::AtMost(most) => format!("≤ {most}"),
                Aim::None => String::new(),
            };
            let met = figure.met.map_or("", |met| if met { "met" } else { "missed" });
            let measured = format!("{:.3} {}", figure.value, figure.unit);
            table.add_row([&figure.what, &aim, &measured, met, &figure.of]);
        }
        if let Some(column) = table.column_mut(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// The one in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
