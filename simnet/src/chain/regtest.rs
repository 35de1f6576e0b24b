//! A chain with money in it: a directory with blocks and the key of their miner.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bitcoin::secp256k1::SecretKey;
use rand::Rng;
use thiserror::Error;

use super::faucet::Faucet;
use super::params::COINBASE_MATURITY;
use super::state::{Chain, ChainError};

/// Blocks that a new chain begins with: the subsidies of the first ten may be spent.
const FIRST_BLOCKS: u32 = COINBASE_MATURITY + 10;

/// Why a chain cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error("the chain's directory: {0}")]
    Io(#[from] io::Error),
    /// The file holds no key.
    #[error("the key of the chain's miner is damaged")]
    Key,
    /// Its blocks cannot be used.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// A chain, and who is paid for its blocks.
#[derive(Debug)]
pub struct Regtest {
    /// The chain.
    pub chain: Chain,
    /// The owner of what is mined.
    pub faucet: Faucet,
}

impl Regtest {
    /// The chain in `directory`; a new one, with 500 BTC to give away, where there is none. `now` is in Unix seconds.
    ///
    /// # Errors
    /// When the directory cannot be used, or what is in it is damaged.
    pub fn open(directory: &Path, now: u64) -> Result<Self, OpenError> {
        std::fs::create_dir_all(directory)?;
        let faucet = Faucet::new(read_or_make_key(&directory.join("miner.key"))?);
        let chain = Chain::open(&directory.join("blocks.dat"), now)?;
        Self { chain, faucet }.begun(now)
    }

    /// A new chain that is kept in memory alone.
    ///
    /// # Errors
    /// When its first blocks are not accepted.
    pub fn in_memory(now: u64) -> Result<Self, OpenError> {
        let key = SecretKey::from_slice(&rand::rng().random::<[u8; 32]>()).map_err(|_| OpenError::Key)?;
        Self { chain: Chain::new(), faucet: Faucet::new(key) }.begun(now)
    }

    fn begun(mut self, now: u64) -> Result<Self, OpenError> {
        while self.chain.height() < FIRST_BLOCKS {
            self.chain.mine(self.faucet.script(), now)?;
        }
        Ok(self)
    }
}

fn read_or_make_key(path: &Path) -> Result<SecretKey, OpenError> {
    match File::open(path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(33).read_to_end(&mut bytes)?;
            SecretKey::from_slice(&bytes).map_err(|_| OpenError::Key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = SecretKey::from_slice(&rand::rng().random::<[u8; 32]>()).map_err(|_| OpenError::Key)?;
            let mut file = File::options().create_new(true).write(true).mode(0o600).open(path)?;
            file.write_all(&key.secret_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}
