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
    fn both_losses_are_drawn() {
        let history =
            History { train: (1..50).map(|s| (s, 7.0 / s as f32)).collect(), held_out: vec![(10, 2.0), (40, 1.0)] };
        let svg = loss_curve("Loss", &history).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("held-out pairs") && svg.matches("<polyline").count() >= 3);
        assert!(loss_curve("Loss", &History::default()).is_err());
    }
}
