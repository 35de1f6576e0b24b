//! Who can be in a story.

/// Whether a character is "he", "she", or either, as the story decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gender {
    He,
    She,
    Either,
}

use Gender::{Either, He, She};

/// One kind of character.
#[derive(Debug)]
pub(super) struct Character {
    pub noun: &'static str,
    pub gender: Gender,
    /// Where it lives, after "lived".
    pub home: &'static str,
    /// Water is no danger to it.
    pub swims: bool,
    /// Heights and holes are no danger to it.
    pub flies: bool,
}

const fn character(noun: &'static str, gender: Gender, home: &'static str) -> Character {
    Character { noun, gender, home, swims: false, flies: false }
}

const fn swimmer(noun: &'static str, home: &'static str) -> Character {
    Character { noun, gender: Either, home, swims: true, flies: false }
}

const fn flier(noun: &'static str, home: &'static str, swims: bool) -> Character {
    Character { noun, gender: Either, home, swims, flies: true }
}

pub(super) const CHARACTERS: &[Character] = &[
    character("fox", Either, "in a den at the edge of the forest"),
    character("bear", Either, "in a cave in the forest"),
    character("hedgehog", Either, "under a bush in the garden"),
    character("squirrel", Either, "in a hollow tree"),
    character("rabbit", Either, "in a hole under the hill"),
    character("deer", Either, "deep in the forest"),
    flier("owl", "in an old oak tree", false),
    character("badger", Either, "in a hole in the forest"),
    character("wolf", Either, "in a cave on the mountain"),
    character("mole", Either, "under the meadow"),
    character("hen", She, "on a farm"),
    character("rooster", He, "on a farm"),
    character("cow", She, "on a farm"),
    character("horse", Either, "in a stable on a farm"),
    character("pig", Either, "on a farm"),
    character("goat", Either, "on the mountain"),
    character("sheep", Either, "in the meadow"),
    character("donkey", Either, "in a stable near the mill"),
    character("dog", Either, "in a house at the edge of the village"),
    character("cat", Either, "in a house in the village"),
    character("kitten", Either, "in a house in the village"),
    flier("goose", "on a farm near the river", true),
    swimmer("frog", "in a pond"),
    swimmer("otter", "by the river"),
    swimmer("beaver", "by the river"),
    flier("duck", "by the pond", true),
    flier("swan", "by the lake", true),
    swimmer("turtle", "by the lake"),
    character("mouse", Either, "in a hole behind the kitchen"),
    character("lion", Either, "in a land of tall grass"),
    character("elephant", Either, "in a land of tall grass"),
    character("monkey", Either, "in a tree in the jungle"),
    character("tiger", Either, "in the jungle"),
    swimmer("penguin", "by the cold sea"),
    flier("sparrow", "in a nest on the roof of the mill", false),
    flier("crow", "in a nest in a tall tree", false),
    flier("bee", "in the garden", false),
    character("ant", Either, "under a stone in the garden"),
    flier("dragon", "in a cave on the mountain", false),
    character("unicorn", Either, "in a forest by the lake"),
    character("boy", He, "in a house in the village"),
    character("girl", She, "in a house in the village"),
    character("farmer", Either, "on a farm"),
    character("fisherman", He, "in a hut by the sea"),
    character("king", He, "in a castle on the hill"),
    character("queen", She, "in a castle on the hill"),
    character("prince", He, "in a castle by the lake"),
    character("princess", She, "in a castle by the lake"),
    character("knight", Either, "in a castle on the hill"),
    character("witch", She, "in a hut in the forest"),
    character("wizard", He, "in a tower on the hill"),
    character("baker", Either, "in a house near the market"),
    character("miller", Either, "in a mill by the river"),
    character("grandmother", She, "in a hut near the forest"),
    character("sailor", Either, "in a house by the sea"),
    character("shepherd", Either, "in a hut in the hills"),
    character("robot", Either, "in a workshop in the town"),
];

pub(super) const HE_NAMES: &[&str] = &[
    "Tom", "Max", "Finn", "Leo", "Sam", "Ben", "Otto", "Jack", "Hugo", "Oscar", "Toby", "Milo", "Theo", "Adam", "Paul",
    "Peter",
];

pub(super) const SHE_NAMES: &[&str] = &[
    "Lily", "Rosie", "Mia", "Ruby", "Nora", "Ella", "Clara", "Daisy", "Ivy", "Lucy", "Poppy", "Hazel", "Molly", "Anna",
    "Tilly", "Emma",
];

pub(super) const TRAITS: &[&str] =
    &["small", "little", "clever", "kind", "brave", "shy", "young", "old", "gentle", "quiet", "cheerful", "honest"];
