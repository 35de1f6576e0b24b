//! Where a wallet reads the chain and sends its transactions.
//!
//! A bitcoind sees nothing of the wallet but what it broadcasts, and verifies everything itself. An Esplora or Electrum
//! server learns which addresses belong together, is believed about the chain, and is asked every ten seconds at most;
//! with either, announcements of others' channels are not verified.
//!
//! Of a bitcoind everything is asked by JSON-RPC, or what there is to read by REST (`-rest=1`): headers, blocks, what
//! waits for a block, and whether the outputs of others' channels are unspent. REST needs no credentials and sends
//! blocks as they are, half as long as in JSON. What it does not have stays with JSON-RPC: sending transactions, fees,
//! when a transaction came, headers off the best chain, and what the wallet asks beside ldk-node. REST may be answered
//! elsewhere than JSON-RPC, by a proxy or another bitcoind of one's own: it is believed as the bitcoind is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::settings::SettingsError;

/// Largest cookie file, in bytes.
const MAX_COOKIE: u64 = 1024;

/// How a bitcoind knows the wallet.
#[derive(Clone, PartialEq, Eq)]
pub enum BitcoindAuth {
    /// A user and a password.
    User {
        /// The user.
        user: String,
        /// The password; never shown.
        password: String,
    },
    /// The file in which a bitcoind leaves `user:password` at each start.
    Cookie(PathBuf),
}

/// Where a bitcoind's REST interface answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestEndpoint {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Where the chain is read.
#[derive(Clone, PartialEq, Eq)]
pub enum ChainSource {
    /// A bitcoind's JSON-RPC, without TLS: it should be on the same machine or network.
    Bitcoind {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
        /// Credentials.
        auth: BitcoindAuth,
        /// Where blocks are read by REST; by JSON-RPC if none.
        rest: Option<RestEndpoint>,
    },
    /// The URL of an Esplora server.
    Esplora(String),
    /// The URL of an Electrum server.
    Electrum(String),
}

impl ChainSource {
    /// A bitcoind at `http://[USER:PASSWORD@]HOST[:PORT]`, with a cookie file where there is no password in the URL.
    ///
    /// # Errors
    /// [`SettingsError::Chain`], without the password.
    pub fn bitcoind(url: &str, cookie: Option<&Path>, default_port: u16) -> Result<Self, SettingsError> {
        let bad = |why: &str| {
            SettingsError::Chain(format!("the URL of bitcoind {why}; write http://USER:PASSWORD@HOST:PORT"))
        };
        let rest = url.strip_prefix("http://").ok_or_else(|| bad("must begin with http://"))?;
        let (credentials, place) = match rest.trim_end_matches('/').rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, rest.trim_end_matches('/')),
        };
        let (host, port) = host_and_port(place, default_port).ok_or_else(|| bad("has no valid host and port"))?;
        let auth = match (credentials.map(|text| text.split_once(':')), cookie) {
            (Some(Some((user, password))), None) if !user.is_empty() && !password.is_empty() => {
                let decoded = |text| percent_decoded(text).ok_or_else(|| bad("has broken percent encoding"));
                BitcoindAuth::User { user: decoded(user)?, password: decoded(password)? }
            }
            (None, Some(cookie)) => BitcoindAuth::Cookie(cookie.to_owned()),
            (Some(_), Some(_)) => return Err(bad("has credentials, and there is a cookie file too: give one of them")),
            _ => return Err(bad("has no user and password, and there is no cookie file")),
        };
        Ok(Self::Bitcoind { host, port, auth, rest: None })
    }

    /// The same bitcoind, read by REST at `http://HOST[:PORT]`, or where its JSON-RPC is if none.
    ///
    /// # Errors
    /// [`SettingsError::Chain`], when this is no bitcoind, or that no such URL.
    pub fn with_rest(self, url: Option<&str>, default_port: u16) -> Result<Self, SettingsError> {
        let Self::Bitcoind { host, port, auth, .. } = self else {
            let why = "only a bitcoind is read by REST: give its JSON-RPC, too, with --bitcoind";
            return Err(SettingsError::Chain(why.to_owned()));
        };
        let bad = |why: &str| SettingsError::Chain(format!("the URL of bitcoind's REST {why}; write http://HOST:PORT"));
        let rest = match url {
            None => RestEndpoint { host: host.clone(), port },
            Some(url) => {
                let place = url.strip_prefix("http://").ok_or_else(|| bad("must begin with http://"))?;
                if place.contains('@') {
                    return Err(bad("takes no credentials, because REST asks for none"));
                }
                let place = host_and_port(place.trim_end_matches('/'), default_port);
                let (host, port) = place.ok_or_else(|| bad("has no valid host and port"))?;
                RestEndpoint { host, port }
            }
        };
        Ok(Self::Bitcoind { host, port, auth, rest: Some(rest) })
    }

    /// Where blocks are read by REST, if they are.
    #[must_use]
    pub const fn rest(&self) -> Option<&RestEndpoint> {
        match self {
            Self::Bitcoind { rest: Some(rest), .. } => Some(rest),
            _ => None,
        }
    }

    /// An Esplora server.
    ///
    /// # Errors
    /// [`SettingsError::Chain`] when it is not an HTTP URL.
    pub fn esplora(url: &str) -> Result<Self, SettingsError> {
        match has_host(url, &["https://", "http://"]) {
            true => Ok(Self::Esplora(url.trim_end_matches('/').to_owned())),
            false => {
                Err(SettingsError::Chain("the URL of the Esplora server must be like https://HOST/PATH".to_owned()))
            }
        }
    }

    /// Whether others on the way to it could read and change what it says: no TLS, and not on this machine. A bitcoind is
    /// taken to be on the operator's own network.
    #[must_use]
    pub(super) fn is_in_clear(&self) -> bool {
        let (Self::Esplora(url) | Self::Electrum(url)) = self else { return false };
        let Some(place) = ["http://", "tcp://"].iter().find_map(|scheme| url.strip_prefix(scheme)) else {
            return false;
        };
        let authority = place.split(['/', '?', '#']).next().unwrap_or_default();
        let bare = authority.rsplit('@').next().unwrap_or_default();
        let host = host_and_port(bare, 0).map(|(host, _)| host).unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host != "localhost" && !address.is_ok_and(|address| address.is_loopback())
    }

    /// An Electrum server.
    ///
    /// # Errors
    /// [`SettingsError::Chain`] when it is not such a URL.
    pub fn electrum(url: &str) -> Result<Self, SettingsError> {
        match has_host(url, &["ssl://", "tcp://"]) {
            true => Ok(Self::Electrum(url.to_owned())),
            false => {
                Err(SettingsError::Chain("the URL of the Electrum server must be like ssl://HOST:PORT".to_owned()))
            }
        }
    }
}

impl BitcoindAuth {
    /// User and password, the cookie file read anew.
    ///
    /// # Errors
    /// [`SettingsError::Cookie`] when the file cannot be read, or is no cookie.
    pub fn credentials(&self) -> Result<(String, String), SettingsError> {
        let path = match self {
            Self::User { user, password } => return Ok((user.clone(), password.clone())),
            Self::Cookie(path) => path,
        };
        let failed = |reason: String| SettingsError::Cookie { path: path.clone(), reason };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_COOKIE), &mut text)
            .map_err(|error| failed(error.to_string()))?;
        match text.trim_end().split_once(':') {
            Some((user, password)) if !password.is_empty() => Ok((user.to_owned(), password.to_owned())),
            _ => Err(failed("it is not the cookie file of a bitcoind".to_owned())),
        }
    }
}

impl FromStr for ChainSource {
    type Err = SettingsError;

    /// An Esplora or Electrum server by its scheme.
    fn from_str(url: &str) -> Result<Self, Self::Err> {
        Self::electrum(url).or_else(|_| Self::esplora(url))
    }
}

impl fmt::Debug for BitcoindAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { .. } => f.write_str("User(..)"),
            Self::Cookie(path) => f.debug_tuple("Cookie").field(path).finish(),
        }
    }
}

impl fmt::Display for RestEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Without credentials.
impl fmt::Display for ChainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bitcoind { host, port, rest, .. } => {
                write!(f, "bitcoind at {host}:{port}")?;
                match rest {
                    None => Ok(()),
                    Some(rest) if (&rest.host, rest.port) == (host, *port) => f.write_str(", read by REST"),
                    Some(rest) => write!(f, ", read by REST at {rest}"),
                }
            }
            Self::Esplora(url) => write!(f, "Esplora at {}", without_credentials(url)),
            Self::Electrum(url) => write!(f, "Electrum at {}", without_credentials(url)),
        }
    }
}

impl fmt::Debug for ChainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainSource({self})")
    }
}

fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, place))) => format!("{scheme}://{place}"),
        _ => url.to_owned(),
    }
}

fn has_host(url: &str, schemes: &[&str]) -> bool {
    let rest = schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace))
}

fn host_and_port(place: &str, default_port: u16) -> Option<(String, u16)> {
    // The colons of a bare IPv6 address in brackets are not that of a port.
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
        _ => (place, default_port),
    };
    let sound = !host.is_empty() && !host.contains(['/', '?', '#']) && !host.contains(char::is_whitespace);
    sound.then(|| (host.to_owned(), port))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            &after[2..]
        } else {
            bytes.push(*first);
            after
        };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitcoind_is_named_with_its_credentials_and_shown_without() {
        let source = ChainSource::bitcoind("http://alice:pa%3Ass@127.0.0.1:18443/", None, 8332).unwrap();
        let ChainSource::Bitcoind { host, port, auth, .. } = &source else { panic!("{source}") };
        assert_eq!((host.as_str(), *port), ("127.0.0.1", 18443));
        assert_eq!(auth.credentials().unwrap(), ("alice".to_owned(), "pa:ss".to_owned()));
        for shown in [source.to_string(), format!("{source:?}"), format!("{auth:?}")] {
            assert!(!shown.contains("pa") && !shown.contains("alice"), "{shown}");
        }
        let error = ChainSource::bitcoind("https://alice:secret@h", None, 1).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_cookie_is_read_when_it_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".cookie");
        let source = ChainSource::bitcoind("http://[::1]", Some(&path), 38332).unwrap();
        let ChainSource::Bitcoind { host, port, auth, .. } = source else { panic!() };
        assert_eq!((host.as_str(), port), ("[::1]", 38332));
        assert!(matches!(auth.credentials(), Err(SettingsError::Cookie { .. })));
        std::fs::write(&path, "__cookie__:0123\n").unwrap();
        assert_eq!(auth.credentials().unwrap(), ("__cookie__".to_owned(), "0123".to_owned()));
        std::fs::write(&path, "nothing").unwrap();
        assert!(auth.credentials().is_err());
    }

    #[test]
    fn a_bitcoind_may_be_read_by_rest() {
        let bitcoind = || ChainSource::bitcoind("http://alice:hunter2@h:1", None, 8332).unwrap();
        for (url, shown) in [
            (None, "bitcoind at h:1, read by REST"),
            (Some("http://h:1/"), "bitcoind at h:1, read by REST"),
            (Some("http://h"), "bitcoind at h:1, read by REST at h:8332"),
            (Some("http://other:2"), "bitcoind at h:1, read by REST at other:2"),
        ] {
            assert_eq!(bitcoind().with_rest(url, 8332).unwrap().to_string(), shown, "{url:?}");
        }
        for url in ["h:1", "https://h:1", "http://", "http://h:1/rest", "http://bob:hunter3@h:1"] {
            let error = bitcoind().with_rest(Some(url), 8332).unwrap_err().to_string();
            assert!(error.contains("http://HOST:PORT") && !error.contains("hunter"), "{url}: {error}");
        }
        let esplora = ChainSource::esplora("https://h").unwrap();
        assert!(esplora.with_rest(None, 8332).unwrap_err().to_string().contains("--bitcoind"));
    }

    #[test]
    fn nonsense_is_refused() {
        let cookie = Path::new("c");
        for (url, cookie) in [
            ("http://h", None),
            ("http://u@h", None),
            ("http://u:p@h:port", None),
            ("http://u:p@h", Some(cookie)),
            ("http://u:%zz@h", None),
            ("http://:80", Some(cookie)),
            ("http://a/b", Some(cookie)),
            ("ftp://u:p@h", None),
        ] {
            assert!(ChainSource::bitcoind(url, cookie, 1).is_err(), "{url}");
        }
        assert!(ChainSource::esplora("blockstream.info").is_err());
        assert!(ChainSource::electrum("https://x").is_err());
        assert_eq!(ChainSource::esplora("https://u:p@h/api/").unwrap().to_string(), "Esplora at https://h/api");
        assert!("ssl://h:1".parse() == Ok(ChainSource::Electrum("ssl://h:1".to_owned())));
    }
}
