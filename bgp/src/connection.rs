//! One connection: its socket, what is read from it and what waits to be sent.

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;

use tokio::io::{Interest, Ready};
use tokio::net::TcpStream;

use crate::message::Decoder;
use crate::socket;

type Connecting = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>;
type Finishing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How far it is.
#[derive(Default)]
pub(crate) enum Link {
    #[default]
    None,
    Connecting(Connecting),
    Open(TcpStream),
}

/// What happened to it.
pub(crate) enum Event {
    Connected(io::Result<TcpStream>),
    Ready(io::Result<Ready>),
    Finished,
}

#[derive(Default)]
pub(crate) struct Connection {
    pub(crate) link: Link,
    pub(crate) decoder: Decoder,
    pub(crate) out: Vec<u8>,
    /// The last one, while its NOTIFICATION is on its way.
    pub(crate) finishing: Option<Finishing>,
}

impl Connection {
    /// Waits for the next event. Cancel-safe: nothing is taken from the socket
    /// before the event is returned.
    pub(crate) async fn event(&mut self) -> Event {
        let interest = if self.out.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let link = async {
            match &mut self.link {
                Link::None => pending().await,
                Link::Connecting(connecting) => Event::Connected(connecting.await),
                Link::Open(stream) => Event::Ready(stream.ready(interest).await),
            }
        };
        let finishing = async {
            match &mut self.finishing {
                Some(finishing) => finishing.await,
                None => pending().await,
            }
        };
        tokio::select! {
            event = link => event,
            () = finishing => Event::Finished,
        }
    }

    /// Begins to talk over an open socket.
    pub(crate) fn open(&mut self, stream: TcpStream) {
        self.link = Link::Open(stream);
        self.decoder = Decoder::default();
        self.out.clear();
    }

    /// Closes it; what waits is still sent if the peer takes it soon.
    pub(crate) fn close(&mut self) {
        let rest = std::mem::take(&mut self.out);
        if let Link::Open(stream) = std::mem::take(&mut self.link) {
            self.finishing = Some(Box::pin(socket::finish(stream, rest)));
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.link, Link::Open(_))
    }
}
