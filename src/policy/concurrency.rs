//! The concurrency limit and its bounded queue.

#[cfg(test)]
mod model;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::document::Reader;
use crate::error::{Error, Result};

/// `concurrency`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Slots.
    pub max_in_flight: NonZeroU32,
    /// How many may wait for one.
    pub max_queue: NonZeroU32,
    /// How long they wait; 0 rejects at once.
    pub max_wait: Duration,
}

impl Settings {
    /// Reads the block; `None` where `max_in_flight` is not given.
    pub fn read(reader: &mut Reader<'_>) -> Option<Settings> {
        let max_in_flight = reader.optional_count("max_in_flight");
        let max_queue = reader.count("max_queue", "`max_wait: 0` rejects at once");
        let max_wait = reader.duration_or_zero("max_wait");
        Some(Settings { max_in_flight: max_in_flight?, max_queue, max_wait })
    }
}

/// The slots of a lane, and the line for them: first come, first served (tokio's semaphore is fair).
pub struct Concurrency {
    slots: Arc<Semaphore>,
    waiting: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    settings: Settings,
    /// Held slots that a smaller limit no longer has: they vanish when they are given back.
    surplus: usize,
}

/// A slot, taken until it is dropped.
pub struct Slot {
    /// Taken out on drop only.
    permit: Option<OwnedSemaphorePermit>,
    of: Arc<Concurrency>,
}

impl Concurrency {
    /// All slots free.
    pub fn new(settings: Settings) -> Arc<Concurrency> {
        Arc::new(Concurrency {
            slots: Arc::new(Semaphore::new(settings.max_in_flight.get() as usize)),
            waiting: AtomicUsize::new(0),
            state: Mutex::new(State { settings, surplus: 0 }),
        })
    }

    /// A reload changed the settings: held slots count against the new limit.
    pub fn reconfigure(&self, settings: &Settings) {
        let mut state = self.lock();
        let old = state.settings.max_in_flight.get() as usize;
        let new = settings.max_in_flight.get() as usize;
        if new > old {
            let paid = state.surplus.min(new - old);
            state.surplus -= paid;
            self.slots.add_permits(new - old - paid);
        } else {
            state.surplus += old - new - self.slots.forget_permits(old - new);
        }
        state.settings = settings.clone();
    }

    /// Takes a slot where one is free and nobody waits for it.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Slot> {
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        Some(Slot { permit: Some(permit), of: self.clone() })
    }

    /// Takes a slot, waiting for it until `max_wait` or `deadline` is over.
    ///
    /// # Errors
    /// [`Error::ConcurrencyLimited`] when the line is full or the wait over.
    pub async fn acquire(self: &Arc<Self>, deadline: Option<Instant>) -> Result<Slot> {
        if let Some(slot) = self.try_acquire() {
            return Ok(slot);
        }
        let (max_queue, max_wait) = {
            let state = self.lock();
            (state.settings.max_queue.get() as usize, state.settings.max_wait)
        };
        if max_wait.is_zero() {
            return Err(Error::ConcurrencyLimited);
        }
        let place = Place(self);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= max_queue {
            return Err(Error::ConcurrencyLimited);
        }
        let until = Instant::now() + max_wait;
        let until = deadline.map_or(until, |deadline| deadline.min(until));
        let permit = tokio::time::timeout_at(until, self.slots.clone().acquire_owned()).await;
        drop(place);
        match permit {
            Ok(Ok(permit)) => Ok(Slot { permit: Some(permit), of: self.clone() }),
            // The semaphore is never closed; the other case is the time-out.
            Ok(Err(_)) | Err(_) => Err(Error::ConcurrencyLimited),
        }
    }

    /// Free slots that the limit no longer has vanish.
    fn pay(&self) {
        let mut state = self.lock();
        state.surplus -= self.slots.forget_permits(state.surplus);
    }

    /// Slots taken, and attempts waiting for one.
    pub fn status(&self) -> (usize, usize) {
        let state = self.lock();
        let limit = state.settings.max_in_flight.get() as usize;
        let taken = (limit + state.surplus).saturating_sub(self.slots.available_permits());
        (taken, self.waiting.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line, given back on drop.
struct Place<'a>(&'a Concurrency);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        // Who hangs up between being handed a slot and learning of it gives it back without a `Slot` ever having been.
        self.0.pay();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        // Given back under the lock too, so that a reload finds it either taken or free.
        let mut state = self.of.lock();
        if state.surplus > 0 {
            state.surplus -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(max_in_flight: u32, max_queue: u32, max_wait_ms: u64) -> Settings {
        Settings {
            max_in_flight: NonZeroU32::new(max_in_flight).unwrap(),
            max_queue: NonZeroU32::new(max_queue).unwrap(),
            max_wait: Duration::from_millis(max_wait_ms),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slots_are_handed_on_in_order() {
        let concurrency = Concurrency::new(limit(1, 10, 1000));
        let first = concurrency.acquire(None).await.unwrap();
        let (sender, mut served) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..5 {
            let (waiter, sender) = (concurrency.clone(), sender.clone());
            let before = concurrency.status().1;
            tokio::spawn(async move {
                let slot = waiter.acquire(None).await.unwrap();
                sender.send(number).unwrap();
                drop(slot);
            });
            while concurrency.status().1 == before {
                tokio::task::yield_now().await;
            }
        }
        drop(first);
        for number in 0..5 {
            assert_eq!(served.recv().await, Some(number));
        }
        assert_eq!(concurrency.status(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_max_wait_or_the_deadline() {
        let concurrency = Concurrency::new(limit(1, 10, 1000));
        let _held = concurrency.acquire(None).await.unwrap();
        let start = Instant::now();
        assert!(concurrency.acquire(None).await.is_err());
        assert_eq!(start.elapsed(), Duration::from_millis(1000));
        let deadline = Instant::now() + Duration::from_millis(300);
        assert!(concurrency.acquire(Some(deadline)).await.is_err());
        assert_eq!(Instant::now(), deadline);
        assert_eq!(concurrency.status(), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_refuses_at_once() {
        let concurrency = Concurrency::new(limit(1, 1, 1000));
        let _held = concurrency.acquire(None).await.unwrap();
        let waiting = tokio::spawn({
            let concurrency = concurrency.clone();
            async move { concurrency.acquire(None).await.is_ok() }
        });
        while concurrency.status().1 == 0 {
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        assert!(concurrency.acquire(None).await.is_err());
        assert_eq!(start.elapsed(), Duration::ZERO);
        waiting.abort();
        assert!(waiting.await.is_err());
        assert_eq!(concurrency.status(), (1, 0), "who leaves frees the place in the line");
    }

    #[tokio::test(start_paused = true)]
    async fn held_slots_count_against_a_smaller_limit() {
        let concurrency = Concurrency::new(limit(4, 1, 0));
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(concurrency.acquire(None).await.unwrap());
        }
        concurrency.reconfigure(&limit(2, 1, 0));
        assert_eq!(concurrency.status().0, 4);
        held.truncate(2);
        assert!(concurrency.acquire(None).await.is_err());
        held.truncate(1);
        held.push(concurrency.acquire(None).await.unwrap());
        assert!(concurrency.acquire(None).await.is_err());
        concurrency.reconfigure(&limit(3, 1, 0));
        held.push(concurrency.acquire(None).await.unwrap());
        assert_eq!(concurrency.status().0, 3);
        drop(held);
        assert_eq!(concurrency.status().0, 0);
    }

    async fn poll_once<F: Future + Unpin>(wait: &mut F) -> std::task::Poll<F::Output> {
        std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *wait).poll(cx))).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_handed_to_one_who_hangs_up_vanishes_where_the_limit_has_shrunk() {
        let concurrency = Concurrency::new(limit(2, 2, 1000));
        let held = [concurrency.acquire(None).await.unwrap(), concurrency.acquire(None).await.unwrap()];
        let mut waiting = Box::pin(concurrency.acquire(None));
        assert!(poll_once(&mut waiting).await.is_pending());
        let [first, second] = held;
        drop(first);
        concurrency.reconfigure(&limit(1, 2, 1000));
        drop(waiting);
        assert_eq!(concurrency.status(), (1, 0));
        assert!(concurrency.try_acquire().is_none(), "the second is the one that there may be");
        drop(second);
        assert!(concurrency.try_acquire().is_some());
    }
}
