//! Statements as people and spreadsheets read them.

use std::fmt::Write as _;

use consortium_ledger::accounts::Balances;
use consortium_ledger::journal::Kind;
use consortium_ledger::statement::{Line, Statement};

use crate::calendar::timestamp;

/// What an entry of this kind is, in words.
#[must_use]
pub fn describe(kind: Kind) -> &'static str {
    match kind {
        Kind::Trial => "credit to try it",
        Kind::Deposit => "paid in",
        Kind::Withdrawal => "paid out",
        Kind::Routed => "passed on for others",
        Kind::Work => "work",
        Kind::Paid => "held pay released",
        Kind::Returned => "pay returned after an audit",
        Kind::Matured => "delayed pay released",
        Kind::Bonded => "bond",
        Kind::Unbonded => "bond given back",
        Kind::Forfeited => "bond forfeited",
        Kind::Reward => "reward",
        Kind::Training => "training",
        Kind::Reserved => "reserved for a request",
        Kind::Released => "not used, given back",
        Kind::Channel => "cost of a channel",
    }
}

/// One line for each entry, between one for the opening balance and one for the closing one; CSV as RFC 4180 has it.
/// Amounts are whole msat.
#[must_use]
pub fn csv(statement: &Statement) -> String {
    let mut text = "entry,time,kind,job,tokens,fee_msat,amount_msat,free_msat,held_msat,tail_msat,reserved_msat,\
                    reference\r\n"
        .to_owned();
    let mut row = |entry: &str, at_ms: u64, kind: &str, work: [String; 3], moved: &Balances, reference: &str| {
        let [job, tokens, fee] = work;
        let Balances { free, held, tail, bonded } = moved;
        // A `String` takes all that is written to it; no value holds a comma, a quote or a line break.
        let _infallible = write!(
            text,
            "{entry},{},{kind},{job},{tokens},{fee},{},{free},{held},{tail},{bonded},{reference}\r\n",
            time(at_ms),
            moved.total(),
        );
    };
    let nothing = || [const { String::new() }; 3];
    row("", statement.from_ms, "opening", nothing(), &statement.opening, "");
    for Line { seq, at_ms, kind, reference, moved, work } in &statement.lines {
        let work = work.map(|work| [work.job.to_string(), work.tokens.to_string(), work.fee.0.to_string()]);
        let work = work.unwrap_or_else(nothing);
        row(&seq.to_string(), *at_ms, kind.as_str(), work, moved, &reference.to_string());
    }
    row("", statement.to_ms, "closing", nothing(), &statement.closing, "");
    text
}

/// A time; nothing for the end of all times.
fn time(at_ms: u64) -> String {
    match at_ms {
        0 => String::new(),
        _ if i64::try_from(at_ms).is_err() => String::new(),
        _ => timestamp(at_ms),
    }
}

#[cfg(test)]
mod tests {
    use consortium_ledger::accounts::Owner;
    use consortium_ledger::statement::Work;
    use consortium_protocol::hash::Hash;
    use consortium_protocol::identity::RootKey;
    use consortium_protocol::msat::Msat;
    use consortium_protocol::wire::job::JobId;

    use super::*;

    #[test]
    fn every_row_has_every_column() {
        let balances = |free, bonded| Balances { free, bonded, ..Balances::default() };
        let line = |seq, kind, moved, work| {
            let reference = Hash::of(b"x");
            Line { seq, at_ms: 1_790_000_000_000, kind, reference, moved, work }
        };
        let work = Work { job: JobId([0xab; 16]), tokens: 37, fee: Msat(2) };
        let statement = Statement {
            issuer: RootKey::from_seed([1; 32]).node_id(),
            owner: Owner::Key("0123456789ab".parse().unwrap()),
            from_ms: 0,
            to_ms: u64::MAX,
            opening: Balances::default(),
            lines: vec![
                line(0, Kind::Trial, balances(1000, 0), None),
                line(1, Kind::Work, balances(0, -372), Some(work)),
            ],
            closing: balances(628, 0),
            next: None,
        };
        let text = csv(&statement);
        assert!(text.ends_with("\r\n") && text.lines().all(|line| line.split(',').count() == 12), "{text}");
        let rows: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(rows[1], ",,opening,,,,0,0,0,0,0,");
        assert!(rows[2].starts_with("0,2026-09-21T14:13:20Z,trial,,,,1000,1000,0,0,0,"), "{}", rows[2]);
        assert!(rows[3].contains(&format!(",work,{},37,2,-372,0,0,0,-372,", "ab".repeat(16))), "{}", rows[3]);
        assert_eq!(rows[4], ",,closing,,,,628,628,0,0,0,");
    }
}
