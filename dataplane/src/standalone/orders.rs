//! Orders of the admin console, given to the embedded control plane: as changes by an operator, with their place in the
//! feed and in the audit log. Never waits for the data plane.

use crate::console::{Order, Ordered};
use helios_controlplane::feed::Feed;
use helios_controlplane::grpc::auth::Caller;
use helios_controlplane::grpc::{ByHand, by_hand};
use helios_controlplane::keeper::{Keeper, Refusal};
use helios_pgwire::PgError;
use helios_proto::config::Access;

/// Carries an order out; the revision of the snapshot that has it.
pub async fn obey(keeper: &Keeper, feed: &Feed, ordered: Ordered) -> Result<u64, Box<PgError>> {
    let Ordered { order, caller, verb, detail } = ordered;
    let caller =
        Caller { name: caller.user, access: Access::Admin, from: format!("{} (console)", caller.from) };
    let changed = by_hand((keeper, feed), (caller, verb, detail), marks(order)).await;
    changed.map(|changed| changed.revision).map_err(|refusal| Box::new(refused(&refusal)))
}

/// What an order does to every node.
fn marks(order: Order) -> ByHand {
    match order {
        Order::Pause => ByHand::Marks(|marks| {
            marks.paused = true;
            marks.reconnect = marks.reconnect.saturating_add(1);
        }),
        Order::Resume => ByHand::Marks(|marks| marks.paused = false),
        Order::Reconnect => ByHand::Marks(|marks| marks.reconnect = marks.reconnect.saturating_add(1)),
        Order::Own(outcome) => ByHand::Elsewhere(outcome),
    }
}

fn refused(refusal: &Refusal) -> PgError {
    PgError::error("55000", "the change was not made").detail(format!("The control plane says: {refusal}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use helios_proto::model::NodeOps;

    #[test]
    fn orders_are_marks_on_nodes() {
        let before = NodeOps { reconnect: 4, ..NodeOps::default() };
        let paused = NodeOps { paused: true, ..before };
        let cases = [
            (Order::Pause, before, Some(NodeOps { reconnect: 5, ..paused })),
            (Order::Resume, paused, Some(before)),
            (Order::Reconnect, paused, Some(NodeOps { reconnect: 5, ..paused })),
            (Order::Own("ok".to_owned()), before, None),
        ];
        for (order, mut ops, expected) in cases {
            let done = match marks(order.clone()) {
                ByHand::Marks(set) => {
                    set(&mut ops);
                    Some(ops)
                }
                ByHand::Elsewhere(_) => None,
            };
            assert_eq!(done, expected, "{order:?}");
        }
    }
}
