//! The parts that are measured: each is a name, and a set-up that gives what is done once. `times` and `instructions` share them.

mod configuration;
mod pipeline;
mod policies;
mod requests;
mod routing;
mod tables;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// One thing that is measured.
pub struct Part {
    /// `room/what/how much`
    pub name: &'static str,
    /// How often it is done when instructions are counted: seldom where once takes long, and each key once where it takes
    /// one key after the other.
    pub times: u32,
    set_up: Box<dyn Fn() -> Act>,
}

/// Does it once.
pub type Act = Box<dyn FnMut()>;

impl Part {
    fn new<A: FnMut() + 'static>(name: &'static str, times: u32, set_up: impl Fn() -> A + 'static) -> Part {
        Part { name, times, set_up: Box::new(move || Box::new(set_up())) }
    }

    /// All that it needs, made anew. What chance there is comes from the same seed each time.
    pub fn set_up(&self) -> Act {
        fastrand::seed(7);
        (self.set_up)()
    }
}

/// Every part, in the order in which a request meets them; last those of a reload, and whole requests.
pub fn all() -> Vec<Part> {
    [routing::parts(), policies::parts(), pipeline::parts(), tables::parts(), requests::parts()]
        .into_iter()
        .flatten()
        .collect()
}

/// What a future comes to that never waits.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}
