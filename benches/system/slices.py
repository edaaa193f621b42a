#!/usr/bin/env python3
"""Slices by suite and architecture: what a slice has works for the real clients, and nothing beyond it is fetched.

A Debian archive with several suites, components and architectures, made by dpkg-deb and apt-ftparchive, with names by
digest, and an rpm repository with several architectures, made by rpmbuild and createrepo_c. A mirror pulls slices of them;
`apt-get update` and `apt-get download`, or dnf, then fetch every package of the slice from it over nginx.
"""
import collections
import gzip
import hashlib
import lzma
import os
import re
import shutil
import subprocess

import bench
from repositories import put, sha256

SUITES, COMPONENTS = ('bookworm', 'trixie'), ('main', 'contrib')
ARCHITECTURES = ('amd64', 'arm64', 'riscv64')
RPM_ARCHITECTURES = ('x86_64', 'aarch64', 'noarch')
# What a pull may receive besides contents and its list: frames, heads, block checksums.
OVERHEAD = 64 << 10


def run(b):
    archive = Archive(b, b.work / 'debian')
    archive.publish(1)
    slices = [((suite,), (architecture,)) for suite in SUITES for architecture in ARCHITECTURES]
    slices += [(SUITES, ARCHITECTURES[:2]), (SUITES[:1], ('amd64', 'source'))]
    b.stillmirror.index(archive.root, b.work / 'store')
    with b.stillmirror.serve(archive.root, b.work / 'store') as server:
        for suites, architectures in slices:
            mirror = Mirror(b, server.url, '-'.join(suites + architectures), suites, architectures)
            debian(b, mirror, archive, 1)
        whole = b.work / 'whole'
        b.stillmirror.pull(server.url, whole, b.work / 'whole-store')
        b.check('the whole archive has more than all slices', len(files(whole)) > max(row['files'] for row in b.tables['slices']))
        # An update, of the first slice.
        archive.publish(2)
        b.stillmirror.index(archive.root, b.work / 'store')
        mirror = Mirror(b, server.url, '-'.join(slices[0][0] + slices[0][1]), *slices[0])
        debian(b, mirror, archive, 2)
    if shutil.which('rpmbuild') and shutil.which('createrepo_c'):
        rpm(b)
    else:
        print('no rpm tools: left out')


class Mirror:
    def __init__(self, b, url, name, suites, architectures):
        self.b, self.url, self.name, self.suites, self.architectures = b, url, name, suites, architectures
        self.dest, self.store = b.work / f'mirrors/{name}', b.work / f'mirror-stores/{name}'
        self.dest.parent.mkdir(exist_ok=True)
        self.store.parent.mkdir(exist_ok=True)

    def pull(self, generation):
        """Pull, and check that nothing beyond the slice was fetched. Return the report."""
        b, before = self.b, {path: sha256((self.dest / path).read_bytes()) for path in files(self.dest)}
        options = [f'--suite={",".join(self.suites)}'] if self.suites else []
        report = b.stillmirror.pull_generation(generation, self.url, self.dest, self.store, *options, f'--arch={",".join(self.architectures)}')
        contents = {sha256(content): len(content) for content in map(bytes_of, (self.dest / path for path in files(self.dest)))}
        new = sum(size for digest, size in contents.items() if digest not in before.values())
        b.table('slices', [{
            'slice': self.name, 'files': len(files(self.dest)), 'new bytes': new, 'bytes of data': report['bytes_literal'],
            'bytes of list': report['bytes_list'], 'bytes received': report['bytes_received'], 'seconds': report['seconds'],
        }])
        b.at_most(f'{self.name}: bytes of data', report['bytes_literal'], new)
        b.at_most(f'{self.name}: bytes received', report['bytes_received'], new + report['bytes_list'] + OVERHEAD)
        again = b.stillmirror.pull(self.url, self.dest, self.store, *options, f'--arch={",".join(self.architectures)}')
        b.check(f'{self.name}: a second pull finds nothing new', again['unchanged'] and again['bytes_literal'] == 0)
        return report


def debian(b, mirror, archive, generation):
    mirror.pull(generation)
    expected = archive.slice(mirror.suites, mirror.architectures)
    b.check(f'{mirror.name}: the tree has the files of the slice, and no other', files(mirror.dest) == expected)
    with b.nginx(mirror.dest.parent) as web:
        for architecture in mirror.architectures:
            if architecture != 'source':
                downloads = apt(b, f'{web.url}/{mirror.dest.name}', archive, mirror.suites, architecture)
                b.check(f'{mirror.name}, {architecture}: apt-get downloads every package ({downloads[0]} of {downloads[1]})', downloads[0] == downloads[1] > 0)


class Archive:
    """A Debian archive. `owners` says for each path to which suite and architecture it belongs."""

    def __init__(self, b, root):
        self.b, self.root, self.owners, self.plain = b, root, collections.defaultdict(set), []
        self.gnupg = b.work / 'gnupg'
        self.gnupg.mkdir(mode=0o700)
        self.gpg('--quick-generate-key', 'bench', 'ed25519', 'sign', 'never')
        self.key = b.work / 'key.gpg'
        self.gpg('--output', self.key, '--export')

    def gpg(self, *words, text=b''):
        argv = ['gpg', '--homedir', self.gnupg, '--batch', '--quiet', '--yes', '--passphrase', '', *words]
        return subprocess.run(list(map(str, argv)), input=text, stdout=subprocess.PIPE, check=True).stdout

    def publish(self, version):
        shutil.rmtree(self.root, ignore_errors=True)
        self.owners.clear()
        put(self.root / 'README', b'readme')
        for suite in SUITES:
            for component in COMPONENTS:
                self.build(suite, component, version)
            self.write_suite(suite)
        os.symlink('bookworm', self.root / 'dists/stable')
        self.owners['dists/stable'] = set()

    def build(self, suite, component, version):
        """Build packages, and a source package, into the pool."""
        pool = f'pool/{component}/{suite}'
        for architecture in (*ARCHITECTURES, 'all'):
            for number in range(self.b.args.packages):
                name = f'{suite}-{component}-{architecture}-{number}'
                staging = self.b.work / 'package'
                shutil.rmtree(staging, ignore_errors=True)
                control = f'Package: {name}\nVersion: {version if number == 0 else 1}\nArchitecture: {architecture}\nMaintainer: b <b@b>\nDescription: a package\n'
                put(staging / 'DEBIAN/control', control.encode())
                noise = hashlib.shake_256(f'{name} {version if number == 0 else 1}'.encode()).digest(20_000)
                put(staging / f'usr/share/{name}', noise)
                (self.root / pool).mkdir(parents=True, exist_ok=True)
                quietly('dpkg-deb', '--root-owner-group', '--build', staging, self.root / pool)
        for end in ('dsc', 'tar.gz'):
            content = f'Format: 1.0\nSource: {suite}-{component}\nBinary: x\nArchitecture: any\nVersion: {version}\nMaintainer: b <b@b>\nFiles:\n {"0" * 32} 1 {suite}-{component}_{version}.tar.gz\n'
            put(self.root / pool / f'{suite}-{component}_{version}.{end}', content.encode() if end == 'dsc' else gzip.compress(content.encode()))

    def write_suite(self, suite):
        folder = self.root / 'dists' / suite
        for component in COMPONENTS:
            pool = f'pool/{component}/{suite}'
            for architecture in ARCHITECTURES:
                text = quietly('apt-ftparchive', '--arch', architecture, 'packages', pool, cwd=self.root)
                self.put_index(suite, f'{component}/binary-{architecture}/Packages', text, architecture)
                contents = quietly('apt-ftparchive', '--arch', architecture, 'contents', pool, cwd=self.root)
                self.put_index(suite, f'{component}/Contents-{architecture}', contents, architecture, ('.gz',))
                for path in re.findall('^Filename: (.*)', text.decode(), re.M):
                    self.owners[path].add((suite, architecture))
                put(folder / f'{component}/installer-{architecture}/images/netboot', os.urandom(5000))
            stanza = f'Package: {suite}-{component}\nFormat: 1.0\nDirectory: {pool}\nFiles:\n'
            for path in sorted((self.root / pool).glob(f'{suite}-{component}_*')):
                stanza += f' {hashlib.md5(path.read_bytes()).hexdigest()} {path.stat().st_size} {path.name}\n'
                self.owners[str(path.relative_to(self.root))].add((suite, 'source'))
            self.put_index(suite, f'{component}/source/Sources', stanza.encode(), 'source')
            translation = f'Package: x\nDescription-en: a package of {suite} {component}\n'
            self.put_index(suite, f'{component}/i18n/Translation-en', translation.encode(), '')
        options = {'Suite': suite, 'Codename': suite, 'Components': ' '.join(COMPONENTS), 'Architectures': ' '.join(ARCHITECTURES), 'Acquire-By-Hash': 'yes'}
        words = [word for name, value in options.items() for word in ('-o', f'APT::FTPArchive::Release::{name}={value}')]
        release = quietly('apt-ftparchive', *words, 'release', folder)
        # As in Debian: listed, and there only in the compressed forms.
        for path in self.plain:
            path.unlink()
        self.plain.clear()
        for name, content in (('Release', release), ('InRelease', self.gpg('--clearsign', text=release)), ('Release.gpg', self.gpg('--armor', '--detach-sign', text=release))):
            put(folder / name, content)
            self.owners[f'dists/{suite}/{name}'].add((suite, ''))

    def put_index(self, suite, path, text, architecture, ends=('.xz', '.gz')):
        self.plain.append(self.root / 'dists' / suite / path)
        put(self.plain[-1], text)
        for end in ends:
            path_of_form = self.root / 'dists' / suite / f'{path}{end}'
            content = lzma.compress(text, preset=1) if end == '.xz' else gzip.compress(text, mtime=0)
            put(path_of_form, content)
            link = path_of_form.parent / 'by-hash/SHA256' / sha256(content)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            os.link(path_of_form, link)
            for name in (path_of_form, link):
                self.owners[str(name.relative_to(self.root))].add((suite, architecture))

    def slice(self, suites, architectures):
        wanted = {(suite, architecture) for suite in suites for architecture in (*architectures, '')}
        return {path for path, owners in self.owners.items() if owners & wanted}


def apt(b, url, archive, suites, architecture):
    """Update, and download every package. Return how many came, and how many there are."""
    work = b.work / 'apt'
    shutil.rmtree(work, ignore_errors=True)
    for folder in ('lists/partial', 'cache/archives/partial', 'etc', 'downloads'):
        (work / folder).mkdir(parents=True)
    (work / 'status').touch()
    lines = [f'deb [signed-by={archive.key} arch={architecture}] {url} {suite} {" ".join(COMPONENTS)}\n' for suite in suites]
    (work / 'etc/sources.list').write_text(''.join(lines))
    (work / 'apt.conf').write_text(f'''
Dir::Etc {{ main "/dev/null"; parts "/dev/null"; sourcelist "{work}/etc/sources.list"; sourceparts "/dev/null"; preferencesparts "/dev/null"; }};
Dir::State "{work}"; Dir::State::lists "{work}/lists"; Dir::State::status "{work}/status"; Dir::Cache "{work}/cache";
APT {{ Architecture "{architecture}"; Architectures "{architecture}"; Sandbox::User "root"; Update::Error-Mode "any"; }};
Acquire {{ Languages "en"; http::Proxy "DIRECT"; }};
''')
    env = os.environ | {'APT_CONFIG': str(work / 'apt.conf'), 'LC_ALL': 'C'}
    quietly('apt-get', '--quiet', '--quiet', 'update', env=env, cwd=work)
    names = set()
    for path in (work / 'lists').glob('*_Packages'):
        names |= set(re.findall('^Package: (.*)', path.read_text(), re.M))
    expected = len(suites) * len(COMPONENTS) * b.args.packages * 2
    quietly('apt-get', '--quiet', '--quiet', 'download', *sorted(names), env=env, cwd=work / 'downloads')
    return len(list((work / 'downloads').glob('*.deb'))), expected


def rpm(b):
    root = b.work / 'rpm'
    (root / 'Packages').mkdir(parents=True)
    for architecture in RPM_ARCHITECTURES:
        for number in range(b.args.packages):
            top = b.work / 'rpmbuild'
            shutil.rmtree(top, ignore_errors=True)
            name = f'{architecture}-{number}'
            put(top / 'file', hashlib.shake_256(name.encode()).digest(20_000))
            put(top / 'p.spec', (f'Name: p-{name}\nVersion: 1\nRelease: 1\nSummary: A package\nLicense: MIT\nAutoReqProv: no\n%description\n\n%install\n'
                                 f'mkdir -p %{{buildroot}}/srv\ncp {top}/file %{{buildroot}}/srv/{name}\n%files\n/srv/{name}\n').encode())
            macros = {'_topdir': top, '__os_install_post': '%{nil}', 'debug_package': '%{nil}'}
            quietly('rpmbuild', '-bb', '--quiet', '--target', architecture, *(word for macro in macros.items() for word in ('--define', ' '.join(map(str, macro)))), top / 'p.spec')
            for path in (top / 'RPMS').rglob('*.rpm'):
                shutil.move(path, root / 'Packages' / path.name)
    quietly('createrepo_c', '--quiet', root)
    b.stillmirror.index(root, b.work / 'rpm-store')
    with b.stillmirror.serve(root, b.work / 'rpm-store') as server:
        for architecture in RPM_ARCHITECTURES[:2]:
            mirror = Mirror(b, server.url, f'rpm-{architecture}', (), (architecture,))
            mirror.pull(1)
            all_files = files(root)
            expected = {path for path in all_files if path.startswith('repodata/') or path.endswith((f'.{architecture}.rpm', '.noarch.rpm'))}
            b.check(f'{mirror.name}: the tree has the files of the slice, and no other', files(mirror.dest) == expected)
            if shutil.which('dnf'):
                with b.nginx(mirror.dest.parent) as web:
                    came = dnf(b, f'{web.url}/{mirror.dest.name}', architecture)
                b.check(f'{mirror.name}: dnf downloads every package ({came})', came == 2 * b.args.packages)


def dnf(b, url, architecture):
    work = b.work / f'dnf-{architecture}'
    work.mkdir()
    (work / 'dnf.conf').write_text(f'[main]\ngpgcheck=0\ninstallroot={work}/root\nreposdir=/dev/null\nplugins=0\n[bench]\nname=bench\nbaseurl={url}\n')
    names = [f'p-{one}-{number}' for one in (architecture, 'noarch') for number in range(b.args.packages)]
    quietly('dnf', '--config', work / 'dnf.conf', '--releasever', '1', '--forcearch', architecture, '--quiet', '--assumeyes', '--downloadonly', '--downloaddir', work / 'downloads', 'install', *names)
    return len(list((work / 'downloads').glob('*.rpm')))


def files(root):
    return {str(path.relative_to(root)) for path in root.rglob('*') if path.is_file() and not path.is_symlink()} if root.exists() else set()


def bytes_of(path):
    return path.read_bytes()


def quietly(*argv, **popen):
    done = subprocess.run(list(map(str, argv)), stdin=subprocess.DEVNULL, capture_output=True, **popen)
    if done.returncode:
        raise SystemExit(f'{" ".join(map(str, argv))[:500]}\nexits with {done.returncode}: {done.stderr.decode(errors="replace")}')
    return done.stdout


if __name__ == '__main__':
    bench.main(__doc__, [('--packages', dict(type=int, default=5, metavar='NUMBER', help='packages of each suite, component and architecture (default: 5)'))], run)
