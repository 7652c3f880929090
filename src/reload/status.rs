//! How a reload went: for the log, for whoever asked, and for whoever looks later.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::document::Problem;

/// What a reload was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The process started.
    Start,
    /// A watched file changed.
    Changed,
    /// The last reload failed, and what it lacked may be there now.
    Again,
    /// SIGHUP.
    Signal,
    /// `POST /reload`.
    Asked,
}

impl Cause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Cause::Start => "start",
            Cause::Changed | Cause::Again => "file",
            Cause::Signal => "signal",
            Cause::Asked => "request",
        }
    }
}

/// How a reload went.
#[derive(Clone, Debug)]
pub struct Status {
    /// What it was for.
    pub cause: Cause,
    /// When it ended.
    pub at: SystemTime,
    /// `upstreams.stripe.retry.max_attempts: 3 → 5`, a line a setting.
    pub changed: Vec<String>,
    /// Why it was refused; empty where it took effect.
    pub problems: Vec<Problem>,
    /// Valid but dangerous.
    pub warnings: Vec<Problem>,
    /// A file changed while it was read, so that another reload follows.
    pub(super) torn: bool,
    /// How long it took until the new configuration was in effect, reading included.
    pub(super) duration: Duration,
}

impl Status {
    pub(super) fn start() -> Status {
        Status::of(Cause::Start)
    }

    /// Nothing to tell yet.
    fn of(cause: Cause) -> Status {
        Status {
            cause,
            at: SystemTime::now(),
            changed: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            torn: false,
            duration: Duration::ZERO,
        }
    }

    pub(super) fn took(cause: Cause, changed: Vec<String>, warnings: Vec<Problem>) -> Status {
        Status { changed, warnings, ..Status::of(cause) }
    }

    pub(super) fn refused(cause: Cause, problems: Vec<Problem>) -> Status {
        Status { problems, ..Status::of(cause) }
    }

    /// Whether the file, as it was read then, is the configuration in effect.
    pub fn took_effect(&self) -> bool {
        self.problems.is_empty()
    }

    /// Writes it to the log: of the dangers those that were not told of `before`.
    pub(super) fn tell(&self, before: &Status) {
        let cause = self.cause.as_str();
        for problem in &self.problems {
            log(problem, true);
        }
        // There may be one for each of a thousand upstreams.
        let told: HashSet<_> = before.warnings.iter().map(|warning| (&warning.path, &warning.message)).collect();
        for warning in self.warnings.iter().filter(|warning| !told.contains(&(&warning.path, &warning.message))) {
            warn(warning);
        }
        if !self.took_effect() {
            let problems = self.problems.len();
            tracing::error!(cause, problems, "the new configuration was refused, the old one stays in effect");
            return;
        }
        for change in &self.changed {
            tracing::info!(change, "a setting changed");
        }
        let milliseconds = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        let (changes, again) = (self.changed.len(), self.torn);
        tracing::info!(cause, changes, milliseconds, again, "the configuration was reloaded");
    }

    /// As `POST /reload` answers.
    pub fn json(&self) -> Value {
        let at = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let result = if self.took_effect() { "success" } else { "failure" };
        let list = |problems: &[Problem]| problems.iter().map(Problem::json).collect::<Vec<_>>();
        json!({
            "result": result,
            "cause": self.cause.as_str(),
            "at": at,
            "changed": self.changed,
            "problems": list(&self.problems),
            "warnings": list(&self.warnings),
        })
    }
}

/// Writes a danger in the configuration to the log.
pub(crate) fn warn(problem: &Problem) {
    log(problem, false);
}

fn log(problem: &Problem, error: bool) {
    let file = problem.place.as_ref().map(|place| place.file.display().to_string());
    let line = problem.place.as_ref().map(|place| place.line);
    let column = problem.place.as_ref().map(|place| place.column);
    let (setting, detail, help) = (&*problem.path, &*problem.message, problem.help.as_deref());
    if error {
        tracing::error!(file, line, column, setting, detail, help, "a problem in the configuration");
    } else {
        tracing::warn!(file, line, column, setting, detail, help, "a danger in the configuration");
    }
}
