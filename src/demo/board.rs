//! What is shown: each phase with what was measured in it. The run writes it, the screen reads it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::demo::acts::Acts;
use crate::demo::figures::{Figures, Waits};
use crate::demo::phase::Phase;
use crate::demo::seen::Seen;

/// What is shown.
#[derive(Clone, Debug)]
pub struct Board {
    /// Outrigger's proxy port.
    pub proxy: SocketAddr,
    /// Its dashboard.
    pub dashboard: SocketAddr,
    /// The configuration that Outrigger runs with.
    pub policies: Arc<str>,
    /// A row for each phase, in order.
    pub rows: Vec<Row>,
    /// How often all phases were begun.
    pub round: u32,
    /// Between two phases: the upstream is well, and Outrigger has not noticed yet.
    pub mending: bool,
    /// POSTs without a key that an upstream behind Outrigger got more than once, ever.
    pub twice: u64,
}

/// One phase.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which.
    pub phase: Phase,
    /// How far it has got.
    pub stage: Stage,
    /// What was measured, once it has begun.
    pub measured: Option<Measured>,
    /// How long after the upstream was well again its circuit closed, where that was waited for.
    pub noticed: Option<Duration>,
}

/// How far a phase has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has not begun.
    Waiting,
    /// So long is left.
    Running(Duration),
    /// Waits for the last answers.
    Ending,
    /// It is over.
    Done,
}

/// What was measured in a phase.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What the app saw.
    pub with: Side,
    /// What the same app saw beside it, straight at a twin of the upstream.
    pub without: Side,
    /// What the upstream behind Outrigger saw.
    pub upstream: Seen,
    /// What Outrigger did.
    pub acts: Acts,
}

/// What one app saw.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its calls.
    pub figures: Figures,
    /// How long they took.
    pub waits: Waits,
    /// How many had no answer in sight.
    pub stuck: u64,
}

impl Side {
    /// As of now.
    pub fn new(figures: Figures, now: Instant) -> Side {
        Side { waits: figures.waits(now), stuck: figures.stuck(now), figures }
    }

    /// The share of reads that failed; `None` where there were none.
    pub fn failed(&self) -> Option<f64> {
        share(self.figures.reads.failed, self.figures.reads.calls)
    }
}

impl Measured {
    /// Requests that reached the upstream for each read that the app made.
    pub fn per_call(&self) -> Option<f64> {
        share(self.upstream.reads.requests, self.with.figures.reads.calls)
    }

    /// The share of reads that the upstream failed.
    pub fn upstream_failed(&self) -> Option<f64> {
        share(self.upstream.reads.failed, self.upstream.reads.requests)
    }
}

/// A part of a whole, 1 being all.
pub fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Board {
    /// Nothing has begun.
    pub fn new(proxy: SocketAddr, dashboard: SocketAddr, policies: Arc<str>) -> Board {
        let rows = Phase::ALL.map(|phase| Row { phase, stage: Stage::Waiting, measured: None, noticed: None });
        Board { proxy, dashboard, policies, rows: rows.to_vec(), round: 0, mending: false, twice: 0 }
    }

    /// The phase that is under way.
    pub fn current(&self) -> Option<&Row> {
        self.rows.iter().find(|row| match row.stage {
            Stage::Running(_) | Stage::Ending => true,
            Stage::Waiting | Stage::Done => false,
        })
    }
}
