//! `stillmirror list`.

mod render;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use stillmirror_protocol::entry::Entry;
use stillmirror_protocol::head::Head;
use stillmirror_protocol::list::{Dir, ListRef};
use stillmirror_protocol::path::{self, Escaped};
use stillmirror_receiver as receiver;
use stillmirror_store::Store;

use crate::exit::{Exit, UsageError};
use crate::output::time;
use crate::path_args;
use crate::tls_args::TlsArgs;
use crate::url::Url;

const EXAMPLES: &str = "\
Examples:
  stillmirror list stillmirror://mirror.example/
  stillmirror list stillmirror://mirror.example/debian/dists --recursive
  stillmirror list --store /var/lib/stillmirror/debian

`stillmirror --help` lists the exit codes.";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
#[command(override_usage = "stillmirror list [OPTIONS] <stillmirror://HOST:PORT/[NAME[/PATH]]>\n       \
                            stillmirror list [OPTIONS] --store <DIR>")]
pub(crate) struct Arguments {
    /// What to list: a sender's repositories, or a directory of a repository
    #[arg(value_name = "stillmirror://HOST:PORT/[NAME[/PATH]]")]
    url: Option<Url>,
    /// List the current generation of this store
    #[arg(long, value_name = "DIR", value_parser = path_args::local(), conflicts_with = "url")]
    store: Option<PathBuf>,
    /// List everything below the directory, too
    #[arg(long, short)]
    recursive: bool,
    #[command(flatten)]
    tls: TlsArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: Arguments) -> Result<Exit> {
    match (&arguments.store, &arguments.url) {
        (Some(store), _) => list_store(&arguments, store)?,
        (None, Some(url)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(list_remote(&arguments, url))?;
        }
        (None, None) => return Err(UsageError(
            "give the URL of a sender (stillmirror list stillmirror://HOST/[NAME[/PATH]]), or a store (stillmirror list \
             --store DIR)"
                .to_owned(),
        ).into()),
    }
    Ok(Exit::Done)
}

fn list_store(arguments: &Arguments, dir: &std::path::Path) -> Result<()> {
    let store = Store::open(dir)?;
    let generation = store.current()?.ok_or_else(|| UsageError(format!("{} has no generation yet", dir.display())))?;
    let list = generation.list();
    render::entries(generation.head(), below(list, list.dir(0), arguments.recursive), arguments.json);
    Ok(())
}

async fn list_remote(arguments: &Arguments, url: &Url) -> Result<()> {
    let options = receiver::SourceOptions { authorities: arguments.tls.authorities(), ..Default::default() };
    let source = receiver::NativeSource::connect(&url.address, options).await?;
    if url.repository.is_empty() {
        render::repositories(&source.list_repositories().await?, arguments.json);
        return Ok(());
    }
    let pinned = source.head(&url.repository).await?;
    if !arguments.recursive {
        let children = source.list_dir(pinned.handle, &url.path).await?;
        render::entries(&pinned.head, children.into_iter(), arguments.json);
        return Ok(());
    }
    let bytes = source.whole_list(&pinned).await?;
    let list = stillmirror_protocol::list::open(&bytes).map_err(receiver::PullError::from)?;
    let missing = || UsageError(format!("'{}' has no '{}'", url.repository, Escaped(&url.path)));
    let row = list.find(&url.path).ok_or_else(missing)?;
    match row.dir_number() {
        Some(number) => render::entries(&pinned.head, below(list, list.dir(number), true), arguments.json),
        None => {
            let (_, name) = path::split(&url.path);
            render::entries(&pinned.head, std::iter::once((name.to_vec(), row.to_entry())), arguments.json);
        }
    }
    Ok(())
}

/// Returns the entries below a directory, with paths relative to it. Each directory precedes its entries.
fn below<'a>(list: ListRef<'a>, dir: Dir<'a>, recursive: bool) -> impl Iterator<Item = (Vec<u8>, Entry)> + 'a {
    let mut levels = vec![(Vec::new(), dir, dir.rows())];
    std::iter::from_fn(move || {
        loop {
            let (prefix, dir, rows) = levels.last_mut()?;
            let Some(number) = rows.next() else {
                levels.pop();
                continue;
            };
            let row = list.row(number);
            let path = path::join(prefix, dir.name_of(number));
            if let Some(number) = row.dir_number().filter(|_| recursive) {
                let dir = list.dir(number);
                levels.push((path.clone(), dir, dir.rows()));
            }
            return Some((path, row.to_entry()));
        }
    })
}

/// Returns the JSON fields that describe a generation in every listing.
fn summary(head: &Head) -> serde_json::Map<String, serde_json::Value> {
    let counts = head.counts;
    let summary = serde_json::json!({
        "repository": head.repository,
        "generation": head.generation,
        "created": time(head.created),
        "expires": head.expires.map(time),
        "list_digest": head.list_digest.to_string(),
        "slice": head.slice.as_ref().map(|slice| {
            serde_json::json!({ "of": slice.of.to_string(), "selected": slice.selected })
        }),
        "files": counts.files,
        "directories": counts.directories,
        "symlinks": counts.symlinks,
        "specials": counts.specials,
        "bytes": counts.bytes,
    });
    match summary {
        serde_json::Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    }
}
