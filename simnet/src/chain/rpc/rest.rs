//! bitcoind's REST interface (`-rest=1`): what everybody may read, without credentials.
//!
//! Its resources are those that wallets read a chain by, with Bitcoin Core's formats, statuses and words (`rest.cpp`).
//! Left out: block filters and deployments; `getutxos` in other formats than JSON; and in blocks told in JSON, the
//! outputs that are spent.

use bitcoin::consensus::encode::serialize;
use bitcoin::hex::DisplayHex;
use bitcoin::{BlockHash, OutPoint, Txid};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::error::RpcError;
use super::json;
use crate::chain::{BlockInfo, Regtest, Unspent};

/// Where the interface is.
pub(super) const ROOT: &str = "/rest/";

/// Most headers at once.
const MAX_HEADERS: usize = 2_000;
/// Headers where no number is given.
const USUAL_HEADERS: &str = "5";
/// Most outputs of one `getutxos`.
const MAX_OUTPUTS: usize = 15;

/// The body of an answer, and what it is.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
}

/// Why there is nothing to send.
type Refusal = (StatusCode, String);

/// How something is to be sent.
#[derive(Clone, Copy, Debug)]
enum Format {
    Binary,
    Hex,
    Json,
}

/// What is asked of a resource.
struct Asked<'a> {
    /// What stands behind the resource's name, without the format.
    what: &'a str,
    /// None for no format, or one that is not known.
    format: Option<Format>,
    query: &'a str,
}

/// Something that can be read: what its path begins with, and what finds it.
type Resource = (&'static str, fn(&mut Regtest, &Asked<'_>) -> Result<Answer, Refusal>);

/// Everything that can be read. The first that fits is taken.
const RESOURCES: [Resource; 8] = [
    ("tx/", transaction),
    ("block/notxdetails/", block_with_ids),
    ("block/", block),
    ("chaininfo", chain_info),
    ("mempool/", mempool),
    ("headers/", headers),
    ("getutxos", outputs),
    ("blockhashbyheight/", hash_by_height),
];

/// Answers for what stands behind [`ROOT`], with the query of the URL.
pub(super) fn answer(regtest: &mut Regtest, path: &str, query: &str) -> Answer {
    let known = RESOURCES.iter().find_map(|(name, find)| Some((path.strip_prefix(name)?, find)));
    let Some((rest, find)) = known else { return failure(StatusCode::NOT_FOUND, String::new()) };
    let (what, format) = split_format(rest);
    find(regtest, &Asked { what, format, query }).unwrap_or_else(|(status, words)| failure(status, words + "\r\n"))
}

/// An answer that there is none.
pub(super) fn failure(status: StatusCode, words: String) -> Answer {
    Answer { status, content_type: "text/plain", body: words.into_bytes() }
}

fn split_format(rest: &str) -> (&str, Option<Format>) {
    let Some((what, suffix)) = rest.rsplit_once('.') else { return (rest, None) };
    match suffix {
        "bin" => (what, Some(Format::Binary)),
        "hex" => (what, Some(Format::Hex)),
        "json" => (what, Some(Format::Json)),
        "" => (what, None),
        _ => (rest, None),
    }
}

impl Asked<'_> {
    /// A parameter of the query.
    fn query(&self, name: &str) -> Option<&str> {
        self.query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|pair| pair.1)
    }

    /// What was found, as it was asked for.
    fn found(&self, bytes: impl FnOnce() -> Vec<u8>, told: impl FnOnce() -> Value) -> Result<Answer, Refusal> {
        let (content_type, body) = match self.format {
            Some(Format::Binary) => ("application/octet-stream", bytes()),
            Some(Format::Hex) => ("text/plain", format!("{}\n", bytes().to_lower_hex_string()).into_bytes()),
            Some(Format::Json) => return Ok(json_answer(&told())),
            None => return Err(no_format(".bin, .hex, .json")),
        };
        Ok(Answer { status: StatusCode::OK, content_type, body })
    }

    /// What is found for JSON-RPC, in JSON alone.
    fn called(&self, regtest: &mut Regtest, method: &str, params: Value) -> Result<Answer, Refusal> {
        let Some(Format::Json) = self.format else { return Err(no_format("json")) };
        // None of what is called here asks for the time.
        let told = super::call(regtest, method, params, 0);
        told.map(|told| json_answer(&told))
            .map_err(|error: RpcError| (StatusCode::INTERNAL_SERVER_ERROR, error.message))
    }
}

fn json_answer(told: &Value) -> Answer {
    Answer { status: StatusCode::OK, content_type: "application/json", body: format!("{told}\n").into_bytes() }
}

fn no_format(available: &str) -> Refusal {
    (StatusCode::NOT_FOUND, format!("output format not found (available: {available})"))
}

fn bad(words: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, words.into())
}

fn hash<T: std::str::FromStr>(text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| bad(format!("Invalid hash: {text}")))
}

fn not_found(text: &str) -> Refusal {
    (StatusCode::NOT_FOUND, format!("{text} not found"))
}

fn transaction(regtest: &mut Regtest, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let txid: Txid = hash(asked.what)?;
    let (transaction, block) = regtest.chain.transaction(&txid).ok_or_else(|| not_found(asked.what))?;
    let told = || {
        let mut told = json::transaction(&transaction);
        if let (Some(fields), Some(block)) = (told.as_object_mut(), block) {
            fields.insert("blockhash".to_owned(), json!(block.to_string()));
        }
        told
    };
    asked.found(|| serialize(&transaction), told)
}

fn block(regtest: &mut Regtest, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    any_block(regtest, asked, true)
}

fn block_with_ids(regtest: &mut Regtest, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    any_block(regtest, asked, false)
}

fn any_block(regtest: &Regtest, asked: &Asked<'_>, in_full: bool) -> Result<Answer, Refusal> {
    let info = regtest.chain.block(&hash(asked.what)?).ok_or_else(|| not_found(asked.what))?;
    asked.found(|| serialize(&*info.block), || json::block(&info, in_full))
}

fn chain_info(regtest: &mut Regtest, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    asked.called(regtest, "getblockchaininfo", json!([]))
}

fn mempool(regtest: &mut Regtest, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    match asked.what {
        "info" => asked.called(regtest, "getmempoolinfo", json!([])),
        "contents" => {
            let verbose: bool = asked
                .query("verbose")
                .unwrap_or("true")
                .parse()
                .map_err(|_| bad("The \"verbose\" query parameter must be either \"true\" or \"false\"."))?;
            asked.called(regtest, "getrawmempool", json!([verbose]))
        }
        _ => Err(bad("Invalid URI format. Expected /rest/mempool/<info|contents>.json")),
    }
}

/// Headers of the best branch from one on: none where that is off it.
fn headers(regtest: &mut Regtest, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let (count, first) = match asked.what.split_once('/') {
        None => (asked.query("count").unwrap_or(USUAL_HEADERS), asked.what),
        Some((count, first)) if !first.contains('/') => (count, first),
        Some(_) => return Err(bad("Invalid URI format. Expected /rest/headers/<hash>.<ext>?count=<count>")),
    };
    let limit =
        count.parse().ok().filter(|count| (1..=MAX_HEADERS).contains(count)).ok_or_else(|| {
            bad(format!("Header count is invalid or out of acceptable range (1-{MAX_HEADERS}): {count}"))
        })?;
    let chain = &regtest.chain;
    let first: BlockHash = hash(first)?;
    let first = chain.block(&first).filter(|info| info.confirmations.is_some());
    let next = |info: &BlockInfo| chain.block(&info.next?);
    let found: Vec<BlockInfo> = std::iter::successors(first, next).take(limit).collect();
    let bytes = || found.iter().flat_map(|info| serialize(&info.block.header)).collect();
    asked.found(bytes, || found.iter().map(|info| Value::Object(json::header(info))).collect())
}

fn hash_by_height(regtest: &mut Regtest, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let height: i32 = asked.what.parse().map_err(|_| bad(format!("Invalid height: {}", asked.what)))?;
    let height = u32::try_from(height).map_err(|_| bad(format!("Invalid height: {}", asked.what)))?;
    let out_of_range = || (StatusCode::NOT_FOUND, "Block height out of range".to_owned());
    let hash = regtest.chain.hash_at(height).ok_or_else(out_of_range)?;
    // In hexadecimal a hash is written from its end, unlike other bytes.
    if let Some(Format::Hex) = asked.format {
        let body = format!("{hash}\n").into_bytes();
        return Ok(Answer { status: StatusCode::OK, content_type: "text/plain", body });
    }
    asked.found(|| serialize(&hash), || json!({"blockhash": hash.to_string()}))
}

/// Which of some outputs are unspent, with `/checkmempool` also as far as the transactions that wait go (BIP 64).
fn outputs(regtest: &mut Regtest, asked: &Asked<'_>) -> Result<Answer, Refusal> {
    let mut parts: Vec<&str> = asked.what.strip_prefix('/').unwrap_or_default().split('/').collect();
    let with_mempool = parts.first() == Some(&"checkmempool");
    if with_mempool {
        parts.remove(0);
    }
    if parts.iter().all(|part| part.is_empty()) {
        return Err(bad("Error: empty request"));
    }
    let outpoints = parts.iter().map(|part| outpoint(part)).collect::<Option<Vec<_>>>();
    let outpoints = outpoints.ok_or_else(|| bad("Parse error"))?;
    let Some(Format::Json) = asked.format else { return Err(no_format("json")) };
    if outpoints.len() > MAX_OUTPUTS {
        let words = format!("Error: max outpoints exceeded (max: {MAX_OUTPUTS}, tried: {})", outpoints.len());
        return Err(bad(words));
    }
    let chain = &regtest.chain;
    let found: Vec<_> = outpoints.iter().map(|outpoint| chain.unspent(outpoint, with_mempool)).collect();
    Ok(json_answer(&json!({
        "chainHeight": chain.height(),
        "chaintipHash": chain.tip().to_string(),
        "bitmap": found.iter().map(|unspent| if unspent.is_some() { '1' } else { '0' }).collect::<String>(),
        "utxos": found.iter().flatten().map(told_unspent).collect::<Vec<_>>(),
    })))
}

fn outpoint(text: &str) -> Option<OutPoint> {
    let (txid, vout) = text.split_once('-')?;
    Some(OutPoint::new(txid.parse().ok()?, vout.parse().ok()?))
}

/// Core gives what waits for a block the height 2^31 - 1.
fn told_unspent(unspent: &Unspent) -> Value {
    json!({
        "height": unspent.height.unwrap_or(i32::MAX.unsigned_abs()),
        "value": json::btc(unspent.output.value),
        "scriptPubKey": json::script(&unspent.output.script_pubkey),
    })
}
