//! The loss curve as an SVG picture.

use plotters::prelude::*;

use crate::error::TrainError;
use crate::recipe::History;

const SIZE: (u32, u32) = (960, 540);
/// Weight of the past in the smoothed training loss.
const SMOOTHING: f32 = 0.95;

fn failed(error: impl std::fmt::Display) -> TrainError {
    TrainError::Curve(error.to_string())
}

/// Draws training loss (raw and smoothed) and held-out loss, nats per token over steps.
///
/// # Errors
/// [`TrainError::Curve`] if nothing was recorded or the drawing fails.
pub fn loss_curve(title: &str, history: &History) -> Result<String, TrainError> {
    let last = history.train.last().ok_or_else(|| failed("no losses were recorded"))?.0;
    let top = history.train.iter().chain(&history.held_out).map(|p| p.1).fold(0.5f32, f32::max);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 22))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(56)
            .build_cartesian_2d(0..last.max(1), 0f32..top * 1.03)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .y_desc("loss, nats per token")
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        let raw = RGBColor(190, 205, 225);
        let train = RGBColor(31, 84, 153);
        let held_out = RGBColor(200, 80, 30);
        chart.draw_series(LineSeries::new(history.train.iter().copied(), raw)).map_err(failed)?;
        let mut draw = |name: &str, points: Vec<(u64, f32)>, color: RGBColor| {
            let series = chart.draw_series(LineSeries::new(points, color.stroke_width(2))).map_err(failed)?;
            series.label(name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 22, y)], color.stroke_width(2)));
            Ok::<(), TrainError>(())
        };
        draw("training, smoothed", smoothed(&history.train), train)?;
        draw("held-out pairs", history.held_out.clone(), held_out)?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .draw()
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// One of several plots of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows, and in what unit.
    pub title: String,
    /// What goes from left to right, and in what unit.
    pub x: &'static str,
    /// Whether heights are logarithms; what is not above zero is left out then.
    pub is_log: bool,
    /// Named lines of points, from left to right.
    pub series: Vec<(String, Vec<(f64, f64)>)>,
}

/// Eight colours that most eyes tell apart (Okabe and Ito, with grey for yellow), and four more.
const COLORS: [(u8, u8, u8); 12] = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (128, 128, 128),
    (125, 70, 160),
    (130, 85, 35),
    (0, 75, 60),
    (165, 165, 0),
];

/// Draws panels two by two.
///
/// # Errors
/// [`TrainError::Curve`] if there is no point at all or the drawing fails.
pub fn panels(title: &str, panels: &[Panel]) -> Result<String, TrainError> {
    let rows = panels.len().div_ceil(2);
    if panels.iter().all(|panel| panel.series.iter().all(|s| s.1.is_empty())) {
        return Err(failed("no points"));
    }
    let mut svg = String::new();
    {
        let size = (SIZE.0 * 3 / 2, 40 + SIZE.1 * 3 / 4 * rows as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let area = area.titled(title, ("sans-serif", 20)).map_err(failed)?;
        for (panel, part) in panels.iter().zip(area.split_evenly((rows, 2))) {
            draw_panel(panel, &part)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn draw_panel(panel: &Panel, area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Result<(), TrainError> {
    let drawn = |(x, y): &(f64, f64)| {
        let y = if panel.is_log { y.log10() } else { *y };
        (x.is_finite() && y.is_finite()).then_some((*x, y))
    };
    let points = || panel.series.iter().flat_map(|s| s.1.iter()).filter_map(drawn);
    let range = |of: fn((f64, f64)) -> f64| {
        let (low, high) = points().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        if low < high { low..high } else { low.min(0.0)..low.max(0.0) + 1.0 }
    };
    if points().next().is_none() {
        return Ok(());
    }
    let across = range(|p| p.0);
    // Room for the legend beside the lines.
    let across = across.start..across.end + (across.end - across.start) * 0.35;
    let mut chart = ChartBuilder::on(area)
        .caption(&panel.title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(52)
        .build_cartesian_2d(across, range(|p| p.1))
        .map_err(failed)?;
    let label = |y: &f64| format!("{:.2}", libm::exp10(*y));
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(panel.x).light_line_style(WHITE);
    if panel.is_log {
        mesh.y_label_formatter(&label);
    }
    mesh.draw().map_err(failed)?;
    for ((name, line), (r, g, b)) in panel.series.iter().zip(COLORS.iter().copied().cycle()) {
        let style = RGBColor(r, g, b).stroke_width(2);
        let line = line.iter().filter_map(drawn);
        let series = chart.draw_series(LineSeries::new(line, style)).map_err(failed)?;
        series.label(name).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .draw()
        .map_err(failed)
}

fn smoothed(points: &[(u64, f32)]) -> Vec<(u64, f32)> {
    let mut mean = points.first().map_or(0.0, |p| p.1);
    let smooth = points.iter().map(|(step, loss)| {
        mean = SMOOTHING * mean + (1.0 - SMOOTHING) * loss;
        (*step, mean)
    });
    smooth.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_are_drawn_with_what_can_be_drawn() {
        let series = |points: &[(f64, f64)]| vec![("s".into(), points.to_vec())];
        let panel =
            |points: &[(f64, f64)]| Panel { title: "p".into(), x: "round", is_log: false, series: series(points) };
        let all = [panel(&[(0.0, 1.0), (1.0, 2.0)]), panel(&[(1.0, f64::NAN)]), panel(&[(1.0, 3.0)]), panel(&[])];
        let svg = panels("Title", &all).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("Title") && svg.contains("round") && !svg.contains("NaN"));
        assert!(panels("Title", &all[3..]).is_err());
        let log = Panel { is_log: true, ..panel(&[(1.0, 0.0), (2.0, 100.0), (3.0, 0.01)]) };
        let svg = panels("Title", &[log]).unwrap();
        assert!(svg.contains("1.00") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn both_losses_are_drawn() {
        let history =
            History { train: (1..50).map(|s| (s, 7.0 / s as f32)).collect(), held_out: vec![(10, 2.0), (40, 1.0)] };
        let svg = loss_curve("Loss", &history).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("held-out pairs") && svg.matches("<polyline").count() >= 3);
        assert!(loss_curve("Loss", &History::default()).is_err());
    }
}
