//! The first packet of a connection: never panics, names are short, parameters are sorted and unique, and what was read
//! gives the same when it is written and read again.

use helios_pgwire::frontend;
use helios_pgwire::startup::{FirstPacket, MAX_PACKET, PROTOCOL_LATEST, Settled, agreed, packet_size, parse};

/// The target.
///
/// # Panics
/// When a rule is broken.
pub fn run(data: &[u8]) {
    if let Ok(Some(size)) = packet_size(data) {
        assert!((8..=MAX_PACKET).contains(&size));
    }
    let settled = Settled { ssl: data.len() % 2 == 1, gss: data.len() % 3 == 1 };
    match parse(data, settled) {
        Ok(FirstPacket::Ssl) => assert!(!settled.ssl),
        Ok(FirstPacket::GssEnc) => assert!(!settled.gss),
        Ok(FirstPacket::Cancel { key, .. }) => assert!((4..=256).contains(&key.len())),
        Ok(FirstPacket::Startup(start)) => {
            assert!(agreed(start.version) <= PROTOCOL_LATEST);
            assert!((1..=63).contains(&start.user.len()) && (1..=63).contains(&start.database.len()));
            assert!(start.params.is_sorted() && start.params.windows(2).all(|pair| pair[0].0 != pair[1].0));
            let mut again = Vec::new();
            let params = start.params.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
            frontend::startup(&mut again, &start.user, &start.database, params);
            let Ok(FirstPacket::Startup(second)) = parse(&again, settled) else { panic!("{again:?}") };
            assert_eq!(
                (second.user, second.database, second.params),
                (start.user, start.database, start.params)
            );
        }
        Err(_) => {}
    }
}
