//! Files that the module's rules hide. Whatever a client names, it is told and sent the same as from a tree without the
//! hidden files.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use stillmirror_daemon::{Config, ModuleRules};

use super::support::{Entry, Ran, dest, exchange, holds, rsync, rsync_with, tree};
use crate::support::{Fixture, Server};

/// Returns rules that hide the same files in three ways. The last set keeps a directory, but hides its contents.
fn rule_sets() -> [ModuleRules; 3] {
    let rules = |rules: &[&str]| rules.iter().map(|&rule| rule.to_owned()).collect::<Vec<_>>();
    let excluding = |exclude: &[&str]| ModuleRules { exclude: rules(exclude), ..ModuleRules::default() };
    let filter = rules(&["- /private/**", "- /secret*", "- /a?b", "- /vis/covert"]);
    [
        excluding(&["/private/", "/secret*", "/a?b", "/vis/covert"]),
        excluding(&["/private", "/secret*", "/a?b", "/vis/covert"]),
        ModuleRules { filter, ..ModuleRules::default() },
    ]
}

/// Creates a tree with or without the files that the rules hide. In a tree without them, `has_private` tells whether
/// the directory `private` exists.
fn fixture(has_hidden: bool, has_private: bool) -> Fixture {
    let fixture = Fixture::new();
    let at = |name: &str| fixture.root().join(name);
    for (name, content) in [
        ("keep", "keep"),
        ("names", "keep\nNOSUCH\n"),
        ("open/file", "open"),
        ("vis/file", "visible"),
        ("vis/rules", "- file\nRULES-THAT-ARE-SEEN\n"),
    ] {
        fixture.write(name, content.as_bytes());
    }
    for (name, target) in [
        ("link", "private/list"),
        ("dlink", "private"),
        ("alias", "vis"),
        ("round", "/private/../keep"),
        ("vis/uplink", "../private/list"),
        ("chain", "dlink/list"),
    ] {
        symlink(target, at(name)).unwrap();
    }
    if has_hidden {
        for name in
            ["secret", "private/list", "private/rules", "private/sub/deep", "secret.rules", "a\\b", "vis/covert"]
        {
            fixture.write(name, b"keep\n+ keep\nCOVERT-CONTENT\n");
        }
        std::fs::hard_link(at("private/list"), at("zzz")).unwrap();
    } else {
        fixture.write("zzz", b"keep\n+ keep\nCOVERT-CONTENT\n");
        if has_private {
            std::fs::create_dir(at("private")).unwrap();
        }
    }
    age(&fixture.root());
    fixture.index();
    fixture
}

/// Sets the same time on everything.
fn age(path: &Path) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    if path.is_symlink() {
        return assert!(
            std::process::Command::new("touch").args(["-hd", "@1600000000"]).arg(path).status().unwrap().success()
        );
    }
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| age(&entry.unwrap().path()));
    }
    std::fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// Starts two daemons for each set of rules: one with the hidden files, and one without.
async fn pairs() -> Vec<[(Fixture, Server); 2]> {
    let mut pairs = Vec::new();
    for rules in rule_sets() {
        let has_private = !rules.filter.is_empty();
        let serve = async |has_hidden| {
            let fixture = fixture(has_hidden, has_private);
            let change = |config: &mut Config| config.repositories[0].module.rules = rules.clone();
            let server = Server::start(fixture.config(change)).await;
            (fixture, server)
        };
        pairs.push([serve(true).await, serve(false).await]);
    }
    pairs
}

/// The exit code, standard output, standard error, and the destination.
type Pulled = (Option<i32>, String, String, Vec<String>);

/// Runs a client, and returns what it printed and received.
async fn pulled(fixture: &Fixture, server: &Server, options: &[&str], paths: &[&str]) -> Pulled {
    let dest = dest(fixture);
    let _ = std::fs::remove_dir_all(&dest);
    std::fs::create_dir(&dest).unwrap();
    let (first, more) = paths.split_first().unwrap();
    let address = server.addr;
    let Ran { code, out, err } = rsync_with(server, options, &format!("repo/{first}"), None, |command| {
        command.args(more.iter().map(|path| format!("rsync://{address}/repo/{path}"))).arg(&dest);
        command.env("LC_ALL", "C");
    })
    .await;
    let file = |(name, entry): (Vec<u8>, Entry)| {
        // Times are left out, since the client sets them itself unless it is told to take the server's.
        let facts = format!("{entry:?}")
            .split(' ')
            .enumerate()
            .filter(|(at, _)| *at != 1)
            .map(|(_, fact)| fact.to_owned())
            .collect::<Vec<_>>();
        format!("{} {}", name.escape_ascii(), facts.join(" "))
    };
    let files = tree(&dest).into_iter().map(file).collect();
    (code, out, err, files)
}

#[tokio::test]
async fn a_hidden_file_cannot_be_told_from_a_missing_one() {
    const FILES_FROM: [&str; 13] = [
        "secret",
        "/secret",
        "./secret",
        "vis/../secret",
        "secret.none",
        "private/list",
        "private",
        "private/none",
        "a\\b",
        "dlink/list",
        "link",
        "alias/covert",
        "names",
    ];
    const PATHS: [&[&str]; 20] = [
        &[""],
        &["secret"],
        &["private"],
        &["private/"],
        &["private/list"],
        &["private/sub/"],
        &["private/none"],
        &["vis/../secret"],
        &["private/../keep"],
        &["a\\b"],
        &["*"],
        &["*/*"],
        &["s*", "p*/*", "keep"],
        &["dlink/"],
        &["dlink/*", "alias/*"],
        &["dlink/list", "link", "chain"],
        &["alias/", "alias/covert"],
        &["private/./list", "vis/./covert"],
        &["round", "vis/uplink"],
        &["keep", "secret", "none"],
    ];
    const OPTIONS: [&[&str]; 14] = [
        &["-r"],
        &["-rlt", "--no-inc-recursive", "--protocol=27"],
        &["-rlH", "--protocol=29"],
        &["-rL"],
        &["-rL", "--protocol=27"],
        &["-rlk"],
        &["-rl", "--copy-unsafe-links"],
        &["-rlR"],
        &["-rlkR"],
        &["-rlR", "--no-implied-dirs"],
        &["-rl", "--delete-missing-args", "--delete"],
        &["-rl", "--ignore-missing-args"],
        &["-rl", "--filter=:_secret.rules"],
        &["-rl", "--filter=:_rules"],
    ];
    for (set, [(with, with_server), (without, without_server)]) in pairs().await.iter().enumerate() {
        for (at, options) in OPTIONS.iter().enumerate() {
            // The rules that keep a directory are tested with all paths, the others with a part of them.
            for (_, paths) in PATHS.iter().enumerate().filter(|(number, _)| set == 2 || (at + number) % 4 == set) {
                let there = pulled(with, with_server, options, paths).await;
                let absent = pulled(without, without_server, options, paths).await;
                assert_eq!(there, absent, "rules {set}: {options:?} {paths:?}");
            }
        }
        for name in FILES_FROM {
            let from = format!("--files-from=:{name}");
            let there = pulled(with, with_server, &["-r", &from], &[""]).await;
            let absent = pulled(without, without_server, &["-r", &from], &[""]).await;
            assert_eq!(there, absent, "rules {set}: {from}");
            assert!(!format!("{there:?}").contains("COVERT"), "rules {set}: {from}: {there:?}");
        }
    }
}

#[tokio::test]
async fn client_rules_that_name_a_hidden_file_reveal_nothing_of_it() {
    const RULES: [&str; 8] = [
        ". /secret",
        "merge,- private/list",
        ".e_secret",
        ": secret",
        ":/ /private/list",
        "dir-merge,n_covert",
        ":C secret.rules",
        ":s list",
    ];
    for [(_, with), (_, without)] in pairs().await {
        for rule in RULES {
            let begin = "@RSYNCD: 29\nrepo\n--server\n--sender\n-r\n.\nrepo/\n\n";
            let client = [begin.as_bytes(), &(rule.len() as u32).to_le_bytes(), rule.as_bytes(), &[0; 4]].concat();
            let [there, absent] = [exchange(&with, &client).await, exchange(&without, &client).await];
            assert_eq!(there, absent, "{rule}: {} and {}", there.escape_ascii(), absent.escape_ascii());
            assert!(!holds(&there, "COVERT") && !holds(&there, "Unknown"), "{rule}");
        }
    }
}

#[tokio::test]
async fn a_hidden_files_from_path_is_rejected_whether_it_exists_or_not() {
    for [(_, server), _] in pairs().await {
        for name in ["secret", "secret.none", "private/list", "private/none"] {
            let ran =
                rsync(&server, &["-r", &format!("--files-from=:{name}")], "repo/", Some(Path::new("/none"))).await;
            ran.exits(4).says("Your options have been rejected by the server.");
        }
        let ran = rsync(&server, &["-r", "--files-from=:none"], "repo/", Some(Path::new("/none"))).await;
        ran.exits(5).says("failed to open files-from file");
    }
}
