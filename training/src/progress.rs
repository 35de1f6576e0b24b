//! Progress on the terminal: a bar where standard error is one, plain lines where it is not.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::observer::{Observer, StepReport};

const LINE_EVERY: u64 = 10;

/// Shows each step on standard error.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    held_out: Option<f32>,
}

impl Progress {
    /// A bar if standard error is a terminal, lines otherwise.
    #[must_use]
    pub fn stderr() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} ETA {eta_precise} {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { bar, held_out: None }
    }

    fn line(&self, report: &StepReport) -> String {
        let held_out = self.held_out.map_or_else(String::new, |l| format!("  held-out {l:.3}"));
        format!(
            "loss {:.3}{held_out}  rate {:.2e}  |g| {:.2}  {:.0} tokens/s",
            report.loss, report.rate, report.gradient_norm, report.tokens_per_second
        )
    }
}

impl Observer for Progress {
    fn on_step(&mut self, report: &StepReport) {
        let line = self.line(report);
        match &self.bar {
            Some(bar) => {
                bar.set_length(report.total);
                bar.set_position(report.step);
                bar.set_message(line);
                if report.step == report.total {
                    bar.finish();
                }
            }
            // Nobody to tell if standard error is closed.
            None if report.step.is_multiple_of(LINE_EVERY) || report.step <= 5 || report.step == report.total => {
                let _ = writeln!(std::io::stderr(), "step {}/{}  {line}", report.step, report.total);
            }
            None => {}
        }
    }

    fn on_held_out(&mut self, step: u64, loss: f32) {
        self.held_out = Some(loss);
        if self.bar.is_none() {
            let _ = writeln!(std::io::stderr(), "step {step}  held-out loss {loss:.4}");
        }
    }
}
