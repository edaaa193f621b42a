#!/usr/bin/env python3
"""Readers of a downstream mirror, while a publisher publishes and the mirror pulls in a loop.

The repository is laid out like Debian's: a head that names indices by digest, indices by digest (hard links of the named
ones) that name packages by digest. A reader takes the head, then every index, waits as a client does that computes what it
needs, then takes packages. A check is bad if anything that it follows is missing or has another digest.

Mirrors pull with stillmirror (with and without a grace for deletions, and switching a whole tree) and with rsync (`--delay-updates --delete-delay`) from
the same source, each into its own tree, at the same time.
"""
import hashlib
import os
import random
import statistics
import subprocess
import threading
import time

import bench

COMPONENTS = ('main', 'contrib')
# Versions of an index that stay reachable by digest.
KEPT = 3


def run(b):
    source = b.work / 'source'
    repository = Repository(source, b.args.packages)
    repository.publish()
    rows = []
    with b.rsyncd(source) as rsyncd:
        if b.stillmirror:
            b.stillmirror.index(source, b.work / 'store')
            with b.stillmirror.serve(source, b.work / 'store') as ours:
                rows = all_cases(b, repository, rsyncd, ours)
        else:
            rows = all_cases(b, repository, rsyncd, None)
    b.table('bad checks of readers', rows)
    for row in rows:
        if row['mirror'].startswith('stillmirror'):
            b.check(f'{row["case"]}, {row["mirror"]}: readers were there ({row["checks"]} checks)', row['checks'] > 100)
            if 'switch' in row['mirror']:
                b.at_most(f'{row["case"]}, {row["mirror"]}: bad checks', row['bad'], 0)
            if row['case'] != 'slow':
                b.check(f'{row["case"]}, {row["mirror"]}: they saw updates ({row["updates seen"]})', row['updates seen'] > 1)
            if 'grace' in row['mirror']:
                b.at_most(f'{row["case"]}, {row["mirror"]}: bad checks per 1,000', row['bad per 1000'], 2)


def all_cases(b, repository, rsyncd, ours):
    rows = []
    for case in ('overlapping', 'slow', 'quiet'):
        # A pull over a slow link takes longer than a publish.
        slow = f'--bwlimit={b.args.slow}k' if case == 'slow' else '--bwlimit=0'
        mirrors = [Mirror(b, case, 'rsync', slow, lambda dest, _, rate: ['rsync', '-aH', '--delete-delay', '--delay-updates', rate, f'{rsyncd.url}/', f'{dest}/'])]
        if ours:
            for name, more in (('stillmirror', ['--delete']), ('stillmirror, grace', ['--delete-grace', '10s']), ('stillmirror, switch', ['--delete-grace', '10s', '--switch'])):
                mirrors.append(Mirror(b, case, name, slow, lambda dest, store, rate, more=more: b.stillmirror.argv('pull', ours.url, dest, '--store', store, '--quiet', rate, *more)))
        rows += observe(b, case, repository, mirrors)
    return rows


def observe(b, case, repository, mirrors):
    """Publish, pull and read for a while."""
    over, turn = threading.Event(), threading.Barrier(len(mirrors) + 1)
    for mirror in mirrors:
        mirror.pull()

    def publish():
        while not over.is_set():
            repository.publish()
            if b.stillmirror:
                b.stillmirror.index(repository.root, b.work / 'store')
            if case == 'quiet':
                # Every mirror takes this version before the next one is published.
                try:
                    turn.wait(60)
                    turn.wait(60)
                except threading.BrokenBarrierError:
                    return
            else:
                over.wait(b.args.interval)

    def pull(mirror):
        while not over.is_set():
            if case == 'quiet':
                try:
                    turn.wait(60)
                    # A daemon notices a new generation after a moment.
                    time.sleep(1.2)
                    mirror.pull()
                    turn.wait(60)
                except threading.BrokenBarrierError:
                    return
            else:
                mirror.pull()

    threads = [threading.Thread(target=publish)]
    threads += [threading.Thread(target=pull, args=(mirror,)) for mirror in mirrors]
    threads += [threading.Thread(target=mirror.read, args=(over, number)) for mirror in mirrors for number in range(b.args.readers)]
    for thread in threads:
        thread.start()
    time.sleep(b.args.seconds)
    over.set()
    turn.abort()
    for thread in threads:
        thread.join()
    return [mirror.row() for mirror in mirrors]


class Repository:
    """A publisher's tree. Files appear by rename; superseded packages are deleted right after the head is replaced."""

    def __init__(self, root, packages):
        self.root, self.random, self.version = root, random.Random(7), 0
        self.packages = {component: {f'p{number:03}': self.package(component, f'p{number:03}', 0) for number in range(packages)} for component in COMPONENTS}
        self.indices = {component: [] for component in COMPONENTS}

    def package(self, component, name, version):
        path = f'pool/{component}/{name}_{version}.deb'
        content = self.random.randbytes(self.random.randint(2000, 60_000))
        replace(self.root / path, content)
        return path, sha256(content)

    def publish(self):
        self.version += 1
        old, head = [], []
        for component, packages in self.packages.items():
            if self.version > 1:
                for name in self.random.sample(sorted(packages), max(1, len(packages) // 20)):
                    old.append(packages[name][0])
                    packages[name] = self.package(component, name, self.version)
            index = ''.join(f'{path} {digest}\n' for path, digest in packages.values()).encode()
            folder = f'dists/stable/{component}'
            replace(self.root / folder / 'Packages', index)
            by_hash = self.root / folder / 'by-hash' / sha256(index)
            by_hash.parent.mkdir(exist_ok=True)
            if not by_hash.exists():
                os.link(self.root / folder / 'Packages', by_hash)
                self.indices[component].append(by_hash)
            head.append(f'{folder} {sha256(index)}\n')
        replace(self.root / 'dists/stable/InRelease', f'version {self.version}\n{"".join(head)}'.encode())
        for path in old:
            os.unlink(self.root / path)
        for kept in self.indices.values():
            while len(kept) > KEPT:
                kept.pop(0).unlink()


class Mirror:
    """A downstream tree, and what its readers find in it."""

    def __init__(self, b, case, name, rate, command):
        folder = b.work / f'{case}-{name.replace(", ", "-")}'
        folder.mkdir()
        self.case, self.name, self.dest = case, name, folder / 'tree'
        # The first pull is not limited: it would take minutes.
        self.argv, self.later = (command(self.dest, folder / 'store', rate) for rate in ('--bwlimit=0', rate))
        self.pulls, self.seconds, self.checks, self.bad, self.heads, self.lock = 0, [], 0, [], set(), threading.Lock()

    def pull(self):
        start = time.monotonic()
        # Exit codes of a pull whose source changed meanwhile are no fault here: readers are the judges.
        subprocess.run(list(map(str, self.argv)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.argv = self.later
        self.pulls += 1
        self.seconds.append(time.monotonic() - start)

    def read(self, over, number):
        chance = random.Random(number)
        while not over.is_set():
            fault = self.fault(chance)
            with self.lock:
                self.checks += 1
                if fault:
                    self.bad.append(fault)
            time.sleep(0.01)

    def fault(self, chance):
        """Follow the head to some packages. Returns what is wrong, or None."""
        try:
            head = (self.dest / 'dists/stable/InRelease').read_text()
            with self.lock:
                self.heads.add(head)
            packages = []
            for line in head.splitlines()[1:]:
                folder, digest = line.split()
                index = (self.dest / folder / 'by-hash' / digest).read_bytes()
                if sha256(index) != digest:
                    return 'index'
                packages += index.decode().splitlines()
            time.sleep(0.1)
            for line in chance.sample(packages, 8):
                path, digest = line.split()
                if sha256((self.dest / path).read_bytes()) != digest:
                    return 'package'
        except FileNotFoundError as missing:
            return 'no ' + ('head' if 'InRelease' in missing.filename else 'index' if 'by-hash' in missing.filename else 'package')
        return None

    def row(self):
        kinds = {kind: self.bad.count(kind) for kind in sorted(set(self.bad))}
        return {'case': self.case, 'mirror': self.name, 'pulls': self.pulls, 'pull s': statistics.median(self.seconds), 'updates seen': len(self.heads),
                'checks': self.checks, 'bad': len(self.bad), 'bad per 1000': 1000 * len(self.bad) / max(1, self.checks),
                'kinds': ', '.join(f'{kind} {count}' for kind, count in kinds.items())}


def replace(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.new')
    temporary.write_bytes(content)
    os.rename(temporary, path)


def sha256(content):
    return hashlib.sha256(content).hexdigest()


bench.main(__doc__, [
    ('--seconds', dict(type=int, default=60, help='for each case (default: %(default)s)')),
    ('--interval', dict(type=float, default=2, help='seconds between publishes that overlap pulls (default: %(default)s)')),
    ('--slow', dict(type=int, default=64, metavar='KIB', help='rate of a slow link per second (default: %(default)s)')),
    ('--packages', dict(type=int, default=100, help='of each component (default: %(default)s)')),
    ('--readers', dict(type=int, default=2, help='of each mirror (default: %(default)s)')),
], run)
