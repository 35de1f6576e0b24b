"""Writes score_golden.txt: random evidence, and what the documented formula makes of it.

Run from this directory: python3 score_golden.py > score_golden.txt
"""
import random
import struct

source = {}
exec(open("../src/reputation/score.py").read(), source)
DAY, NOW = source["DAY"], 1_790_000_000_000
draw = random.Random(7)
nodes = [draw.randbytes(32) for _ in range(9)]
me = nodes[0]
about = {}
print("now", NOW)
print("me", me.hex())
for _ in range(360):
    signer, subject = draw.choice(nodes + [me] * 6), draw.choice(nodes[1:])
    finding = draw.choices(["pass", "inconclusive", "withheld", "fraud", "false-word", "equivocation"], [60, 8, 4, 4, 2, 3])[0]
    if signer == me and subject in nodes[1:5]:
        finding = "pass"
    at = NOW - draw.choice([draw.randrange(100 * DAY), draw.randrange(3 * DAY), -draw.randrange(20 * 60 * 1000)])
    digest, topic = draw.randbytes(32), draw.randbytes(1) * 32
    piece = {"digest": digest, "subject": subject, "signer": signer, "topic": topic, "finding": finding, "at_ms": at}
    about.setdefault(subject, []).append(piece)
    print("evidence", digest.hex(), subject.hex(), signer.hex(), topic.hex(), finding, at)
trust = source["trusts"](about, NOW, me)
for node in nodes[1:]:
    value = source["score"](about[node], NOW, me, trust)
    bits = [struct.pack(">d", x).hex() for x in (value, trust(node))]
    until = source["banned"](source["counted"](about[node], NOW), me)
    print("score", node.hex(), *bits, until, value, trust(node))
