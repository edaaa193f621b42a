//! Modules: access, refused options, rules and malicious clients, compared with a stock daemon that has the same settings.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::peers::{Pair, Stock, pull};
use crate::support::*;

/// The same modules, served by both daemons.
struct Modules {
    world: World,
    stock: Stock,
    ours: Server,
}

impl Modules {
    fn new() -> Self {
        let world = World::with_tree();
        let secrets = world.path("secrets");
        std::fs::write(&secrets, "alice:s3cret\nbob:pass:word\n").unwrap();
        std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (root, secrets) = (world.src().display().to_string(), secrets.display().to_string());
        let stock = Stock::start(
            &world.src(),
            &format!(
                "comment = The whole tree\n\
                 [private]\npath = {root}\nauth users = alice bob\nsecrets file = {secrets}\ncomment = With a password\n\
                 [hidden]\npath = {root}\nlist = no\n\
                 [denied]\npath = {root}\nhosts deny = *\n\
                 [elsewhere]\npath = {root}\nhosts allow = 192.0.2.0/24\n\
                 [here]\npath = {root}\nhosts allow = 192.0.2.0/24 127.0.0.0/255.0.0.0\nhosts deny = 127.0.0.1\n\
                 [refusing]\npath = {root}\nrefuse options = checksum dry-run compress\n\
                 [filtered]\npath = {root}\nexclude = /pool/ *.hidden\n"
            ),
        );
        let module = |name: &str, more: &str| {
            format!("[[repository]]\nname = \"{name}\"\nroot = \"{root}\"\nstore = \"store-{name}\"\n{more}\n")
        };
        let config = [
            "[daemon]\nlisten = \"127.0.0.1:0\"\nserve_private = true\n".to_owned(),
            module("repo", "comment = \"The whole tree\""),
            module(
                "private",
                &format!(
                    "comment = \"With a password\"\nauth_users = [\"alice\", \"bob\"]\nsecrets_file = \"{secrets}\""
                ),
            ),
            module("hidden", "list = false"),
            module("denied", "hosts_deny = [\"*\"]"),
            module("elsewhere", "hosts_allow = [\"192.0.2.0/24\"]"),
            module("here", "hosts_allow = [\"192.0.2.0/24\", \"127.0.0.0/255.0.0.0\"]\nhosts_deny = [\"127.0.0.1\"]"),
            module("refusing", "refuse_options = [\"checksum\", \"dry-run\", \"compress\"]"),
            module("filtered", "exclude = [\"/pool/\", \"*.hidden\"]"),
        ];
        std::fs::write(world.path("mirror.toml"), config.concat()).unwrap();
        let with_config = |what: &str| {
            let mut command = stillmirror(&[what, "--config"]);
            command.arg(world.path("mirror.toml"));
            command
        };
        assert_exit(&with_config("index").output().expect("index runs"), 0);
        let ours = Server::spawn(with_config("serve"));
        Self { world, stock, ours }
    }

    /// Runs a client against both daemons. `{H}` in a word is the daemon's URL.
    fn run(&self, words: &[&str], environment: &[(&str, &str)]) -> [Output; 2] {
        [&self.stock.address, &self.ours.address].map(|address| {
            let mut command = Command::new("rsync");
            command.args(words.iter().map(|word| word.replace("{H}", &format!("rsync://{address}"))));
            command.env_remove("RSYNC_PASSWORD").envs(environment.iter().copied()).env("LC_ALL", "C");
            command.stdin(Stdio::null()).output().expect("rsync is installed (tests/prepare)")
        })
    }

    /// Asserts that both clients end with `code`, and print the same except times and addresses.
    #[track_caller]
    fn same(&self, code: i32, words: &[&str], environment: &[(&str, &str)]) {
        let [stock, ours] = self.run(words, environment);
        assert_exit(&stock, code);
        assert_exit(&ours, code);
        assert_eq!(lines(&stock.stdout, ""), lines(&ours.stdout, ""), "{words:?}");
        assert_eq!(lines(&stock.stderr, "@ERROR"), lines(&ours.stderr, "@ERROR"), "{words:?}");
    }
}

/// Returns the lines that begin with `start`, without the host name that a daemon looked up.
fn lines(text: &[u8], start: &str) -> Vec<String> {
    let text = String::from_utf8_lossy(text).into_owned();
    let lines = text.lines().filter(|line| line.starts_with(start));
    lines.map(|line| line.split(" from ").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn modules_are_listed_entered_and_refused_as_by_a_stock_daemon() {
    let modules = Modules::new();
    modules.same(0, &["{H}/"], &[]);
    modules.same(0, &["--list-only", "{H}/hidden/README"], &[]);
    for (code, module) in [(5, "nosuch"), (5, "denied"), (5, "elsewhere"), (0, "here"), (5, "private"), (5, "../etc")] {
        modules.same(
            code,
            &["--list-only", &format!("{{H}}/{module}/README")],
            &[("USER", "alice"), ("RSYNC_PASSWORD", "wrong")],
        );
    }
    for protocol in ["--protocol=27", "--protocol=29", "--protocol=30", "--protocol=31", "--protocol=32"] {
        for (code, user, password) in [
            (0, "alice", "s3cret"),
            (0, "bob", "pass:word"),
            (5, "bob", "s3cret"),
            (5, "carol", "s3cret"),
            (5, "alice", ""),
        ] {
            modules.same(
                code,
                &[protocol, "--list-only", "{H}/private/README"],
                &[("USER", user), ("RSYNC_PASSWORD", password)],
            );
        }
    }
}

#[test]
fn refused_options_and_writes_are_refused() {
    let modules = Modules::new();
    let dest = modules.world.path("refused").display().to_string();
    for option in ["-c", "-n", "-z", "-an", "--compress"] {
        let [stock, ours] = modules.run(&["-r", option, "{H}/refusing/", &dest], &[]);
        // A stock daemon resets the connection, and its client may or may not have read the exit code before.
        assert_fails(&ours, 4, &["The server is configured to refuse --"]);
        let said = |output: &Output| {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let option = text.split_once("configured to refuse ").map(|(_, rest)| rest.split_whitespace().next());
            option.flatten().map(str::to_owned)
        };
        assert_eq!(said(&stock), said(&ours));
    }
    modules.same(0, &["-r", "{H}/refusing/README", &dest], &[]);
    let mine = modules.world.path("mine");
    std::fs::write(&mine, b"to be pushed").unwrap();
    let [stock, ours] = modules.run(&["-a", "--remove-source-files", "{H}/repo/README", &dest], &[]);
    assert_eq!((stock.status.code(), ours.status.code()), (Some(1), Some(1)));
    let [stock, ours] = modules.run(&["-a", &mine.display().to_string(), "{H}/repo/"], &[]);
    assert!(!stock.status.success() && !ours.status.success(), "pushed");
    assert!(modules.world.src().join("README").exists());
    assert!(!modules.world.src().join("mine").exists());
}

/// Starts both daemons with the tree as the modules `m0`, `m1` and so on. Each has lines for rsyncd.conf and for
/// mirror.toml.
fn both(world: &World, modules: &[(String, String)]) -> (Stock, Server) {
    let root = world.src().display().to_string();
    let (mut stock, mut ours) =
        (String::new(), "[daemon]\nlisten = \"127.0.0.1:0\"\nserve_private = true\n".to_owned());
    for (number, (theirs, lines)) in modules.iter().enumerate() {
        stock += &format!("[m{number}]\npath = {root}\n{theirs}\n");
        ours += &format!("[[repository]]\nname = \"m{number}\"\nroot = \"{root}\"\nstore = \"m{number}\"\n{lines}\n");
    }
    std::fs::write(world.path("mirror.toml"), ours).unwrap();
    let with_config = |what: &str| {
        let mut command = stillmirror(&[what, "--config"]);
        command.arg(world.path("mirror.toml"));
        command
    };
    assert_exit(&with_config("index").output().expect("index runs"), 0);
    (Stock::start(&world.src(), &stock), Server::spawn(with_config("serve")))
}

#[test]
fn refuse_options_refuses_the_same_as_a_stock_daemon() {
    const LISTS: [&str; 9] = [
        "*",
        "* !a",
        "* !a !v",
        "* !a !v !compress*",
        "a !r",
        "c delete",
        "z partial",
        "[a-d]* ?",
        "no-* numeric* H n",
    ];
    const OPTIONS: [&str; 12] = [
        "-r",
        "-a",
        "-rlt",
        "-av",
        "-rz",
        "-rc",
        "-an",
        "-aH",
        "-as",
        "-r --append",
        "-a --numeric-ids",
        "-a --files-from=/dev/null --from0",
    ];
    let world = World::with_tree();
    let modules = LISTS.map(|list| (format!("refuse options = {list}"), format!("refuse_options = \"{list}\"")));
    let (stock, ours) = both(&world, &modules);
    let refused = |address: &str, number: usize, options: &str| {
        let dest = tempfile::tempdir().expect("a directory");
        let mut command = Command::new("rsync");
        command.args(options.split(' ')).arg(format!("rsync://{address}/m{number}/")).arg(dest.path());
        let output = command.stdin(Stdio::null()).output().expect("rsync is installed (tests/prepare)");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = text.split_once("configured to refuse ").and_then(|(_, rest)| rest.split_whitespace().next());
        // The stock daemon has no name for -D.
        (output.status.success(), name.map(|name| name.replace("(null)", "D")))
    };
    std::thread::scope(|scope| {
        for (number, list) in LISTS.iter().enumerate() {
            let (refused, stock, ours) = (&refused, &stock.address, &ours.address);
            scope.spawn(move || {
                for options in OPTIONS {
                    let theirs = refused(stock, number, options);
                    assert_eq!(theirs, refused(ours, number, options), "'{list}', {options}");
                }
            });
        }
    });
}

#[test]
fn the_rules_of_a_module_hide_the_same_names() {
    let modules = Modules::new();
    for (code, path) in [(0, ""), (23, "pool/"), (23, "pool/a/alpha_1.0.deb"), (0, "dists/")] {
        let [stock, ours] = [&modules.stock, &modules.ours as &dyn Address].map(|daemon| {
            let url = format!("rsync://{}/filtered/{path}", daemon.address());
            pull("", &["-r", "--list-only", "--exclude=Packages", &url], Path::new("/nonexistent"))
        });
        assert_eq!((stock.code, ours.code), (Some(code), Some(code)), "{path}: {}", ours.errors);
        assert_eq!(stock.out, ours.out, "{path}");
    }
}

#[test]
fn pattern_files_hide_the_same_names_as_in_a_stock_daemon() {
    let world = World::with_tree();
    let files = [
        ("kept", "# beta.tar\n; comment\n\n/dists/stable/Release\r\n- /odd/sp ace\n+ *.deb\n"),
        ("hidden", "*.deb\n/dists/stable/*\n+ /odd/-dash\n/odd/*\n  /README\n/empty \n#README\nnothing/\n"),
        ("cleared", "README\n!\npool/\n"),
    ];
    for (name, text) in files {
        std::fs::write(world.path(name), text).unwrap();
    }
    let module = |lines: &[(&str, &str, &str)]| {
        let path = |name: &str| if files.iter().any(|file| file.0 == name) { world.path(name) } else { name.into() };
        let words = |line: &(&str, &str, &str), sign| format!("{} = {sign}{}{sign}\n", line.0, path(line.2).display());
        let stock = lines.iter().map(|line| words(line, ""));
        let ours = lines.iter().map(|line| match line.1 {
            "" => words(&(&*line.0.replace(' ', "_"), "", line.2), "\""),
            key => format!("{key} = [\"{}\"]\n", line.2),
        });
        (stock.collect::<String>(), ours.collect::<String>())
    };
    let modules = [
        module(&[("exclude from", "", "hidden")]),
        module(&[("include from", "", "kept"), ("exclude from", "", "hidden")]),
        module(&[("include from", "", "kept"), ("exclude", "exclude", "*")]),
        module(&[("exclude from", "", "hidden"), ("include", "include", "*.deb"), ("filter", "filter", "-_README")]),
        module(&[("exclude from", "", "cleared"), ("exclude", "exclude", "beta.tar")]),
    ];
    let (stock, ours) = both(&world, &modules);
    for number in 0..modules.len() {
        for protocol in ["--protocol=28", "--protocol=32"] {
            let [stock, ours] = [&stock.address, &ours.address].map(|address| {
                let url = format!("rsync://{address}/m{number}/");
                pull("", &["-r", "--list-only", protocol, &url], Path::new("/nonexistent"))
            });
            assert_eq!((stock.code, stock.out), (ours.code, ours.out), "m{number}: {}", ours.errors);
        }
    }
}

#[test]
fn an_unusable_pattern_file_is_a_configuration_error() {
    let world = World::with_tree();
    world.index();
    std::fs::write(world.path("bad"), "fine\n- \n").unwrap();
    for (file, wanted) in [("missing", "cannot read the patterns in"), ("bad", "unexpected end of filter rule")] {
        let config = "[daemon]\nlisten = \"127.0.0.1:0\"\n[[repository]]\nname = \"repo\"\nroot = \"src\"\n\
                      store = \"store\"\nexclude_from = ";
        std::fs::write(world.path("mirror.toml"), format!("{config}\"{file}\"\n")).unwrap();
        let mut serve = stillmirror(&["serve", "--config"]);
        assert_fails(&serve.arg(world.path("mirror.toml")).output().expect("serve runs"), 1, &["repo", wanted]);
    }
}

#[test]
fn munged_targets_and_outgoing_chmod_are_as_from_a_stock_daemon() {
    const CHMODS: [&str; 6] = ["Fgo-rwx", "D2775,F664", "a=rX,u+w", "-w,Do-x", "u+s,Fa+x,+t", "D=rx"];
    let world = World::with_tree();
    for (number, mode) in [0o600, 0o4755, 0o2711, 0o1444].into_iter().enumerate() {
        let file = world.src().join(format!("mode-{number}"));
        std::fs::write(&file, b"x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    for (number, target) in ["target", "/abs", "", "../up"].into_iter().enumerate() {
        let link = world.src().join(format!("munged-{number}"));
        std::os::unix::fs::symlink(format!("/rsyncd-munged/{target}"), link).unwrap();
    }
    super::tree::age(&world.src());
    let mut modules = vec![("munge symlinks = yes".to_owned(), "munge_symlinks = true".to_owned())];
    modules.extend(
        CHMODS.map(|text| {
            (format!("munge symlinks = no\noutgoing chmod = {text}"), format!("outgoing_chmod = \"{text}\""))
        }),
    );
    let (stock, ours) = both(&world, &modules);
    for (number, module) in modules.iter().enumerate() {
        for protocol in ["--protocol=27", "--protocol=29", "--protocol=30", "--protocol=32"] {
            let dests = [("stock", &stock.address), ("ours", &ours.address)].map(|(name, address)| {
                let dest = world.path(&format!("dest-{number}{protocol}-{name}"));
                let url = format!("rsync://{address}/m{number}/");
                let listed = pull("", &["-rl", "--list-only", protocol, &url], Path::new("/nonexistent"));
                let pulled = pull("", &["-a", protocol, &url, &dest.display().to_string()], &dest);
                (listed.code, listed.out, pulled.code, pulled.tree)
            });
            assert!(dests[0].2 == Some(0) && dests[0] == dests[1], "{module:?} {protocol}: {dests:#?}");
        }
    }
}

trait Address {
    fn address(&self) -> &str;
}

impl Address for Stock {
    fn address(&self) -> &str {
        &self.address
    }
}

impl Address for Server {
    fn address(&self) -> &str {
        &self.address
    }
}

#[test]
fn malicious_clients_are_disconnected_and_others_are_not_affected() {
    let pair = Pair::new();
    let opening = b"@RSYNCD: 31.0 md5 md4\nrepo\n--server\0--sender\0-lHogDtpre.iLsfxCIvu\0.\0repo/\0\0\x03md5";
    let no_rules = [4, 0, 0, 7, 0, 0, 0, 0];
    let after = |more: &[u8]| [&opening[..], &no_rules, more].concat();
    let framed = |data: &[u8]| [&[u8::try_from(data.len()).unwrap(), 0, 0, 7], data].concat();
    let head = |numbers: [i32; 4]| framed(&[&[3, 0, 0xa0][..], &numbers.map(i32::to_le_bytes).concat()].concat());
    let inputs: Vec<Vec<u8>> = vec![
        b"@".to_vec(),
        noise(10_000, 3),
        [&b"@RSYNCD: 31.0 "[..], &[b'x'; 100_000]].concat(),
        b"@RSYNCD: 99999999999999999999.1\n".to_vec(),
        b"@RSYNCD: 31.0 md5\n#early_input=999999999\n".to_vec(),
        [&opening[..40], &b"--x\0".repeat(500_000)].concat(),
        [&opening[..], &[0xff; 5000]].concat(),
        [&opening[..], &[7, 0, 0, 7, 0xff, 0xff, 0xff, 0x7f, b'-', b' ', b'x']].concat(),
        [&opening[..], &[4, 0, 0, 99, 0, 0, 0, 0]].concat(),
        after(&framed(&[0xfe, 0xff, 0xff, 0xff, 0x7f, 0, 0xa0])),
        after(&framed(&[0xff, 0x50, 0, 0xa0])),
        after(&head([i32::MAX, 700, 16, 0])),
        after(&head([1, i32::MAX, 16, 0])),
        after(&head([-1, 700, 16, 0])),
        after(&head([1, 700, 99, 0])),
        after(&head([1, 700, 16, 701])),
        after(&[4, 0, 0, 93, 23, 0, 0, 0]),
        after(&[0xff, 0xff, 0xff, 7]),
        after(&framed(&[0; 200])),
    ];
    for (number, input) in inputs.iter().enumerate() {
        let mut client = TcpStream::connect(&pair.ours.address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The daemon may have closed already.
        let _ = client.write_all(input).and_then(|()| client.shutdown(std::net::Shutdown::Write));
        let mut answer = vec![0; 65_536];
        loop {
            match client.read(&mut answer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("the session of input {number} does not end: {error}"),
            }
        }
    }
    let pulled = pair.same("after malicious clients", 31, &["-aH", "{M}/", "{D}/"]);
    assert_eq!(pulled.code, Some(0), "{}", pulled.errors);
}
