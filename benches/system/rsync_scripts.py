#!/usr/bin/env python3
"""The command lines of public mirror scripts, each stage in turn, with a stock daemon and with stillmirror.

Every script makes a mirror, and updates it after the publisher has changed, removed and renamed files. After each stage,
both mirrors must be the same, and both clients must have ended in the same way.
"""
import concurrent.futures
import os
import shlex
import time

import bench
import rsync_peers as peers

FTPSYNC = '-prltvHSB8192 --safe-links --chmod=D755,F644 --timeout 3600 --stats --no-human-readable --no-inc-recursive'
FTPSYNC_LATER = ('--include=*.diff/ --include=by-hash/ --exclude=*.diff/Index --exclude=Contents* --exclude=Packages* --exclude=Sources* '
                 '--exclude=Release* --exclude=InRelease --include=i18n/by-hash --exclude=i18n/* --exclude=dep11/* '
                 '--exclude=installer-*/current --exclude=ls-lR*')
FTPSYNC_OURS = ('--exclude=Archive-Update-in-Progress-mirror.example --exclude=Archive-Update-Required-mirror.example '
                "--filter='protect Archive-Update-in-Progress-mirror.example' --filter='protect project/trace/mirror.example*' "
                "--exclude=/.~tmp~/ --exclude=/project/trace/_hierarchy --exclude=/project/trace/_traces")
TUNASYNC = "-aHvh --no-o --no-g --stats --filter 'risk .~tmp~/' --exclude .~tmp~/"
FEDORA = "-aSH -f 'R .~tmp~' --stats --preallocate --delay-updates --out-format='@ %i %10l  %n%L'"

# The stages of each script, as options before source and destination. {F} is a folder with lists of names, {T} a temporary
# folder.
SCRIPTS = {
    'ftpsync': [f'{FTPSYNC} {FTPSYNC_LATER} {FTPSYNC_OURS}',
                f'{FTPSYNC} --max-delete=40000 --delay-updates --delete --delete-delay --delete-excluded {FTPSYNC_OURS}'],
    'ftpsync, without two architectures': [
        f'{FTPSYNC} {FTPSYNC_LATER} --exclude=binary-i386/ --exclude=installer-i386/ --exclude=Contents-i386.gz --exclude=*_i386.deb --exclude=*_i386.udeb {FTPSYNC_OURS}',
        f'{FTPSYNC} --max-delete=40000 --delay-updates --delete --delete-delay --delete-excluded --exclude=binary-i386/ --exclude=*_i386.deb --exclude=source/ '
        f'--exclude=*.tar.gz --exclude=*.dsc {FTPSYNC_OURS}'],
    'ftpsync, one architecture': [
        f'{FTPSYNC} --include=binary-all/ --include=binary-amd64/ --exclude=binary-*/ --include=*_all.deb --include=*_amd64.deb --exclude=*.deb {FTPSYNC_LATER} {FTPSYNC_OURS}',
        f'{FTPSYNC} --max-delete=40000 --delay-updates --delete --delete-delay --delete-excluded --include=binary-amd64/ --exclude=binary-*/ '
        f'--include=*_all.deb --include=*_amd64.deb --exclude=*.deb {FTPSYNC_OURS}'],
    'Arch syncrepo': ["-rlptH --safe-links --delete-delay --delay-updates --timeout=600 --contimeout=60 -p --no-motd --temp-dir={T} "
                      "--exclude='*.links.tar.gz*' --exclude=/other --exclude=/sources"],
    'Arch syncrepo, on a terminal': ['-rlptH --safe-links --delete-delay --delay-updates --timeout=600 --contimeout=60 -p -h -v --progress'],
    'Ubuntu wiki': ['--recursive --times --links --safe-links --hard-links --stats --exclude Packages* --exclude Sources* --exclude Release* --exclude InRelease',
                    '--recursive --times --links --safe-links --hard-links --stats --delete --delete-after'],
    'quick-fedora-mirror': [f'{FEDORA} --no-motd --files-from={{F}}/lists', f'{FEDORA} --files-from={{F}}/transfer'],
    'tunasync': [f'{TUNASYNC} --delete --delete-after --delay-updates --safe-links --timeout=120 --exclude-from={{F}}/excludes'],
    'tunasync, two stages': [f'{TUNASYNC} --safe-links --timeout=120 {FTPSYNC_LATER}',
                             f'{TUNASYNC} --delete --delete-after --delay-updates --safe-links --timeout=120'],
    'Gentoo emerge --sync': ['--recursive --links --safe-links --perms --times --omit-dir-times --compress --force --whole-file --delete --stats '
                             '--human-readable --timeout=180 --exclude=/distfiles --exclude=/local --exclude=/packages --exclude=/.git'],
    'CentOS': ['-aqzH --delete'],
    'kernel.org': ['-avSHP --delete'],
    'CPAN': ['-av --delete --bwlimit=100000'],
    'Alpine': ['-prua --exclude-from={F}/excludes --delete --timeout=600 --delay-updates --delete-after'],
    'GNU': ['-rtlHvz --delete --delete-after --safe-links'],
    'openSUSE': ['-rlptoDH --numeric-ids --delete-after --delay-updates --sparse --fuzzy'],
    'MacPorts over openrsync options': ['-rtzv --delete-after'],
}


def run(b):
    clients = b.args.rsync or ['rsync']
    b.table('clients', [{'client': os.path.basename(client), 'version (protocol)': peers.version(client)} for client in clients])
    root, store = b.work / 'tree', b.work / 'store'
    peers.odd_tree(root)
    runs = [(client, name, protocol) for client in clients for name in SCRIPTS if not b.args.script or peers.fits(name, b.args.script)
            for protocol in b.args.protocol or [None]]
    scripts = [Script(b, number, *one) for number, one in enumerate(runs)]
    gaps, rows = peers.Gaps(), []
    for state in ('first', 'update', 'nothing new'):
        if state == 'update':
            peers.Tree(root, 3).change()
        lists(b.work / 'lists', root)
        peers.index(b, root, store)
        with peers.stock(b, root) as stock, peers.second(b, root, store) as judged, concurrent.futures.ThreadPoolExecutor(b.args.jobs) as pool:
            for script, row in zip(scripts, pool.map(lambda script: script.run(stock, judged, gaps, state), scripts)):
                rows.append(row)
                for problem in script.problems:
                    print(problem)
                script.problems.clear()
    b.table('scripts', sorted(rows, key=lambda row: row['script']))
    for name in SCRIPTS:
        if its := [row for row in rows if row['script'] == name]:
            b.check(f'{name}: the same trees and exit codes', not any(row['unexplained'] for row in its))


def lists(folder, root):
    """Write the lists that a script would have made before: names of files, in the order that it wants them."""
    folder.mkdir(exist_ok=True)
    names = [name for name in peers.snapshot(root) if name and not name.startswith(b'.~tmp~')]
    (folder / 'lists').write_bytes(b'fullfiletimelist-fedora\nimagelist-fedora\n')
    (folder / 'transfer').write_bytes(b''.join(name + b'\n' for name in names if b'\n' not in name and b'\r' not in name and name[:1] not in b'#;'))
    (folder / 'excludes').write_bytes(b'.~tmp~/\n*.iso\n/order/a/\nCVS\n')


class Script:
    """One script on its two mirrors."""

    def __init__(self, b, number, client, name, protocol):
        self.b, self.client, self.name, self.protocol, self.problems = b, client, name, protocol, []
        self.mirrors = [b.work / f'{number}-{which}' for which in ('stock', 'judged')]
        self.temporary = b.work / f'{number}-temporary'
        self.temporary.mkdir()
        self.start = time.time_ns()

    def run(self, stock, judged, gaps, state):
        unexplained, known, codes, walls = 0, 0, [], [0, 0]
        for stage, options in enumerate(SCRIPTS[self.name]):
            words = shlex.split(options.replace('{F}', str(self.b.work / 'lists')).replace('{T}', str(self.temporary)))
            words += [f'--protocol={self.protocol}'] if self.protocol else []
            pulls = [peers.pull(self.client, server, [*words, '{M}/', '{D}/'], mirror, start=self.start) for server, mirror in zip((stock, judged), self.mirrors)]
            found = peers.differences(*pulls)
            protocol = self.protocol or 32
            bad = gaps.unexplained('scripts', self.name, protocol, peers.version_of(self.client), found)
            unexplained, known = unexplained + len(bad), known + len(found) - len(bad)
            codes.append(str(pulls[0].code))
            walls = [wall + pull.wall for wall, pull in zip(walls, pulls)]
            if bad:
                self.problems.append(f'\n{self.name}, {state}, stage {stage + 1}: {peers.command(pulls[1])}')
                self.problems += [f'    {facet} {path}: stock {str(here)[:300]}, {judged.name} {str(there)[:300]}' for facet, path, here, there in bad[:8]]
        return {'script': self.name, 'client': peers.version_of(self.client), 'protocol': self.protocol or 'its own', 'state': state,
                'entries': len(peers.snapshot(self.mirrors[0])), 'exits': ' '.join(codes), 'stock s': walls[0], 'judged s': walls[1],
                'known': known, 'unexplained': unexplained}


bench.main(__doc__, [
    ('--rsync', dict(metavar='PATH', action='append', help='a stock client; may be repeated (default: rsync)')),
    ('--protocol', dict(type=int, action='append', choices=list(peers.PROTOCOLS), help='this protocol version; may be repeated (default: the client\'s own)')),
    ('--script', dict(metavar='PATTERN', action='append', help='only scripts of this name; may be repeated')),
    ('--jobs', dict(type=int, default=2)),
], run)
