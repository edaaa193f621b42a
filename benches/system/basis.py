#!/usr/bin/env python3
"""Bytes of updates in which most contents are in the local tree already, beside `rsync --fuzzy --fuzzy`, with and without -z.

Three updates: 1,000 renamed files, a moved directory, and new versions of programs that are unpacked in directories with the
version in their name. The contents of the first two are random; those of the third are text, which -z compresses.
"""
import random
import shutil

import bench
import trees

MIB = 1 << 20
FLAGS = {'rsync --fuzzy --fuzzy': [], 'rsync --fuzzy --fuzzy -z': ['-z']}


def run(b):
    rows = []
    for name, make, update in (('1,000 renames', renames, rename), ('a moved directory', moved, move), ('60 new versions', versions, bump)):
        source = b.work / 'source'
        make(b, source)
        rows += compare(b, name, source, lambda: update(b, source))
        shutil.rmtree(source)
    b.table('bytes of updates', rows)
    if b.stillmirror:
        for name in dict.fromkeys(row['update'] for row in rows):
            ours, *peers = sorted((row for row in rows if row['update'] == name), key=lambda row: row['who'] != 'stillmirror')
            b.at_most(f'{name}: bytes sent and received', ours['total'], min(peer['total'] for peer in peers))


def compare(b, name, source, update):
    peers = {who: b.work / f'peer{number}' for number, who in enumerate(FLAGS)}
    dest, kept, store = b.work / 'dest', b.work / 'dest.store', b.work / 'store'
    rows = []
    for peer in peers.values():
        trees.copy(source, peer)
    if b.stillmirror:
        b.stillmirror.index(source, store)
        with b.stillmirror.serve(source, store) as server:
            b.stillmirror.pull(server.url, dest, kept)
    update()
    with b.rsyncd(source) as server:
        for who, peer in peers.items():
            argv = ['rsync', '-aH', '--delete-after', '--fuzzy', '--fuzzy', *FLAGS[who], '--stats', f'{server.url}/', f'{peer}/']
            seconds, out = bench.must(argv)
            sent, received = bench.rsync_bytes(out)
            rows.append({'update': name, 'who': who, 'sent': sent, 'received': received, 'total': sent + received, 'client s': seconds})
    if b.stillmirror:
        b.stillmirror.index(source, store)
        with b.stillmirror.serve(source, store) as server:
            report = b.stillmirror.pull(server.url, dest, kept, '--max-delete', '100%')
        lines = trees.differences(source, dest)
        b.check(f'{name}: the tree is that of the sender: {lines[:3]}', not lines)
        sent, received = report['bytes_sent'], report['bytes_received']
        rows.append({'update': name, 'who': 'stillmirror', 'sent': sent, 'received': received, 'total': sent + received,
                     'client s': report['wall'], 'literal': report['bytes_literal'], 'checksums': report['bytes_checksums'],
                     'list': report['bytes_list'], 'reused': report['files_reused']})
    for path in (*peers.values(), dest, kept, store):
        shutil.rmtree(path, ignore_errors=True)
    return rows


def renames(b, source):
    trees.make(source, 2000, (1000, 100_000))


def rename(b, source):
    trees.Publisher(source).rename(1000)


def moved(b, source):
    trees.make(source / 'archive' / 'old', b.args.moved // 2, (1, 4 * MIB - 1))
    trees.make(source / 'other', 100, 10_000)


def move(b, source):
    (source / 'archive' / 'old').rename(source / 'archive' / 'new')


def versions(b, source):
    for program in range(60):
        write_version(source, program, 0)
        shutil.copytree(source / f'program{program}' / 'tool-1.0', source / f'program{program}' / 'tool-1.1')


def bump(b, source):
    """Unpack the next version of each program. The one before the last goes."""
    for program in range(60):
        folder = source / f'program{program}'
        shutil.rmtree(folder / 'tool-1.0')
        write_version(source, program, 2)


def write_version(source, program, version):
    """Write a program of some 60 text files. A version changes lines in a third of them, and adds two."""
    rng = random.Random(program)
    words = [''.join(rng.choices('abcdefghijklmnopqrstuvwxyz_', k=rng.randint(2, 10))) for _ in range(800)]
    for number in range(60 + version):
        path = source / f'program{program}' / f'tool-1.{version}' / ('src', 'doc', 'lib/common')[number % 3] / f'part{number}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        own = random.Random(f'{program} {number}')
        lines = [' '.join(own.choices(words, k=own.randint(2, 14))) for _ in range(int(own.lognormvariate(5, 1.2)))]
        if version and number % 3 == 0 and lines:
            for _ in range(1 + len(lines) // 100):
                lines[own.randrange(len(lines))] = f'changed in 1.{version}: {own.random()}'
        trees.write(path, '\n'.join(lines).encode())


bench.main(__doc__, [
    ('--moved', dict(type=int, default=256, metavar='MIB', help='size of the moved directory in MiB (default: %(default)s; the claim of the design is about 2048)')),
], run)
