//! Compares one module.

use std::cell::Cell;
use std::ffi::OsString;

use super::client::Ended;
use super::data;
use super::difference::{Aspect, Seen};
use super::door::{Answer, Door};
use super::error::ShadowError;
use super::observer::{Look, Observer, compare_ends, impossible};
use super::record::Format;
use super::report::{ModuleReport, Report};
use super::sample::{Chosen, Sampler};
use super::settle::{PAUSE, settle};
use super::view::{self, View};

/// The maximum number of modules at which wrong passwords are tried: a daemon makes an address wait longer after each
/// failure, for all modules.
const WRONG_LOGINS: u32 = 1;
/// How often a daemon that has its maximum number of clients is asked again.
const TRIES: u32 = 5;
/// A user that no module has.
const NOBODY: &str = "no-such-user.shadow";
const WRONG_PASSWORD: &str = "a wrong password";

/// What to compare.
#[derive(Debug)]
pub(super) struct Plan {
    /// The options of further clients, for lists.
    pub(super) clients: Vec<String>,
    /// Whether to compare the digests of all files.
    pub(super) all_digests: bool,
    /// The number of files whose contents are compared.
    pub(super) sample: usize,
    /// The maximum size of these files, in bytes.
    pub(super) sample_bytes: u64,
    pub(super) seed: u64,
}

/// Compares modules one after the other.
pub(super) struct Comparison<'a> {
    pub(super) observer: &'a Observer,
    pub(super) plan: &'a Plan,
    pub(super) report: &'a mut Report,
    /// The number of modules at which wrong passwords were tried.
    pub(super) wrong_logins: u32,
}

impl Comparison<'_> {
    pub(super) fn module(&mut self, module: &str) -> Result<(), ShadowError> {
        self.report.modules.push(ModuleReport { name: module.to_owned(), ..ModuleReport::default() });
        if !self.is_open(module)? {
            return Ok(());
        }
        let mut sampler = Sampler::new(self.plan.seed, self.plan.sample);
        let first = self.view(module, &view::archive(), Some(&mut sampler))?;
        self.report.module().entries = first.entries;
        if first.impossible.is_some() || !first.is_whole {
            return Ok(());
        }
        for view in view::lists() {
            self.view(module, &view, None)?;
        }
        for options in &self.plan.clients {
            self.view(module, &View::new(options, options), None)?;
        }
        for view in view::paths().iter().chain(&view::options()) {
            self.view(module, view, None)?;
        }
        let (chosen, left_out) = sampler.chosen(self.plan.sample_bytes);
        self.report.module().left_out = left_out;
        self.data(module, &chosen)
    }

    /// Compares how the daemons let clients in. Returns whether both do.
    fn is_open(&mut self, module: &str) -> Result<bool, ShadowError> {
        let observer = self.observer;
        observer.bar.set_message(format!("{module}: access"));
        let answers = Cell::new(None);
        let settled = settle(
            |difference| self.report.knows(Some(module), difference),
            || observer.client.wait(PAUSE),
            || {
                let (old, new) = observer.both(|side| patiently(observer, || observer.knock(side, module)))?;
                let mut seen = Seen::default();
                seen.compare("", Aspect::Access, &old.answer.text(), &new.answer.text());
                answers.set(Some((old.answer, new.answer)));
                Ok(seen)
            },
        )?;
        let is_same = settled.lasting.is_empty();
        let (old, new) = answers.take().unwrap_or((Answer::Open, Answer::Open));
        if old.is_full() || new.is_full() {
            let which = if old.is_full() { "old" } else { "new" };
            let why = format!("the {which} daemon has its maximum number of clients");
            self.report.not_compared(module, "everything", &why);
            return Ok(false);
        }
        self.report.add(Some(module), "access", settled);
        match (old, new) {
            (Answer::Open, Answer::Open) => Ok(true),
            (Answer::Password, Answer::Password) => self.login(module),
            (Answer::Refused(message), _) if is_same => {
                let why = format!("both daemons refuse this host: {message}");
                self.report.not_compared(module, "everything", &why);
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// Compares logins. Returns whether both daemons accept the operator's.
    fn login(&mut self, module: &str) -> Result<bool, ShadowError> {
        let user = self.observer.old.url.user.clone();
        if self.wrong_logins < WRONG_LOGINS {
            self.wrong_logins += 1;
            self.try_login(module, "an unknown user", Some(NOBODY), Some(WRONG_PASSWORD))?;
            if let Some(user) = &user {
                self.try_login(module, "a wrong password", Some(user), Some(WRONG_PASSWORD))?;
            }
        }
        if self.observer.client.password_file.is_none() {
            let why = "it asks for a password: give a user in the URL, and --password-file";
            self.report.not_compared(module, "everything behind the password", why);
            return Ok(false);
        }
        let (old, new) = self.try_login(module, "the given password", user.as_deref(), None)?;
        if old.code == 5 && new.code == 5 {
            let why = format!("both daemons refuse the login: {}", old.text());
            self.report.not_compared(module, "everything behind the password", &why);
        }
        Ok(old.is_whole() && new.is_whole())
    }

    fn try_login(
        &mut self,
        module: &str,
        what: &str,
        user: Option<&str>,
        password: Option<&str>,
    ) -> Result<(Ended, Ended), ShadowError> {
        let observer = self.observer;
        let ended = Cell::new(None);
        let settled = settle(
            |difference| self.report.knows(Some(module), difference),
            || observer.client.wait(PAUSE),
            || {
                let (old, new) = observer.both(|side| {
                    let url = side.url.path_as(user.or(side.url.user.as_deref()), module, "");
                    let words = ["-d", "--list-only", "--no-motd", &url].map(OsString::from);
                    observer.client.run(side.which, &words, password, &mut |_| Ok(()))
                })?;
                observer.check_alive(&old, &new, module)?;
                let mut seen = Seen::default();
                if impossible(&old, &new)?.is_none() {
                    compare_ends(what, &old, &new, &mut seen);
                }
                seen.differences.iter_mut().for_each(|difference| difference.aspect = Aspect::Login);
                ended.set(Some((old, new)));
                Ok(seen)
            },
        )?;
        self.report.add(Some(module), "login", settled);
        ended.take().ok_or(ShadowError::Interrupted)
    }

    /// Compares a view. Offers the files that both daemons list to the sampler.
    fn view(&mut self, module: &str, view: &View, mut sampler: Option<&mut Sampler>) -> Result<Look, ShadowError> {
        let observer = self.observer;
        observer.bar.set_message(format!("{module}, {}", view.name));
        let mut last = Look::default();
        let settled = settle(
            |difference| self.report.knows(Some(module), difference),
            || observer.client.wait(PAUSE),
            || {
                if let Some(sampler) = &mut sampler {
                    sampler.clear();
                }
                last = observer.look(module, view, &mut |record| {
                    if let Some(sampler) = &mut sampler {
                        sampler.offer(record);
                    }
                })?;
                Ok(std::mem::take(&mut last.seen))
            },
        )?;
        match &last.impossible {
            // A client may be older than an option, and the daemons can be compared without it.
            Some(why) if view.subject.is_empty() || !why.starts_with("the client") => {
                self.report.not_compared(module, &view.name, why);
            }
            Some(_) => {}
            None => self.report.module().views.push(view.name.clone()),
        }
        self.report.add(Some(module), &view.name, settled);
        Ok(last)
    }

    /// Compares the contents of files, and what depends on files that a client has already.
    fn data(&mut self, module: &str, chosen: &[Chosen]) -> Result<(), ShadowError> {
        for batch in data::batches(chosen) {
            self.pull(module, batch, "")?;
            let counts = self.report.module();
            counts.files += batch.len();
            counts.bytes += batch.iter().map(|file| file.size).sum::<u64>();
        }
        let small = data::small(chosen);
        if small.is_empty() {
            return Ok(());
        }
        for options in data::VARIANTS {
            self.pull(module, &small, options)?;
        }
        // The usual way again, so that the copy is as a client has it.
        self.pull(module, &small, "")?;
        self.view(module, &data::names_view(self.observer, &small, "-aH")?, None)?;
        self.view(module, &data::checksum_view(self.observer, &small)?, None)?;
        if self.plan.all_digests {
            self.view(module, &View { format: Format::Digests, ..View::new("-ac", "-ac") }, None)?;
        }
        self.view(module, &data::delete_view(self.observer, &small)?, None)?;
        Ok(())
    }

    fn pull(&mut self, module: &str, batch: &[Chosen], options: &str) -> Result<(), ShadowError> {
        let observer = self.observer;
        observer.bar.set_message(format!("{module}: contents {options}"));
        let mut why_not = None;
        let settled = settle(
            |difference| self.report.knows(Some(module), difference),
            || observer.client.wait(PAUSE),
            || {
                let (seen, why) = data::compare(observer, module, batch, options)?;
                why_not = why;
                Ok(seen)
            },
        )?;
        if let Some(why) = why_not.filter(|why| options.is_empty() || !why.starts_with("the client")) {
            self.report.not_compared(module, "contents", &why);
        }
        self.report.add(Some(module), &format!("contents {options}"), settled);
        Ok(())
    }
}

/// Knocks until a daemon has room for a client, a few times.
fn patiently(observer: &Observer, knock: impl Fn() -> Result<Door, ShadowError>) -> Result<Door, ShadowError> {
    for _ in 1..TRIES {
        let door = knock()?;
        if !door.answer.is_full() {
            return Ok(door);
        }
        observer.client.wait(PAUSE)?;
    }
    knock()
}
