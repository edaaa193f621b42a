#!/usr/bin/env python3
"""What a slow client gets while the publisher replaces its files: with `index --pin`, the generation that it began with, whole.

During each pull, a share of the files is changed and indexed in three publishes: written to in place, which only reflinks
survive (`--work` on XFS or btrfs), or replaced by rename, with some deleted. Clients are ours and the stock rsync, each with and
without pinned contents.
"""
import fcntl
import hashlib
import os
import random
import shutil
import subprocess
import time

import bench
import trees

# ioctl(2): share the blocks of another file.
FICLONE = 0x40049409
PUBLISHES = 3


def run(b):
    ways = ['renamed'] + (['in place'] if has_reflinks(b.work) else [])
    if len(ways) == 1:
        print('no reflinks here: files that are written to in place are left out (give --work a directory on XFS or btrfs)')
    cases = [(way, client, pin) for way in ways for client in ('native', 'rsync') for pin in (True, False)]
    rows = [case(b, *each) for each in cases]
    b.table('pulls during publishes', rows)
    for row in rows:
        if row['pin']:
            name = f'{row["files are"]}, {row["client"]}'
            b.check(f'{name}: exit {row["exit"]} after {row["publishes"]} publishes', row['exit'] == 0 and row['publishes'] == PUBLISHES)
            b.at_most(f'{name}: files that are not those of the first generation', row['differences'], 0)


def has_reflinks(work):
    one, other = work / 'one', work / 'other'
    one.write_bytes(b'content')
    try:
        with open(one) as source, open(other, 'w') as target:
            fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
        return True
    except OSError:
        return False
    finally:
        one.unlink()
        other.unlink(missing_ok=True)


def case(b, way, client, pin):
    folder = b.work / f'{way}-{client}-{pin}'.replace(' ', '-')
    source, store, dest = folder / 'source', folder / 'store', folder / 'dest'
    trees.make(source / 'pool', b.args.files, b.args.size << 10, seed=1)
    options = ['--keep-generations', '20'] + (['--pin'] if pin else [])
    b.stillmirror.index(source, store, *options)
    expected = state(source)
    seconds = b.args.files * b.args.size / b.args.rate
    with b.stillmirror.serve(source, store) as server:
        limit = f'{b.args.rate}k'
        if client == 'native':
            argv = b.stillmirror.argv('pull', server.url, dest, '--store', folder / 'kept', '--delete', '--quiet', '--bwlimit', limit)
        else:
            argv = ['rsync', '-a', f'--bwlimit={limit}', server.url.replace('stillmirror:', 'rsync:') + '/', f'{dest}/']
        started = time.monotonic()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        published = 0
        for publish in range(PUBLISHES):
            time.sleep(seconds / (PUBLISHES + 2))
            if process.poll() is not None:
                break
            change(source, way, publish, b.args.share)
            b.stillmirror.index(source, store, *options, accept=(0, 24))
            published += 1
        process.wait()
        wall = time.monotonic() - started
    found = state(dest)
    differences = sum(expected.get(path) != found.get(path) for path in expected.keys() | found.keys())
    shutil.rmtree(folder)
    return {'files are': way, 'client': client, 'pin': pin, 'publishes': published, 'exit': process.returncode, 'seconds': round(wall, 1), 'files': len(expected), 'differences': differences}


def change(source, way, publish, share):
    """Change a part of the files, other ones at each publish, the last ones first: they have not been sent yet."""
    rng = random.Random(publish)
    paths = sorted(source.rglob('*.bin'), reverse=True)
    count = len(paths) * share // 100 // PUBLISHES
    for number, path in enumerate(paths[publish * count:(publish + 1) * count]):
        size = path.stat().st_size
        if way == 'in place':
            with open(path, 'r+b') as file:
                file.seek(rng.randrange(size // 2))
                file.write(rng.randbytes(size // 3))
        elif number % 10 == 0:
            path.unlink()
        else:
            new = path.with_suffix('.new')
            new.write_bytes(rng.randbytes(size))
            new.rename(path)


def state(top):
    """Return digest, size, time and mode of each file."""
    facts = {}
    for path in top.rglob('*'):
        if path.is_file():
            stat = path.lstat()
            facts[os.fspath(path.relative_to(top))] = (hashlib.sha256(path.read_bytes()).digest(), stat.st_size, stat.st_mtime_ns, stat.st_mode)
    return facts


bench.main(__doc__, [
    ('--files', dict(type=int, default=300, help='(default: %(default)s)')),
    ('--size', dict(type=int, default=100, metavar='KIB', help='size of each file (default: %(default)s)')),
    ('--rate', dict(type=int, default=1000, metavar='KIB', help='KiB per second of each client (default: %(default)s)')),
    ('--share', dict(type=int, default=30, metavar='PERCENT', help='of the files that change during a pull (default: %(default)s)')),
], run)
