//! A value that is replaced while others use it: certificate authorities, certificates, settings.
//!
//! Readers take an `Arc` and go on with it; the next reader sees the new one. Whoever must act on a change subscribes.

use std::sync::Arc;
use tokio::sync::watch;

/// A replaceable shared value. Clones share it.
pub struct Swap<T>(watch::Sender<Arc<T>>);

impl<T> Clone for Swap<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Swap<T> {
    pub fn new(value: T) -> Self {
        Self(watch::Sender::new(Arc::new(value)))
    }
    /// The value of this moment.
    pub fn load(&self) -> Arc<T> {
        self.0.borrow().clone()
    }
    /// Puts another value in place and wakes the subscribers.
    pub fn store(&self, value: T) {
        self.0.send_replace(Arc::new(value));
    }
    /// Wakes at each [`Swap::store`].
    pub fn subscribe(&self) -> watch::Receiver<Arc<T>> {
        self.0.subscribe()
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Swap<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.load().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_keeps_what_it_took_and_a_subscriber_hears_of_the_change() {
        let swap = Swap::new(1);
        let (before, mut changes) = (swap.load(), swap.subscribe());
        swap.clone().store(2);
        assert_eq!((*before, *swap.load()), (1, 2));
        changes.changed().await.unwrap();
        assert_eq!(**changes.borrow(), 2);
    }
}
