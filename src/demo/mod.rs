//! The demonstration: an app, an upstream that misbehaves phase by phase, and Outrigger between the two; beside them the
//! same app straight at a twin of that upstream. All of it is real, on loopback, in one process: nothing here knows what a
//! figure will be.
//!
//! | file | owns |
//! | --- | --- |
//! | [`phase`] | what the upstream does in each phase, and for how long |
//! | [`upstream`], [`behaviour`], [`seen`] | the upstream; tests use it too |
//! | [`app`], [`figures`] | the app's calls, and what it saw |
//! | [`acts`] | what Outrigger did, by its own metrics |
//! | [`board`] | all that is shown |
//! | [`words`], [`table`], [`screen`] | sentences, columns, the terminal |

pub mod acts;
pub mod app;
pub mod behaviour;
pub mod board;
pub mod figures;
pub mod phase;
pub mod screen;
pub mod seen;
pub mod table;
pub mod upstream;
pub mod words;

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::app::App;
use crate::demo::acts::Acts;
use crate::demo::app::{Traffic, Way};
use crate::demo::behaviour::Behaviour;
use crate::demo::board::{Board, Measured, Side, Stage};
use crate::demo::figures::Figures;
use crate::demo::phase::{Api, LATENCY, Phase};
use crate::demo::seen::Seen;
use crate::demo::upstream::Upstream;
use crate::reload::Source;

/// The configuration, but for the upstreams' addresses.
const POLICIES: &str = include_str!("demo.yaml");

/// How often what is shown is brought up to date.
const LOOK: Duration = Duration::from_millis(200);
/// How long the app's last calls of a phase are waited for: longer than the longest deadline in [`POLICIES`].
const LAST_ANSWERS: Duration = Duration::from_secs(6);
/// How long those of the app without Outrigger are waited for: what hangs there would hang for ever.
const GRACE: Duration = Duration::from_millis(500);
/// How long a circuit is waited for to notice that its upstream is well: longer than it is ever open.
const MENDING: Duration = Duration::from_secs(5);
/// Makes every run of the demonstration fail the same requests, as far as they come in the same order.
const SEED: u64 = 30;

/// Everything that runs.
pub struct Demo {
    app: App,
    api: Twins,
    quota: Twins,
    board: Arc<Mutex<Board>>,
    /// 1 is the usual length of phases.
    pace: f64,
    with_calls: Arc<AtomicU64>,
    without_calls: Arc<AtomicU64>,
}

/// Two upstreams that do the same.
struct Twins {
    /// Behind Outrigger.
    behind: Upstream,
    /// The other app's.
    alone: Upstream,
}

impl Twins {
    fn start() -> io::Result<Twins> {
        let twins = Twins { behind: Upstream::start(SEED)?, alone: Upstream::start(SEED)? };
        twins.behave(&Behaviour::Healthy, LATENCY)?;
        Ok(twins)
    }

    fn behave(&self, behaviour: &Behaviour, latency: Duration) -> io::Result<()> {
        for one in [&self.behind, &self.alone] {
            one.answer_after(latency);
            one.behave(behaviour.clone())?;
        }
        Ok(())
    }
}

impl Demo {
    /// Starts upstreams and proxy on free ports of 127.0.0.1. Phases last `pace` times as long as usual. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// A sentence that says what can't be started.
    pub fn start(pace: f64) -> Result<Demo, String> {
        let failed = |error| format!("an upstream of the demonstration can't be started: {error}");
        let (api, quota) = (Twins::start().map_err(failed)?, Twins::start().map_err(failed)?);
        let text = POLICIES
            .replace("API_ADDRESS", &api.behind.address().to_string())
            .replace("QUOTA_ADDRESS", &quota.behind.address().to_string());
        let text: Arc<str> = text.into();
        let source = Source::Text(text.clone());
        let loaded = source.load()?;
        let Some(config) = loaded.config else {
            let problems: Vec<String> = loaded.problems.errors.iter().map(ToString::to_string).collect();
            return Err(format!("the demonstration's configuration is not valid\n{}", problems.join("\n")));
        };
        let app = App::start(config, source)?;
        let board = Board::new(app.address("proxy"), app.address("admin"), text);
        Ok(Demo {
            app,
            api,
            quota,
            board: Arc::new(Mutex::new(board)),
            pace,
            with_calls: Arc::default(),
            without_calls: Arc::default(),
        })
    }

    /// What is shown, as it is now.
    pub fn board(&self) -> Arc<Mutex<Board>> {
        self.board.clone()
    }

    /// All phases, once.
    ///
    /// # Errors
    /// A sentence that says what an upstream could not do.
    pub async fn round(&self) -> Result<(), String> {
        self.show(|board| board.round += 1);
        for (at, phase) in Phase::ALL.into_iter().enumerate() {
            if phase.needs_closed_circuit() {
                self.mend(at).await?;
            }
            self.phase(at, phase).await.map_err(|error| format!("the upstream can't go on: {error}"))?;
        }
        Ok(())
    }

    async fn phase(&self, at: usize, phase: Phase) -> io::Result<()> {
        let twins = self.twins(phase.api());
        let (seen, acts) = (twins.behind.seen(), self.acts(phase.api()).await);
        let before = Before { seen, acts };
        let steps = phase.steps();
        if let Some(first) = steps.first() {
            twins.behave(&first.behaviour, first.latency)?;
        }
        self.show(|board| {
            let row = &mut board.rows[at];
            (row.stage, row.measured, row.noticed) = (Stage::Running(self.length(phase.lasts())), None, None);
        });
        let through = Way::Through { proxy: self.app.address("proxy"), host: phase.api().host() };
        let with = Traffic::start(&through, &self.with_calls);
        let without = Traffic::start(&Way::Straight(twins.alone.address()), &self.without_calls);
        let end = Instant::now() + self.length(phase.lasts());
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for step in steps {
            twins.behave(&step.behaviour, step.latency)?;
            let over = sleep(self.length(step.lasts));
            tokio::pin!(over);
            loop {
                tokio::select! {
                    () = &mut over => break,
                    _ = looks.tick() => {
                        let left = end.saturating_duration_since(Instant::now());
                        self.look(at, Stage::Running(left), &before, with.figures(), without.figures()).await;
                    }
                }
            }
        }
        with.stop();
        without.stop();
        let (patience, grace) = (Instant::now() + LAST_ANSWERS, Instant::now() + GRACE);
        let waits = |app: &Traffic, until| app.figures().waiting() > 0 && Instant::now() < until;
        while waits(&with, patience) || waits(&without, grace) {
            looks.tick().await;
            self.look(at, Stage::Ending, &before, with.figures(), without.figures()).await;
        }
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        let (with, without) = tokio::join!(with.end(left(patience)), without.end(left(grace)));
        self.look(at, Stage::Done, &before, with, without).await;
        Ok(())
    }

    /// Brings a row up to date.
    async fn look(&self, at: usize, stage: Stage, before: &Before, with: Figures, without: Figures) {
        let api = Phase::ALL[at].api();
        let now = Instant::now();
        let measured = Measured {
            with: Side::new(with, now),
            without: Side::new(without, now),
            upstream: self.twins(api).behind.seen() - before.seen,
            acts: self.acts(api).await.since(&before.acts),
        };
        let twice = self.api.behind.seen().unkeyed.repeated + self.quota.behind.seen().unkeyed.repeated;
        self.show(|board| {
            let row = &mut board.rows[at];
            (row.stage, row.measured) = (stage, Some(measured));
            board.twice = twice;
        });
    }

    /// Makes the upstream well and waits, under the app's traffic, until Outrigger's circuit has noticed. `at` is the phase
    /// that comes next.
    async fn mend(&self, at: usize) -> Result<(), String> {
        let closed = async || matches!(&*self.acts(Api::Main).await.now.circuit, "closed" | "");
        if closed().await {
            return Ok(());
        }
        self.api.behave(&Behaviour::Healthy, LATENCY).map_err(|error| format!("the upstream can't go on: {error}"))?;
        let well = Instant::now();
        self.show(|board| board.mending = true);
        let through = Way::Through { proxy: self.app.address("proxy"), host: Api::Main.host() };
        let with = Traffic::start(&through, &self.with_calls);
        let mut noticed = None;
        while noticed.is_none() && well.elapsed() < MENDING {
            sleep(LOOK / 4).await;
            noticed = closed().await.then(|| well.elapsed());
        }
        with.end(LAST_ANSWERS).await;
        self.show(|board| {
            board.mending = false;
            if let Some(row) = at.checked_sub(1).and_then(|before| board.rows.get_mut(before)) {
                row.noticed = noticed;
            }
        });
        Ok(())
    }

    async fn acts(&self, api: Api) -> Acts {
        Acts::of(self.app.address("admin"), api.name()).await.unwrap_or_default()
    }

    fn twins(&self, api: Api) -> &Twins {
        match api {
            Api::Main => &self.api,
            Api::Quota => &self.quota,
        }
    }

    fn length(&self, usual: Duration) -> Duration {
        usual.mul_f64(self.pace)
    }

    fn show(&self, change: impl FnOnce(&mut Board)) {
        change(&mut lock(&self.board));
    }
}

/// How the counters stood when a phase began.
struct Before {
    seen: Seen,
    acts: Acts,
}

pub(crate) fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}
