//! What is compared: the lists that mirror scripts request, and the options that they use.

use std::path::PathBuf;

use super::record::Format;

/// A list of a module, as a client with these options gets it.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// For people.
    pub(super) name: String,
    /// What its differences are about; empty for the module itself.
    pub(super) subject: String,
    pub(super) options: Vec<String>,
    pub(super) format: Format,
    /// The path in the module.
    pub(super) path: String,
    /// The destination that the module is compared with; an empty directory if there is none.
    pub(super) dest: Option<PathBuf>,
}

impl View {
    /// Creates a view of the whole module with these options, which white space separates.
    pub(super) fn new(name: &str, options: &str) -> Self {
        let options: Vec<_> = options.split_whitespace().map(str::to_owned).collect();
        let is_listing = options.iter().any(|option| option == "--list-only");
        Self {
            name: name.to_owned(),
            subject: String::new(),
            options,
            format: if is_listing { Format::Listing } else { Format::Items },
            path: String::new(),
            dest: None,
        }
    }

    /// Returns whether the client only lists, and has no destination.
    pub(super) fn is_listing(&self) -> bool {
        self.format == Format::Listing
    }
}

/// The list with all attributes. Files for the sample are chosen from it.
pub(super) fn archive() -> View {
    View::new("-aH --numeric-ids", "-aH --numeric-ids")
}

/// Further lists of the whole module: those of well-known mirror scripts, and of older protocols.
pub(super) fn lists() -> Vec<View> {
    const LISTS: [(&str, &str); 7] = [
        ("-a with names of owners", "-a"),
        ("-r --list-only", "-r --list-only"),
        (
            "first stage of Debian's ftpsync",
            "-rltH --safe-links --no-inc-recursive --exclude=Packages* --exclude=Sources* --exclude=Release* \
             --exclude=InRelease --include=i18n/by-hash/** --exclude=i18n/* --exclude=ls-lR* --exclude=/project/trace/*",
        ),
        ("Arch's syncrepo", "-rlptH --safe-links --delete-delay --delay-updates"),
        ("only some types of files", "-rlt --include=*/ --include=*.gz --include=*.xz --include=*.db --exclude=*"),
        ("-aH, protocol 30", "-aH --protocol=30"),
        ("-rlt, protocol 29", "-rlt --protocol=29"),
    ];
    LISTS.map(|(name, options)| View::new(name, options)).to_vec()
}

/// Paths that do not exist, and a wildcard.
pub(super) fn paths() -> Vec<View> {
    const PATHS: [&str; 4] = ["no-such-file.shadow", "no-such-directory.shadow/", "../", "*"];
    let view = |path: &str| {
        let name = format!("path {path}");
        View { subject: name.clone(), path: path.to_owned(), ..View::new(&name, "-dlt") }
    };
    PATHS.map(view).to_vec()
}

/// One view of the module's top directory for each option that mirror scripts use and that a daemon may refuse. An old
/// client may not know all of them.
pub(super) fn options() -> Vec<View> {
    const OPTIONS: [&str; 57] = [
        "-H",
        "-p",
        "-o -g",
        "-D",
        "-S",
        "-W",
        "-B8192",
        "-x",
        "-R",
        "-R --no-implied-dirs",
        "-L",
        "-k",
        "-K",
        "-E",
        "-O",
        "-J",
        "-A",
        "-X",
        "-U",
        "-m",
        "-C",
        "-F",
        "-I",
        "-u",
        "-y",
        "-s",
        "-v",
        "-z",
        "-zz",
        "--compress-choice=zstd",
        "-z --compress-level=9 --skip-compress=gz/xz",
        "--copy-unsafe-links",
        "--safe-links",
        "--munge-links",
        "--numeric-ids",
        "--size-only",
        "--partial",
        "--partial-dir=.partial",
        "--delay-updates",
        "--inplace",
        "--append",
        "--append-verify",
        "--delete",
        "--delete-before",
        "--delete-delay",
        "--delete-after",
        "--delete-excluded --exclude=*.tmp",
        "--delete --ignore-errors --force --max-delete=10",
        "--timeout=600",
        "--bwlimit=10000",
        "--stats",
        "--max-size=1G --min-size=1",
        "--chmod=D755,F644",
        "--checksum-seed=1",
        "--iconv=utf-8",
        "--old-args",
        "--remove-source-files",
    ];
    let view = |option: &str| View { subject: option.to_owned(), ..View::new(option, &format!("-dlt {option}")) };
    OPTIONS.map(view).to_vec()
}
