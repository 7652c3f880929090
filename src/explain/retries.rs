//! Whether a failure is retried: what [`retry::Settings::decide`] says to everything that can happen to the request.

use std::time::Duration;

use http::{HeaderMap, HeaderName, Method};
use serde::Serialize;

use crate::explain::cases::Case;
use crate::explain::question::Body;
use crate::policy::budget::WINDOW;
use crate::policy::retry::{self, Decision, Facts, Outcome, Settings};
use crate::units::show_size;

/// What is sent again, and why.
#[derive(Debug, Serialize)]
pub struct Retries {
    /// The most attempts, the first one included.
    pub max_attempts: u32,
    /// Whether it may be sent again although the upstream may have seen it.
    pub repeatable: bool,
    /// Why, or why not.
    pub why: String,
    /// Whether the body can be sent again; `None`: its size was not told.
    pub body_fits: Option<bool>,
    /// One sentence about the body; `None` where there is none.
    pub body: Option<String>,
    /// What bounds the retries of all requests; `None`: nothing does, or there are none.
    pub budget: Option<String>,
    /// Everything that can happen, in the order in which it can.
    pub cases: Vec<Case>,
}

/// What the decisions are taken on.
pub(super) struct Request<'a> {
    /// `None` is `off`.
    pub(super) settings: Option<&'a Settings>,
    /// As it is sent.
    pub(super) method: &'a Method,
    /// As they are sent, a generated key not yet among them.
    pub(super) headers: &'a HeaderMap,
    /// What is known of it.
    pub(super) body: Body,
    /// The most that replay buffers hold. Bytes.
    pub(super) memory: u64,
    /// Whether names of headers may be shown: those from a variable may be secrets.
    pub(super) show_names: bool,
    /// Its failures come before anything is sent.
    pub(super) tunnel: bool,
    /// Whether `timeouts.attempt` can pass.
    pub(super) attempt_clock: bool,
}

impl Request<'_> {
    /// Whether the request may be repeated: by its method, its headers, or the key that it gets.
    pub(super) fn repeatable(&self) -> bool {
        let key = self.settings.is_some_and(|settings| settings.key_to_add(self.method, self.headers).is_some());
        self.tunnel || key || retry::repeatable(self.settings, self.method, self.headers)
    }

    /// Whether the body can be sent again once it was sent; one of unknown size is taken for one that fits.
    pub(super) fn replayable(&self) -> bool {
        match self.body {
            Body::Of(bytes) => bytes <= self.largest_body(),
            Body::None | Body::Untold => true,
        }
    }

    fn largest_body(&self) -> u64 {
        retry::largest_body(self.settings).min(self.memory)
    }

    /// What the pipeline decides after attempt number `attempts` that ended like this, with time and budget left and every
    /// wait as long as it may be. `body_sent`: something of the body was.
    pub(super) fn decide(
        &self,
        outcome: Outcome<'_>,
        attempts: u32,
        body_sent: bool,
        retry_after: Option<Duration>,
    ) -> Decision {
        let Some(settings) = self.settings else { return Decision::Pass };
        let replayable = self.tunnel || !body_sent || self.replayable();
        settings.decide(&Facts {
            outcome,
            attempts,
            repeatable: self.repeatable(),
            replayable,
            retry_after,
            left: None,
            random: 1.0,
            extra: 1.0,
        })
    }

    /// All of it.
    pub(super) fn explain(&self) -> Retries {
        let max_attempts = self.settings.map_or(1, |settings| settings.max_attempts.get());
        let (body_fits, body) = self.body();
        Retries {
            max_attempts,
            repeatable: self.repeatable(),
            why: self.why(),
            body_fits,
            body,
            budget: self.budget(),
            cases: self.cases(),
        }
    }

    fn why(&self) -> String {
        if self.tunnel {
            return "nothing of a tunnel is sent before it is connected, so a failed connection may be tried again"
                .to_owned();
        }
        let method = self.method;
        let Some(settings) = self.settings else {
            return "`retry` is off: only a pooled connection that turns out to be closed is replaced".to_owned();
        };
        if settings.methods.contains(method) {
            return format!(
                "{method} is in `retry.methods`, so it may be sent again also where the upstream may have seen it"
            );
        }
        let given = settings.idempotency_headers.iter().find(|name| self.headers.contains_key(*name));
        let title = |name: &HeaderName| {
            if self.show_names { title(name) } else { "an idempotency header".to_owned() }
        };
        let mut names: Vec<String> = settings.idempotency_headers.iter().map(title).collect();
        names.dedup();
        if self.repeatable() {
            return match (given, settings.key_to_add(method, self.headers)) {
                (Some(name), None) => {
                    format!("the request carries {}, so it may be sent again whatever its method", title(name))
                }
                (_, Some(name)) => format!(
                    "it gets a generated {}, the same in all attempts (`generate_idempotency_key`): safe only if the upstream \
                     honours it",
                    title(name)
                ),
                (None, None) => "it may be sent again".to_owned(),
            };
        }
        let missing = match (given, names.as_slice()) {
            (Some(name), _) => format!("its {} is empty", title(name)),
            (None, []) => "`retry.idempotency_headers` is empty".to_owned(),
            (None, _) if !self.show_names => "it carries no idempotency header".to_owned(),
            (None, names) => format!("it carries no {}", names.join(" or ")),
        };
        format!(
            "{method} is not in `retry.methods` and {missing}: it is sent again only where the upstream can't have seen it"
        )
    }

    fn body(&self) -> (Option<bool>, Option<String>) {
        let cap = self.largest_body();
        let name = match self.settings {
            Some(settings) if settings.max_body <= self.memory => "`retry.max_body`",
            Some(_) => "`limits.replay_memory`",
            None => "what is kept with `retry: off`",
        };
        let cap = show_size(cap);
        match self.body {
            Body::None => (Some(true), None),
            _ if self.tunnel => (Some(true), None),
            Body::Of(bytes) if self.replayable() => (
                Some(true),
                Some(format!("a body of {} is kept and can be sent again: {name} is {cap}", show_size(bytes))),
            ),
            Body::Of(bytes) => (
                Some(false),
                Some(format!(
                    "a body of {} is more than {name} ({cap}): it streams, and is not sent again",
                    show_size(bytes)
                )),
            ),
            Body::Untold => (
                None,
                Some(format!(
                    "a body of more than {cap} ({name}) is not sent again; --body-size says how much there is"
                )),
            ),
        }
    }

    fn budget(&self) -> Option<String> {
        let settings = self.settings.filter(|settings| settings.max_attempts.get() > 1)?;
        let budget = settings.budget.as_ref()?;
        let share = f64::from(budget.ratio.parts_per_million()) / 10_000.0;
        let floor = u64::from(budget.min_per_second.get()) * WINDOW.as_secs();
        Some(format!("retries are at most {share} % of the requests of the last {} s, plus {floor}", WINDOW.as_secs()))
    }
}

/// `Idempotency-Key`: as people write it.
fn title(name: &HeaderName) -> String {
    let mut start = true;
    let upper = |c: char| {
        let shown = if start { c.to_ascii_uppercase() } else { c };
        start = c == '-';
        shown
    };
    name.as_str().chars().map(upper).collect()
}
