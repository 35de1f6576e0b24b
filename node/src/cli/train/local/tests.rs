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
