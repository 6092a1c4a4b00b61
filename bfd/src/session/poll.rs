//! The Poll Sequence (RFC 5880 section 6.5).
//!
//! Packets carry P until one with F answers. An F does not say which P it
//! answers, so a change that is made while a sequence runs has a sequence of
//! its own afterwards, which begins once a packet without F has come (RFC 5880
//! section 6.8.3, the third of its three choices).

/// Where the sequence is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Poll {
    /// None.
    #[default]
    Idle,
    /// Packets carry P. `sent`: one has left; `again`: a change came since.
    Active { sent: bool, again: bool },
    /// Ended; `again`: the next waits for a packet without F.
    Settling { again: bool },
}

impl Poll {
    /// Something changed that the peer must acknowledge.
    pub(super) fn request(&mut self) {
        *self = match *self {
            Self::Idle => Self::Active {
                sent: false,
                again: false,
            },
            // The first packet will carry this change too.
            Self::Active { sent: false, again } => Self::Active { sent: false, again },
            Self::Active { sent: true, .. } => Self::Active {
                sent: true,
                again: true,
            },
            Self::Settling { .. } => Self::Settling { again: true },
        };
    }

    /// Packets carry P.
    pub(super) fn is_active(self) -> bool {
        matches!(self, Self::Active { .. })
    }

    /// A packet with P has left.
    pub(super) fn sent(&mut self) {
        if let Self::Active { again, .. } = *self {
            *self = Self::Active { sent: true, again };
        }
    }

    /// A packet of the peer has come. Whether it acknowledges all changes.
    pub(super) fn heard(&mut self, final_answer: bool) -> bool {
        match (*self, final_answer) {
            (Self::Active { sent: true, again }, true) => {
                *self = Self::Settling { again };
                !again
            }
            (Self::Settling { again }, false) => {
                *self = if again {
                    Self::Active {
                        sent: false,
                        again: false,
                    }
                } else {
                    Self::Idle
                };
                false
            }
            // Not the answer to anything.
            (Self::Active { sent: false, .. } | Self::Idle | Self::Settling { .. }, true)
            | (Self::Active { .. } | Self::Idle, false) => false,
        }
    }
}
