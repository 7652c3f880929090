//! The effective policy: each value with where it comes from.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::config::schema::{self, Kind, Scope};
use crate::config::{self, Config, effective};
use crate::document::read::written;
use crate::document::tree::{Layer, Node};
use crate::explain::Spot;

/// One value.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// Its path, as in `timeouts.attempt`.
    pub setting: String,
    /// The value; `"off"` for what is switched off, `<redacted>` for what may be a secret.
    pub value: Json,
    /// `built-in`, `defaults`, `upstream`, `route`, or `file` for what stands at its top.
    pub from: &'static str,
    /// The upstream's or route's name.
    pub name: Option<String>,
    /// Where it is written; `None` for built-in values.
    pub place: Option<Spot>,
    /// False where it has no effect on this request: in a tunnel most have none.
    pub acts: bool,
    /// What may surprise.
    pub note: Option<String>,
}

/// Whose settings.
pub(super) struct Lane<'a> {
    /// The whole configuration.
    pub(super) config: &'a Config,
    /// `None` for hosts that no upstream names.
    pub(super) upstream: Option<&'a config::Upstream>,
    /// `None` for the upstream's own.
    pub(super) route: Option<&'a config::Route>,
    /// Only a part of it acts on a tunnel.
    pub(super) tunnel: bool,
    /// It comes through a tunnel that ends here.
    pub(super) inside: bool,
    /// The request asks to switch protocols.
    pub(super) upgrade: bool,
}

/// A route as the file has it.
pub(super) fn written_route(config: &Config, upstream: &config::Upstream, route: &config::Route) -> Option<Arc<Node>> {
    let written = written_upstream(config, upstream)?;
    let merged = config.layers.upstream(&written);
    let named = |node: &&Arc<Node>| {
        node.get("name").and_then(|name| name.scalar()).is_some_and(|name| *name.text == *route.name)
    };
    merged.get("routes")?.items().iter().find(named).cloned()
}

fn written_upstream(config: &Config, upstream: &config::Upstream) -> Option<Arc<Node>> {
    Some(config.layers.root().get("upstreams")?.entry(&upstream.name)?.value.clone())
}

impl Lane<'_> {
    /// Every setting that a request meets: policies first, then the way out, then what is not the upstream's.
    pub(super) fn settings(&self) -> Vec<Setting> {
        let (upstream, lane) = self.merged();
        let top = self.config.layers.top();
        let mut settings = Vec::new();
        let mut off: Option<&str> = None;
        let of = |scope| schema::KEYS.iter().filter(move |key| key.scope == scope);
        let keys = of(Scope::Policy).chain(of(Scope::Shared)).chain(of(Scope::Upstream)).chain(of(Scope::Top));
        for key in keys {
            let node = match key.scope {
                Scope::Policy => &lane,
                Scope::Shared => &upstream,
                Scope::Upstream if self.upstream.is_some() => &upstream,
                Scope::Top if key.path.starts_with("egress.") => &top,
                Scope::Top | Scope::Upstream | Scope::Route => continue,
            };
            if off.is_some_and(|block| key.path.starts_with(block) && key.path.as_bytes()[block.len()] == b'.') {
                continue;
            }
            let parts: Vec<&str> = key.path.split('.').collect();
            let Some(found) = node.at(&parts) else {
                settings.extend(self.derived(key.path, node));
                continue;
            };
            let block = matches!(key.kind, Kind::Block | Kind::BlockOrOff | Kind::Routes);
            if let Some(why) = switched_off(found, key.path).filter(|_| block) {
                off = Some(key.path);
                settings.push(self.setting(key.path, found, json!("off"), why));
            } else if block {
                let note = self.started_over(&parts);
                settings.extend(note.map(|note| self.setting(key.path, found, json!("on"), Some(note))));
            } else if key.path != "hosts" {
                settings.extend(self.value(key.path, found));
            }
        }
        settings
    }

    /// A single value, or a list of them; `None` for a list that is empty unless it is written.
    fn value(&self, path: &str, node: &Node) -> Option<Setting> {
        // What the file denies adds to the built-in three, so the list as it is written is not the whole of it.
        let value = if path == "egress.deny" { self.denied() } else { effective::value(node, path) };
        let nothing = value.as_array().is_some_and(Vec::is_empty) && written(node).is_none();
        (!nothing).then(|| self.setting(path, node, value, None))
    }

    /// The merged upstream, and the merged lane.
    fn merged(&self) -> (Arc<Node>, Arc<Node>) {
        let layers = &self.config.layers;
        let Some((upstream, node)) =
            self.upstream.and_then(|upstream| Some((upstream, written_upstream(self.config, upstream)?)))
        else {
            let node = layers.unmatched();
            return (node.clone(), node);
        };
        let merged = layers.upstream(&node);
        let lane = self
            .route
            .and_then(|route| written_route(self.config, upstream, route))
            .map_or_else(|| merged.clone(), |written| layers.route(&merged, &written));
        (merged, lane)
    }

    fn setting(&self, path: &str, node: &Node, value: Json, note: Option<String>) -> Setting {
        let name = match node.layer {
            Layer::Route => self.route.map(|route| route.name.to_string()),
            Layer::Upstream => self.upstream.map(|upstream| upstream.name.to_string()),
            Layer::BuiltIn | Layer::File | Layer::Defaults => None,
        };
        Setting {
            setting: path.to_owned(),
            value,
            from: node.layer.as_str(),
            name,
            place: written(node).as_ref().map(Spot::of),
            acts: self.acts(path),
            note,
        }
    }

    fn acts(&self, path: &str) -> bool {
        match path {
            "egress.unmatched" => self.upstream.is_none(),
            "egress.connect_ports" | "https" => self.tunnel || self.inside,
            "timeouts.tunnel_idle" => self.tunnel || self.upgrade,
            "scheme" => !self.tunnel && self.upstream.is_none_or(|upstream| upstream.to.is_empty()),
            path => !self.tunnel || acts_on_tunnels(path),
        }
    }

    /// What has a value although nothing is written.
    fn derived(&self, path: &str, node: &Node) -> Option<Setting> {
        if path != "rate_limit.burst" {
            return None;
        }
        let requests = node.at(&["rate_limit", "requests"])?;
        let note = Some("left out: as many as `requests`".to_owned());
        Some(self.setting(path, requests, effective::value(requests, "rate_limit.requests"), note))
    }

    fn denied(&self) -> Json {
        self.config.egress.deny.0.iter().map(|rule| Json::from(rule.to_string())).collect()
    }

    /// A block that a more general layer switched off starts from the built-in values: what stood there before `off`, or
    /// stands in that layer beside it, is gone.
    fn started_over(&self, parts: &[&str]) -> Option<String> {
        let root = self.config.layers.root();
        let upstream = self.upstream.and_then(|upstream| written_upstream(self.config, upstream));
        let route =
            self.upstream.zip(self.route).and_then(|(upstream, route)| written_route(self.config, upstream, route));
        let layers = [("`defaults`", root.get("defaults").cloned()), ("the upstream", upstream), ("the route", route)];
        let mut off = None;
        let mut note = None;
        for (layer, node) in &layers {
            let Some(found) = node.as_ref().and_then(|node| node.at(parts)) else { continue };
            if found.is_off() {
                (off, note) = (Some((layer, Spot::of(&found.place))), None);
            } else if let Some((who, place)) = off.take() {
                note =
                    Some(format!("{who} has `off` ({place}) and {layer} writes it again: from the built-in values on"));
            }
        }
        note
    }
}

/// Why a block is off: `Some(None)` where the word says it all.
fn switched_off(node: &Node, path: &str) -> Option<Option<String>> {
    if node.is_off() {
        return Some(None);
    }
    let switch = match path {
        "rate_limit" => "requests",
        "concurrency" => "max_in_flight",
        _ => return None,
    };
    node.get(switch).is_none().then(|| Some(format!("until `{switch}` is written")))
}

/// Whether a setting has an effect on a tunnel.
fn acts_on_tunnels(path: &str) -> bool {
    match path.split_once('.').map_or((path, ""), |parts| parts) {
        ("timeouts", key) => key != "idle",
        ("retry", key) => !matches!(
            key,
            "methods" | "idempotency_headers" | "generate_idempotency_key" | "max_retry_after" | "max_body"
        ),
        ("rate_limit", key) => !matches!(key, "pause_on_retry_after"),
        ("circuit_breaker" | "egress" | "allow_addresses", _) => true,
        (_, _) => false,
    }
}
