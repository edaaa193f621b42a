#!/usr/bin/env python3
"""Large files and many small ones to stock clients: server CPU per GiB and throughput, beside a stock daemon.

The source should lie on a disk (reads past the page cache are part of the matter), the destination (--dest) in
memory, so that the client's disk is not what is measured. Rounds alternate between the daemons.

States: `hot`, all files in the page cache, and held there; `cold`, none; with --cache also `kept`, as `hot`, where stillmirror has
that much memory of its own too, after two pulls that fill it.
"""
import contextlib
import os
import pathlib

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
                measure = lambda server: one(b, server, what, options, cache, size, folder / f'dest-{server.port}')
                for _ in range(2 if given else 0):
                    measure(judged)
                rows += [measure(server) for _ in range(b.args.repeats) for server in (stock, judged)]
    table = []
    for key in dict.fromkeys((row['what'], row['cache'], row['daemon']) for row in rows):
        its = [row for row in rows if (row['what'], row['cache'], row['daemon']) == key]
        table.append(dict(zip(('what', 'cache', 'daemon'), key)) | {
            name: bench.median(row[name] for row in its) for name in ('GiB', 'server cpu s a GiB', 'wall s', 'MiB/s', 'private')}
            | {'exits': ' '.join(sorted({str(row['exit']) for row in its}))})
    b.tables['rounds'] = rows
    b.table('medians', table)
    b.check('all clients exit 0', all(row['exit'] == 0 for row in rows))
    for here, there in zip(table[::2], table[1::2]):
        what = f'{here["what"]}, {here["cache"]}'
        if b.stillmirror:
            b.at_most(f'{what}: server CPU per GiB over stock\'s', there['server cpu s a GiB'] / here['server cpu s a GiB'], 0.5)
            b.at_most(f'{what}: stock\'s throughput over ours', here['MiB/s'] / there['MiB/s'], 1)


def one(b, server, what, options, cache, size, dest):
    if cache == 'cold':
        bench.drop_caches()
        bench.must([b.args.rsync, '--version'])
    before = server.cpu()
    with bench.Sampler(server) as memory:
        wall, done = bench.timed([b.args.rsync, *options, f'{server.url}/', f'{dest}/'], capture_output=True)
    cpu = server.cpu() - before
    if done.returncode:
        print(done.stderr.decode(errors='replace')[-500:])
    peers.empty(dest)
    print(f'{what}, {cache}, {server.name}: {wall:.2f} s, server {cpu:.2f} s', flush=True)
    return {'what': what, 'cache': cache, 'daemon': server.name, 'exit': done.returncode, 'GiB': size / bench.GIB, 'server cpu s': cpu,
            'server cpu s a GiB': cpu * bench.GIB / size, 'wall s': wall, 'MiB/s': size / MIB / wall, 'private': memory.beyond()}


bench.main(__doc__, [
    ('--large', dict(metavar='DIR', help='a folder of large files (default: made)')),
    ('--small', dict(metavar='DIR', help='a folder of small files (default: made)')),
    ('--dest', dict(metavar='DIR', help='where clients write; in memory, best')),
    ('--gib', dict(type=int, default=4, help='of large files, if they are made (default: %(default)s)')),
    ('--files', dict(type=int, default=100_000, help='small ones, if they are made (default: %(default)s)')),
    ('--kind', dict(action='append', metavar='PATTERN', help=f'only these: {", ".join(KINDS)}')),
    ('--cache', dict(metavar='SIZE', help='measure this much memory of its own for the daemon too, such as 6GiB')),
    ('--repeats', dict(type=int, default=3)),
    ('--rsync', dict(metavar='PATH', default='rsync')),
], run)
