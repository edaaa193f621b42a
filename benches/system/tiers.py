#!/usr/bin/env python3
"""Three tiers of followers: an origin, two mirrors of it, and six leaves behind these, each on a slow link of its own.

Every link is a proxy that delays and limits the rate. The origin signs, everybody below it trusts only its key, and nobody below
it indexes: followers pull, and daemons on their stores serve on. Each publish changes a part of the files.
"""
import json
import os
import random
import shutil
import signal
import subprocess
import time

import bench
import trees
from proxy import Proxy

UPPER = {'rate': 12_500_000, 'delay': 0.03}
LOWER = {'rate': 6_250_000, 'delay': 0.015}


def run(b):
    source, store, keys = b.work / 'source', b.work / 'origin.store', b.work / 'keys'
    trees.make(source, b.args.files, (1 << 10, 15 << 10))
    bench.must([b.stillmirror.binary, 'keygen', keys])
    key, public = keys / 'stillmirror.key', keys / 'stillmirror.pub'
    index = lambda: b.stillmirror.index(source, store, '--sign', key)
    index()
    running = []
    try:
        origin = b.stillmirror.serve(source, store)
        running.append(origin)
        mirrors = [Tier(b, f'mirror{number}', origin, UPPER, public, running) for number in range(2)]
        leaves = [Tier(b, f'leaf{number}', mirrors[number % 2].server, LOWER, public, running) for number in range(6)]
        measure(b, source, store, index, mirrors, leaves, public)
    finally:
        for process in reversed(running):
            process.stop()


class Tier:
    """A follower behind a slow link, and for a mirror the daemon that serves what it pulls."""

    def __init__(self, b, name, sender, link, public, running):
        self.name, self.link = name, link
        self.dest, self.store = b.work / name, b.work / f'{name}.store'
        # The first pull is not what is measured.
        trust = ['--trust', public, '--check', 'none']
        b.stillmirror.pull(sender.url, self.dest, self.store, *trust)
        self.proxy = Proxy(sender.address, sender.port, **link)
        self.proxy.__enter__()
        argv = b.stillmirror.argv('pull', f'stillmirror://127.0.0.1:{self.proxy.port}/{bench.NAME}', self.dest, '--store', self.store,
                                  '--delete', '--json', '--follow', *trust)
        self.log = b.work / f'{name}.json'
        with open(self.log, 'wb') as out, open(b.work / f'{name}.log', 'wb') as errors:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
        running.append(self)
        if name.startswith('mirror'):
            self.server = b.stillmirror.serve(self.dest, self.store)
            running.append(self.server)

    def generation(self):
        return int(os.path.basename(os.readlink(self.store / 'current')))

    def published(self):
        """Return when the current generation became current."""
        return os.lstat(self.store / 'current').st_mtime

    def head(self):
        return (self.store / 'current' / 'head').read_bytes()

    def reports(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def bytes_read(self):
        """Return the bytes that the follower read from files. Reads from sockets do not count."""
        with open(f'/proc/{self.process.pid}/io') as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith('rchar'))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.code = self.process.wait(30)
        self.proxy.__exit__()


def measure(b, source, store, index, mirrors, leaves, public):
    paths = sorted(source.rglob('*.bin'))
    rng = random.Random(b.args.seed)
    below = mirrors + leaves
    # All of them have connected, and asked once.
    wait_until(lambda: all(tier.reports() for tier in below), 60)
    time.sleep(2)
    read_before = {tier.name: tier.bytes_read() for tier in below}
    rows = []
    for number in range(b.args.publishes):
        changed = rng.sample(paths, int(len(paths) * b.args.percent / 100))
        lacking = 0
        for path in changed:
            content = rng.randbytes(path.stat().st_size)
            trees.write(path, content)
            lacking += len(content)
        down, up = sum(tier.proxy.down for tier in mirrors), sum(tier.proxy.up for tier in mirrors)
        report = index()
        published = os.lstat(store / 'current').st_mtime
        head = (store / 'current' / 'head').read_bytes()
        arrived = wait_until(lambda: all(tier.head() == head for tier in below), b.args.patience)
        time.sleep(1)
        delta = max((path.stat().st_size for path in (store / 'current').iterdir() if path.name.startswith('delta')), default=0)
        sent = sum(tier.proxy.down for tier in mirrors) - down
        late = lambda tiers: max(tier.published() for tier in tiers) - published
        rows.append({
            'publish': number + 1, 'files changed': len(changed), 'bytes lacking, each': lacking, 'list delta': delta,
            'index (s)': report['wall'], 'last mirror (s)': late(mirrors), 'last leaf (s)': late(leaves),
            'links alone (s)': lacking / UPPER['rate'] + lacking / LOWER['rate'],
            'out of the origin': sent, 'by what both lack': sent / (2 * lacking), 'to the origin': sum(tier.proxy.up for tier in mirrors) - up,
            'all arrived': arrived})
    b.table('publishes', rows)
    received = {tier.name: sum(report['bytes_received'] for report in tier.reports()) for tier in below}
    tree = sum(path.stat().st_size for path in paths)
    tiers = []
    for tier in below:
        reports, read = tier.reports(), tier.bytes_read() - read_before[tier.name]
        tiers.append({
            'follower': tier.name, 'pulls': len(reports), 'that found nothing new': sum(report['unchanged'] for report in reports),
            'with failures': sum(bool(report['failed']) for report in reports), 'median pull (s)': bench.median([report['seconds'] for report in reports[1:]]),
            'received': received[tier.name], 'read from files': read, 'of the tree, per publish': read / tree / len(rows), 'signature': verifies(tier, public)})
    b.table('below the origin', tiers)
    b.check('each publish reached each tier, with the head and the signature of the origin to the byte', all(row['all arrived'] for row in rows))
    b.at_most('seconds from a publish to the last leaf, median', bench.median([row['last leaf (s)'] for row in rows]), b.args.limit)
    b.at_most('bytes out of the origin by what its two mirrors lack, the worst publish', max(row['by what both lack'] for row in rows), 1.05)
    # Hashing for an index would read each file of the tree once.
    b.at_most('bytes of files that followers read per publish, as a part of the tree', max(row['of the tree, per publish'] for row in tiers), 0.05)
    b.check('the stock minisign verifies the head on every tier', all(row['signature'] == 'ok' for row in tiers))
    b.check('no pull failed in part', all(row['with failures'] == 0 for row in tiers))
    for tier in (mirrors[0], leaves[0], leaves[-1]):
        lines = trees.differences(source, tier.dest)
        b.check(f'{tier.name} has the tree of the origin: {lines[:3]}', not lines)


def verifies(tier, public):
    if not shutil.which('minisign'):
        return 'minisign is missing'
    current = tier.store / 'current'
    argv = ['minisign', '-Vm', str(current / 'head'), '-x', str(current / 'head.minisig'), '-p', str(public)]
    done = subprocess.run(argv, capture_output=True, check=False)
    return 'ok' if done.returncode == 0 else done.stderr.decode(errors='replace').strip()


def wait_until(condition, patience):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if condition():
                return True
        except (OSError, ValueError):
            pass  # in the middle of a publish or of a line
        time.sleep(0.05)
    return False


bench.main(__doc__, [
    ('--files', dict(type=int, default=100_000, help='(default: %(default)s)')),
    ('--publishes', dict(type=int, default=10, help='(default: %(default)s)')),
    ('--percent', dict(type=float, default=1.0, help='of the files that a publish changes (default: %(default)s)')),
    ('--patience', dict(type=float, default=120, help='seconds to wait for the last leaf (default: %(default)s)')),
    ('--limit', dict(type=float, default=10, help='seconds that a publish may take to the last leaf (default: %(default)s)')),
    ('--seed', dict(type=int, default=1)),
], run)
