//! The pool's rules as tables: who gets a place, who comes next, who makes room. Connections are sockets to a listener
//! that accepts and says nothing; time is real but only compared with itself.

use super::*;
use crate::pool::Identities;
use crate::pool::sweep::established;
use crate::server::Credential;
use helios_pgwire::login::Welcome;
use helios_proto::model::{NodeName, NodeOps, Role};
use std::task::{Context, Poll, Waker};
use tokio::net::{TcpListener, TcpStream};

const LONG: Duration = Duration::from_secs(60);

struct World {
    pool: Arc<NodePool>,
    identities: Identities,
    listener: TcpListener,
    accepted: Mutex<Vec<TcpStream>>,
}

/// What a checkout gave, without its contents.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Ready,
    Dial,
    Wait,
    Away,
    Retired,
}

impl World {
    async fn new(max: u32) -> Self {
        let node = Node {
            name: NodeName::new("n"),
            host: "127.0.0.1".to_owned(),
            port: 1,
            role: Role::Primary,
            weight: 100,
            max_connections: None,
        };
        let pool = NodePool::new(Arc::new(node), max, (Source::Leased, &Arc::default()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        Self { pool, identities: Identities::default(), listener, accepted: Mutex::default() }
    }

    fn identity(&self, user: &str, database: &str) -> Arc<Identity> {
        let nothing = Arc::new(Credential::Nothing);
        self.identities.get(user.as_bytes(), database.as_bytes(), Vec::new(), 0, &nothing)
    }

    fn ask(&self, identity: &Arc<Identity>, waiter: &Arc<Waiter>, caps: Caps) -> Checkout {
        self.pool.checkout(&Request { identity, waiter, settings: None, caps, timeout: LONG })
    }

    /// Opens the connection that a slot is for.
    async fn open(&self, slot: Slot, worker: usize) -> Box<ServerConn> {
        let io = TcpStream::connect(self.listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = self.listener.accept().await.unwrap();
        self.accepted.lock().unwrap().push(accepted);
        established((io.into(), None), &Welcome::default(), slot, worker, None)
    }

    async fn conn(&self, identity: &Arc<Identity>, worker: usize) -> Box<ServerConn> {
        match self.ask(identity, &Waiter::new(worker), Caps::default()) {
            Checkout::Dial(slot) => self.open(slot, worker).await,
            other => panic!("no place: {:?}", got(&other)),
        }
    }

    fn conn_at_hand(&self, identity: &Arc<Identity>) -> Box<ServerConn> {
        match self.ask(identity, &Waiter::new(0), Caps::default()) {
            Checkout::Ready(conn) => conn,
            other => panic!("none at hand: {:?}", got(&other)),
        }
    }

    fn counts(&self) -> (u32, u32, u32, usize) {
        let Counts { total, active, idle, waiting } = self.pool.counts();
        (total, active, idle, waiting)
    }
}

fn got(checkout: &Checkout) -> Got {
    match checkout {
        Checkout::Ready(_) => Got::Ready,
        Checkout::Dial(_) => Got::Dial,
        Checkout::Wait => Got::Wait,
        Checkout::Away => Got::Away,
        Checkout::Retired => Got::Retired,
    }
}

/// What a waiter has, if it has anything.
fn outcome(waiter: &Waiter) -> Option<Outcome> {
    match waiter.poll(&Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

fn has_conn(waiter: &Waiter) -> Option<Box<ServerConn>> {
    match outcome(waiter) {
        Some(Outcome::Granted(Grant::Conn(conn))) => Some(conn),
        Some(_) => panic!("something else than a connection"),
        None => None,
    }
}

fn has_place(waiter: &Waiter) -> Option<Slot> {
    match outcome(waiter) {
        Some(Outcome::Granted(Grant::Dial(slot))) => Some(slot),
        Some(_) => panic!("something else than a place"),
        None => None,
    }
}

#[tokio::test]
async fn places_are_bounded_and_come_back_however_they_end() {
    let world = World::new(2).await;
    let app = world.identity("app", "db");
    let one = world.conn(&app, 0).await;
    let two = world.ask(&app, &Waiter::new(0), Caps::default());
    assert_eq!((got(&two), world.counts()), (Got::Dial, (2, 2, 0, 0)));
    let third = Waiter::new(0);
    assert_eq!(got(&world.ask(&app, &third, Caps::default())), Got::Wait);
    assert_eq!(world.counts(), (2, 2, 0, 1));
    // A dial that comes to nothing gives its place to the one that waits.
    drop(two);
    let slot = has_place(&third).expect("the place");
    assert_eq!(world.counts(), (2, 2, 0, 0));
    drop(slot);
    world.pool.put_back(one);
    assert_eq!(world.counts(), (1, 0, 1, 0));
    assert_eq!(got(&world.ask(&app, &third, Caps::default())), Got::Ready);
    world.pool.retire();
    assert_eq!(got(&world.ask(&app, &third, Caps::default())), Got::Retired);
}

#[tokio::test]
async fn a_connection_is_never_lent_to_another_identity() {
    let world = World::new(2).await;
    let (a, b) = (world.identity("a", "db"), world.identity("b", "db"));
    let conn = world.conn(&a, 0).await;
    world.pool.put_back(conn);
    let other = world.ask(&b, &Waiter::new(0), Caps::default());
    assert_eq!((got(&other), world.counts()), (Got::Dial, (2, 1, 1, 0)), "room is there: the idle one stays");
    let third = world.ask(&b, &Waiter::new(0), Caps::default());
    assert_eq!((got(&third), world.counts()), (Got::Dial, (2, 2, 0, 0)), "the idle one made room");
    // A connection that comes back while only another identity waits closes, and its place goes on.
    drop((other, third));
    let (one, two) = (world.conn(&a, 0).await, world.conn(&a, 0).await);
    let waiter = Waiter::new(0);
    assert_eq!(got(&world.ask(&b, &waiter, Caps::default())), Got::Wait);
    world.pool.put_back(one);
    assert!(has_place(&waiter).is_some());
    drop(two);
}

#[tokio::test]
async fn caps_of_users_and_databases_hold_and_the_right_one_makes_room() {
    let world = World::new(10).await;
    let caps = Caps { user: Some(1), database: Some(2) };
    let (a, b, c) = (world.identity("a", "x"), world.identity("b", "x"), world.identity("c", "x"));
    let elsewhere = world.identity("a", "y");
    let mine = world.conn(&a, 0).await;
    let waiter = Waiter::new(0);
    assert_eq!(got(&world.ask(&elsewhere, &waiter, caps)), Got::Wait, "user a has one");
    world.pool.put_back(mine);
    assert!(has_place(&waiter).is_some(), "user a has none in use");
    let (one, two) = (world.conn(&a, 0).await, world.conn(&b, 0).await);
    let waiter = Waiter::new(0);
    assert_eq!(got(&world.ask(&c, &waiter, caps)), Got::Wait, "database x has two");
    drop(two);
    assert!(has_place(&waiter).is_some());
    drop(one);
    // An idle connection of another database would make no room in a full one.
    let (other, here) = (world.identity("d", "y"), world.identity("e", "x"));
    for conn in [world.conn(&other, 0).await, world.conn(&a, 0).await, world.conn(&b, 0).await] {
        world.pool.put_back(conn);
    }
    assert_eq!(got(&world.ask(&here, &Waiter::new(0), caps)), Got::Dial);
    assert_eq!(world.pool.lock().idle.get(&other.id).map(Vec::len), Some(1), "the stranger stays");
}

#[tokio::test]
async fn who_waits_is_served_in_turn_but_for_a_better_match_nearby() {
    let world = World::new(1).await;
    let (a, b) = (world.identity("a", "db"), world.identity("b", "db"));
    let conn = world.conn(&a, 0).await;
    let waiters: Vec<_> = [(&a, 1), (&a, 0), (&b, 0)]
        .map(|(identity, worker)| {
            let waiter = Waiter::new(worker);
            assert_eq!(got(&world.ask(identity, &waiter, Caps::default())), Got::Wait);
            waiter
        })
        .into();
    let age = |by: Duration| {
        for queued in &mut world.pool.lock().queue {
            queued.since = Instant::now().checked_sub(by).unwrap();
        }
    };
    // Young: the waiter of its own worker is preferred to an older one of another.
    age(Duration::ZERO);
    world.pool.put_back(conn);
    assert!(has_conn(&waiters[0]).is_none());
    let conn = has_conn(&waiters[1]).expect("same worker");
    // Old: the oldest gets it, whatever its worker.
    assert_eq!(got(&world.ask(&a, &waiters[1], Caps::default())), Got::Wait);
    age(Duration::from_millis(5));
    world.pool.put_back(conn);
    let conn = has_conn(&waiters[0]).expect("the oldest");
    // Another identity that has waited for long enough gets the place, although a better match waits.
    age(Duration::from_secs(1));
    world.pool.put_back(conn);
    assert!(has_conn(&waiters[1]).is_none());
    assert!(has_place(&waiters[2]).is_some());
}

#[tokio::test]
async fn who_gives_up_loses_nothing_for_the_others() {
    let world = World::new(1).await;
    let app = world.identity("app", "db");
    let conn = world.conn(&app, 0).await;
    let (first, second) = (Waiter::new(0), Waiter::new(0));
    for waiter in [&first, &second] {
        assert_eq!(got(&world.ask(&app, waiter, Caps::default())), Got::Wait);
    }
    // Granted in the moment in which it gave up.
    world.pool.put_back(conn);
    world.pool.abandon(&first);
    let conn = has_conn(&second).expect("it went on");
    assert_eq!(got(&world.ask(&app, &first, Caps::default())), Got::Wait);
    world.pool.abandon(&first);
    world.pool.put_back(conn);
    assert_eq!(world.counts(), (1, 0, 1, 0));
}

#[tokio::test]
async fn waits_expire_later_while_the_pool_is_paused() {
    let world = World::new(1).await;
    let app = world.identity("app", "db");
    let text = "[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n";
    let settings = helios_proto::config::parse(text, "test", &|_| None).unwrap().spec.settings;
    let orders = |paused| NodeOps { paused, ..NodeOps::default() };
    world.pool.obey(&orders(true), false, None, &settings);
    let waiter = Waiter::new(0);
    let request = Request {
        identity: &app,
        waiter: &waiter,
        settings: None,
        caps: Caps::default(),
        timeout: Duration::ZERO,
    };
    assert_eq!(got(&world.pool.checkout(&request)), Got::Wait);
    let now = Instant::now();
    world.pool.expire(now);
    assert!(outcome(&waiter).is_none(), "paused is not too small");
    world.pool.expire(now + settings.write_timeout + Duration::from_secs(1));
    assert!(matches!(outcome(&waiter), Some(Outcome::Expired)));
    assert_eq!(got(&world.pool.checkout(&request)), Got::Wait);
    world.pool.obey(&orders(false), false, None, &settings);
    assert!(has_place(&waiter).is_some(), "resumed");
}

#[tokio::test]
async fn a_smaller_pool_shrinks_as_connections_come_back_and_dead_ones_are_not_lent() {
    let world = World::new(3).await;
    let app = world.identity("app", "db");
    let text = "[pool_mode]\nmax_pool_size = 1\n[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n";
    let settings = helios_proto::config::parse(text, "test", &|_| None).unwrap().spec.settings;
    let conns = [world.conn(&app, 0).await, world.conn(&app, 0).await, world.conn(&app, 0).await];
    world.pool.obey(&NodeOps::default(), false, None, &settings);
    conns.into_iter().for_each(|conn| world.pool.put_back(conn));
    assert_eq!(world.counts(), (1, 0, 1, 0));
    world.accepted.lock().unwrap().clear();
    // Idle for long enough that its last use proves nothing, and its server is gone.
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert_eq!(got(&world.ask(&app, &Waiter::new(0), Caps::default())), Got::Dial);
    assert_eq!(world.counts(), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_held_pool_lends_nothing_knows_who_rests_and_sends_the_queue_elsewhere_when_it_is_cut() {
    let world = World::new(3).await;
    let app = world.identity("app", "db");
    let text = "[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n";
    let settings = helios_proto::config::parse(text, "test", &|_| None).unwrap().spec.settings;
    let (mut tied, busy) = (world.conn(&app, 0).await, world.conn(&app, 0).await);
    tied.slot.set_resting(true);
    tied.slot.set_resting(true);
    world.pool.obey(&NodeOps::default(), true, None, &settings);
    let waiter = Waiter::new(0);
    assert_eq!(got(&world.ask(&app, &waiter, Caps::default())), Got::Wait, "there is room, but it is held");
    assert_eq!((world.pool.counts().active, world.pool.resting(), world.pool.is_held()), (2, 1, true));
    world.pool.put_back(busy);
    assert_eq!(world.counts(), (2, 1, 1, 1), "what comes back stays");
    world.pool.cut();
    assert!(matches!(outcome(&waiter), Some(Outcome::Retired)), "to be chosen anew");
    assert_eq!(got(&world.ask(&app, &waiter, Caps::default())), Got::Wait);
    assert!(world.pool.release_hold() && !world.pool.release_hold());
    assert!(has_place(&waiter).is_some());
    drop(tied);
    assert_eq!((world.pool.counts().total, world.pool.resting()), (0, 0));
}

/// Lets the tasks that see connections off run, until there are so many connections.
async fn until_total(world: &World, total: u32) {
    let end = Instant::now() + LONG;
    while world.counts().0 != total {
        assert!(Instant::now() < end, "{:?}", world.counts());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn within_a_budget_a_place_is_free_when_its_server_has_ended() {
    let world = World::new(5).await;
    let app = world.identity("app", "db");
    let text = "[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n";
    let settings = helios_proto::config::parse(text, "test", &|_| None).unwrap().spec.settings;
    world.pool.obey(&NodeOps::default(), false, Some(9), &settings);
    assert_eq!(got(&world.ask(&app, &Waiter::new(0), Caps::default())), Got::Wait, "nothing is granted yet");
    let share = |most| Granted { most, floor: 1, until: Instant::now() + LONG };
    world.pool.set_share(share(3));
    let standing = world.pool.standing();
    assert_eq!((standing.granted, standing.floor, standing.limit), (Some(3), 1, 9));
    let (one, two) = (world.conn(&app, 0).await, world.conn(&app, 0).await);
    world.pool.put_back(one);
    world.pool.put_back(two);
    let (other, waiter) = (world.identity("other", "db"), Waiter::new(0));
    world.pool.set_share(share(2));
    assert_eq!(got(&world.ask(&other, &waiter, Caps::default())), Got::Wait);
    assert_eq!(world.counts(), (2, 1, 1, 1), "one makes room, and counts until its server has ended");
    world.accepted.lock().unwrap().remove(0);
    let end = Instant::now() + LONG;
    while has_place(&waiter).is_none() {
        assert!(Instant::now() < end, "it goes to who waits: {:?}", world.counts());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    until_total(&world, 1).await;
}

#[tokio::test]
async fn a_smaller_share_closes_what_is_idle_and_lets_the_others_end() {
    let world = World::new(5).await;
    let app = world.identity("app", "db");
    let text = "[[nodes]]\nhost = \"h\"\nrole = \"primary\"\n";
    let settings = helios_proto::config::parse(text, "test", &|_| None).unwrap().spec.settings;
    world.pool.obey(&NodeOps::default(), false, Some(9), &settings);
    let share = |most| Granted { most, floor: 1, until: Instant::now() + LONG };
    world.pool.set_share(share(3));
    let conns = [world.conn(&app, 0).await, world.conn(&app, 0).await, world.conn(&app, 0).await];
    let [one, two, three] = conns;
    world.pool.put_back(one);
    world.pool.set_share(share(1));
    assert_eq!((world.counts().2, world.counts().1), (0, 3), "the idle one closes, the busy ones go on");
    world.pool.put_back(two);
    world.pool.put_back(three);
    assert_eq!(world.counts().2, 1);
    world.accepted.lock().unwrap().clear();
    until_total(&world, 1).await;
}

#[tokio::test]
async fn who_gives_up_in_the_moment_of_a_grant_takes_nothing_along() {
    let w = World::new(1).await;
    let (identity, waiter) = (w.identity("app", "db"), Waiter::new(0));
    let wait = || assert_eq!(got(&w.ask(&identity, &waiter, Caps::default())), Got::Wait);
    // Out of the queue as a grant takes it, and not told yet.
    let chosen = || w.pool.lock().queue.pop_front().unwrap();
    let conn = w.conn(&identity, 0).await;
    wait();
    let queued = chosen();
    w.pool.abandon(&waiter);
    w.pool.hand(&queued, Grant::Conn(conn));
    assert_eq!(w.counts(), (1, 0, 1, 0), "the connection is idle");
    let conn = w.conn_at_hand(&identity);
    wait();
    let queued = chosen();
    w.pool.abandon(&waiter);
    wait();
    w.pool.hand(&queued, Grant::Conn(conn));
    assert_eq!(w.counts(), (1, 1, 0, 0));
    assert!(has_conn(&waiter).is_some(), "the place in which it stands now is the first");
    drop(waiter);
    assert_eq!(w.counts(), (0, 0, 0, 0));
    // The same with the right to open one.
    let waiter = Waiter::new(0);
    let Checkout::Dial(slot) = w.ask(&identity, &waiter, Caps::default()) else { panic!("no place") };
    assert_eq!(got(&w.ask(&identity, &waiter, Caps::default())), Got::Wait);
    let queued = chosen();
    w.pool.abandon(&waiter);
    w.pool.hand(&queued, Grant::Dial(slot));
    assert_eq!(w.counts(), (0, 0, 0, 0), "the place is free");
}

#[tokio::test]
async fn at_a_full_server_sessions_wait_for_what_comes_back_and_what_is_idle_makes_room() {
    let world = World::new(9).await;
    let (app, other) = (world.identity("app", "db"), world.identity("other", "db"));
    let conn = world.conn(&app, 0).await;
    let Checkout::Dial(slot) = world.ask(&app, &Waiter::new(0), Caps::default()) else { panic!("room") };
    slot.refuse(Refused::Full(doors::Limit::Server));
    drop(slot);
    let waiter = Waiter::new(0);
    assert_eq!(got(&world.ask(&app, &waiter, Caps::default())), Got::Wait, "no attempt now");
    assert_eq!(world.counts(), (1, 1, 0, 1));
    world.pool.put_back(conn);
    let conn = has_conn(&waiter).expect("the one that came back");
    world.pool.put_back(conn);
    let second = Waiter::new(0);
    assert_eq!(got(&world.ask(&other, &second, Caps::default())), Got::Wait);
    assert_eq!(world.counts(), (0, 0, 0, 1), "the idle one is closed for it");
    // The server had a moment to notice.
    let place = loop {
        world.pool.knock(Instant::now());
        match has_place(&second) {
            Some(place) => break place,
            None => tokio::task::yield_now().await,
        }
    };
    assert_eq!(got(&world.ask(&app, &waiter, Caps::default())), Got::Wait, "one attempt at a time");
    let conn = world.open(place, 0).await;
    assert!(has_place(&waiter).is_some(), "one was let in: the next tries");
    drop(conn);
}

#[tokio::test]
async fn nobody_waits_at_a_server_that_starts_or_stops() {
    let world = World::new(2).await;
    let app = world.identity("app", "db");
    let held = world.conn(&app, 0).await;
    let Checkout::Dial(slot) = world.ask(&app, &Waiter::new(0), Caps::default()) else { panic!("room") };
    let waiter = Waiter::new(0);
    assert_eq!(got(&world.ask(&app, &waiter, Caps::default())), Got::Wait);
    slot.refuse(Refused::Away);
    assert!(matches!(outcome(&waiter), Some(Outcome::Retired)), "chooses anew");
    drop(slot);
    assert_eq!(got(&world.ask(&app, &waiter, Caps::default())), Got::Away);
    // An open connection may still be used.
    world.pool.put_back(held);
    let Checkout::Ready(held) = world.ask(&app, &waiter, Caps::default()) else { panic!("it is idle") };
    // Once the server is known to be down it is kept for nobody.
    world.pool.set_down(true);
    world.pool.put_back(held);
    assert_eq!(world.counts(), (0, 0, 0, 0));
    world.pool.set_down(false);
    assert_eq!(got(&world.ask(&app, &waiter, Caps::default())), Got::Dial, "back");
}

#[tokio::test]
async fn a_paused_database_gets_nothing_and_lets_the_others_pass() {
    let world = World::new(1).await;
    let (app, other) = (world.identity("app", "paused"), world.identity("app", "other"));
    let old = world.conn(&app, 0).await;
    app.state.set_paused(true);
    app.state.renew();
    let first = Waiter::new(0);
    assert_eq!(got(&world.ask(&app, &first, Caps::default())), Got::Wait);
    let second = Waiter::new(0);
    assert_eq!(got(&world.ask(&other, &second, Caps::default())), Got::Wait);
    assert_eq!((app.state.places(), app.places()), (1, 1));
    // The connection of the paused database closes as it comes back, and its place goes to the other one.
    world.pool.put_back(old);
    let slot = has_place(&second).expect("the place");
    assert_eq!((app.state.places(), outcome(&first).is_none()), (0, true));
    let conn = world.open(slot, 0).await;
    // However long the first has waited, nothing is closed for it.
    let third = Waiter::new(0);
    assert_eq!(got(&world.ask(&other, &third, Caps::default())), Got::Wait);
    world.pool.put_back(conn);
    let conn = has_conn(&third).expect("the connection");
    world.pool.serve_queue(true);
    assert!(outcome(&first).is_none(), "still paused");
    app.state.set_paused(false);
    drop(conn);
    assert!(has_place(&first).is_some(), "resumed");
}
