//! Whether a bitcoind can be read by REST.
//!
//! It is asked before ldk-node is put together, which goes on without an answer: a new wallet would begin at the first
//! block of the chain, and wait for it in silence.

use std::time::Duration;

use lightning_block_sync::http::{HttpEndpoint, JsonResponse};
use lightning_block_sync::rest::RestClient;
use serde_json::Value;
use tokio::time::Instant;

use super::chain_source::RestEndpoint;
use super::error::WalletError;
use super::node;
use super::settings::Network;

/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(10);
/// Pause before it is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// Waits until a bitcoind of the network answers there: it may be starting, as this node is.
///
/// # Errors
/// [`WalletError::Rest`] with the last reason when it does not answer for that long, or is of another network.
pub(super) async fn answers(rest: &RestEndpoint, network: Network, patience: Duration) -> Result<(), WalletError> {
    let give_up = Instant::now() + patience;
    let wanted = node::bitcoin_network(network).to_core_arg();
    let failed = |reason: String| WalletError::Rest { place: rest.to_string(), reason };
    loop {
        let error = match chain(rest).await {
            Ok(chain) if chain == wanted => return Ok(()),
            Ok(chain) => return Err(failed(format!("its chain is {chain:.40}"))),
            Err(error) => error,
        };
        if Instant::now() > give_up {
            return Err(failed(error.to_string()));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The chain that a bitcoind follows, as it names it.
async fn chain(rest: &RestEndpoint) -> std::io::Result<String> {
    let endpoint = HttpEndpoint::for_host(rest.host.clone()).with_port(rest.port).with_path("/rest".to_owned());
    let client = RestClient::new(endpoint);
    let asking = client.request_resource::<JsonResponse, Value>("chaininfo.json");
    let answer = tokio::time::timeout(ANSWER, asking).await;
    let info = answer.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let chain = info["chain"].as_str().ok_or_else(|| std::io::Error::other("it names no chain"))?;
    Ok(chain.to_owned())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Gives each connection one of these answers, the last one again and again.
    async fn server(answers: &'static [(&'static str, &'static str)]) -> RestEndpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            for (status, body) in answers.iter().chain(std::iter::repeat(answers.last().unwrap())) {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /rest/chaininfo.json HTTP/1.1\r\n"));
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        RestEndpoint { host: "127.0.0.1".to_owned(), port }
    }

    #[tokio::test]
    async fn a_bitcoind_with_rest_is_waited_for() {
        let rest = server(&[
            ("503 Service Unavailable", "Service temporarily unavailable: Loading"),
            ("503 Service Unavailable", "Service temporarily unavailable: Loading"),
            ("503 Service Unavailable", "Service temporarily unavailable: Loading"),
            ("200 OK", r#"{"chain":"signet","blocks":7}"#),
        ])
        .await;
        answers(&rest, Network::Signet, Duration::from_secs(60)).await.unwrap();
        let other = answers(&rest, Network::Mainnet, Duration::from_secs(60)).await.unwrap_err();
        assert!(matches!(&other, WalletError::Rest { reason, .. } if reason.contains("signet")), "{other}");
    }

    #[tokio::test]
    async fn a_bitcoind_without_rest_is_refused() {
        for answer in
            [&[("404 Not Found", "")], &[("404 Not Found", "no")], &[("200 OK", "{}")], &[("200 OK", "<html>")]]
        {
            let rest = server(answer).await;
            let error = answers(&rest, Network::Regtest, Duration::ZERO).await.unwrap_err();
            assert!(error.to_string().contains("-rest=1"), "{error}");
            assert!(error.to_string().contains(&rest.to_string()), "{error}");
        }
    }
}
