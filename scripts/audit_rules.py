"""What follows from signed statements: signatures, trees and scores, as the documentation of the protocol (envelopes,
Merkle trees) and of the ledger (reputation) has them. Pure functions; the asking is done in audit_swarm.py.
"""

from dataclasses import dataclass

import cbor2
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
PEER_ID_HEAD = bytes.fromhex("002408011220")
DAY_MS = 24 * 3600 * 1000
KEPT_MS, HALF_LIFE_MS, AHEAD_MS = 90 * DAY_MS, 14 * DAY_MS, 10 * 60 * 1000
GOOD_AND_BAD = {
    "pass": (1.0, 0.0),
    "inconclusive": (0.0, 0.125),
    "withheld": (0.0, 4.0),
    "fraud": (0.0, 20.0),
    "false-word": (0.0, 20.0),
    "equivocation": (0.0, 20.0),
}
FAILURES = ("fraud", "withheld")
BANS = ("fraud", "equivocation")


class Disagreement(Exception):
    """What a node says is not what follows from its evidence."""


def check(holds, *what):
    if not holds:
        raise Disagreement(" ".join(str(part) for part in what))


def key_of(peer_id):
    """The 32 bytes of the Ed25519 key that a PeerId names."""
    number = 0
    for char in peer_id:
        number = number * 58 + BASE58.index(char)
    zeros = len(peer_id) - len(peer_id.lstrip("1"))
    data = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    check(len(data) == 38 and data.startswith(PEER_ID_HEAD), "not the PeerId of an Ed25519 key:", peer_id)
    return data[6:]


def canonical(value):
    return cbor2.dumps(value, canonical=True)


def decode(data):
    value = cbor2.loads(data)
    check(canonical(value) == data, "a statement is not in canonical form")
    return value


def derived(context, material):
    return blake3(material, derive_key_context=context).digest()


@dataclass(frozen=True)
class Statement:
    """A signed statement whose signature was verified."""

    digest: bytes
    signer: bytes
    body: dict


def opened(signed, domain, version=1):
    """Reads a signed statement from its bytes, or from their hexadecimal digits."""
    data = bytes.fromhex(signed) if isinstance(signed, str) else signed
    envelope = decode(data)
    check(set(envelope) == {"by", "sig", "body", "v"}, "not an envelope")
    check(envelope["v"] == version, "not of version", version)
    preimage = b"consortium/" + domain.encode() + b"\0" + version.to_bytes(2, "little") + envelope["body"]
    try:
        Ed25519PublicKey.from_public_bytes(envelope["by"]).verify(envelope["sig"], preimage)
    except (InvalidSignature, ValueError):
        raise Disagreement(f"the signature of a {domain} does not verify") from None
    return Statement(blake3(data).digest(), envelope["by"], decode(envelope["body"]))


# --- Merkle trees: RFC 6962 over BLAKE3 -------------------------------------------------------------------------------


def leaf_hash(entry):
    return blake3(b"\0" + entry).digest()


def node_hash(left, right):
    return blake3(b"\1" + left + right).digest()


def tree_root(leaves):
    if not leaves:
        return blake3(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(tree_root(leaves[:split]), tree_root(leaves[split:]))


def climb(leaf, index, size, path):
    """The root that an inclusion proof leads to: a walk from the root down tells on which side each hash belongs."""
    sides, start, end = [], 0, size
    while end - start > 1:
        split = start + (1 << (end - start - 1).bit_length() - 1)
        sides.append(index >= split)
        start, end = (split, end) if index >= split else (start, split)
    check(len(sides) == len(path), "an inclusion proof has", len(path), "hashes, and should have", len(sides))
    node = leaf
    for right, beside in zip(reversed(sides), path):
        node = node_hash(beside, node) if right else node_hash(node, beside)
    return node


def grew(old_root, old_size, new_size, path):
    """The roots of the old and the new tree that a consistency proof leads to."""
    sides, start, end, whole = [], 0, new_size, True
    while old_size < end:
        split = start + (1 << (end - start - 1).bit_length() - 1)
        right = old_size > split
        sides.append(right)
        start, end = (split, end) if right else (start, split)
        whole = whole and not right
    hashes = [bytes.fromhex(text) for text in path]
    check(len(hashes) == len(sides) + (not whole), "a consistency proof is of the wrong length")
    older = newer = old_root if whole else hashes.pop(0)
    for right, beside in zip(reversed(sides), hashes):
        newer = node_hash(beside, newer) if right else node_hash(newer, beside)
        older = node_hash(beside, older) if right else older
    return older, newer


# --- reputation -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A piece of evidence, read from the signed statement and from nothing else."""

    digest: bytes
    subject: bytes
    signer: bytes
    topic: bytes
    finding: str
    at_ms: int


STATEMENTS = {"false-word": "rebuttal", "equivocation": "equivocation-seen"}


def contradiction(proof):
    """Who signed two journals, and how many entries it takes to see it."""
    check(len(proof) == 1, "not a proof of equivocation")
    ((kind, both),) = proof.items()
    check(kind in ("Roots", "Leaves") and set(both) == {"a", "b"}, "not a proof of equivocation")
    if kind == "Roots":
        a, b = (opened(both[side], "tree-head") for side in "ab")
        check(a.body["size"] == b.body["size"] and a.body["root"] != b.body["root"], "two heads do not contradict")
        size = a.body["size"]
    else:
        a, b = (opened(both[side]["head"], "tree-head") for side in "ab")
        for head, side in ((a, both["a"]), (b, both["b"])):
            way = side["proof"]
            check(way["size"] == head.body["size"], "a leaf is proved in a tree of another size")
            root = climb(side["leaf"], way["index"], way["size"], way["path"])
            check(way["index"] < way["size"] and root == head.body["root"], "a leaf is not under its head")
        check(both["a"]["proof"]["index"] == both["b"]["proof"]["index"], "two leaves of different places")
        check(both["a"]["leaf"] != both["b"]["leaf"], "two leaves do not contradict")
        size = both["a"]["proof"]["index"] + 1
    check(a.signer == b.signer, "two heads of different nodes")
    return a.signer, size


def piece_of(view):
    """Reads a piece of evidence from its statement, and checks what the node says of it."""
    said = opened(view["signed"], STATEMENTS.get(view["finding"], "verdict"))
    body = said.body
    if view["finding"] == "false-word":
        subject, matter, finding = body["accuser"], body["verdict"], "false-word"
    elif view["finding"] == "equivocation":
        (subject, matter), finding = contradiction(body["proof"]), "equivocation"
    else:
        subject, matter = body["auditee"], [body["job"], body["attempt"], body["stage"]]
        finding = body["outcome"].lower()
        check((finding == "fraud") == (body["proof"] is not None), "a verdict names a proof that it should not")
    topic = derived("consortium evidence topic 1", canonical(matter))
    piece = Piece(said.digest, subject, said.signer, topic, finding, body["at_ms"])
    told = (view["digest"], view["topic"], view["finding"], view["at_ms"])
    check(told == (piece.digest.hex(), topic.hex(), finding, piece.at_ms), "evidence is misquoted:", told)
    named = (key_of(view["subject"]), key_of(view["signer"]))
    check(named == (subject, said.signer), "evidence is told to be by or about somebody else")
    return piece


class Judge:
    """What follows from evidence (by whom it is about) in the eyes of `me` at a time."""

    def __init__(self, evidence, me, now):
        self.me, self.now = me, now
        self.about = {node: self._counting(pieces) for node, pieces in evidence.items()}
        self.said = {node: self._sums(pieces) for node, pieces in self.about.items()}
        self.firsthand, self.trusted = {}, {}
        for node in self.about:
            alone = self.score(node, {})["score"]
            self.firsthand[node] = 0.0 if self._disgraced(node) else self._above_newcomer(alone)
        for node in self.about:
            if node != me and not self._disgraced(node):
                good_me, bad_me = self.said[node].get(me, (0.0, 0.0))
                good_o, bad_o = self._hearsay(node, self.firsthand)
                a, b = 1.0 + good_me + good_o, 4.0 + bad_me + bad_o
                self.trusted[node] = max(self.firsthand[node], 0.5 * self._above_newcomer(a / (a + b)))

    def _counting(self, pieces):
        latest = {}
        for piece in pieces:
            if piece.signer != piece.subject and piece.at_ms <= self.now + AHEAD_MS:
                place = (piece.signer, piece.topic)
                other = latest.get(place)
                if other is None or (other.at_ms, other.digest) < (piece.at_ms, piece.digest):
                    latest[place] = piece
        return sorted(latest.values(), key=lambda piece: piece.digest)

    def _age(self, piece):
        return max(0, self.now - piece.at_ms)

    def _decay(self, piece):
        age = self._age(piece)
        if age >= KEPT_MS:
            return 0.0
        halvings, rest = divmod(age, HALF_LIFE_MS)
        return (1.0 - rest / HALF_LIFE_MS / 2.0) / 2.0**halvings

    def _sums(self, pieces):
        sums = {}
        for piece in pieces:
            weight, (good, bad) = self._decay(piece), GOOD_AND_BAD[piece.finding]
            sum_of = sums.setdefault(piece.signer, [0.0, 0.0])
            sum_of[0] += weight * good
            sum_of[1] += weight * bad
        return {signer: tuple(both) for signer, both in sums.items()}

    def _hearsay(self, node, trust):
        good, bad = 0.0, 0.0
        for signer in sorted(self.said[node]):
            if signer == self.me:
                continue
            good_s, bad_s = self.said[node][signer]
            cap = 5.0 / (good_s + bad_s) if good_s + bad_s > 5.0 else 1.0
            weight = cap * trust.get(signer, 0.0)
            good += weight * good_s
            bad += weight * bad_s
        return good, bad

    @staticmethod
    def _above_newcomer(value):
        return max(0.0, (value - 0.2) / 0.8)

    def _mine(self, node):
        return [piece for piece in self.about[node] if piece.signer == self.me]

    def _bans(self, node):
        times, until = 0, None
        for at_ms in sorted(piece.at_ms for piece in self._mine(node) if piece.finding in BANS):
            if until is None or at_ms >= until:
                hours = (1, 24, 7 * 24)[times] if times < 3 else 30 * 24 * 2 ** min(times - 3, 12)
                times, until = times + 1, at_ms + hours * 3600 * 1000
        return times, until

    def _disgraced(self, node):
        lied = any(p.finding == "false-word" and self._age(p) < KEPT_MS for p in self._mine(node))
        return lied or self._bans(node)[0] > 0

    def score(self, node, trust):
        """The fields of a reputation record that follow from evidence."""
        pieces, said = self.about.get(node, []), self.said.get(node, {})
        good_me, bad_me = said.get(self.me, (0.0, 0.0))
        good_o, bad_o = self._hearsay(node, trust) if said else (0.0, 0.0)
        alpha = 1.0 + good_me + min(good_o, 0.5 * good_me)
        beta = 4.0 + bad_me + min(bad_o, 0.5 * (good_me + bad_me) + 1.0)
        bans, until = self._bans(node) if pieces else (0, None)
        banned = until is not None and self.now < until
        fresh = [piece for piece in pieces if self._age(piece) < KEPT_MS]
        own = [piece for piece in fresh if piece.signer == self.me]
        passed_by_me = sum(piece.finding == "pass" for piece in own)
        failures = [piece for piece in pieces if piece.signer == self.me and piece.finding in FAILURES]
        failed_lately = any(self._age(piece) < 7 * DAY_MS for piece in failures)
        return {
            "score": 0.0 if banned else alpha / (alpha + beta),
            "alpha": alpha,
            "beta": beta,
            "successful_audits": sum(piece.finding == "pass" for piece in fresh),
            "failed_audits": sum(piece.finding in FAILURES for piece in fresh),
            "own_successful_audits": passed_by_me,
            "own_failed_audits": sum(piece.finding in FAILURES for piece in own),
            "audit_rate": 1.0 if passed_by_me < 10 or failed_lately or banned else 0.2,
            "bans": bans,
            "banned_until_ms": until,
        }

    def record(self, node):
        trust = 1.0 if node == self.me else self.trusted.get(node, 0.0)
        return {**self.score(node, self.trusted), "trust": trust}


def evidence_root(pieces):
    return tree_root([leaf_hash(digest) for digest in sorted({piece.digest for piece in pieces})]).hex()
