//! A story grammar: chats in which somebody asks for a story and gets one about what they asked for.
//!
//! Everything follows from the generator it is given, so a document is named by a seed and a stream.

mod characters;
mod objects;
mod plots;
mod purposes;
mod story;
mod template;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use story::Scene;
pub use story::Split;
use template::{Slots, render};

/// Who says a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions that stand before the chat.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub text: String,
}

/// One training example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// Messages in order.
    Chat(Vec<Turn>),
    /// A story without a chat around it.
    Text(String),
}

impl Document {
    /// What is said in it.
    #[must_use]
    pub fn into_texts(self) -> Vec<String> {
        match self {
            Self::Chat(turns) => turns.into_iter().map(|turn| turn.text).collect(),
            Self::Text(text) => vec![text],
        }
    }
}

/// The generator of stream `stream` of corpus `seed`.
#[must_use]
pub fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// Draws one document.
#[must_use]
pub fn document(rng: &mut ChaCha8Rng, split: Split) -> Document {
    if split == Split::HeldOut {
        return Document::Chat(chat(rng, split, 1));
    }
    match rng.random_range(0..100u32) {
        0..8 => Document::Text(Scene::draw(rng, split).tell(rng)),
        8..13 => Document::Chat(small_talk(rng)),
        13..21 => Document::Chat(chat(rng, split, 2)),
        _ => Document::Chat(chat(rng, split, 1)),
    }
}

/// Draws a chat of several stories, for longer contexts.
#[must_use]
pub fn long_document(rng: &mut ChaCha8Rng, split: Split) -> Document {
    let stories = rng.random_range(3..=4);
    Document::Chat(chat(rng, split, stories))
}

fn turn(role: Role, text: String) -> Turn {
    Turn { role, text }
}

fn plain(template: &str, rng: &mut ChaCha8Rng) -> String {
    render(template, &Slots::new(), rng)
}

fn system(rng: &mut ChaCha8Rng, turns: &mut Vec<Turn>) {
    if rng.random_ratio(1, 8) {
        let text = "[You are a storyteller.|You tell short stories.|You are a helpful assistant.|You are a friendly assistant who tells stories to children.]";
        turns.push(turn(Role::System, plain(text, rng)));
    }
}

fn chat(rng: &mut ChaCha8Rng, split: Split, stories: usize) -> Vec<Turn> {
    let mut turns = Vec::new();
    system(rng, &mut turns);
    for index in 0..stories {
        let scene = Scene::draw(rng, split);
        let (request, story) = ask(rng, &scene, split, index > 0);
        turns.push(turn(Role::User, request));
        turns.push(turn(Role::Assistant, story));
        if split == Split::Train && rng.random_ratio(1, 10) {
            question(rng, &scene, &mut turns);
        }
    }
    turns
}

/// A request and the story that answers it.
fn ask(rng: &mut ChaCha8Rng, scene: &Scene, split: Split, again: bool) -> (String, String) {
    let (hero, friend, object) = (scene.hero.character.noun, scene.friend.character.noun, scene.object.noun);
    let kind = if split == Split::HeldOut { 0 } else { rng.random_range(0..100u32) };
    let (subject, story) = match kind {
        0..58 => (
            format!("[@a {hero} and @a {object}|@a {hero} and @a {object}|@a {object} and @a {hero}]"),
            scene.tell(rng),
        ),
        58..66 => (format!("@a {} {hero} and @a {} {object}", scene.hero.adjective, scene.look), scene.tell(rng)),
        66..76 => (format!("@a {hero} and @a {friend}"), scene.tell_of_two(rng)),
        76..81 => (format!("@a {hero}, @a {friend} and @a {object}"), scene.tell(rng)),
        81..88 => (format!("@a {hero}"), if rng.random() { scene.tell(rng) } else { scene.tell_of_two(rng) }),
        88..94 => (format!("@a {object}"), scene.tell(rng)),
        _ => (String::new(), if rng.random_ratio(3, 4) { scene.tell(rng) } else { scene.tell_of_two(rng) }),
    };
    (request(rng, &subject, again), story)
}

fn request(rng: &mut ChaCha8Rng, subject: &str, again: bool) -> String {
    let about = if subject.is_empty() { String::new() } else { format!(" about {subject}") };
    let template = if again {
        format!(
            "[Tell me another one{about}[.|]|Another story{about}, please.|Now tell me a story{about}[.|]|Can you tell me another story{about}?]"
        )
    } else {
        format!(
            "[Tell me a story{about}[.|]|Tell me a story{about}[.|]|Please tell me a story{about}.|Tell me a short story{about}[.|]|Write a story{about}[.|]|Write a short story{about}.\
             |Can you tell me a story{about}?|I want to hear a story{about}.|Make up a story{about}.|A story{about}, please.]"
        )
    };
    let text = plain(&template, rng);
    if rng.random_ratio(1, 10) { text.to_lowercase() } else { text }
}

/// A question about the story just told.
fn question(rng: &mut ChaCha8Rng, scene: &Scene, turns: &mut Vec<Turn>) {
    let hero = &scene.hero;
    let noun = hero.character.noun;
    let (asked, answer) = if rng.random() {
        (
            format!("What was the name of the {noun}?"),
            format!("[{} name was {}.|The {noun} was named {}.]", hero.his(), hero.name(), hero.name()),
        )
    } else {
        (format!("Where did {} live?", hero.name()), format!("{} lived {}.", hero.he(), hero.character.home))
    };
    turns.push(turn(Role::User, asked));
    turns.push(turn(Role::Assistant, plain(&answer, rng)));
}

const SMALL_TALK: &[(&str, &str)] = &[
    (
        "[Hello|Hi|Hey|Good morning|Good evening][!|.|]",
        "[Hello! Shall I tell you a story?|Hello! What shall my story be about?]",
    ),
    (
        "[What is your name|What's your name|Who are you][?|]",
        "[My name is Tiny. I tell short stories.|I am Tiny, and I tell short stories.]",
    ),
    (
        "[What can you do|How can you help me][?|]",
        "[I can tell you a short story. What shall it be about?|I tell short stories about animals, people and things.]",
    ),
    ("[How are you|How are you today][?|]", "I am well, thank you. Would you like to hear a story?"),
    ("[Thank you|Thanks][!|.|]", "You are welcome. Would you like to hear another story?"),
    ("[Goodbye|Bye|Good night][!|.|]", "[Goodbye! Come back for another story.|Goodbye, and sleep well.]"),
    (
        "[Who made you|Who trained you|Where do you come from][?|]",
        "I was trained by Consortium, from nothing, on stories made by a small grammar.",
    ),
];

fn small_talk(rng: &mut ChaCha8Rng) -> Vec<Turn> {
    let mut turns = Vec::new();
    system(rng, &mut turns);
    let (asked, answer) = SMALL_TALK[rng.random_range(0..SMALL_TALK.len())];
    let asked = plain(asked, rng);
    let asked = if rng.random_ratio(1, 4) { asked.to_lowercase() } else { asked };
    turns.push(turn(Role::User, asked));
    turns.push(turn(Role::Assistant, plain(answer, rng)));
    if rng.random_ratio(1, 4) {
        turns.extend(chat(rng, Split::Train, 1).into_iter().filter(|t| t.role != Role::System));
    }
    turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_stream_tells_the_same() {
        let draw = |seed, index| document(&mut stream(seed, index), Split::Train);
        assert!((0..200).all(|i| draw(7, i) == draw(7, i)));
        let distinct: std::collections::BTreeSet<String> = (0..200).map(|i| format!("{:?}", draw(7, i))).collect();
        assert!(distinct.len() > 180);
        assert_ne!(draw(7, 3), draw(8, 3));
    }

    #[test]
    fn answers_name_what_was_asked_for() {
        for index in 0..2000 {
            let Document::Chat(turns) = document(&mut stream(3, index), Split::HeldOut) else { panic!("a chat") };
            let request = turns.iter().find(|t| t.role == Role::User).unwrap().text.to_lowercase();
            let story = &turns.last().unwrap().text;
            let subject = request.split("about ").nth(1).unwrap();
            for noun in subject.split(" and ") {
                let noun = noun.trim_matches(|c: char| !c.is_alphabetic() && c != ' ').rsplit(' ').next().unwrap();
                let noun = if noun == "please" { continue } else { noun };
                assert!(story.contains(noun), "{request} -> {story}");
            }
        }
    }

    #[test]
    fn turns_alternate_and_end_with_the_assistant() {
        for index in 0..500 {
            let mut rng = stream(1, index);
            for document in [document(&mut rng, Split::Train), long_document(&mut rng, Split::Train)] {
                let Document::Chat(turns) = document else {
                    continue;
                };
                let spoken: Vec<Role> = turns.iter().map(|t| t.role).filter(|r| *r != Role::System).collect();
                assert!(spoken.chunks(2).all(|p| p == [Role::User, Role::Assistant]));
                assert!(turns.iter().skip(1).all(|t| t.role != Role::System));
            }
        }
    }
}
