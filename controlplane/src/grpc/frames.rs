//! Discovery over bytes that were made before: a codec that puts the stream's own nonce in front of a message that many
//! streams send, and the service around it, as the generated one but for the codec. Decodes nothing itself.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes};
use helios_proto::wire::v1::{self, discovery_server};
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::{ProstCodec, ProstDecoder};

use super::discovery::Service;
use super::writer::Outgoing;

/// Most messages are small; a stream needs a buffer as long as it lives.
const BUFFER: usize = 1 << 10;
/// Messages that are ready together go out together, up to this.
const TOGETHER: usize = 32 << 10;
/// Field `nonce` of `CpMsg`.
const NONCE: u32 = 1;
const PATH: &str = "/helios.v1.Discovery/Stream";

/// A message for one data plane.
pub(super) struct Frame {
    /// Of this stream.
    pub nonce: u64,
    /// A `CpMsg` without its nonce.
    pub msg: Bytes,
}

/// [`Frame`]s one way, messages of data planes the other.
#[derive(Default)]
struct Frames;

impl Codec for Frames {
    type Encode = Frame;
    type Decode = v1::DpMsg;
    type Encoder = Self;
    type Decoder = ProstDecoder<v1::DpMsg>;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<v1::CpMsg, v1::DpMsg>::raw_decoder(BufferSettings::new(BUFFER, TOGETHER))
    }
}

impl Encoder for Frames {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, Frame { nonce, msg }: Frame, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // The order of fields means nothing.
        prost::encoding::uint64::encode(NONCE, &nonce, into);
        into.put_slice(&msg);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, TOGETHER)
    }
}

/// The service, as a router takes it.
#[derive(Clone)]
pub(super) struct Server(pub Arc<Service>);

impl NamedService for Server {
    const NAME: &'static str = discovery_server::SERVICE_NAME;
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl StreamingService<v1::DpMsg> for Server {
    type Response = Frame;
    type ResponseStream = Outgoing;
    type Future = Boxed<Result<Response<Outgoing>, Status>>;

    fn call(&mut self, request: Request<Streaming<v1::DpMsg>>) -> Self::Future {
        let service = Arc::clone(&self.0);
        Box::pin(async move { service.stream(request).await })
    }
}

impl tower::Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                return Ok(Status::new(Code::Unimplemented, "no such method").into_http());
            }
            let largest = Some(super::LARGEST);
            let mut grpc = Grpc::new(Frames).apply_max_message_size_config(largest, None);
            Ok(grpc.streaming(server, request).await)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use v1::cp_msg;

    #[test]
    fn a_nonce_before_a_message_makes_the_whole_message() {
        let beat = v1::Heartbeat { revision: 300, sha256: vec![7; 32] };
        let msg = cp_msg::Msg::Heartbeat(beat);
        for nonce in [0, 1, 127, 128, u64::MAX] {
            let mut bytes = Vec::new();
            prost::encoding::uint64::encode(NONCE, &nonce, &mut bytes);
            bytes.extend_from_slice(&crate::fanout::encode(msg.clone()));
            let whole = v1::CpMsg { nonce, msg: Some(msg.clone()) };
            assert_eq!(v1::CpMsg::decode(bytes.as_slice()).unwrap(), whole);
        }
    }

    #[test]
    fn the_path_is_that_of_the_contract() {
        assert_eq!(PATH, format!("/{}/Stream", discovery_server::SERVICE_NAME));
    }
}
