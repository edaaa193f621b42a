//! `stillmirror man` and `stillmirror completions`: what a package installs beside the binary, made from the command line
//! itself.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::exit::Exit;
use crate::path_args;

#[derive(Args)]
pub(crate) struct ManArguments {
    /// Where to write the pages; created if it does not exist
    #[arg(value_name = "DIR", value_parser = path_args::local())]
    dir: PathBuf,
}

#[derive(Args)]
pub(crate) struct CompletionsArguments {
    /// The shell to write them for
    shell: Shell,
}

/// What stands behind the options of stillmirror(1), as headings with paragraphs of a term and its meaning.
const MORE: [(&str, &[(&str, &str)]); 2] = [
    (
        "ENVIRONMENT",
        &[
            ("STILLMIRROR_LOG", "The level of the daemon's log: error, warn, info (the default), debug or trace."),
            (
                "STILLMIRROR_DAEMON__KEY, STILLMIRROR_INDEX__KEY",
                "Override a key of [daemon] or [index] in the configuration file.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            ("/etc/stillmirror/mirror.toml", "The configuration of serve and index, as the systemd units name it."),
            (
                "/usr/share/doc/stillmirror/examples/mirror.toml.example",
                "Every key of the configuration, with its meaning and its default.",
            ),
            ("/var/lib/stillmirror", "The stores: the generations of each repository."),
            ("/var/cache/stillmirror", "Encoded file lists for rsync clients, which may be removed at any time."),
            (
                "/var/spool/stillmirror",
                "Requests to index: the file NAME starts stillmirror-index@NAME.service, if stillmirror-index@NAME.path \
                 is enabled.",
            ),
        ],
    ),
];

/// Writes one page for `command`, and one for each of its subcommands.
pub(crate) fn write_pages(arguments: &ManArguments, command: Command) -> Result<Exit> {
    let dir = &arguments.dir;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let visible: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let pages: Vec<_> = visible.iter().map(page_name).collect();
    write(dir, &command, &pages)?;
    for command in &visible {
        write(dir, command, &["stillmirror".to_owned()])?;
    }
    Ok(Exit::Done)
}

/// Prints the completions of `command` for a shell.
pub(crate) fn write_completions(arguments: &CompletionsArguments, mut command: Command) -> Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "stillmirror", &mut text);
    // A reader that is gone (`| head`) is no failure.
    let _ = io::stdout().write_all(&text);
    Ok(Exit::Done)
}

fn page_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn write(dir: &Path, command: &Command, see_also: &[String]) -> Result<()> {
    let path = dir.join(format!("{}.1", page_name(command)));
    let mut text = Vec::new();
    page(command, see_also, &mut text)
        .and_then(|()| std::fs::write(&path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the page of a command. What its help says behind the options becomes sections of their own: clap_mangen would
/// fill the lines of the examples.
fn page(command: &Command, see_also: &[String], out: &mut Vec<u8>) -> io::Result<()> {
    let man = Man::new(command.clone()).manual("Stillmirror");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    let mut roff = Roff::new();
    if command.has_subcommands() {
        man.render_subcommands_section(out)?;
    }
    help_sections(&mut roff, &command.get_after_help().map(ToString::to_string).unwrap_or_default());
    if command.has_subcommands() {
        for (heading, entries) in MORE {
            roff.control("SH", [heading]);
            for (term, meaning) in entries {
                roff.control("TP", []).text([bold(*term)]).text([roman(*meaning)]);
            }
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let last = see_also.len().saturating_sub(1);
    for (at, page) in see_also.iter().enumerate() {
        roff.text([bold(page.as_str()), roman(if at == last { "(1)" } else { "(1)," })]);
    }
    roff.to_writer(out)
}

/// Adds the paragraphs of a help text as sections. A first line that ends in a colon is a heading, and the lines below it
/// stay as they are. All other paragraphs are about exit codes.
fn help_sections(roff: &mut Roff, help: &str) {
    for paragraph in help.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        match paragraph.split_once('\n') {
            Some((heading, lines)) if heading.ends_with(':') => {
                let heading = heading.trim_end_matches(':').to_uppercase();
                let heading = if heading == "EXIT CODES" { "EXIT STATUS" } else { &heading };
                roff.control("SH", [heading]).control("nf", []);
                for line in lines.lines() {
                    roff.text([roman(line)]);
                }
                roff.control("fi", []);
            }
            _ => {
                roff.control("SH", ["EXIT STATUS"]).text([roman(paragraph.replace('`', "\""))]);
            }
        }
    }
}
