use consortium_protocol::wire::audit::Compute;
use safetensors::tensor::Dtype;

use super::*;

#[allow(dead_code)]
#[path = "../tests/engine/support/mod.rs"]
mod support;

use support::{Tiny, tokens};

/// Logits of all positions, the tokens given in batches of these sizes in turn.
fn logits(shard: &Shard, tokens: &[u32], batches: &[usize]) -> Vec<f32> {
    let mut cache = shard.cache(tokens.len() as u32).unwrap();
    let mut out = Vec::new();
    let mut pos = 0;
    for batch in batches.iter().cycle() {
        if pos == tokens.len() {
            return out;
        }
        let end = tokens.len().min(pos + batch);
        let input = StageInput::Tokens(&tokens[pos..end]);
        let StageOutput::Logits(logits) = shard.forward_rows(&mut cache, input, pos, HeadRows::All).unwrap() else {
            panic!("a whole model gives logits");
        };
        out.extend(logits.flatten_all().unwrap().to_vec1::<f32>().unwrap());
        pos = end;
    }
    out
}

fn load(tiny: &Tiny, kernels: Kernels) -> Shard {
    let model = tiny.write();
    let dir = ModelDir::open(&model.path).unwrap();
    Shard::load_with(&dir, dir.all_layers(), &Device::Cpu, kernels).unwrap()
}

#[test]
fn batches_change_no_bit() {
    let base = Tiny { layers: 3, ..Tiny::default() };
    for tiny in [
        base.clone(),
        Tiny { dtype: Dtype::BF16, tied: true, ..base.clone() },
        Tiny { hidden: 45, inner: 77, vocab: 101, dtype: Dtype::BF16, ..base.clone() },
        Tiny { hidden: 128, heads: 4, kv_heads: 2, head_dim: 32, inner: 160, ..base },
    ] {
        let shard = load(&tiny, Kernels::Own);
        let tokens = tokens(300, tiny.vocab, 1);
        let alone = logits(&shard, &tokens, &[1]);
        for batches in [&[256][..], &[2, 3, 5, 7], &[64, 1], &[300]] {
            let batched = logits(&shard, &tokens, batches);
            assert!(alone.iter().zip(&batched).all(|(a, b)| a.to_bits() == b.to_bits()), "{batches:?}");
        }
    }
}

#[test]
fn both_implementations_agree() {
    for tiny in [
        Tiny { layers: 3, ..Tiny::default() },
        Tiny { layers: 2, kv_heads: 6, dtype: Dtype::BF16, ..Tiny::default() },
        Tiny { layers: 2, tied: true, dtype: Dtype::F16, hidden: 64, heads: 4, head_dim: 16, ..Tiny::default() },
    ] {
        let tokens = tokens(70, tiny.vocab, 1);
        let own = logits(&load(&tiny, Kernels::Own), &tokens, &[30, 1]);
        let candle = logits(&load(&tiny, Kernels::Candle(Compute::F32)), &tokens, &[30, 1]);
        let largest = own.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let worst = own.iter().zip(&candle).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 3e-5 * largest, "{worst} of {largest}");
    }
}
