//! The command line as a whole: what is accepted, and what its help shows.

use clap::Parser;

use super::*;

#[test]
fn the_definition_is_sound_and_every_command_has_an_example() {
    Cli::command().debug_assert();
    for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Example:\n  carveout ") || help.contains("\n  RUST_LOG"), "{}", command.get_name());
        assert!(command.get_about().is_some(), "{}", command.get_name());
    }
}

#[test]
fn options_may_stand_behind_the_command() {
    for line in [
        "carveout check -c x.yaml",
        "carveout -c x.yaml check --output json",
        "carveout prepare --apply",
        "carveout status",
        "carveout status 7 --watch --url http://127.0.0.1:1",
        "carveout move 7 --to schema --wait --token t",
        "carveout move 7",
        "carveout move 7 --to shared",
        "carveout move 7 --to database --target postgresql://eu/x",
        "carveout verify -- -7",
        "carveout cancel 7 --output json",
        "carveout rehearse 7",
        "carveout cutover 7 --max-pause 5s",
        "carveout init --source postgresql://x --key bid -o y.yaml --password-file z",
        "carveout completions zsh",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
    }
    for line in [
        "carveout",
        "carveout move",
        "carveout move 7 --to nowhere",
        "carveout remove 7",
        "carveout check --output xml",
    ] {
        let refused = Cli::try_parse_from(line.split(' ')).err().map(|error| error.exit_code());
        assert_eq!(refused, Some(2), "{line}");
    }
    assert!(Cli::try_parse_from(["carveout", "verify", ""]).is_err());
}

#[test]
fn what_comes_later_is_refused_as_wrong_usage() {
    for name in later::NAMES {
        let Ok(Cli { command: Command::Later(later), .. }) = Cli::try_parse_from(["carveout", name, "7", "--anything"])
        else {
            panic!("{name} is not accepted");
        };
        let failure = later.refuse().unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.fault.message.contains(name), "{}", failure.fault.message);
    }
}
