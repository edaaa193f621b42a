#!/usr/bin/env python3
"""Bytes that a pull costs that is killed (`kill -9`) at random moments until it is done, beside one that is not.

A counting proxy limits the rate, so that the kills hit the transfer. Lists, block checksums and requests count. Two pulls are
measured: a first one, and an update in which files change in places, move and come anew.
"""
import os
import random
import shutil
import signal
import subprocess
import time

import bench
import trees
from proxy import Proxy

MIB = 1 << 20


def run(b):
    source, store = b.work / 'source', b.work / 'store'
    make(source, b.args.mib)
    rows = []
    b.stillmirror.index(source, store)
    with b.stillmirror.serve(source, store) as server:
        rows.append(measure(b, 'first pull', server, source, lambda dest, kept: None))
        first = b.work / 'first'
        b.stillmirror.pull(server.url, first, b.work / 'first.store')
        change(source)
        generation = b.stillmirror.index(source, store)['generation']
        b.stillmirror.pull_generation(generation, server.url, b.work / 'probe', b.work / 'probe.store')
        rows.append(measure(b, 'update', server, source, lambda dest, kept: (trees.copy(first, dest), trees.copy(b.work / 'first.store', kept))))
    b.table('bytes of killed pulls', rows)
    for row in rows:
        b.at_most(f'{row["pull"]}: bytes of all attempts by those of one that is not killed', row['ratio'], 1.02)


def make(source, mib):
    """Make files of 8 KiB, of 1 to 2 MiB, and two of a tenth of it all."""
    trees.make(source / 'small', mib, 8 << 10, seed=1)
    trees.make(source / 'middle', mib // 2, (MIB, 2 * MIB), seed=2)
    trees.make_large(source / 'large', 2, mib // 10 * MIB)


def change(source):
    rng = random.Random(3)
    for number, path in enumerate(sorted((source / 'middle').rglob('*.bin'))):
        if number % 2 == 0:
            content = bytearray(path.read_bytes())
            for _ in range(20):
                content[rng.randrange(len(content))] ^= 1
            trees.write(path, content)
        elif number % 7 == 0:
            path.rename(source / f'moved-{path.name}')
    for path in sorted((source / 'large').iterdir())[:1]:
        content = path.read_bytes()
        trees.write(path, content[:MIB] + rng.randbytes(5000) + content[MIB:])
    trees.make(source / 'new', 40, (MIB // 2, MIB), seed=4)


def measure(b, what, server, source, prepare):
    whole = one(b, server, source, prepare, 0)
    # All kills fall into the time that the transfer takes.
    rate = int((whole['down'] + whole['up']) / (b.args.kills * b.args.interval))
    killed = one(b, server, source, prepare, b.args.kills, rate)
    total = lambda counts: counts['down'] + counts['up']
    return {'pull': what, 'kills': killed['kills'], 'not killed': total(whole), 'all attempts': total(killed),
            'lost per kill': (total(killed) - total(whole)) // max(1, killed['kills']), 'MB/s': rate / 1e6,
            'ratio': total(killed) / total(whole)}


def one(b, server, source, prepare, kills, rate=None):
    dest, kept = b.work / 'dest', b.work / 'dest.store'
    for path in (dest, kept):
        shutil.rmtree(path, ignore_errors=True)
    prepare(dest, kept)
    rng, hits = random.Random(b.args.seed), 0
    with Proxy(server.address, server.port, rate) as proxy:
        argv = b.stillmirror.argv('pull', f'stillmirror://127.0.0.1:{proxy.port}/{bench.NAME}', dest, '--store', kept, '--delete', '--quiet')
        while True:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
            if hits < kills:
                try:
                    process.wait(rng.uniform(0, 2 * b.args.interval) + b.args.start)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    hits += 1
            if process.wait() != -signal.SIGKILL:
                break
        time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f'a pull after {hits} kills ended with {process.returncode}')
        counts = {'down': proxy.down, 'up': proxy.up, 'kills': hits}
    lines = trees.differences(source, dest)
    b.check(f'after {hits} kills the tree is that of the sender: {lines[:3]}', not lines)
    return counts


bench.main(__doc__, [
    ('--kills', dict(type=int, default=300, help='(default: %(default)s)')),
    ('--mib', dict(type=int, default=600, help='size of the tree in MiB, roughly (default: %(default)s)')),
    ('--interval', dict(type=float, default=0.25, help='mean time of transfer between kills, in seconds (default: %(default)s)')),
    ('--start', dict(type=float, default=0.1, help='time that a pull takes to begin its transfer, in seconds (default: %(default)s)')),
    ('--seed', dict(type=int, default=1)),
], run)
