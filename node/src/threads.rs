//! How many threads the tensor library uses, where the operator does not say.

use std::num::NonZero;

/// Sets, where they are not set, what candle reads of the environment:
/// - `CANDLE_NUM_THREADS=1`: elementwise operations stay on the thread that asks for them. Otherwise they are shared with one
///   pool for the whole process, which serves one caller at a time while it and all others spin. Training already shares the
///   rows of a step between threads, and where nodes share a machine those that are waited for may not even be running.
/// - `RAYON_NUM_THREADS`: the number of cores that rayon would take anyway. Without it candle counts them before each matrix
///   product, by reading `/proc/cpuinfo`.
///
/// On a quiet machine of two cores, with two peers that train, a round of `simnet train --peers honest:2 --rounds 4` takes
/// half as long as with `CANDLE_NUM_THREADS=2`; on a busy one, a third. The numbers that come out are the same to the bit.
///
/// To be called first of all in `main`: before there are other threads, which may read the environment.
#[allow(unsafe_code)]
pub fn limit() {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get).to_string();
    for (name, value) in [("CANDLE_NUM_THREADS", "1"), ("RAYON_NUM_THREADS", &cores)] {
        if std::env::var_os(name).is_none() {
            // SAFETY: no other thread runs yet.
            unsafe { std::env::set_var(name, value) };
        }
    }
}
