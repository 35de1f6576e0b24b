//! What a story can be about, what each thing does, and how it fails.

use super::purposes::{self, Purpose};

/// One thing, with what it can do, how it is used, how it fails and how it is put right.
#[derive(Debug)]
pub(super) struct Object {
    pub noun: &'static str,
    /// Adjectives that suit it.
    pub looks: &'static [&'static str],
    /// What it does, in the third person.
    pub can: &'static str,
    /// How somebody used it, in the past tense.
    pub act: &'static str,
    /// How it failed, after "it".
    pub fail: &'static str,
    /// How somebody put it right.
    pub fix: &'static str,
    pub purpose: &'static Purpose,
}

const fn object(
    noun: &'static str,
    looks: &'static [&'static str],
    purpose: &'static Purpose,
    [can, act, fail, fix]: [&'static str; 4],
) -> Object {
    Object { noun, looks, can, act, fail, fix, purpose }
}

#[rustfmt::skip]
pub(super) static OBJECTS: &[Object] = &[
    object("lantern", &["old", "brass", "small"], &purposes::LIGHT, ["gives light in the dark", "lit the lantern", "went out", "put new oil in the lantern and lit it again"]),
    object("candle", &["white", "long", "yellow"], &purposes::LIGHT, ["gives light in the dark", "lit the candle", "went out", "found a match and lit the candle again"]),
    object("lamp", &["old", "golden", "small"], &purposes::LIGHT, ["gives light in the dark", "lit the lamp", "went out", "put new oil in the lamp and lit it again"]),
    object("torch", &["bright", "big", "old"], &purposes::LIGHT, ["gives light in the dark", "lit the torch", "went out", "found dry wood and lit the torch again"]),
    object("key", &["golden", "silver", "old", "rusty"], &purposes::OPEN, ["opens a lock", "turned the key in the lock", "got stuck in the lock", "put a drop of oil on the key and turned it"]),
    object("rope", &["long", "strong", "old"], &purposes::PULL, ["is good for pulling", "pulled with the rope", "broke", "tied the rope with a strong knot and pulled again"]),
    object("chain", &["long", "heavy", "iron"], &purposes::PULL, ["is good for pulling", "pulled with the chain", "broke", "mended the chain with wire and pulled again"]),
    object("boat", &["wooden", "blue", "little"], &purposes::FLOAT, ["floats on the water", "rowed over in the boat", "had a hole and the water came in", "closed the hole in the boat with wax"]),
    object("raft", &["wooden", "big", "old"], &purposes::FLOAT, ["floats on the water", "paddled over on the raft", "fell apart", "tied the raft together with rope"]),
    object("canoe", &["wooden", "red", "long"], &purposes::FLOAT, ["floats on the water", "paddled over in the canoe", "had a hole and the water came in", "closed the hole in the canoe with wax"]),
    object("umbrella", &["red", "big", "yellow"], &purposes::SHELTER, ["keeps the rain off", "opened the umbrella over them", "had a hole", "put a patch on the umbrella"]),
    object("tent", &["green", "big", "old"], &purposes::SHELTER, ["keeps the rain off", "put up the tent for them", "had a hole", "put a patch on the tent"]),
    object("blanket", &["soft", "blue", "thick"], &purposes::WARM, ["keeps you warm", "laid the blanket around {vhim}", "tore", "sewed the blanket together again"]),
    object("scarf", &["long", "red", "soft"], &purposes::WARM, ["keeps you warm", "laid the scarf around {vhim}", "tore", "sewed the scarf together again"]),
    object("coat", &["thick", "green", "warm"], &purposes::WARM, ["keeps you warm", "laid the coat around {vhim}", "tore", "sewed the coat together again"]),
    object("shawl", &["soft", "grey", "warm"], &purposes::WARM, ["keeps you warm", "laid the shawl around {vhim}", "tore", "sewed the shawl together again"]),
    object("map", &["old", "yellow", "big"], &purposes::WAY, ["shows the way", "looked at the map with {vhim}", "got wet", "dried the map in the sun"]),
    object("compass", &["brass", "small", "golden"], &purposes::WAY, ["shows the way", "looked at the compass with {vhim}", "got stuck", "cleaned the compass with a soft cloth"]),
    object("ladder", &["long", "wooden", "tall"], &purposes::REACH, ["reaches high places", "put up the ladder", "broke", "mended the ladder with a new piece of wood"]),
    object("spade", &["strong", "new", "iron"], &purposes::DIG, ["is good for digging", "dug with the spade", "broke", "made a new handle for the spade"]),
    object("shovel", &["strong", "big", "iron"], &purposes::DIG, ["is good for digging", "dug with the shovel", "broke", "made a new handle for the shovel"]),
    object("basket", &["big", "round", "old"], &purposes::CARRY, ["carries many things", "put everything into the basket", "broke", "mended the basket with grass"]),
    object("bag", &["big", "brown", "old"], &purposes::CARRY, ["carries many things", "put everything into the bag", "tore", "sewed the bag together again"]),
    object("sack", &["big", "brown", "strong"], &purposes::CARRY, ["carries many things", "put everything into the sack", "tore", "sewed the sack together again"]),
    object("cart", &["wooden", "green", "old"], &purposes::CARRY, ["carries heavy things", "put everything on the cart", "lost a wheel", "put the wheel back on the cart"]),
    object("wagon", &["red", "wooden", "little"], &purposes::CARRY, ["carries heavy things", "put everything on the wagon", "lost a wheel", "put the wheel back on the wagon"]),
    object("telescope", &["long", "brass", "golden"], &purposes::SEE, ["shows things that are far away", "looked through the telescope", "was full of dust", "cleaned the telescope with a soft cloth"]),
    object("spyglass", &["brass", "old", "long"], &purposes::SEE, ["shows things that are far away", "looked through the spyglass", "was full of dust", "cleaned the spyglass with a soft cloth"]),
    object("bell", &["silver", "big", "brass"], &purposes::CALL, ["rings so loud that everyone hears it", "rang the bell", "made no sound", "took a leaf out of the bell and rang it again"]),
    object("drum", &["big", "red", "round"], &purposes::CALL, ["sounds so loud that everyone hears it", "beat the drum", "tore", "put a new skin on the drum"]),
    object("whistle", &["silver", "small", "tin"], &purposes::CALL, ["sounds so loud that everyone hears it", "blew the whistle", "made no sound", "took a seed out of the whistle and blew it again"]),
    object("horn", &["long", "golden", "old"], &purposes::CALL, ["sounds so loud that everyone hears it", "blew the horn", "made no sound", "took a leaf out of the horn and blew it again"]),
    object("trumpet", &["golden", "bright", "brass"], &purposes::CALL, ["sounds so loud that everyone hears it", "blew the trumpet", "made no sound", "took a leaf out of the trumpet and blew it again"]),
    object("flute", &["silver", "wooden", "long"], &purposes::MUSIC, ["makes sweet music", "played the flute", "made no sound", "took a seed out of the flute and played again"]),
    object("fiddle", &["old", "brown", "fine"], &purposes::MUSIC, ["makes sweet music", "played the fiddle", "lost a string", "put a new string on the fiddle"]),
    object("guitar", &["old", "brown", "fine"], &purposes::MUSIC, ["makes sweet music", "played the guitar", "lost a string", "put a new string on the guitar"]),
    object("harp", &["golden", "tall", "fine"], &purposes::MUSIC, ["makes sweet music", "played the harp", "lost a string", "put a new string on the harp"]),
    object("axe", &["sharp", "iron", "heavy"], &purposes::CUT, ["cuts wood", "cut the branches with the axe", "broke", "made a new handle for the axe"]),
    object("saw", &["sharp", "long", "iron"], &purposes::CUT, ["cuts wood", "cut the branches with the saw", "broke", "made a new handle for the saw"]),
    object("knife", &["sharp", "small", "silver"], &purposes::CUT, ["cuts wood", "cut the branches with the knife", "broke", "made a new handle for the knife"]),
    object("apple", &["red", "big", "green"], &purposes::FOOD, ["is good to eat", "shared the apple with {vhim}", "rolled away", "ran after the apple and brought it back"]),
    object("pear", &["yellow", "big", "green"], &purposes::FOOD, ["is good to eat", "shared the pear with {vhim}", "rolled away", "ran after the pear and brought it back"]),
    object("cake", &["sweet", "round", "big"], &purposes::FOOD, ["is good to eat", "shared the cake with {vhim}", "rolled away", "ran after the cake and brought it back"]),
    object("pie", &["sweet", "warm", "round"], &purposes::FOOD, ["is good to eat", "shared the pie with {vhim}", "rolled away", "ran after the pie and brought it back"]),
    object("loaf", &["fresh", "warm", "round"], &purposes::FOOD, ["is good to eat", "shared the loaf with {vhim}", "rolled away", "ran after the loaf and brought it back"]),
    object("pumpkin", &["orange", "big", "round"], &purposes::FOOD, ["is good to eat", "shared the pumpkin with {vhim}", "rolled away", "ran after the pumpkin and brought it back"]),
    object("orange", &["sweet", "round", "big"], &purposes::FOOD, ["is good to eat", "shared the orange with {vhim}", "rolled away", "ran after the orange and brought it back"]),
    object("needle", &["silver", "thin", "sharp"], &purposes::SEW, ["is good for sewing", "sewed with the needle", "broke", "made the needle sharp again on a stone"]),
    object("hammer", &["heavy", "iron", "strong"], &purposes::BUILD, ["is good for building", "worked with the hammer", "broke", "made a new handle for the hammer"]),
    object("broom", &["long", "old", "new"], &purposes::SWEEP, ["sweeps the floor", "swept with the broom", "broke", "made a new handle for the broom"]),
    object("bucket", &["blue", "big", "tin"], &purposes::WATER, ["holds water", "brought water in the bucket", "had a hole", "closed the hole in the bucket with wax"]),
    object("jug", &["blue", "big", "round"], &purposes::WATER, ["holds water", "brought water in the jug", "had a hole", "closed the hole in the jug with wax"]),
    object("book", &["old", "thick", "blue"], &purposes::READ, ["tells good stories", "read to {vhim} from the book", "lost a page", "found the page and put it back into the book"]),
    object("clock", &["old", "golden", "round"], &purposes::TIME, ["tells the time", "looked at the clock", "stopped", "turned the key of the clock until it ticked again"]),
    object("net", &["big", "long", "old"], &purposes::CATCH, ["is good for catching things", "threw out the net", "tore", "mended the net with string"]),
    object("ball", &["red", "round", "blue"], &purposes::PLAY, ["is good for playing", "threw the ball to {vhim}", "rolled away", "ran after the ball and brought it back"]),
    object("kite", &["red", "big", "yellow"], &purposes::PLAY, ["flies in the wind", "let the kite fly for {vhim}", "fell into a tree", "got the kite out of the tree"]),
    object("brush", &["soft", "new", "thin"], &purposes::PAINT, ["is good for painting", "painted with the brush", "was dry and hard", "washed the brush until it was soft"]),
    object("bandage", &["white", "clean", "long"], &purposes::HEAL, ["helps when something hurts", "tied the bandage around it", "fell off", "tied the bandage with a better knot"]),
    object("pillow", &["soft", "white", "big"], &purposes::SLEEP, ["is good to sleep on", "gave the pillow to {vhim}", "tore", "sewed the pillow together again"]),
    object("hammock", &["green", "long", "soft"], &purposes::SLEEP, ["is good to sleep in", "tied the hammock between two trees for {vhim}", "tore", "sewed the hammock together again"]),
];
