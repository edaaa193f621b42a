#!/usr/bin/env python3
"""Bytes that an update costs, old file to new file: rsync, zsync over nginx, and stillmirror on the same pairs.

rsync and stillmirror hold the old file under the new one's name. All counts are uncompressed transfers; zsync's are what
nginx logged, the .zsync file included; `total` adds what the client sent.
"""
import os
import pathlib
import shutil

import bench
import trees


def run(b):
    pairs = list(b.args.pair or []) + (pairs_in(b.args.pairs) if b.args.pairs else [])
    for number, (old, new) in enumerate(pairs):
        work = b.work / str(number)
        source = work / 'source'
        source.mkdir(parents=True)
        shutil.copy(new, source / 'file')
        peers = [with_rsync(b, work, source, old), with_zsync(b, work, source, old)]
        ours = with_stillmirror(b, work, source, old) if b.stillmirror else None
        title = f'{os.path.basename(old)} -> {os.path.basename(new)}, {os.path.getsize(new):,} bytes'
        b.table(title, peers + ([ours] if ours else []))
        if ours:
            for what in ('received', 'total'):
                best = min(peer[what] for peer in peers)
                b.check(f'{os.path.basename(new)}: bytes {what} {ours[what]:,}, below the better peer\'s {best:,}', ours[what] < best)
        shutil.rmtree(work)


def pairs_in(folder):
    """NAME-VERSION.tar files: each name's versions in order, each with its successor."""
    def order(path):
        name, _, version = path.name.removesuffix('.tar').rpartition('-')
        return name, [int(part) if part.isdigit() else 0 for part in version.split('.')]
    files = sorted(pathlib.Path(folder).glob('*-*.tar'), key=order)
    return [(str(old), str(new)) for old, new in zip(files, files[1:]) if order(old)[0] == order(new)[0]]


def old_copy(work, who, old):
    """A destination that holds the old file; its mtime says that it is not the new one."""
    dest = work / who
    dest.mkdir()
    shutil.copy(old, dest / 'file')
    os.utime(dest / 'file', (1, 1))
    return dest


def result(who, seconds, source, file, **counts):
    if trees.sha256(file) != trees.sha256(source / 'file'):
        raise SystemExit(f'{who} made a different file')
    return {'who': who, **counts, 'total': counts['received'] + counts['sent'], 'client s': seconds}


def with_rsync(b, work, source, old):
    dest = old_copy(work, 'rsync', old)
    with b.rsyncd(source) as server:
        seconds, out = bench.must(['rsync', '-t', '--no-whole-file', '--no-inplace', '--stats', f'{server.url}/file', f'{dest}/'])
    sent, received = bench.rsync_bytes(out)
    return result('rsync', seconds, source, dest / 'file', received=received, sent=sent, literal=bench.rsync_stat(out, 'Literal data'))


def with_zsync(b, work, source, old):
    dest = work / 'zsync'
    dest.mkdir()
    bench.must(['zsyncmake', '-u', 'file', '-o', source / 'file.zsync', source / 'file'])
    with b.nginx(source) as server:
        seconds, _ = bench.must(['zsync', '-q', '-i', os.path.abspath(old), '-o', dest / 'file', f'{server.url}/file.zsync'], cwd=dest)
    sent = received = control = 0
    for line in server.access_log.read_text().splitlines():
        _, request, answer, what = line.split(' ', 3)
        sent, received = sent + int(request), received + int(answer)
        control += int(answer) if '.zsync' in what else 0
    (source / 'file.zsync').unlink()
    return result('zsync', seconds, source, dest / 'file', received=received, sent=sent, checksums=control)


def with_stillmirror(b, work, source, old):
    dest = old_copy(work, 'stillmirror', old)
    b.stillmirror.index(source, work / 'store')
    with b.stillmirror.serve(source, work / 'store') as server:
        report = b.stillmirror.pull(server.url, dest, work / 'mirror')
    return result('stillmirror', report['wall'], source, dest / 'file', received=report['bytes_received'], sent=report['bytes_sent'],
                  literal=report['bytes_literal'], checksums=report['bytes_checksums'])


bench.main(__doc__, [
    ('--pairs', dict(metavar='DIR', help='a directory of NAME-VERSION.tar files')),
    ('--pair', dict(metavar=('OLD', 'NEW'), nargs=2, action='append', help='one pair; may be given again')),
], run)
