//! Where an experiment's dishonest worker reaches into a stage. `consortium-node` never does.

use consortium_inference::stage::{Step, StepOutput};
use consortium_protocol::wire::pipeline::SessionOpen;

/// Makes sessions dishonest.
pub trait Tamper: Send + Sync {
    /// The tampering of one session, on the stage at `place` of the route; none to be honest in it.
    fn session(&self, open: &SessionOpen, place: u16) -> Option<Box<dyn TamperedSession>>;
}

/// Changes what one session gives out.
pub trait TamperedSession: Send {
    /// Sees every step in order with what the honest stage computed for it, and changes that as it likes: the result, and
    /// on the last stage the hidden states beside it. What it leaves is sent on and committed to.
    fn step(&mut self, step: &Step, output: &mut StepOutput);
}
