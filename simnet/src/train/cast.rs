//! Who takes part.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Most peers of a run.
pub const MOST_PEERS: usize = 64;

/// What a peer is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Does what it should.
    Honest,
    /// Trains on a quarter of its rows.
    Mediocre,
    /// Trains nothing: sends zeros, then noise, then a whisper of the last round's best update, in turn.
    FreeRider,
    /// Sends the best update of the round before, disguised by some noise.
    Plagiarist,
    /// Waits for the others' updates, sends the best of them, and so commits too late.
    LatePlagiarist,
    /// Trains, and sends the opposite, four times as large.
    Poisoner,
    /// Does what it should for two thirds of the run, then poisons.
    Sleeper,
    /// Trains on parameters of four rounds before, and in the first four rounds on others than the common ones.
    Stale,
    /// One of two: the first trains, the second sends what it got from the first before both commit, disguised.
    Colluder,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Honest,
        Self::Mediocre,
        Self::FreeRider,
        Self::Plagiarist,
        Self::LatePlagiarist,
        Self::Poisoner,
        Self::Sleeper,
        Self::Stale,
        Self::Colluder,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::Mediocre => "mediocre",
            Self::FreeRider => "free-rider",
            Self::Plagiarist => "plagiarist",
            Self::LatePlagiarist => "late-plagiarist",
            Self::Poisoner => "poisoner",
            Self::Sleeper => "sleeper",
            Self::Stale => "stale",
            Self::Colluder => "colluder",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The peers of a run in order, such as `honest:4,poisoner`. Colluders come in pairs: `colluder` is two of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cast(Vec<Role>);

impl Cast {
    /// The peers.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.0
    }

    /// Those that do what they should, alone: what a run with attackers is held against.
    #[must_use]
    pub fn honest_alone(&self) -> Self {
        Self(self.0.iter().filter(|role| matches!(role, Role::Honest)).copied().collect())
    }

    /// The name of each peer: its role, numbered where there are several.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let name = |(index, role): (usize, &Role)| {
            let alike = |roles: &[Role]| roles.iter().filter(|r| *r == role).count();
            match alike(&self.0) {
                1 => role.to_string(),
                _ => format!("{role}-{}", alike(&self.0[..=index])),
            }
        };
        self.0.iter().enumerate().map(name).collect()
    }
}

impl FromStr for Cast {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut roles = Vec::new();
        for part in text.split(',') {
            let (name, count) = part.split_once(':').unwrap_or((part, "1"));
            let role = Role::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| {
                let known: Vec<&str> = Role::ALL.iter().map(|role| role.name()).collect();
                format!("there is no `{name}`: say one of {}, such as honest:4", known.join(", "))
            })?;
            let count = count.parse::<usize>().ok().filter(|count| (1..=MOST_PEERS).contains(count));
            let count = count.ok_or_else(|| format!("`{part}`: say a number from 1 to {MOST_PEERS}"))?;
            roles.extend(std::iter::repeat_n(role, if role == Role::Colluder { 2 * count } else { count }));
        }
        match roles.len() {
            0..=MOST_PEERS if roles.contains(&Role::Honest) => Ok(Self(roles)),
            0..=MOST_PEERS => Err("at least one peer must be honest".to_owned()),
            count => Err(format!("{count} peers are more than {MOST_PEERS}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cast_is_read_and_named() {
        let cast: Cast = "honest:2,free-rider,colluder".parse().unwrap();
        assert_eq!(cast.names(), ["honest-1", "honest-2", "free-rider", "colluder-1", "colluder-2"]);
        assert_eq!(cast.honest_alone().roles(), [Role::Honest; 2]);
        for wrong in ["", "honest:0", "honest:65", "honest:x", "saint", "poisoner", "honest:40,colluder:20"] {
            assert!(wrong.parse::<Cast>().is_err(), "{wrong}");
        }
    }
}
