#!/usr/bin/env python3
"""Bytes transferred to update an old file to a new one, by rsync, zsync over nginx, and stillmirror, on the same pairs.

For rsync and stillmirror, the old file has the new one's name. No transfer is compressed. zsync's bytes are those that
nginx logged, including the .zsync file. `total` includes the bytes that the client sent.
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
    """Return pairs of NAME-VERSION.tar files: each version of a name with its successor."""
    def order(path):
        name, _, version = path.name.removesuffix('.tar').rpartition('-')
        return name, [int(part) if part.isdigit() else 0 for part in version.split('.')]
    files = sorted(pathlib.Path(folder).glob('*-*.tar'), key=order)
    return [(str(old), str(new)) for old, new in zip(files, files[1:]) if order(old)[0] == order(new)[0]]


def old_copy(work, who, old):
    """Return a destination that contains the old file, with an mtime that differs from the new file's."""
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
    ('--pair', dict(metavar=('OLD', 'NEW'), nargs=2, action='append', help='one pair; may be repeated')),
], run)
