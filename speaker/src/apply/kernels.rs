//! Whether the kernel of another node lives, which its speaker's silence does
//! not say.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// How often a kernel is asked before it is called dead, and how long each
/// answer may take.
const TRIES: u32 = 3;
const PATIENCE: Duration = Duration::from_millis(200);
/// Nodes that are asked at a time.
const QUESTIONS: usize = 64;

/// Asks kernels by opening a connection to them: one that lives accepts or
/// refuses it.
#[derive(Debug)]
pub struct Kernels {
    asked: BTreeSet<String>,
    sender: mpsc::Sender<(String, bool)>,
    answers: mpsc::Receiver<(String, bool)>,
}

impl Default for Kernels {
    fn default() -> Self {
        let (sender, answers) = mpsc::channel(QUESTIONS);
        Self {
            asked: BTreeSet::new(),
            sender,
            answers,
        }
    }
}

impl Kernels {
    /// Asks a node, unless it is being asked.
    pub fn ask(&mut self, node: &str, address: SocketAddr) {
        if self.asked.len() >= QUESTIONS || !self.asked.insert(node.to_owned()) {
            return;
        }
        let (sender, node) = (self.sender.clone(), node.to_owned());
        tokio::spawn(async move {
            let lives = lives(address).await;
            // Nobody waits for it at the end.
            let _ = sender.send((node, lives)).await;
        });
    }

    /// The next answer: a node, and whether its kernel lives.
    pub async fn answer(&mut self) -> Option<(String, bool)> {
        let answer = self.answers.recv().await?;
        self.asked.remove(&answer.0);
        Some(answer)
    }
}

async fn lives(address: SocketAddr) -> bool {
    for _ in 0..TRIES {
        match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return true,
            Ok(Err(_)) => tokio::time::sleep(PATIENCE).await,
            Err(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kernel_that_accepts_or_refuses_lives() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let mut kernels = Kernels::default();
        kernels.ask("n1", open);
        kernels.ask("n1", open);
        assert_eq!(kernels.answer().await, Some(("n1".to_owned(), true)));
        drop(listener);
        kernels.ask("n2", open);
        assert_eq!(kernels.answer().await, Some(("n2".to_owned(), true)));
        assert!(kernels.asked.is_empty());
    }

    #[tokio::test]
    async fn a_kernel_that_says_nothing_is_dead() {
        // TCP has no group addresses: nothing ever comes back.
        let nobody = SocketAddr::from(([224, 0, 0, 1], 9618));
        let mut kernels = Kernels::default();
        kernels.ask("n1", nobody);
        assert_eq!(kernels.answer().await, Some(("n1".to_owned(), false)));
    }
}
