//! A way to a server with somebody in between, who knows which connections are those of probes. What becomes of a
//! connection is the test's business.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use crate::raw::SSL_REQUEST;

/// A connection that stands between a proxy and its server, with the startup passed on and nothing else.
pub struct Between {
    /// Counted from 0.
    pub number: u64,
    /// To the proxy.
    pub near: TcpStream,
    /// To the server.
    pub far: TcpStream,
    /// It is that of a probe.
    pub probe: bool,
}

/// Listens, and has each connection looked after in a thread of its own; the port. Lives as long as the test's process.
///
/// # Panics
/// When there is no port.
pub fn start(server: u16, look_after: impl Fn(Between) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for number in 0.. {
            let Ok((near, _)) = listener.accept() else { return };
            let look_after = look_after.clone();
            std::thread::spawn(move || {
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { return };
                let mut between = Between { number, near, far, probe: false };
                if between.pass_startup().is_ok() {
                    look_after(between);
                }
            });
        }
    });
    port
}

impl Between {
    /// Passes the first packets on, without TLS.
    fn pass_startup(&mut self) -> std::io::Result<()> {
        loop {
            let mut len = [0; 4];
            self.near.read_exact(&mut len)?;
            let mut packet = vec![0; usize::try_from(u32::from_be_bytes(len)).unwrap()];
            packet[..4].copy_from_slice(&len);
            self.near.read_exact(&mut packet[4..])?;
            if packet != SSL_REQUEST {
                self.probe = packet.windows(12).any(|part| part == b"helios-probe");
                return self.far.write_all(&packet);
            }
            self.near.write_all(b"N")?;
        }
    }
}
