"""Package repositories with real packages and the publishers' own tools: Debian's, rpm's and Arch's.

A publisher brings new packages, replaces the indices, replaces the head, and then deletes the superseded packages. A reader
follows the same way by digests: `indices` says what a head names, `packages` what the indices name.
"""
import collections
import concurrent.futures
import datetime
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import random
import re
import shutil
import tarfile
import threading
import time
from stat import S_ISREG

from bench import must

# Versions of an index that stay reachable by digest.
KEPT = 3
# Sizes of the packages that are taken from Debian, in bytes.
SIZES = range(3_000, 40_000)


def debs(cache, count):
    """Return `count` small packages of Debian. Those that the directory `cache` lacks are downloaded into it."""
    cache = pathlib.Path(cache).resolve()
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob('*.deb'))
    if len(found) < count:
        _, available = must(['apt-cache', 'dumpavail'])
        sizes = {}
        for stanza in available.split('\n\n'):
            fields = dict(line.split(': ', 1) for line in stanza.splitlines() if re.match(r'(Package|Size): ', line))
            if len(fields) == 2:
                sizes[fields['Package']] = int(fields['Size'])
        names = [name for name, size in sorted(sizes.items()) if size in SIZES]
        must(['apt-get', 'download', *random.Random(1).sample(names, count + 20)], cwd=cache)
        found = sorted(cache.glob('*.deb'))
    return found[:count]


class Repository:
    """A publisher's tree. Files appear by rename."""

    def __init__(self, work, debs, packages, share):
        self.root, self.debs, self.count = work / self.kind, debs, packages
        self.share, self.random, self.version = share, random.Random(7), 0
        # The version and time of each publish, by the digest of its head, and when each path was deleted.
        self.heads, self.published, self.deleted, self.lock = {}, {}, {}, threading.Lock()
        # The bytes that the last publish brought, and the seconds since the one before.
        self.pace = None
        (self.root / self.head).parent.mkdir(parents=True)
        self.prepare(work)

    def publish(self):
        number, began = self.version + 1, time.time()
        old = self.bring(number)
        self.write_metadata()
        with self.lock:
            self.version = number
            self.published[number] = time.time()
            self.heads[sha256((self.root / self.head).read_bytes())] = number
        for path in old:
            (self.root / path).unlink()
            self.deleted[path] = time.time()
        self.forget()
        new = {stat.st_ino: stat.st_size for stat in map(os.stat, self.root.rglob('*')) if S_ISREG(stat.st_mode) and stat.st_ctime > began}
        self.pace = sum(new.values()), self.published[number] - self.published.get(number - 1, began)

    def version_of(self, head):
        """Return the number of the publish with this head, or None."""
        with self.lock:
            return self.heads.get(sha256(head))

    def prepare(self, work):
        """Make what all publishes need."""

    def forget(self):
        """Delete old indices."""

    def some(self, names):
        """Return the names whose packages a publish replaces."""
        return self.random.sample(sorted(names), max(1, int(len(names) * self.share)))


class Debian(Repository):
    """As dak publishes: names by digest are hard links. A replaced package gives way to another one."""

    kind, head = 'debian', 'dists/stable/InRelease'
    COMPONENTS = ('main', 'contrib')
    VARIANTS = {'Packages': bytes, 'Packages.gz': lambda text: gzip.compress(text, mtime=0), 'Packages.xz': lambda text: lzma.compress(text, preset=1)}

    def prepare(self, work):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            self.stanzas = dict(zip(self.debs, pool.map(stanza, self.debs)))
        self.waiting = {component: collections.deque(self.debs[number::2]) for number, component in enumerate(self.COMPONENTS)}
        self.current = {component: [] for component in self.COMPONENTS}
        self.by_hash = collections.defaultdict(list)
        self.gnupg = work / 'gnupg'
        self.gnupg.mkdir(mode=0o700)
        self.gpg('--quick-generate-key', 'bench', 'ed25519', 'sign', 'never')
        self.key = work / 'key.gpg'
        self.gpg('--output', self.key, '--export')

    def bring(self, number):
        old = []
        for component, current in self.current.items():
            for deb in self.some(current) if current else []:
                current.remove(deb)
                self.waiting[component].append(deb)
                old.append(self.pool(component, deb))
            while len(current) < self.count // len(self.COMPONENTS):
                deb = self.waiting[component].popleft()
                current.append(deb)
                put(self.root / self.pool(component, deb), deb.read_bytes(), deb.stat().st_mtime)
        return old

    def write_metadata(self):
        listed = []
        for component, current in self.current.items():
            folder = f'{component}/binary-amd64'
            text = ''.join(f'{self.stanzas[deb]}Filename: {self.pool(component, deb)}\n\n' for deb in sorted(current)).encode()
            files = {name: pack(text) for name, pack in self.VARIANTS.items()}
            files['Release'] = f'Archive: stable\nComponent: {component}\nArchitecture: amd64\n'.encode()
            for name, content in files.items():
                path, digest = self.root / 'dists/stable' / folder / name, sha256(content)
                put(path, content)
                link = path.parent / 'by-hash/SHA256' / digest
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                os.link(path, link)
                kept = self.by_hash[path]
                kept[:] = [other for other in kept if other != link] + [link]
                listed.append(f' {digest} {len(content)} {folder}/{name}\n')
        date = datetime.datetime.now(datetime.timezone.utc).strftime('%a, %d %b %Y %H:%M:%S UTC')
        release = (f'Origin: bench\nSuite: stable\nCodename: stable\nDate: {date}\nAcquire-By-Hash: yes\nArchitectures: amd64\n'
                   f'Components: {" ".join(self.COMPONENTS)}\nSHA256:\n{"".join(listed)}').encode()
        folder = self.root / 'dists/stable'
        signed = [('Release', release), ('Release.gpg', self.gpg('--armor', '--detach-sign', input=release)), ('InRelease', self.gpg('--clearsign', input=release))]
        for name, content in signed:
            put(folder / name, content)

    def forget(self):
        for kept in self.by_hash.values():
            while len(kept) > KEPT:
                path = kept.pop(0)
                path.unlink()
                self.deleted[str(path.relative_to(self.root))] = time.time()

    def pool(self, component, deb):
        name = deb.name.partition('_')[0]
        # Without the epoch, as in Debian's pool.
        return f'pool/{component}/{name[0]}/{name}/{re.sub("_[0-9]+%3a", "_", deb.name)}'

    def gpg(self, *words, input=b''):
        return must(['gpg', '--homedir', self.gnupg, '--batch', '--quiet', '--yes', '--passphrase', '', *words], input=input)[1].encode()

    def close(self):
        must(['gpgconf', '--homedir', self.gnupg, '--kill', 'gpg-agent'])

    @staticmethod
    def indices(head):
        lines = head.decode().partition('SHA256:\n')[2].splitlines()
        for digest, _, path in (line.split() for line in lines if line.startswith(' ')):
            yield f'dists/stable/{os.path.dirname(path)}/by-hash/SHA256/{digest}', digest, path

    @staticmethod
    def packages(_, indices):
        for path, index in indices.items():
            if path.endswith('.xz'):
                text = lzma.decompress(index).decode()
                yield from zip(re.findall('^Filename: (.*)', text, re.M), re.findall('^SHA256: (.*)', text, re.M))


class Numbered(Repository):
    """A repository whose packages get new versions. `build(names, number)` makes them and returns their paths by name."""

    def bring(self, number):
        if number == 1:
            self.current = self.build([f'p{package:03}' for package in range(self.count)], 1)
            return []
        new = self.build(self.some(self.current), number)
        old = [self.current[name] for name in new]
        self.current |= new
        self.new = new
        return old

    def deb(self, name, number):
        """Return the content of a package's version."""
        return self.debs[(int(name[1:]) + 7 * number) % len(self.debs)]

    def close(self):
        pass


class Rpm(Numbered):
    """As `createrepo_c` publishes: all metadata but the head are named by digest."""

    kind, head = 'rpm', 'repodata/repomd.xml'

    def prepare(self, work):
        self.top = work / 'rpmbuild'

    def build(self, names, number):
        spec = self.top / 'bench.spec'
        spec.parent.mkdir(exist_ok=True)
        parts = [f'Name: bench\nVersion: {number}\nRelease: 1\nSummary: A package\nLicense: MIT\nBuildArch: noarch\nAutoReqProv: no\n%description\n\n']
        parts += [f'%package -n {name}\nSummary: A package\n%description -n {name}\n\n%files -n {name}\n/srv/{name}\n\n' for name in names]
        parts += ['%install\nmkdir -p %{buildroot}/srv\n', *(f'cp {self.deb(name, number)} %{{buildroot}}/srv/{name}\n' for name in names)]
        spec.write_text(''.join(parts))
        macros = {'_topdir': self.top, '__os_install_post': '%{nil}', '_binary_payload': 'w1.gzdio'}
        must(['rpmbuild', '-bb', '--quiet', *(word for macro in macros.items() for word in ('--define', ' '.join(map(str, macro)))), spec])
        paths = {}
        for name in names:
            paths[name] = f'Packages/{name}-{number}-1.noarch.rpm'
            (self.root / 'Packages').mkdir(exist_ok=True)
            shutil.move(self.top / f'RPMS/noarch/{name}-{number}-1.noarch.rpm', self.root / paths[name])
        return paths

    def write_metadata(self):
        listed = self.top / 'packages'
        listed.write_text(''.join(f'{path}\n' for path in self.current.values()))
        must(['createrepo_c', '--quiet', '--update', '--no-database', '--retain-old-md', KEPT, '--pkglist', listed, self.root])

    @staticmethod
    def indices(head):
        for data in re.findall('<data type.*?</data>', head.decode(), re.S):
            path = re.search('<location href="(.*?)"', data)[1]
            yield path, re.search('<checksum type="sha256">(.*?)<', data)[1], path

    @staticmethod
    def packages(_, indices):
        for path, index in indices.items():
            if 'primary.xml' in path:
                text = gzip.decompress(index).decode()
                yield from zip(re.findall('<location href="(.*?)"', text), re.findall('<checksum type="sha256" pkgid="YES">(.*?)<', text))


class Arch(Numbered):
    """As `repo-add` publishes: the database is head and index in one."""

    kind, head = 'arch', 'core/os/x86_64/core.db'

    def build(self, names, number):
        paths = {}
        for name in names:
            # Larger packages, because `repo-add` takes seconds: a slow link is then one that pull can be limited to.
            content = b''.join(self.deb(name, number + part).read_bytes() for part in range(8))
            info = f'pkgname = {name}\npkgbase = {name}\npkgver = {number}-1\npkgdesc = A package\nbuilddate = 1\npackager = bench\nsize = {len(content)}\narch = any\n'
            package = io.BytesIO()
            with tarfile.open(fileobj=package, mode='w:gz', compresslevel=1) as tar:
                for path, part in (('.PKGINFO', info.encode()), (f'srv/{name}', content)):
                    entry = tarfile.TarInfo(path)
                    entry.size = len(part)
                    tar.addfile(entry, io.BytesIO(part))
            paths[name] = f'core/os/x86_64/{name}-{number}-1-any.pkg.tar.gz'
            put(self.root / paths[name], package.getvalue())
        self.new = paths
        return paths

    def write_metadata(self):
        folder = self.root / 'core/os/x86_64'
        must(['repo-add', '--quiet', 'core.db.tar.gz', *(os.path.basename(path) for path in self.new.values())], cwd=folder)

    @staticmethod
    def indices(_):
        return ()

    @staticmethod
    def packages(head, _):
        with tarfile.open(fileobj=io.BytesIO(head)) as database:
            for entry in database:
                if entry.name.endswith('/desc'):
                    text = database.extractfile(entry).read().decode()
                    yield (f'core/os/x86_64/{field(text, "FILENAME")}', field(text, 'SHA256SUM'))


KINDS = {kind.kind: kind for kind in (Debian, Rpm, Arch)}


def stanza(deb):
    """Return what `Packages` says about a package, without the name of its file."""
    _, control = must(['dpkg-deb', '--field', deb])
    return f'{control}Size: {deb.stat().st_size}\nSHA256: {sha256(deb.read_bytes())}\n'


def field(text, name):
    return text.partition(f'%{name}%\n')[2].partition('\n')[0]


def put(path, content, mtime=None):
    """Replace a file by a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.new')
    temporary.write_bytes(content)
    if mtime is not None:
        os.utime(temporary, (mtime, mtime))
    os.rename(temporary, path)


def sha256(content):
    return hashlib.sha256(content).hexdigest()
