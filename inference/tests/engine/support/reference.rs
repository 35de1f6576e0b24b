//! The forward pass written a second time, plainly and in f64, after the definitions in the papers.
#![allow(clippy::needless_range_loop)]

use super::ModelOnDisk;

/// Rotary scaling of the reference.
#[derive(Clone, Copy)]
pub(crate) enum Scaling {
    None,
    Linear(f64),
    /// factor, low_freq_factor, high_freq_factor, original positions
    Llama3(f64, f64, f64, f64),
}

/// Logits of every position.
pub(crate) fn logits(model: &ModelOnDisk, tokens: &[u32], theta: f64, scaling: Scaling) -> Vec<Vec<f64>> {
    let t = &model.tiny;
    let weight = |name: &str| &model.tensors[name].1;
    let embedding = weight("model.embed_tokens.weight");
    let mut rows: Vec<Vec<f64>> = tokens
        .iter()
        .map(|token| {
            let from = *token as usize * t.hidden;
            embedding[from..from + t.hidden].iter().map(|v| f64::from(*v)).collect()
        })
        .collect();
    for layer in 0..t.layers {
        let name = |tensor: &str| format!("model.layers.{layer}.{tensor}.weight");
        let normed: Vec<Vec<f64>> = rows.iter().map(|r| norm(r, weight(&name("input_layernorm")))).collect();
        let project = |tensor: &str, heads: usize, rotated: bool| -> Vec<Vec<Vec<f64>>> {
            normed
                .iter()
                .enumerate()
                .map(|(position, row)| {
                    let flat = apply(weight(&name(tensor)), row);
                    (0..heads)
                        .map(|h| flat[h * t.head_dim..(h + 1) * t.head_dim].to_vec())
                        .map(|head| if rotated { rotate(&head, position, theta, scaling) } else { head })
                        .collect()
                })
                .collect()
        };
        let queries = project("self_attn.q_proj", t.heads, true);
        let keys = project("self_attn.k_proj", t.kv_heads, true);
        let values = project("self_attn.v_proj", t.kv_heads, false);
        for position in 0..rows.len() {
            let mut mixed = Vec::new();
            for head in 0..t.heads {
                let shared = head / (t.heads / t.kv_heads);
                let scores: Vec<f64> = (0..=position)
                    .map(|p| dot(&queries[position][head], &keys[p][shared]) / (t.head_dim as f64).sqrt())
                    .collect();
                let weights = softmax(&scores);
                for d in 0..t.head_dim {
                    mixed.push((0..=position).map(|p| weights[p] * values[p][shared][d]).sum());
                }
            }
            let out = apply(weight(&name("self_attn.o_proj")), &mixed);
            add(&mut rows[position], &out);
        }
        for row in &mut rows {
            let normed = norm(row, weight(&name("post_attention_layernorm")));
            let gate = apply(weight(&name("mlp.gate_proj")), &normed);
            let up = apply(weight(&name("mlp.up_proj")), &normed);
            let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let out = apply(weight(&name("mlp.down_proj")), &inner);
            add(row, &out);
        }
    }
    let head = weight(if t.tied { "model.embed_tokens.weight" } else { "lm_head.weight" });
    rows.iter().map(|row| apply(head, &norm(row, weight("model.norm.weight")))).collect()
}

pub(crate) fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    scores.iter().map(|s| (s - max).exp() / sum).collect()
}

fn rotate(head: &[f64], position: usize, theta: f64, scaling: Scaling) -> Vec<f64> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for i in 0..half {
        let mut frequency = theta.powf(-2.0 * i as f64 / head.len() as f64);
        match scaling {
            Scaling::None => {}
            Scaling::Linear(factor) => frequency /= factor,
            Scaling::Llama3(factor, low, high, original) => {
                let turns = original * frequency / std::f64::consts::TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                frequency = keep * frequency + (1.0 - keep) * frequency / factor;
            }
        }
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        out[i] = head[i] * cos - head[i + half] * sin;
        out[i + half] = head[i] * sin + head[i + half] * cos;
    }
    out
}

fn norm(row: &[f64], weight: &[f32]) -> Vec<f64> {
    let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
    row.iter().zip(weight).map(|(v, w)| v / (mean + 1e-5).sqrt() * f64::from(*w)).collect()
}

fn apply(weight: &[f32], row: &[f64]) -> Vec<f64> {
    weight.chunks(row.len()).map(|w| w.iter().zip(row).map(|(a, b)| f64::from(*a) * b).sum()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
}
