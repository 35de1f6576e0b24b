//! An update tried out on a model in place.

use std::sync::Mutex;

use candle_core::{CpuStorage, Error, InplaceOp1, Layout};

use crate::error::TrainError;
use crate::model::Llama;
use crate::sparseloco::{OUTER_RATE, SparseError, Update};

/// Some elements of one tensor, and the values that are to stand there.
struct Swap {
    elements: Vec<u32>,
    values: Mutex<Vec<f32>>,
    /// Whether the values are steps to be taken off what stands there, as they are the first time.
    steps: bool,
}

impl InplaceOp1 for Swap {
    fn name(&self) -> &'static str {
        "train-swap"
    }

    /// Puts the values in, and keeps what stood there before.
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(data) = storage else { return Err(Error::Msg("parameters must be f32".into())) };
        let (start, end) =
            layout.contiguous_offsets().ok_or_else(|| Error::Msg("parameters must be contiguous".into()))?;
        let data = &mut data[start..end];
        let mut values = self.values.lock().map_err(|_| Error::Msg("a patch failed half-way".into()))?;
        if self.elements.iter().any(|e| *e as usize >= data.len()) {
            return Err(Error::Msg("the update does not fit the model".into()));
        }
        for (element, value) in self.elements.iter().zip(values.iter_mut()) {
            let stood = data[*element as usize];
            data[*element as usize] = if self.steps { stood - *value } else { *value };
            *value = stood;
        }
        Ok(())
    }
}

/// Runs `look` on the model as it would be after a part `share` of an outer step by this update alone, each tensor clipped to
/// the median norm, and restores the model to the bit, whatever `look` answers.
///
/// Memory: eight bytes for each value of the update, which is one of 64 parameters. Nobody else may use the model meanwhile.
///
/// # Errors
/// What `look` answers, or [`TrainError::Sparse`] if the update or the medians do not fit the model.
pub fn with_update<T>(
    model: &Llama,
    update: &Update,
    medians: &[f64],
    share: f64,
    look: impl FnOnce(&Llama) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    let mut swaps = swaps(model, update, medians, share)?;
    let mut outcome = Ok(());
    let mut done = 0;
    for (swap, var) in swaps.iter().zip(model.vars()) {
        outcome = var.inplace_op1(swap);
        if outcome.is_err() {
            break;
        }
        done += 1;
    }
    let looked = match outcome {
        Ok(()) => look(model),
        Err(error) => Err(error.into()),
    };
    let mut restored = Ok(());
    for (swap, var) in swaps.iter_mut().zip(model.vars()).take(done) {
        swap.steps = false;
        restored = restored.and(var.inplace_op1(swap));
    }
    restored?;
    looked
}

fn swaps(model: &Llama, update: &Update, medians: &[f64], share: f64) -> Result<Vec<Swap>, TrainError> {
    let norms = update.norms();
    if norms.len() != model.vars().len() || medians.len() != norms.len() {
        return Err(SparseError::Aggregate.into());
    }
    let factor = |(norm, median): (&f64, &f64)| share * if norm > median { median / norm } else { 1.0 };
    let factors: Vec<f64> = norms.iter().zip(medians).map(factor).collect();
    let mut all: Vec<(Vec<u32>, Vec<f32>)> = vec![Default::default(); norms.len()];
    update.for_each(|tensor, element, value| {
        all[tensor].0.push(element as u32);
        all[tensor].1.push(OUTER_RATE * (f64::from(value) * factors[tensor]) as f32);
    });
    let swap = |(elements, steps)| Swap { elements, values: Mutex::new(steps), steps: true };
    Ok(all.into_iter().map(swap).collect())
}
