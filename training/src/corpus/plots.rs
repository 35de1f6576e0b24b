//! The shapes a story can have.
//!
//! Keys: `H` is the hero's name, `Hn` the noun, `Ha` article, adjective and noun, `he`, `him`, `his` the pronouns; `F` and
//! `fhe` are the friend's, `U` and `uhe` those of whoever uses the thing, `V` and `vhe` those of whoever is in trouble.
//! `O` is the thing.

/// One shape, sentence by sentence.
#[derive(Debug)]
pub(super) struct Plot {
    /// Whether the friend uses the thing and the hero is in trouble, or the other way round.
    pub friend_helps: bool,
    pub sentences: &'static [&'static str],
}

const OPEN: &str = "[Once upon a time there was {Ha} named {H}. {he} lived {home}.\
|Once there was {Ha} named {H} who lived {home}.\
|There was once {Ha}. {his} name was {H}, and {he} lived {home}.\
|Once upon a time {Ha} lived {home}. {his} name was {H}.]";
const MEET: &str = "[Soon|Then|Later|The next day|On the way] {he} met {Fa} named {F}.";
const USE: &str = "[So {U} {act}|\"I can help you,\" said {U}. {uhe} {act}|{U} wanted to help. {uhe} {act}|Then the {Un} had an idea. {uhe} {act}], and {relief}.";
const THANKS: &str = "[\"Thank you, {U}!\" said {V}.|\"You are a good friend,\" said {V}.|{V} thanked {uhim} and smiled.|\"Thank you!\" said the {Vn}. \"Now I am happy again.\"|{V} was very happy and thanked {U}.]";
const END: &str = "[From that day on they were good friends.|{H} and {F} were friends ever after.|Then they went home together, and both were happy.|{H} and {F} never forgot that day.|After that they met every day.|And so the {Hn} and the {Fn} became friends.]";

const FIND: Plot = Plot {
    friend_helps: false,
    sentences: &[
        OPEN,
        "[One day|One morning|One evening] {he} found {Oa} [under a tree|beside the road|near an old wall|in the tall grass|on the way to the market].",
        "@a {O} {can}, so [{he} kept it|{he} took it along|{H} was glad to have it].",
        MEET,
        "{trouble}",
        USE,
        THANKS,
        END,
    ],
};

const LOST: Plot = Plot {
    friend_helps: false,
    sentences: &[
        OPEN,
        "{he} had {Oa} and loved it, because it {can}.",
        "[One day|One morning] the {O} was gone. {H} looked [behind the house|under the table|in every corner], but it was not there, and {he} [began to cry|was sad].",
        "{Fa} named {F} [heard {him}|saw {him}] and came to help.",
        "They looked for a long time. At last they found the {O} [in the tall grass|behind a big stone|under some leaves|near the old bridge].",
        "[{trouble} {H} {act}, and {relief}.|\"There it is!\" said {F}, and {H} laughed.|{H} was so happy that {he} danced.]",
        "[\"Thank you for your help,\" said {H}.|\"I would not have found it without you,\" said {H}.|{H} thanked {F}.]",
        END,
    ],
};

const FAIL: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "{his} best friend was {Fa} named {F}.",
        "[One day|One evening|One cold day] they went out together, and {H} took {Oa} along, because @a {O} {can}.",
        "[But on the way|But soon|Suddenly] the {O} {fail}.",
        "Now {without}.",
        "[\"What shall we do?\" asked {H}.|{H} was afraid.|\"This is bad,\" said {H}.]",
        "[But {F} was not afraid|\"Do not worry,\" said {F}|But the {Fn} had an idea]. {fhe} {fix}.",
        "[Then|So|And then] {again}.",
        "[\"Well done!\" said {H}.|\"You are clever,\" said {H}.|{H} thanked {fhim}.|They laughed and went home.]",
    ],
};

const GIFT: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "{H} had a friend, {Fa} named {F}, and {fhe} had a birthday.",
        "{H} [worked all week and bought {Oa}|made {Oa} with {his} own hands|found {Oa} at the market], because @a {O} {can}.",
        "[\"This is for you,\" said {H}.|{he} gave it to {F}.] {F} was so happy that {fhe} [danced|sang|laughed].",
        "[On the same day|The next day|A week later] {H} needed help. {trouble}",
        "{F} remembered the gift. {fhe} {act}, and {relief}.",
        "[\"A good gift comes back,\" said {F}.|\"Now your gift has helped you too,\" said {F}.|{H} thanked {fhim}.]",
        END,
    ],
};

const QUARREL: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "[One day|One morning] {H} and {Fa} named {F} found {Oa} [in the forest|on the road|in the grass].",
        "\"It is mine,\" said {H}. \"No, it is mine,\" said {F}.",
        "They both pulled, and the {O} {fail}.",
        "[Now they were both sad|Then {without}|Now nobody had it].",
        "\"I am sorry,\" said {H}. \"I am sorry too,\" said {F}.",
        "{F} {fix}, and [{again}|{H} helped {fhim}].",
        "[From that day on they shared the {O}.|Now the {O} belonged to both of them.|They learned that it is better to share.]",
    ],
};

const EARN: Plot = Plot {
    friend_helps: false,
    sentences: &[
        OPEN,
        "{he} wanted @a {O} more than anything, because @a {O} {can}, but {he} had no money.",
        "So {H} went to {Fa} named {F} and asked for work.",
        "For three days {he} [carried water|swept the floor|picked apples|cut the grass], and {he} never complained.",
        "[\"You worked well,\" said {F}, and {fhe} gave {him} {Oa}.|Then {F} gave {him} {Oa} and said, \"You have earned it.\"]",
        "[On the way home|On the next day|Soon after] {he} could use it. {trouble}",
        "{H} came at once. {he} {act}, and {relief}.",
        "[\"I am glad that I gave it to you,\" said {F}.|\"Now you have helped me,\" said {F}.|{F} was glad and thanked {him}.]",
    ],
};

const LEND: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "[One day {he} was in trouble.|But one day {he} had bad luck.|One day {he} needed help.]",
        "{trouble}",
        "[{H} called for help|\"Help!\" called {H}|{H} did not know what to do]. [{Fa} named {F} heard {him}|Then {Fa} named {F} came by].",
        "{F} had {Oa} with {fhim}. {fhe} {act}, and {relief}.",
        "[\"How can I thank you?\" asked {H}. \"Be my friend,\" said {F}.|\"Thank you, {F}!\" said {H}. \"I am glad that you came.\"]",
        "[{F} gave {H} the {O}, and {he} kept it for a long time.|{H} never forgot that @a {O} {can}.|]",
        END,
    ],
};

const RAIN: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "[One day|One evening] {H} was far from home when it began to [rain|snow].",
        "{he} got wet and cold, and [the wind was strong|it grew dark].",
        "{he} knocked at a door. {Fa} named {F} opened it.",
        "[\"Come in and sit by the fire,\" said {F}.|\"You are cold! Come in,\" said {F}.]",
        "{F} gave {him} [warm soup|hot tea|bread and milk], and soon {H} was warm and dry.",
        "In the morning the sun came out, and {H} [went home|helped {F} in the garden].",
        END,
    ],
};

const RACE: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "{Fa} named {F} lived close by. \"I am faster than you,\" said {F}.",
        "So they ran a race to [the old oak tree|the bridge|the top of the hill].",
        "{F} ran so fast that {fhe} [fell over a stone|fell into the mud], and {fhe} could not get up.",
        "{H} could have won, but {he} stopped and helped {fhim} up.",
        "They walked to the end side by side. \"You are a true friend,\" said {F}.",
        "[After that nobody asked who was faster.|\"A friend is better than a race,\" said {H}.]",
    ],
};

const SORRY: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "{he} was a friend of {Fa} named {F}.",
        "[One day|One morning] {H} [ate {F}'s honey|broke {F}'s cup] and told nobody.",
        "{F} was sad, and {H} felt [bad|ashamed].",
        "At last {he} said, \"It was me. I am sorry.\"",
        "[\"I am glad that you told me,\" said {F}.|{F} was quiet for a while. Then {fhe} smiled.]",
        "{H} [brought new honey|made {fhim} a new cup|helped {fhim} all day], and they were friends again.",
    ],
};

const SEEK: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "{he} played every day with {Fa} named {F}.",
        "[One day|One morning] {F} did not come, and {H} was worried.",
        "{he} went to look for {fhim} [in the forest|by the river|in the hills]. {he} called and called.",
        "At last {he} heard a small voice. {F} had hurt {fhis} foot and could not walk.",
        "{H} helped {fhim} home and stayed with {fhim} until {fhe} was well.",
        "[\"You came to find me,\" said {F}. \"I will never forget it.\"|{F} thanked {him}, and the next day they played again.]",
    ],
};

const PLANT: Plot = Plot {
    friend_helps: true,
    sentences: &[
        OPEN,
        "[One day|One morning|In spring] {he} found a seed and put it into the ground.",
        "{Fa} named {F} came by and laughed. \"That is only a seed,\" said {F}.",
        "But {H} gave it water every day, and {he} waited.",
        "The seed became a tree, and in autumn it was full of [red apples|sweet pears|plums].",
        "Now {F} was sorry that {fhe} had laughed. {H} gave {fhim} the best fruit.",
        "[They sat under the tree and ate together.|\"Good things take time,\" said {H}.]",
    ],
};

pub(super) const WITH_OBJECT: &[&Plot] = &[&FIND, &LOST, &FAIL, &GIFT, &QUARREL, &EARN, &LEND];
pub(super) const WITHOUT_OBJECT: &[&Plot] = &[&RAIN, &RACE, &SORRY, &SEEK, &PLANT];
