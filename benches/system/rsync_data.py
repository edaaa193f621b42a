#!/usr/bin/env python3
"""Large files and many small ones to stock clients: server CPU per GiB and throughput, beside a stock daemon.

The source should lie on a disk (reads past the page cache are part of the matter), the destination (--dest) in
memory, so that the client's disk is not what is measured. Rounds alternate between the daemons, and so does which of them goes first.

With --at-once 3, three clients pull the same side by side, each to a place of its own; throughput is that of all, until the last is
through. One client of a quiet server on the same host is bound by its own processes; what a server leaves of the host to its
clients shows when they are several. How busy the clients were is a column of its own.

States: `hot`, all files in the page cache, and held there; `cold`, none; with --cache also `kept`, as `hot`, where stillmirror has
that much memory of its own too, after two pulls that fill it.
"""
import contextlib
import os
import pathlib
import resource
import subprocess

import bench
import rsync_peers as peers
import trees

MIB = 1 << 20
KINDS = {'large': ['-a'], 'large, -z': ['-az', '--compress-choice=zlib'], 'small': ['-a'], 'small, -c': ['-ac']}


def run(b):
    sources = {'large': pathlib.Path(b.args.large or b.work / 'large'), 'small': pathlib.Path(b.args.small or b.work / 'small')}
    if not sources['large'].exists():
        trees.make_large(sources['large'], b.args.gib * 4, 256 * MIB)
    if not sources['small'].exists():
        trees.make(sources['small'], b.args.files, 8192)
    folder = pathlib.Path(b.args.dest or b.work)
    for source in sources.values():
        peers.index(b, source, b.work / f'{source.name}-store')
    rows = []
    for what, options in KINDS.items():
        if b.args.kind and not peers.fits(what, b.args.kind):
            continue
        source = sources[what.split(',')[0]]
        files = [os.path.join(source, name) for name in trees.files_below(source)]
        size = sum(os.stat(file).st_size for file in files)
        for cache in ('hot', 'cold', *(['kept'] if b.args.cache else [])):
            given = {'daemon': f'cache = "{b.args.cache}"'} if cache == 'kept' else {}
            state = contextlib.nullcontext() if cache == 'cold' else bench.held(files)
            with peers.stock(b, source) as stock, peers.second(b, source, b.work / f'{source.name}-store', **given) as judged, state:
                measure = lambda server, clients: crowd(b, server, what, options, cache, size, folder, clients)
                for _ in range(2 if given else 0):
                    measure(judged, 1)
                rows += [measure(server, clients) for clients in b.args.at_once or [1] for turn in range(b.args.repeats)
                         for server in ((stock, judged), (judged, stock))[turn % 2]]
    names = ('what', 'cache', 'clients', 'daemon')
    table = []
    for key in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        its = [row for row in rows if tuple(row[name] for name in names) == key]
        table.append(dict(zip(names, key)) | {
            name: bench.median(row[name] for row in its)
            for name in ('GiB', 'server cpu s a GiB', 'clients cpu s a GiB', 'wall s', 'MiB/s', 'private')}
            | {'exits': ' '.join(sorted({row['exits'] for row in its}))})
    b.tables['rounds'] = rows
    b.table('medians', table)
    b.check('all clients exit 0', all(row['exits'] == '0' for row in rows))
    for here, there in zip(table[::2], table[1::2]):
        what = f'{here["what"]}, {here["cache"]}, {here["clients"]} at once'
        if b.stillmirror:
            b.at_most(f'{what}: server CPU per GiB over stock\'s', there['server cpu s a GiB'] / here['server cpu s a GiB'], 0.5)
            b.at_most(f'{what}: stock\'s throughput over ours', here['MiB/s'] / there['MiB/s'], 1)


def crowd(b, server, what, options, cache, size, folder, clients):
    """So many clients that pull the same at once: what they cost, and how long it is until the last is through."""
    if cache == 'cold':
        bench.drop_caches()
        bench.must([b.args.rsync, '--version'])
    dests = [folder / f'dest-{server.port}-{number}' for number in range(clients)]
    before, clients_before = server.cpu(), children_cpu()
    # To look at mapped memory takes time by its pages, on the processors that the clients need.
    with bench.Sampler(server, interval=1) as memory:
        wall, done = bench.clock(together, [[b.args.rsync, *options, f'{server.url}/', f'{dest}/'] for dest in dests])
    cpu, clients_cpu = server.cpu() - before, children_cpu() - clients_before
    for _, errors in done:
        print(errors.decode(errors='replace')[-500:], end='')
    for dest in dests:
        peers.empty(dest)
    print(f'{what}, {cache}, {clients} at once, {server.name}: {wall:.2f} s, server {cpu:.2f} s, clients {clients_cpu:.2f} s', flush=True)
    gib = size * clients / bench.GIB
    return {'what': what, 'cache': cache, 'clients': clients, 'daemon': server.name, 'exits': ' '.join(sorted({str(code) for code, _ in done})),
            'GiB': gib, 'server cpu s': cpu, 'server cpu s a GiB': cpu / gib, 'clients cpu s a GiB': clients_cpu / gib, 'wall s': wall,
            'MiB/s': gib * bench.GIB / MIB / wall, 'private': memory.beyond()}


def together(commands):
    """Run all at once, to the end of the last: the code and the complaints of each."""
    running = [subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for argv in commands]
    errors = [client.communicate()[1] for client in running]
    return [(client.returncode, said) for client, said in zip(running, errors)]


def children_cpu():
    """Of the processes that have been waited for: the clients, not the servers, which go on running."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


bench.main(__doc__, [
    ('--large', dict(metavar='DIR', help='a folder of large files (default: made)')),
    ('--small', dict(metavar='DIR', help='a folder of small files (default: made)')),
    ('--dest', dict(metavar='DIR', help='where clients write; in memory, best')),
    ('--gib', dict(type=int, default=4, help='of large files, if they are made (default: %(default)s)')),
    ('--files', dict(type=int, default=100_000, help='small ones, if they are made (default: %(default)s)')),
    ('--kind', dict(action='append', metavar='PATTERN', help=f'only these: {", ".join(KINDS)}')),
    ('--at-once', dict(action='append', type=int, metavar='CLIENTS', help='so many clients side by side; may be given again (default: 1)')),
    ('--cache', dict(metavar='SIZE', help='measure this much memory of its own for the daemon too, such as 6GiB')),
    ('--repeats', dict(type=int, default=3)),
    ('--rsync', dict(metavar='PATH', default='rsync')),
], run)
