//! After a commit: checkpoints, and the watch for idleness.

use std::sync::{Arc, Weak};

use rusqlite::Connection;

use super::idle::Idle;
use super::write_plan::WritePlan;
use super::writer::Writer;
use crate::background;
use crate::error::Result;

impl Writer {
    /// Notes a commit before its caller is told.
    pub(super) fn after_commit(self: &Arc<Self>) -> Result<()> {
        let is_due = self.wal.after_commit()?;
        if self.wal.is_emptied_when_idle() {
            self.wal.activity.note(|| self.idle());
        }
        if is_due {
            self.checkpoint_in_background();
        }
        Ok(())
    }

    fn idle(self: &Arc<Self>) -> Weak<dyn Idle> {
        let idle: Arc<dyn Idle> = self.clone();
        Arc::downgrade(&idle)
    }

    /// Copies the log into the database, unless a checkpoint already runs. Most of it is copied
    /// while readers and the writer run. The rest is copied in the writer's turn; otherwise the log
    /// would never end under steady load.
    fn checkpoint_in_background(self: &Arc<Self>) {
        if self.wal.is_closed() {
            return;
        }
        let Some(checkpointing) = self.wal.begin_checkpoint() else { return };
        let writer = self.clone();
        background::detached(move || {
            if let Err(error) = checkpointing.copy_most() {
                log::warn!("the write-ahead log could not be copied into the database: {error}");
            }
            let (queue, weak) = (writer.clone(), writer.idle());
            let finish = move |connection: &Connection| {
                let complete = checkpointing.copy_rest(connection)?;
                if !complete {
                    // A reader holds an older state. The copy is retried when the database is idle.
                    writer.wal.activity.note(|| weak.clone());
                }
                Ok(complete)
            };
            queue.enqueue_detached(WritePlan::MAINTENANCE, finish);
        });
    }
}

impl Idle for Writer {
    fn on_idle(self: Arc<Self>) {
        self.checkpoint_in_background();
    }
}
