//! `outrigger inject`: manifests in, manifests with the sidecar out.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::cli::print;
use crate::document::printable;
use crate::inject::{self, IMAGE, Injected, Level, separate};
use crate::origin::Host;

/// What `inject` is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Files with manifests, YAML or JSON; `-` or none is standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The ConfigMap with `outrigger.yaml`, in the pods' namespace.
    #[arg(long, value_name = "NAME", default_value = "outrigger", value_parser = config_map_name)]
    config_map: String,
    /// The sidecar's image.
    #[arg(long, value_name = "IMAGE", default_value = IMAGE, value_parser = image_name)]
    image: String,
    /// Lead only this container to Outrigger (may be repeated); without it, all of them.
    #[arg(long = "container", value_name = "NAME")]
    containers: Vec<String>,
    /// Hosts that don't go through Outrigger, besides the cluster's own (commas between them).
    #[arg(long, value_name = "HOSTS", value_delimiter = ',', value_parser = exempt_host)]
    no_proxy: Vec<String>,
    /// Replace variables that the app sets itself; without it they are left, with a warning.
    #[arg(long)]
    overwrite_env: bool,
    /// Share the CA of `https: intercept` with the app, by volumes in memory and variables.
    #[arg(long)]
    intercept: bool,
    /// Names that lead to `listeners.tls`, for apps that ignore proxy variables (commas between).
    #[arg(long, value_name = "HOSTS", value_delimiter = ',', value_parser = alias, requires = "intercept")]
    host_aliases: Vec<String>,
    /// An ordinary container instead of a native sidecar, for clusters before Kubernetes 1.29.
    #[arg(long)]
    no_native: bool,
    /// Say nothing but warnings and errors.
    #[arg(long, short)]
    quiet: bool,
}

/// What its help ends with.
pub(crate) const HELP: &str = "\
Knows Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job, CronJob, Pod
and lists of them; other kinds pass through. A pod template with the annotation
`outrigger.dev/inject: \"false\"` is left alone. What was done is said on standard error. Doing it
again changes nothing; other options change what was put in.

Examples:
  kubectl get deploy web -o yaml | outrigger inject --config-map web-egress | kubectl apply -f -
  helm template shop ./chart | outrigger inject --container shop > shop.yaml

Exit status:
  0  done, also when there was nothing to do
  1  a document can't be injected; nothing is written then
  2  a file can't be read, or the command line is wrong";

/// Reads the manifests, and writes them only when each could be injected.
pub(crate) fn inject(options: &Options) -> ExitCode {
    let standard_input = [PathBuf::from("-")];
    let files = if options.files.is_empty() { &standard_input[..] } else { &options.files };
    let mut texts = Vec::new();
    for file in files {
        match read(file) {
            Ok(text) => texts.push((shown(file), text)),
            Err(error) => {
                say(&format!("error: {}: {error}", shown(file)));
                return ExitCode::from(2);
            }
        }
    }
    let chosen = inject::Options {
        config_map: options.config_map.clone(),
        image: options.image.clone(),
        native: !options.no_native,
        containers: options.containers.clone(),
        no_proxy: options.no_proxy.iter().filter(|host| !host.is_empty()).cloned().collect(),
        overwrite_env: options.overwrite_env,
        intercept: options.intercept,
        aliases: options.host_aliases.clone(),
    };
    let mut out = String::new();
    let (mut refused, mut silent) = (false, true);
    let mut seen = Vec::new();
    for (name, text) in &texts {
        let injected = inject::inject(text, &chosen);
        for note in injected.notes.iter().filter(|note| note.level != Level::Done || !options.quiet) {
            say(&format!("{name}:{note}"));
        }
        refused |= injected.refused();
        silent &= injected.notes.is_empty();
        let Injected { text, containers, .. } = injected;
        seen.extend(containers);
        out.push_str(separate(&out, &text));
        out.push_str(&text);
    }
    for name in options.containers.iter().filter(|name| !seen.contains(name)) {
        say(&format!("error: no pod has a container {name}{}", known(&seen)));
        refused = true;
    }
    if silent && !options.quiet {
        say("there is no manifest in it, nothing to do");
    }
    if refused {
        say("nothing was written");
        return ExitCode::from(1);
    }
    print(&out)
}

fn read(file: &Path) -> Result<String, String> {
    let bytes = if file == Path::new("-") {
        if io::stdin().is_terminal() {
            return Err(
                "no manifest: name files, or pipe one in, as in `kubectl get deploy web -o yaml | outrigger inject`"
                    .into(),
            );
        }
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        fs::read(file)
    };
    let bytes = bytes.map_err(|error| error.to_string())?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8")
    })
}

fn shown(file: &Path) -> String {
    if file == Path::new("-") { "stdin".to_owned() } else { file.display().to_string() }
}

fn known(seen: &[String]) -> String {
    let mut names: Vec<&str> = seen.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() { String::new() } else { format!(" (there are {})", names.join(", ")) }
}

/// Nowhere is left to complain to where standard error is closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(line));
}

fn config_map_name(name: &str) -> Result<String, String> {
    let label = |label: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        ends(label.chars().next())
            && ends(label.chars().next_back())
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        Ok(name.to_owned())
    } else {
        Err("a ConfigMap's name is of lower-case letters, digits, `-` and `.`".to_owned())
    }
}

fn image_name(name: &str) -> Result<String, String> {
    if !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic()) {
        Ok(name.to_owned())
    } else {
        Err("an image is a name without spaces, as registry.example/outrigger:1.2.3".to_owned())
    }
}

fn exempt_host(host: &str) -> Result<String, String> {
    let host = host.trim();
    if host.chars().all(|c| c.is_ascii_graphic()) {
        Ok(host.to_owned())
    } else {
        Err("hosts, domains as .corp.example, addresses and networks, with commas between them".to_owned())
    }
}

fn alias(host: &str) -> Result<String, String> {
    match Host::parse(host.trim()) {
        Ok(Host::Name(name)) if !name.contains('_') => Ok(name.to_string()),
        Ok(Host::Name(_) | Host::Ip(_)) | Err(_) => {
            Err("names of hosts, as api.example.com, with commas between them; /etc/hosts knows no wildcards"
                .to_owned())
        }
    }
}
