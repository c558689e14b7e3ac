//! A picture of a run: how latency is distributed, and what was done over time.

use std::path::Path;

use hdrhistogram::Histogram;
use plotters::prelude::*;

use crate::error::PerfError;
use crate::limits::MAX_PLOT_POINTS;
use crate::report::{Report, show_count};
use crate::run::Ran;
use crate::workload::Kind;

const SIZE: (u32, u32) = (1000, 800);
const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];

/// Draws a run into an SVG file.
///
/// # Errors
/// The file cannot be written.
pub fn draw(path: &Path, report: &Report, ran: &Ran) -> Result<(), PerfError> {
    let mut svg = String::new();
    let failed = |reason: String| PerfError::Plot { path: path.to_owned(), reason };
    draw_into(&mut svg, report, ran).map_err(|error| failed(error.to_string()))?;
    std::fs::write(path, svg).map_err(|error| failed(error.to_string()))
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw_into<'a>(svg: &'a mut String, report: &Report, ran: &Ran) -> Drawn<'a> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.margin(10, 10, 10, 20);
    let name = format!("{}: {} on {}", report.name, report.workload, report.target);
    let root = root.titled(&name, ("sans-serif", 20))?;
    let (above, below) = root.split_vertically(430);
    let curves: Vec<_> = Kind::ALL
        .into_iter()
        .filter_map(|kind| Some((kind, ran.tally.latencies[kind as usize].as_ref()?)))
        .filter(|(_, histogram)| !histogram.is_empty())
        .collect();
    draw_latencies(&above, &curves)?;
    draw_series(&below, &curves, ran)?;
    root.present()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The x axis counts nines: 0 is the whole, 1 is 90 %, 2 is 99 %, and so on.
fn draw_latencies<'a>(area: &Area<'a>, curves: &[(Kind, &Histogram<u64>)]) -> Drawn<'a> {
    let lowest = curves.iter().map(|(_, histogram)| histogram.min()).min().unwrap_or(1).max(1);
    let highest = curves.iter().map(|(_, histogram)| histogram.max()).max().unwrap_or(10);
    let most = curves.iter().map(|(_, histogram)| histogram.len()).max().unwrap_or(1);
    let nines = (most as f64).log10().ceil().clamp(1.0, 6.0);
    // Whole powers of ten, so that the axis has at least two labels.
    let bottom = 10f64.powf((lowest as f64).log10().floor());
    let top = 10f64.powf((highest as f64).log10().floor() + 1.0);
    let mut chart = ChartBuilder::on(area)
        .caption("Latency", ("sans-serif", 16))
        .x_label_area_size(40)
        .y_label_area_size(80)
        .margin_right(20)
        .build_cartesian_2d(0.0..nines, (bottom..top).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(nines as usize + 1)
        .x_label_formatter(&|x| percentile(*x))
        .y_label_formatter(&|ns| latency(*ns))
        .x_desc("percentile")
        .label_style(("sans-serif", 13))
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    for (kind, histogram) in curves {
        let colour = COLOURS[*kind as usize];
        const STEPS: usize = 300;
        let curve = (0..=STEPS).map(|step| {
            let x = nines * step as f64 / STEPS as f64;
            let latency = histogram.value_at_quantile(1.0 - 10f64.powf(-x));
            (x, latency.max(1) as f64)
        });
        chart
            .draw_series(LineSeries::new(curve, colour.stroke_width(2)))?
            .label(kind.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 14))
        .draw()
}

/// A power of ten nanoseconds.
fn latency(ns: f64) -> String {
    match ns {
        0.0..1e3 => format!("{ns:.0} ns"),
        1e3..1e6 => format!("{:.0} µs", ns / 1e3),
        1e6..1e9 => format!("{:.0} ms", ns / 1e6),
        _ => format!("{:.0} s", ns / 1e9),
    }
}

/// 0 is 0 %, 1 is 90 %, 2 is 99 %.
fn percentile(nines: f64) -> String {
    let whole = nines.round();
    if (nines - whole).abs() > 1e-6 {
        return String::new();
    }
    let decimals = (whole as usize).saturating_sub(2);
    format!("{:.decimals$} %", 100.0 * (1.0 - 10f64.powf(-whole)))
}

fn draw_series<'a>(area: &Area<'a>, curves: &[(Kind, &Histogram<u64>)], ran: &Ran) -> Drawn<'a> {
    let every = ran.series.len().div_ceil(MAX_PLOT_POINTS).max(1);
    let of = |kind: Kind| {
        ran.series.chunks(every).map(move |samples| {
            let ios: u64 = samples.iter().map(|sample| sample.counts.ios[kind as usize]).sum();
            let seconds: f64 = samples.iter().map(|sample| sample.length.as_secs_f64()).sum();
            let end = samples.last().map_or(0.0, |sample| sample.end.as_secs_f64());
            (end, ios as f64 / seconds.max(1e-9))
        })
    };
    let end = ran.series.last().map_or(1.0, |sample| sample.end.as_secs_f64());
    let top = curves.iter().flat_map(|(kind, _)| of(*kind)).map(|(_, iops)| iops);
    let top = top.fold(1.0, f64::max) * 1.1;
    let decimals = usize::from(end < 10.0);
    let mut chart = ChartBuilder::on(area)
        .caption("I/Os a second", ("sans-serif", 16))
        .x_label_area_size(40)
        .y_label_area_size(80)
        .margin_right(20)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart
        .configure_mesh()
        .x_label_formatter(&|x| format!("{x:.decimals$}"))
        .y_label_formatter(&|iops| show_count(*iops))
        .x_desc("seconds")
        .y_labels(6)
        .label_style(("sans-serif", 13))
        .light_line_style(WHITE.mix(0.0))
        .draw()?;
    for (kind, _) in curves {
        let colour = COLOURS[*kind as usize];
        chart.draw_series(LineSeries::new(of(*kind), colour.stroke_width(2)).point_size(2))?;
    }
    Ok(())
}
