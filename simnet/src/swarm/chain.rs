//! The chain that a swarm's wallets use: simnet's own, which the supervisor hosts, or a bitcoind.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use consortium_simnet::chain::Regtest;
use consortium_simnet::chain::rpc::{Credentials, RpcClient, RpcServer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::directory::{SwarmDir, replace_file};

/// Which chain a swarm uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum ChainPlan {
    /// None: no wallets.
    Off,
    /// Simnet's own, with its blocks in the swarm's directory.
    #[default]
    Embedded,
    /// Somebody else's.
    Bitcoind {
        /// URL without credentials.
        url: String,
        /// Holds `user:password`.
        cookie_file: PathBuf,
    },
}

/// Where a running swarm's chain is: `chain.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChainRecord {
    /// URL of the RPC, without credentials.
    pub(crate) url: String,
    /// Holds `user:password`.
    pub(crate) cookie_file: PathBuf,
    /// Whether simnet itself hosts it.
    pub(crate) embedded: bool,
}

/// The chain of a running swarm; simnet's own ends with the value.
#[derive(Debug)]
pub(crate) struct SwarmChain {
    pub(crate) record: ChainRecord,
    /// Height when the swarm came up.
    pub(crate) height: u64,
    _server: Option<RpcServer>,
}

impl ChainPlan {
    /// The plan for a bitcoind. Credentials in its URL (`http://user:password@host:port`, as they are) are kept in a
    /// file of the swarm's directory; else `cookie_file` holds them.
    ///
    /// # Errors
    /// When there are no credentials, or they cannot be kept.
    pub(crate) fn bitcoind(url: &str, cookie_file: Option<&Path>, dir: &SwarmDir) -> Result<Self> {
        let address = url.strip_prefix("http://").context("--bitcoind takes a URL that begins with http://")?;
        let (credentials, address) = match address.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, address),
        };
        let url = format!("http://{address}");
        let cookie_file = match (credentials.and_then(|text| text.split_once(':')), cookie_file) {
            (Some((user, password)), None) => {
                let path = dir.chain_dir().join("bitcoind.cookie");
                std::fs::create_dir_all(dir.chain_dir())?;
                let credentials = Credentials { user: user.to_owned(), password: password.to_owned() };
                credentials.write(&path).with_context(|| format!("cannot write {}", path.display()))?;
                path
            }
            (None, Some(path)) if credentials.is_none() => std::path::absolute(path)?,
            _ => bail!("a bitcoind needs credentials: http://USER:PASSWORD@HOST:PORT, or --bitcoind-cookie FILE"),
        };
        Ok(Self::Bitcoind { url, cookie_file })
    }

    /// Brings the chain up and writes down where it is.
    ///
    /// # Errors
    /// When the blocks in the directory cannot be used, or the bitcoind does not answer or is not on regtest.
    pub(crate) async fn start(&self, dir: &SwarmDir) -> Result<Option<SwarmChain>> {
        let chain = match self {
            Self::Off => return Ok(None),
            Self::Embedded => host(dir)?,
            Self::Bitcoind { url, cookie_file } => {
                let record = ChainRecord { url: url.clone(), cookie_file: cookie_file.clone(), embedded: false };
                SwarmChain { height: check(&record).await?, record, _server: None }
            }
        };
        replace_file(&dir.chain_file(), &serde_json::to_string_pretty(&chain.record)?)?;
        Ok(Some(chain))
    }
}

/// Serves the chain in the swarm's directory.
fn host(dir: &SwarmDir) -> Result<SwarmChain> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
    let regtest = Regtest::open(&dir.chain_dir(), now)
        .with_context(|| format!("the chain in {} cannot be used", dir.chain_dir().display()))?;
    let height = u64::from(regtest.chain.height());
    let cookie_file = dir.chain_dir().join("cookie");
    let credentials = Credentials::random();
    credentials.write(&cookie_file).with_context(|| format!("cannot write {}", cookie_file.display()))?;
    let server = RpcServer::start(regtest, credentials).context("cannot serve the chain")?;
    let record = ChainRecord { url: server.url(), cookie_file, embedded: true };
    Ok(SwarmChain { record, height, _server: Some(server) })
}

/// The height of a bitcoind, which must be on regtest: anything else has money that simnet would spend.
async fn check(record: &ChainRecord) -> Result<u64> {
    let info = record.client()?.call("getblockchaininfo", json!([])).await?;
    match info["chain"].as_str() {
        Some("regtest") => info["blocks"].as_u64().context("the bitcoind tells no height"),
        other => bail!("{} is on the chain {}, and simnet uses regtest alone", record.url, other.unwrap_or("?")),
    }
}

impl ChainRecord {
    /// Reads `chain.json` of a running swarm.
    ///
    /// # Errors
    /// When no swarm runs, or it has no chain.
    pub(crate) fn read(dir: &SwarmDir) -> Result<Self> {
        if !dir.is_live() {
            bail!("no swarm is running in {}: start one with `simnet up`", dir.root().display());
        }
        let path = dir.chain_file();
        let text = std::fs::read(&path)
            .with_context(|| format!("the swarm in {} has no chain (--no-lightning)", dir.root().display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is malformed", path.display()))
    }

    /// A client of the chain.
    ///
    /// # Errors
    /// When the credentials cannot be read.
    pub(crate) fn client(&self) -> Result<RpcClient> {
        let credentials = Credentials::read(&self.cookie_file)
            .with_context(|| format!("no credentials in {}", self.cookie_file.display()))?;
        Ok(RpcClient::new(&self.url, credentials)?)
    }

    /// Height of the chain now.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn height(&self) -> Result<u64> {
        height(&self.client()?).await
    }
}

/// Height of the chain now.
///
/// # Errors
/// When it does not answer.
pub(crate) async fn height(client: &RpcClient) -> Result<u64> {
    let answer: Value = client.call("getblockcount", json!([])).await?;
    answer.as_u64().context("the chain tells no height")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> (tempfile::TempDir, SwarmDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = SwarmDir::at(temp.path()).unwrap();
        (temp, dir)
    }

    #[tokio::test]
    async fn a_chain_goes_on_where_it_was() {
        let (_temp, dir) = place();
        let _lock = dir.lock().unwrap();
        let chain = ChainPlan::Embedded.start(&dir).await.unwrap().unwrap();
        let record = ChainRecord::read(&dir).unwrap();
        assert_eq!((&record, record.height().await.unwrap()), (&chain.record, chain.height));
        let client = record.client().unwrap();
        let address = client.call("getnewaddress", json!([])).await.unwrap();
        client.call("generatetoaddress", json!([3, address])).await.unwrap();
        drop(chain);
        assert!(record.height().await.is_err());
        let again = ChainPlan::Embedded.start(&dir).await.unwrap().unwrap();
        assert_eq!(again.height, 113);
        assert!(ChainPlan::Off.start(&dir).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_bitcoind_is_used_with_its_credentials() {
        let (_temp, dir) = place();
        let (_far, elsewhere) = place();
        let other = ChainPlan::Embedded.start(&elsewhere).await.unwrap().unwrap();
        let cookie = Credentials::read(&other.record.cookie_file).unwrap();
        let address = other.record.url.strip_prefix("http://").unwrap();

        let url = format!("http://{}:{}@{address}", cookie.user, cookie.password);
        let plan = ChainPlan::bitcoind(&url, None, &dir).unwrap();
        assert!(!serde_json::to_string(&plan).unwrap().contains(&cookie.password));
        let chain = plan.start(&dir).await.unwrap().unwrap();
        assert_eq!((chain.height, chain.record.embedded, &chain.record.url), (110, false, &other.record.url));

        let plan = ChainPlan::bitcoind(&other.record.url, Some(&other.record.cookie_file), &dir).unwrap();
        assert_eq!(plan.start(&dir).await.unwrap().unwrap().height, 110);

        let wrong = ChainPlan::bitcoind(&format!("http://me:wrong@{address}"), None, &dir).unwrap();
        assert!(wrong.start(&dir).await.unwrap_err().to_string().contains("refuses"));
        for (url, cookie) in [("ftp://x", None), ("http://x", None), ("http://a:b@x", Some(Path::new("y")))] {
            assert!(ChainPlan::bitcoind(url, cookie, &dir).is_err());
        }
    }

    #[tokio::test]
    async fn money_that_is_worth_something_is_left_alone() {
        let (_temp, dir) = place();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://a:b@{}", listener.local_addr().unwrap());
        let mainnet = async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let body = r#"{"result":{"chain":"main","blocks":900000},"error":null,"id":"simnet"}"#;
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let plan = ChainPlan::bitcoind(&url, None, &dir).unwrap();
        let (started, ()) = tokio::join!(plan.start(&dir), mainnet);
        let refusal = started.unwrap_err().to_string();
        assert!(refusal.contains("main") && refusal.contains("regtest"), "{refusal}");
    }
}
