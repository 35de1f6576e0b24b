//! Stop strings, however the text is cut.

use consortium_inference::stops::StopMatcher;
use proptest::prelude::*;

fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
    let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect());
    let mut out = String::new();
    for piece in pieces {
        let step = matcher.push(piece);
        out += &step.text;
        if step.matched {
            return (out, true);
        }
    }
    out += &matcher.finish();
    (out, false)
}

#[test]
fn cuts_before_the_stop_string() {
    assert_eq!(run(&["END"], &["one E", "N", "D two"]), ("one ".into(), true));
    assert_eq!(run(&["END"], &["one E", "NOUGH"]), ("one ENOUGH".into(), false));
    assert_eq!(run(&["END"], &["one EN"]), ("one EN".into(), false));
    assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
    assert_eq!(run(&[""], &["a", "b"]), ("ab".into(), false));
    assert_eq!(run(&["ab", "xaby"], &["xaby"]), ("x".into(), true));
    assert_eq!(run(&["b", "ab"], &["ab"]), (String::new(), true));
    assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
    assert_eq!(run(&["é!"], &["caf", "é", "!"]), ("caf".into(), true));
}

#[test]
fn holds_back_no_more_than_it_must() {
    let mut matcher = StopMatcher::new(vec!["\n\n".into()]);
    assert_eq!(matcher.push("line\n").text, "line");
    assert_eq!(matcher.push("next").text, "\nnext");
    assert!(matcher.push("\n\n").matched);
    assert_eq!(matcher.push("more").text, "");
    assert_eq!(matcher.finish(), "");
}

proptest! {
    #[test]
    fn the_cut_makes_no_difference(
        text in "[abé]{0,40}",
        stops in prop::collection::vec("[abé]{1,4}", 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let single: Vec<&str> = chars.iter().map(String::as_str).collect();
        let expected = run(&stops, &single);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
        at.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for to in at.into_iter().chain([chars.len()]) {
            pieces.push(chars[from..to].concat());
            from = to;
        }
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(run(&stops, &pieces), expected.clone());
        for stop in &stops {
            prop_assert!(!expected.0.contains(stop));
        }
        prop_assert!(text.starts_with(&expected.0));
        prop_assert_eq!(expected.1, stops.iter().any(|stop| text.contains(stop)));
    }
}
