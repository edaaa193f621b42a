#!/usr/bin/env python3
"""Large files and many small files served to stock clients: server CPU per GiB and throughput, compared with a stock daemon.

The source should be on a disk, because reads that bypass the page cache are part of what is measured. The destination
(--dest) should be in memory, so that the client's disk is not measured. Rounds alternate between the daemons, and so does
the daemon that goes first.

With --at-once 3, three clients pull the same files at once, each to its own destination. Throughput is the total of all
until the last client is done. A single client of a quiet server on the same host is limited by its own processes; with
several clients, the figures show how much of the host a server leaves to them. The CPU time of the clients has its own
column.

The states are `hot` (all files are in the page cache and locked there), `cold` (none are) and, with --cache, `kept` (like
`hot`, but stillmirror also has this much memory for its own cache, which two pulls have filled).
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
            for name in ('GiB', 'server cpu s per GiB', 'clients cpu s per GiB', 'wall s', 'MiB/s', 'private')}
            | {'exits': ' '.join(sorted({row['exits'] for row in its}))})
    b.tables['rounds'] = rows
    b.table('medians', table)
    b.check('all clients exit 0', all(row['exits'] == '0' for row in rows))
    for here, there in zip(table[::2], table[1::2]):
        what = f'{here["what"]}, {here["cache"]}, {here["clients"]} at once'
        if b.stillmirror:
            b.at_most(f'{what}: server CPU per GiB over stock\'s', there['server cpu s per GiB'] / here['server cpu s per GiB'], 0.5)
            b.at_most(f'{what}: stock\'s throughput over ours', here['MiB/s'] / there['MiB/s'], 1)


def crowd(b, server, what, options, cache, size, folder, clients):
    """Let `clients` clients pull the same files at once. Returns their cost and the seconds until the last one is done."""
    if cache == 'cold':
        bench.drop_caches()
        bench.must([b.args.rsync, '--version'])
    dests = [folder / f'dest-{server.port}-{number}' for number in range(clients)]
    before, clients_before = server.cpu(), children_cpu()
    # Reading the figures takes time in proportion to the mapped pages, on CPUs that the clients need. So sample rarely.
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
            'GiB': gib, 'server cpu s': cpu, 'server cpu s per GiB': cpu / gib, 'clients cpu s per GiB': clients_cpu / gib, 'wall s': wall,
            'MiB/s': gib * bench.GIB / MIB / wall, 'private': memory.growth()}


def together(commands):
    """Run all commands at once until the last one ends. Returns the exit code and the error output of each."""
    running = [subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for argv in commands]
    errors = [client.communicate()[1] for client in running]
    return [(client.returncode, said) for client, said in zip(running, errors)]


def children_cpu():
    """Return the CPU seconds of the processes that were waited for: the clients, not the servers, which still run."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


bench.main(__doc__, [
    ('--large', dict(metavar='DIR', help='a folder of large files (default: generated)')),
    ('--small', dict(metavar='DIR', help='a folder of small files (default: generated)')),
    ('--dest', dict(metavar='DIR', help='where clients write; best in memory')),
    ('--gib', dict(type=int, default=4, help='total size of generated large files (default: %(default)s)')),
    ('--files', dict(type=int, default=100_000, help='number of generated small files (default: %(default)s)')),
    ('--kind', dict(action='append', metavar='PATTERN', help=f'only these: {", ".join(KINDS)}')),
    ('--at-once', dict(action='append', type=int, metavar='CLIENTS', help='number of clients at once; may be repeated (default: 1)')),
    ('--cache', dict(metavar='SIZE', help='also measure the daemon with a cache of this size, such as 6GiB')),
    ('--repeats', dict(type=int, default=3)),
    ('--rsync', dict(metavar='PATH', default='rsync')),
], run)
