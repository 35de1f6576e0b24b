//! Openings: a stage shows what it committed to, to whoever has the payer's nonce.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use consortium_protocol::identity::NodeId;
use consortium_protocol::wire;
use consortium_protocol::wire::audit::{AuditOrder, Opening};
use tokio::io::{AsyncRead, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tracing::debug;

use super::spool::{Place, Spool};
use crate::pipeline::{read_exactly, read_message, write_message};
use crate::swarm::{ByteStream, Incoming, SwarmHandle};

/// Time for a peer to say what it wants, and for a stage to begin its answer.
const ASKING: Duration = Duration::from_secs(15);
/// Time for all of an opening to arrive.
const FETCHING: Duration = Duration::from_secs(120);
/// The largest opening that is read, bytes of inputs and outputs together.
pub const MAX_OPENING: usize = 256 << 20;
/// Sessions that are too old are removed this often.
const TIDY: Duration = Duration::from_secs(60);
/// Openings served at a time.
const MAX_STREAMS: usize = 8;
/// Peers that may be about to ask for one.
const MAX_ASKING: usize = 256;

/// What a stage showed.
#[derive(Debug)]
pub struct Opened {
    /// Its rows.
    pub opening: Opening,
    /// What came in, f32 little-endian `[rows, width]`; empty for the first stage.
    pub inputs: Vec<u8>,
    /// What came out, of the same shape.
    pub outputs: Vec<u8>,
}

impl Opened {
    /// Reads the opening of the stage that an order is about, as long as its receipt says and at most [`MAX_OPENING`].
    /// `width` is the elements of a row, where they are known.
    ///
    /// # Errors
    /// When the stream breaks off, or the opening is not of the shape that receipt and width give.
    pub async fn read(
        stream: &mut (impl AsyncRead + Unpin),
        order: &AuditOrder,
        width: Option<u32>,
    ) -> io::Result<Self> {
        let Some(opening) = read_message::<Opening>(stream).await? else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "nothing was shown"));
        };
        let said = order.receipt().map(|receipt| (receipt.payload().positions as usize, receipt.payload().stage));
        let lengths = said
            .filter(|(positions, _)| opening.tokens.len() == *positions)
            .filter(|_| width.is_none_or(|width| opening.width == width))
            .and_then(|(_, stage)| opening.lengths(stage))
            .filter(|(inputs, outputs)| inputs + outputs <= MAX_OPENING);
        let Some((inputs, outputs)) = lengths else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not of the shape that was signed for"));
        };
        let inputs = read_exactly(stream, inputs, MAX_OPENING).await?;
        let outputs = read_exactly(stream, outputs, MAX_OPENING).await?;
        Ok(Self { opening, inputs, outputs })
    }
}

/// Asks the stage that an order is about for its opening.
///
/// # Errors
/// In words, when it shows nothing, or not what it should.
pub async fn fetch(swarm: &SwarmHandle, order: &AuditOrder, width: u32) -> Result<Opened, String> {
    let Some(receipt) = order.receipt() else { return Err("no receipt".to_owned()) };
    let fetching = async {
        let mut stream = swarm.open_stream(receipt.signer(), wire::OPENING).await.map_err(|error| error.to_string())?;
        write_message(&mut stream, order).await.map_err(|error| error.to_string())?;
        Opened::read(&mut stream, order, Some(width)).await.map_err(|error| error.to_string())
    };
    tokio::time::timeout(FETCHING, fetching).await.unwrap_or_else(|_| Err("it took too long".to_owned()))
}

/// Shows this node's sessions to those who may see them, until the swarm ends.
pub async fn serve(swarm: SwarmHandle, spool: Spool, mut incoming: Incoming) {
    let (asking, room) = (Arc::new(Semaphore::new(MAX_ASKING)), Semaphore::new(MAX_STREAMS));
    let room = Arc::new(room);
    let mut tidy = tokio::time::interval(TIDY);
    tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let incoming = tokio::select! {
            incoming = incoming.recv() => incoming,
            _ = tidy.tick() => {
                let spool = spool.clone();
                tokio::task::spawn_blocking(move || spool.tidy());
                continue;
            }
        };
        let Some((from, stream)) = incoming else { return };
        let Ok(permit) = Arc::clone(&asking).try_acquire_owned() else { continue };
        let (me, spool, room) = (swarm.me(), spool.clone(), Arc::clone(&room));
        tokio::spawn(async move {
            let _held_while_serving = permit;
            if let Err(error) = show(me, &spool, &room, stream).await {
                debug!(%from, %error, "an opening was not shown");
            }
        });
    }
}

async fn show(me: NodeId, spool: &Spool, room: &Semaphore, mut stream: ByteStream) -> io::Result<()> {
    let asked = tokio::time::timeout(ASKING, read_message::<AuditOrder>(&mut stream)).await;
    let Some(order) = asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else { return Ok(()) };
    let place = order.receipt().filter(|receipt| receipt.signer() == me).and_then(|r| spool.find(&r.digest()));
    let Some(place) = place else {
        return Err(io::Error::new(io::ErrorKind::NotFound, "no such session is kept here"));
    };
    // Only whoever has the nonce gets so far: nobody else can take the places.
    let Ok(_sending) = room.acquire().await else { return Ok(()) };
    let sending = async {
        match place {
            Place::Memory(kept) => {
                write_message(&mut stream, &kept.opening).await?;
                stream.write_all(&kept.inputs).await?;
                stream.write_all(&kept.outputs).await?;
            }
            Place::File(path) => {
                let mut file = tokio::fs::File::open(path).await?;
                tokio::io::copy(&mut file, &mut stream).await?;
            }
        }
        stream.shutdown().await
    };
    tokio::time::timeout(FETCHING, sending).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
