"""An L402 client with plain HTTP: simnet up 3 --l402 --exec 'python3 scripts/l402_client.py'."""

import json
import os
import pathlib
import re
import urllib.error
import urllib.request

BASE = os.environ["CONSORTIUM_PAID_BASE"]
NODES = json.loads(pathlib.Path(os.environ["CONSORTIUM_NODES"]).read_text())
PAYER = next(node for node in NODES if not node.get("sells"))
ORDER = {
    "model": os.environ["CONSORTIUM_MODEL"],
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "max_tokens": 16,
    "temperature": 0,
}
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(url: str, body: dict | None, headers: dict[str, str]) -> tuple[int, dict, dict]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    try:
        with HTTP.open(request, timeout=120) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.load(error)


def wallet(method: str, params: dict) -> dict:
    token = pathlib.Path(PAYER["data_dir"], "operator.token").read_text()
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    _, _, answer = call(PAYER["api_base"].removesuffix("/v1") + "/rpc", body, {"consortium-operator": token})
    assert "result" in answer, answer
    return answer["result"]


def main() -> None:
    url = f"{BASE}/chat/completions"
    status, headers, body = call(url, ORDER, {})
    assert status == 402 and body["error"]["code"] == "payment_required", (status, body)
    # The expression of Aperture's client.
    found = re.match(r'(LSAT|L402) macaroon="(.*?)", invoice="(.*?)"', headers["www-authenticate"])
    assert found, headers
    scheme, macaroon, invoice = found.groups()
    assert invoice == body["error"]["payment"]["invoice"], body

    paid = wallet("wallet_pay", {"invoice": invoice})
    preimage = wallet("wallet_receipt", {"hash": paid["hash"]})["preimage"]
    credential = {"authorization": f"{scheme} {macaroon}:{preimage}"}
    for _ in range(3):
        status, _, body = call(url, ORDER, credential)
        assert status == 200 and body["choices"][0]["message"]["content"].strip(), (status, body)
    cost = body["usage"]["cost_msat"]
    status, _, account = call(f"{BASE}/account", None, credential)
    assert status == 200 and 0 < account["balance_msat"] < paid["amount"], account
    status, _, body = call(url, ORDER, {"authorization": f"{scheme} {macaroon}:{'0' * 64}"})
    assert status == 401, (status, body)

    # What is left goes back.
    back = wallet("wallet_invoice", {"msat": account["refundable_msat"]})
    status, _, body = call(f"{BASE}/account/refund", {"invoice": back["invoice"]}, credential)
    assert status == 200 and body["status"] == "paid", (status, body)
    print(f"Python: paid {paid['amount']} msat, 3 answers of {cost} msat, {body['amount_msat']} msat back")


main()
