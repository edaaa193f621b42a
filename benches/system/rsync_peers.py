"""Shared code for comparing the two rsync daemons: the daemons, a tree of unusual entries, its changes, and the comparison.

The same stock client pulls the same tree from a stock daemon and from stillmirror. The resulting tree, the client's output
and its exit code must be the same, unless tests/known_gaps.toml gives a reason. Without --stillmirror, the second daemon is
a stock one too. Nothing may differ then, which shows that the comparison raises no false alarms.
"""
import collections
import dataclasses
import fnmatch
import functools
import hashlib
import os
import pathlib
import random
import re
import shutil
import socket
import stat
import subprocess
import time
import tomllib

import bench

GAPS = pathlib.Path(__file__).resolve().parents[2] / 'tests' / 'known_gaps.toml'
PROTOCOLS = range(27, 33)
PATIENCE = 120


# The daemons.


def stock(b, root, rsync='rsync', modules='', more='', prefix=(), chroot='yes'):
    """Start a stock daemon with a read-only public module, as on a mirror."""
    port = bench.free_port()
    config = b.work / f'rsyncd-{port}.conf'
    config.write_text(f'use chroot = {chroot}\nuid = root\ngid = root\nread only = yes\nmunge symlinks = no\n'
                      f'reverse lookup = no\nlock file = {b.work}/rsyncd-{port}.lock\nlog file = {b.work}/rsyncd-{port}.log\n{more}\n'
                      f'[{bench.NAME}]\npath = {root}\n{modules}\n')
    argv = [rsync, '--daemon', '--no-detach', f'--config={config}', '--address=127.0.0.1', f'--port={port}']
    return named(bench.Server(b, 'rsync', argv, '127.0.0.1', port, prefix), 'stock')


def passive(b, root, store, prefix=(), more='', daemon='', address='127.0.0.1'):
    """Start stillmirror with the same module, configured by a file as operators write it."""
    port = bench.free_port()
    config = b.work / f'mirror-{port}.toml'
    config.write_text(f'[daemon]\nlisten = "{address}:{port}"\nreload_interval = "100ms"\n{daemon}\n'
                      f'[index]\nxxh128 = true\nmd5 = true\n'
                      f'[[repository]]\nname = "{bench.NAME}"\nroot = "{root}"\nstore = "{store}"\n{more}\n')
    argv = b.stillmirror.argv('serve', '--config', config)
    return named(bench.Server(b, 'rsync', argv, address, port, prefix), 'stillmirror')


def index(b, root, store, *more):
    """Publish a generation with the digests that stock clients ask for. A stock daemon needs none."""
    if b.stillmirror:
        b.stillmirror.index(root, store, '--xxh128', '--md5', *more)


def second(b, root, store, **options):
    """Start the daemon that is compared with the stock one."""
    return passive(b, root, store, **options) if b.stillmirror else named(stock(b, root), 'stock again')


def named(server, name):
    server.name = name
    return server


# The client.


@dataclasses.dataclass
class Result:
    """A client's exit code, its output, and the tree that it left."""
    code: int
    out: list
    errors: list
    tree: dict
    wall: float
    argv: list


def pull(rsync, server, words, dest, env=None, patience=PATIENCE, start=None):
    """Run a client. In `words`, {M} is the module's URL, {H} the URL of host and port, {D} the destination.

    Times in `dest` from `start` (default: now) on are not compared, because the client's clock set them.
    """
    urls = {'{M}': server.url, '{H}': server.url.rpartition('/')[0], '{D}': os.fspath(dest)}
    argv = [rsync, *(fill(word, urls) for word in words)]
    # A file system rounds the time down to its last tick.
    start, clock = start or time.time_ns() - 20_000_000, time.monotonic()
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False,
                              env={'PATH': os.environ['PATH'], 'HOME': '/nonexistent', 'LC_ALL': 'C', 'USER': 'alice'} | (env or {}))
        code, out, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as hung:
        code, out, errors = 'hangs', hung.stdout or b'', hung.stderr or b''
    wall = time.monotonic() - clock
    return Result(code, said(out, server, dest), classes(errors), snapshot(dest, start), wall, argv)


def fill(word, urls):
    for name, value in urls.items():
        word = word.replace(name, value)
    return word


# Lines that contain times or byte counts of the session.
VOLATILE = re.compile(rb'^(sent |wrote |total size is |receiving |opening |Number of |Total |Literal |Matched |File list |deleting in )|to-chk=|^\s*$')
# The progress of a file, printed before the client's next output. It depends on timing.
PROGRESS = re.compile(rb'^ +[\d,]+ +\d+% +[\d.]+[kMG]?B/s +\d+:\d\d:\d\d +(?!\(xfr)')
# The size of a directory in a listing, which depends on the file system.
DIRECTORY = re.compile(rb'^(d[rwxsStT-]{9}\+?|@ .d\S{9}) +[\d,]+ ')


def said(text, server, dest):
    text = text.replace(os.fsencode(dest), b'DEST').replace(str(server.port).encode(), b'PORT')
    lines = (PROGRESS.sub(b'', line) for line in re.split(rb'[\r\n]', text))
    return sorted(DIRECTORY.sub(rb'\1 SIZE ', line) for line in lines if not VOLATILE.search(line))


# The origin of a message: only stock gives source lines, and releases name their processes differently.
TAGS = re.compile(rb'\[(sender|receiver|generator|client|server|Receiver|Sender)[^\]]*\]|\(in [^)]*\)|at \S+\.c\(\d+\)|\[\d+\]|=[\d.]+(dev|pre\d+)?')


def classes(text):
    """Return the kinds of error messages, without names, numbers and processes."""
    kinds = set()
    # The two processes of an old client may write into each other's lines.
    for line in re.sub(rb'(?<=.)(?=rsync: |rsync error: |recv_files: )', b'\n', text).splitlines():
        line = TAGS.sub(b'', line)
        line = re.sub(rb'"[^"]*"|\'[^\']*\'', b'NAME', line)
        line = re.sub(rb'(vanished: ).*', rb'\1NAME', line)
        line = re.sub(rb'(?<!code )\b\d+\b', b'N', line)
        kinds.add(re.sub(rb'\s+', b' ', line).strip().decode(errors='backslashreplace'))
    # Whether a client still reads the server's last words before the connection closes is a race.
    return sorted(kind for kind in kinds if kind and 'Connection reset' not in kind)


# The comparison.


def snapshot(root, start=0):
    """Return everything that is compared, by path. Times from `start` on are the client's own and not compared."""
    tree, inodes = {}, collections.defaultdict(list)
    root = os.fsencode(root)
    if not os.path.lexists(root):
        return tree
    horizon = time.time_ns() + 86400 * 10**9
    stack = [b'']
    while stack:
        at = stack.pop()
        path = os.path.join(root, at) if at else root
        facts = os.lstat(path)
        kind = stat.S_IFMT(facts.st_mode)
        mine = start <= facts.st_mtime_ns < horizon
        entry = {'type': kind >> 12, 'mode': stat.S_IMODE(facts.st_mode), 'uid': facts.st_uid, 'gid': facts.st_gid,
                 'mtime': 'now' if start and mine else facts.st_mtime_ns}
        if kind == stat.S_IFDIR:
            stack += [os.path.join(at, name) if at else name for name in os.listdir(path)]
        elif kind == stat.S_IFREG:
            entry |= {'size': facts.st_size, 'content': digest(path) if facts.st_size < 1 << 30 else holes(path)}
        elif kind == stat.S_IFLNK:
            entry['target'] = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            entry['rdev'] = facts.st_rdev
        if kind != stat.S_IFDIR and facts.st_nlink > 1:
            inodes[facts.st_ino].append(at)
        tree[at] = entry
    for group in inodes.values():
        for at in group:
            tree[at]['links'] = sorted(group)
    return tree


def digest(path):
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'md5').hexdigest()


def holes(path):
    """Compute a digest of a huge sparse file without reading its holes."""
    found = hashlib.md5()
    with open(path, 'rb') as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            piece = os.pread(file.fileno(), 1 << 20, at)
            if piece.strip(b'\0'):
                found.update(b'%d:' % (at + len(piece) - len(piece.lstrip(b'\0'))) + piece.strip(b'\0'))
            at += len(piece)
    return found.hexdigest()


# Exit codes of clients that give up: syntax, protocol, unsupported, refused at the start, socket, stream.
ABORTED = {1, 2, 4, 5, 10, 12}


def differences(stock_result, other):
    """Return (facet, path, stock's value, the other's value) for everything that differs."""
    found = []
    if stock_result.code != other.code:
        found.append(('exit', '', stock_result.code, other.code))
    if stock_result.out != other.out:
        here, there = collections.Counter(stock_result.out), collections.Counter(other.out)
        found.append(('stdout', '', list((here - there))[:3], list((there - here))[:3]))
    if stock_result.errors != other.errors:
        found.append(('stderr', '', stock_result.errors, other.errors))
    if stock_result.code == other.code and other.code in ABORTED:
        # How far the client got before it gave up is a race.
        return found
    return found + tree_differences(stock_result.tree, other.tree)


def tree_differences(ours, theirs):
    found = []
    for path in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(path), theirs.get(path)
        if here is None or there is None:
            found.append(('missing' if there is None else 'extra', path, here and here['type'], there and there['type']))
            continue
        found += [(facet, path, here.get(facet), there.get(facet))
                  for facet in sorted(here.keys() | there.keys()) if here.get(facet) != there.get(facet)]
    return found


class Gaps:
    """The known differences, from a file that gives a reason for each. Records which entries were used."""

    def __init__(self, path=GAPS):
        self.gaps = tomllib.loads(path.read_text()).get('gap', []) if path.exists() else []
        self.used = set()

    def unexplained(self, script, case, protocol, client, found):
        return [difference for difference in found if not self.explains(script, case, protocol, client, difference)]

    def explains(self, script, case, protocol, client, difference):
        facet, path = difference[0], os.fsdecode(difference[1]) if difference[1] else ''
        for number, gap in enumerate(self.gaps):
            if (fits(script, gap.get('script', ['*'])) and fits(case, gap.get('case', ['*']))
                    and protocol in gap.get('protocol', PROTOCOLS) and fits(client, gap.get('client', ['*']))
                    and fits(facet, gap['facet']) and fits(path, gap.get('path', ['*']))):
                self.used.add(number)
                return True
        return False


def fits(word, patterns):
    return any(fnmatch.fnmatchcase(word, pattern) for pattern in patterns)


@functools.cache
def version(rsync):
    """Return the version and protocol of a client, such as '3.5.0 (32)'."""
    out = subprocess.run([rsync, '--version'], capture_output=True, text=True, check=False).stdout
    found = re.search(r'version (\S+) +protocol version (\d+)', out)
    return f'{found[1]} ({found[2]})' if found else os.path.basename(rsync)


def version_of(rsync):
    """Return the version of a client, such as '3.5.0'."""
    return version(rsync).split()[0]


def newest(rsync):
    """Return the newest protocol that a client speaks."""
    number = re.search(r'\((\d+)\)', version(rsync))
    return int(number[1]) if number else max(PROTOCOLS)


def command(result):
    """Return the client's command line, quoted for a shell."""
    return ' '.join(word if re.fullmatch(r'[\w@%+=:,./~{}-]+', word) else "'" + word.replace("'", "'\\''") + "'"
                    for word in map(str, result.argv))


# The tree of unusual entries.


NS = 10**9
FOLDER_TIMES = ((0, 0), (-60, 500_000_000), (2**31, 1), (2**32 + 1, 0))
LONG = 255


def odd_tree(root, seed=1, devices=True, huge=False):
    """Make a tree with every type, hard links across directories, and unusual names, owners, modes and times.

    Needs root for devices and owners.
    """
    Tree(root, seed).everything(devices, huge)


class Tree:
    """Makes and changes one tree. The same seed gives the same tree."""

    def __init__(self, root, seed=1):
        self.root, self.rng, self.clock = os.fsencode(root), random.Random(seed), 1_500_000_000
        os.makedirs(self.root, exist_ok=True)

    def at(self, name):
        return os.path.join(self.root, os.fsencode(name))

    def tick(self):
        """Return a new time with nanoseconds, different from all before."""
        self.clock += 1000
        return self.clock * NS + self.rng.randrange(NS)

    def file(self, name, size, mode=0o644, time=None, owner=None):
        path = self.at(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'wb') as out:
            out.write(size if isinstance(size, bytes) else self.rng.randbytes(size))
        if owner:
            os.chown(path, *owner)
        os.chmod(path, mode)
        self.touch(name, time)

    def touch(self, name, time=None):
        time = self.tick() if time is None else time
        os.utime(self.at(name), ns=(time, time), follow_symlinks=False)

    def folder(self, name, mode=0o755, owner=None):
        os.makedirs(self.at(name), exist_ok=True)
        if owner:
            os.chown(self.at(name), *owner)
        os.chmod(self.at(name), mode)

    def symlink(self, name, target, time=None):
        os.makedirs(os.path.dirname(self.at(name)), exist_ok=True)
        os.symlink(target, self.at(name))
        self.touch(name, time)

    def link(self, old, new):
        os.makedirs(os.path.dirname(self.at(new)), exist_ok=True)
        os.link(self.at(old), self.at(new), follow_symlinks=False)

    def settle(self):
        """Set the times of the directories. Must come last."""
        for at, _, _ in os.walk(self.root, topdown=False):
            time = self.tick()
            os.utime(at, ns=(time, time))
        for seconds, ns in FOLDER_TIMES:
            if os.path.isdir(self.at(f'times/folder {seconds}')):
                self.touch(f'times/folder {seconds}', seconds * NS + ns)

    def everything(self, devices, huge):
        for make in (self.plain, self.names, self.order, self.modes_and_owners, self.times, self.links, self.symlinks,
                     self.empty_folders, self.archive):
            make()
        if devices:
            self.specials()
        if huge:
            self.huge()
        self.settle()

    def plain(self):
        for size in (0, 1, 699, 700, 701, 16383, 16384, 32767, 32768, 32769, 65536, 131073, 1 << 20, 3_000_001):
            self.file(f'sizes/{size}', size)
        self.file('README', b'read me\n')
        self.file('text', b''.join(b'line %d of text that compresses\n' % (line % 97) for line in range(9000)))
        self.file('zeros', bytes(400_000))
        with open(self.at('sparse'), 'wb') as out:
            out.truncate(2_000_000)
            out.seek(1_000_000)
            out.write(b'in the middle')
        self.touch('sparse')
        for name in ('grows', 'shrinks', 'same-size', 'same-all', 'touched', 'to-folder', 'to-link', 'chmodded', 'chowned'):
            self.file(f'changing/{name}', 50_000)
        self.file('changing/from-link-target', 10)
        self.symlink('changing/from-link', 'from-link-target')
        self.folder('changing/from-folder')
        self.file('changing/gone/deep/er/file', 10)
        self.file('changing/pkg_1.0.bin', 200_000)

    def names(self):
        for name in (b'sp ace', b' ', b'two  spaces ', b'new\nline', b'car\rriage', b'-dash', b'--delete', b'.hidden', b'..hidden', b'...', b'tab\t',
                     b'high\x80\xff\xfe', b'caf\xc3\xa9', b'quote"\'', b'back\\slash', b'star*', b'[class]', b'what?', b'#hash', b'%s', b'$HOME',
                     b';semi', b'~tilde', b'!bang', b'a:b', b'+plus', b'\x01control', b'\\#012', b'n' * LONG, b'.' + b'd' * (LONG - 1)):
            self.file(b'odd/' + name, name)
            self.file(b'odd folders/' + name + b'/inner', name)
            self.folder(b'odd empty/' + name)
            self.link(b'odd/' + name, b'odd links/' + name)
        deep = b'deep'
        for level in range(25):
            deep += b'/' + bytes([97 + level]) * 100
        self.file(deep + b'/bottom', b'reached')

    def order(self):
        """Make names whose order differs between old and new protocols."""
        for name in ('a', 'a.d', 'a-d', 'a0d', 'foo', 'foo.', 'foo-'):
            self.file(f'order/{name}/file', 5)
        for name in ('a-b', 'a.txt', 'a0', 'a/b', 'a/b-', 'a/c/d', 'foo+', 'foo..', 'Foo', 'z', 'B', '0', 'a/.x', '.z', '.z.d/x'):
            self.file(f'order/{name}', 5)

    def modes_and_owners(self):
        for mode in (0o4755, 0o2755, 0o6711, 0o1644, 0o0000, 0o0400, 0o0777, 0o7777):
            self.file(f'modes/f{mode:04o}', 20, mode)
            self.folder(f'modes/d{mode:04o}', mode)
        for owner in ((1, 1), (2, 0), (0, 3), (65534, 65534), (12345, 23456), (1 << 20, 1 << 20), (2_000_000_000, 7), (3_000_000_000, 4_000_000_000)):
            self.file(f'owners/{owner[0]}-{owner[1]}', 20, owner=owner)
        self.folder('owners/folder', owner=(12345, 6))

    def times(self):
        for seconds, ns in ((0, 0), (0, 1), (1, 999_999_999), (-1, 0), (-60, 0), (-60, 500_000_000), (-(2**31), 0), (2**31 - 1, 0), (2**31, 0),
                            (2_208_988_800, 5), (2**32 - 1, 7), (2**32 + 1, 0), (1_714_885_505, 123_456_789), (1_714_885_505, 0)):
            self.file(f'times/{seconds}.{ns:09}', 10, time=seconds * NS + ns)
        self.symlink('times/link-old', 'x', -60 * NS)
        self.symlink('times/link-ns', 'x', 1_600_000_000 * NS + 987_654_321)
        for seconds, ns in FOLDER_TIMES:
            self.folder(f'times/folder {seconds}')

    def links(self):
        self.file('links/leader', 40_000)
        for name in ('links/second', 'links/z/third', 'aa/fourth', 'zz/fifth', 'links/.first', 'links/a/b/c/sixth'):
            self.link('links/leader', name)
        for pair in range(12):
            self.file(f'links/pairs/{pair:02}', 100 + pair)
            self.link(f'links/pairs/{pair:02}', f'links/{"az"[pair % 2]}/pair{pair:02}')
        self.file('links/empty', 0)
        self.link('links/empty', 'zz/empty')
        self.file('links/same1', b'same bytes, not linked')
        self.file('links/same2', b'same bytes, not linked')
        self.symlink('links/symlink', 'leader')
        self.link('links/symlink', 'zz/symlink')
        self.link('links/symlink', 'aa/symlink')
        self.symlink('links/z/dangling', b'nowhere\xff')
        self.link('links/z/dangling', 'links/a/dangling')
        self.file('links/setuid', 50, 0o4711, owner=(12345, 6))
        self.link('links/setuid', 'aa/setuid')

    def symlinks(self):
        for name, target in (('ok', 'README'), ('dangling', 'nowhere/at/all'), ('absolute', '/etc/hostname'), ('up', '../../../etc'), ('folder', '../sizes'),
                             ('inside', '../README'), ('odd', b'high\xff \n'), ('long', 'x/' * 500 + 'y'), ('self', 'self'), ('dot', '.')):
            self.symlink(f'symlinks/{name}', target)

    def empty_folders(self):
        for name in ('empty', 'empty-too/nested/deep', 'zz/empty folder', 'aa/.empty'):
            self.folder(name)

    def archive(self):
        """Make the layout of a distribution's archive, whose names occur in the filters and lists of scripts."""
        for suite in ('stable', 'testing'):
            for name in ('Release', 'Release.gpg', 'InRelease', 'main/binary-amd64/Packages.gz', 'main/binary-amd64/Packages.diff/Index', 'main/source/Sources.xz',
                         'main/i18n/Translation-en.bz2', 'main/Contents-amd64.gz', 'main/dep11/Components-amd64.yml.gz', 'main/installer-amd64/current/images/MANIFEST',
                         'main/by-hash/SHA256/0123456789abcdef', 'ls-lR.gz'):
                self.file(f'dists/{suite}/{name}', 500)
        for name in ('a/alpha/alpha_1.0_amd64.deb', 'a/alpha/alpha_1.0.dsc', 'b/beta/beta_2.0_i386.deb', 'b/beta/beta_2.0.orig.tar.gz'):
            self.file(f'pool/main/{name}', 3000)
        for name in ('project/trace/ftp-master.example', 'project/trace/master', 'ls-lR.gz', 'indices/files/components/x.list.gz', 'indices/override.gz',
                     'Archive-Update-in-Progress-somewhere', '.~tmp~/left/over', '.lastupdate', 'lastsync', 'dists/.tmp/part', 'core/os/x86_64/core.db.tar.gz',
                     'core/os/x86_64/.core.db.lck', 'fullfiletimelist-fedora', 'imagelist-fedora', '.snapshot/x', 'x.iso', 'CVS/Entries', 'core', 'x.o', 'x~', '.git/HEAD') :
            if name != 'core':
                self.file(name, 300)
        self.file('.cvsignore.off', b'*.deb\n')

    def specials(self):
        os.makedirs(self.at('specials'), exist_ok=True)
        for name, mode, device in (('fifo', stat.S_IFIFO, 0), ('null', stat.S_IFCHR, os.makedev(1, 3)), ('zero', stat.S_IFCHR, os.makedev(1, 5)),
                                   ('loop', stat.S_IFBLK, os.makedev(7, 0)), ('loop9', stat.S_IFBLK, os.makedev(7, 9)), ('big', stat.S_IFCHR, os.makedev(259, 300_000)),
                                   ('wide', stat.S_IFBLK, os.makedev(4095, 524_287)), ('x-fifo', stat.S_IFIFO, 0), ('zero-again', stat.S_IFCHR, os.makedev(1, 5))):
            os.mknod(self.at(f'specials/{name}'), mode | 0o640, device)
            os.chmod(self.at(f'specials/{name}'), 0o640)
            self.touch(f'specials/{name}')
        here = os.getcwd()
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(self.at('specials'))  # the path of a socket must be short
            listener.bind('socket')
            os.chdir(here)
        self.touch('specials/socket')
        self.link('specials/null', 'zz/null')
        self.link('specials/fifo', 'zz/fifo')
        self.link('specials/fifo', 'aa/fifo')
        self.link('specials/socket', 'zz/socket')
        self.link('specials/loop9', 'specials/loop9 again')
        self.touch('specials/zero', -60 * NS)
        self.touch('specials/loop9', 2**33 * NS + 1)

    def huge(self):
        with open(self.at('huge'), 'wb') as out:
            for at in (0, 1 << 31, (1 << 32) - 5, (1 << 32) + 12345):
                out.seek(at)
                out.write(b'at %d' % at)
            out.truncate((1 << 32) + 100_000)
        self.touch('huge')

    def shorten(self):
        """Truncate the huge file to just over 4 GiB, as an older version of it."""
        os.truncate(self.at('huge'), (1 << 32) + 10)
        self.touch('huge', 1_400_000_000 * NS)

    def change(self):
        """Change the tree as publishers do between two pulls, and in more unusual ways."""
        with open(self.at('changing/grows'), 'ab') as out:
            out.write(self.rng.randbytes(30_000))
        self.touch('changing/grows')
        os.truncate(self.at('changing/shrinks'), 20_001)
        self.touch('changing/shrinks')
        self.file('changing/same-size', 50_000)
        before = os.stat(self.at('changing/same-all')).st_mtime_ns
        self.file('changing/same-all', 50_000, time=before)
        self.touch('changing/touched')
        os.chmod(self.at('changing/chmodded'), 0o600)
        os.chown(self.at('changing/chowned'), 77, 78)
        for name in ('to-folder', 'to-link', 'from-link'):
            os.unlink(self.at(f'changing/{name}'))
        self.file('changing/to-folder/now a folder', 10)
        self.symlink('changing/to-link', 'grows')
        self.file('changing/from-link', 100)
        os.rmdir(self.at('changing/from-folder'))
        self.file('changing/from-folder', 100)
        shutil.rmtree(self.at('changing/gone'))
        os.rename(self.at('changing/pkg_1.0.bin'), self.at('changing/pkg_1.1.bin'))
        with open(self.at('changing/pkg_1.1.bin'), 'r+b') as out:
            out.seek(100_000)
            out.write(b'new in the middle')
        self.touch('changing/pkg_1.1.bin')
        with open(self.at('sizes/3000001'), 'r+b') as out:
            out.seek(1_500_000)
            out.write(b'edited in place')
        self.touch('sizes/3000001')
        os.unlink(self.at('links/leader'))
        os.unlink(self.at('links/z/third'))
        self.file('links/z/third', 40_000)
        self.file('links/leader', 100)
        self.link('links/same1', 'links/now-linked')
        os.unlink(self.at('links/symlink'))
        self.symlink('links/symlink', 'second')
        self.link('symlinks/inside', 'symlinks/inside too')
        os.unlink(self.at('links/pairs/03'))
        self.file('links/pairs/03', 103)
        os.unlink(self.at('symlinks/ok'))
        self.symlink('symlinks/ok', 'sizes/1')
        self.file(b'odd/another\xf0 new\n', 10)
        os.unlink(self.at(b'odd/new\nline'))
        self.folder('brand/new/folders')
        self.file('brand/new/file', 70_000)
        shutil.rmtree(self.at('empty-too'))
        os.chmod(self.at('empty'), 0o700)
        self.file('dists/stable/Release', 501)
        if os.path.lexists(self.at('specials/loop')):
            os.unlink(self.at('specials/loop'))
            os.mknod(self.at('specials/loop'), stat.S_IFBLK | 0o600, os.makedev(7, 200))
            self.touch('specials/loop')
        self.settle()


def wide_tree(root, files=4000, seed=2):
    """Make a tree with enough files and folders for many sub-lists, with link groups that span them."""
    tree = Tree(root, seed)
    for number in range(files):
        name = f'p{number % 37:02}/s{number % 11}/f{number:05}'
        if number % 10 == 9:
            tree.link(f'p{(number - 4) % 37:02}/s{(number - 4) % 11}/f{number - 4:05}', name)
        else:
            tree.file(name, number % 700)
    tree.settle()


def clone(source, dest, links=True):
    """Copy a tree with exact times, links and holes, to serve as a destination with an earlier state."""
    bench.must(['cp', '-a', *([] if links else ['--no-preserve=links']), source, dest])


def empty(path):
    """Remove a destination, whatever it contains."""
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        bench.must(['rm', '-rf', path])


# Meters.


class Session:
    """The first steps of a client at protocol 31, done by hand to measure the server's response time."""

    def __init__(self, server, options='-lHogDtpre.LsfxCIvu', path='', source=None):
        self.start = time.monotonic()
        self.connection = socket.create_connection((server.address, server.port), timeout=PATIENCE, source_address=source and (source, 0))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.options, self.path = options, path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def handshake(self, rules=b''):
        """Run the session up to the end of the filter rules, after which the server sends the list."""
        self.connection.sendall(b'@RSYNCD: 31.0 md5 md4\n')
        self.line()
        self.connection.sendall(f'{bench.NAME}\n'.encode())
        while (line := self.line()) != b'@RSYNCD: OK\n':
            if line.startswith((b'@ERROR', b'@RSYNCD: EXIT')) or not line:
                raise ConnectionError(line)
        words = ['--server', '--sender', self.options, '.', f'{bench.NAME}/{self.path}', '']
        # Stock sends its seed only after the client's list of digests.
        self.connection.sendall('\0'.join([*words, '']).encode() + b'\x03md5')
        if self.take(1)[0] & 0x80:  # the compatibility flags
            self.take(1)
        length = self.take(1)[0]
        self.take((length & 0x7f) << 8 | self.take(1)[0] if length & 0x80 else length)
        self.take(4)  # the seed
        self.asked = time.monotonic()
        self.connection.sendall(self.frame(rules + bytes(4)))

    @staticmethod
    def frame(data):
        return (len(data) | 7 << 24).to_bytes(4, 'little') + data

    def first_list_byte(self):
        """Read up to the list's first byte. Returns the seconds since the client's last byte and since the connection."""
        while True:
            head = int.from_bytes(self.take(4), 'little')
            if head >> 24 == 7 and head & 0xffffff:
                now = time.monotonic()
                return now - self.asked, now - self.start
            self.take(head & 0xffffff)

    def line(self):
        line = b''
        while not line.endswith(b'\n'):
            byte = self.connection.recv(1)
            if not byte:
                break
            line += byte
        return line

    def take(self, count):
        taken = b''
        while len(taken) < count:
            piece = self.connection.recv(count - len(taken))
            if not piece:
                raise ConnectionError('the server closed the connection')
            taken += piece
        return taken
