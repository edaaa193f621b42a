#!/usr/bin/env python3
"""Readers of downstream mirrors over nginx, while a publisher publishes and the mirrors pull in a loop.

The repositories have real packages of Debian, and are published as dak, createrepo_c and repo-add do. The mirrors pull the
same source at the same time, each into its own tree: with stillmirror (`--delete`, `--delete-grace`, `--switch`), with rsync
(`--delay-updates --delete-delay`) and with Debian's ftpsync. Each has strict checkers and a real client (apt-get, dnf or pacman).

A check is bad if anything is missing or has another digest than what leads to it says. The cases:
  overlapping  the publisher does not wait for the pulls
  slow         the same, and a pull takes longer than the interval of the publishes
  quiet        a publish waits until every mirror has the one before
"""
import collections
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time

import bench
from repositories import KINDS, debs
from repository_clients import Bad, CLIENTS, Checker

CASES = ('overlapping', 'slow', 'quiet')
# A daemon notices a new generation after a moment.
NOTICE = 1.2
# Between two pulls of a mirror that does not wait for a publish.
PAUSE = 0.2
# The lowest limit that `pull` takes, in KiB per second.
SLOWEST = 16


def run(b):
    packages = debs(b.args.debs or b.work / 'debs', b.args.packages * 2)
    rows, bad, published = [], [], 0
    for kind in b.args.kinds:
        folder = b.work / kind
        folder.mkdir()
        repository = KINDS[kind](folder, packages, b.args.packages, b.args.share / 100)
        with contextlib.ExitStack() as stack:
            stack.callback(repository.close)
            repository.publish()
            rsyncd = stack.enter_context(b.rsyncd(repository.root))
            ours = None
            if b.stillmirror:
                b.stillmirror.index(repository.root, folder / 'store')
                ours = stack.enter_context(b.stillmirror.serve(repository.root, folder / 'store'))
            (folder / 'mirrors').mkdir()
            web = stack.enter_context(b.nginx(folder / 'mirrors'))
            for case in b.args.cases:
                observation = Observation(b, case, repository, web, rsyncd, ours)
                observation.run()
                rows += [mirror.row() for mirror in observation.mirrors]
                bad += [{'kind': kind, 'case': case} | fault for mirror in observation.mirrors if isinstance(mirror, Stillmirror) for fault in mirror.faults()]
        published += repository.version
    b.table('readers', rows)
    b.table('bad checks of stillmirror', bad)
    b.check(f'there were publishes ({published})', published >= 30)
    for row in rows:
        claim(b, row)


def claim(b, row):
    name = f'{row["kind"]}, {row["case"]}, {row["mirror"]}'
    if row['limit'] is None:
        return
    b.check(f'{name}: readers were there ({row["checks"]} checks)', row['checks'] >= b.args.seconds)
    b.at_most(f'{name}: bad checks per 1,000', row['bad per 1000'], row['limit'])
    b.at_most(f'{name}: failures of real clients', row['clients failed'], 0)
    b.check(f'{name}: readers saw updates ({row["heads seen"]})', row['heads seen'] > 1)
    if row['case'] != 'slow':
        b.at_most(f'{name}: publishes behind', row['behind'], 2)


class Observation:
    """One case: publishes, pulls and readers, side by side."""

    def __init__(self, b, case, repository, web, rsyncd, ours):
        self.b, self.case, self.repository, self.over = b, case, repository, threading.Event()
        self.store = b.work / repository.kind / 'store'
        grace = f'{b.args.grace}s'
        kinds = [('rsync', Rsync, (rsyncd.url,))]
        if repository.kind == 'debian' and shutil.which('ftpsync'):
            kinds.append(('ftpsync', Ftpsync, (rsyncd.url,)))
        if ours:
            kinds += [('stillmirror', Stillmirror, (ours.url, None, '--delete')),
                      ('stillmirror, grace', Stillmirror, (ours.url, 2, '--delete-grace', grace)),
                      ('stillmirror, switch', Stillmirror, (ours.url, 0, '--delete-grace', grace, '--switch', '--keep-snapshots', '60s'))]
        self.mirrors = [kind(self, web, name, *more) for name, kind, more in kinds]
        self.turn = threading.Barrier(len(self.mirrors) + 1)

    def rate(self):
        """Return how fast a mirror may pull, as an option of rsync. Over a slow link, a pull of everything new takes longer than a publish."""
        if self.case != 'slow':
            return '0'
        new, interval = self.repository.pace
        return f'{max(SLOWEST, int(new / interval / self.b.args.slow / 1024))}k'

    def run(self):
        for mirror in self.mirrors:
            mirror.begin()
        loops = [self.publish]
        for mirror in self.mirrors:
            loops += [mirror.keep_pulling, mirror.watch, mirror.use]
            loops += [lambda mirror=mirror, seed=seed: mirror.check(seed) for seed in range(self.b.args.readers)]
        threads = [threading.Thread(target=loop) for loop in loops]
        for thread in threads:
            thread.start()
        time.sleep(self.b.args.seconds)
        self.over.set()
        self.turn.abort()
        for thread in threads:
            thread.join()
        for mirror in self.mirrors:
            mirror.save_trace()

    def publish(self):
        while not self.over.is_set():
            self.repository.publish()
            if self.b.stillmirror:
                self.b.stillmirror.index(self.repository.root, self.store)
            if self.case == 'quiet':
                with contextlib.suppress(threading.BrokenBarrierError):
                    self.turn.wait()
                    self.turn.wait()
            else:
                self.over.wait(self.b.args.interval)


class Mirror:
    """A downstream tree, and what its readers find in it."""

    # The bad checks per 1,000 that are allowed. `None` if nothing is claimed.
    limit = None

    def __init__(self, observation, web, name):
        self.observation, self.repository, self.over, self.web = observation, observation.repository, observation.over, web
        self.name = name
        place = f'{observation.case}-{name.replace(", ", "-")}'
        self.place = f'{place}/tree'
        self.folder = observation.b.work / observation.repository.kind / 'mirrors' / place
        self.folder.mkdir()
        self.dest = self.folder / 'tree'
        self.pulls, self.seen, self.behind, self.checks, self.uses = [], [], 0, [], []

    def begin(self, patience=60):
        """Pull until the tree has the newest publish."""
        deadline = time.time() + patience
        while self.version() != self.repository.version:
            if time.time() > deadline:
                raise SystemExit(f'{self.name} has no tree after {patience} s: {self.pulls[-1]}')
            # Not limited: it would take minutes.
            self.pull('0')

    def version(self):
        """Return the number of the publish that the tree has, or None."""
        with contextlib.suppress(FileNotFoundError):
            return self.repository.version_of((self.dest / self.repository.head).read_bytes())

    def pull(self, rate):
        start = time.time()
        # Exit codes of a pull whose source changed meanwhile are no fault here: readers are the judges.
        with open(self.folder / 'out', 'w+', errors='replace') as out:
            pull = subprocess.Popen(list(map(str, self.argv(rate))), env=os.environ | self.env(rate), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
            while pull.poll() is None:
                if self.over.wait(0.02):
                    # Over a slow link, it would go on for minutes.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pull.pid, signal.SIGTERM)
                    pull.wait()
            out.seek(0)
            self.pulls.append({'start': start, 'end': time.time(), 'rate': rate, 'exit': pull.returncode, 'out': out.read()})

    def env(self, _):
        return {}

    def keep_pulling(self):
        while not self.over.is_set():
            if self.observation.case == 'quiet':
                with contextlib.suppress(threading.BrokenBarrierError):
                    self.observation.turn.wait()
                    time.sleep(NOTICE)
                    self.pull(self.observation.rate())
                    self.observation.turn.wait()
            else:
                self.pull(self.observation.rate())
                self.over.wait(PAUSE)

    def watch(self):
        """Note which publish the tree has, and how far it is behind."""
        while not self.over.wait(0.05):
            newest, version = self.repository.version, self.version()
            if version is not None:
                self.behind = max(self.behind, newest - version)
                if not self.seen or self.seen[-1][1] != version:
                    self.seen.append((time.time(), version))

    def check(self, seed):
        checker = Checker(self.web.address, self.web.port, self.place, self.repository, self.observation.b.args.sample, seed)
        while not self.over.is_set():
            self.checks.append(self.attempt(checker.read, lambda: checker.head and self.repository.version_of(checker.head)))
            time.sleep(0.01)

    def use(self):
        client = CLIENTS[self.repository.kind](self.folder / 'client', f'{self.web.url}/{self.place}', self.repository, 1)
        while not self.over.is_set():
            self.uses.append(self.attempt(client.read, lambda: None))

    @staticmethod
    def attempt(read, version):
        start, bad = time.time(), None
        try:
            read()
        except Bad as fault:
            bad = fault.args
        return {'start': start, 'end': time.time(), 'version': version(), 'bad': bad}

    def row(self):
        bad = [check['bad'] for check in self.checks if check['bad']]
        kinds = collections.Counter(f'{self.what(path)} {why}' for why, path in bad)
        exits = collections.Counter(pull['exit'] for pull in self.pulls)
        return {'kind': self.repository.kind, 'case': self.observation.case, 'mirror': self.name, 'limit': self.limit, 'pulls': len(self.pulls),
                'exits': ', '.join(f'{code} ({count})' for code, count in sorted(exits.items())),
                'pull s': statistics.median(pull['end'] - pull['start'] for pull in self.pulls[1:] or self.pulls),
                'heads seen': len(self.seen), 'behind': self.behind, 'checks': len(self.checks), 'bad': len(bad),
                'bad per 1000': 1000 * len(bad) / max(1, len(self.checks)), 'clients': len(self.uses),
                'clients failed': sum(use['bad'] is not None for use in self.uses),
                'what': ', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}

    def what(self, path):
        return 'head' if path == self.repository.head else 'index' if 'dists/' in path or 'repodata/' in path else 'package'

    def faults(self):
        """Return what is known about each bad check."""
        for check in self.checks + self.uses:
            if check['bad']:
                path = check['bad'][-1]
                deleted = self.repository.deleted.get(path)
                yield {'mirror': self.name, 'what': ' '.join(map(str, check['bad'])).replace('\n', ' ')[:120], 'version': check['version'],
                       'took': check['end'] - check['start'],
                       'next head after s': next((at - check['start'] for at, version in self.seen if check['version'] and version > check['version']), None),
                       'deleted at source before s': deleted and check['end'] - deleted}

    def save_trace(self):
        trace = {'pulls': self.pulls, 'seen': self.seen, 'checks': self.checks, 'uses': self.uses,
                 'published': self.repository.published, 'deleted': self.repository.deleted}
        (self.folder / 'trace.json').write_text(json.dumps(trace))


class Rsync(Mirror):
    def __init__(self, observation, web, name, url):
        super().__init__(observation, web, name)
        self.url = url

    def argv(self, rate):
        return ['rsync', '-aH', '--delete-delay', '--delay-updates', f'--bwlimit={rate}', f'{self.url}/', f'{self.dest}/']


class Ftpsync(Mirror):
    def __init__(self, observation, web, name, url):
        super().__init__(observation, web, name)
        config = self.folder / '.config/ftpsync/ftpsync.conf'
        config.parent.mkdir(parents=True)
        # Its mails would leave this machine.
        config.write_text(f'MIRRORNAME=bench\nTO={self.dest}/\nRSYNC_SOURCE={url}/\nMAILTO=nobody\nmailf() {{ :; }}\n')

    def argv(self, _):
        return ['ftpsync', 'sync:all']

    def env(self, rate):
        return {'HOME': str(self.folder), 'RSYNC_BW': rate}


class Stillmirror(Mirror):
    def __init__(self, observation, web, name, url, limit, *more):
        super().__init__(observation, web, name)
        self.url, self.limit, self.more = url, limit, more

    def argv(self, rate):
        stillmirror = self.observation.b.stillmirror
        return stillmirror.argv('pull', self.url, self.dest, '--store', self.folder / 'store', '--json', f'--bwlimit={rate}', *self.more)


bench.main(__doc__, [
    ('--debs', dict(metavar='DIR', help='where packages of Debian are kept; `apt-get download` brings what it lacks (default: in the scratch directory)')),
    ('--kinds', dict(nargs='+', choices=KINDS, default=list(KINDS), help='of repositories (default: all)')),
    ('--cases', dict(nargs='+', choices=CASES, default=list(CASES), help='(default: all)')),
    ('--seconds', dict(type=int, default=60, help='for each case (default: %(default)s)')),
    ('--interval', dict(type=float, default=2, help='seconds between publishes that overlap pulls (default: %(default)s)')),
    ('--slow', dict(type=float, default=2, metavar='FACTOR', help='how much longer what a publish brings takes over a slow link than until the next publish (default: %(default)s)')),
    ('--packages', dict(type=int, default=150, help='of a repository (default: %(default)s)')),
    ('--share', dict(type=float, default=4, metavar='PERCENT', help='of the packages that a publish replaces (default: %(default)s)')),
    ('--grace', dict(type=int, default=10, metavar='SECONDS', help='for deletions (default: %(default)s)')),
    ('--readers', dict(type=int, default=2, help='strict checkers of each mirror (default: %(default)s)')),
    ('--sample', dict(type=int, default=8, help='packages that a check takes (default: %(default)s)')),
], run)
