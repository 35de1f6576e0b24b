//! The RPC, to friends and to others.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::*;
use crate::chain::rpc::{ClientError, Credentials, RpcClient, RpcServer};

pub(super) struct Served {
    pub(super) server: RpcServer,
    client: RpcClient,
    credentials: Credentials,
}

pub(super) fn served() -> Served {
    let credentials = Credentials::random();
    // The server has a clock, so the blocks must not be of another time.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let server = RpcServer::start(Regtest::in_memory(now).unwrap(), credentials.clone()).unwrap();
    let client = RpcClient::new(&server.url(), credentials.clone()).unwrap();
    Served { server, client, credentials }
}

impl Served {
    pub(super) async fn call(&self, method: &str, params: Value) -> Value {
        self.client.call(method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// The code of the error that a call must end with.
    async fn code(&self, method: &str, params: Value) -> i64 {
        match self.client.call(method, params).await {
            Err(ClientError::Rpc(error)) => error.code,
            other => panic!("{method}: {other:?}"),
        }
    }

    /// Sends bytes as they are and reads what comes until the other end closes.
    pub(super) fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.server.url().strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
        // The other end may refuse before it has read everything.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn post(&self, authorization: Option<&str>, body: &str) -> String {
        let authorization = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
        let length = body.len();
        self.raw(
            format!(
                "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{authorization}Content-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        )
    }

    fn authorization(&self) -> String {
        use base64::Engine;
        let pair = format!("{}:{}", self.credentials.user, self.credentials.password);
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    }
}

#[tokio::test]
async fn a_wallet_finds_what_it_asks_for() {
    let served = served();
    let info = served.call("getblockchaininfo", json!([])).await;
    assert_eq!((&info["chain"], &info["blocks"]), (&json!("regtest"), &json!(110)));
    let tip = served.call("getbestblockhash", json!([])).await;
    assert_eq!(info["bestblockhash"], tip);
    assert_eq!(served.call("getblockhash", json!([110])).await, tip);
    let genesis = served.call("getblockhash", json!([0])).await;
    assert_eq!(genesis, "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206");

    let header = served.call("getblockheader", json!([tip])).await;
    for field in ["version", "time", "nonce", "height"] {
        assert!(header[field].is_u64(), "{field}");
    }
    for field in ["previousblockhash", "merkleroot", "chainwork"] {
        assert_eq!(header[field].as_str().map(str::len), Some(64), "{field}");
    }
    assert_eq!(header["bits"], "207fffff");
    assert_eq!(header["chainwork"].as_str().unwrap().trim_start_matches('0'), format!("{:x}", 2 * 111));
    assert!(served.call("getblockheader", json!([genesis])).await.get("previousblockhash").is_none());

    let hex = served.call("getblock", json!([tip, 0])).await;
    let block: bitcoin::Block = bitcoin::consensus::encode::deserialize_hex(hex.as_str().unwrap()).unwrap();
    assert_eq!(json!(block.block_hash().to_string()), tip);
    let told = served.call("getblock", json!([tip, 1])).await;
    assert_eq!(told["tx"][0], block.txdata[0].compute_txid().to_string());
    assert_eq!(served.call("getmempoolinfo", json!([])).await["mempoolminfee"], json!(0.00001));
    assert_eq!(served.call("estimatesmartfee", json!([6, "CONSERVATIVE"])).await["feerate"], json!(0.00001));
}

#[tokio::test]
async fn the_faucet_pays_and_blocks_confirm() {
    let served = served();
    let address = "bcrt1q6rz28mcfaxtmd6v789l9rrlrusdprr9pz3cppk";
    let txid = served.call("sendtoaddress", json!([address, "1.5"])).await;
    assert_eq!(served.call("getrawmempool", json!([false])).await, json!([txid]));
    let entry = served.call("getmempoolentry", json!([txid])).await;
    assert_eq!(entry["height"], 110);
    assert!(entry["time"].is_u64() && entry["fees"]["base"].as_f64().unwrap() > 0.0);
    let hex = served.call("getrawtransaction", json!([txid])).await;
    assert_eq!(served.call("sendrawtransaction", json!([hex])).await, txid, "once more is no error");
    let told = served.call("getrawtransaction", json!([txid, true])).await;
    let paid = |told: &Value| told["vout"].as_array().unwrap().iter().position(|out| out["value"] == json!(1.5));
    let vout = paid(&told).unwrap();
    assert_eq!(told["vout"][vout]["scriptPubKey"]["address"], address);
    assert_eq!(served.call("gettxout", json!([txid, vout, false])).await, Value::Null);
    assert_eq!(served.call("gettxout", json!([txid, vout, true])).await["confirmations"], 0);

    let hashes = served.call("generatetoaddress", json!([2, address])).await;
    assert_eq!(hashes.as_array().map(Vec::len), Some(2));
    assert_eq!(served.code("getmempoolentry", json!([txid])).await, -5);
    let out = served.call("gettxout", json!([txid, vout, false])).await;
    assert_eq!((&out["confirmations"], &out["value"]), (&json!(2), &json!(1.5)));
    let told = served.call("getrawtransaction", json!({"txid": txid, "verbosity": 1})).await;
    assert_eq!((&told["confirmations"], &told["blockhash"]), (&json!(2), &hashes[0]));
    assert_eq!(served.code("sendrawtransaction", json!([hex])).await, -27);
    assert!(served.call("getbalance", json!([])).await.as_f64().unwrap() > 500.0);
    assert_eq!(served.call("validateaddress", json!(["1BoatSLRHtKNngkdXEeobR76b53LETtpyT"])).await["isvalid"], false);
}

#[tokio::test]
async fn blocks_are_judged_and_replaced() {
    let served = served();
    let address = served.call("getnewaddress", json!([])).await;
    let txid = served.call("sendmany", json!(["", {address.as_str().unwrap(): 2}])).await;
    let block = served.call("generateblock", json!([address, []])).await;
    assert_eq!(served.call("getrawmempool", json!([])).await, json!([txid]));
    served.call("invalidateblock", json!([block["hash"]])).await;
    assert_eq!(served.call("getblockcount", json!([])).await, 110);
    let told = served.call("getblockheader", json!([block["hash"]])).await;
    assert_eq!(told["confirmations"], -1);
    served.call("reconsiderblock", json!([block["hash"]])).await;
    assert_eq!(served.call("getbestblockhash", json!([])).await, block["hash"]);
    let next = served.call("generateblock", json!([address, [txid]])).await;
    let hex = served.call("getblock", json!([next["hash"], 0])).await;
    assert_eq!(served.call("submitblock", json!([hex])).await, "duplicate");
    let tips = served.call("getchaintips", json!([])).await;
    assert_eq!((&tips[0]["status"], &tips[0]["height"]), (&json!("active"), &json!(112)));
    assert!(served.call("help", json!([])).await.as_str().unwrap().contains("generatetoaddress nblocks address"));
}

#[tokio::test]
async fn errors_have_the_numbers_that_clients_know() {
    let served = served();
    let unknown = "ab".repeat(32);
    for (code, method, params) in [
        (-32601, "nosuchmethod", json!([])),
        (-5, "getblock", json!([unknown, 0])),
        (-5, "getrawtransaction", json!([unknown])),
        (-8, "getblockhash", json!([111])),
        (-8, "getblockhash", json!([-1])),
        (-8, "getblockheader", json!(["abc"])),
        (-8, "getblockheader", json!(["z".repeat(64)])),
        (-8, "getblockhash", json!({"hight": 1})),
        (-3, "getblockhash", json!(["one"])),
        (-1, "getblockhash", json!([])),
        (-1, "getblockcount", json!([1])),
        (-22, "sendrawtransaction", json!(["00"])),
        (-22, "submitblock", json!(["zz"])),
        (-5, "sendtoaddress", json!(["nonsense", 1])),
        (-5, "sendtoaddress", json!(["bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", 1])),
        (-6, "sendtoaddress", json!(["bcrt1q6rz28mcfaxtmd6v789l9rrlrusdprr9pz3cppk", 20_000_000])),
        (-3, "sendtoaddress", json!(["bcrt1q6rz28mcfaxtmd6v789l9rrlrusdprr9pz3cppk", -1])),
        (-3, "sendtoaddress", json!(["bcrt1q6rz28mcfaxtmd6v789l9rrlrusdprr9pz3cppk", 1e300])),
        (-8, "generatetoaddress", json!([10_001, "bcrt1q6rz28mcfaxtmd6v789l9rrlrusdprr9pz3cppk"])),
        (-8, "estimatesmartfee", json!([0])),
        (-32600, "getblockcount", json!("text")),
    ] {
        assert_eq!(served.code(method, params.clone()).await, code, "{method} {params}");
    }
    // Spends what is not there; then, what is there without a signature.
    let coins = served.call("listunspent", json!([])).await;
    let coin = OutPoint::new(coins[0]["txid"].as_str().unwrap().parse().unwrap(), 0);
    for (outpoint, code) in [(OutPoint::new(unknown.parse().unwrap(), 0), -25), (coin, -26)] {
        let input = TxIn { previous_output: outpoint, sequence: Sequence::MAX, ..TxIn::default() };
        let script_pubkey = ScriptBuf::from_bytes([&[0x00, 0x14][..], &[7; 20]].concat());
        let transaction = Transaction {
            version: transaction::Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![input],
            output: vec![TxOut { value: Amount::from_btc(49.9999).unwrap(), script_pubkey }],
        };
        let hex = bitcoin::consensus::encode::serialize_hex(&transaction);
        assert_eq!(served.code("sendrawtransaction", json!([hex])).await, code);
        let verdict = served.call("testmempoolaccept", json!([[hex]])).await;
        assert_eq!(verdict[0]["allowed"], false);
    }
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let served = served();
    let call = r#"{"id":1,"method":"getblockcount","params":[]}"#;
    assert!(served.post(Some(&served.authorization()), call).starts_with("HTTP/1.1 200"));
    assert!(served.post(None, call).starts_with("HTTP/1.1 401"));
    for wrong in ["Basic", "Basic ", "Basic !!!", "Bearer x", "Basic dXNlcjpwYXNzd29yZA=="] {
        let answer = served.post(Some(wrong), call);
        assert!(answer.starts_with("HTTP/1.1 401"), "{wrong}: {answer}");
        assert!(answer.to_lowercase().contains("www-authenticate: basic"), "{answer}");
        assert!(!answer.contains("110"), "{answer}");
    }
    let mut stranger = served.credentials.clone();
    stranger.password.pop();
    let stranger = RpcClient::new(&served.server.url(), stranger).unwrap();
    let refused = stranger.call("getblockcount", json!([])).await;
    assert!(matches!(refused, Err(ClientError::Unauthorized(_))), "{refused:?}");
    let get =
        format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {}\r\n\r\n", served.authorization());
    assert!(served.raw(get.as_bytes()).starts_with("HTTP/1.1 405"));
}

#[test]
fn nonsense_is_answered_in_kind() {
    let served = served();
    let own = served.authorization();
    let post = |body: &str| served.post(Some(&own), body);
    for (body, status, code) in [
        ("", "500", "-32700"),
        ("{", "500", "-32700"),
        ("7", "500", "-32700"),
        ("{}", "400", "-32600"),
        (r#"{"method":7}"#, "400", "-32600"),
        (r#"{"jsonrpc":"3.0","method":"getblockcount"}"#, "400", "-32600"),
        (r#"{"method":"nosuch"}"#, "404", "-32601"),
        (r#"{"jsonrpc":"2.0","id":4,"method":"nosuch"}"#, "200", "-32601"),
        (r#"{"method":"getblockhash","params":[1000]}"#, "500", "-8"),
    ] {
        let answer = post(body);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{body}: {answer}");
        assert!(answer.contains(&format!("\"code\":{code},")), "{body}: {answer}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(post(&deep).contains("-32700"));
    let many = format!("[{}1]", "1,".repeat(1_000));
    assert!(post(&many).contains("at most 1000"));
    let batch = r#"[{"jsonrpc":"2.0","id":"a","method":"getblockcount"},{"id":2,"method":"nosuch"},5,{"jsonrpc":"2.0","method":"ping"}]"#;
    let answer = post(batch);
    let answers: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(answers[0], json!({"jsonrpc": "2.0", "result": 110, "id": "a"}));
    assert_eq!((&answers[1]["error"]["code"], &answers[2]["error"]["code"]), (&json!(-32601), &json!(-32600)));
    assert_eq!(answers.as_array().unwrap().len(), 3, "a notification is not answered");
    let huge = format!(
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {own}\r\nContent-Length: 999999999999\r\n\r\n"
    );
    assert!(served.raw(huge.as_bytes()).starts_with("HTTP/1.1 413"));
    // Where the other end closes before everything was sent, the answer may be lost.
    let answer = post(&"x".repeat(10 * 1024 * 1024));
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    // And it is still there.
    assert!(post(r#"{"method":"getblockcount"}"#).contains("110"));
}

#[test]
fn a_cookie_is_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("cookie");
    let credentials = Credentials::random();
    credentials.write(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Credentials::read(&path).unwrap() == credentials);
    assert!(!format!("{credentials:?}").contains(&credentials.password));
    std::fs::write(&path, "no colon").unwrap();
    assert!(Credentials::read(&path).is_err());
    let regtest = Regtest::open(temp.path(), NOW).unwrap();
    drop(regtest);
    let mode = std::fs::metadata(temp.path().join("miner.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
