//! The data of a run: stories that every node generates for itself.
//!
//! Nothing is downloaded. The name says which corpus, and the digest which generator: it is taken over documents that the
//! generator makes, so that a node whose program tells other stories finds out before it trains on them.

use consortium_protocol::Hash;
use consortium_protocol::wire::train::DataSpec;

use crate::corpus::{Document, Role, Split, document, stream};
use crate::error::TrainError;

/// What the name of a corpus begins with; its seed follows.
pub const STORIES: &str = "consortium-stories/";
/// Documents of each split that the digest is taken over.
const DOCUMENTS: u64 = 256;

/// The corpus of this seed, with `rows` rows to train on and as many held out.
#[must_use]
pub fn stories(seed: u64, rows: u64) -> DataSpec {
    DataSpec { name: format!("{STORIES}{seed}"), digest: digest(seed), training_rows: rows, held_out_rows: rows }
}

/// The seed of the corpus that a specification names.
///
/// # Errors
/// [`TrainError::Run`] for data of another kind, or made by another generator.
pub fn seed_of(data: &DataSpec) -> Result<u64, TrainError> {
    let refuse = |reason: String| Err(TrainError::Run { what: "data", reason });
    let seed = data.name.strip_prefix(STORIES).and_then(|seed| seed.parse::<u64>().ok());
    let Some(seed) = seed.filter(|seed| data.name == format!("{STORIES}{seed}")) else {
        return refuse(format!("are `{}`, and this program only knows {STORIES}SEED", data.name));
    };
    if data.digest != digest(seed) {
        return refuse(format!("are `{}` of another generator: another version of this program tells it", data.name));
    }
    if data.training_rows != data.held_out_rows {
        return refuse("must have as many rows held out as to train on".to_owned());
    }
    Ok(seed)
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
    use super::*;

    #[test]
    fn the_name_gives_the_seed_and_the_digest_ties_it_to_the_generator() {
        let data = stories(7, 1000);
        assert_eq!(seed_of(&data).unwrap(), 7);
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
            assert!(matches!(seed_of(&other), Err(TrainError::Run { what: "data", .. })), "{other:?}");
        }
    }
}
