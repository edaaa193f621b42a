#!/usr/bin/env python3
"""The cost of a first index, an unchanged reindex, an open daemon and a small update on a very large tree.

A few files of the tree get one more byte; their content and mtime are restored at the end.
"""
import contextlib
import os
import pathlib

import bench
import trees

CHANGED = 100
MIB = 1 << 20


def run(b):
    tree = os.path.abspath(b.args.tree)
    walks = [trees.find_seconds(tree)]
    if not b.stillmirror:
        walks += [trees.find_seconds(tree) for _ in range(b.args.repeats - 1)]
        b.table('walk', [{'who': 'find -printf', 'median s': bench.median(walks), 'min s': min(walks)}])
        return
    store = b.work / 'store'
    first = b.stillmirror.index(tree, store)
    files = first['files']
    b.table('first index', [{'files': files, 'wall s': first['wall'], 'generation s': first['seconds'], 'hashed': first['hashed_bytes']}])
    unchanged_reindex(b, tree, store)
    index_size(b, store, files)
    open_daemon(b, tree, store)
    small_update(b, tree, store)


def unchanged_reindex(b, tree, store):
    walks, indexes = [], []
    for _ in range(b.args.repeats):
        walks.append(trees.find_seconds(tree))
        report = b.stillmirror.index(tree, store)
        indexes.append(report['wall'])
        b.check('an unchanged reindex reads no file', report['hashed_bytes'] == 0)
    b.table('unchanged tree, alternating', [
        {'who': 'find -printf', 'median s': bench.median(walks), 'min s': min(walks)},
        {'who': 'stillmirror index', 'median s': bench.median(indexes), 'min s': min(indexes)}])
    b.at_most('unchanged reindex over find (medians)', bench.median(indexes) / bench.median(walks), 1.5)


def index_size(b, store, files):
    newest = max((store / 'generations').iterdir(), key=lambda path: (len(path.name), path.name))
    sizes = {path.name: path.stat().st_size for path in sorted(newest.iterdir())}
    if (store / 'sums').exists():
        sizes['sums'] = bench.disk_usage(store / 'sums')
    b.table('index', [{'part': part, 'bytes': size, 'bytes per file': size / files} for part, size in sizes.items()])


def open_daemon(b, tree, store):
    """Compare with a daemon that has an empty repository. The first answer counts too, in case files are mapped late."""
    empty, empty_store = b.work / 'empty', b.work / 'empty-store'
    empty.mkdir()
    b.stillmirror.index(empty, empty_store)
    rows = {}
    for who, root, its_store in (('empty', empty, empty_store), ('full', tree, store), ('full, cold cache', tree, store)):
        if 'cold' in who:
            bench.drop_caches()
            bench.must([b.stillmirror.binary, '--version'])
        with b.stillmirror.serve(root, its_store) as server:
            seconds, _ = bench.must(b.stillmirror.argv('list', server.url))
            rows[who] = {'daemon': who, 'listening s': server.seconds_to_listen, 'first answer s': seconds} | server.memory()
    b.table('daemon', rows.values())
    for who in ('full', 'full, cold cache'):
        b.at_most(f'seconds to open the index ({who}), beyond an empty daemon',
                  sum(rows[who][key] - rows['empty'][key] for key in ('listening s', 'first answer s')), 0.5)
    b.at_most('private memory beyond an empty daemon, MiB',
              (rows['full']['private_dirty'] - rows['empty']['private_dirty']) / MIB, 16)


def small_update(b, tree, store):
    rows = []
    with b.stillmirror.serve(tree, store) as server, contextlib.ExitStack() as undo:
        pull = server.url, b.work / 'dest', b.work / 'mirror'
        rows.append(row('first pull', b.stillmirror.pull(*pull)))
        quiet = min((b.stillmirror.pull(*pull, '--check', 'none') for _ in range(b.args.repeats)), key=lambda report: report['wall'])
        rows.append(row('no-op --check none', quiet))
        rows.append(row('no-op --check stat', b.stillmirror.pull(*pull)))
        named = []
        for _ in range(b.args.repeats):
            names = lengthen(tree, undo)
            named.append(b.stillmirror.index(tree, store, '--changed-from', '-', input='\n'.join(names + ['']).encode()))
            b.check(f'--changed-from finds {CHANGED} changes', named[-1]['changed'] == CHANGED)
            after = b.stillmirror.pull_generation(named[-1]['generation'], *pull)
        rows.append(row(f'pull of {CHANGED} changes', after))
    b.table('pulls', rows)
    walls = [report['wall'] for report in named]
    b.table(f'index --changed-from {CHANGED} paths', [{'median s': bench.median(walls), 'min s': min(walls), 'max s': max(walls)}])
    b.at_most(f'seconds of index --changed-from {CHANGED} paths, the slowest of {len(walls)}', max(walls), 1)
    b.at_most('no-op: round trips, including the handshake', quiet['round_trips'], 2)
    b.at_most('no-op: bytes received', quiet['bytes_received'], 1023)
    b.at_most('no-op: bytes sent', quiet['bytes_sent'], 1023)
    b.at_most('no-op: wall seconds of the whole process', quiet['wall'], 0.1)
    b.at_most(f'bytes_list after {CHANGED} changes', after['bytes_list'], 65536)


def lengthen(tree, undo):
    """Append one byte to every n-th file. `undo` restores content and mtime."""
    names = sorted(trees.files_below(tree))
    chosen = names[::len(names) // CHANGED][:CHANGED]
    for name in chosen:
        path = pathlib.Path(tree, name)
        before = path.stat()
        undo.callback(os.utime, path, ns=(before.st_atime_ns, before.st_mtime_ns))
        undo.callback(os.truncate, path, before.st_size)
        with open(path, 'ab') as out:
            out.write(b'x')
    return chosen


def row(what, pull):
    keys = ('wall', 'round_trips', 'bytes_list', 'bytes_received', 'bytes_sent')
    return {'what': what} | {key: pull[key] for key in keys}


bench.main(__doc__, [
    ('--tree', dict(metavar='DIR', required=True)),
    ('--repeats', dict(type=int, default=5, help='repeats of each alternating measurement (default: %(default)s)')),
], run)
