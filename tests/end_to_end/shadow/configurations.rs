//! Configurations as public mirrors have them, converted by `import-rsyncd`: clients notice no difference.

use std::os::unix::fs::PermissionsExt as _;

use super::{report, shadow};
use crate::rsync::peers::{Stock, am_root};
use crate::support::*;

/// The default of a stock daemon that is started by root.
const CHROOT: &str = "use chroot = yes\nuid = nobody\ngid = nogroup\n";

/// A mirror of Debian: a message of the day, locks and temporary files of the update hidden, and a module for pushes.
const DEBIAN: &str = "\
# /etc/rsyncd.conf of a Debian mirror
motd file = DIR/motd
max connections = 40
timeout = 600
dont compress = *.gz *.tgz *.zip *.z *.rpm *.deb *.iso *.bz2 *.tbz *.xz
transfer logging = yes
reverse lookup = no
GLOBAL
[debian]
\tcomment = Debian Archive (\"main\", contrib and non-free)
\tpath = TREE
\tread only = true
\tlist = yes
\texclude = /project/trace/.lock *.tmp .~tmp~/ /Archive-Update-in-Progress-*

[debian-push]
\tpath = TREE
\tcomment = Push mirrors only
\tlist = no
\tauth users = ann, bob
\tsecrets file = DIR/secrets
\thosts allow = 127.0.0.0/8 ::1 192.0.2.0/255.255.255.0
\thosts deny = *
";

/// A university with several modules and defaults for all.
const UNIVERSITY: &str = "\
port = 873
pid file = /var/run/rsyncd.pid
syslog facility = daemon
strict modes = yes
ignore nonreadable = yes
numeric ids = yes
refuse options = checksum delete compress
max connections = 8
GLOBAL
[fedora]
path = TREE/dists
comment = Fedora - RSYNC only from mirrors
[fedora-pool]
path = TREE/./pool
comment = Packages
max connections = 2
refuse options = checksum
";

/// A mirror of Arch Linux without chroot, so that symlinks are munged.
const ARCH: &str = "\
use chroot = no
max connections = 4
log format = %h %o %f %l %b
[archlinux]
path = TREE
comment = Arch Linux repository
exclude = /lastsync *.db.lck .~tmp~
numeric ids = no
[iso]
path = TREE/nothing
comment =
list = yes
";

/// Rules in files, changed permissions, and a module that is closed to everybody here.
const RULES: &str = "\
GLOBAL
[cpan]
comment = CPAN
path = TREE
include from = DIR/kept
exclude from = DIR/left-out
outgoing chmod = Du=rwx,Dgo=rx,Fu=rw,Fgo=r
filter = - *.partial
[gnu]
path = TREE
comment = The GNU project
hosts deny = 192.0.2.1 198.51.100.0/24
munge symlinks = yes
[internal]
path = TREE
hosts allow = 192.0.2.0/24
list = false
";

/// Modules with defaults that they replace, two of the same tree, and one that only passwords open.
const DEFAULTS: &str = "\
timeout = 300
list = no
comment = a default
auth users = ann
secrets file = DIR/secrets
GLOBAL
[centos]
path = TREE
list = yes
[epel]
path = TREE/
list = yes
max connections = 1
exclude = pool/
comment = EPEL
";

/// Refusals by wildcards, as mirrors have them against expensive requests.
const REFUSALS: &str = "\
charset =
lock file = DIR/lock
GLOBAL
[apache]
path = TREE
comment = The Apache archive
refuse options = c delete* *-from z a !r !l !t !p !o !g !D
exclude = \"/dists/stable/main/\" nothing
[kernel]
path = TREE
comment = kernel.org
read only = yes
refuse options = checksum
max verbosity = 1
";

#[test]
fn clients_notice_no_difference_after_an_import() {
    let configurations = [DEBIAN, UNIVERSITY, ARCH, RULES, DEFAULTS, REFUSALS];
    std::thread::scope(|scope| {
        configurations.map(|text| scope.spawn(move || check(text))).map(|test| test.join().unwrap())
    });
}

fn check(text: &str) {
    let world = World::with_tree();
    // The stock daemon reads the tree as another user.
    std::fs::set_permissions(world.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(world.path("motd"), "Welcome to mirror.example\n\n  rules: https://mirror.example/\n").unwrap();
    std::fs::write(world.path("kept"), "+ /pool/a/*.deb\n# nothing else\n").unwrap();
    std::fs::write(world.path("left-out"), "/pool/a/*\n*.tar\n; the rest\n").unwrap();
    for (name, secret) in [("secrets", "ann:secret\nbob:hidden\n"), ("mine", "secret\n")] {
        std::fs::write(world.path(name), secret).unwrap();
        std::fs::set_permissions(world.path(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let globals = if am_root() { CHROOT } else { "use chroot = no\n" };
    let text = text.replace("GLOBAL\n", globals);
    let text = text.replace("DIR", &world.path("").display().to_string());
    let text = text.replace("TREE", &world.src().display().to_string());
    let stock = Stock::with_config(&text);
    std::fs::write(world.path("rsyncd.conf"), &text).unwrap();
    let mut import = stillmirror(&["import-rsyncd"]);
    let import = import.arg(world.path("rsyncd.conf")).output().unwrap();
    assert_exit(&import, 0);
    let converted = String::from_utf8(import.stdout).unwrap();
    let converted = converted.replacen("[daemon]\n", "[daemon]\nlisten = \"127.0.0.1:0\"\n", 1);
    // Digests as the guide says, and stores beside the tree.
    let converted = converted.replacen("\n[[repository]]", "\n[index]\nxxh128 = true\nmd5 = true\n[[repository]]", 1);
    let converted = converted.replace("/var/lib/stillmirror/", &format!("{}/store-", world.path("").display()));
    let ours = super::serve(&world, &converted);
    let output = shadow(&format!("ann@{}", stock.address), &ours.address)
        .arg("--password-file")
        .arg(world.path("mine"))
        .output()
        .unwrap();
    let report = report(&output);
    assert_eq!(super::noticeable(&report), Vec::<String>::new(), "{text}\n{converted}\n{report:#}");
}
