//! Which calls wait until their commit is safe.

/// When a commit waits for the disk instead of only handing the data on. A crash never damages the store; it can undo
/// calls that have returned:
///
/// | | a killed bot undoes | a crash of the machine with the data undoes |
/// |--|--|--|
/// | [`Full`](Self::Full) | nothing | nothing |
/// | [`SignalState`](Self::SignalState), the default | nothing | the last seconds of records that do not wait, see below |
/// | [`Process`](Self::Process) | nothing | the last seconds |
///
/// | | a call that waits | a call that does not |
/// |--|--|--|
/// | `SqliteStore` | `PRAGMA synchronous = FULL` | `NORMAL`: a power cut undoes it, or a crash of the operating system |
/// | `PostgresStore` | `synchronous_commit` as the server has it, at least `on` | `off`: a crash of the server undoes it, at most three times `wal_writer_delay`, which is 0.6 s by default |
///
/// Waiting costs one `fsync` of the disk, 0.1 to 10 ms, and with a synchronous standby its answer. All calls that wait
/// at the same time share it. The source of the limit of 0.6 s is
/// <https://www.postgresql.org/docs/current/wal-async-commit.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Every call that has returned survives a crash.
    Full,
    /// Signal state, the device, app-state keys and pending messages survive a crash: upstream's counter leases and
    /// acknowledgements rely on it. Everything else survives a killed bot. After a crash the client fetches most of it
    /// again. Sent messages that were kept for retries, message secrets and base keys of the last seconds are lost.
    #[default]
    SignalState,
    /// Calls survive a killed bot. A crash may undo the last seconds, including Signal state: messages may then fail to
    /// decrypt. This is the default of upstream's store.
    Process,
}

impl Durability {
    /// `true` if a call waits, which may write `signal_state`.
    pub(crate) fn full_sync(self, signal_state: bool) -> bool {
        match self {
            Durability::Full => true,
            Durability::SignalState => signal_state,
            Durability::Process => false,
        }
    }
}
