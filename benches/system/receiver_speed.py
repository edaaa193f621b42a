#!/usr/bin/env python3
"""First pulls of large files and of many small ones, beside a stock rsync client that pulls from a stock daemon.

The clients take turns, and so does the one that goes first. Each pulls into an empty destination; between two pulls the
destination is removed and the disk is idle. The states are `hot` (the source is in the page cache and locked there) and
`cold` (it is not).

A pull makes its files durable before it moves them into place; rsync leaves them in the page cache. So there are four
rows: both clients as they are, `pull --no-fsync`, and `rsync, then sync`, whose time includes `sync -f` on the
destination. On a slow disk the two durable rows show the disk; with --dest in memory, all rows show the processes.

CPU is that of both ends: the client's processes and the server's. Ratios are made of medians.
"""
import contextlib
import os
import pathlib
import resource

import bench
import trees

MIB = 1 << 20
RSYNC, SYNCED, OURS, UNSYNCED = 'rsync', 'rsync, then sync', 'stillmirror', 'stillmirror --no-fsync'


def run(b):
    sources = {'large': pathlib.Path(b.args.large or b.work / 'large'), 'small': pathlib.Path(b.args.small or b.work / 'small')}
    rows = []
    for kind in b.args.kind or sources:
        source = sources[kind]
        if not source.exists():
            make(b, kind, source)
        files = [os.path.join(source, name) for name in trees.files_below(source)]
        if b.stillmirror:
            b.stillmirror.index(source, b.work / f'{kind}-store')
        for state in b.args.state or ['hot', 'cold']:
            with contextlib.ExitStack() as running:
                if state == 'hot':
                    running.enter_context(bench.held(files))
                clients = clients_of(b, kind, source, running)
                for turn in range(b.args.turns):
                    for who, server, pull in clients[::-1] if turn % 2 else clients:
                        rows.append({'what': kind, 'state': state, 'who': who} | measure(b, state, source, server, pull, turn))
    b.tables['turns'] = rows
    report(b, rows)


def make(b, kind, source):
    if kind == 'large':
        trees.make_large(source, b.args.large_files, b.args.gib * bench.GIB // b.args.large_files)
    else:
        trees.make(source, b.args.files, 8192)


def clients_of(b, kind, source, running):
    """Start the servers. Returns (name, server, pull) of every client; `pull` takes the destination."""
    stock = running.enter_context(b.rsyncd(source))
    rsync = lambda dest: bench.must(['rsync', '-a', f'{stock.url}/', f'{dest}/'])

    def synced(dest):
        rsync(dest)
        bench.must(['sync', '-f', dest])

    clients = [(RSYNC, stock, rsync), (SYNCED, stock, synced)]
    if b.stillmirror:
        ours = running.enter_context(b.stillmirror.serve(source, b.work / f'{kind}-store'))
        pull = lambda *more: lambda dest: b.stillmirror.pull(ours.url, dest / 'tree', dest / 'store', *more)
        clients += [(OURS, ours, pull()), (UNSYNCED, ours, pull('--no-fsync'))]
    return clients


def measure(b, state, source, server, pull, turn):
    dest = pathlib.Path(b.args.dest or b.work) / 'dest'
    bench.must(['rm', '-rf', dest])
    dest.mkdir()
    os.sync()
    if state == 'cold':
        bench.drop_caches()
        bench.must(['rsync', '--version'])
    before, client_before = server.cpu(), children_cpu()
    wall, _ = bench.clock(pull, dest)
    client, sending = children_cpu() - client_before, server.cpu() - before
    if turn == 0:
        pulled = dest / 'tree' if (dest / 'tree').exists() else dest
        # The exact comparison of contents costs more than the pull, so the first turn stands for all.
        b.check(f'{pulled.parent.name}: the same tree', not trees.differences(source, pulled))
    bench.must(['rm', '-rf', dest])
    return {'wall s': wall, 'client cpu s': client, 'server cpu s': sending, 'cpu s': client + sending}


def report(b, rows):
    figures = ('wall s', 'client cpu s', 'server cpu s', 'cpu s')
    table = {}
    for row in rows:
        table.setdefault((row['what'], row['state'], row['who']), []).append(row)
    table = {key: {name: bench.median(row[name] for row in its) for name in figures} for key, its in table.items()}
    shown = []
    for (what, state, who), its in table.items():
        peer = table[what, state, SYNCED if who in (SYNCED, OURS) else RSYNC]
        shown.append({'what': what, 'state': state, 'who': who} | its | {
            'wall over its peer': its['wall s'] / peer['wall s'], 'cpu over its peer': its['cpu s'] / peer['cpu s'],
            'wall over rsync': its['wall s'] / table[what, state, RSYNC]['wall s']})
    b.table('medians', shown)
    for row in shown:
        if row['who'] in (OURS, UNSYNCED):
            limit = {'large': 1, 'small': 0.6}[row['what']]
            peer = 'rsync and sync' if row['who'] == OURS else 'rsync'
            b.at_most(f'{row["what"]}, {row["state"]}, {row["who"]}: wall time over {peer}', row['wall over its peer'], limit)


def children_cpu():
    """Return the CPU seconds of the processes that were waited for: the clients, not the servers, which still run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


bench.main(__doc__, [
    ('--large', dict(metavar='DIR', help='a folder of large files (default: generated)')),
    ('--small', dict(metavar='DIR', help='a folder of small files (default: generated)')),
    ('--dest', dict(metavar='DIR', help='where clients write (default: the scratch directory)')),
    ('--gib', dict(type=int, default=4, help='total size of generated large files (default: %(default)s)')),
    ('--large-files', dict(type=int, default=8, help='number of generated large files (default: %(default)s)')),
    ('--files', dict(type=int, default=100_000, help='number of generated small files (default: %(default)s)')),
    ('--kind', dict(action='append', choices=('large', 'small'), help='only this; may be repeated')),
    ('--state', dict(action='append', choices=('hot', 'cold'), help='only this; may be repeated')),
    ('--turns', dict(type=int, default=3, help='pulls of each client in each state (default: %(default)s)')),
], run)
