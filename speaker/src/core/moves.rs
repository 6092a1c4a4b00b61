//! What the loop does when the segment tells of nodes and addresses.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use bellrock_arp::Event;
use k8s_openapi::jiff::Timestamp;

use super::Core;

/// The speakers' port for /metrics. It does not matter whether it is open: a
/// kernel that lives says so either way.
const PORT: u16 = 9618;

impl Core {
    pub(super) fn hear(&mut self, event: Event) {
        let now = self.started.elapsed();
        self.silence.take(&event, now);
        self.chances.take(&event, now);
        Arc::make_mut(&mut self.history).take(&event, Timestamp::now());
        self.edges.recorder.ownership(self.turn.cluster(), event);
        self.stale = true;
    }

    /// Endpoints on nodes that the segment calls silent are passed over.
    pub(super) fn look_for_silence(&mut self) {
        let nodes = self.silence.nodes(self.started.elapsed());
        self.turn.hush(nodes);
    }

    /// Established connections follow the addresses that moved here, or may do
    /// so soon.
    pub(super) async fn give_chances(&mut self) -> Result<()> {
        if !self.forwards() || !self.turn.adopted() {
            return Ok(());
        }
        let wanted = {
            let view = self.edges.view.borrow();
            self.chances.wanted(
                self.turn.cluster(),
                &self.me,
                self.turn.settings(),
                &view.segment.interfaces,
                self.started.elapsed(),
            )
        };
        // The time left is the kernel's own business.
        let same = wanted.len() == self.given.len()
            && wanted.iter().zip(&self.given).all(|((a, new), (b, old))| {
                (a, new.interface, new.previous) == (b, old.interface, old.previous)
            });
        if same {
            return Ok(());
        }
        match self
            .edges
            .forwarding
            .set_second_chances(wanted.clone())
            .await
        {
            Ok(refused) => {
                for (address, why) in refused {
                    tracing::warn!(%address, why, "open connections do not follow the address");
                }
            }
            Err(error) => {
                self.edges.forwarding.check_alive()?;
                tracing::warn!(%error, "open connections do not follow addresses that move");
            }
        }
        // Not tried again before something changes.
        self.given = wanted;
        Ok(())
    }

    /// Connections end where the kernel that knows them has died.
    pub(super) fn ask_kernels(&mut self) {
        for (node, address) in self.chances.nodes() {
            if let Some(chance) = self.given.get(&address) {
                let at = SocketAddr::new(chance.previous, PORT);
                self.kernels.ask(node, at);
            }
        }
    }
}
