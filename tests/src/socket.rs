//! The socket of a [`Raw`](crate::Raw) client, plain or in TLS that takes any certificate. Never speaks PostgreSQL.

use std::io::{Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use helios_proto::config::{LegTls, TlsMode};
use helios_tls::Files;
use helios_tls::live::Live;
use helios_tls::postgres::Dialling;
use rustls::{AlertDescription, ClientConnection, StreamOwned};

/// A connection's bytes.
pub enum Socket {
    /// As they are.
    Plain(TcpStream),
    /// Encrypted.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Why a handshake failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// The server said why.
    Alert(AlertDescription),
    /// It said nothing.
    Closed,
}

impl Socket {
    /// The TCP connection beneath.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(io) => io,
            Self::Tls(io) => &io.sock,
        }
    }

    /// Begins TLS now, with these names of protocols.
    ///
    /// # Errors
    /// When the server refuses it.
    ///
    /// # Panics
    /// When the socket has no other end.
    pub fn encrypt(&mut self, protocols: &[&str]) -> Result<(), Refused> {
        let leg = LegTls { section: "server_tls", mode: TlsMode::Require, authorities: None, identity: None };
        let live = Live::<Dialling>::open(Files::of_leg(&leg).unwrap()).unwrap();
        let mut config = rustls::ClientConfig::clone(&live.current().config);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut tls = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        let mut io = self.tcp().try_clone().unwrap();
        io.set_read_timeout(Some(crate::raw::PATIENCE)).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut io).map_err(|error| refusal(&error))?;
        }
        *self = Self::Tls(Box::new(StreamOwned::new(tls, io)));
        Ok(())
    }
}

fn refusal(error: &Error) -> Refused {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => Refused::Alert(*alert),
        _ => Refused::Closed,
    }
}

impl Read for Socket {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(io) => io.read(into),
            Self::Tls(io) => match io.read(into) {
                // The end of TLS without a farewell, or with an alert, is an end.
                Err(e) if matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => Ok(0),
                done => done,
            },
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(io) => io.write(bytes),
            Self::Tls(io) => io.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Plain(io) => io.flush(),
            Self::Tls(io) => io.flush(),
        }
    }
}
