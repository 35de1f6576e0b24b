DAY = 24 * 3600 * 1000
HALF, KEEP, SKEW = 14 * DAY, 90 * DAY, 10 * 60 * 1000
WEIGHT = {"pass": (1.0, 0.0), "inconclusive": (0.0, 0.125), "withheld": (0.0, 4.0),
          "fraud": (0.0, 20.0), "false-word": (0.0, 20.0), "equivocation": (0.0, 20.0)}
BANS = ["fraud", "equivocation"]

def decay(age):
    return 0.0 if age >= KEEP else (1.0 - (age % HALF) / HALF / 2.0) / float(2 ** (age // HALF))

def counted(evidence, now):                  # keys and digests as bytes, at_ms as int
    latest = {}
    for e in evidence:
        if e["signer"] == e["subject"] or e["at_ms"] > now + SKEW:
            continue
        matter = (e["signer"], e["subject"], e["topic"])
        if matter not in latest or (e["at_ms"], e["digest"]) > (latest[matter]["at_ms"], latest[matter]["digest"]):
            latest[matter] = e
    return sorted(latest.values(), key=lambda e: (e["signer"], e["digest"]))

def sums(pieces, now):
    out = {}
    for e in pieces:
        good, bad = WEIGHT[e["finding"]]
        d = decay(max(0, now - e["at_ms"]))
        g, b = out.get(e["signer"], (0.0, 0.0))
        out[e["signer"]] = (g + d * good, b + d * bad)
    return out

def hearsay(said, me, trust):
    good = bad = 0.0
    for s in sorted(said):
        if s != me:
            g, b = said[s]
            w = (5.0 / (g + b) if g + b > 5.0 else 1.0) * trust(s)
            good, bad = good + w * g, bad + w * b
    return good, bad

def banned(pieces, me):                      # until when, 0 if never
    until, times, hour = 0, 0, 3600 * 1000
    for at in sorted(e["at_ms"] for e in pieces if e["signer"] == me and e["finding"] in BANS):
        if at >= until:
            hours = [1, 24, 7 * 24][times] if times < 3 else 30 * 24 << min(times - 3, 12)
            until, times = at + hours * hour, times + 1
    return until

def score(evidence, now, me, trust):
    pieces = counted(evidence, now)
    said = sums(pieces, now)
    g, b = said.get(me, (0.0, 0.0))
    go, bo = hearsay(said, me, trust)
    alpha = 1.0 + g + min(go, 0.5 * g)
    beta = 4.0 + b + min(bo, 0.5 * (g + b) + 1.0)
    return 0.0 if now < banned(pieces, me) else alpha / (alpha + beta)

def trusts(about, now, me):                  # about: subject -> evidence
    above = lambda x: max(0.0, (x - 0.2) / (1.0 - 0.2))
    mine = lambda e, kinds, age: e["signer"] == me and e["finding"] in kinds and now - e["at_ms"] < age
    bad = {n for n, es in about.items() for e in counted(es, now)
           if mine(e, ["false-word"], KEEP) or mine(e, BANS, 1 << 63)}
    first = {n: 0.0 if n in bad else above(score(es, now, me, lambda _: 0.0)) for n, es in about.items()}
    both = {}
    for n, es in about.items():
        if n != me and n not in bad:
            said = sums(counted(es, now), now)
            g, b = said.get(me, (0.0, 0.0))
            go, bo = hearsay(said, me, lambda s: first.get(s, 0.0))
            a, b = 1.0 + g + go, 4.0 + b + bo
            both[n] = max(first[n], 0.5 * above(a / (a + b)))
    return lambda n: both.get(n, 0.0)
