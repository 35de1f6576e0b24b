//! A small template language for sentences.
//!
//! `[a|b]` picks one side at random and may nest, `{key}` stands for a word of the scene, `@a` becomes "a" or "an" by
//! the word that follows, and sentences get their capital letters at the end.

use std::collections::BTreeMap;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What `{key}` stands for. Values may themselves hold templates.
pub(super) type Slots = BTreeMap<&'static str, String>;

/// Expands `template` into finished text.
pub(super) fn render(template: &str, slots: &Slots, rng: &mut ChaCha8Rng) -> String {
    let mut text = template.to_owned();
    // Values hold templates of their own, at most two levels deep.
    for _ in 0..4 {
        if !text.contains(['[', '{']) {
            break;
        }
        text = fill(&choose(&text, rng), slots);
    }
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    capitalise(&articles(&words))
}

/// Resolves every `[..|..]`, innermost last.
fn choose(text: &str, rng: &mut ChaCha8Rng) -> String {
    let Some(open) = text.find('[') else {
        return text.to_owned();
    };
    let mut depth = 0usize;
    let mut cuts = vec![open];
    for (at, c) in text.char_indices().skip_while(|(at, _)| *at < open) {
        match c {
            '[' => depth += 1,
            '|' if depth == 1 => cuts.push(at),
            ']' => {
                depth -= 1;
                if depth == 0 {
                    cuts.push(at);
                    break;
                }
            }
            _ => {}
        }
    }
    let pick = rng.random_range(0..cuts.len() - 1);
    let chosen = choose(&text[cuts[pick] + 1..cuts[pick + 1]], rng);
    let end = cuts[cuts.len() - 1] + 1;
    format!("{}{chosen}{}", &text[..open], choose(&text[end..], rng))
}

fn fill(text: &str, slots: &Slots) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let (key, tail) = after.split_once('}').unwrap_or((after, ""));
        out.push_str(slots.get(key).map_or("", String::as_str));
        rest = tail;
    }
    out + rest
}

/// The article that goes before `word`.
pub(super) fn article(word: &str) -> &'static str {
    let silent = word.starts_with("hour") || word.starts_with("honest");
    let vowel = silent || word.starts_with(['a', 'e', 'i', 'o', 'u']) && !word.starts_with("uni");
    if vowel { "an" } else { "a" }
}

fn articles(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let mut out: Vec<String> = Vec::with_capacity(words.len());
    for (index, word) in words.iter().enumerate() {
        let next = words.get(index + 1).copied().unwrap_or("");
        out.push(word.replace("@a", article(next)));
    }
    out.join(" ")
}

fn capitalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut pending, mut previous) = (true, ' ');
    for c in text.chars() {
        if c.is_alphabetic() && pending {
            out.extend(c.to_uppercase());
            pending = false;
        } else {
            out.push(c);
        }
        match c {
            '.' | '!' | '?' => pending = true,
            // Speech begins with a capital; after it the sentence goes on unless the speech ended in a full stop.
            '"' => pending = previous == ' ' || previous == '.',
            _ => {}
        }
        previous = c;
    }
    out
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;

    use super::*;

    #[test]
    fn articles_capitals_and_choices() {
        let slots = Slots::from([("x", "@a [owl|apple]".to_owned()), ("he", "she".to_owned())]);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let text = render(
            "{x} sang. {he} said, \"{he} is [big|[red|small]].\" \"Oh!\" said @a {he} and @a unicorn.",
            &slots,
            &mut rng,
        );
        assert!(text.starts_with("An "), "{text}");
        assert!(text.contains(". She said, \"She is "), "{text}");
        assert!(text.ends_with("\"Oh!\" said a she and a unicorn."), "{text}");
    }
}
