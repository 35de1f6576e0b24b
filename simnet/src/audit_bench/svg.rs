//! Draws curves: panels in a grid, false positives on a logarithmic axis.

use std::fmt::Write as _;

use super::report::Panel;

const COLUMNS: usize = 2;
const PANEL_WIDTH: f64 = 620.0;
const PANEL_HEIGHT: f64 = 400.0;
/// Room around a plot, for its title, labels and the list beside it.
const LEFT: f64 = 62.0;
const TOP: f64 = 46.0;
const RIGHT: f64 = 196.0;
const BOTTOM: f64 = 84.0;
const HEAD: f64 = 52.0;
/// Eight colours that most eyes tell apart (Okabe and Ito), each with a dash of its own.
const STROKES: [(&str, &str); 8] = [
    ("#0072b2", "none"),
    ("#d55e00", "7 3"),
    ("#009e73", "2 3"),
    ("#cc79a7", "10 3 2 3"),
    ("#000000", "4 4"),
    ("#e69f00", "12 4"),
    ("#56b4e9", "1 4"),
    ("#808000", "6 2 2 2"),
];
/// Characters of a line below a panel.
const LINE: usize = 88;

/// Where values lie in one plot.
struct Plot {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    /// Decades of the axis of false positives.
    decades: f64,
}

impl Plot {
    /// No false positive at all stands one step left of the smallest share that could be seen.
    fn x(&self, share: f64) -> f64 {
        let step = self.width / (self.decades + 0.5);
        if share <= 0.0 { self.left } else { self.left + self.width + step * share.log10().max(-self.decades) }
    }

    fn y(&self, share: f64) -> f64 {
        self.top + self.height * (1.0 - share)
    }
}

/// The panels as one SVG document.
pub fn document(title: &str, panels: &[Panel]) -> String {
    let rows = panels.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL_WIDTH * COLUMNS as f64, HEAD + PANEL_HEIGHT * rows as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, 16.0, 32.0, "start", 18, title);
    for (index, panel) in panels.iter().enumerate() {
        let left = PANEL_WIDTH * (index % COLUMNS) as f64;
        let top = HEAD + PANEL_HEIGHT * (index / COLUMNS) as f64;
        draw(&mut out, left, top, panel);
    }
    out.push_str("</svg>\n");
    out
}

fn draw(out: &mut String, left: f64, top: f64, panel: &Panel) {
    let plot = Plot {
        left: left + LEFT,
        top: top + TOP,
        width: PANEL_WIDTH - LEFT - RIGHT,
        height: PANEL_HEIGHT - TOP - BOTTOM,
        decades: (panel.honest.max(10) as f64).log10().ceil(),
    };
    let title = format!("{}: {} judgements of honest work", panel.title, panel.honest);
    text(out, plot.left, top + 30.0, "start", 14, &title);
    axes(out, &plot);
    let beside = plot.left + plot.width + 12.0;
    for (number, (label, points)) in panel.curves.iter().enumerate() {
        let (colour, dash) = STROKES[number % STROKES.len()];
        let stroke = format!("stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dash}\" fill=\"none\"");
        let _ = writeln!(out, "<path d=\"{}\" {stroke}/>", path(&plot, points));
        let y = plot.top + 12.0 + 17.0 * number as f64;
        let _ = writeln!(out, "<path d=\"M{beside:.1} {:.1}h26\" {stroke}/>", y - 4.0);
        let detected = points.first().map_or(0.0, |point| 100.0 * point.1);
        text(out, beside + 32.0, y, "start", 12, &format!("{label}, {detected:.1} %"));
    }
    let mut below = plot.top + plot.height + 54.0;
    for line in wrapped(&format!("told from all honest work: {}", listed(&panel.apart))) {
        text(out, left + 12.0, below, "start", 11, &line);
        below += 14.0;
    }
}

fn axes(out: &mut String, plot: &Plot) {
    let Plot { left, top, width, height, decades } = plot;
    let _ = writeln!(
        out,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" stroke=\"#444\"/>"
    );
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let y = plot.y(share);
        let _ = writeln!(out, "<path d=\"M{left:.1} {y:.1}h{width:.1}\" stroke=\"#ddd\"/>");
        text(out, left - 8.0, y + 4.0, "end", 12, &format!("{:.0} %", 100.0 * share));
    }
    text(out, *left, top + height + 18.0, "middle", 12, "0");
    for decade in 0..=*decades as i32 {
        let share = 10.0_f64.powi(-decade);
        let x = plot.x(share);
        let _ = writeln!(out, "<path d=\"M{x:.1} {top:.1}v{height:.1}\" stroke=\"#ddd\"/>");
        let digits = (decade - 2).max(0) as usize;
        text(out, x, top + height + 18.0, "middle", 12, &format!("{:.digits$} %", 100.0 * share));
    }
    text(out, left + width / 2.0, top + height + 36.0, "middle", 12, "false positives");
    let (x, y) = (left - 48.0, top + height / 2.0);
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 {x:.1} {y:.1})\">detected</text>"
    );
}

/// A staircase through the points, which come from left to right.
fn path(plot: &Plot, points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    let mut drawn: Option<(f64, f64)> = None;
    for (false_positives, detected) in points {
        let (x, y) = (plot.x(*false_positives), plot.y(*detected));
        match drawn {
            None => path += &format!("M{x:.1} {y:.1}"),
            // What lies within a pixel of the last is left out, but for the end.
            Some((at, level)) if (x - at).abs() + (y - level).abs() < 1.0 && *false_positives < 1.0 => continue,
            Some(_) => path += &format!("H{x:.1}V{y:.1}"),
        }
        drawn = Some((x, y));
    }
    path
}

fn listed(labels: &[String]) -> String {
    if labels.is_empty() { "nothing".to_owned() } else { labels.join(", ") }
}

/// Lines of at most [`LINE`] characters, broken at blanks.
fn wrapped(words: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in words.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= LINE => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: u32, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_well_formed() {
        let panel = Panel {
            title: "blocks of <a> & b".to_owned(),
            honest: 2500,
            apart: vec!["zeros".to_owned(); 40],
            curves: vec![("int8".to_owned(), vec![(0.0, 0.3), (0.001, 0.5), (0.1, 0.9), (1.0, 1.0)])],
        };
        let svg = document("Audits", &[panel.clone(), panel]);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("blocks of &lt;a> &amp; b: 2500 judgements of honest work"));
        assert!(svg.contains("int8, 30.0 %"));
        assert!(!svg.contains("NaN"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }
}
