//! REST tells what JSON-RPC tells, to everybody.

use bitcoin::Block;
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::hex::DisplayHex;
use serde_json::{Value, json};

use super::rpc::{Served, served};

const PAYEE: &str = "bcrt1q6rz28mcfaxtmd6v789l9rrlrusdprr9pz3cppk";

impl Served {
    /// Status, type and body of what is at a path below `/rest/`.
    async fn read(&self, path: &str) -> (u16, String, Vec<u8>) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let response = http.get(format!("{}/rest/{path}", self.server.url())).send().await.unwrap();
        let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
        (response.status().as_u16(), kind, response.bytes().await.unwrap().to_vec())
    }

    async fn json(&self, path: &str) -> Value {
        let (status, kind, body) = self.read(path).await;
        assert_eq!((status, kind.as_str()), (200, "application/json"), "{path}");
        serde_json::from_slice(&body).unwrap()
    }

    /// What is the same in binary and in hexadecimal, as hexadecimal.
    async fn bytes(&self, path: &str) -> String {
        let (status, kind, binary) = self.read(&format!("{path}.bin")).await;
        assert_eq!((status, kind.as_str()), (200, "application/octet-stream"), "{path}");
        let (status, kind, hex) = self.read(&format!("{path}.hex")).await;
        assert_eq!((status, kind.as_str()), (200, "text/plain"), "{path}");
        assert_eq!(String::from_utf8(hex).unwrap(), format!("{}\n", binary.to_lower_hex_string()), "{path}");
        binary.to_lower_hex_string()
    }

    async fn mine(&self, blocks: u32) -> Vec<String> {
        let hashes = self.call("generatetoaddress", json!([blocks, PAYEE])).await;
        serde_json::from_value(hashes).unwrap()
    }
}

#[tokio::test]
async fn blocks_and_transactions_are_those_of_json_rpc() {
    let served = served();
    let txid = served.call("sendtoaddress", json!([PAYEE, "1.5"])).await;
    let txid = txid.as_str().unwrap();
    assert_eq!(served.json("mempool/info.json").await, served.call("getmempoolinfo", json!([])).await);
    assert_eq!(served.json("mempool/contents.json?verbose=false").await, json!([txid]));
    let entries = served.json("mempool/contents.json").await;
    assert_eq!(entries[txid], served.call("getmempoolentry", json!([txid])).await);
    let waiting = served.json(&format!("tx/{txid}.json")).await;
    assert_eq!(waiting, served.call("decoderawtransaction", json!([waiting["hex"]])).await);
    assert_eq!(json!(served.bytes(&format!("tx/{txid}")).await), waiting["hex"]);

    let hash = served.mine(1).await.remove(0);
    assert_eq!(served.json(&format!("tx/{txid}.json")).await["blockhash"], hash);
    assert_eq!(served.json("chaininfo.json").await, served.call("getblockchaininfo", json!([])).await);
    let hex = served.bytes(&format!("block/{hash}")).await;
    assert_eq!(json!(hex), served.call("getblock", json!([hash, 0])).await);
    let block: Block = deserialize_hex(&hex).unwrap();
    assert_eq!(block.block_hash().to_string(), hash);
    for (path, verbosity) in [("block", 2), ("block/notxdetails", 1)] {
        let told = served.json(&format!("{path}/{hash}.json")).await;
        assert_eq!(told, served.call("getblock", json!([hash, verbosity])).await, "{path}");
    }
    let (_, _, bytes) = served.read("blockhashbyheight/111.bin").await;
    assert_eq!(bytes.iter().rev().copied().collect::<Vec<_>>().to_lower_hex_string(), hash);
    assert_eq!(served.read("blockhashbyheight/111.hex").await.2, format!("{hash}\n").into_bytes());
    assert_eq!(served.json("blockhashbyheight/111.json").await, json!({"blockhash": hash}));
}

#[tokio::test]
async fn headers_are_those_of_the_best_branch() {
    let served = served();
    let hashes = served.mine(3).await;
    let header = async |hash: &str| served.call("getblockheader", json!([hash])).await;
    let told = served.json(&format!("headers/1/{}.json", hashes[0])).await;
    assert_eq!(told, json!([header(&hashes[0]).await]));
    let all = json!([header(&hashes[0]).await, header(&hashes[1]).await, header(&hashes[2]).await]);
    assert_eq!(served.json(&format!("headers/2000/{}.json", hashes[0])).await, all);
    assert_eq!(served.json(&format!("headers/{}.json", hashes[0])).await, all);
    assert_eq!(served.json(&format!("headers/{}.json?a=b&count=1", hashes[0])).await, told);
    let mut raw = String::new();
    for hash in &hashes[1..] {
        raw += served.call("getblockheader", json!([hash, false])).await.as_str().unwrap();
    }
    assert_eq!(served.bytes(&format!("headers/7/{}", hashes[1])).await, raw);

    // Off the best branch a block is still there, and its header is not.
    served.call("invalidateblock", json!([hashes[1]])).await;
    assert_eq!(served.json(&format!("headers/1/{}.json", hashes[1])).await, json!([]));
    assert_eq!(served.json(&format!("headers/5/{}.json", hashes[0])).await, json!([header(&hashes[0]).await]));
    assert!(served.json(&format!("block/{}.json", hashes[1])).await["confirmations"] == -1);
    assert_eq!(served.json(&format!("headers/1/{}.json", "ab".repeat(32))).await, json!([]));
}

#[tokio::test]
async fn outputs_are_told_as_spent_or_not() {
    let served = served();
    let coin = served.call("listunspent", json!([])).await[0].clone();
    let (txid, vout) = (coin["txid"].as_str().unwrap(), &coin["vout"]);
    let (old, absent) = (format!("{txid}-{vout}"), format!("{txid}-{}", u32::MAX));
    let told = served.json(&format!("getutxos/{absent}/{old}.json")).await;
    assert_eq!((&told["bitmap"], &told["chainHeight"]), (&json!("01"), &json!(110)));
    assert_eq!(told["chaintipHash"], served.call("getbestblockhash", json!([])).await);
    assert_eq!(told["utxos"].as_array().map(Vec::len), Some(1));
    assert_eq!(told["utxos"][0]["scriptPubKey"]["hex"], coin["scriptPubKey"]);

    // A transaction that waits spends coins, and makes others, where the mempool is asked.
    let waiting = served.call("sendtoaddress", json!([PAYEE, "1.5"])).await;
    let told = served.call("getrawtransaction", json!([waiting, true])).await;
    let spent = format!("{}-{}", told["vin"][0]["txid"].as_str().unwrap(), told["vin"][0]["vout"]);
    let made = format!("{}-0", waiting.as_str().unwrap());
    let bitmap =
        async |place: &str| served.json(&format!("getutxos{place}/{spent}/{made}.json")).await["bitmap"].clone();
    assert_eq!(bitmap("").await, "10");
    assert_eq!(bitmap("/checkmempool").await, "01");
    served.mine(1).await;
    assert_eq!(bitmap("").await, "01");
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_as_by_bitcoin_core() {
    let served = served();
    let unknown = "ab".repeat(32);
    let output = format!("{unknown}-0");
    for (status, path, words) in [
        (404, format!("block/{unknown}.bin"), "not found"),
        (404, format!("tx/{unknown}.json"), "not found"),
        (400, "block/abc.bin".to_owned(), "Invalid hash: abc"),
        (400, format!("block/{unknown}.xml"), "Invalid hash"),
        (404, "chaininfo".to_owned(), "output format not found (available: json)"),
        (404, "mempool/info.hex".to_owned(), "output format not found (available: json)"),
        (404, "blockhashbyheight/1".to_owned(), "output format not found (available: .bin, .hex, .json)"),
        (404, "blockhashbyheight/111.bin".to_owned(), "Block height out of range"),
        (400, "blockhashbyheight/-1.bin".to_owned(), "Invalid height: -1"),
        (400, "blockhashbyheight/99999999999.bin".to_owned(), "Invalid height"),
        (400, "mempool/nothing.json".to_owned(), "Invalid URI format"),
        (400, "mempool/contents.json?verbose=1".to_owned(), "either \"true\" or \"false\""),
        (400, format!("headers/0/{unknown}.json"), "(1-2000): 0"),
        (400, format!("headers/2001/{unknown}.json"), "(1-2000): 2001"),
        (400, format!("headers/{unknown}.json?count=x"), "(1-2000): x"),
        (400, format!("headers/1/2/{unknown}.json"), "Invalid URI format"),
        (400, "getutxos.json".to_owned(), "empty request"),
        (400, "getutxos/checkmempool.json".to_owned(), "empty request"),
        (400, "getutxos/abc-0.json".to_owned(), "Parse error"),
        (400, format!("getutxos/{unknown}-x.json"), "Parse error"),
        (400, format!("getutxos/{}.json", [output.as_str(); 16].join("/")), "(max: 15, tried: 16)"),
        (404, "nothing".to_owned(), ""),
        (404, String::new(), ""),
    ] {
        let (told, kind, body) = served.read(&path).await;
        let body = String::from_utf8(body).unwrap();
        assert_eq!((told, kind.as_str()), (status, "text/plain"), "{path}: {body}");
        assert!(body.contains(words), "{path}: {body}");
    }
    // Writing is for JSON-RPC, with its credentials.
    let posted = b"POST /rest/chaininfo.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert!(served.raw(posted).starts_with("HTTP/1.1 401"));
    let endless = format!("GET /rest/getutxos/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1024 * 1024));
    assert!(!served.raw(endless.as_bytes()).starts_with("HTTP/1.1 200"));
    assert_eq!(served.call("getblockcount", json!([])).await, 110, "it is still there");
}
