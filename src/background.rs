//! What no request is to wait for, done on one thread that steps back for all others: to read, build and free a configuration
//! of a thousand upstreams takes as long as a thousand requests.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

/// By so much is its priority lower: beside a busy thread it still gets a tenth of the time.
const NICE: i32 = 10;
/// After so long it lets others go first: a thread that wakes on its core may have to wait until its turn has ended, which takes
/// milliseconds where nobody ends it early.
const TURN: Duration = Duration::from_micros(200);

thread_local! {
    /// When this thread began its turn, where it is the one that steps back.
    static TURN_BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// To be called now and then by what takes long. Where that is done by any other thread, as when the process starts, it is nothing.
pub(crate) fn give_way() {
    TURN_BEGAN.with(|began| {
        if began.get().is_some_and(|began| began.elapsed() >= TURN) {
            thread::yield_now();
            began.set(Some(Instant::now()));
        }
    });
}

/// The thread. It ends with this value, once it has done what it was told.
pub(crate) struct Background(Sender<Order>);

enum Order {
    Once(Box<dyn FnOnce() + Send>),
    Every(Duration, Box<dyn FnMut() + Send>),
}

impl Background {
    /// Starts it. Tasks that it spawns are spawned on this runtime.
    ///
    /// # Errors
    /// A sentence, where there is no thread to be had.
    pub(crate) fn start() -> Result<Background, String> {
        let (sender, orders) = channel();
        let runtime = Handle::current();
        thread::Builder::new()
            .name("background".into())
            .spawn(move || {
                let _spawns_there = runtime.enter();
                // Where that is forbidden, it is one thread among others.
                let _ = rustix::process::nice(NICE);
                TURN_BEGAN.set(Some(Instant::now()));
                obey(&orders);
            })
            .map_err(|error| format!("no thread to reload the configuration on: {error}"))?;
        Ok(Background(sender))
    }

    /// Does this, after what was told before. `None`: it panicked, which is logged.
    pub(crate) async fn run<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = channel();
        self.tell(Order::Once(Box::new(move || {
            let _ = done.send(act());
        })));
        // On a thread of the runtime's: time that tests have paused runs ahead of any other.
        aside(move || result.recv().ok()).await.flatten()
    }

    /// Does this some time.
    pub(crate) fn later(&self, act: impl FnOnce() + Send + 'static) {
        self.tell(Order::Once(Box::new(act)));
    }

    /// Does this again and again, with so much time before each.
    pub(crate) fn every(&self, period: Duration, act: impl FnMut() + Send + 'static) {
        self.tell(Order::Every(period, Box::new(act)));
    }

    fn tell(&self, order: Order) {
        // It listens for as long as there is anyone to tell it anything.
        let _ = self.0.send(order);
    }
}

fn obey(orders: &Receiver<Order>) {
    let mut again: Option<(Duration, Box<dyn FnMut() + Send>)> = None;
    let mut due = Instant::now();
    loop {
        let order = match &again {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => orders.recv_timeout(due.saturating_duration_since(Instant::now())),
        };
        match order {
            Ok(Order::Once(act)) => {
                let _ = catch_unwind(AssertUnwindSafe(act));
            }
            Ok(Order::Every(period, act)) => {
                again = Some((period, act));
                due = Instant::now() + period;
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some((period, act)) = &mut again {
                    let _ = catch_unwind(AssertUnwindSafe(act));
                    due = Instant::now() + *period;
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Does this on a thread that the runtime has for what takes long, or here where there is none and none can be started. It is begun at
/// once, whether the result is waited for or not. `None`: it panicked, which is logged, or the process ends.
pub(crate) fn aside<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = Option<T>> {
    fn done<T>(act: &Mutex<Option<impl FnOnce() -> T>>) -> Option<T> {
        let act = act.lock().unwrap_or_else(PoisonError::into_inner).take();
        act.map(|act| act())
    }
    let act = Arc::new(Mutex::new(Some(act)));
    let there = act.clone();
    // It panics where there is no such thread. What it was told it keeps, and may find done later.
    let begun = catch_unwind(AssertUnwindSafe(|| spawn_blocking(move || done(&there)))).map_err(|_| done(&act));
    async {
        match begun {
            Ok(begun) => begun.await.ok().flatten(),
            Err(done) => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn orders_are_obeyed_one_after_the_other() {
        let background = Background::start().unwrap();
        let (told, all) = mpsc::channel();
        for n in 0..3 {
            let told = told.clone();
            background.later(move || told.send(n).unwrap());
        }
        assert_eq!(background.run(move || told.send(3).is_ok()).await, Some(true));
        assert_eq!(all.iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn a_panic_is_told_and_the_next_order_is_obeyed() {
        let background = Background::start().unwrap();
        assert_eq!(background.run(|| -> u32 { panic!("on purpose") }).await, None);
        assert_eq!(background.run(|| 1).await, Some(1));
    }

    #[tokio::test]
    async fn what_is_done_again_and_again_outlives_its_panics_and_ends_with_the_thread() {
        let background = Background::start().unwrap();
        let (told, all) = mpsc::channel();
        background.every(Duration::from_millis(1), move || {
            told.send(()).unwrap();
            panic!("on purpose");
        });
        for _ in 0..3 {
            all.recv().unwrap();
        }
        drop(background);
        while all.recv().is_ok() {}
    }

    #[tokio::test]
    async fn what_is_done_aside_is_done_whether_it_is_waited_for_or_not() {
        assert_eq!(aside(|| 1).await, Some(1));
        assert_eq!(aside(|| -> u32 { panic!("on purpose") }).await, None);
        let (told, all) = mpsc::channel();
        drop(aside(move || told.send(2).unwrap()));
        assert_eq!(all.recv(), Ok(2));
    }

    #[tokio::test]
    async fn it_steps_back_for_other_threads() {
        let nice = |of: &str| -> i32 {
            let stat = std::fs::read_to_string(format!("/proc/{of}/stat")).unwrap();
            stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse().unwrap()
        };
        let background = Background::start().unwrap();
        let its = background.run(move || nice("thread-self")).await.unwrap();
        let ours = nice("thread-self");
        assert_eq!(its, (ours + NICE).min(19));
    }
}
