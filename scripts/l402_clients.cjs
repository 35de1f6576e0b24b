// npm's l402 and @getalby/lightning-tools against a node that sells:
//   simnet up 3 --l402 --exec 'scripts/node_env l402 && node scripts/l402_clients.cjs target/npm/l402'
const assert = require("node:assert/strict");
const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const modules = createRequire(path.resolve(process.argv[2], "package.json"));
const axios = modules("axios");
const { setupL402Interceptor } = modules("l402");
const { fetchWithL402 } = modules("@getalby/lightning-tools");

const url = `${process.env.CONSORTIUM_PAID_BASE}/chat/completions`;
const nodes = JSON.parse(fs.readFileSync(process.env.CONSORTIUM_NODES, "utf8"));
const payer = nodes.find((node) => !node.sells);
const order = {
  model: process.env.CONSORTIUM_MODEL,
  messages: [{ role: "user", content: "Tell me a story." }],
  max_tokens: 16,
  temperature: 0,
};

async function wallet(method, params) {
  const headers = {
    "content-type": "application/json",
    "consortium-operator": fs.readFileSync(path.join(payer.data_dir, "operator.token"), "utf8"),
  };
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params });
  const answer = await fetch(payer.api_base.replace(/v1$/, "rpc"), { method: "POST", headers, body });
  const { result, error } = await answer.json();
  assert.ok(result, JSON.stringify(error));
  return result;
}

// Pays an invoice from the other node, and counts how often.
let payments = 0;
async function pay(invoice) {
  payments += 1;
  const { hash } = await wallet("wallet_pay", { invoice });
  return wallet("wallet_receipt", { hash });
}

function check(name, body) {
  assert.ok(body.choices[0].message.content.trim(), JSON.stringify(body));
  console.log(`${name}: an answer of ${body.usage.cost_msat} msat after ${payments} payment`);
}

async function withL402() {
  payments = 0;
  const kept = new Map();
  const store = { get: (url) => kept.get(url), put: (url, token) => kept.set(url, token) };
  const purse = { payInvoice: async (invoice) => ({ success: true, ...(await pay(invoice)) }) };
  const client = axios.create({ proxy: false, timeout: 120000 });
  setupL402Interceptor(client, purse, store);
  for (let n = 0; n < 2; n += 1) {
    check("npm l402", (await client.post(url, order)).data);
  }
  assert.equal(payments, 1, "the second is paid by the first bundle");
}

async function withLightningTools() {
  payments = 0;
  const purse = { payInvoice: ({ invoice }) => pay(invoice) };
  const request = () => ({
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(order),
  });
  const answer = await fetchWithL402(url, request(), { wallet: purse });
  assert.equal(answer.status, 200);
  check("npm @getalby/lightning-tools", await answer.json());
  assert.equal(payments, 1);
}

(async () => {
  await withL402();
  await withLightningTools();
})().catch((error) => {
  console.error(error.message, error.response?.data ?? "");
  process.exit(1);
});
