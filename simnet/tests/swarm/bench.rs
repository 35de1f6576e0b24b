//! `simnet bench`.

use crate::support::Place;

#[test]
fn a_pipeline_says_what_one_node_says() {
    let place = Place::new();
    let file = place.path("bench.json");
    let sizes = ["--stages", "3", "--pairs", "3", "--tokens", "8", "--concurrency", "2"];
    let arguments = [&["bench", "--json", file.to_str().unwrap()][..], &sizes].concat();
    // Different texts, greedy or sampled, would be an error.
    let table = place.succeed("unused", &arguments);
    assert!(table.lines().count() == 2 && table.contains("tok/s"), "{table}");

    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(document["results"][0]["nodes"], 3);
    assert!(document["results"][0]["ratio"].as_f64().unwrap() > 0.0);
}
