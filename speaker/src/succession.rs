//! A node has one speaker. During a rollout the next one starts before it ends
//! (`maxSurge: 1`): it gets everything ready, then waits, and goes on with the
//! addresses that the one before held. Nothing moves, and peers notice nothing.
//!
//! Who speaks listens on a Unix socket with an abstract name, which belongs to
//! the host's network and ends with the process, however that ends. Who finds
//! the name taken connects, says when it is ready, and reads until the other
//! end is gone: what it reads is the [`Estate`], if the other one ended in order.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bellrock_arp::Estate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a speaker says when it can go on in the place of another.
const READY: &[u8] = b"ready\n";
/// More than the addresses of a node.
const LONGEST: u64 = 16 << 20;
/// Speakers that wait; there is one in a rollout.
const MOST: usize = 8;
/// How long the next speaker may take to read what it is left.
const READS: Duration = Duration::from_secs(1);
/// Between two tries of a name that is neither free nor answered.
const AGAIN: Duration = Duration::from_millis(20);

/// Whether this process speaks for its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Post {
    /// Another does; this one waits for it to end.
    Standby,
    /// It does, with what the one before left, if that could.
    Serving(Option<Estate>),
}

/// The node's one place.
#[derive(Debug)]
pub(crate) enum Place {
    Free(UnixListener),
    Taken(UnixStream),
}

/// Looks for the speaker of `cluster` on this node, installed in `namespace`.
pub(crate) async fn look(namespace: &str, cluster: &str) -> io::Result<Place> {
    let name = PathBuf::from(format!("\0bellrock/speaker/{namespace}/{cluster}"));
    loop {
        match UnixListener::bind(&name) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound.map(Place::Free),
        }
        match UnixStream::connect(&name).await {
            Ok(stream) if is_ours(&stream)? => return Ok(Place::Taken(stream)),
            Ok(_) => {
                let message = "a process of another user has the name";
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
            }
            // It has just ended, or has too many waiting.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether the other end runs as the same user as this process.
fn is_ours(stream: &UnixStream) -> io::Result<bool> {
    let (mine, _) = UnixStream::pair()?;
    Ok(stream.peer_cred()?.uid() == mine.peer_cred()?.uid())
}

/// Speakers that wait for this one to end.
#[derive(Debug, Clone, Default)]
pub struct Heirs {
    waiting: Arc<Mutex<Waiting>>,
    /// Whether this process still has the name.
    listens: channel::Sender<bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    serial: u64,
    all: BTreeMap<u64, Heir>,
}

#[derive(Debug)]
struct Heir {
    ready: bool,
    stream: OwnedWriteHalf,
}

impl Heirs {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one of them could go on at once.
    pub(crate) fn any_ready(&self) -> bool {
        self.lock().all.values().any(|heir| heir.ready)
    }

    /// Leaves everything to one that is ready; whether it got it.
    pub(crate) async fn leave(&self, estate: &Estate) -> bool {
        // It looks for the name then, which must be free.
        let free = self.listens.subscribe();
        let free = async move { free.clone().wait_for(|listens| !listens).await.is_ok() };
        if !matches!(tokio::time::timeout(READS, free).await, Ok(true)) {
            return false;
        }
        let stream = {
            let mut waiting = self.lock();
            let ready = waiting.all.iter().find(|(_, heir)| heir.ready);
            let serial = ready.map(|(serial, _)| *serial);
            serial.and_then(|serial| waiting.all.remove(&serial))
        };
        let (Some(heir), Ok(text)) = (stream, serde_json::to_vec(estate)) else {
            return false;
        };
        let mut stream = heir.stream;
        let written = tokio::time::timeout(READS, async {
            stream.write_all(&text).await?;
            stream.shutdown().await
        });
        matches!(written.await, Ok(Ok(())))
    }

    fn add(&self, stream: OwnedWriteHalf) -> Option<u64> {
        let mut waiting = self.lock();
        if waiting.all.len() >= MOST {
            return None;
        }
        waiting.serial += 1;
        let serial = waiting.serial;
        let ready = false;
        waiting.all.insert(serial, Heir { ready, stream });
        Some(serial)
    }

    async fn follow(self, serial: u64, mut from: OwnedReadHalf) {
        let mut word = [0; READY.len()];
        if from.read_exact(&mut word).await.is_ok() && word == READY {
            tracing::info!("another speaker of this node waits for this one to end");
            if let Some(heir) = self.lock().all.get_mut(&serial) {
                heir.ready = true;
            }
            // It says nothing more until it ends.
            let _ = from.read(&mut [0]).await;
        }
        self.lock().all.remove(&serial);
    }
}

/// Waits for the place, then keeps it until `stop`. `ready` says when this
/// process could go on for another.
pub(crate) async fn hold(
    mut place: Place,
    names: (String, String),
    post: channel::Sender<Post>,
    ready: channel::Receiver<bool>,
    heirs: Heirs,
    stop: CancellationToken,
) {
    let mut estate = None;
    let listener = loop {
        match place {
            Place::Free(listener) => break Some(listener),
            Place::Taken(stream) => {
                tracing::info!("another speaker serves this node; waiting for it to end");
                estate = wait(stream, ready.clone()).await;
            }
        }
        place = match look(&names.0, &names.1).await {
            Ok(place) => place,
            Err(error) => {
                tracing::warn!(%error, "cannot look for another speaker on this node");
                break None;
            }
        };
    };
    let left = estate.as_ref().map_or(0, |estate| {
        estate.values().map(|held| held.claims.len()).sum()
    });
    tracing::info!(addresses_left = left, "serving this node");
    post.send_replace(Post::Serving(estate));
    // They end with this work: who waits must not think that this process has
    // ended before it has.
    let mut follows = JoinSet::new();
    if let Some(listener) = listener {
        heirs.listens.send_replace(true);
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(listener, &heirs, &mut follows) => {}
        }
        heirs.listens.send_replace(false);
    }
    std::future::pending::<()>().await;
}

async fn accept(listener: UnixListener, heirs: &Heirs, follows: &mut JoinSet<()>) {
    loop {
        while follows.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) if is_ours(&stream).unwrap_or(false) => stream,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!(%error, "cannot hear the next speaker of this node");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let (from, to) = stream.into_split();
        if let Some(serial) = heirs.add(to) {
            follows.spawn(heirs.clone().follow(serial, from));
        }
    }
}

/// Until the other end is gone.
async fn wait(mut stream: UnixStream, mut ready: channel::Receiver<bool>) -> Option<Estate> {
    let mut text = Vec::new();
    let (from, mut to) = stream.split();
    let mut from = from.take(LONGEST);
    let announce = async {
        if ready.wait_for(|ready| *ready).await.is_ok() {
            let _ = to.write_all(READY).await;
        }
        std::future::pending::<()>().await;
    };
    let read = tokio::select! {
        read = from.read_to_end(&mut text) => read,
        () = announce => return None,
    };
    match read {
        Ok(0) => None,
        Ok(_) => serde_json::from_slice(&text)
            .inspect_err(|error| tracing::warn!(%error, "cannot read what was left"))
            .ok(),
        Err(error) => {
            tracing::warn!(%error, "the speaker before ended");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use bellrock_arp::Held;

    use super::*;

    struct Speaker {
        post: channel::Receiver<Post>,
        ready: channel::Sender<bool>,
        heirs: Heirs,
        stop: CancellationToken,
        holds: tokio::task::JoinHandle<()>,
    }

    async fn speaker(cluster: &str) -> Speaker {
        let place = look("test", cluster).await.expect("a place");
        let (post_sender, post) = channel::channel(Post::Standby);
        let (ready, can) = channel::channel(false);
        let (heirs, stop) = (Heirs::default(), CancellationToken::new());
        let names = ("test".to_owned(), cluster.to_owned());
        let work = hold(place, names, post_sender, can, heirs.clone(), stop.clone());
        let holds = tokio::spawn(work);
        Speaker {
            post,
            ready,
            heirs,
            stop,
            holds,
        }
    }

    impl Speaker {
        async fn serves(&mut self) -> Option<Estate> {
            let serves = self.post.wait_for(|post| *post != Post::Standby);
            let post = tokio::time::timeout(Duration::from_secs(20), serves).await;
            match post.expect("in time").expect("it lives").clone() {
                Post::Serving(estate) => estate,
                Post::Standby => unreachable!("waited for"),
            }
        }

        fn waits(&self) -> bool {
            *self.post.borrow() == Post::Standby
        }

        async fn has_an_heir(&self) {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            while !self.heirs.any_ready() {
                assert!(tokio::time::Instant::now() < deadline, "nobody waits");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }

        /// As a process that ends.
        fn dies(self) {
            self.holds.abort();
            drop(self.heirs);
        }
    }

    fn estate() -> Estate {
        let address = "192.0.2.1".parse().expect("an address");
        let held = Held {
            incarnation: 7,
            seq: 9,
            claims: BTreeMap::from([(address, 42)]),
        };
        Estate::from([("eth0".to_owned(), held)])
    }

    #[tokio::test]
    async fn the_next_speaker_gets_what_the_one_before_held() {
        let mut first = speaker("leaves").await;
        assert_eq!(first.serves().await, None);
        let mut next = speaker("leaves").await;
        next.ready.send_replace(true);
        first.has_an_heir().await;
        assert!(next.waits());
        first.stop.cancel();
        assert!(first.heirs.leave(&estate()).await);
        assert_eq!(next.serves().await, Some(estate()));
        // A third one waits for the second now, and not for the first.
        let third = speaker("leaves").await;
        third.ready.send_replace(true);
        next.has_an_heir().await;
        first.dies();
        assert!(third.waits());
    }

    #[tokio::test]
    async fn a_crash_leaves_the_place_and_nothing_else() {
        let mut first = speaker("dies").await;
        first.serves().await;
        let mut next = speaker("dies").await;
        next.ready.send_replace(true);
        first.has_an_heir().await;
        first.dies();
        assert_eq!(next.serves().await, None);
    }

    #[tokio::test]
    async fn one_that_is_not_ready_gets_nothing_and_waits_for_the_end() {
        let mut first = speaker("not-ready").await;
        first.serves().await;
        let mut next = speaker("not-ready").await;
        first.stop.cancel();
        assert!(!first.heirs.any_ready());
        assert!(!first.heirs.leave(&estate()).await);
        assert!(next.waits(), "the first hands over yet");
        first.dies();
        assert_eq!(next.serves().await, None);
    }

    #[tokio::test]
    async fn clusters_and_installations_do_not_wait_for_each_other() {
        let mut one = speaker("one").await;
        let mut two = speaker("two").await;
        assert_eq!((one.serves().await, two.serves().await), (None, None));
    }
}
