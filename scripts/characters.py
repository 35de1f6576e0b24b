"""Reads what `simnet train --seeds N --alone --exec` tells on standard input, and says what is not as it should be."""

import json
import re
import sys
from statistics import mean

ATTACKERS = ("free-rider", "plagiarist", "poisoner", "stale")

results = json.load(sys.stdin)
runs = results["runs"]
wrong = []


def expect(holds, words):
    print(("ok     " if holds else "WRONG  ") + words)
    if not holds:
        wrong.append(words)


def kind(total):
    """Honest, where a peer is called honest-3."""
    return re.sub(r"-\d+$", "", total["peer"])


def gains(role):
    """What peers of a role gained in all runs, in sat."""
    return [t["gain_msat"] / 1000 for run in runs for t in run["totals"] if kind(t) == role]


honest = [t for run in runs for t in run["totals"] if kind(t) == "honest"]
share = sum(t["accepted_later"] for t in honest) / (len(honest) * runs[0]["rounds_after_warm_up"])
expect(share >= 0.95, f"honest peers are let in in {100 * share:.1f} % of rounds after warm-up, 95 or more")
for role in ATTACKERS:
    if gains(role):
        most = max(gains(role))
        expect(most < 0, f"every {role} ends with less than it began: {most:+.1f} sat at most")
if gains("mediocre"):
    middling, best = mean(gains("mediocre")), mean(gains("honest"))
    expect(0 < middling < best, f"the mediocre gain {middling:+.0f} sat, the honest {best:+.0f}")
pairs = [{curve["name"]: curve["points"][-1]["loss"] for curve in run["curves"]} for run in runs]
gaps = [100 * (pair["the run"] / pair["the honest alone"] - 1) for pair in pairs if "the honest alone" in pair]
if gaps:
    words = f"held-out loss is {mean(gaps):+.1f} % of that of the honest alone ({min(gaps):+.1f} to {max(gaps):+.1f})"
    expect(mean(gaps) <= 1, words)
sys.exit(1 if wrong else 0)
