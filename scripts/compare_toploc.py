"""Compares TOPLOC with this project's audits on the activations of `simnet audit-bench --activations DIR`.

    python scripts/compare_toploc.py DIR

For every block of 32 rows the auditee's TOPLOC proof (128 largest values, as bf16) is verified against the auditor's
recomputed rows. It is rejected by the thresholds of the TOPLOC paper (arXiv:2501.16007: more than 38 exponents that
differ, a mean error of the mantissas above 10, or a median above 8), and, as the best it could do on this data, by the
largest values that honest work of the same two classes reaches here, so that it has no false positive by construction.
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from toploc import build_proofs_bytes, verify_proofs_bytes

ROWS = 32
TOPK = 128
PAPER = (38, 10, 8)


def load(directory: Path, name: str, width: int) -> torch.Tensor:
    values = np.fromfile(directory / name, dtype="<f4").reshape(-1, width)
    return torch.from_numpy(values).to(torch.bfloat16)


class Count:
    """Shares of blocks by pair of classes."""

    def __init__(self) -> None:
        self.blocks = 0
        self.fraud = 0
        self.doubt = 0
        self.paper = 0
        self.statistics: list[tuple[float, ...]] = []
        self.pairs: list[tuple[str, str]] = []

    def fitted(self, limits: dict, pairs: set | None = None) -> tuple[int, int]:
        chosen = [(s, p) for s, p in zip(self.statistics, self.pairs) if pairs is None or p in pairs]
        return sum(any(v > l for v, l in zip(s, limits[p])) for s, p in chosen), len(chosen)


def percent(hits: int, total: int) -> str:
    return "-" if total == 0 else f"{100 * hits / total:.2f} %"


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def main() -> int:
    directory = Path(sys.argv[1])
    index = json.loads((directory / "index.json").read_text())
    width = index["width"]
    torch.set_num_threads(1)
    recomputed = {(r["inputs"], r["auditor"]): r["file"] for r in index["recomputed"]}
    counts: dict[str, Count] = defaultdict(Count)
    proof_bytes, proof_rows, building, verifying, verified, ours_micros = 0, 0, 0.0, 0.0, 0, 0.0
    for observed in index["observed"]:
        rows = load(directory, observed["file"], width)
        started = time.perf_counter()
        proofs = build_proofs_bytes(list(rows), ROWS, TOPK, skip_prefill=True)
        building += time.perf_counter() - started
        proof_bytes += sum(len(proof) for proof in proofs)
        proof_rows += len(rows)
        count = counts[observed["cheat"] or "honest"]
        for verdict in observed["verdicts"]:
            theirs = load(directory, recomputed[(observed["inputs"], verdict["auditor"])], width)
            started = time.perf_counter()
            results = verify_proofs_bytes(theirs, proofs, ROWS, TOPK, skip_prefill=True)
            verifying += time.perf_counter() - started
            verified += len(results)
            ours_micros += verdict["micros"]
            for counted, finding, result in zip(observed["counted"], verdict["blocks"], results):
                if not counted:
                    continue
                statistics = (result.exp_mismatches, result.mant_err_mean, result.mant_err_median)
                count.blocks += 1
                count.fraud += finding == "Fraud"
                count.doubt += finding != "Pass"
                count.paper += any(value > limit for value, limit in zip(statistics, PAPER))
                count.statistics.append(statistics)
                count.pairs.append((verdict["auditor"], observed["auditee"]))
    limits: dict[tuple[str, str], tuple[float, ...]] = {}
    for statistics, pair in zip(counts["honest"].statistics, counts["honest"].pairs):
        before = limits.get(pair, (0.0, 0.0, 0.0))
        limits[pair] = tuple(max(a, b) for a, b in zip(before, statistics))
    half = {pair for pair in limits if pair[1].endswith("bf16")}
    header = ["blocks called fraud", "blocks", "ours", "ours, not passed", "TOPLOC, paper", "TOPLOC, fitted", "the same on bf16 work"]
    lines = [header]
    for name, count in counts.items():
        lines.append([
            name, str(count.blocks), percent(count.fraud, count.blocks), percent(count.doubt, count.blocks),
            percent(count.paper, count.blocks), percent(*count.fitted(limits)), percent(*count.fitted(limits, half)),
        ])
    lines.append([""] * len(header))
    lines.append(["bytes of a proof per token", "", "receipts alone", "", f"{proof_bytes / proof_rows:.2f}", "", ""])
    lines.append(["making a proof, us per block", "", "", "", f"{1e6 * building * ROWS / proof_rows:.0f}", "", ""])
    lines.append([
        "verifying, us per block", "", f"{ours_micros / verified:.0f}", "", f"{1e6 * verifying / verified:.0f}", "", "",
    ])
    print(f"{index['model']}, {width} wide; both recompute the stage first, which is not counted here")
    print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
