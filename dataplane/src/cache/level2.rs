//! Redis: answers that data planes share, and the one order of their writes. Every word about a write is numbered and passed
//! on by Redis in one step, so that every data plane hears all of them, in the same order; a number that is missing, or a
//! silence, and this one begins anew. While Redis is away nothing is answered, and what was not said is made up for by one
//! word that throws everything away. Never trusts what it finds there to be whole.

use super::answer::{Terms, is_whole};
use super::shape::Key;
use super::stamps::Touched;
use super::{Cache, lock};
use futures_util::StreamExt as _;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{Client, Cmd, RedisResult};
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

/// Numbers `word` and passes it on. A counter that is lost goes on from the clock: it never goes back.
macro_rules! number {
    () => {
        "if redis.call('EXISTS', KEYS[1]) == 0 then local t = redis.call('TIME') \
        redis.call('SET', KEYS[1], t[1] .. string.format('%06d', t[2])) end \
        local n = string.format('%.0f', redis.call('INCR', KEYS[1])) redis.call('PUBLISH', KEYS[1], n .. ' ' .. word) return n"
    };
}
/// Says a word.
const TELL: &str = concat!("local word = ARGV[1] ", number!());
/// The same for what the stream of one primary tells of, from one position in it to another: whoever is first says it. Has
/// somebody not said what was before, everything of the database is bad.
const TELL_ONCE: &str = concat!(
    "local last = redis.call('GET', KEYS[2]) or '' \
    if last >= ARGV[3] and redis.call('EXISTS', KEYS[1]) == 1 then return redis.call('GET', KEYS[1]) end \
    redis.call('SET', KEYS[2], ARGV[3], 'EX', 604800) \
    local word = ARGV[1] if last < ARGV[2] then word = ARGV[4] end ",
    number!()
);
/// Who says what the stream tells of: nobody takes it for a word of its own.
const STREAM: &str = "stream";
/// Longest wait for a connection and for an answer of it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest wait of a read for an answer from Redis: PostgreSQL has one as well.
const HURRY: Duration = Duration::from_millis(50);
/// How often Redis is asked whether it lives, and how long it may be silent.
const BEAT: Duration = Duration::from_secs(1);
/// Silence that ends the connection.
const SILENCE: Duration = Duration::from_secs(3);
/// Pause before another try.
const PAUSE: Duration = Duration::from_millis(500);
/// Words that are said at once.
const BATCH: usize = 256;
/// Answers that may wait to be stored; more are not.
const OUTGOING: usize = 256;
/// First byte of a stored answer; another format gets another one.
const FORMAT: u8 = 1;

/// The way to Redis.
pub struct Level2 {
    client: Client,
    namespace: String,
    /// Tells its own words from those of others.
    myself: String,
    up: AtomicBool,
    /// A word could not be said: everything is thrown away, everywhere, once it can.
    owes: AtomicBool,
    connection: Mutex<Option<MultiplexedConnection>>,
    words: mpsc::UnboundedSender<Word>,
    heard: Mutex<Option<mpsc::UnboundedReceiver<Word>>>,
    puts: mpsc::Sender<Put>,
    putting: Mutex<Option<mpsc::Receiver<Put>>>,
}

/// What is said of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// `None`: no database, the word only takes a number.
    pub database: Option<Vec<u8>>,
    /// What may have changed.
    pub touched: Touched,
    /// It has changed; else it may still.
    pub certain: bool,
    /// The catalog may have changed as well.
    pub doubts: bool,
}

struct Put {
    terms: Terms,
    bytes: Arc<[u8]>,
}

impl Word {
    /// About a write in a database.
    #[must_use]
    pub fn new(database: &[u8], touched: &Touched, certain: bool, doubts: bool) -> Self {
        Self { database: Some(database.to_vec()), touched: touched.clone(), certain, doubts }
    }

    /// Everything that is kept, of every database.
    #[must_use]
    pub fn everything() -> Self {
        Self::new(b"", &Touched::All, true, true)
    }

    fn nothing() -> Self {
        Self { database: None, touched: Touched::Nothing, certain: true, doubts: false }
    }

    /// As text: database in hexadecimal digits or `-`, `=` or `?` for certain or not, `!` for doubts, tables or `*`.
    fn text(&self) -> String {
        let mut text = self.database.as_ref().map_or_else(|| "-".to_owned(), |name| hex(name));
        text.push_str(if self.certain { " =" } else { " ?" });
        text.push_str(if self.doubts { "! " } else { " " });
        match &self.touched {
            Touched::Nothing => text.push('-'),
            Touched::All => text.push('*'),
            Touched::Tables(tables) => {
                let list: Vec<String> = tables.iter().map(u32::to_string).collect();
                text.push_str(&list.join(","));
            }
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let (database, certain, touched) = (parts.next()?, parts.next()?, parts.next()?);
        let database = if database == "-" { None } else { Some(unhex(database)?) };
        let touched = match touched {
            "-" => Touched::Nothing,
            "*" => Touched::All,
            list => {
                let tables: Result<Vec<u32>, _> = list.split(',').map(str::parse).collect();
                let mut tables = tables.ok()?;
                tables.sort_unstable();
                Touched::Tables(tables)
            }
        };
        Some(Self { database, touched, certain: certain.starts_with('='), doubts: certain.ends_with('!') })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    digits.len().is_multiple_of(2).then(|| pairs.collect())?
}

impl Level2 {
    /// Not connected yet.
    ///
    /// # Errors
    /// The URL is none.
    pub fn new(url: &str, namespace: &str) -> io::Result<Self> {
        let client = Client::open(url).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "redis_url in [cache] is not a URL of Redis")
        })?;
        let ((words, heard), (puts, putting)) = (mpsc::unbounded_channel(), mpsc::channel(OUTGOING));
        let myself = format!("{:016x}", RandomState::new().hash_one(Instant::now()));
        Ok(Self {
            client,
            namespace: namespace.to_owned(),
            myself,
            up: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            connection: Mutex::default(),
            words,
            heard: Mutex::new(Some(heard)),
            puts,
            putting: Mutex::new(Some(putting)),
        })
    }

    /// Whether every word is heard.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    /// Says a word, as soon as it can be.
    pub fn tell(&self, word: Word) {
        if !self.is_up() {
            self.owes.store(true, Ordering::SeqCst);
            // It may have come up, and found nothing owed, in between.
            if !self.is_up() {
                return;
            }
        }
        let _ = self.words.send(word);
    }

    /// Stores an answer, if there is time for it.
    pub fn put(&self, terms: &Terms, bytes: Arc<[u8]>) {
        let _ = self.puts.try_send(Put { terms: terms.clone(), bytes });
    }

    fn sequence(&self) -> String {
        format!("{}:writes", self.namespace)
    }

    fn place(&self, key: &Key) -> String {
        format!("{}:answer:{}", self.namespace, hex(key))
    }

    fn connection(&self) -> Option<MultiplexedConnection> {
        lock(&self.connection).clone()
    }

    fn connect(&self, connection: Option<MultiplexedConnection>) {
        *lock(&self.connection) = connection;
    }

    /// The answer of this key, if Redis has one: its terms as of now, and its bytes.
    pub async fn get(&self, wanted: &Terms) -> Option<(Terms, Vec<u8>)> {
        let mut connection = self.connection()?;
        let place = self.place(&wanted.key);
        let mut ask = redis::pipe();
        ask.cmd("GET").arg(&place).cmd("PTTL").arg(&place);
        let asked = timeout(HURRY, ask.query_async::<(Option<Vec<u8>>, i64)>(&mut connection)).await;
        let (stored, left) = asked.ok()?.ok()?;
        let left = Duration::from_millis(u64::try_from(left).ok()?);
        let (since, bytes) = unpack(&stored?, &wanted.tables)?;
        Some((Terms { since, asked: Instant::now(), life: left.min(wanted.life), ..wanted.clone() }, bytes))
    }

    /// Says what the stream of a primary tells of between two positions, unless another data plane has; a number that is not
    /// lower than the word's.
    ///
    /// # Errors
    /// It is not known whether it was said.
    pub async fn tell_once(
        &self,
        source: &str,
        (from, to): (u64, u64),
        (database, touched): (&[u8], &Touched),
    ) -> RedisResult<u64> {
        let away = || redis::RedisError::from(io::Error::from(io::ErrorKind::NotConnected));
        let mut connection = self.connection().ok_or_else(away)?;
        let said = |touched| format!("{STREAM} {}", Word::new(database, touched, true, false).text());
        let mut eval = redis::cmd("EVAL");
        eval.arg(TELL_ONCE).arg(2).arg(self.sequence());
        eval.arg(format!("{}:stream:{source}:{}", self.namespace, hex(database)));
        eval.arg(said(touched))
            .arg(format!("{from:016x}"))
            .arg(format!("{to:016x}"))
            .arg(said(&Touched::All));
        eval.query_async(&mut connection).await
    }

    /// The command that says a word; its answer is the number.
    fn saying(&self, word: &Word) -> Cmd {
        let mut eval = redis::cmd("EVAL");
        eval.arg(TELL).arg(1).arg(self.sequence()).arg(format!("{} {}", self.myself, word.text()));
        eval
    }

    async fn store(&self, connection: &mut MultiplexedConnection, put: &Put) -> RedisResult<()> {
        let life = put.terms.life.saturating_sub(put.terms.asked.elapsed());
        let life = u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut set = redis::cmd("SET");
        set.arg(self.place(&put.terms.key)).arg(pack(&put.terms, &put.bytes)).arg("PX").arg(life);
        set.query_async(connection).await
    }
}

/// Format, number, tables, bytes.
fn pack(terms: &Terms, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![FORMAT];
    out.extend_from_slice(&terms.since.to_be_bytes());
    out.extend_from_slice(&u32::try_from(terms.tables.len()).unwrap_or(u32::MAX).to_be_bytes());
    terms.tables.iter().for_each(|table| out.extend_from_slice(&table.to_be_bytes()));
    out.extend_from_slice(bytes);
    out
}

/// The number and the bytes, if they are an answer from exactly these tables.
fn unpack(stored: &[u8], tables: &[u32]) -> Option<(u64, Vec<u8>)> {
    let rest = stored.strip_prefix(&[FORMAT])?;
    let (since, rest) = rest.split_first_chunk::<8>()?;
    let (count, mut rest) = rest.split_first_chunk::<4>()?;
    (usize::try_from(u32::from_be_bytes(*count)).ok()? == tables.len()).then_some(())?;
    for table in tables {
        let (stored, tail) = rest.split_first_chunk::<4>()?;
        (u32::from_be_bytes(*stored) == *table).then_some(())?;
        rest = tail;
    }
    is_whole(rest).then(|| (u64::from_be_bytes(*since), rest.to_vec()))
}

/// Runs until stopped.
pub(super) async fn run(cache: Arc<Cache>, stop: CancellationToken) {
    let Some(level2) = &cache.level2 else { return };
    let Some(mut words) = lock(&level2.heard).take() else { return };
    let Some(mut puts) = lock(&level2.putting).take() else { return };
    let mut told = false;
    loop {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            ended = converse(&cache, level2, (&mut words, &mut puts), &mut told) => ended,
        };
        if level2.up.swap(false, Ordering::SeqCst) || !told {
            let why = ended.err().map_or_else(|| "it has ended".to_owned(), |error| error.to_string());
            tracing::warn!("Redis is away, nothing is answered from the cache: {why}");
            told = true;
        }
        level2.connect(None);
        // What was not said, nor is it known whether it was.
        while words.try_recv().is_ok() {
            level2.owes.store(true, Ordering::SeqCst);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

type Queues<'a> = (&'a mut mpsc::UnboundedReceiver<Word>, &'a mut mpsc::Receiver<Put>);

/// One connection, from its beginning to its end.
async fn converse(
    cache: &Cache,
    level2: &Level2,
    (words, puts): Queues<'_>,
    told: &mut bool,
) -> RedisResult<()> {
    let late = || redis::RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
    let connect = async {
        let mut pubsub = level2.client.get_async_pubsub().await?;
        pubsub.subscribe(level2.sequence()).await?;
        Ok::<_, redis::RedisError>((pubsub, level2.client.get_multiplexed_async_connection().await?))
    };
    let (pubsub, mut connection) = timeout(PATIENCE * 2, connect).await.map_err(|_| late())??;
    connection.set_response_timeout(PATIENCE);
    let first = level2.saying(&Word::nothing()).query_async(&mut connection).await?;
    cache.start_over(first);
    level2.connect(Some(connection.clone()));
    level2.up.store(true, Ordering::SeqCst);
    if std::mem::take(told) {
        tracing::info!("Redis answers, the cache is in use");
    }
    let ears = listen(cache, level2, pubsub, first);
    let mut second = connection.clone();
    let mouth = speak(level2, &mut connection, words);
    let hands = async {
        while let Some(put) = puts.recv().await {
            if put.terms.era == cache.era.load(Ordering::SeqCst) {
                level2.store(&mut second, &put).await?;
            }
        }
        Ok(())
    };
    tokio::select! {
        biased;
        ended = ears => ended,
        ended = mouth => ended,
        ended = hands => ended,
    }
}

/// Says what is to be said.
async fn speak(
    level2: &Level2,
    connection: &mut MultiplexedConnection,
    words: &mut mpsc::UnboundedReceiver<Word>,
) -> RedisResult<()> {
    loop {
        let mut batch = Vec::new();
        if level2.owes.swap(false, Ordering::SeqCst) {
            batch.push(Word::everything());
        } else if words.recv_many(&mut batch, BATCH).await == 0 {
            return Ok(());
        }
        let mut all = redis::pipe();
        for word in &batch {
            all.add_command(level2.saying(word)).ignore();
        }
        if let Err(error) = all.query_async::<()>(connection).await {
            level2.owes.store(true, Ordering::SeqCst);
            return Err(error);
        }
    }
}

/// Hears every word since `first`; ends with a gap or a silence.
async fn listen(cache: &Cache, level2: &Level2, pubsub: PubSub, first: u64) -> RedisResult<()> {
    let broken = |why: &str| redis::RedisError::from(io::Error::other(why.to_owned()));
    let (mut sink, mut messages) = pubsub.split();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut met) = (first, false);
    loop {
        tokio::select! {
            biased;
            message = messages.next() => {
                let message = message.ok_or_else(|| broken("the connection is closed"))?;
                let text: String = message.get_payload()?;
                let (number, myself, word) = heard(&text).ok_or_else(|| broken("a word that is none"))?;
                // Said before this one listened, or before it said that it does.
                if !met && number <= first {
                    met = number == first;
                    continue;
                }
                if Some(number) != last.checked_add(1) {
                    return Err(broken("a word is missing"));
                }
                last = number;
                // No database: everything that may have been missed, of anybody.
                if word.database.as_deref() == Some(b"") {
                    cache.start_over(number);
                } else {
                    cache.heard(&word, number, myself == level2.myself);
                }
            }
            _ = beat.tick() => {
                let alive = timeout(SILENCE, sink.ping::<redis::Value>()).await;
                alive.map_err(|_| broken("it is silent"))??;
            }
        }
    }
}

/// Number, speaker and word.
fn heard(text: &str) -> Option<(u64, &str, Word)> {
    let (number, rest) = text.split_once(' ')?;
    let (speaker, word) = rest.split_once(' ')?;
    Some((number.parse().ok()?, speaker, Word::parse(word)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &[u8] = b"Z\0\0\0\x05I";

    #[test]
    fn words_travel_whole() {
        for word in [
            Word::nothing(),
            Word::new("déjà vu".as_bytes(), &Touched::Tables(vec![1, 70_000]), true, false),
            Word::new(b"d", &Touched::All, false, true),
        ] {
            assert_eq!(heard(&format!("7 me {}", word.text())), Some((7, "me", word)));
        }
        for bad in ["", "x me - = -", "7 me", "7 me 6 = *", "7 me zz = *", "7 me 64 = 1,x", "7 me 64 = -1"] {
            assert_eq!(heard(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_stored_is_believed_only_whole_and_for_the_same_tables() {
        let terms = Terms {
            key: [1; 32],
            tables: Arc::new([3, 5]),
            since: 9,
            era: 0,
            asked: Instant::now(),
            life: Duration::from_secs(1),
        };
        let stored = pack(&terms, READY);
        assert_eq!(unpack(&stored, &[3, 5]), Some((9, READY.to_vec())));
        assert_eq!((unpack(&stored, &[3]), unpack(&stored, &[3, 6])), (None, None));
        for cut in 0..stored.len() {
            assert_eq!(unpack(&stored[..cut], &[3, 5]), None, "{cut}");
        }
        assert_eq!(unpack(&[&stored[..], b"x"].concat(), &[3, 5]), None);
    }

    #[test]
    fn a_url_that_is_none_is_refused_without_being_shown() {
        let error = Level2::new("redis://user:secret@[", "n").err().unwrap().to_string();
        assert!(error.contains("redis_url") && !error.contains("secret"), "{error}");
    }
}
