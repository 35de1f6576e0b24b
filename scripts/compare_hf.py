"""Compares logits with those of Hugging Face transformers in float32, whole and split into stages.

    python scripts/compare_hf.py BINARY MODEL_DIR

BINARY is consortium-node. Prints the largest absolute difference of each comparison, and fails above 1e-3.
"""

import json
import subprocess
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

LIMIT = 1e-3
POSITIONS = 64


def splits(layers: int) -> list[list[str]]:
    """No split, halves, and every layer for itself."""
    half = max(layers // 2, 1)
    halves = [f"0-{half - 1}"] + ([f"{half}-{layers - 1}"] if half < layers else [])
    return [[], halves, [f"{layer}-{layer}" for layer in range(layers)]]


def ours(binary: str, model: str, tokens: list[int], split: list[str]) -> np.ndarray:
    command = [binary, "model", "logits", model, "--tokens", ",".join(map(str, tokens)), "--json"]
    if split:
        command += ["--layers-split", ",".join(split)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return np.array(json.loads(output)["logits"], dtype=np.float32)


def main() -> int:
    binary, model = sys.argv[1:]
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
    config = reference.config
    generator = np.random.default_rng(1)
    worst = 0.0
    for positions in (1, POSITIONS):
        tokens = generator.integers(0, config.vocab_size, positions).tolist()
        with torch.no_grad():
            theirs = reference(torch.tensor([tokens])).logits[0].numpy()
        for split in splits(config.num_hidden_layers):
            logits = ours(binary, model, tokens, split)
            assert logits.shape == theirs.shape, (logits.shape, theirs.shape)
            difference = float(np.abs(logits - theirs).max())
            agree = int((logits.argmax(-1) == theirs.argmax(-1)).sum())
            name = ",".join(split) if 0 < len(split) < 4 else f"{max(len(split), 1)} stage(s)"
            print(f"{positions:>3} positions, {name}: largest difference {difference:.2e}, same best token {agree}/{positions}")
            worst = max(worst, difference)
    print(f"largest difference {worst:.2e}, allowed {LIMIT:.0e}")
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
