use consortium_training::run::replay::Replayed;

use super::*;

/// A whole run on this machine: what it leaves can be served and replayed.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_leaves_a_model_and_its_log() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("model");
    let svg = directory.path().join("run.svg");
    let plan = PlanArgs::of("nano", 2);
    run(LocalArgs { out: out.clone(), peers: 2, validators: 1, plan, svg: Some(svg.clone()), json: true })
        .await
        .unwrap();
    for name in consortium_training::export::MODEL_FILES.into_iter().chain(["loss.svg", "README.md", "run/spec.cbor"]) {
        assert!(out.join(name).is_file(), "{name}");
    }
    assert!(!out.join("nodes").exists() && svg.is_file());
    let archive = Archive::open(&out.join("run")).unwrap();
    let done: Replayed = replay(&archive, Depth::Losses, &mut |_| {}).unwrap();
    let losses = done.losses.as_ref().unwrap();
    assert!(done.holds() && done.sums.last.ended && losses.losses > 0 && losses.unchecked_cards == 0, "{losses:?}");
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains(&done.run.to_string()) && card.contains("train replay run --losses"), "{card}");
    let again = LocalArgs { out, peers: 2, validators: 1, plan: PlanArgs::of("nano", 1), svg: None, json: true };
    assert!(run(again).await.unwrap_err().to_string().contains("is not empty"));
}

/// The same on text of one's own, which comes to lie beside the log, so that the losses can be computed again.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_on_text_that_somebody_brings_leaves_the_rows_too() {
    let directory = tempfile::tempdir().unwrap();
    let (out, text) = (directory.path().join("model"), directory.path().join("my stories.jsonl"));
    std::fs::write(&text, crate::train::tests::stories_as_lines(300)).unwrap();
    let plan = PlanArgs::of("nano", 2).on(&text);
    run(LocalArgs { out: out.clone(), peers: 2, validators: 1, plan, svg: None, json: true }).await.unwrap();
    let archive = Archive::open(&out.join("run")).unwrap();
    let spec = archive.spec().unwrap();
    assert_eq!(spec.payload().data.name, "rows/mystories");
    let done: Replayed = replay(&archive, Depth::Losses, &mut |_| {}).unwrap();
    let losses = done.losses.as_ref().unwrap();
    assert!(done.holds() && done.sums.last.ended && losses.losses > 0 && losses.unchecked_cards == 0, "{losses:?}");
    let card = std::fs::read_to_string(out.join("README.md")).unwrap();
    assert!(card.contains("license: other") && card.contains("`rows/mystories`: text that who announced"), "{card}");
    let rows = out.join("run/data.rows");
    let refused = || replay(&archive, Depth::Model, &mut |_| {}).map(drop).unwrap_err().to_string();
    let mut bytes = std::fs::read(&rows).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&rows, &bytes).unwrap();
    assert!(refused().contains("data are damaged"), "{}", refused());
    std::fs::remove_file(&rows).unwrap();
    assert!(refused().contains("data.rows: is missing"), "{}", refused());

    // A line that is none is named before anything is made.
    std::fs::write(&text, "{\"text\": \"good\"}\n{\"text\": ").unwrap();
    let plan = PlanArgs::of("nano", 2).on(&text);
    let other = directory.path().join("other");
    let broken = LocalArgs { out: other.clone(), peers: 2, validators: 1, plan, svg: None, json: true };
    let error = format!("{:#}", run(broken).await.unwrap_err());
    assert!(error.contains("my stories.jsonl, line 2: is no JSON"), "{error}");
}
