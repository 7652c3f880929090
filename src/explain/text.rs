//! An explanation for people: at most a hundred columns, colour only where it is wanted.

use serde_json::Value as Json;

use crate::document::printable;
use crate::explain::{Case, Destination, Explanation, Pattern, RouteChoice, Setting, Spot};
use crate::upstream::table::UNMATCHED;

/// No line is longer, unless one word is.
const WIDTH: usize = 98;
/// Where the text of the first sections begins.
const INDENT: usize = 11;
/// A longer value pushes the rest of its line.
const WIDEST_VALUE: usize = 24;

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";
const YELLOW: &str = "33";

impl Explanation {
    /// The report as text.
    pub fn text(&self, colour: bool) -> String {
        let mut page = Page { out: String::new(), colour };
        page.write(self);
        page.out
    }

    /// The report as JSON, with a line feed at its end.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).map(|json| json + "\n").unwrap_or_default()
    }
}

struct Page {
    out: String,
    colour: bool,
}

impl Page {
    fn write(&mut self, explanation: &Explanation) {
        let title = self.paint(BOLD, &printable(&explanation.request));
        self.out.push_str(&format!("{title}\n\n"));
        if let Some(refusal) = &explanation.refusal {
            let place = refusal.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
            let verdict = format!("{} {}: {}{place}", refusal.status, refusal.code, refusal.why);
            self.section("Refused", RED, &verdict);
            if let Some(help) = &refusal.help {
                self.below(&format!("what to do: {help}"));
            }
        }
        if explanation.verdict == "tunnel" {
            let what = "through HTTPS_PROXY this is CONNECT: bytes pass unseen, to the host and port it names";
            self.section("Tunnel", YELLOW, what);
        }
        if explanation.verdict == "intercepted" {
            self.section("Inside", YELLOW, "the app's TLS ends here, and each request inside gets every policy");
        }
        if explanation.inside && explanation.refusal.is_none() {
            self.section("Inside", YELLOW, "through HTTPS_PROXY the app's TLS ends here, and every policy acts");
        }
        if let Some(http) = &explanation.as_http {
            let lead = match (&http.refused, &http.upstream) {
                (Some(code), _) => format!("as {} it would be refused ({code})", http.url),
                (None, upstream) => {
                    let upstream = upstream.as_deref().unwrap_or_default();
                    let route = http.route.as_ref().map(|route| format!(", route {route}")).unwrap_or_default();
                    let tls = if http.plain { ", without TLS" } else { "" };
                    let to = http.leads_to.join(" or ");
                    if upstream == UNMATCHED {
                        format!("as {} it would leave{tls}, to {to}: no upstream names it", http.url)
                    } else {
                        format!("as {} every policy acts: upstream {upstream}{route}, leads to {to}{tls}", http.url)
                    }
                }
            };
            self.below(&printable(&lead));
        }
        self.upstream(explanation);
        if let Some(route) = &explanation.route {
            self.route(route);
        }
        for (at, to) in explanation.leads_to.iter().enumerate() {
            self.destination(if at == 0 { "Leads to" } else { "or to" }, to);
        }
        if explanation.leads_to.len() > 1 {
            self.below("the less loaded of two taken at random");
        }
        self.settings(&explanation.policy);
        if !explanation.state.is_empty() {
            self.heading("State", "whose circuit, bucket, slots and budget it meets");
            for state in &explanation.state {
                self.entry(&format!("{:<17}", state.what), &state.why, 2);
            }
        }
        self.retries(explanation);
        if let Some(clocks) = &explanation.clocks {
            self.heading("Clocks", "in the worst case");
            for line in &clocks.lines {
                self.entry("", line, 2);
            }
        }
        if !explanation.notes.is_empty() {
            self.heading("Notes", "");
            for note in &explanation.notes {
                self.entry("- ", &printable(note), 2);
            }
        }
    }

    fn upstream(&mut self, explanation: &Explanation) {
        let Some(choice) = &explanation.upstream else { return };
        self.section("Upstream", BOLD, &placed(&choice.name, choice.place.as_ref()));
        let place = choice.pattern.as_ref().and_then(|pattern| pattern.place.as_ref());
        self.below(&placed(&printable(&choice.why), place));
        let shown = |pattern: &Pattern| {
            let place = pattern.place.as_ref().map(|place| format!(" ({place})")).unwrap_or_default();
            format!("`{}` of {}{place}", pattern.pattern, pattern.upstream)
        };
        for pattern in &choice.later {
            self.below(&format!("also {}, but {}", shown(pattern), pattern.why));
        }
        for pattern in &choice.near {
            self.below(&format!("not {}: {}", shown(pattern), pattern.why));
        }
    }

    fn route(&mut self, choice: &RouteChoice) {
        let name = choice.name.as_deref().unwrap_or("none");
        self.section("Route", BOLD, &placed(name, choice.place.as_ref()));
        self.below(&printable(&choice.why));
        let near = choice.others.iter().filter(|other| other.near);
        for other in near {
            let name = placed(&format!("not `{}`", other.name), other.place.as_ref());
            self.below(&format!("{name}: {}", printable(&other.why)));
        }
        let far: Vec<String> =
            choice.others.iter().filter(|other| !other.near).map(|other| format!("`{}`", other.name)).collect();
        if !far.is_empty() {
            self.below(&format!(
                "{} {} something else",
                far.join(", "),
                if far.len() == 1 { "matches" } else { "match" }
            ));
        }
    }

    fn destination(&mut self, title: &str, to: &Destination) {
        let port = if to.tls.is_none() && to.http.is_none() { String::new() } else { format!(", port {}", to.port) };
        let http = to.http.map(|http| format!(", by {http}")).unwrap_or_default();
        self.section(title, BOLD, &format!("{}{port}{http}", to.origin));
        let mut names = Vec::new();
        match &to.tls {
            Some(tls) => {
                let sni = if tls.sni { "" } else { ", which is an address and so not sent as SNI" };
                names.push(format!("TLS {} or later for {}{sni}", tls.min_version, tls.server_name));
                names.push(match tls.roots.as_str() {
                    "system" => "trusting the system's roots".to_owned(),
                    file => format!("trusting {file}"),
                });
                if tls.client_certificate {
                    names.push("with a client certificate".to_owned());
                }
            }
            None if to.http.is_some() => names.push("without TLS".to_owned()),
            None => {}
        }
        if !names.is_empty() {
            self.below(&names.join("; "));
        }
        if let Some(host) = &to.host {
            self.below(&format!("Host: {host}"));
        }
        let egress = match to.egress.verdict {
            "denied" => format!("address denied: {}", to.egress.why),
            "allowed" => format!("address allowed: {}", to.egress.why),
            _ => format!("address {}", to.egress.why),
        };
        self.below(&egress);
    }

    fn settings(&mut self, settings: &[Setting]) {
        if settings.is_empty() {
            return;
        }
        self.heading("Policy", "each value, and where it comes from");
        let acting = || settings.iter().filter(|setting| setting.acts);
        let depth = |setting: &Setting| setting.setting.matches('.').count();
        let last = |setting: &Setting| setting.setting.rsplit('.').next().unwrap_or_default().to_owned();
        let key = acting().map(|setting| 2 + 2 * depth(setting) + last(setting).len()).max().unwrap_or(0) + 2;
        let value = acting()
            .map(|setting| show(&setting.value).chars().count())
            .filter(|w| *w <= WIDEST_VALUE)
            .max()
            .unwrap_or(0)
            + 2;
        let mut open: Vec<String> = Vec::new();
        for setting in acting() {
            let parts: Vec<&str> = setting.setting.split('.').collect();
            for level in 0..parts.len() - 1 {
                let block = parts[..=level].join(".");
                if !open.contains(&block) {
                    self.out.push_str(&format!("{}{}\n", " ".repeat(2 + 2 * level), parts[level]));
                    open.push(block);
                }
            }
            let indented = format!("{}{}", " ".repeat(2 * parts.len()), parts[parts.len() - 1]);
            if setting.value == "on" && setting.note.is_some() {
                self.out.push_str(&format!("{indented}\n"));
                open.push(setting.setting.clone());
            } else {
                let written = show(&setting.value);
                let shown = printable(&written);
                let from = from(setting);
                let line = format!("{indented:<key$}{}", pad(&shown, value));
                if line.chars().count() + from.chars().count() > WIDTH {
                    let rest = format!("{}{}", " ".repeat(key), self.paint(DIM, &from));
                    self.out.push_str(&format!("{}\n{rest}\n", line.trim_end()));
                } else {
                    let from = self.paint(DIM, &from);
                    self.out.push_str(&format!("{line}{from}\n"));
                }
            }
            if let Some(note) = &setting.note {
                self.entry("", note, key);
            }
        }
        // Of a block that has no effect at all, its name says enough.
        let block = |setting: &Setting| setting.setting.split('.').next().unwrap_or_default().to_owned();
        let mut idle: Vec<String> = Vec::new();
        for setting in settings.iter().filter(|setting| !setting.acts) {
            let whole = !acting().any(|acting| block(acting) == block(setting));
            let name = if whole { block(setting) } else { setting.setting.clone() };
            if idle.last() != Some(&name) {
                idle.push(name);
            }
        }
        if !idle.is_empty() {
            self.entry("", &format!("without effect here: {}", idle.join(", ")), 2);
        }
    }

    fn retries(&mut self, explanation: &Explanation) {
        let Some(retries) = &explanation.retries else { return };
        let most = match retries.max_attempts {
            1 => "one attempt".to_owned(),
            attempts => format!("at most {attempts} attempts"),
        };
        self.heading("Retries", &most);
        self.entry("", &printable(&retries.why), 2);
        for line in retries.body.iter().chain(&retries.budget) {
            self.entry("", line, 2);
        }
        // What meets the same fate stands together.
        let mut groups: Vec<(bool, &str, Vec<&Case>)> = Vec::new();
        for case in &retries.cases {
            match groups.iter_mut().find(|(retried, why, _)| *retried == case.retried && **why == *case.why) {
                Some((_, _, cases)) => cases.push(case),
                None => groups.push((case.retried, &case.why, vec![case])),
            }
        }
        groups.sort_by_key(|(retried, _, _)| !retried);
        for (retried, why, cases) in groups {
            let (word, colour) = if retried { ("sent again", GREEN) } else { ("not sent again", RED) };
            // Broken as it is read, and only then painted.
            let lines = wrap(&format!("{word}: {why}"), WIDTH - 4);
            for (at, line) in lines.iter().enumerate() {
                let (indent, line) = match at {
                    0 => ("  ", line.replacen(word, &self.paint(colour, word), 1)),
                    _ => ("    ", line.clone()),
                };
                self.out.push_str(&format!("{indent}{line}\n"));
            }
            for case in cases {
                self.entry("- ", &case.when, 4);
            }
        }
    }

    /// A line with a title before it.
    fn section(&mut self, title: &str, code: &str, text: &str) {
        let label = self.paint(code, title);
        let gap = " ".repeat(INDENT - title.len());
        let lines = wrap(text, WIDTH - INDENT);
        for (at, line) in lines.iter().enumerate() {
            match at {
                0 => self.out.push_str(&format!("{label}{gap}{line}\n")),
                _ => self.out.push_str(&format!("{}{line}\n", " ".repeat(INDENT))),
            }
        }
    }

    /// A line that belongs to the title above it.
    fn below(&mut self, text: &str) {
        for (at, line) in wrap(text, WIDTH - INDENT - 2).iter().enumerate() {
            let more = if at == 0 { 0 } else { 2 };
            self.out.push_str(&format!("{}{line}\n", " ".repeat(INDENT + more)));
        }
    }

    fn heading(&mut self, title: &str, about: &str) {
        let title = self.paint(BOLD, title);
        let about = if about.is_empty() { String::new() } else { self.paint(DIM, &format!(" ({about})")) };
        self.out.push_str(&format!("\n{title}{about}\n"));
    }

    /// A line with something before it, its further lines below its first.
    fn entry(&mut self, before: &str, text: &str, indent: usize) {
        let hanging = indent + before.chars().count();
        for (at, line) in wrap(text, WIDTH - hanging).iter().enumerate() {
            match at {
                0 => self.out.push_str(&format!("{}{before}{line}\n", " ".repeat(indent))),
                _ => self.out.push_str(&format!("{}{line}\n", " ".repeat(hanging))),
            }
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn placed(text: &str, place: Option<&Spot>) -> String {
    place.map_or_else(|| text.to_owned(), |place| format!("{text} ({place})"))
}

/// `route charges, example.yaml:36`
fn from(setting: &Setting) -> String {
    let name = setting.name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let place = setting.place.as_ref().map(|place| format!(", {place}")).unwrap_or_default();
    format!("{}{name}{place}", setting.from)
}

/// A value as the file would have it.
fn show(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Object(_) => value.to_string(),
    }
}

fn pad(text: &str, width: usize) -> String {
    let missing = width.saturating_sub(text.chars().count()).max(2);
    format!("{text}{}", " ".repeat(missing))
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += length;
        }
    }
    lines
}
