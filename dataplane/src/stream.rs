//! A socket, with or without TLS on it, as sessions and logins poll it. TLS is rustls, driven by hand: its state moves
//! between workers with the socket, and what was encrypted but not taken by the socket can be asked for. Knows nothing of
//! PostgreSQL's protocol.

use rustls::Connection;
use socket2::SockRef;
use std::future::poll_fn;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A socket of a client or a server.
pub struct Stream {
    io: TcpStream,
    tls: Option<Box<Connection>>,
}

impl From<TcpStream> for Stream {
    fn from(io: TcpStream) -> Self {
        Self { io, tls: None }
    }
}

/// The socket as rustls wants it.
struct Socket<'a, 'b> {
    io: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl io::Read for Socket<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        match Pin::new(&mut *self.io).poll_read(self.cx, &mut buf) {
            Poll::Ready(done) => done.map(|()| buf.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

fn or_would_block(done: Poll<io::Result<usize>>) -> io::Result<usize> {
    match done {
        Poll::Ready(done) => done,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl io::Write for Socket<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.io).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `Pending` for what would block.
fn poll<T>(done: io::Result<T>) -> Poll<io::Result<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        done => Poll::Ready(done),
    }
}

impl Stream {
    /// The socket itself, for its options and addresses; bytes of it are not for anybody to read.
    #[must_use]
    pub const fn tcp(&self) -> &TcpStream {
        &self.io
    }

    /// TLS on it.
    #[must_use]
    pub fn tls(&self) -> Option<&Connection> {
        self.tls.as_deref()
    }

    /// Whether there is TLS on it.
    #[must_use]
    pub const fn is_sealed(&self) -> bool {
        self.tls.is_some()
    }

    /// Its TLS in words, such as `TLSv1_3/TLS13_AES_256_GCM_SHA384`; empty: none.
    #[must_use]
    pub fn tls_words(&self) -> String {
        let known =
            self.tls().and_then(|tls| Some((tls.protocol_version()?, tls.negotiated_cipher_suite()?)));
        known.map_or_else(String::new, |(version, suite)| format!("{version:?}/{:?}", suite.suite()))
    }

    /// Whether bytes that were written wait for the socket.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Registers the socket with the reactor of the thread that runs this.
    ///
    /// # Errors
    /// What the system says; the socket is closed then.
    pub fn settle(self) -> io::Result<Self> {
        Ok(Self { io: TcpStream::from_std(self.io.into_std()?)?, tls: self.tls })
    }

    /// Puts TLS on the socket. `first` are bytes that came from the other side already.
    ///
    /// # Errors
    /// What the system or rustls says; the other side has been told as far as that goes.
    pub async fn seal(&mut self, mut tls: Connection, mut first: &[u8]) -> io::Result<()> {
        let mut fed = Ok(());
        while fed.is_ok() && !first.is_empty() {
            fed = tls.read_tls(&mut first).and_then(|_| process(&mut tls));
        }
        self.tls = Some(Box::new(tls));
        if let Err(error) = fed {
            // Tells the other side why.
            let _ = poll_fn(|cx| self.poll_flush(cx)).await;
            return Err(error);
        }
        poll_fn(|cx| self.poll_handshake(cx)).await
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_flush(cx))?;
            let Some(tls) = self.tls.as_mut().filter(|tls| tls.is_handshaking()) else {
                return Poll::Ready(Ok(()));
            };
            if ready!(poll(tls.read_tls(&mut Socket { io: &mut self.io, cx })))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Err(error) = process(tls) {
                // The reason, as far as the socket takes it now.
                let _ = self.poll_flush(cx);
                return Poll::Ready(Err(error));
            }
        }
    }

    /// Reads once: how many bytes, 0 at the end of the stream.
    ///
    /// # Errors
    /// What the system or rustls says.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(tls) = &mut self.tls else {
            let mut buf = ReadBuf::new(into);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
            return Poll::Ready(Ok(buf.filled().len()));
        };
        loop {
            match tls.reader().read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // Without a farewell, as clients of PostgreSQL end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Poll::Ready(Ok(0)),
                done => return Poll::Ready(done),
            }
            let mut socket = Socket { io: &mut self.io, cx };
            ready!(poll(tls.read_tls(&mut socket)))?;
            let processed = process(tls);
            while tls.wants_write() {
                // New keys, or why it ends; what the socket does not take goes with the next write.
                if tls.write_tls(&mut socket).is_err() {
                    break;
                }
            }
            processed?;
        }
    }

    /// Writes: how many bytes were taken. With TLS they may still wait for the socket, see [`Stream::is_behind`].
    ///
    /// # Errors
    /// What the system or rustls says.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.tls.is_none() {
            return Pin::new(&mut self.io).poll_write(cx, bytes);
        }
        ready!(self.poll_flush(cx))?;
        let Some(tls) = &mut self.tls else { return Poll::Ready(Ok(0)) };
        let taken = tls.writer().write(bytes)?;
        match self.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    /// Hands the socket what waits for it.
    ///
    /// # Errors
    /// What the system says.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(tls) = &mut self.tls else { return Poll::Ready(Ok(())) };
        while tls.wants_write() {
            ready!(poll(tls.write_tls(&mut Socket { io: &mut self.io, cx })))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Whether nothing has come that was not read, not even an end.
    #[must_use]
    pub fn is_silent(&mut self) -> bool {
        if let Some(tls) = &mut self.tls
            && tls.process_new_packets().map_or(1, |state| state.plaintext_bytes_to_read()) > 0
        {
            return false;
        }
        let mut byte = [MaybeUninit::uninit(); 1];
        match SockRef::from(&self.io).peek(&mut byte) {
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }

    /// Sends last bytes as well as that goes without waiting.
    pub fn send_last(&mut self, bytes: &[u8]) {
        let Some(tls) = &mut self.tls else {
            let _ = SockRef::from(&self.io).send(bytes);
            return;
        };
        if tls.writer().write_all(bytes).is_ok() {
            tls.send_close_notify();
            let mut last = Vec::new();
            while tls.wants_write() && tls.write_tls(&mut last).is_ok() {}
            let _ = SockRef::from(&self.io).send(&last);
        }
    }
}

fn process(tls: &mut Connection) -> io::Result<()> {
    let done = tls.process_new_packets();
    done.map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let n = ready!(Self::poll_read(self.get_mut(), cx, buf.initialize_unfilled()))?;
        buf.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Self::poll_write(self.get_mut(), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_flush(self.get_mut(), cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(tls) = &mut this.tls {
            tls.send_close_notify();
        }
        ready!(Self::poll_flush(this, cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
