//! By which name the program was called. As `kubectl-palisade` it is kubectl's plugin: what it tells a person to type, usage
//! lines and next steps, begins with `kubectl palisade`.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::OnceLock;

use clap::CommandFactory;

use super::Cli;

/// Set once, before anything is printed.
static AS_PLUGIN: OnceLock<bool> = OnceLock::new();

/// Remembers the name.
pub(super) fn remember(program: Option<&OsStr>) {
    let name = program.map(Path::new).and_then(Path::file_stem).unwrap_or_default();
    let _ = AS_PLUGIN.set(name == "kubectl-palisade");
}

pub(super) fn as_plugin() -> bool {
    AS_PLUGIN.get().copied().unwrap_or(false)
}

/// The text with its commands as this user types them.
pub(super) fn commands(text: &str) -> Cow<'_, str> {
    if as_plugin() { Cow::Owned(plugin(text)) } else { Cow::Borrowed(text) }
}

/// `palisade COMMAND` becomes `kubectl palisade COMMAND`; the name alone, and as part of another one, stays.
fn plugin(text: &str) -> String {
    const NAME: &str = "palisade ";
    let known = Cli::command();
    let is_command = |rest: &str| {
        let word = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap_or_default();
        rest.starts_with(['[', '<', '-']) || word == "COMMAND" || known.find_subcommand(word).is_some()
    };
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(NAME) {
        let (before, after) = (&rest[..at], &rest[at + NAME.len()..]);
        out += before;
        let apart = !out.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | '.'));
        if apart && !out.ends_with("kubectl ") && is_command(after) {
            out += "kubectl ";
        }
        out += NAME;
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_as_kubectl_takes_them_and_nothing_else_is_touched() {
        for (text, told) in [
            ("next: palisade model ls shows it", "next: kubectl palisade model ls shows it"),
            ("Usage: palisade [OPTIONS] <COMMAND>", "Usage: kubectl palisade [OPTIONS] <COMMAND>"),
            (
                "palisade crd | kubectl apply -f -; `palisade migrate`",
                "kubectl palisade crd | kubectl apply -f -; `kubectl palisade migrate`",
            ),
            ("kubectl palisade doctor", "kubectl palisade doctor"),
            ("palisade is a program", "palisade is a program"),
            (
                "./palisade doctor, ns/palisade lease, my-palisade doctor",
                "./palisade doctor, ns/palisade lease, my-palisade doctor",
            ),
            ("", ""),
        ] {
            assert_eq!(plugin(text), told);
        }
    }
}
