//! Reading and writing of messages and frames on byte streams: bounded before they are read, with a deadline where
//! the other side owes something.

use std::io;
use std::time::Duration;

use consortium_protocol::envelope::{ENVELOPE_BYTES, Payload, Signed};
use consortium_protocol::wire::Message;
use consortium_protocol::wire::pipeline::{Frame, MAX_HEADER, parse_header};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Time that a peer has to take what is written to it, of what is longer each piece of so many bytes: a slow link is no fault.
const WRITE: Duration = Duration::from_secs(30);
const PIECE: usize = 64 << 10;

/// Writes `u32` little-endian length and bytes.
///
/// # Errors
/// When the stream breaks or the peer does not take the bytes in time.
pub(crate) async fn write_bytes(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    within(WRITE, stream.write_all(&length.to_le_bytes())).await?;
    for piece in bytes.chunks(PIECE) {
        within(WRITE, stream.write_all(piece)).await?;
    }
    within(WRITE, stream.flush()).await
}

/// Reads what [`write_bytes`] wrote, at most `max` bytes; none at the end of the stream.
///
/// # Errors
/// When the stream breaks off inside, or announces more than `max`.
pub(crate) async fn read_bytes(stream: &mut (impl AsyncRead + Unpin), max: usize) -> io::Result<Option<Vec<u8>>> {
    let Some(length) = read_length(stream).await? else { return Ok(None) };
    read_exactly(stream, length, max).await.map(Some)
}

/// Writes a message in canonical CBOR.
///
/// # Errors
/// As [`write_bytes`].
pub async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &impl Message) -> io::Result<()> {
    let bytes = message.encode();
    write_bytes(stream, &bytes).await
}

/// Reads a message in canonical CBOR; none at the end of the stream.
///
/// # Errors
/// As [`read_bytes`], and when the bytes are not the message expected.
pub async fn read_message<M: Message>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<M>> {
    let Some(bytes) = read_bytes(stream, M::MAX_BYTES).await? else { return Ok(None) };
    M::decode(&bytes).map(Some).map_err(invalid)
}

/// Reads a signed statement as it was sent, its signature verified; none at the end of the stream.
///
/// # Errors
/// As [`read_bytes`], and when the statement is not what it should be.
pub(super) async fn read_signed<P: Payload>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Signed<P>>> {
    let Some(bytes) = read_bytes(stream, P::MAX_BYTES + ENVELOPE_BYTES).await? else { return Ok(None) };
    Signed::decode(&bytes).map(Some).map_err(invalid)
}

/// Writes a frame.
///
/// # Errors
/// When the stream breaks or the peer does not take the bytes in time.
pub(super) async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let bytes = frame.encode();
    within(WRITE, async {
        stream.write_all(&bytes).await?;
        stream.flush().await
    })
    .await
}

/// Reads a frame and checks its payload's hash; none at the end of the stream.
///
/// # Errors
/// When the stream breaks off inside a frame, or the frame is malformed, too large or damaged.
pub(super) async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let Some(length) = read_length(stream).await? else { return Ok(None) };
    let header = read_exactly(stream, length, MAX_HEADER).await?;
    let header = parse_header(&header).map_err(invalid)?;
    let payload = read_exactly(stream, header.payload_len(), usize::MAX).await?;
    header.into_frame(payload).map(Some).map_err(invalid)
}

async fn read_length(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<usize>> {
    let mut prefix = [0; 4];
    let first = stream.read(&mut prefix).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[first..]).await?;
    Ok(Some(u32::from_le_bytes(prefix) as usize))
}

/// Reads `length` bytes, at most `max`. Grows with what arrives, so that an announced length alone allocates nothing.
///
/// # Errors
/// When there are to be more than `max`, or fewer arrive.
pub async fn read_exactly(stream: &mut (impl AsyncRead + Unpin), length: usize, max: usize) -> io::Result<Vec<u8>> {
    if length > max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes, and {max} is the most"),
        ));
    }
    let mut bytes = Vec::with_capacity(length.min(1 << 20));
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

async fn within<T>(deadline: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use consortium_protocol::wire::rpc::Request;

    use super::*;

    #[tokio::test]
    async fn an_oversized_or_broken_message_is_refused() {
        let mut huge: &[u8] = &[0xff, 0xff, 0xff, 0x7f, 1, 2, 3];
        assert_eq!(read_bytes(&mut huge, 1 << 20).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut short: &[u8] = &[5, 0, 0, 0, 1, 2];
        assert_eq!(read_bytes(&mut short, 1 << 20).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut header: &[u8] = &[1, 0];
        assert_eq!(read_frame(&mut header).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let mut ended: &[u8] = &[];
        assert!(read_frame(&mut ended).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn messages_come_back_as_they_were_sent() {
        let (mut a, mut b) = tokio::io::duplex(16);
        let sent = Request::Certificate;
        let writing = async { write_message(&mut a, &sent).await.unwrap() };
        let ((), got) = tokio::join!(writing, read_message::<Request>(&mut b));
        assert_eq!(got.unwrap().unwrap(), sent);
    }
}
