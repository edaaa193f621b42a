//! `--include` and `--exclude`. Their order on the command line matters.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use stillmirror_protocol::filter::Filter;

use crate::config::Pattern;

/// The filter given on the command line.
#[derive(Debug, Clone, Default)]
pub(crate) struct FilterArgs(pub(crate) Filter);

impl FromArgMatches for FilterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        let given = |id: &'static str| {
            let patterns = matches.get_many::<Pattern>(id).unwrap_or_default();
            matches.indices_of(id).unwrap_or_default().zip(patterns).map(move |(at, pattern)| (at, id, pattern))
        };
        let mut rules: Vec<_> = given("include").chain(given("exclude")).collect();
        rules.sort_by_key(|&(at, ..)| at);
        for (_, id, Pattern(pattern)) in rules {
            let pattern = pattern.as_bytes();
            let added = if id == "include" { self.0.include(pattern) } else { self.0.exclude(pattern) };
            added.map_err(|error| Error::raw(clap::error::ErrorKind::InvalidValue, error))?;
        }
        Ok(())
    }
}

impl Args for FilterArgs {
    fn augment_args(command: Command) -> Command {
        let pattern = |id: &'static str, help: &'static str| {
            Arg::new(id)
                .long(id)
                .value_name("PATTERN")
                .help(help)
                .action(ArgAction::Append)
                .value_parser(clap::value_parser!(Pattern))
        };
        command
            .arg(pattern("include", "Keep names that match; patterns are rsync's, and the first that matches decides"))
            .arg(pattern("exclude", "Leave out names that match, and everything below them"))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
