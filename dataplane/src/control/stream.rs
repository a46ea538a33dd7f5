//! The stream to the control plane: connect to any endpoint, say what is held, take what comes, answer each message.
//! Owner of one task. A lost stream changes nothing but the link's state; it is sought again, with growing pauses.

use super::last_good::Kept;
use super::peers::Peers;
use super::reports::Reports;
use super::{BEAT, Link, QUICK_BEAT};
use helios_proto::config::ControlPlane;
use helios_proto::model::{Evidence, NodeName, Snapshot};
use helios_proto::wire::v1::discovery_client::DiscoveryClient;
use helios_proto::wire::v1::{self, cp_msg, dp_msg};
use helios_proto::wire::{self, Accepted, Mirror, Refused, Verdict};
use helios_tls::dial::Secured;
use helios_tls::{ClientSide, connect};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};

/// Longest wait for a connection, and for the answer to the call.
const CONNECT: Duration = Duration::from_secs(2);
/// Pauses between attempts grow from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How often the peer of a silent connection is asked whether it lives, and how long it may think.
const PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3));
/// The control plane beats every second; one that is silent for this long is sought elsewhere.
const SILENCE: Duration = Duration::from_secs(5);
/// Heartbeats in a row with another hash or revision that are borne.
const STRANGE_BEATS: u32 = 3;
/// Messages that may wait to be sent.
const OUTGOING: usize = 64;
/// Largest message: a large configuration with many users.
const LARGEST: usize = 64 << 20;

/// The client.
pub struct Client {
    /// Name of this data plane.
    pub name: String,
    /// Where, and with what token.
    pub plane: ControlPlane,
    /// TLS on the way there.
    pub tls: Option<Arc<ClientSide>>,
    /// Who takes cancel requests that are not ours; `None`: nobody.
    pub peers: Option<Arc<Peers>>,
    /// Of this process.
    pub boot_id: String,
    /// Where snapshots go.
    pub publish: Arc<watch::Sender<Arc<Snapshot>>>,
    /// What is held of what the control plane has sent.
    pub mirror: Mirror,
    /// Where snapshots worth keeping go.
    pub keep: Arc<watch::Sender<Kept>>,
    /// What sessions saw.
    pub evidence: mpsc::Receiver<(NodeName, Evidence)>,
    /// For metrics.
    pub link: Arc<Link>,
    /// What is said of this data plane.
    pub reports: Reports,
}

/// Where what is said on the stream goes.
pub(super) type Outgoing = mpsc::Sender<v1::DpMsg>;

impl Client {
    /// Runs until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut pause = PAUSES.0;
        let mut next = usize::try_from(random(u64::MAX)).unwrap_or(0);
        let mut said = String::new();
        loop {
            let endpoints = &self.plane.endpoints;
            let endpoint = endpoints.get(next % endpoints.len().max(1)).cloned().unwrap_or_default();
            next = next.wrapping_add(1);
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = self.attempt(&endpoint) => ended,
            };
            let was = self.link.connected();
            self.link.set_connected(false);
            self.link.set_led(false);
            let why = match &ended {
                Ok(()) => "the stream ended".to_owned(),
                Err(status) => status.message().to_owned(),
            };
            if was {
                pause = PAUSES.0;
                tracing::warn!(%endpoint, reason = %why, "control plane lost; serving on");
            } else if said != why {
                tracing::warn!(%endpoint, reason = %why, "control plane does not answer; serving on");
            }
            said = why;
            let jittered =
                Duration::from_millis(random(u64::try_from(pause.as_millis()).unwrap_or(0).max(1)));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered) => {}
            }
            pause = pause.mul_f64(1.6).min(PAUSES.1);
        }
    }

    /// One stream, from connecting to its end.
    async fn attempt(&mut self, endpoint: &str) -> Result<(), Status> {
        let token = self.plane.token.as_ref().map(|token| bearer(token.expose())).transpose()?;
        let secured = self.tls.as_ref().map(|side| Secured {
            config: side.current(),
            name: self.plane.tls.as_ref().and_then(|tls| tls.server_name.clone()),
        });
        let scheme = if secured.is_some() { "https" } else { "http" };
        let channel = Endpoint::from_shared(format!("{scheme}://{endpoint}"))
            .map_err(|_| Status::invalid_argument("endpoints in [control_plane]: this is no address"))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .keep_alive_while_idle(true);
        let channel = connect(channel, secured).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut client = DiscoveryClient::new(channel.clone()).max_decoding_message_size(LARGEST);
        let (outgoing, messages) = mpsc::channel(OUTGOING);
        // Room is there: the channel is new.
        let _ = outgoing.try_send(message(dp_msg::Msg::Hello(self.hello())));
        let mut request = Request::new(ReceiverStream::new(messages));
        if let Some(token) = &token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        let call = timeout(CONNECT * 2, client.stream(request)).await;
        let incoming = call.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner();
        tracing::info!(%endpoint, "control plane connected");
        self.link.set_connected(true);
        self.mirror.begin();
        let reporter = v1::Reporter { dp_id: self.name.clone(), boot_id: self.boot_id.clone() };
        self.reports.open(channel, token, reporter);
        let ended = self.converse(incoming, &outgoing).await;
        self.reports.close();
        ended
    }

    fn hello(&self) -> v1::Hello {
        let held = Arc::clone(&self.publish.borrow());
        v1::Hello {
            cluster: self.plane.cluster.clone(),
            dp_id: self.name.clone(),
            boot_id: self.boot_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: held.revision,
            sha256: self.mirror.sha256().to_vec(),
            epoch: held.epoch,
            incarnation: held.incarnation,
            timeline: held.timeline,
            last_primary: held.last_primary.as_ref().map(NodeName::to_string).unwrap_or_default(),
            system: held.system,
            cancel_id: self.peers.as_ref().map_or(0, |peers| peers.number.load(Ordering::Relaxed)),
            peer_address: self.peers.as_ref().map(|peers| peers.address.clone()).unwrap_or_default(),
            config_revision: held.config_revision,
            deltas: true,
        }
    }

    async fn converse(
        &mut self,
        mut incoming: Streaming<v1::CpMsg>,
        outgoing: &Outgoing,
    ) -> Result<(), Status> {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut strange = 0;
        loop {
            tokio::select! {
                biased;
                message = incoming.message() => {
                    let Some(v1::CpMsg { nonce, msg }) = message? else { return Ok(()) };
                    heard = Instant::now();
                    match msg {
                        Some(cp_msg::Msg::Full(full)) => {
                            self.full(nonce, full, outgoing)?;
                            // Nodes with a budget want a share.
                            beat.reset_after(QUICK_BEAT);
                        }
                        Some(cp_msg::Msg::Delta(delta)) => {
                            self.delta(nonce, delta, outgoing)?;
                            beat.reset_after(QUICK_BEAT);
                        }
                        Some(cp_msg::Msg::Topology(topology)) => {
                            self.topology(nonce, &topology, outgoing)?;
                            if topology.hold.is_some() {
                                beat.reset_immediately();
                            }
                        }
                        Some(cp_msg::Msg::Heartbeat(beat)) => {
                            strange = if self.agrees(&beat) { 0 } else { strange + 1 };
                            if strange >= STRANGE_BEATS {
                                return Err(Status::data_loss("it holds something else than it sent"));
                            }
                        }
                        Some(cp_msg::Msg::Peers(list)) => self.learn(list),
                        Some(cp_msg::Msg::Grants(grants)) => self.reports.granted(grants),
                        // Of a newer version.
                        None => {}
                    }
                }
                Some((node, seen)) = self.evidence.recv() => {
                    let kind = wire::evidence_kind(seen).into();
                    self.reports.evidence(outgoing, v1::Evidence { node: node.to_string(), kind });
                }
                why = self.reports.ended() => {
                    tracing::debug!(reason = why.message(), "reports go over the stream from now on");
                    beat.reset_immediately();
                }
                _ = beat.tick() => {
                    if heard.elapsed() >= SILENCE {
                        return Err(Status::deadline_exceeded("it is silent"));
                    }
                    self.reports.status(outgoing);
                    if self.publish.borrow().hold.is_some() {
                        beat.reset_after(QUICK_BEAT);
                    }
                }
            }
        }
    }

    fn learn(&self, list: v1::Peers) {
        if self.peers.as_ref().is_some_and(|peers| peers.learn(list)) {
            // The file holds the number as well.
            self.keep.send_modify(|_| {});
        }
    }

    fn full(&mut self, nonce: u64, full: v1::Full, outgoing: &Outgoing) -> Result<(), Status> {
        let was_led = self.link.is_led();
        // From here on nobody else puts anything in force.
        self.link.set_led(true);
        self.link.messages.full.fetch_add(1, Ordering::Relaxed);
        let held = Arc::clone(&self.publish.borrow());
        let revision = full.topology.as_ref().map_or(0, |topology| topology.revision);
        match self.mirror.full(full, &held, Instant::now()) {
            // This data plane went on while the two were meeting: it says anew what it holds.
            Verdict::Refuse(refused) if !was_led => {
                Err(Status::aborted(format!("its first word: {}", refused.reason)))
            }
            verdict => self.obey(verdict, (nonce, revision), &held, outgoing),
        }
    }

    fn delta(&mut self, nonce: u64, delta: v1::Delta, outgoing: &Outgoing) -> Result<(), Status> {
        self.link.messages.delta.fetch_add(1, Ordering::Relaxed);
        let held = Arc::clone(&self.publish.borrow());
        let revision = delta.topology.as_ref().map_or(0, |topology| topology.revision);
        let verdict = self.mirror.delta(delta, &held, Instant::now());
        self.obey(verdict, (nonce, revision), &held, outgoing)
    }

    fn topology(&mut self, nonce: u64, sent: &v1::Topology, outgoing: &Outgoing) -> Result<(), Status> {
        self.link.messages.topology.fetch_add(1, Ordering::Relaxed);
        let held = Arc::clone(&self.publish.borrow());
        let verdict = self.mirror.topology(sent, &held, Instant::now());
        self.obey(verdict, (nonce, sent.revision), &held, outgoing)
    }

    /// What follows from a message, and the answer.
    fn obey(
        &self,
        verdict: Verdict,
        (nonce, revision): (u64, u64),
        held: &Snapshot,
        outgoing: &Outgoing,
    ) -> Result<(), Status> {
        match verdict {
            Verdict::Take(accepted) => {
                let Accepted { snapshot, rejected } = *accepted;
                for Refused { name, reason } in &rejected {
                    tracing::error!(resource = %name, %reason, "a resource from the control plane is refused");
                }
                self.put_in_force(snapshot, held);
                ack(outgoing, nonce, revision, rejected)
            }
            // The answer to Hello when nothing has changed.
            Verdict::Same => {
                self.link.confirm();
                ack(outgoing, nonce, revision, Vec::new())
            }
            Verdict::Refuse(refused) => self.refuse(nonce, held, refused, outgoing),
            Verdict::Resync(misfit) => {
                self.link.messages.resyncs.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(reason = %misfit, "a change from the control plane does not fit; asking for all of it");
                answer(outgoing, dp_msg::Msg::Resync(v1::Resync { nonce, reason: misfit.to_string() }))
            }
            Verdict::Ignore => Ok(()),
        }
    }

    fn put_in_force(&self, snapshot: Snapshot, before: &Snapshot) {
        let snapshot = Arc::new(snapshot);
        let worth = (snapshot.key(), snapshot.primary, snapshot.config_revision)
            != (before.key(), before.primary, before.config_revision);
        let hash = self.mirror.sha256();
        let hash_changed = self.keep.borrow().as_ref().map(|(_, kept)| kept.as_slice()) != Some(hash);
        if worth || hash_changed {
            self.keep.send_replace(Some((Arc::clone(&snapshot), hash.to_vec())));
        }
        self.publish.send_replace(snapshot);
        self.link.confirm();
    }

    fn refuse(&self, nonce: u64, held: &Snapshot, refused: Refused, out: &Outgoing) -> Result<(), Status> {
        self.link.refused.fetch_add(1, Ordering::Relaxed);
        tracing::error!(reason = %refused.reason, "a snapshot from the control plane is refused; the one in force stays");
        ack(out, nonce, held.revision, vec![refused])
    }

    fn agrees(&self, beat: &v1::Heartbeat) -> bool {
        let agrees = beat.sha256 == self.mirror.sha256() && beat.revision == self.publish.borrow().revision;
        if agrees {
            self.link.confirm();
        }
        agrees
    }
}

fn message(msg: dp_msg::Msg) -> v1::DpMsg {
    v1::DpMsg { msg: Some(msg) }
}

/// Acknowledges.
fn ack(outgoing: &Outgoing, nonce: u64, revision: u64, rejected: Vec<Refused>) -> Result<(), Status> {
    let rejected =
        rejected.into_iter().map(|Refused { name, reason }| v1::Rejected { name, reason }).collect();
    answer(outgoing, dp_msg::Msg::Ack(v1::Ack { nonce, revision, rejected }))
}

/// If even an answer does not fit, the stream is stuck and must be made anew.
fn answer(outgoing: &Outgoing, msg: dp_msg::Msg) -> Result<(), Status> {
    outgoing.try_send(message(msg)).map_err(|_| Status::unavailable("it takes no messages"))
}

/// A token as a call carries it.
pub(super) fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Status> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
        Status::invalid_argument("token in [control_plane] holds characters that cannot be sent")
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// A number below `limit`; for jitter only.
fn random(limit: u64) -> u64 {
    RandomState::new().hash_one(Instant::now()) % limit.max(1)
}
