#!/usr/bin/env python3
"""The cost of stock clients on a very large tree, for a stock daemon and for stillmirror: hot, cold, and many clients at once.

The clients list the tree, or pull and find nothing new. The pulls need a copy of the tree, which is made unless --dest
names one.
"""
import collections
import os
import pathlib
import re
import statistics
import subprocess
import time

import bench
import rsync_peers as peers

MIB = 1 << 20
FILTERS = ['--exclude=Packages*', '--exclude=Sources*', '--exclude=Release*', '--exclude=InRelease', '--include=i18n/by-hash', '--exclude=i18n/*', '--exclude=dep11/*',
           '--exclude=installer-*/current', '--exclude=ls-lR*', '--include=*.diff/', '--include=by-hash/', '--exclude=*.diff/Index', '--exclude=Contents*',
           '--exclude=Archive-Update-in-Progress-*', '--exclude=/project/trace/*', '--exclude=*_i386.deb', '--exclude=binary-i386/', '--exclude=*7.bin', '--exclude=/indices/',
           '--filter=-s *.tmp']
LIST, NO_OP = ['-aH', '--list-only', '{M}/'], ['-rlptH', '--delete', '--no-inc-recursive', '{M}/', '{D}/']
CROWD = ['-rlptH', '--delete', '{M}/', '{D}/']
# Each kind of work: the client's words, the options and the rule of a session by hand, and the limits on the server's CPU
# seconds and on the session's private bytes.
WORK = {
    'list': (LIST, '-lHogDtpre.iLsfxCIvu', b'', 0.1, MIB),
    'no-op': (NO_OP, '-lHtpre.LsfxCIvu', b'', 0.1, MIB),
    'no-op, filtered': ([*NO_OP[:3], *FILTERS, *NO_OP[3:]], '-lHtpre.LsfxCIvu', b'\x0b\0\0\0- Packages*', 0.5, 5 * MIB),
}
# System calls that access a tree.
LOOKS = 'stat,lstat,fstat,newfstatat,statx,getdents,getdents64,access,faccessat,faccessat2,readlink,readlinkat,open,openat,openat2,llistxattr,lgetxattr,getxattr'


def run(b):
    tree = os.path.abspath(b.args.tree)
    store = pathlib.Path(b.args.store or b.work / 'store')
    dest = pathlib.Path(b.args.dest or b.work / 'dest')
    peers.index(b, tree, store)
    if not dest.exists():
        peers.clone(tree, dest)
    client = b.args.rsync
    b.table('client', [{'client': os.path.basename(client), 'version (protocol)': peers.version(client)}])
    daemons = [('stock', lambda **options: peers.stock(b, tree, **options))]
    if b.stillmirror:
        daemons.append(('stillmirror', lambda **options: peers.passive(b, tree, store, **options)))
    daemons = [daemon for daemon in daemons if not b.args.daemon or daemon[0] in b.args.daemon]
    parts = b.args.part or ['cost', 'calls', 'crowd']
    if 'cost' in parts:
        cost(b, daemons, client, dest)
    if 'calls' in parts:
        calls(b, daemons, client, dest, tree)
    if 'crowd' in parts:
        crowd(b, daemons, client, dest)


def cost(b, daemons, client, dest):
    """One client at a time."""
    rows = []
    for cache in ('hot', 'cold'):
        for name, start in daemons:
            with start() as server:
                for what, (words, *_) in WORK.items():
                    if b.args.only and what not in b.args.only:
                        continue
                    if cache == 'hot':
                        # Pull twice first. By then the server has prepared what it prepares for later clients of this kind.
                        rows += [measure(server, client, words, dest) | {'daemon': name, 'work': what, 'cache': 'first'}]
                        measure(server, client, words, dest)
                    runs = [measure(server, client, words, dest, cold=cache == 'cold') for _ in range(b.args.repeats if cache == 'hot' or name != 'stock' else 1)]
                    rows += [one | {'daemon': name, 'work': what, 'cache': cache} for one in runs]
                    rows[-1] |= first_bytes(b, server, what, cache)
    order = ('daemon', 'work', 'cache', 'exit', 'server cpu s', 'client wall s', 'private', 'first byte s', 'from connect s')
    b.table('one client', [{key: row[key] for key in order if key in row} for row in rows])
    b.check('all clients exit 0', all(row['exit'] == 0 for row in rows))
    for what, (_, _, _, cpu, memory) in WORK.items():
        for cache in ('hot', 'cold'):
            its = [row for row in rows if row['daemon'] == 'stillmirror' and row['work'] == what and row['cache'] == cache]
            if its:
                used = [row['server cpu s'] for row in its]
                b.at_most(f'{what}, {cache}: server CPU, the median of {len(its)} (the worst {max(used):.3f})', statistics.median(used), cpu)
                b.at_most(f'{what}, {cache}: private memory of a session', max(row['private'] for row in its), memory)
                b.at_most(f'{what}, {cache}: seconds to the first byte of the list', max(row['first byte s'] for row in its if 'first byte s' in row), 0.05)


def measure(server, client, words, dest, cold=False):
    if cold:
        bench.drop_caches()
        bench.must([client, '--version'])
    before = server.cpu()
    with bench.Sampler(server) as memory:
        argv = [client, *(peers.fill(word, {'{M}': server.url, '{D}': str(dest)}) for word in words)]
        wall, done = bench.timed(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        print(done.stderr.decode(errors='replace')[-500:])
    found = {'exit': done.returncode, 'server cpu s': server.cpu() - before, 'client wall s': wall, 'private': memory.growth()}
    print(f'{server.name}: {" ".join(words[:4])}: {found}', flush=True)
    return found


def first_bytes(b, server, what, cache):
    """Return the longest times to the first byte of the list over some sessions."""
    _, options, rule, _, _ = WORK[what]
    times = []
    for _ in range(b.args.repeats if cache == 'hot' else 1):
        if cache == 'cold':
            bench.drop_caches()
        with peers.Session(server, options) as session:
            session.handshake(rule)
            times.append(session.first_list_byte())
    return {'first byte s': max(time[0] for time in times), 'from connect s': max(time[1] for time in times)}


def calls(b, daemons, client, dest, tree):
    """Count the system calls that access the tree with strace, including those of rsyncd's children."""
    rows = []
    for name, start in daemons:
        trace = b.work / f'calls-{name}'
        with start(prefix=['strace', '-f', '-qq', '-y', '-o', str(trace), '-e', f'trace={LOOKS}']) as server:
            for what in ('list', 'no-op'):
                measure(server, client, WORK[what][0], dest)
        found = collections.Counter()
        for line in open(trace, errors='replace'):
            if call := re.match(r'\d+ +(\w+)\(', line):
                # rsyncd uses relative paths, because its working directory is in the tree. An empty path refers to an open file.
                ours = f'{tree}/' in line or re.match(r'[^"]*"[^/"]', line)
                if ours and name != 'stock' and found.total() < 5:
                    print('   ', line.rstrip()[:200])
                found[call[1] if ours else 'elsewhere'] += 1
        rows.append({'daemon': name} | dict(found.most_common(9)))
    b.table('system calls of a listing and a no-op pull', rows)
    for row in rows:
        if row['daemon'] == 'stillmirror':
            on_tree = {call: count for call, count in row.items() if call not in ('daemon', 'elsewhere')}
            b.check(f'no system call accesses the tree: {on_tree or "none"}', not on_tree)


def crowd(b, daemons, client, dest):
    """Run many clients at once, none of which finds anything new."""
    rows = []
    for name, start in daemons:
        count = b.args.stock_clients if name == 'stock' else b.args.clients
        with start() as server:
            if name != 'stock':
                measure(server, client, CROWD, dest)
                measure(server, client, CROWD, dest)
            before, begin = server.cpu(), time.monotonic()
            with bench.Sampler(server, 0.5) as memory:
                argv = [client, *(peers.fill(word, {'{M}': server.url, '{D}': str(dest)}) for word in CROWD)]
                clients = [subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(count)]
                codes = collections.Counter(one.wait() for one in clients)
            rows.append({'daemon': name, 'clients': count, 'exits': ' '.join(f'{code}: {number}' for code, number in sorted(codes.items())),
                         'wall s': time.monotonic() - begin, 'server cpu s': server.cpu() - before, 'private': memory.growth(),
                         'peak processes': memory.processes})
    for row in rows:
        row |= {'cpu s per client': row['server cpu s'] / row['clients'], 'private per client': row['private'] // row['clients']}
    b.table('many clients at once', rows)
    if len(rows) == 2:
        b.check(f'all {rows[1]["clients"]} clients exit 0', rows[1]['exits'] == f'0: {rows[1]["clients"]}')
        b.at_most(f'server CPU of {rows[1]["clients"]} clients over {rows[0]["clients"]} of stock', rows[1]['server cpu s'] / rows[0]['server cpu s'], 1)
        b.at_most(f'private memory of {rows[1]["clients"]} clients over {rows[0]["clients"]} of stock', rows[1]['private'] / rows[0]['private'], 1)


bench.main(__doc__, [
    ('--tree', dict(metavar='DIR', required=True)),
    ('--store', dict(metavar='DIR', help='its store, if it is indexed already')),
    ('--dest', dict(metavar='DIR', help='an exact copy of the tree')),
    ('--rsync', dict(metavar='PATH', default='rsync', help='the stock client')),
    ('--part', dict(action='append', choices=['cost', 'calls', 'crowd'], help='only this part; may be repeated')),
    ('--only', dict(action='append', choices=list(WORK), help='only the cost of this work; may be repeated')),
    ('--daemon', dict(action='append', choices=['stock', 'stillmirror'], help='only this daemon; may be repeated')),
    ('--repeats', dict(type=int, default=3)),
    ('--clients', dict(type=int, default=200, help='clients of stillmirror at once (default: %(default)s)')),
    ('--stock-clients', dict(type=int, default=20, help='clients of the stock daemon at once (default: %(default)s)')),
], run)
