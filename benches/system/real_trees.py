#!/usr/bin/env python3
"""Real trees are pulled, and compared with their source by stock rsync; then changed, indexed, pulled and compared again.

The trees are copied first, and the originals are only read. For comparison, stock rsync pulls the same changes.
"""
import bench
import trees

ADDS = CHANGES = REMOVALS = 500
RENAMES = 100


def run(b):
    for number, tree in enumerate(b.args.tree):
        work = b.work / str(number)
        work.mkdir()
        trees.copy(tree, work / 'source')
        rows = []
        with b.rsyncd(work / 'source') as peer:
            rows.append(pull_with_rsync(peer, work, 'first'))
            if b.stillmirror:
                measure(b, work, rows)
            else:
                change(work / 'source')
            rows.append(pull_with_rsync(peer, work, 'changes'))
        b.table(f'tree {number + 1}: {sum(1 for _ in trees.files_below(work / "source")):,} files', rows)
        judge(b, work, 'peer', 'rsync itself')


def measure(b, work, rows):
    first = b.stillmirror.index(work / 'source', work / 'publisher')
    with b.stillmirror.serve(work / 'source', work / 'publisher') as server:
        pull = server.url, work / 'dest', work / 'mirror'
        rows.append(row('first', first, b.stillmirror.pull(*pull)))
        judge(b, work, 'dest', 'the first pull')
        done = change(work / 'source')
        second = b.stillmirror.index(work / 'source', work / 'publisher')
        rows.append(row('changes', second, b.stillmirror.pull_generation(second['generation'], *pull)))
        judge(b, work, 'dest', f'the pull after {done}')
        verified = b.stillmirror.run('verify', work / 'dest', '--store', work / 'mirror', accept=range(256))
        b.check('verify finds every file in the state of its generation', verified['exit'] == 0)


def change(root):
    """Change the tree: the full numbers of changes if it is large enough, else fewer. Returns a description."""
    publisher = trees.Publisher(root)
    files = len(publisher.names)
    renamed = publisher.rename(min(RENAMES, files // 10))
    removed = publisher.remove(min(REMOVALS, files // 4))
    rewritten = publisher.rewrite(min(CHANGES // 2, files // 6))
    replaced = publisher.replace(min(CHANGES // 2, files // 6))
    added = publisher.add(ADDS)
    return (f'{len(added)} adds, {len(rewritten) + len(replaced)} changes, '
            f'{len(removed)} removals, {len(renamed)} renames')


def judge(b, work, dest, what):
    lines = trees.differences(work / 'source', work / dest)
    b.check(f'rsync -naiHc --delete prints nothing after {what}' + ''.join(f'\n     {line}' for line in lines[:5]), not lines)


def row(what, index, pull):
    return {'who': f'stillmirror, {what}', 'index s': index['seconds'], 'hashed': index['hashed_bytes'], 'pull s': pull['wall'],
            'received': pull['bytes_received'], 'sent': pull['bytes_sent'], 'round trips': pull['round_trips'],
            'linked': pull['files_linked']}


def pull_with_rsync(peer, work, what):
    seconds, out = bench.must(['rsync', '-aH', '--delete', '--stats', f'{peer.url}/', f'{work}/peer/'])
    sent, received = bench.rsync_bytes(out)
    return {'who': f'rsync, {what}', 'pull s': seconds, 'received': received, 'sent': sent}


bench.main(__doc__, [('--tree', dict(metavar='DIR', action='append', required=True, help='a tree; may be repeated'))], run)
