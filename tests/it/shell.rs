//! What a shell and `man` make of the command line.

use std::process::{Command, Output};

const OUTRIGGER: &str = env!("CARGO_BIN_EXE_outrigger");
const SHELLS: [&str; 5] = ["bash", "zsh", "fish", "elvish", "powershell"];

fn outrigger(arguments: &[&str]) -> Output {
    Command::new(OUTRIGGER).env_remove("OUTRIGGER_CONFIG").args(arguments).output().unwrap()
}

fn printed(arguments: &[&str]) -> String {
    let output = outrigger(arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that help shows, `outrigger` itself first.
fn commands() -> Vec<String> {
    let help = printed(&["--help"]);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let mut commands = vec![String::new()];
    commands.extend(listed.filter_map(|line| line.split_whitespace().next()).map(str::to_owned));
    assert!(commands.iter().any(|command| command == "check"), "{help}");
    commands
}

/// Whether the program is there. `tests/shell/run` installs all of them and says so.
fn exists(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(found || std::env::var_os("OUTRIGGER_SHELLS_INSTALLED").is_none(), "{program} is not installed");
    found
}

/// What bash proposes for the last word.
fn proposed(words: &[&str]) -> Vec<String> {
    let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
    let script = format!(
        "source /dev/stdin <<< \"$SCRIPT\"\n\
         COMP_WORDS=({}); COMP_CWORD={}\n\
         function=$(complete -p outrigger | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
         \"$function\" outrigger '{last}' '{before}'\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
        words.len() - 1,
    );
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", &script]).env("SCRIPT", printed(&["completions", "bash"]));
    let output = bash.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_and_their_values() {
    assert_eq!(proposed(&["outrigger", "ch"]), ["check"]);
    assert_eq!(proposed(&["outrigger", "check", "--form"]), ["--format"]);
    assert_eq!(proposed(&["outrigger", "check", "--format", ""]), ["text", "json"]);
    assert!(SHELLS.iter().all(|shell| proposed(&["outrigger", "completions", ""]).contains(&(*shell).to_owned())));
}

#[test]
fn fish_completes_commands_with_what_they_do() {
    if exists("fish") {
        let mut fish = Command::new("fish");
        fish.args(["--no-config", "-c", "echo $SCRIPT | source; complete -C 'outrigger che'"]);
        let output = fish.env("SCRIPT", printed(&["completions", "fish"])).output().unwrap();
        let proposed = String::from_utf8(output.stdout).unwrap();
        assert!(proposed.starts_with("check\tValidates"), "{proposed}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn every_shell_gets_a_script_that_knows_every_command() {
    for shell in SHELLS {
        let script = printed(&["completions", shell]);
        assert!(commands().iter().all(|command| script.contains(command.as_str())), "{shell}");
        if ["zsh", "fish"].contains(&shell) && exists(shell) {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &script).unwrap();
            let output = Command::new(shell).arg("-n").arg(file.path()).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
    }
    assert_eq!(outrigger(&["completions", "ksh"]).status.code(), Some(2));
}

#[test]
fn every_command_has_a_manual_page_that_groff_takes_without_a_warning() {
    for command in commands() {
        let arguments: Vec<&str> = ["man"].into_iter().chain(Some(&*command).filter(|name| !name.is_empty())).collect();
        let page = printed(&arguments);
        let title =
            if command.is_empty() { ".TH outrigger 1 ".to_owned() } else { format!(".TH outrigger-{command} 1 ") };
        assert!(page.contains(&title) && page.contains(".SH SYNOPSIS"), "{page}");
        if exists("groff") {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &page).unwrap();
            let output = Command::new("groff").args(["-man", "-ww", "-Tascii"]).arg(file.path()).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
    }
    let output = outrigger(&["man", "chekc"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("it has run, check"));
}

#[test]
fn every_command_has_help_that_fits_a_terminal() {
    for command in commands() {
        let arguments: Vec<&str> =
            Some(&*command).filter(|name| !name.is_empty()).into_iter().chain(["--help"]).collect();
        for line in printed(&arguments).lines() {
            assert!(line.chars().count() <= 120, "{command}: {line}");
        }
    }
}
