//! Who can be in a story.

/// Whether a character is "he" or "she".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gender {
    He,
    She,
}

use Gender::{He, She};

/// One kind of character.
#[derive(Debug)]
pub(super) struct Character {
    pub noun: &'static str,
    /// Every fox is called the same: a model of this size learns a name that goes with its bearer long before it learns
    /// to repeat any name it has read.
    pub name: &'static str,
    pub gender: Gender,
    /// Where it lives, after "lived".
    pub home: &'static str,
    /// Water is no danger to it.
    pub swims: bool,
    /// Heights and holes are no danger to it.
    pub flies: bool,
}

const fn character(noun: &'static str, name: &'static str, gender: Gender, home: &'static str) -> Character {
    Character { noun, name, gender, home, swims: false, flies: false }
}

const fn swimmer(noun: &'static str, name: &'static str, gender: Gender, home: &'static str) -> Character {
    Character { noun, name, gender, home, swims: true, flies: false }
}

const fn flier(noun: &'static str, name: &'static str, gender: Gender, home: &'static str, swims: bool) -> Character {
    Character { noun, name, gender, home, swims, flies: true }
}

pub(super) const CHARACTERS: &[Character] = &[
    character("fox", "Otto", He, "in a den at the edge of the forest"),
    character("bear", "Rosie", She, "in a cave in the forest"),
    character("hedgehog", "Bruno", He, "under a bush in the garden"),
    character("squirrel", "Daisy", She, "in a hollow tree"),
    character("rabbit", "Hugo", He, "in a hole under the hill"),
    character("deer", "Molly", She, "deep in the forest"),
    flier("owl", "Max", He, "in an old oak tree", false),
    character("badger", "Lily", She, "in a hole in the forest"),
    character("wolf", "Toby", He, "in a cave on the mountain"),
    character("mole", "Nora", She, "under the meadow"),
    character("hen", "Clara", She, "on a farm"),
    character("rooster", "Oscar", He, "on a farm"),
    character("cow", "Poppy", She, "on a farm"),
    character("horse", "Theo", He, "in a stable on a farm"),
    character("pig", "Ruby", She, "on a farm"),
    character("goat", "Boris", He, "on the mountain"),
    character("sheep", "Hazel", She, "in the meadow"),
    character("donkey", "Finn", He, "in a stable near the mill"),
    character("dog", "Bella", She, "in a house at the edge of the village"),
    character("cat", "Milo", He, "in a house in the village"),
    character("kitten", "Tilly", She, "in a house in the village"),
    flier("goose", "Leo", He, "on a farm near the river", true),
    swimmer("frog", "Ella", She, "in a pond"),
    swimmer("otter", "Sam", He, "by the river"),
    swimmer("beaver", "Olive", She, "by the river"),
    flier("duck", "Ben", He, "by the pond", true),
    flier("swan", "Mabel", She, "by the lake", true),
    swimmer("turtle", "Jack", He, "by the lake"),
    character("mouse", "Greta", She, "in a hole behind the kitchen"),
    character("lion", "Tom", He, "in a land of tall grass"),
    character("elephant", "Ivy", She, "in a land of tall grass"),
    character("monkey", "Adam", He, "in a tree in the jungle"),
    character("tiger", "Emma", She, "in the jungle"),
    swimmer("penguin", "Paul", He, "by the cold sea"),
    flier("sparrow", "Lucy", She, "in a nest on the roof of the mill", false),
    flier("crow", "Peter", He, "in a nest in a tall tree", false),
    flier("bee", "Anna", She, "in the garden", false),
    character("ant", "Felix", He, "under a stone in the garden"),
    flier("dragon", "Mia", She, "in a cave on the mountain", false),
    character("unicorn", "Hector", He, "in a forest by the lake"),
    character("boy", "Rufus", He, "in a house in the village"),
    character("girl", "Flora", She, "in a house in the village"),
    character("farmer", "Nell", She, "on a farm"),
    character("fisherman", "Ned", He, "in a hut by the sea"),
    character("king", "Jasper", He, "in a castle on the hill"),
    character("queen", "Wanda", She, "in a castle on the hill"),
    character("prince", "Basil", He, "in a castle by the lake"),
    character("princess", "Agnes", She, "in a castle by the lake"),
    character("knight", "Gus", He, "in a castle on the hill"),
    character("witch", "Penny", She, "in a hut in the forest"),
    character("wizard", "Albert", He, "in a tower on the hill"),
    character("baker", "Stella", She, "in a house near the market"),
    character("miller", "Edgar", He, "in a mill by the river"),
    character("grandmother", "Dora", She, "in a hut near the forest"),
    character("sailor", "Susie", She, "in a house by the sea"),
    character("shepherd", "Simon", He, "in a hut in the hills"),
    character("robot", "Holly", She, "in a workshop in the town"),
];

pub(super) const TRAITS: &[&str] =
    &["small", "little", "clever", "kind", "brave", "shy", "young", "old", "gentle", "quiet", "cheerful", "honest"];
