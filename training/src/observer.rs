//! Whoever watches a run.

/// One optimiser step, as it is reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Steps taken, this one included.
    pub step: u64,
    /// Steps of the whole run.
    pub total: u64,
    /// Mean loss of the step's batch, nats per token.
    pub loss: f32,
    /// Learning rate used.
    pub rate: f64,
    /// Positions trained per second in this step.
    pub tokens_per_second: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
}

/// Is told how training goes.
pub trait Observer {
    /// After every step.
    fn on_step(&mut self, report: &StepReport);
    /// After the held-out loss (nats per token) was measured at `step`.
    fn on_held_out(&mut self, step: u64, loss: f32);
}

/// An observer that keeps no record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn on_step(&mut self, _report: &StepReport) {}
    fn on_held_out(&mut self, _step: u64, _loss: f32) {}
}
