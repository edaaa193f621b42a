//! What each parameter of an rsyncd.conf becomes.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use stillmirror_daemon::HostPattern;
use stillmirror_protocol::head::check_repository_name;
use toml::Value;

use crate::config::Permissions;

use super::lines::{Line, Module, Modules, NAMES, Place};

/// What became of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// It has this counterpart, and clients see no difference.
    Taken(String),
    /// It has this counterpart, with a difference.
    Differs(String, &'static str),
    /// It needs no counterpart, for this reason.
    Unneeded(&'static str),
    /// It has no counterpart. Clients or the operator may notice that.
    Missing(&'static str),
}

/// One line of the account.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) at: Place,
    /// The line, as `key = value` or `[module]`.
    pub(super) text: String,
    pub(super) fate: Fate,
}

/// A mirror.toml in the making.
#[derive(Debug, Default)]
pub(super) struct Converted {
    /// Keys of `[daemon]`.
    pub(super) daemon: BTreeMap<&'static str, Value>,
    pub(super) repositories: Vec<Repository>,
    pub(super) account: Vec<Entry>,
}

/// A `[[repository]]`.
#[derive(Debug)]
pub(super) struct Repository {
    pub(super) name: String,
    pub(super) root: PathBuf,
    pub(super) keys: BTreeMap<&'static str, Value>,
}

/// Converts all modules.
pub(super) fn convert(found: &Modules) -> Converted {
    let mut converted = Converted::default();
    converted.daemon.insert("rsync_listen", Value::from("[::]:873"));
    for line in &found.global {
        let fate = converted.global(line);
        converted.note(line, fate);
    }
    for module in &found.modules {
        converted.module(module);
    }
    if !converted.daemon.contains_key("user") {
        converted.daemon.remove("group");
    }
    converted
}

impl Converted {
    fn note(&mut self, line: &Line, fate: Fate) {
        let text = format!("{} = {}", line.key, line.value);
        self.account.push(Entry { at: line.at.clone(), text, fate });
    }

    /// Takes a parameter outside of modules.
    fn global(&mut self, line: &Line) -> Fate {
        let value = &line.value[..];
        match &line.key[..] {
            "port" | "rsync port" => match value.parse::<u16>() {
                Ok(port) => {
                    let address = self.daemon.get("rsync_listen").and_then(Value::as_str).map_or("[::]", host);
                    self.listen(format!("{address}:{port}"))
                }
                Err(_) => Fate::Missing("not a port"),
            },
            "address" => {
                let port = self.daemon.get("rsync_listen").and_then(Value::as_str).and_then(port).unwrap_or(873);
                let address = if value.contains(':') { format!("[{value}]") } else { value.to_owned() };
                self.listen(format!("{address}:{port}"))
            }
            "motd file" => self.set("motd_file", Value::from(value)),
            "daemon uid" => self.set("user", Value::from(value)),
            "daemon gid" => self.set("group", Value::from(value)),
            "pid file" => Fate::Unneeded("systemd knows the process"),
            "socket options" | "listen backlog" | "daemon chroot" => Fate::Unneeded("not needed here"),
            "proxy protocol" if !is_yes(value) => Fate::Unneeded("off here, too"),
            "proxy protocol" => Fate::Missing("the addresses of clients behind a proxy are not known here"),
            key if NAMES.contains(&key) => Fate::Taken("the default of the modules below".to_owned()),
            _ => Fate::Missing("not a parameter of rsyncd.conf"),
        }
    }

    fn set(&mut self, key: &'static str, value: Value) -> Fate {
        let fate = Fate::Taken(format!("[daemon] {key} = {value}"));
        self.daemon.insert(key, value);
        fate
    }

    fn listen(&mut self, address: String) -> Fate {
        let text = format!("[daemon] rsync_listen = {}", Value::from(&address[..]));
        self.daemon.insert("rsync_listen", Value::from(address));
        Fate::Differs(text, "a comment, until the stock daemon has left the port")
    }

    fn module(&mut self, module: &Module) {
        let heading = |fate| Entry { at: module.at.clone(), text: format!("[{}]", module.name), fate };
        // The last line of a key counts, and the module's own before the defaults.
        let last = |key: &str| {
            let find = |lines: &'_ [Line]| lines.iter().rfind(|line| line.key == key).cloned();
            find(&module.lines).or_else(|| find(&module.defaults))
        };
        let refused = if check_repository_name(&module.name).is_err() {
            Some("left out: a repository cannot have this name")
        } else if self.repositories.iter().any(|other| other.name == module.name) {
            Some("left out: there is another module of this name")
        } else if last("path").is_none_or(|path| path.value.is_empty()) {
            Some("left out: it has no path")
        } else if last("path").is_some_and(|path| path.value.contains('%')) {
            Some("left out: its path depends on the client or the environment")
        } else if last("write only").is_some_and(|line| is_yes(&line.value)) {
            Some("left out: clients can only write to it, and nothing is written here")
        } else {
            None
        };
        if let Some(why) = refused {
            self.account.push(heading(Fate::Missing(why)));
            return;
        }
        let root = last("path").map(|path| plain(Path::new(&path.value))).unwrap_or_default();
        self.account.push(heading(Fate::Taken(format!("[[repository]] name = {}", Value::from(&module.name[..])))));
        let mut repository = Repository { name: module.name.clone(), root, keys: BTreeMap::new() };
        let is_in_force = |line: &Line| last(&line.key).is_some_and(|last| last.at == line.at);
        for line in &module.lines {
            let fate =
                if is_in_force(line) { repository.take(line) } else { Fate::Unneeded("a later line replaces it") };
            self.note(line, fate);
        }
        let defaults = module.defaults.iter().filter(|line| NAMES.contains(&&line.key[..]) && is_in_force(line));
        for line in defaults {
            let fate = repository.take(line);
            // Otherwise, the account says it where the default stands.
            if matches!(fate, Fate::Missing(_) | Fate::Differs(..)) {
                let text = format!("{} = {} (for [{}])", line.key, line.value, module.name);
                self.account.push(Entry { at: line.at.clone(), text, fate });
            }
        }
        // A stock daemon decides these by `use chroot`, which is on unless it is turned off.
        let is_chroot = last("use chroot").is_none_or(|line| is_yes(&line.value));
        if is_chroot && last("numeric ids").is_none() && last("name converter").is_none() {
            repository.keys.insert("numeric_ids", Value::from(true));
        }
        if !is_chroot && last("munge symlinks").is_none() {
            repository.keys.insert("munge_symlinks", Value::from(true));
        }
        if repository.keys.contains_key("auth_users") && !repository.keys.contains_key("secrets_file") {
            repository.keys.remove("auth_users");
            repository.keys.insert("hosts_deny", Value::from(vec!["*"]));
            repository.keys.remove("hosts_allow");
            self.account.push(heading(Fate::Missing("it has users and no secrets file, so hosts_deny closes it")));
        }
        self.repositories.push(repository);
    }
}

impl Repository {
    fn set(&mut self, key: &'static str, value: Value) -> Fate {
        let fate = Fate::Taken(format!("{key} = {value}"));
        self.keys.insert(key, value);
        fate
    }

    /// Takes a parameter of a module.
    fn take(&mut self, line: &Line) -> Fate {
        let value = &line.value[..];
        match &line.key[..] {
            "path" => Fate::Taken(format!("root = {}", Value::from(self.root.display().to_string()))),
            "comment" => self.set("comment", Value::from(value)),
            "list" => self.set("list", Value::from(is_yes(value))),
            "numeric ids" => self.set("numeric_ids", Value::from(is_yes(value))),
            "munge symlinks" => self.set("munge_symlinks", Value::from(is_yes(value))),
            "filter" => self.set("filter", one(value)),
            "include" => self.set("include", one(value)),
            "exclude" => self.set("exclude", one(value)),
            "refuse options" => self.set("refuse_options", split(value)),
            "include from" if !value.contains('%') => self.set("include_from", Value::from(value)),
            "exclude from" if !value.contains('%') => self.set("exclude_from", Value::from(value)),
            "secrets file" if !value.contains('%') => self.set("secrets_file", Value::from(value)),
            "include from" | "exclude from" | "secrets file" => Fate::Missing("the path depends on the environment"),
            "max connections" => self.max_connections(value),
            "timeout" => match value.parse::<u32>() {
                Ok(seconds) => self.set("timeout", Value::from(i64::from(seconds))),
                Err(_) => Fate::Missing("not a number"),
            },
            "auth users" => self.auth_users(value),
            "hosts allow" | "hosts deny" => self.hosts(line),
            "outgoing chmod" => match value.parse::<Permissions>() {
                Ok(_) => self.set("outgoing_chmod", Value::from(value)),
                Err(_) => Fate::Missing("permissions cannot be copied between classes here"),
            },
            key => of_other(key, value),
        }
    }

    fn max_connections(&mut self, value: &str) -> Fate {
        match value.parse::<i64>() {
            Ok(count @ 0..) => {
                let fate = self.set("max_connections", Value::from(count));
                let Fate::Taken(text) = fate else { return fate };
                Fate::Differs(text, "a client over the limit waits in the queue")
            }
            Ok(_) => {
                self.set("hosts_deny", Value::from(vec!["*"]));
                Fate::Differs(
                    "hosts_deny = [\"*\"]".to_owned(),
                    "the module is turned off: clients learn another reason",
                )
            }
            Err(_) => Fate::Missing("not a number"),
        }
    }

    /// Takes the plain names. Nobody else gets in.
    fn auth_users(&mut self, value: &str) -> Fate {
        let users = value.split([',', ' ', '\t']).filter(|user| !user.is_empty());
        let (plain, other): (Vec<&str>, Vec<&str>) =
            users.partition(|user| !user.contains(['@', ':', '*', '?', '[', '%']));
        let fate = self.set("auth_users", Value::from(plain.clone()));
        match fate {
            Fate::Taken(_) if plain.is_empty() => {
                self.keys.remove("auth_users");
                self.set("hosts_deny", Value::from(vec!["*"]));
                Fate::Missing("only plain user names are supported, so hosts_deny closes the repository")
            }
            Fate::Taken(text) if !other.is_empty() => {
                Fate::Differs(text, "only plain user names are supported: groups, rights and wildcards were left out")
            }
            fate => fate,
        }
    }

    /// Takes the addresses and networks. Without host names, fewer hosts are allowed, never more.
    fn hosts(&mut self, line: &Line) -> Fate {
        let patterns = line.value.split([',', ' ', '\t']).filter(|pattern| !pattern.is_empty());
        let (plain, other): (Vec<&str>, Vec<&str>) =
            patterns.partition(|pattern| pattern.parse::<HostPattern>().is_ok());
        let is_allow = line.key == "hosts allow";
        if !is_allow && !other.is_empty() {
            self.keys.insert("hosts_deny", Value::from(vec!["*"]));
            return Fate::Missing(
                "host names are not looked up here, so hosts_deny closes the repository: list the addresses",
            );
        }
        if is_allow && plain.is_empty() {
            self.keys.entry("hosts_deny").or_insert_with(|| Value::from(vec!["*"]));
            return Fate::Missing(
                "host names are not looked up here, so hosts_deny closes the repository: list the addresses",
            );
        }
        let key = if is_allow { "hosts_allow" } else { "hosts_deny" };
        let already_closed = !is_allow && self.keys.get(key) == Some(&Value::from(vec!["*"]));
        let fate =
            if already_closed { Fate::Taken(format!("{key} = [\"*\"]")) } else { self.set(key, Value::from(plain)) };
        match fate {
            Fate::Taken(text) if !other.is_empty() => {
                Fate::Differs(text, "host names are not looked up here: they were left out")
            }
            fate => fate,
        }
    }
}

/// Returns what becomes of a parameter that has no key here.
fn of_other(key: &str, value: &str) -> Fate {
    match key {
        "use chroot" => Fate::Unneeded("nothing outside the root can be opened"),
        "read only" if is_yes(value) => Fate::Unneeded("nothing is ever written"),
        "read only" => Fate::Missing("clients cannot write here"),
        "write only" | "incoming chmod" | "temp dir" | "ignore errors" => Fate::Unneeded("nothing is ever written"),
        "uid" | "gid" => Fate::Differs(
            format!("[daemon] {} = ...", if key == "uid" { "user" } else { "group" }),
            "the whole daemon has one user; as root it serves only what everybody may read",
        ),
        "ignore nonreadable" => Fate::Unneeded("what cannot be read is not indexed"),
        "lock file" => Fate::Unneeded("connections are counted in the process"),
        "strict modes" if is_yes(value) => Fate::Unneeded("always on"),
        "strict modes" => Fate::Missing("the secrets file must not be accessible to others"),
        "dont compress" => Fate::Unneeded("`compression = \"stored\"` takes no CPU"),
        "open noatime" if !is_yes(value) => Fate::Unneeded("off here, too"),
        "open noatime" => Fate::Missing("mount the tree with noatime"),
        "reverse lookup" | "forward lookup" => Fate::Unneeded("no name is ever looked up"),
        "transfer logging" | "log file" | "log format" | "syslog facility" | "syslog tag" | "max verbosity" => {
            Fate::Differs("the log".to_owned(), "one line for each session, on standard error")
        }
        "fake super" if !is_yes(value) => Fate::Unneeded("off here, too"),
        "fake super" => Fate::Missing("clients get the owners and permissions that the files really have"),
        "charset" if value.is_empty() => Fate::Unneeded("off here, too"),
        "charset" => Fate::Missing("names go out as they are; clients with --iconv are refused"),
        "name converter" => Fate::Missing("names of users come from this host"),
        "early exec" | "pre-xfer exec" | "post-xfer exec" => Fate::Missing("no command is run for a client"),
        _ => Fate::Missing("not a parameter of rsyncd.conf"),
    }
}

fn is_yes(value: &str) -> bool {
    ["yes", "true", "1"].iter().any(|yes| value.eq_ignore_ascii_case(yes))
}

/// Returns one string with all patterns: quotes in it would be lost if it were split.
fn one(value: &str) -> Value {
    Value::from(vec![value])
}

fn split(value: &str) -> Value {
    Value::from(value.split([',', ' ', '\t']).filter(|word| !word.is_empty()).collect::<Vec<_>>())
}

/// Returns a path without the components `.` and `..`: `/./` in it divides it for `use chroot`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            component => plain.push(component),
        }
    }
    plain
}

fn host(listen: &str) -> &str {
    listen.rsplit_once(':').map_or(listen, |(host, _)| host)
}

fn port(listen: &str) -> Option<u16> {
    listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}
