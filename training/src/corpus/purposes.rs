//! What things are good for, and the troubles that they end.

use super::characters::Character;

/// Whom a trouble cannot befall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spares {
    Nobody,
    Swimmers,
    Fliers,
}

impl Spares {
    pub(super) fn spares(self, character: &Character) -> bool {
        match self {
            Self::Nobody => false,
            Self::Swimmers => character.swims,
            Self::Fliers => character.flies,
        }
    }
}

/// A trouble of `{V}` that a thing of the right purpose ends when `{U}` uses it.
#[derive(Debug)]
pub(super) struct Trouble {
    pub spares: Spares,
    pub trouble: &'static str,
    pub relief: &'static str,
}

/// What things of one kind are good for.
#[derive(Debug)]
pub(super) struct Purpose {
    pub troubles: &'static [Trouble],
    /// What follows when the thing fails two friends.
    pub without: &'static str,
    /// What follows when it works again.
    pub again: &'static str,
}

const fn any(trouble: &'static str, relief: &'static str) -> Trouble {
    Trouble { spares: Spares::Nobody, trouble, relief }
}

const fn dry(trouble: &'static str, relief: &'static str) -> Trouble {
    Trouble { spares: Spares::Swimmers, trouble, relief }
}

const fn low(trouble: &'static str, relief: &'static str) -> Trouble {
    Trouble { spares: Spares::Fliers, trouble, relief }
}

pub(super) static LIGHT: Purpose = Purpose {
    troubles: &[
        any(
            "The sun went down and it grew dark, and {V} could not find the way home.",
            "the path was bright, so {V} found the way home",
        ),
        any("A thick fog came up and {V} lost the path.", "{vhe} saw the light and came back to the path"),
        any("{V} had dropped a ring in a dark cellar and could not see it.", "soon {vhe} saw the ring on the floor"),
        dry(
            "It rained all evening, and {V} got wet and cold.",
            "{vhe} sat close to the warm flame until {vhe} was dry",
        ),
        any(
            "{V} heard a noise in the dark and was afraid.",
            "they saw that it was only the wind, so {vhe} was not afraid any more",
        ),
    ],
    without: "it was so dark that they could not find the way",
    again: "they could see the way again",
};
pub(super) static OPEN: Purpose = Purpose {
    troubles: &[
        any("{V} was locked in a shed and could not get out.", "the door opened and {V} came out"),
        any("{V} had come home late, and the door was locked.", "the door opened and {V} could go inside"),
        any(
            "{V} had found a wooden box, but it was locked.",
            "the box opened, and inside it was a letter from an old friend",
        ),
    ],
    without: "the door stayed shut and they had to wait outside in the cold",
    again: "the door opened at last",
};
pub(super) static PULL: Purpose = Purpose {
    troubles: &[
        low("{V} had fallen into a deep hole and could not climb out.", "soon {V} was out of the hole"),
        any("{V}'s cart was stuck in the mud.", "the cart came out of the mud"),
        dry("{V} had fallen into the river and the water was fast.", "soon {V} was safe on the bank"),
    ],
    without: "the cart rolled back into the mud",
    again: "the cart came out of the mud",
};
pub(super) static FLOAT: Purpose = Purpose {
    troubles: &[
        dry("{V} sat on a small island, and the water was rising.", "{uhe} brought {vhim} safely back to land"),
        dry("{V} had fallen into the lake and could not swim.", "{uhe} pulled {vhim} out of the water"),
        dry(
            "The bridge was broken, and {V} could not get to the other side of the river.",
            "{uhe} took {vhim} to the other side",
        ),
        any("{V}'s basket had fallen into the lake and was drifting away.", "{uhe} brought the basket back to {vhim}"),
    ],
    without: "they got wet and had to go back to land",
    again: "they floated safely over the water",
};
pub(super) static SHELTER: Purpose = Purpose {
    troubles: &[
        any("Dark clouds came and it began to rain, and {V} had no roof over {vhis} head.", "they both stayed dry"),
        any("The sun was very hot, and {V} could find no shade.", "they sat together in the cool shade"),
        any("It began to hail, and {V} did not know where to hide.", "they were safe and dry"),
    ],
    without: "the rain came in and they both got wet",
    again: "they were dry again",
};
pub(super) static WARM: Purpose = Purpose {
    troubles: &[
        any("It began to snow, and {V} was so cold that {vhe} shivered.", "soon {vhe} was warm"),
        any("{V} had been out in the rain and was wet and cold.", "soon {vhe} was warm and dry"),
        any("The night was cold, and {V} could not sleep.", "{vhe} was warm and fell asleep at once"),
    ],
    without: "the cold wind came in and they both shivered",
    again: "they were warm again",
};
pub(super) static WAY: Purpose = Purpose {
    troubles: &[
        any("{V} was lost in the forest and did not know which way to go.", "it showed {vhim} the right way"),
        any("{V} wanted to go to the town but did not know the way.", "it showed them the road to the town"),
        any("Snow had covered the path, and {V} could not find the way home.", "it showed {vhim} the way home"),
    ],
    without: "they did not know which way to go",
    again: "they found the right way",
};
pub(super) static REACH: Purpose = Purpose {
    troubles: &[
        low("{V} had climbed too high in a tree and could not get down.", "{V} came down safely"),
        low("{V} was hungry, but the plums hung too high in the tree.", "they picked the plums and ate them"),
        low("The wind had carried {V}'s hat up to the roof.", "{vhe} got the hat back"),
    ],
    without: "they could not get down from the roof",
    again: "they came down safely",
};
pub(super) static DIG: Purpose = Purpose {
    troubles: &[
        any("Deep snow had blocked {V}'s door.", "soon the door was free and {V} came out"),
        any(
            "{V} wanted to plant a tree, but the ground was too hard.",
            "soon there was a hole and they planted the tree",
        ),
        any("{V} had hidden a box of coins in the ground and could not find it.", "at last they found the box"),
    ],
    without: "they could not dig any more and the hole was too small",
    again: "soon the hole was deep enough for a young tree",
};
pub(super) static CARRY: Purpose = Purpose {
    troubles: &[
        any(
            "{V} had dropped many apples on the road and could not carry them all.",
            "they brought all the apples home",
        ),
        any("{V} had to bring wood home, but it was too much to carry.", "they brought the wood home before dark"),
        any(
            "{V} wanted to take bread and milk to a sick friend, but it was too heavy.",
            "they brought the bread and the milk to the sick friend",
        ),
    ],
    without: "everything fell on the road",
    again: "they brought everything home",
};
pub(super) static SEE: Purpose = Purpose {
    troubles: &[
        any("{V} was waiting for a ship and could not see it.", "{uhe} saw a white sail far away on the sea"),
        any("{V} had lost a lamb in the hills.", "{uhe} saw the lamb on a hill far away"),
        any(
            "{V} saw smoke and did not know where it came from.",
            "{uhe} saw a small fire far away, and they put it out in time",
        ),
    ],
    without: "they could not see the ship on the sea",
    again: "they saw the ship far away",
};
pub(super) static CALL: Purpose = Purpose {
    troubles: &[
        any("{V} was lost in the fog.", "{V} heard the sound and followed it home"),
        any("A fire broke out in {V}'s house, and nobody knew.", "all the neighbours heard it and came with water"),
        any("{V}'s sheep had run away.", "the sheep heard the sound and came back"),
    ],
    without: "nobody could hear them",
    again: "everyone heard the sound and came",
};
pub(super) static MUSIC: Purpose = Purpose {
    troubles: &[
        any("{V} was sad and sat all alone.", "the music made {vhim} smile"),
        any("{V} was tired but could not sleep.", "the soft music made {vhim} sleep"),
        any("{V} had a party, but nobody wanted to dance.", "everyone danced until the moon came up"),
    ],
    without: "there was no more music and nobody danced",
    again: "the music was sweet and everyone danced",
};
pub(super) static CUT: Purpose = Purpose {
    troubles: &[
        low("A tree had fallen across the path, and {V} could not go on.", "the path was free again"),
        any("{V} was caught in a thorn bush and could not get out.", "{V} was free again"),
        any("{V} had no wood for the fire, and the house was cold.", "soon there was a warm fire in the house"),
    ],
    without: "they had no wood for the fire and it grew cold",
    again: "soon they had wood for a warm fire",
};
pub(super) static FOOD: Purpose = Purpose {
    troubles: &[
        any("{V} had eaten nothing all day and was very hungry.", "{vhe} was not hungry any more"),
        any("{V} was so weak that {vhe} could not walk on.", "soon {vhe} was strong again"),
        any("{V}'s dinner had fallen into the river.", "they both had enough to eat"),
    ],
    without: "they had nothing to eat and they were hungry",
    again: "they ate together and were not hungry any more",
};
pub(super) static SEW: Purpose = Purpose {
    troubles: &[
        any("{V} had torn {vhis} coat on a thorn bush.", "the coat was as good as new"),
        any("There was a big hole in {V}'s sail.", "the sail was whole again"),
        any("{V}'s bag had a hole and all the nuts fell out.", "not one nut fell out any more"),
    ],
    without: "the hole in the coat stayed open",
    again: "the coat was as good as new",
};
pub(super) static BUILD: Purpose = Purpose {
    troubles: &[
        any("{V}'s roof had a hole, and the rain came in.", "the house was dry again"),
        any("The storm had broken {V}'s fence.", "the fence was strong again"),
        any("{V}'s chair was broken, and {vhe} had to sit on the floor.", "{vhe} could sit on the chair again"),
    ],
    without: "the roof stayed open and the rain came in",
    again: "soon the roof was whole and the house was dry",
};
pub(super) static SWEEP: Purpose = Purpose {
    troubles: &[
        any("The wind had blown leaves into {V}'s house.", "soon the house was clean"),
        any("{V} had dropped a bag of flour on the floor.", "soon the floor was clean again"),
        any("Snow lay on {V}'s steps, and {vhe} nearly fell.", "soon the steps were clean and safe"),
    ],
    without: "the dust stayed on the floor",
    again: "soon the floor was clean",
};
pub(super) static WATER: Purpose = Purpose {
    troubles: &[
        any("There had been no rain, and {V}'s flowers were dry.", "the flowers drank and stood up again"),
        any("A small fire had started in {V}'s garden.", "the water put out the fire"),
        any("{V} had walked far in the sun and was very thirsty.", "{vhe} drank and was not thirsty any more"),
    ],
    without: "all the water ran out and the flowers stayed dry",
    again: "they brought water to the dry flowers",
};
pub(super) static READ: Purpose = Purpose {
    troubles: &[
        any("{V} could not sleep.", "the story made {vhim} fall asleep"),
        any("{V} was ill and had to stay in bed.", "{vhe} forgot that {vhe} was ill"),
        any("{V} wanted to know the names of the stars.", "{vhe} learned the names of all the stars"),
    ],
    without: "they could not read the end of the story",
    again: "they read the story to the end",
};
pub(super) static TIME: Purpose = Purpose {
    troubles: &[
        any("{V} was afraid to be late for school.", "{vhe} saw that there was still an hour left"),
        any("{V} had put a cake in the oven and forgot the time.", "they took the cake out just in time"),
        any("{V} did not know when the ship would leave.", "{vhe} came to the ship in time"),
    ],
    without: "they did not know the time and came too late",
    again: "they were never late again",
};
pub(super) static CATCH: Purpose = Purpose {
    troubles: &[
        any("The wind had blown {V}'s hat into the river.", "{vhe} got the hat back"),
        any("{V} wanted fish for dinner but could not catch any.", "they had fish for dinner"),
        any("{V}'s ball had fallen into the pond.", "{vhe} got the ball back"),
    ],
    without: "all the fish swam away",
    again: "they had fish for dinner",
};
pub(super) static PLAY: Purpose = Purpose {
    troubles: &[
        any("{V} had nobody to play with.", "they played until the sun went down"),
        any("{V} was sad because it had rained all week.", "{vhe} laughed and was happy again"),
        any("{V} was new in the village and had no friends.", "soon all the children came to play with them"),
    ],
    without: "they could not play any more and they were sad",
    again: "they played until the sun went down",
};
pub(super) static PAINT: Purpose = Purpose {
    troubles: &[
        any("{V}'s house looked grey and sad.", "soon the house was bright and red"),
        any("{V}'s boat was old and had no colour.", "soon the boat was as blue as the sea"),
        any("{V} wanted a picture of the sea.", "soon there was a picture of blue waves"),
    ],
    without: "the fence stayed grey",
    again: "soon the fence was as white as snow",
};
pub(super) static HEAL: Purpose = Purpose {
    troubles: &[
        any("{V} had hurt {vhis} leg on a stone.", "soon the leg did not hurt any more"),
        any("{V} had fallen on the ice and hurt {vhis} foot.", "soon {vhe} could walk again"),
    ],
    without: "the leg still hurt and they had to stop",
    again: "soon they could walk on",
};
pub(super) static SLEEP: Purpose = Purpose {
    troubles: &[
        any("{V} was tired, but the ground was too hard to sleep on.", "{vhe} slept until the morning"),
        any("{V} had walked all day and wanted to rest.", "{vhe} slept and was strong again"),
        any("{V} had a bad dream and was afraid to go back to bed.", "{vhe} slept well and had a good dream"),
    ],
    without: "they had to lie on the hard floor and could not sleep",
    again: "they slept well until the morning",
};
