//! Stillmirror: a passive mirror. It indexes a tree once per update, serves it without work per client, and pulls only
//! what changed.

// Nothing that a peer, a disk or a user can cause may panic. Tests may.
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

mod check;
mod config;
mod demo;
mod exit;
mod filter_args;
mod import_rsyncd;
mod index;
mod keygen;
mod list;
mod manual;
mod output;
mod path_args;
mod privileges;
mod progress;
mod pull;
mod sandbox;
mod serve;
mod shadow;
mod sign;
mod signals;
mod status;
mod tls_args;
mod url;
mod verify;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use exit::Exit;

/// A passive mirror: indexes a tree once per update, serves it without work per client, pulls only what changed
#[derive(Parser)]
#[command(version, after_help = exit::HELP, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Index a repository: walk it once, hash what changed, publish a generation
    Index(index::Arguments),
    /// Make a key that signs generations
    Keygen(keygen::Arguments),
    /// Sign the current generation of a store again, without indexing
    Sign(sign::Arguments),
    /// Serve repositories to stillmirror and rsync clients
    Serve(serve::Arguments),
    /// Pull a repository, or a part of it: fetch what changed, verify, commit
    Pull(pull::Arguments),
    /// List repositories, a directory, or a store
    List(list::Arguments),
    /// Check every file of a tree against the digests in its store
    Verify(verify::Arguments),
    /// Show what a running daemon on this host serves and does
    Status(status::Arguments),
    /// Say what of a configuration will work on this host, what will not, and what to do
    Check(check::Arguments),
    /// Write a mirror.toml for the modules of an rsyncd.conf
    ImportRsyncd(import_rsyncd::Arguments),
    /// Compare two rsync daemons as their clients see them, before one takes the place of the other
    Shadow(shadow::Arguments),
    /// Show index, serve and pull on a small real tree, on loopback; leaves nothing behind
    Demo(demo::Arguments),
    /// Print completions for a shell
    #[command(hide = true)]
    Completions(manual::CompletionsArguments),
    /// Write the manual pages
    #[command(hide = true)]
    Man(manual::ManArguments),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            let pulls = std::env::args_os().nth(1).is_some_and(|command| command == "pull");
            let error = if pulls { pull::explain_rsync_flags(error) } else { error };
            let _ = error.print();
            return if help { Exit::Done } else { Exit::Usage }.into();
        }
    };
    let result = match arguments.command {
        Command::Index(arguments) => index::run(arguments),
        Command::Keygen(arguments) => keygen::run(arguments),
        Command::Sign(arguments) => sign::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Pull(arguments) => pull::run(arguments),
        Command::List(arguments) => list::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Status(arguments) => status::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::ImportRsyncd(arguments) => import_rsyncd::run(arguments),
        Command::Shadow(arguments) => shadow::run(arguments),
        Command::Demo(arguments) => demo::run(arguments),
        Command::Completions(arguments) => manual::write_completions(&arguments, Arguments::command()),
        Command::Man(arguments) => manual::write_pages(&arguments, Arguments::command()),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("stillmirror: {}", output::error(&error));
            exit::of(&error).into()
        }
    }
}
