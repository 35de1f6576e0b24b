"""An auditor from outside: recomputes every score, root and proof that the nodes of a running swarm show over RPC.

    scripts/audit_swarm.py [BASE ...]      bases as http://127.0.0.1:8080/v1; without any, the nodes of CONSORTIUM_NODES
    simnet up 8 --exec scripts/audit_swarm

Written from the documentation of the ledger and of the protocol alone, and shares no code with the node. Exit code 0
when everything agrees, 1 on any disagreement, 2 when a node cannot be asked.
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field

from audit_rules import (
    Disagreement,
    Judge,
    canonical,
    check,
    climb,
    derived,
    evidence_root,
    grew,
    key_of,
    leaf_hash,
    opened,
    piece_of,
    tree_root,
)

# Calls of a batch, as the node allows.
BATCH = 32
# A journal up to this size is read as a whole; of a longer one, entries here and there.
WHOLE_JOURNAL = 512
# The error of what a node answers on its own machine alone.
NOT_FOR_YOU = -32002


class Unreachable(Exception):
    """A node that cannot be asked."""


class Node:
    """A node's RPC."""

    def __init__(self, base, key):
        self.base = base
        self.url = base.rstrip("/").removesuffix("/v1") + "/rpc"
        self.headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self.http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _post(self, body):
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self.headers)
        for _ in range(60):
            try:
                with self.http.open(request, timeout=60) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if error.code != 429:
                    raise Unreachable(f"{self.url} answers {error.code}: {error.read(300)!r}") from None
                time.sleep(int(error.headers.get("retry-after", "1")))
            except (OSError, ValueError) as error:
                raise Unreachable(f"{self.url}: {error}") from None
        raise Unreachable(f"{self.url} is too busy")

    def all(self, method, params):
        """The results of a method for many parameters, in batches; None for what is not told to this machine."""
        results = []
        for start in range(0, len(params), BATCH):
            calls = [
                {"jsonrpc": "2.0", "id": start + place, "method": method, "params": one}
                for place, one in enumerate(params[start : start + BATCH])
            ]
            answers = self._post(calls)
            check(isinstance(answers, list) and [a["id"] for a in answers] == [c["id"] for c in calls], method, answers)
            for call, answer in zip(calls, answers):
                withheld = answer.get("error", {}).get("code") == NOT_FOR_YOU
                check("result" in answer or withheld, method, call["params"], answer.get("error"))
            results += [answer.get("result") for answer in answers]
        return results

    def call(self, method, **params):
        return self.all(method, [params])[0]

    def pages(self, method, **params):
        after = {}
        while True:
            page = self.call(method, **params, **after)
            yield page
            if page["next"] is None:
                return
            after = {"after": page["next"]}


@dataclass
class Report:
    """What was recomputed of one node."""

    base: str
    peer_id: str = "?"
    records: int = 0
    evidence: int = 0
    audits: int = 0
    entries: int = 0
    proofs: int = 0
    remarks: list = field(default_factory=list)
    disagreement: str | None = None


def snapshot(node, me_text):
    """Reputation lists and the evidence they were made from: fetched again if evidence came in meanwhile."""
    for attempt in range(12):
        pages = list(node.pages("reputation_list", limit=100))
        told = {record["peer_id"]: (page, record) for page in pages for record in page["nodes"]}
        evidence = {}
        for peer_id in [*told, me_text]:
            about = node.pages("reputation_evidence", peer_id=peer_id, limit=200)
            evidence[peer_id] = [view for page in about for view in page["evidence"]]
        digests = {bytes.fromhex(view["digest"]) for views in evidence.values() for view in views}
        root = tree_root([leaf_hash(digest) for digest in sorted(digests)]).hex()
        if all(page["all_evidence_root"] == root for page in pages):
            return told, evidence
        time.sleep(0.2 * (attempt + 1))
    raise Disagreement("the root over all evidence is not that of the evidence, or changes too fast to be read")


def audit_reputation(node, report):
    told, views = snapshot(node, report.peer_id)
    me = key_of(report.peer_id)
    evidence = {key_of(peer_id): [piece_of(view) for view in about] for peer_id, about in views.items()}
    for subject, pieces in evidence.items():
        check(all(piece.subject == subject for piece in pieces), "evidence about somebody else")
        report.evidence += len(pieces)
    judges = {}
    for peer_id, (page, record) in told.items():
        check(page["judge"] == report.peer_id, "somebody else's judgement:", page["judge"])
        at_ms = page["at_ms"]
        judge = judges.setdefault(at_ms, Judge(evidence, me, at_ms))
        subject = key_of(peer_id)
        pieces = evidence[subject]
        meant = {**judge.record(subject), "evidence_root": evidence_root(pieces), "evidence": len(pieces)}
        for name, value in meant.items():
            check(record[name] == value, f"{name} of {peer_id}: told {record[name]!r}, recomputed {value!r}")
        report.records += 1
    known = {piece.digest.hex() for pieces in evidence.values() for piece in pieces}
    return known


def audit_verdicts(node, report, known):
    """The list of audits is the verdicts among the evidence, the newest first."""
    last, fresh = None, []
    for page in node.pages("audit_list", limit=200):
        for audit in page["audits"]:
            place = (audit["at_ms"], audit["digest"])
            check(last is None or place < last, "the list of audits is out of order")
            last = place
            fresh += [audit["digest"]] if audit["digest"] not in known else []
            report.audits += 1
    # What came in since the evidence was read has to be signed as well.
    for detail in node.all("audit_get", [{"digest": digest} for digest in fresh]):
        check(opened(detail["signed"], "verdict").digest.hex() == detail["digest"], "a verdict under another digest")


def audit_head(report, head):
    said = opened(head["signed"], "tree-head")
    check(said.signer == key_of(report.peer_id) == key_of(head["signer"]), "a tree head signed by somebody else")
    told = {"size": head["size"], "root": bytes.fromhex(head["root"]), "at_ms": head["at_ms"]}
    check(said.body == told, "a tree head is misquoted")
    return told


def audit_entry(entry, told_hash):
    meant = {**entry, "reference": bytes.fromhex(entry["reference"]), "prev": bytes.fromhex(entry["prev"])}
    check(sum(entry["postings"].values()) == 0, "entry", entry["seq"], "does not balance")
    entry_hash = derived("consortium ledger entry 1", canonical(meant))
    check(entry_hash.hex() == told_hash, "the hash of entry", entry["seq"], "is another")
    return entry_hash


def under(report, leaf, index, proof, head):
    """Checks that a leaf is at a place in the tree of a head."""
    check(proof["index"] == index and proof["size"] == head["size"], "a proof of something else")
    hashes = [bytes.fromhex(text) for text in proof["path"]]
    check(climb(leaf, index, head["size"], hashes) == head["root"], "leaf", index, "is not under the head")
    report.proofs += 1


def audit_journal(node, report):
    shown = node.call("ledger_head")
    check(shown["ledger"] == report.peer_id, "somebody else's journal")
    report.entries = shown["entries"]
    if shown["head"] is None:
        check(shown["entries"] < 256, "no head is signed over", shown["entries"], "entries")
        report.remarks.append("no signed head yet")
        return
    head = audit_head(report, shown["head"])
    size, root = head["size"], head["root"]
    check(size <= shown["entries"], "a head over more entries than there are")
    whole = size <= WHOLE_JOURNAL
    places = range(size) if whole else sorted({*range(8), *range(size - 8, size), *range(0, size, size // 256)})
    leaves, prev = [], key_of(report.peer_id)
    paths = node.all("ledger_proof", [{"index": index, "size": size} for index in places])
    entries = node.all("ledger_proof", [{"seq": index} for index in places])
    for index, path, proved in zip(places, paths, entries):
        leaf = bytes.fromhex(path["leaf"])
        under(report, leaf, index, path["proof"], head)
        leaves.append(leaf)
        if proved is None:
            continue
        entry = proved["entry"]
        entry_hash = audit_entry(entry, proved["hash"])
        check(entry["seq"] == index and leaf == leaf_hash(entry_hash), "entry", index, "is not what the tree has there")
        # The newest head may be a later one by now: its own proof is checked against it.
        under(report, leaf, index, proved["proof"], audit_head(report, proved["head"]))
        check(not whole or bytes.fromhex(entry["prev"]) == prev, "entry", index, "does not follow the one before it")
        prev = entry_hash
    if None in entries:
        report.remarks.append("entries are shown on its own machine alone")
    if whole:
        check(tree_root(leaves) == root, "the root over all entries is another")
        sizes = sorted({1, size, *(size * part // 7 for part in range(1, 7))} - {0})
        pairs = [{"old_size": old, "new_size": size} for old in sizes]
        for pair, shown in zip(pairs, node.all("ledger_consistency", pairs)):
            old, proof = pair["old_size"], shown["proof"]
            check((proof["old_size"], proof["new_size"]) == (old, size), "a consistency proof of other sizes")
            old_root = tree_root(leaves[:old])
            check(grew(old_root, old, size, proof["path"]) == (old_root, root), "no growth from", old, "to", size)
            if shown["old_head"] is not None:
                check(audit_head(report, shown["old_head"])["root"] == old_root, "an old head has another root")
            report.proofs += 1
    newer = audit_head(report, node.call("ledger_head")["head"])
    if newer["size"] > size:
        path = node.call("ledger_consistency", old_size=size, new_size=newer["size"])["proof"]["path"]
        check(grew(root, size, newer["size"], path) == (root, newer["root"]), "the journal did not only grow")
        report.proofs += 1


def audit(base, key):
    node, report = Node(base, key), Report(base)
    try:
        report.peer_id = node.call("node_status")["peer_id"]
        described = {method["name"] for method in node.call("rpc.discover")["methods"]}
        check({"reputation_list", "reputation_evidence", "audit_list", "ledger_head"} <= described, "methods are missing")
        known = audit_reputation(node, report)
        audit_verdicts(node, report, known)
        audit_journal(node, report)
    except Disagreement as disagreement:
        report.disagreement = str(disagreement)
    except (KeyError, TypeError, ValueError) as error:
        report.disagreement = f"an answer that makes no sense: {error!r}"
    return report


def bases_of_swarm():
    if "CONSORTIUM_NODES" in os.environ:
        with open(os.environ["CONSORTIUM_NODES"], encoding="utf-8") as file:
            return [node["api_base"] for node in json.load(file) if node["state"] == "running" and node["api_base"]]
    return [os.environ["CONSORTIUM_API_BASE"]] if "CONSORTIUM_API_BASE" in os.environ else []


def table(reports):
    rows = [("NODE", "RECORDS", "EVIDENCE", "AUDITS", "ENTRIES", "PROOFS", "FINDING")]
    for r in reports:
        finding = f"DISAGREES: {r.disagreement}" if r.disagreement else "agrees" + "".join(f"; {x}" for x in r.remarks)
        rows.append((f"…{r.peer_id[-6:]}", *map(str, (r.records, r.evidence, r.audits, r.entries, r.proofs)), finding))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(w) if place in (0, 6) else cell.rjust(w) for place, (cell, w) in enumerate(zip(row, widths))]
        print("  ".join(cells).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bases", nargs="*", metavar="BASE", help="base URL of a node's API, ending in /v1")
    bases = parser.parse_args().bases or bases_of_swarm()
    if not bases:
        parser.error("name a node, or run this in a swarm: simnet up 8 --exec scripts/audit_swarm")
    try:
        reports = [audit(base, os.environ.get("CONSORTIUM_API_KEY")) for base in bases]
    except Unreachable as error:
        print(f"audit_swarm: {error}", file=sys.stderr)
        return 2
    table(reports)
    wrong = sum(report.disagreement is not None for report in reports)
    scores, statements = sum(r.records for r in reports), sum(r.evidence for r in reports)
    print(f"{scores} records and {statements} signed statements of {len(reports)} nodes: {wrong} nodes disagree")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
