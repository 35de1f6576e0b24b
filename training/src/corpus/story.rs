//! Who meets whom, about what, and the text that comes of it.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::characters::{CHARACTERS, Character, Gender, TRAITS};
use super::objects::{OBJECTS, Object};
use super::plots::{Plot, WITH_OBJECT, WITHOUT_OBJECT};
use super::template::{Slots, render};

/// Which part of all pairs of character and thing a story may be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Pairs to learn from.
    Train,
    /// Pairs never seen in training, for an honest loss.
    HeldOut,
}

impl Split {
    fn holds(self, character: usize, object: usize) -> bool {
        let held_out = (character * 7 + object * 3) % 29 == 5;
        held_out == (self == Self::HeldOut)
    }
}

/// One character of one story.
#[derive(Clone, Debug)]
pub(super) struct Cast {
    pub character: &'static Character,
    pub adjective: &'static str,
}

impl Cast {
    fn she(&self) -> bool {
        self.character.gender == Gender::She
    }

    pub(super) fn name(&self) -> &'static str {
        self.character.name
    }

    pub(super) fn he(&self) -> &'static str {
        if self.she() { "she" } else { "he" }
    }

    pub(super) fn him(&self) -> &'static str {
        if self.she() { "her" } else { "him" }
    }

    pub(super) fn his(&self) -> &'static str {
        if self.she() { "her" } else { "his" }
    }
}

/// Everything a plot needs to be told.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub hero: Cast,
    pub friend: Cast,
    pub object: &'static Object,
    pub look: &'static str,
}

fn pick<T: Copy>(rng: &mut ChaCha8Rng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

fn cast(rng: &mut ChaCha8Rng, character: &'static Character) -> Cast {
    Cast { character, adjective: pick(rng, TRAITS) }
}

impl Scene {
    /// Draws two characters and a thing from `split`.
    pub(super) fn draw(rng: &mut ChaCha8Rng, split: Split) -> Self {
        let (hero, object) = loop {
            let (c, o) = (rng.random_range(0..CHARACTERS.len()), rng.random_range(0..OBJECTS.len()));
            if split.holds(c, o) {
                break (&CHARACTERS[c], &OBJECTS[o]);
            }
        };
        let friend = loop {
            let friend = &CHARACTERS[rng.random_range(0..CHARACTERS.len())];
            // Two pronouns tell two characters apart.
            if friend.gender != hero.gender {
                break friend;
            }
        };
        let (hero, friend) = (cast(rng, hero), cast(rng, friend));
        Self { hero, friend, object, look: pick(rng, object.looks) }
    }

    /// Tells a story in which the thing matters.
    pub(super) fn tell(&self, rng: &mut ChaCha8Rng) -> String {
        let plot = pick(rng, WITH_OBJECT);
        self.play(rng, plot)
    }

    /// Tells a story of the two characters alone.
    pub(super) fn tell_of_two(&self, rng: &mut ChaCha8Rng) -> String {
        let plot = pick(rng, WITHOUT_OBJECT);
        self.play(rng, plot)
    }

    fn play(&self, rng: &mut ChaCha8Rng, plot: &Plot) -> String {
        let (user, victim) = if plot.friend_helps { (&self.friend, &self.hero) } else { (&self.hero, &self.friend) };
        let purpose = self.object.purpose;
        let trouble = loop {
            let trouble = &purpose.troubles[rng.random_range(0..purpose.troubles.len())];
            let spared = trouble.spares.spares(victim.character);
            // Nobody needs a ladder less than a bird; such a pair still gets its story.
            if !spared || purpose.troubles.iter().all(|t| t.spares.spares(victim.character)) {
                break trouble;
            }
        };
        let mut slots = Slots::from([
            ("O", self.object.noun.to_owned()),
            ("Oa", format!("@a {} {}", self.look, self.object.noun)),
            ("can", self.object.can.to_owned()),
            ("act", self.object.act.to_owned()),
            ("fail", self.object.fail.to_owned()),
            ("fix", self.object.fix.to_owned()),
            ("trouble", trouble.trouble.to_owned()),
            ("relief", trouble.relief.to_owned()),
            ("without", purpose.without.to_owned()),
            ("again", purpose.again.to_owned()),
            ("home", self.hero.character.home.to_owned()),
        ]);
        let keys = [
            (&self.hero, ["H", "Hn", "Ha", "he", "him", "his"]),
            (&self.friend, ["F", "Fn", "Fa", "fhe", "fhim", "fhis"]),
            (user, ["U", "Un", "Ua", "uhe", "uhim", "uhis"]),
            (victim, ["V", "Vn", "Va", "vhe", "vhim", "vhis"]),
        ];
        for (cast, [name, noun, full, he, him, his]) in keys {
            slots.insert(name, cast.name().to_owned());
            slots.insert(noun, cast.character.noun.to_owned());
            slots.insert(full, format!("@a {} {}", cast.adjective, cast.character.noun));
            slots.insert(he, cast.he().to_owned());
            slots.insert(him, cast.him().to_owned());
            slots.insert(his, cast.his().to_owned());
        }
        let sentences: Vec<String> = plot.sentences.iter().map(|s| render(s, &slots, rng)).collect();
        sentences.into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand_chacha::rand_core::SeedableRng;

    use super::*;
    use crate::corpus::template::article;

    fn stories(count: u64) -> Vec<(Scene, String)> {
        (0..count)
            .map(|seed| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                let scene = Scene::draw(&mut rng, Split::Train);
                let text = if seed % 5 == 0 { scene.tell_of_two(&mut rng) } else { scene.tell(&mut rng) };
                (scene, text)
            })
            .collect()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(|w| w.trim_matches(|c: char| !c.is_alphabetic()).to_owned()).collect()
    }

    #[test]
    fn nothing_is_left_unexpanded_and_articles_agree() {
        for (_, text) in stories(3000) {
            assert!(!text.contains(['{', '}', '[', ']', '|', '@']), "{text}");
            assert!(!text.contains("  ") && text.ends_with(['.', '"', '!']), "{text}");
            let words = words(&text);
            for pair in words.windows(2) {
                let first = pair[0].to_lowercase();
                if first == "a" || first == "an" {
                    assert_eq!(first, article(&pair[1]), "{text}");
                }
            }
        }
    }

    #[test]
    fn pronouns_are_those_of_the_characters() {
        for (scene, text) in stories(3000) {
            let lower: Vec<String> = words(&text).iter().map(|w| w.to_lowercase()).collect();
            let said: BTreeSet<bool> = lower
                .iter()
                .filter_map(|word| match word.as_str() {
                    "she" | "her" => Some(true),
                    "he" | "him" | "his" => Some(false),
                    _ => None,
                })
                .collect();
            let allowed: BTreeSet<bool> = [scene.hero.she(), scene.friend.she()].into();
            assert!(said.is_subset(&allowed), "{text}");
            assert!(text.contains(scene.hero.name()), "{text}");
            let strangers = CHARACTERS.iter().filter(|c| ![scene.hero.name(), scene.friend.name()].contains(&c.name));
            for stranger in strangers {
                assert!(!words(&text).iter().any(|word| word == stranger.name), "{text}");
            }
        }
    }

    #[test]
    fn stories_are_about_their_subjects_and_of_a_fair_length() {
        for (scene, text) in stories(3000) {
            let words = words(&text);
            assert!(words.iter().any(|w| w == scene.hero.character.noun), "{text}");
            assert!(words.iter().any(|w| w == scene.friend.character.noun), "{text}");
            assert!((35..=150).contains(&words.len()), "{} words: {text}", words.len());
        }
    }

    #[test]
    fn swimmers_do_not_drown() {
        for (scene, text) in stories(3000) {
            if scene.hero.character.swims && scene.friend.character.swims {
                assert!(!text.contains("could not swim"), "{text}");
            }
        }
    }

    #[test]
    fn held_out_pairs_are_few_and_apart() {
        let mut held_out = 0;
        for c in 0..CHARACTERS.len() {
            for o in 0..OBJECTS.len() {
                assert_ne!(Split::Train.holds(c, o), Split::HeldOut.holds(c, o));
                held_out += usize::from(Split::HeldOut.holds(c, o));
            }
        }
        let share = held_out as f64 / (CHARACTERS.len() * OBJECTS.len()) as f64;
        assert!((0.02..0.06).contains(&share), "{share}");
    }
}
