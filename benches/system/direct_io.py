#!/usr/bin/env python3
"""Large files served from a cold disk: page cache growth and server CPU, compared with rsyncd and nginx. Then one file
served to many clients at once.

The page cache is dropped before every transfer, except for one row of rsyncd with cached files, about which nothing is
claimed. Only the CPU of the servers is counted, including their children. The receivers write to --sink (a memory file
system, if memory allows), so that their writes do not disturb the measurement.
"""
import concurrent.futures
import contextlib
import pathlib
import shutil
import tempfile

import bench
import trees

WARM = 'rsyncd, files cached'
DIRECT = 'aio threads; directio 4m; output_buffers 2 1m; sendfile off;'


def run(b):
    source = pathlib.Path(tempfile.mkdtemp(dir=b.args.tree or b.work))
    b.device = bench.device_of(source)
    try:
        files = trees.make_large(source / 'large', b.args.gib, bench.GIB)
        if b.stillmirror:
            b.stillmirror.index(source / 'large', b.work / 'large-store')
        cost_per_gib(b, source / 'large', files)
        shutil.rmtree(source / 'large')
        flight = trees.make_large(source / 'flight', 1, b.args.flight_mib << 20)
        if b.stillmirror:
            b.stillmirror.index(source / 'flight', b.work / 'flight-store')
        single_flight(b, source / 'flight', flight[0])
    finally:
        shutil.rmtree(source)


def servers(b, root, store):
    """Return for each server (name, function that starts it, function that fetches everything to a folder), stillmirror last."""
    def curl(server, dest):
        for path in sorted(root.iterdir()):
            bench.must(['curl', '-sf', '-o', '/dev/null', f'{server.url}/{path.name}'])

    def rsync(server, dest):
        bench.must(['rsync', '-a', '--whole-file', f'{server.url}/', f'{dest}/tree/'])

    def pull(server, dest):
        b.stillmirror.pull(server.url, dest / 'tree', dest / 'store')

    rows = [('rsyncd', lambda: b.rsyncd(root), rsync), ('nginx directio', lambda: b.nginx(root, DIRECT), curl),
            ('nginx sendfile', lambda: b.nginx(root, 'sendfile on;'), curl)]
    if b.stillmirror:
        rows.append(('stillmirror', lambda: b.stillmirror.serve(root, store), pull))
    return rows


def cost_per_gib(b, root, files):
    size = sum(path.stat().st_size for path in files)
    results = {}
    for _ in range(b.args.repeats):
        contenders = servers(b, root, b.work / 'large-store')
        for name, start, fetch in [(WARM, *contenders[0][1:]), *contenders]:
            with start() as server, sink(b, size) as dest:
                bench.drop_caches()
                if name == WARM:
                    bench.warm(files)
                before = server.cpu()
                read = bench.bytes_read(b.device)
                seconds, _ = bench.clock(fetch, server, dest)
                results.setdefault(name, []).append({
                    'cpu s per GiB': (server.cpu() - before) / (size / bench.GIB), 'cached': bench.cached_bytes(files),
                    'read from device': bench.bytes_read(b.device) - read, 'wall s': seconds,
                    'resident': server.memory()['resident']})
    middle = {name: {'server': name} | {key: bench.median([row[key] for row in rows]) for key in rows[0]}
              for name, rows in results.items()}
    b.table(f'{size / bench.GIB:.0f} GiB, medians of {b.args.repeats}', middle.values())
    if ours := middle.get('stillmirror'):
        b.at_most('page cache growth over bytes served, %', 100 * ours['cached'] / size, 1)
        b.at_most("CPU per GiB over rsyncd's", ours['cpu s per GiB'] / middle['rsyncd']['cpu s per GiB'], 0.5)
        b.at_most("CPU per GiB over nginx directio's", ours['cpu s per GiB'] / middle['nginx directio']['cpu s per GiB'], 1)


def single_flight(b, root, file):
    """Let all clients fetch one file at once.

    The device's sectors tell how often the file was read; the server's own count tells whether other processes read too.
    """
    size = file.stat().st_size
    rows = []
    for name, start, fetch in servers(b, root, b.work / 'flight-store'):
        with start() as server, sink(b, size * b.args.clients) as dest:
            folders = [dest / str(number) for number in range(b.args.clients)]
            for folder in folders:
                folder.mkdir()
            bench.drop_caches()
            before, own, cpu = bench.bytes_read(b.device), server.bytes_read_from_disk(), server.cpu()
            with concurrent.futures.ThreadPoolExecutor(b.args.clients) as pool:
                seconds, _ = bench.clock(lambda: list(pool.map(lambda folder: fetch(server, folder), folders)))
            rows.append({'server': name, 'device read over size': (bench.bytes_read(b.device) - before) / size,
                         'own reads over size': (server.bytes_read_from_disk() - own) / size,
                         'cpu s': server.cpu() - cpu, 'wall s': seconds, 'cached': bench.cached_bytes([file]),
                         'sink': 'memory' if dest.is_relative_to(b.args.sink) else 'disk'})
    b.table(f'{b.args.clients} clients at once, the same {size >> 20:,} MiB file', rows)
    if b.stillmirror:
        b.at_most('bytes read from the device over the size of the file', rows[-1]['device read over size'], 1.25)
        b.at_most('bytes read by the daemon itself over the size of the file', rows[-1]['own reads over size'], 1.1)


@contextlib.contextmanager
def sink(b, size):
    """Make a folder for the receivers: in --sink if that leaves a third of the memory free, else with the scratch data."""
    available = int(pathlib.Path('/proc/meminfo').read_text().partition('MemAvailable:')[2].split()[0]) * 1024
    folder = pathlib.Path(tempfile.mkdtemp(dir=b.args.sink if available > size * 1.5 else b.work))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


bench.main(__doc__, [
    ('--tree', dict(metavar='DIR', help='where to make the served files; must be on a block device (default: the scratch directory)')),
    ('--sink', dict(metavar='DIR', default='/dev/shm', help='where the receivers write (default: %(default)s)')),
    ('--gib', dict(type=int, default=4)),
    ('--repeats', dict(type=int, default=3)),
    ('--clients', dict(type=int, default=20)),
    ('--flight-mib', dict(type=int, default=1024)),
], run)
