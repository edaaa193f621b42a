#!/usr/bin/env python3
"""Every option of a stock client at every protocol version, with a stock daemon and with stillmirror.

Each case pulls twice: into an empty directory, and over an older and damaged copy of the tree. The exit code, the output,
the kinds of error messages and the trees must be the same. After the cases come mixes of random options, each mix at one
protocol version. Without --stillmirror, the comparison itself is tested: a second stock daemon must show no differences,
and then one difference for each defect that is put into its tree.
"""
import concurrent.futures
import dataclasses
import os
import pathlib
import random
import shutil

import bench
import rsync_peers as peers

ALL = ['{M}/', '{D}/']


@dataclasses.dataclass
class Case:
    name: str
    words: list
    env: dict | None = None
    # The words for the stock daemon, if it cannot serve the case itself, and the protocol from which they are used.
    reference: list | None = None
    reference_from: int = 30
    quick: bool = False
    # Whether the old copy has no hard links. A client that writes in place to linked files leaves the last content written,
    # and the order is not fixed.
    unlinked: bool = False
    # Whether the output is compared. That of --progress depends on the client's clock.
    talks: bool = True
    stages: tuple = ('fresh', 'update')
    protocols: tuple = tuple(peers.PROTOCOLS)


def case(name, options, *where, **more):
    return Case(name, options.split() + list(where or ALL), **more)


def cases(files):
    """Yield all cases. `files` is the folder with the lists that --files-from and the filters name."""
    quick = {'quick': True}
    yield case('a', '-a', **quick)
    yield case('aH', '-aH', **quick)
    yield case('rltH', '-rltH')
    yield case('rlptHS', '-rlptHS')
    yield case('aHc', '-aHc', **quick)
    for choice in ('zstd', 'lz4', 'zlibx', 'zlib', 'none'):
        yield case(f'z-{choice}', f'-az --compress-choice={choice}', quick=choice in ('lz4', 'zlib'))
    yield case('z', '-az', **quick)
    yield case('zz-new', '-a --new-compress')
    yield case('z-old', '-a --old-compress')
    yield case('z-level', '-az --compress-level=9 --skip-compress=gz/bz2')
    yield case('z-0', '-az --compress-level=0', **quick)
    for choice in ('zstd', 'lz4', 'zlibx', 'zlib'):
        yield case(f'z-0-{choice}', f'-az --compress-choice={choice} --compress-level=0')
    yield case('z-below-0', '-az --compress-level=-1')
    yield case('z-beyond', '-az --compress-level=99')
    for choice in ('xxh128', 'xxh3', 'xxh64', 'xxhash', 'md5', 'md4', 'sha1'):
        yield case(f'cc-{choice}', f'-ac --checksum-choice={choice}', quick=choice in ('md4', 'sha1'))
        yield case(f'cc-a-{choice}', f'-a --checksum-choice={choice}')
    yield case('cc-none', '-a --checksum-choice=none')
    yield case('cc-pair', '-ac --checksum-choice=md4,md5')
    yield case('cc-seed', '-ac --checksum-seed=4711')
    yield case('no-inc', '-aH --no-inc-recursive', **quick)
    for when in ('', '-before', '-during', '-delay', '-after', '-excluded'):
        yield case(f'delete{when}', f'-a --delete{when}', quick=when in ('', '-after'))
    yield case('delay-updates', '-a --delay-updates', **quick)
    yield case('delay-updates-delete', '-aH --delay-updates --delete-delay')
    yield case('max-delete', '-a --delete --max-delete=2')
    yield case('force-delete-ignore-errors', '-a --delete --force --ignore-errors')
    yield case('files-from', f'-a --files-from={files}/names', **quick)
    yield case('files-from-r', f'-ar --files-from={files}/names', **quick)
    yield case('files-from-0', f'-a --from0 --files-from={files}/names0')
    yield case('files-from-no-R', f'-a --no-relative --files-from={files}/names')
    yield case('files-from-no-implied', f'-a --no-implied-dirs --files-from={files}/names')
    yield case('files-from-missing', f'-a --files-from={files}/missing')
    yield case('files-from-ignore-missing', f'-a --ignore-missing-args --files-from={files}/missing')
    yield case('files-from-delete-missing', f'-a --delete-missing-args --files-from={files}/missing')
    yield case('files-from-comments', f'-a --files-from={files}/comments')
    yield case('files-from-delete', f'-ar --delete --files-from={files}/names')
    yield case('files-from-server', '-a --files-from=:names-on-server')
    # When it sends the files, stock 3.5.0 without chroot looks for the names at the module's root.
    yield case('files-from-sub', f'-ar --files-from={files}/below-sizes', '{M}/sizes/', '{D}/',
               reference=['-ar', f'--files-from={files}/below-root', *ALL], reference_from=27)
    yield case('files-from-Hc', f'-aHc --files-from={files}/names')
    yield case('files-from-n', f'-ani --files-from={files}/names')
    yield case('R', '-aR', '{M}/links/a/b', '{D}/', **quick)
    yield case('R-dot', '-aR', '{M}/links/./a/b/', '{D}/')
    yield case('R-no-implied', '-aR --no-implied-dirs', '{M}/links/a/b', '{D}/')
    yield case('R-two', '-aHR --delete', '{M}/links/a/b', '{M}/sizes/./16384', '{D}/')
    yield case('R-root', '-aHR')
    yield case('n', '-ani', **quick)
    yield case('n-H', '-aHni')
    yield case('n-delete', '-ani --delete')
    yield case('n-c', '-acni')
    yield case('i', '-ai')
    yield case('i-H', '-aHi')
    yield case('i-H-no-inc', '-aHi --no-inc-recursive')
    yield case('v', '-avv')
    yield case('list-only', '-aH --list-only', '{M}/', stages=('fresh',), **quick)
    yield case('list-only-r', '-r --list-only', '{M}/', stages=('fresh',))
    yield case('list-only-c', '-rc --list-only', '{M}/sizes/', stages=('fresh',))
    yield case('list-level', '', '{M}/', stages=('fresh',))
    yield case('list-sub', '', '{M}/odd/', stages=('fresh',))
    yield case('list-dir', '', '{M}/odd', stages=('fresh',))
    yield case('list-file', '', '{M}/README', stages=('fresh',))
    yield case('modules', '', '{H}/', stages=('fresh',))
    yield case('append', '-a --append', **quick)
    yield case('append-verify', '-a --append-verify', **quick)
    yield case('inplace', '-a --inplace', unlinked=True, **quick)
    yield case('inplace-no-whole', '-a --inplace --no-whole-file --block-size=700', unlinked=True)
    yield case('partial', '-a --partial', **quick)
    yield case('partial-dir', '-a --partial-dir=.p --delete')
    yield case('fuzzy', '-a --fuzzy', **quick)
    yield case('fuzzy2', '-ayy --delete-after')
    yield case('numeric', '-aH --numeric-ids', **quick)
    yield case('safe-links', '-a --safe-links', **quick)
    yield case('A', '-aA', **quick)
    yield case('X', '-aX', **quick)
    yield case('A-alone', '-rA --no-inc-recursive')
    yield case('A-links', '-rltHA --delete --delay-updates')
    yield case('AHX', '-aAHX --delete')
    yield case('AHX-no-inc', '-aAHX --no-inc-recursive --numeric-ids')
    yield case('whole', '-aW')
    yield case('block-size', '-a --block-size=4096')
    yield case('big-blocks', '-a --block-size=131072')
    yield case('d', '-dlt')
    yield case('d-sub', '-dlt --delete', '{M}/odd', '{D}/')
    yield case('no-r', '-ltp', '{M}/README', '{M}/sizes', '{D}/')
    yield case('rt', '-rt')
    yield case('r', '-r')
    yield case('r-c', '-rc')
    yield case('rl', '-rl')
    yield case('no-links', '-a --no-links')
    yield case('no-D', '-a --no-D')
    yield case('no-devices', '-a --no-devices')
    yield case('no-specials', '-aH --no-specials')
    yield case('devices-only', '-rt --devices')
    yield case('specials-only', '-rt --specials')
    yield case('o', '-rlto')
    yield case('g', '-rltg --delete')
    yield case('o-no-inc', '-rltog --no-inc-recursive')
    yield case('one-file', '-a', '{M}/README', '{D}/', stages=('fresh',))
    yield case('one-file-to-name', '-a', '{M}/README', '{D}', stages=('fresh',))
    yield case('one-link', '-aH', '{M}/links/second', '{D}/')
    yield case('one-symlink', '-a', '{M}/symlinks/folder', '{D}/')
    yield case('sub', '-aH', '{M}/links/', '{D}/')
    yield case('sub-deep', '-a --delete', '{M}/dists/stable/main/', '{D}/')
    yield case('sub-whole', '-aH --delete', '{M}/links', '{D}/')
    yield case('two', '-aH', '{M}/links', '{M}/zz', '{D}/')
    yield case('two-contents', '-aH', '{M}/links/', '{M}/zz/', '{D}/')
    yield case('two-mixed', '-aH --delete', '{M}/links', '{M}/sizes/', '{M}/README', '{D}/')
    yield case('twice', '-aH', '{M}/links', '{M}/links', '{D}/')
    yield case('overlap', '-aH', '{M}/dists', '{M}/dists/stable/', '{D}/')
    yield case('glob', '-a', '{M}/s*', '{D}/')
    yield case('glob-class', '-a', '{M}/[a-l]*/', '{D}/')
    yield case('glob-inner', '-aR', '{M}/dists/*/main/binary-*', '{D}/')
    yield case('glob-none', '-a', '{M}/nothing*here', '{D}/')
    yield case('glob-mark', '-a', '{M}/odd/what?', '{M}/odd/?ab*', '{D}/')
    yield case('odd-path', '-a', '{M}/odd/sp ace', '{M}/odd/[[]class]', '{D}/')
    yield case('escaped', '-a', '{M}/odd/star\\*', '{D}/')
    yield case('secluded', '-as', '{M}/odd/sp ace', '{M}/odd/', '{D}/')
    yield case('old-args', '-a --old-args', '{M}/README bench/text', '{D}/')
    yield case('dot-dot', '-a', '{M}/links/../sizes/', '{D}/')
    yield case('outside', '-a', '{M}/../../etc/hostname', '{D}/')
    yield case('double-slash', '-a', '{M}//links//a/', '{D}/')
    yield case('missing', '-a', '{M}/no/such', '{D}/', **quick)
    yield case('missing-one', '-a', '{M}/no/such', '{M}/README', '{D}/')
    yield case('missing-ignored', '-a --ignore-missing-args', '{M}/no/such', '{M}/README', '{D}/')
    yield case('missing-deleted', '-a --delete-missing-args', '{M}/extra', '{M}/README', '{D}/')
    yield case('below-file', '-a', '{M}/README/x', '{D}/')
    yield case('through-symlink', '-a', '{M}/symlinks/folder/', '{D}/')
    yield case('no-module', '-a', '{H}/nothing-of-that-name/', '{D}/', **quick)
    yield case('copy-links', '-aL')
    yield case('copy-dirlinks', '-ak')
    yield case('copy-unsafe', '-a --copy-unsafe-links')
    yield case('munge', '-a --munge-links')
    yield case('keep-dirlinks', '-aK')
    yield case('x', '-ax')
    yield case('xx', '-axx')
    yield case('U', '-aU')
    yield case('UU', '-aUU')
    yield case('open-noatime', '-a --open-noatime')
    yield case('N', '-aN')
    yield case('omit-times', '-aO -J')
    yield case('existing', '-a --existing')
    yield case('ignore-existing', '-a --ignore-existing')
    yield case('u', '-au')
    yield case('size-only', '-a --size-only')
    yield case('I', '-aI')
    yield case('modify-window', '-a --modify-window=1000000')
    yield case('sizes', '-a --max-size=100k --min-size=700')
    yield case('bwlimit', '-a --bwlimit=100000')
    yield case('timeout', '-a --timeout=60 --contimeout=20')
    yield case('sparse', '-aS')
    yield case('sparse-inplace', '-aS --inplace', unlinked=True)
    yield case('preallocate', '-a --preallocate')
    yield case('prune', '-am --include=*/ --include=*.gz --exclude=*', **quick)
    yield case('exclude', '-a --exclude=*.gz --exclude=/sizes/ --delete', **quick)
    yield case('exclude-delete-excluded', '-a --exclude=*.gz --exclude=/sizes/ --delete-excluded')
    yield case('exclude-from', f'-a --exclude-from={files}/excludes')
    yield case('include-only', '-a --include=*/ --include=*.gz --exclude=*')
    yield case('hide-protect', '-a --delete', '--filter=H *.deb', '--filter=P extra', '--filter=S /README', *ALL)
    yield case('risk', '-a --delete', '--filter=P *', '--filter=R odd/***', *ALL)
    yield case('C', '-aC --delete', **quick)
    yield case('F', '-aF')
    yield case('FF', '-aFF')
    yield case('merge-file', '-a', f'--filter=merge {files}/rules', *ALL)
    yield case('dir-merge-void', '-a', '--filter=dir-merge .nothing-of-that-name', *ALL)
    yield case('dir-merge-C', '-a', '--filter=:C', *ALL)
    yield case('trust-sender', '-a --trust-sender')
    yield case('backup', '-ab --suffix=.old')
    yield case('backup-dir', '-ab --backup-dir=../backup-of-{D0}')
    for kind in ('compare', 'copy', 'link'):
        yield case(f'{kind}-dest', f'-a --{kind}-dest={files.parent}/old')
    yield case('chmod', '-a --chmod=D755,F644')
    yield case('chown', '-a --chown=5:6')
    yield case('usermap', '-a --numeric-ids --usermap=0:9,*:8 --groupmap=*:7')
    yield case('executability', '-rtE')
    yield case('fake-super', '-a --fake-super')
    yield case('no-super', '-a --no-super')
    yield case('copy-devices', '-r --copy-devices', '{M}/sizes/', '{D}/')
    yield case('mkpath', '-a --mkpath', '{M}/links/', '{D}/a/b/c/')
    yield case('temp-dir', f'-a --temp-dir={files.parent}/temporary')
    yield case('fsync', '-a --fsync')
    yield case('max-alloc', '-a --max-alloc=100m')
    yield case('stats', '-a --stats')
    yield case('progress', '-aP --info=progress2', talks=False)
    yield case('info', '-a --info=all --debug=none', talks=False)
    yield case('msgs2stderr', '-a --msgs2stderr')
    yield case('no-motd', '-a --no-motd')
    yield case('quiet', '-aq')
    yield case('out-format', '-a', '--out-format=%i %n%L %M %U %G %B', *ALL)
    yield case('log-file', f'-a --log-file={files}/log')
    yield case('outbuf', '-a --outbuf=L')
    yield case('8-bit', '-a8v')
    yield case('human', '-ahhi')
    yield case('stop-after', '-a --stop-after=10')
    yield case('early-input', f'-a --early-input={files}/excludes')
    yield case('remove-source', '-a --remove-source-files', **quick)
    yield case('write', '-a', f'{files}/', '{M}/')
    yield case('iconv', '-a --iconv=utf-8,latin1')
    yield case('address-4', '-a4')
    yield case('env-checksums', '-ac', *ALL, env={'RSYNC_CHECKSUM_LIST': 'md5 xxh3'}, reference=['-ac', *ALL])
    yield case('env-compression', '-az', *ALL, env={'RSYNC_COMPRESS_LIST': 'lz4 zstd'}, reference=['-a', *ALL])
    yield case('env-compression-0', '-az --compress-level=0', *ALL, env={'RSYNC_COMPRESS_LIST': 'zlibx'})
    yield case('env-max-alloc', '-a', *ALL, env={'RSYNC_MAX_ALLOC': '2g'})
    yield case('env-protect-args', '-a', *ALL, env={'RSYNC_PROTECT_ARGS': '1'})


# The options of a mix: one choice from each row.
MIXED = [
    ['-a', '-aH', '-aH', '-rlt', '-rltH', '-rlptHS', '-rlto', '-rltgD', '-aHAX', '-aHE'],
    ['', '', '', '-c', '--checksum-choice=md4', '--checksum-choice=xxh3', '--checksum-choice=md5', '--checksum-choice=sha1 --checksum-seed=9'],
    ['', '', '-z', '-z --compress-choice=lz4', '-z --compress-choice=zlibx', '-z --compress-level=0', '--old-compress'],
    ['', '', '--delete', '--delete-before', '--delete-after', '--delete-delay', '--delete --delete-excluded', '--delete --max-delete=3'],
    ['', '', '', '--inplace', '--partial', '--partial-dir=.p', '--delay-updates', '--append', '--append-verify', '--fuzzy', '--backup --suffix=.b'],
    ['', '', '', '-I', '-u', '--size-only', '--existing', '--ignore-existing', '--modify-window=1000000'],
    ['', '', '-i', '-v', '-ni', '--stats'],
    ['', '', '--exclude=*.gz', '--include=*/ --include=*a* --exclude=*', '-C', '-F', '--exclude=/links/a --exclude=odd*/', '-m --exclude=inner', '--max-size=40k'],
    ['', '', '--numeric-ids', '--no-inc-recursive', '--safe-links', '--munge-links', '--chmod=D755,F644', '--no-o --no-g', '-W', '-O', '--no-D', '--no-specials',
     '--bwlimit=100000', '--timeout=60', '-B700 --no-whole-file', '-K', '-s'],
    ['', '', '', '', '-R', '-R --no-implied-dirs', '--files-from={names}', '--files-from={names} -r', '--files-from={names} --no-relative', '-d --no-r'],
]
WHERE = ['{M}/', '{M}/', '{M}/', '{M}/links/', '{M}/links {M}/zz', '{M}/links/ {M}/aa/ {M}/README', '{M}/dists/./stable/', '{M}/*s', '{M}/order/ {M}/symlinks',
         '{M}/sizes {M}/sizes/1', '{M}/no/such {M}/changing/']


def mixes(files, count):
    """Yield mixes of random options. A seed always gives the same mix, so a mix can be selected by name."""
    for seed in range(count):
        rng = random.Random(seed)
        words = ' '.join(rng.choice(row) for row in MIXED).replace('{names}', f'{files}/names').split()
        paths = rng.choice(WHERE).split()
        if any(word.startswith('--files-from') for word in words):
            paths = ['{M}/']
        # Old protocols use MD4 for -c, which is not in the index, and do not have -A and -X.
        late = any(word in words for word in ('-c', '-aHAX'))
        in_place = any(word in words for word in ('--inplace', '--append', '--append-verify'))
        yield Case(f'mix-{seed}', [*words, *paths, '{D}/'], protocols=(rng.choice(range(30 if late else 27, 33)),), unlinked=in_place)


def wide_cases(_):
    yield case('wide-a', '-a', quick=True)
    yield case('wide-aH', '-aH', quick=True)
    yield case('wide-aHc', '-aHc --delete')
    yield case('wide-no-inc', '-rlptH --delete --no-inc-recursive')
    yield case('wide-z', '-aHz')
    yield case('wide-list', '-r --list-only', '{M}/', stages=('fresh',))
    yield case('wide-R', '-aHR', '{M}/p03', '{M}/p04', '{M}/p3*/s5/', '{D}/')
    yield case('wide-delay', '-aH --delay-updates --delete-delay')


def huge_cases(_):
    yield case('huge', '-aS')
    yield case('huge-c', '-aSc', stages=('update',))
    yield case('huge-z', '-aSz --compress-choice=lz4', stages=('fresh',))
    yield case('huge-in-place', '-aS --inplace --no-whole-file', stages=('update',))
    yield case('huge-append', '-a --append', stages=('update',))
    yield case('huge-append-verify', '-a --append-verify', stages=('update',))


def run(b):
    clients = b.args.rsync or ['rsync']
    b.table('clients', [{'client': os.path.basename(client), 'version (protocol)': peers.version(client)} for client in clients])
    gaps = peers.Gaps()
    trees = [('odd', lambda root: peers.odd_tree(root, devices=not b.args.no_devices), lambda files: [*cases(files), *mixes(files, b.args.mixes)]),
             ('wide', lambda root: peers.wide_tree(root, 1500 if b.args.quick else 4000), wide_cases)]
    if b.args.huge:
        trees.append(('huge', lambda root: peers.Tree(root).huge(), huge_cases))
    for name, make, its_cases in trees:
        if not b.args.tree or name in b.args.tree:
            Matrix(b, gaps, name, make, its_cases).run(clients)
    if not b.stillmirror:
        see_defects(b, clients[0])


class Matrix:
    """All cases on one tree."""

    def __init__(self, b, gaps, name, make, its_cases):
        self.b, self.gaps, self.name = b, gaps, name
        self.work = b.work / name
        self.root, self.store, self.old, self.files = (self.work / part for part in ('tree', 'store', 'old', 'files'))
        self.work.mkdir()
        make(self.root)
        lists(self.files, self.root)
        (self.work / 'temporary').mkdir()
        peers.index(b, self.root, self.store)
        peers.clone(self.root, self.old)
        if name == 'odd':
            peers.Tree(self.root, 3).change()
            damage(self.old)
            peers.index(b, self.root, self.store)
        if name == 'huge':
            peers.Tree(self.old).shorten()
        self.cases = [one for one in its_cases(self.files) if self.wanted(one)]

    def wanted(self, one):
        args = self.b.args
        if args.case:
            return peers.fits(one.name, args.case)
        return one.quick or not args.quick

    def run(self, clients):
        b = self.b
        protocols = b.args.protocol or list(peers.PROTOCOLS)
        newest = {client: peers.newest(client) for client in clients}
        cells = [(client, one, protocol, stage) for client in clients for one in self.cases for stage in one.stages for protocol in protocols
                 if protocol in one.protocols and protocol <= newest[client]]
        with peers.stock(b, self.root) as self.stock, peers.second(b, self.root, self.store) as self.judged, \
                concurrent.futures.ThreadPoolExecutor(b.args.jobs) as pool:
            self.failures, results = [], []
            for cell, result in zip(cells, pool.map(self.cell, range(len(cells)), cells)):
                results.append(result)
                self.judge(cell, result)
        self.report(cells, results)

    def cell(self, number, cell):
        """Pull from both daemons. Returns the differences without a known reason, all differences, and both pulls."""
        client, one, protocol, stage = cell
        results = []
        reference = (one.reference, None) if one.reference and protocol >= one.reference_from else (one.words, one.env)
        for server, (words, env) in ((self.stock, reference), (self.judged, (one.words, one.env))):
            dest = self.work / f'dest-{number}-{server.name.replace(" ", "-")}'
            if stage == 'update':
                peers.clone(self.old, dest, links=not one.unlinked)
            words = [word.replace('{D0}', dest.name) for word in [f'--protocol={protocol}', *words]]
            # A stock daemon searches 4 GiB for blocks, which takes a while.
            patience = peers.PATIENCE * (10 if self.name == 'huge' else 1)
            results.append(peers.pull(client, server, words, dest, env, patience))
            if not one.talks:
                results[-1].out.clear()
            peers.empty(dest)
            peers.empty(self.work / f'backup-of-{dest.name}')
        found = peers.differences(*results)
        return self.gaps.unexplained('matrix', one.name, protocol, peers.version_of(client), found), found, results

    def judge(self, cell, result):
        """Report a failure at once, because all cases together take a while."""
        (client, one, protocol, stage), (bad, _, pulls) = cell, result
        if not bad:
            return
        self.failures.append({'client': os.path.basename(client), 'case': one.name, 'protocol': protocol, 'stage': stage,
                              'command': peers.command(pulls[1]),
                              'differences': [[str(part) for part in difference] for difference in bad[:8]], 'of': len(bad)})
        if len(self.failures) <= self.b.args.show:
            print(f'\n{one.name} at {protocol}, {stage}, by {os.path.basename(client)}: {self.failures[-1]["command"]}')
            for facet, path, here, there in self.failures[-1]['differences']:
                print(f'    {facet} {path[:80]}: stock {here[:300]}, {self.judged.name} {there[:300]}', flush=True)

    def report(self, cells, results):
        b, rows = self.b, {}
        for (_, one, _, _), (bad, found, pulls) in zip(cells, results):
            row = rows.setdefault(one.name, {'case': one.name, 'cells': 0, 'same': 0, 'known': 0, 'differ': 0, 'exits': set()})
            row['cells'] += 1
            row['differ' if bad else 'known' if found else 'same'] += 1
            row['exits'].add(str(pulls[0].code))
        for row in rows.values():
            row['exits'] = ' '.join(sorted(row['exits']))
        b.table(f'{self.name}: {self.judged.name} compared with stock', list(rows.values()))
        b.tables.setdefault('failures', []).extend(self.failures)
        b.check(f'{self.name}: {len(cells)} pulls are the same as from a stock daemon, or known', not self.failures)


def lists(folder, root):
    """Write the files that the cases name."""
    folder.mkdir()
    if not os.path.exists(root / 'README'):
        return
    names = [b'README', b'sizes', b'sizes/32768', b'links/', b'links/second', b'zz/fifth', b'aa/fourth', b'odd/sp ace', b'odd/.hidden', b'odd/star*',
             b'./dists/./stable/Release', b'dists/stable/main/', b'', b'/text', b'deep', b'symlinks/ok', b'symlinks/dangling',
             b'README', b'odd/high\x80\xff\xfe', b'specials/fifo', b'empty', b'order/a/b']
    (folder / 'names').write_bytes(b'\n'.join(names) + b'\n')
    (folder / 'names0').write_bytes(b'\0'.join([name for name in names if name] + [b'odd/new\nline']) + b'\0')
    (folder / 'comments').write_bytes(b'# a comment\nREADME\n; another\n#hash\n')
    (folder / 'missing').write_bytes(b'README\nno/such/file\nextra/one\nsizes/none\nnosuch\nsizes/700\n')
    (folder / 'below-sizes').write_bytes(b'700\n32768\n/1\nnone\n')
    (folder / 'below-root').write_bytes(b'sizes/./700\nsizes/./32768\nsizes/./1\nsizes/./none\n')
    (folder / 'excludes').write_bytes(b'# a comment\n*.gz\n; another\n- /sizes/1*\n+ /links/leader\n/links/*\norder/**/x\n[a-m]*.deb\n')
    (folder / 'rules').write_bytes(b'+ /dists/***\n- /odd/\n-s *.deb\n-r extra\nhide *.dsc\nprotect zz/\n-! */\n')
    shutil.copy(folder / 'names', root / 'names-on-server')
    os.utime(root / 'names-on-server', (1, 1))


def damage(old):
    """Damage a destination as old mirrors are damaged: truncated files, changed metadata, and files that are not in the source."""
    tree = peers.Tree(old, 9)
    for name, length in (('sizes/1048576', 400_000), ('sizes/65536', 0), ('sizes/32769', 32_768), ('zeros', 100)):
        os.truncate(tree.at(name), length)
        tree.touch(name, 1_400_000_000 * peers.NS)
    for name in ('extra/one', 'extra/two/three', 'aa/extra', b'odd/ex\ntra', 'links/extra', 'zz/extra.gz', '.~tmp~/stale', 'CVS/Root'):
        tree.file(name, 100)
    tree.folder('sizes/.p')
    shutil.copyfile(tree.at('sizes/131073'), tree.at('sizes/.p/131073'))
    os.truncate(tree.at('sizes/.p/131073'), 70_000)
    os.unlink(tree.at('sizes/131073'))
    tree.touch('README', 1_600_000_000 * peers.NS)
    os.chmod(tree.at('text'), 0o600)
    os.chown(tree.at('text'), 99, 99)
    for name in ('links/pairs/05', 'links/second'):
        content = pathlib.Path(os.fsdecode(tree.at(name))).read_bytes()
        os.unlink(tree.at(name))
        tree.file(name, content)
    os.unlink(tree.at('symlinks/inside'))
    tree.symlink('symlinks/inside', 'elsewhere')
    os.unlink(tree.at('order/z'))
    tree.symlink('order/z', '../links')
    os.unlink(tree.at('links/pairs/06'))
    tree.folder('links/pairs/06')
    if os.path.lexists(tree.at('specials/x-fifo')):
        os.unlink(tree.at('specials/x-fifo'))
        tree.file('specials/x-fifo', 10)
    os.chmod(tree.at('modes/d0777'), 0o700)
    tree.settle()


# Defects that the comparison must detect.


def see_defects(b, client):
    root, broken = b.work / 'true', b.work / 'broken'
    peers.odd_tree(root, devices=not b.args.no_devices)
    for name, facet, defect in DEFECTS:
        peers.clone(root, broken)
        before = {os.path.dirname(peers.Tree(broken).at(n)): None for n in ('sizes/700', 'README', 'links/second', 'zz/fifth')}
        before = {folder: os.stat(folder).st_mtime_ns for folder in before}
        defect(peers.Tree(broken))
        for folder, mtime in before.items():
            os.utime(folder, ns=(mtime, mtime))
        with peers.stock(b, root) as honest, peers.stock(b, broken) as liar:
            pulls = []
            for server in (honest, liar):
                dest = b.work / f'seen-{server.port}'
                pulls.append(peers.pull(client, server, ['-aHi', *ALL], dest))
                peers.empty(dest)
        facets = {difference[0] for difference in peers.differences(*pulls)}
        b.check(f'the comparison detects {name}, and nothing else', facets == facet)
        if facets != facet:
            print(f'{name}: the comparison detects {sorted(facets)}, not {sorted(facet)}')
        peers.empty(broken)


def rewrite(tree, name, content):
    facts = os.stat(tree.at(name))
    with open(tree.at(name), 'r+b') as out:
        out.write(content)
    os.utime(tree.at(name), ns=(facts.st_atime_ns, facts.st_mtime_ns))


def unlink_again(tree):
    """Replace a hard link by a separate file with the same bytes."""
    facts, content = os.stat(tree.at('zz/fifth')), pathlib.Path(os.fsdecode(tree.at('zz/fifth'))).read_bytes()
    os.unlink(tree.at('zz/fifth'))
    tree.file('zz/fifth', content, time=facts.st_mtime_ns)


DEFECTS = [
    ('a nanosecond', {'mtime'}, lambda tree: tree.touch('README', os.stat(tree.at('README')).st_mtime_ns + 1)),
    ('one byte of content', {'content'}, lambda tree: rewrite(tree, 'sizes/700', b'!')),
    ('a mode', {'mode'}, lambda tree: os.chmod(tree.at('README'), 0o600)),
    ('an owner', {'uid'}, lambda tree: os.chown(tree.at('README'), 1, -1)),
    ('a group', {'gid'}, lambda tree: os.chown(tree.at('README'), -1, 1)),
    ('a missing file', {'missing', 'stdout'}, lambda tree: os.unlink(tree.at('sizes/700'))),
    ('an extra file', {'extra', 'stdout'}, lambda tree: tree.file('sizes/more', 5)),
    ('a copy instead of a hard link', {'links', 'stdout'}, unlink_again),
]

bench.main(__doc__, [
    ('--rsync', dict(metavar='PATH', action='append', help='a stock client; may be repeated (default: rsync)')),
    ('--protocol', dict(type=int, action='append', choices=list(peers.PROTOCOLS), help='only this version; may be repeated')),
    ('--case', dict(metavar='PATTERN', action='append', help='only cases of this name; may be repeated')),
    ('--tree', dict(action='append', choices=['odd', 'wide', 'huge'], help='only this tree; may be repeated')),
    ('--mixes', dict(type=int, default=300, metavar='COUNT', help='number of random mixes of options (default: %(default)s)')),
    ('--quick', dict(action='store_true', help='only the most common cases')),
    ('--huge', dict(action='store_true', help='also test a sparse file of more than 4 GiB')),
    ('--no-devices', dict(action='store_true', help='make no devices, for hosts that do not allow it')),
    ('--jobs', dict(type=int, default=2, help='pulls at once (default: %(default)s)')),
    ('--show', dict(type=int, default=40, help='number of failures to print in full (default: %(default)s)')),
], run)
