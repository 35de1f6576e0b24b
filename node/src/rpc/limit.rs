//! How much one caller may ask: a bucket of tokens for each address.
//!
//! A call takes one token, a batch as many as it has calls. A bucket holds [`BURST`] and gains [`PER_SECOND`] each
//! second ([`crate::buckets`]). Callers are told apart by their IPv4 address, or by the first half of their IPv6 address, which is what one
//! of them is commonly given. Of at most [`MAX_CALLERS`] buckets the one that was used longest ago makes room.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::buckets::{Buckets, Pace};

/// Calls that a caller may make at once.
pub const BURST: u32 = 256;
/// Calls that a caller may make each second in the long run.
pub const PER_SECOND: u32 = 64;
/// Callers told apart.
pub const MAX_CALLERS: usize = 4096;

const PACE: Pace = Pace { burst: BURST, per_second: PER_SECOND as f64 };

/// The buckets of all callers.
#[derive(Debug)]
pub(super) struct Limits(Buckets<IpAddr>);

impl Default for Limits {
    fn default() -> Self {
        Self(Buckets::of_at_most(MAX_CALLERS))
    }
}

impl Limits {
    /// Takes tokens for `calls` (at most [`BURST`]) from the caller's bucket.
    ///
    /// # Errors
    /// How long to wait until they are there; none were taken.
    pub(super) fn take(&self, caller: IpAddr, calls: u32, now: Instant) -> Result<(), Duration> {
        self.0.take(one_of_many(caller), calls, PACE, now)
    }
}

/// What stands for a caller.
pub(crate) fn one_of_many(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let (limits, start) = (Limits::default(), Instant::now());
        let me = address("192.0.2.1");
        assert_eq!(limits.take(me, BURST, start), Ok(()));
        assert_eq!(limits.take(me, PER_SECOND / 2, start), Err(Duration::from_millis(500)));
        assert_eq!(limits.take(me, PER_SECOND / 2, start + Duration::from_millis(500)), Ok(()));
        assert!(limits.take(me, 1, start + Duration::from_millis(500)).is_err());
        assert_eq!(limits.take(address("192.0.2.2"), BURST, start), Ok(()), "another caller has its own");
        assert_eq!(limits.take(me, BURST, start + Duration::from_secs(3600)), Ok(()));
    }

    #[test]
    fn neighbours_in_one_network_share_and_the_table_is_bounded() {
        let (limits, now) = (Limits::default(), Instant::now());
        assert_eq!(limits.take(address("2001:db8::1"), BURST, now), Ok(()));
        assert!(limits.take(address("2001:db8::2"), 1, now).is_err());
        assert!(limits.take(address("2001:db8:0:1::2"), 1, now).is_ok());
        assert_eq!(one_of_many(address("::ffff:192.0.2.1")), address("192.0.2.1"));
        for i in 0..u32::try_from(MAX_CALLERS).unwrap() + 8 {
            limits.take(IpAddr::from(i.to_be_bytes()), 1, now + Duration::from_millis(1)).unwrap();
        }
        assert_eq!(limits.0.len(), MAX_CALLERS);
    }
}
