//! A range coder with 64-bit state: numbers of known probability become bytes, at a cost close to their information.
//!
//! Martin, "Range encoding: an algorithm for removing redundancy from a digitised message", 1979. The coder is exact
//! integer arithmetic; after every step the range is at least 2^32, so that totals below 2^28 lose next to nothing.

const BOTTOM: u64 = 1 << 32;
/// The decoder has read this many bytes more than the encoder had written at the same step.
const LOOK_AHEAD: usize = 8;

/// Writes a sequence of intervals.
#[derive(Debug)]
pub(super) struct Encoder {
    low: u64,
    range: u64,
    out: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { low: 0, range: u64::MAX, out: Vec::new() }
    }

    /// Codes the interval `start..start + width` of `total`.
    pub(super) fn interval(&mut self, start: u64, width: u64, total: u64) {
        self.narrow(self.range / total, start, width);
    }

    /// The same for a total of `2^bits`.
    pub(super) fn interval_of_power(&mut self, start: u64, width: u64, bits: u32) {
        self.narrow(self.range >> bits, start, width);
    }

    /// Codes one of `total` equally likely numbers.
    pub(super) fn uniform(&mut self, number: u64, total: u64) {
        if total.is_power_of_two() {
            self.interval_of_power(number, 1, total.trailing_zeros());
        } else {
            self.interval(number, 1, total);
        }
    }

    fn narrow(&mut self, unit: u64, start: u64, width: u64) {
        let (low, carry) = self.low.overflowing_add(unit * start);
        self.low = low;
        if carry {
            self.carry();
        }
        self.range = unit * width;
        if self.range < BOTTOM {
            self.out.extend_from_slice(&((self.low >> 32) as u32).to_be_bytes());
            self.low <<= 32;
            self.range <<= 32;
        }
    }

    fn carry(&mut self) {
        for byte in self.out.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }

    /// The bytes, with as few after the last step as tell its interval.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let written = self.out.len();
        // The number in `low..low + range` with most zeros at its end. With 32 of them there always is one.
        for zeros in (32..64).rev() {
            let mask = (1u64 << zeros) - 1;
            let (rounded, carry) = self.low.overflowing_add(mask);
            let value = rounded & !mask;
            if value.wrapping_sub(self.low) < self.range {
                if carry {
                    self.carry();
                }
                self.out.extend_from_slice(&((value >> 32) as u32).to_be_bytes());
                break;
            }
        }
        let used = self.out[written..].iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        self.out.truncate(written + used);
        self.out
    }
}

/// Reads what an [`Encoder`] wrote. Bad input never fails at once: it gives numbers in range, and [`Decoder::finish`] says no.
#[derive(Clone, Debug)]
pub(super) struct Decoder<'a> {
    bytes: &'a [u8],
    next: usize,
    code: u64,
    range: u64,
    bad: bool,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { bytes, next: 0, code: 0, range: u64::MAX, bad: false };
        decoder.code = decoder.word() << 32 | decoder.word();
        decoder
    }

    /// The next four bytes; zeros beyond the end.
    fn word(&mut self) -> u64 {
        let word = match self.bytes.get(self.next..self.next + 4) {
            Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
            _ => {
                let byte = |at: usize| self.bytes.get(at).copied().unwrap_or(0);
                self.bad |= self.next + 4 > self.bytes.len() + LOOK_AHEAD;
                u32::from_be_bytes([0, 1, 2, 3].map(|i| byte(self.next + i)))
            }
        };
        self.next += 4;
        u64::from(word)
    }

    /// Takes off the interval that was found.
    fn narrow(&mut self, unit: u64, start: u64, width: u64) {
        self.code -= unit * start;
        self.range = unit * width;
        if self.range < BOTTOM {
            self.code = self.code << 32 | self.word();
            self.range <<= 32;
        }
    }

    fn point(&mut self, unit: u64, total: u64) -> u64 {
        let point = self.code / unit;
        self.bad |= point >= total;
        point.min(total - 1)
    }

    /// One of two: whether the number lies at or above `split` of `total`; neither part may be empty.
    pub(super) fn above(&mut self, split: u64, total: u64) -> bool {
        let unit = self.range / total;
        self.bad |= self.code >= unit * total;
        let above = self.code >= unit * split;
        if above {
            // Without this a code beyond the total would stay beyond the range for ever.
            self.code = self.code.min(unit * total - 1);
            self.narrow(unit, split, total - split);
        } else {
            self.narrow(unit, 0, split);
        }
        above
    }

    /// Finds the interval of `2^16` in which the number lies; `find` gives from a point the interval's place, start and width.
    pub(super) fn interval_of_16_bits(&mut self, find: impl FnOnce(u16) -> (usize, u64, u64)) -> usize {
        let unit = self.range >> 16;
        let point = self.point(unit, 1 << 16);
        let (place, start, width) = find(point as u16);
        self.narrow(unit, start, width);
        place
    }

    /// One of `total` equally likely numbers.
    pub(super) fn uniform(&mut self, total: u64) -> u64 {
        let power = total.is_power_of_two();
        let unit = if power { self.range >> total.trailing_zeros() } else { self.range / total };
        let number = self.point(unit, total);
        self.narrow(unit, number, 1);
        number
    }

    /// Whether the bytes were exactly one encoder's: none missing, none left, no number out of range.
    pub(super) fn finish(&self) -> bool {
        let written = self.next - LOOK_AHEAD;
        let last = self.bytes.get(written..).unwrap_or(&[]);
        !self.bad && last.len() <= 4 && last.last() != Some(&0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Uniform(u64, u64),
        Bit(bool, u64, u64),
        Sixteen(u16, u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1u64..1 << 26).prop_flat_map(|t| (0..t, Just(t))).prop_map(|(n, t)| Step::Uniform(n, t)),
            (0u32..24, any::<u64>()).prop_map(|(b, n)| Step::Uniform(n & ((1 << b) - 1), 1 << b)),
            (2u64..1 << 26).prop_flat_map(|t| (any::<bool>(), 1..t, Just(t))).prop_map(|(b, s, t)| Step::Bit(b, s, t)),
            any::<(u16, u16)>().prop_map(|(a, b)| Step::Sixteen(a.min(b), a.max(b))),
        ]
    }

    fn encode(steps: &[Step]) -> Vec<u8> {
        let mut encoder = Encoder::new();
        for step in steps {
            match *step {
                Step::Uniform(number, total) => encoder.uniform(number, total),
                Step::Bit(false, split, total) => encoder.interval(0, split, total),
                Step::Bit(true, split, total) => encoder.interval(split, total - split, total),
                Step::Sixteen(a, b) => encoder.interval_of_power(a.into(), u64::from(b) - u64::from(a) + 1, 16),
            }
        }
        encoder.finish()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(steps in proptest::collection::vec(step(), 0..300)) {
            let bytes = encode(&steps);
            let mut decoder = Decoder::new(&bytes);
            for step in &steps {
                match *step {
                    Step::Uniform(number, total) => prop_assert_eq!(decoder.uniform(total), number),
                    Step::Bit(bit, split, total) => prop_assert_eq!(decoder.above(split, total), bit),
                    Step::Sixteen(a, b) => {
                        let width = u64::from(b) - u64::from(a) + 1;
                        let hit = decoder.interval_of_16_bits(|p| (usize::from((a..=b).contains(&p)), a.into(), width));
                        prop_assert_eq!(hit, 1);
                    }
                }
            }
            prop_assert!(decoder.finish());
        }

        #[test]
        fn any_bytes_give_numbers_in_range(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::new(&bytes);
            for total in (1..200u64).chain([1 << 20, (1 << 26) - 1]) {
                prop_assert!(decoder.uniform(total) < total);
                decoder.above(1, total + 1);
            }
            decoder.interval_of_16_bits(|p| (0, p.into(), 1));
        }
    }

    #[test]
    fn a_carry_runs_through_all_bytes_before_it() {
        // Just below one half, again and again, then up across it.
        let mut steps = vec![Step::Sixteen(0x7fff, 0x7fff)];
        steps.extend(vec![Step::Sixteen(0xffff, 0xffff); 40]);
        let bytes = encode(&steps);
        assert!(bytes.len() > 70);
        let mut decoder = Decoder::new(&bytes);
        assert_eq!(decoder.interval_of_16_bits(|p| (p.into(), 0x7fff, 1)), 0x7fff);
    }

    #[test]
    fn the_cost_is_the_information() {
        let steps: Vec<_> = (0..4000u64).map(|i| Step::Uniform(i * 7 % 100, 100)).collect();
        let bits = 4000.0 * 100f64.log2();
        let spent = encode(&steps).len() as f64 * 8.0;
        assert!(spent < bits * 1.0001 + 16.0 && spent > bits - 64.0, "{spent} bits against {bits}");
    }
}
