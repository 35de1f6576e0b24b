//! The data of a run: stories that every node generates for itself, or a file of rows that its author made of text.
//!
//! Of stories nothing is downloaded. The name says which corpus, and the digest which generator: it is taken over documents that
//! the generator makes, so that a node whose program tells other stories finds out before it trains on them. A file of rows
//! ([`crate::dataset`]) is got by its digest, from whoever takes part in the run.

use consortium_protocol::Hash;
use consortium_protocol::wire::train::{DataSpec, RunSpec};

use crate::collective::Data;
use crate::corpus::{Document, Role, Split, document, stream};
use crate::dataset::{MAX_TOKENS, Rows};
use crate::error::TrainError;

/// What the name of a corpus begins with; its seed follows.
pub const STORIES: &str = "consortium-stories/";
/// What the name of a file of rows begins with; what people call it follows.
pub const ROWS: &str = "rows/";
/// Documents of each split that the digest is taken over.
const DOCUMENTS: u64 = 256;

/// The corpus of this seed, with `rows` rows to train on and as many held out.
#[must_use]
pub fn stories(seed: u64, rows: u64) -> DataSpec {
    DataSpec { name: format!("{STORIES}{seed}"), digest: digest(seed), training_rows: rows, held_out_rows: rows }
}

/// The file that a run's data are: its BLAKE3, and its length in bytes; none if they are generated.
#[must_use]
pub fn file_of(spec: &RunSpec) -> Option<(Hash, u64)> {
    let data = &spec.data;
    let rows = data.training_rows.saturating_add(data.held_out_rows);
    let bytes = Rows::file_bytes(rows, spec.training.sequence as usize).unwrap_or(u64::MAX);
    data.name.starts_with(ROWS).then_some((data.digest, bytes))
}

/// The data that a specification names.
///
/// # Errors
/// [`TrainError::Run`] for stories of another generator, more rows than there may be, or data of another kind.
pub fn data_of(spec: &RunSpec) -> Result<Data, TrainError> {
    let refuse = |reason: String| Err(TrainError::Run { what: "data", reason });
    let data = &spec.data;
    if let Some((digest, bytes)) = file_of(spec) {
        let most = 4 * MAX_TOKENS;
        if bytes > most {
            return refuse(format!("are a file of {bytes} bytes, and {most} are the most"));
        }
        return Ok(Data::Rows { digest, training: data.training_rows, held_out: data.held_out_rows });
    }
    let seed = data.name.strip_prefix(STORIES).and_then(|seed| seed.parse::<u64>().ok());
    let Some(seed) = seed.filter(|seed| data.name == format!("{STORIES}{seed}")) else {
        return refuse(format!("are `{}`, and this program only knows {STORIES}SEED and {ROWS}NAME", data.name));
    };
    if data.digest != digest(seed) {
        return refuse(format!("are `{}` of another generator: another version of this program tells it", data.name));
    }
    if data.training_rows != data.held_out_rows {
        return refuse("must have as many rows held out as to train on".to_owned());
    }
    Ok(Data::Stories { seed, rows: data.training_rows })
}

fn digest(seed: u64) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key("consortium training stories 1");
    let mut text = |kind: u8, text: &str| {
        hasher.update(&[kind]).update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
    };
    text(0, &seed.to_string());
    for split in [Split::Train, Split::HeldOut] {
        for index in 0..DOCUMENTS {
            match document(&mut stream(seed, index), split) {
                Document::Text(story) => text(1, &story),
                Document::Chat(turns) => turns.iter().for_each(|turn| match turn.role {
                    Role::System => text(2, &turn.text),
                    Role::User => text(3, &turn.text),
                    Role::Assistant => text(4, &turn.text),
                }),
            }
        }
    }
    Hash::from_bytes(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use consortium_protocol::RootKey;

    use super::*;
    use crate::run::{ModelSize, RunPlan};

    fn spec(data: DataSpec) -> RunSpec {
        let validators = vec![RootKey::from_seed([1; 32]).node_id()];
        let plan = RunPlan { tokens_per_second: Some(1e4), ..RunPlan::new(ModelSize::Nano, validators) };
        RunSpec { data, ..plan.prepare(1).unwrap().spec }
    }

    #[test]
    fn the_name_gives_the_seed_and_the_digest_ties_it_to_the_generator() {
        let data = stories(7, 1000);
        let spec = spec(data.clone());
        assert_eq!(data_of(&spec).unwrap(), Data::Stories { seed: 7, rows: 1000 });
        assert_eq!(file_of(&spec), None);
        assert_ne!(data.digest, stories(8, 1000).digest);
        for (name, digest, held_out) in [
            ("consortium-stories/8", data.digest, 1000),
            ("consortium-stories/07", data.digest, 1000),
            ("consortium-stories/", data.digest, 1000),
            ("fineweb", data.digest, 1000),
            (&*data.name, Hash::of(b"another"), 1000),
            (&*data.name, data.digest, 999),
        ] {
            let other = DataSpec { name: name.to_owned(), digest, training_rows: 1000, held_out_rows: held_out };
            let other = RunSpec { data: other, ..spec.clone() };
            assert!(matches!(data_of(&other), Err(TrainError::Run { what: "data", .. })), "{:?}", other.data);
        }
    }

    #[test]
    fn a_file_of_rows_has_a_length_and_a_longest_one() {
        let digest = Hash::of(b"rows");
        let of = |training_rows, held_out_rows| {
            spec(DataSpec { name: "rows/my-text".into(), digest, training_rows, held_out_rows })
        };
        let some = of(1000, 50);
        assert_eq!(file_of(&some), Some((digest, 1050 * 49 * 4)));
        assert_eq!(data_of(&some).unwrap(), Data::Rows { digest, training: 1000, held_out: 50 });
        for (training, held_out) in [(1 << 24, 1), (u64::MAX, 1), (u64::MAX / 2, u64::MAX / 2)] {
            let error = data_of(&of(training, held_out)).unwrap_err().to_string();
            assert!(error.contains("are the most"), "{error}");
        }
    }
}
