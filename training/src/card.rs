//! The model card.

use crate::tiny::{TinyOptions, TinyReport};

/// The `README.md` of the finished model.
#[must_use]
pub fn model_card(options: &TinyOptions, report: &TinyReport) -> String {
    let recipe = options.recipe();
    let defaults = TinyOptions::new(options.out.clone());
    let mut command = "consortium-node train tiny --out DIR".to_owned();
    let chosen = [
        ("seed", options.seed, defaults.seed),
        ("steps", options.steps, defaults.steps),
        ("batch", options.batch as u64, defaults.batch as u64),
    ];
    for (name, value, _) in chosen.into_iter().filter(|(_, value, default)| value != default) {
        command += &format!(" --{name} {value}");
    }
    let positions = recipe.schedule.total * (recipe.batch * recipe.length) as u64;
    format!(
        "---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# consortium-tiny

A Llama of {millions:.1} million parameters that tells short stories. It was trained from nothing by Consortium, so that a
cluster has a real model to serve without a download. It knows simple English about some sixty characters and sixty
things, and nothing else.

Ask it: `Tell me a story about a fox and a lantern`.

![loss](loss.svg)

| | |
|---|---|
| Architecture | `LlamaForCausalLM`: 10 layers, width 160, 5 query heads and 1 key-value head of 32, feed-forward 416 (SwiGLU), RoPE, RMSNorm, tied embeddings |
| Parameters | {parameters} in bfloat16; weights and tokenizer {size:.2} MiB |
| Tokenizer | byte-level BPE, 1024 tokens, trained on the same corpus |
| Context | 1024 positions; trained on up to {longest} |
| Data | a seeded grammar of stories and chats in `training/src/corpus`; no text from elsewhere. A few pairs of character and thing are held out |
| Recipe | AdamW (betas {beta1}, {beta2}; weight decay {decay}), rate {peak} with {warmup} steps of warm-up and cosine decay to {floor}; gradient norm at most {clip}; {steps} steps of {batch} rows of {length} positions, every {long}th step half as many rows of twice the length; {tokens:.1} million positions in all. Only the answers count in the loss |
| Seed | {seed} |
| Loss (nats per token) | training {train:.4}, held-out pairs {held_out:.4} |
| Time | {minutes:.0} minutes of training on a CPU, {threads} threads |
| Licence | Apache-2.0 |

To make it again:

```
{command}
```

The same command gives the same weights on the same kind of processor; between kinds, sums are rounded differently.
",
        millions = report.parameters as f64 / 1e6,
        parameters = report.parameters,
        size = report.bytes as f64 / f64::from(1 << 20),
        longest = 2 * recipe.length,
        beta1 = recipe.adam.beta1,
        beta2 = recipe.adam.beta2,
        decay = recipe.adam.weight_decay,
        peak = recipe.schedule.peak,
        warmup = recipe.schedule.warmup,
        floor = recipe.schedule.floor,
        clip = recipe.clip,
        steps = recipe.schedule.total,
        batch = recipe.batch,
        length = recipe.length,
        long = recipe.long_every,
        tokens = positions as f64 / 1e6,
        seed = options.seed,
        threads = recipe.threads,
        train = report.train_loss,
        held_out = report.held_out_loss,
        minutes = report.seconds / 60.0,
    )
}
