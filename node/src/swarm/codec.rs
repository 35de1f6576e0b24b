//! Request-response in canonical CBOR: a message is read up to its bound and no further.

use std::io;

use consortium_protocol::wire::Message;
use consortium_protocol::wire::rpc::{Request, Response};
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::StreamProtocol;
use libp2p::request_response::Codec;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RpcCodec;

impl Codec for RpcCodec {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Response;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
    ) -> io::Result<Request> {
        read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
    ) -> io::Result<Response> {
        read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
        request: Request,
    ) -> io::Result<()> {
        write(io, &request).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
        response: Response,
    ) -> io::Result<()> {
        write(io, &response).await
    }
}

async fn read<T: AsyncRead + Unpin + Send, M: Message>(io: &mut T) -> io::Result<M> {
    let mut bytes = Vec::new();
    io.take(M::MAX_BYTES as u64 + 1).read_to_end(&mut bytes).await?;
    M::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

async fn write<T: AsyncWrite + Unpin + Send, M: Message + Sync>(io: &mut T, message: &M) -> io::Result<()> {
    let bytes = message.encode();
    io.write_all(&bytes).await?;
    io.close().await
}
