//! Enums of the contract and of the model, both ways. One line per word; an unknown number stands for nothing.

use super::v1;
use crate::model::{Evidence, Health, PoolMode, ReadStrategy, Role};

macro_rules! both_ways {
    ($to:ident, $from:ident, $type:ident: $($variant:ident),+) => {
        /// The word as it goes over the wire.
        #[must_use]
        pub const fn $to(word: $type) -> v1::$type {
            match word { $($type::$variant => v1::$type::$variant),+ }
        }

        /// The word that came over the wire; `None` if this version does not know it.
        #[must_use]
        pub fn $from(number: i32) -> Option<$type> {
            match v1::$type::try_from(number).ok()? {
                v1::$type::Unspecified => None,
                $(v1::$type::$variant => Some($type::$variant)),+
            }
        }
    };
}

both_ways!(role, to_role, Role: Primary, Standby, Replica);
both_ways!(health, to_health, Health: Unknown, Up, Down);
both_ways!(pool_mode, to_pool_mode, PoolMode: Session, Transaction, Statement);
both_ways!(strategy, to_strategy, ReadStrategy:
    RoundRobin, WeightedRoundRobin, LeastConnections, LatencyBased, Random);

/// What a data plane saw, as it goes over the wire.
#[must_use]
pub const fn evidence_kind(evidence: Evidence) -> v1::evidence::Kind {
    use v1::evidence::Kind;
    match evidence {
        Evidence::ConnectFailed => Kind::ConnectFailed,
        Evidence::ConnectionLost => Kind::ConnectionLost,
        Evidence::InHotStandby(true) => Kind::HotStandbyOn,
        Evidence::InHotStandby(false) => Kind::HotStandbyOff,
    }
}

/// What a data plane saw; `None` if this version does not know it.
#[must_use]
pub fn evidence(number: i32) -> Option<Evidence> {
    use v1::evidence::Kind;
    match Kind::try_from(number).ok()? {
        Kind::Unspecified => None,
        Kind::ConnectFailed => Some(Evidence::ConnectFailed),
        Kind::ConnectionLost => Some(Evidence::ConnectionLost),
        Kind::HotStandbyOn => Some(Evidence::InHotStandby(true)),
        Kind::HotStandbyOff => Some(Evidence::InHotStandby(false)),
    }
}
