//! For tests: a process that dies at a chosen commit. What was committed stays; whoever asked
//! never hears of it, and nobody commits anything after that.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::sync::Notify;

/// How many commits are left.
pub(crate) struct Life {
    left: AtomicI64,
    pub(crate) ended: Notify,
}

impl Default for Life {
    fn default() -> Self {
        Self { left: AtomicI64::new(i64::MAX), ended: Notify::new() }
    }
}

impl Life {
    pub(crate) fn set(&self, commits: i64) {
        self.left.store(commits, Ordering::SeqCst);
    }

    pub(super) async fn before_commit(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            std::future::pending::<()>().await;
        }
    }

    pub(super) async fn after_commit(&self) {
        if self.left.load(Ordering::SeqCst) <= 0 {
            self.ended.notify_one();
            std::future::pending::<()>().await;
        }
    }
}
