"""What is measured. Each part adds rows; what each row is held against is its first contender."""

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time

import archives
from run import RESTOREFS, Failed, installed, resident, unmount


def archive(bench, name):
    """An archive by name, made when it is first asked for."""
    if name not in bench.archives:
        entries = 20_000 if bench.quick else 1_000_000
        size = 64 << 20 if bench.quick else 1 << 30
        bench.say(f"making {name}.tar")
        path = bench.path(f"{name}.tar")
        if name == "usr":
            bench.run(f"tar cf {path} --one-file-system -C / usr && sync {path}")
        else:
            writers = {
                "small": (archives.small_files, entries),
                "names": (archives.small_files, entries, False),
                # GNU tar does not have to put off the making of such links.
                "near": (archives.small_files, entries, True, "module_00000001.rs"),
                "large": (archives.large_files, 4, size),
            }
            archives.make(path, *writers[name])
        bench.archives[name] = path
    return bench.archives[name]


def peers(path, contents=False):
    """Filesystems for archives that are installed, by the command that mounts `path` and ends when all is there. Where
    `contents` are not needed, fuse-archive is spared the copy of them that it makes by default."""
    found = []
    if fuse_archive := installed("fuse-archive"):
        options = "notrim" if contents else "notrim,lazycache"
        found.append(("fuse-archive", f"{fuse_archive} -q -o {options} {path} MNT"))
    if ratarmount := installed("ratarmount"):
        found.append(("ratarmount", f"{ratarmount} -c --index-file :memory: {path} MNT"))
    if archivemount := installed("archivemount"):
        found.append(("archivemount", f"{archivemount} -o readonly {path} MNT"))
    return found


def shown(bench, command):
    command = command.replace(bench.work + "/", "").replace(RESTOREFS, "restorefs").replace(" --spool " + bench.work, "")
    return re.sub(r"^/\S*/", "", command)


def mount(bench):
    """Until an archive in the page cache is mounted, and complete."""
    for name in ("small", "usr"):
        path = archive(bench, name)
        contenders = []
        for who in ("tar", "bsdtar"):
            if program := installed(who):
                command = f"{program} tf {path}"
                contenders.append((who, shown(bench, f"{who} tf {path}"), lambda command=command: bench.run(command)))
        for who, command in [("restorefs", bench.restorefs(path)), *peers(path)]:
            contenders.append((who, shown(bench, command), lambda command=command: bench.time_of_mount(command)))
        bench.compare(f"`{name}.tar`: mounted and complete", contenders)


def pipe(bench):
    """The same from a pipe, kept on disk."""
    for name in ("large", "small"):
        path = archive(bench, name)
        count = iter(range(1 << 20))

        def extract(path=path, count=count):
            # Not removed before the end: ext4 is slow to use inodes again that were freed lately.
            return bench.run(f"cat {path} | tar xf - -C {bench.directory(f'out-{next(count)}')}")

        def copy(path=path):
            seconds = bench.run(f"cat {path} | cat >{bench.path('copy')}")
            os.unlink(bench.path("copy"))
            return seconds

        ours = f"cat {path} | {bench.restorefs('-')}"
        bench.compare(
            f"`{name}.tar` from a pipe, to disk",
            [
                ("cat", f"cat {name}.tar \\| cat >FILE", copy),
                ("restorefs", shown(bench, ours).replace("|", "\\|"), lambda: bench.time_of_mount(ours)),
                ("tar xf", f"cat {name}.tar \\| tar xf -", extract),
            ],
        )
        for n in range(next(count)):
            shutil.rmtree(bench.path(f"out-{n}"))


def memory(bench):
    """Resident memory of the daemon for each entry: with a million, less what it takes with none."""
    empty = bench.path("empty.tar")
    with open(empty, "wb") as out:
        out.write(archives.END)
    entries = 20_000 if bench.quick else 1_000_000

    def measure(command):
        found = []
        for path in (empty, archive(bench, "small")):
            with bench.mounted(bench.restorefs(command.replace("FILE", path))) as (point, _):
                found.append(resident(point))
        return (found[1] - found[0]) / entries

    def piped():
        found = []
        for path in (empty, archive(bench, "small")):
            with bench.mounted(f"cat {path} | {bench.restorefs('-')}") as (point, _):
                found.append(resident(point))
        return (found[1] - found[0]) / entries

    bench.compare(
        "memory for each entry",
        [
            ("restorefs, in place", "restorefs mount small.tar MNT", lambda: measure("FILE")),
            ("restorefs, from a pipe", "cat small.tar \\| restorefs mount - MNT", piped),
        ],
        unit="bytes",
        rounds=1,
    )


def listing(bench):
    """`find -ls`, for the first and for the second time, and on warm ext4."""
    # Which tar can extract to the disk in a time that can be waited for.
    path = archive(bench, "near")
    first, second = {}, {}

    def twice(who, command):
        def once():
            with bench.mounted(command) as (point, _):
                first[who] = bench.run(f"find {point} -ls")
                second[who] = bench.run(f"find {point} -ls")
            return first[who]

        return once

    tree = bench.directory("tree")
    bench.run(f"tar xf {path} -C {tree}")
    bench.run(f"find {tree} -ls")
    ours = ("restorefs", bench.restorefs(path))
    contenders = [("disk", "find TREE -ls, warm", lambda: bench.run(f"find {tree} -ls"))]
    contenders += [
        (who, f"find MNT -ls ({shown(bench, command)})", twice(who, command)) for who, command in [ours, *peers(path)]
    ]
    bench.compare("`find -ls`, for the first time", contenders, rounds=1)
    again = [contenders[0]] + [
        (who, command, lambda who=who: second[who]) for who, command, _ in contenders[1:] if who in second
    ]
    bench.compare("`find -ls`, for the second time", again, rounds=1)
    shutil.rmtree(tree)


def walk(bench):
    """Every small file is read, through each mount."""
    path = archive(bench, "small")

    def measure(command):
        with bench.mounted(command) as (point, _):
            return bench.run(f"tar cf - -C {point} . | cat >/dev/null")

    contenders = [
        (who, f"tar cf - MNT \\| cat >/dev/null ({shown(bench, command)})", lambda command=command: measure(command))
        for who, command in [("restorefs", bench.restorefs(path)), *peers(path, contents=True)]
    ]
    bench.compare("`small.tar`: every file walked to and read", contenders, rounds=1)


def read(bench):
    """Large files from the spool: from front to end, and 4 KiB anywhere; beside the same files as tar extracts them there."""
    path = archive(bench, "large")
    tree = bench.directory("tree")
    bench.run(f"tar xf {path} -C {tree} large-0")

    def once(measure, file, cached):
        if cached:
            measure(file)
        else:
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as drop:
                drop.write("1")
        return measure(file)

    def front_to_end(file):
        return bench.run(f"dd if={file} of=/dev/null bs=1M")

    command = "fio --name=x --rw=randread --bs=4k --ioengine=psync --io_size=64M --randseed=4 --readonly --invalidate=0 --filename=FILE"

    def anywhere(file):
        # fio says what a read took, without its own beginning and end.
        out = subprocess.run(
            [*command.replace("FILE", file).split(), "--output-format=json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, timeout=300, cwd=bench.work,
        ).stdout
        text = out.decode()
        job = json.loads(text[text.index("{") :])["jobs"][0]["read"]
        return job["clat_ns"]["mean"] / 1000

    ways = [("read from front to end", "dd if=FILE bs=1M", front_to_end, "s")]
    if installed("fio"):
        ways.append(("4 KiB anywhere", command, anywhere, "µs"))
    with bench.mounted(f"cat {path} | {bench.restorefs('-')}") as (point, _):
        for cached in (True, False):
            for what, shown_command, measure, unit in ways:
                bench.compare(
                    f"a large file, {what}, {'cached' if cached else 'from disk'}",
                    [
                        (who, shown_command.replace("FILE", name), lambda file=file: once(measure, file, cached))
                        for who, name, file in (
                            ("disk", "FILE", f"{tree}/large-0"),
                            ("restorefs", "MNT/large-0", f"{point}/large-0"),
                        )
                    ],
                    unit,
                    # Short, and noisy.
                    rounds=3 * bench.rounds,
                )
    shutil.rmtree(tree)


def latency(bench):
    """From the last byte of a header to a right readlink, while a reader lists; the index holds the small files."""
    path = archive(bench, "small")
    samples = 500 if bench.quick else 3000
    point = bench.directory("latency")
    server = subprocess.Popen(
        [RESTOREFS, "mount", "--spool", bench.work, "-f", "-", point],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True,
    )
    lister = None
    try:
        server.stderr.readline()
        with open(path, "rb") as archive_file:
            left = os.path.getsize(path) - len(archives.END)
            while left:
                chunk = archive_file.read(min(1 << 20, left))
                left -= len(chunk)
                while chunk:
                    chunk = chunk[server.stdin.write(chunk) :]
        server.stdin.write(archives.header("last", archives.SYMLINK, target="last"))
        while not os.path.islink(f"{point}/last"):
            time.sleep(0.01)
        lister = subprocess.Popen(
            ["bash", "-c", f"while :; do find {point} -ls >/dev/null; done"], start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        taken = []
        for n in range(samples):
            block = archives.header(f"link{n}", archives.SYMLINK, target=f"../{n}")
            name, target = f"{point}/link{n}", f"../{n}"
            begun = time.monotonic()
            server.stdin.write(block)
            while True:
                try:
                    if os.readlink(name) != target:
                        raise Failed("a link is wrong")
                    break
                except FileNotFoundError:
                    pass
            taken.append((time.monotonic() - begun) * 1000)
            time.sleep(random.random() / 1000)
        taken.sort()
        command = f"a header to restorefs mount -, then readlink(2) until it is there; {samples} times"
        for who, value in (("median", taken[len(taken) // 2]), ("99th percentile", taken[len(taken) * 99 // 100])):
            bench.compare(f"header to readlink, a reader listing: {who}", [("restorefs", command, lambda value=value: value)], "ms", 1)
    finally:
        if lister:
            os.killpg(lister.pid, 9)
            lister.wait()
        server.stdin.close()
        subprocess.run([RESTOREFS, "umount", "--force", point], check=False, stderr=subprocess.DEVNULL, timeout=60)
        unmount(point)
        try:
            server.wait(30)
        finally:
            server.kill()


def decompress(bench):
    """A compressed archive of large files, mounted and complete, beside its decompressor."""
    path = archive(bench, "usr")
    for suffix, pack, unpack, *others in (
        ("zst", "zstd -q -k -f -T0 -3", "zstd -dc"),
        ("gz", "gzip -k -f -1", "gzip -dc"),
        # By itself xz takes one thread before 5.6, and all from then on.
        ("xz", "xz -k -f -T0 -0", "xz -T1 -dc", "xz -T0 -dc"),
    ):
        bench.say(f"making usr.tar.{suffix}")
        bench.run(f"{pack} {path} && sync {path}.{suffix}")
        ours = f"{RESTOREFS} mount --spool /dev/shm {path}.{suffix} MNT"

        def kept(unpack=unpack, suffix=suffix):
            with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
                return bench.run(f"{unpack} {path}.{suffix} >{file.name}")

        bench.compare(
            f"`usr.tar.{suffix}`: decompressed",
            [
                *[
                    (by, f"{by} usr.tar.{suffix} >/dev/null", lambda by=by: bench.run(f"{by} {path}.{suffix}"))
                    for by in (unpack, *others)
                ],
                ("restorefs", shown(bench, ours), lambda: bench.time_of_mount(ours)),
                (f"{unpack}, kept", f"{unpack} usr.tar.{suffix} >/dev/shm/FILE", kept),
            ],
            before=lambda suffix=suffix: bench.cache_only(f"{path}.{suffix}"),
        )
        os.unlink(f"{path}.{suffix}")


def restore_large(bench):
    """Large files to memory and to disk: through the mount and beside it."""
    restore(bench, ("large",))


def restore(bench, names=("near", "small")):
    """A whole tree likewise."""
    materialize = f"{RESTOREFS} materialize --no-sync MNT DEST"
    for name in names:
        path = archive(bench, name)
        for where in ("/dev/shm",) if name == "near" else ("/dev/shm", bench.work):
            with Destinations(bench, path, where) as destinations:
                over_mount = [("restorefs materialize", "", materialize)]
                between = []
                if name != "near":
                    over_mount += [("cp -a", "", "cp -a MNT/. DEST"), ("rsync -aH", "", "rsync -aH MNT/ DEST/")]
                if name == "small":
                    over_mount.append(("cp -a, mount --no-xattrs", "--no-xattrs ", "cp -a MNT/. DEST"))
                if name != "near" and where == "/dev/shm":
                    # What these tools need without us.
                    between = [("cp -a of a tree", "cp -a TREE/. DEST"), ("rsync -aH of a tree", "rsync -aH TREE/ DEST/")]
                bench.compare(
                    f"`{name}.tar` restored to {'tmpfs' if where == '/dev/shm' else 'disk'}",
                    [
                        ("tar xf", f"tar xf {name}.tar", lambda: destinations.fill(f"tar xf {path} -C DEST", keep=True)),
                        *[
                            (
                                who,
                                command.replace(RESTOREFS, "restorefs"),
                                lambda options=options, command=command: destinations.fill_from(
                                    bench.restorefs(options + path), command
                                ),
                            )
                            for who, options, command in over_mount
                        ],
                        *[(who, command, lambda command=command: destinations.fill(command)) for who, command in between],
                    ],
                    rounds=min(bench.rounds, 3),
                )


class Destinations:
    """Places to restore to. What a run leaves is removed at once in memory; on disk only at the end: ext4 is slow to use
    inodes again that were freed lately."""

    def __init__(self, bench, archive, where):
        self.bench, self.archive, self.where = bench, archive, where
        self.made, self.tree = [], None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for made in self.made:
            shutil.rmtree(made, ignore_errors=True)

    def fill(self, command, keep=False):
        """The seconds that a command takes to fill a new `DEST`. What is kept is `TREE` to those that follow."""
        dest = os.path.join(self.where, f"{os.path.basename(self.bench.work)}-dest-{len(self.made)}")
        self.made.append(dest)
        os.makedirs(dest)
        # All begin with it in the page cache, whatever the one before has driven out.
        self.bench.run(f"cat {self.archive}")
        seconds = self.bench.run(command.replace("TREE", self.tree or "").replace("DEST", dest))
        if self.where != self.bench.work:
            gone = self.tree if keep else dest
            self.tree = dest if keep else self.tree
            if gone:
                shutil.rmtree(gone)
        return seconds

    def fill_from(self, mount, command):
        with self.bench.mounted(mount) as (point, _):
            os.sync()
            return self.fill(command.replace("MNT", point))


def send(bench):
    """A tree in memory to another place in memory, over loopback: until the receiver has all of it, on its disk were it one."""
    with memory_directory(bench) as base:
        for name in ("small", "large"):
            tree, there = os.path.join(base, f"{name}-tree"), os.path.join(base, "there")
            os.makedirs(tree)
            bench.run(f"tar xf {archive(bench, name)} -C {tree}")
            with sshd(base) as ssh:
                packed = f"tar cf - -C {tree} ."
                unpack = f"tar xf - -C {there}"
                contenders = [
                    ("tar \\| nc >FILE", over_nc(packed, f"cat >{there}/x")),
                    ("tar \\| nc \\| tar", over_nc(packed, unpack)),
                ]
                if ssh:
                    contenders.append(("tar \\| ssh \\| tar", f"{packed} | {ssh} '{unpack}'"))

                def piped(command):
                    os.makedirs(there)
                    try:
                        return bench.run(f"{command} && sync -f {there}")
                    finally:
                        shutil.rmtree(there)

                bench.compare(
                    f"`{name}.tar` as a tree, sent over loopback",
                    [(who, shown_tree(command, base), lambda command=command: piped(command)) for who, command in contenders]
                    + [("restorefs send", "restorefs send -C TREE . --to 127.0.0.1:PORT", lambda: sent(bench, base, tree))],
                )
            shutil.rmtree(tree)


def over_nc(pack, unpack):
    port = free_port()
    # The receiver has to listen first; a sender that comes too early is refused, and tries again.
    return (
        f"nc -l 127.0.0.1 {port} | {unpack} & receiver=$!; "
        f"until grep -q ':{port:04X} 00000000:0000 0A' /proc/net/tcp; do sleep 0.01; done; "
        f"{pack} | nc -N 127.0.0.1 {port} && wait $receiver"
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def sent(bench, base, tree):
    """Seconds of `restorefs send`, which ends when the receiver has confirmed everything."""
    port, token = free_port(), os.path.join(base, "token")
    receiver = f"{RESTOREFS} mount --detach --spool {base} --listen 127.0.0.1:{port} --token-file {token} MNT"
    with bench.mounted(receiver):
        return bench.run(f"{RESTOREFS} send -C {tree} . --token-file {token} --to 127.0.0.1:{port}")


@contextlib.contextmanager
def memory_directory(bench):
    base = f"/dev/shm/{os.path.basename(bench.work)}"
    os.makedirs(base)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def sshd(base):
    """An ssh server of our own, and the command that logs in to it; None where there is none to start."""
    server = installed("sshd") or shutil.which("sshd", path="/usr/sbin")
    if not server:
        yield None
        return
    port = free_port()
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{base}/{key}"], check=True)
    os.makedirs("/run/sshd", exist_ok=True)
    options = [f"HostKey={base}/host", f"AuthorizedKeysFile={base}/user.pub", "StrictModes=no", "UsePAM=no",
               f"ListenAddress=127.0.0.1:{port}", "PidFile=none"]
    process = subprocess.Popen(
        [server, "-D", "-f", "/dev/null", *(word for option in options for word in ("-o", option))],
        stderr=subprocess.DEVNULL, start_new_session=True,
    )
    ssh = (
        f"ssh -F /dev/null -p {port} -i {base}/user -o BatchMode=yes -o StrictHostKeyChecking=no "
        "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR 127.0.0.1"
    )
    try:
        for _ in range(100):
            if subprocess.run([*ssh.split(), "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.05)
        else:
            ssh = None
        yield ssh
    finally:
        process.kill()
        process.wait()
        for key in ("host", "user"):
            for suffix in ("", ".pub"):
                os.unlink(f"{base}/{key}{suffix}")


def shown_tree(command, base):
    """The command without what is only of this run."""
    command = re.sub(r"until .*?done; |-F /dev/null.*?LogLevel=ERROR ", "", command)
    return re.sub(r"(127\.0\.0\.1) \d+", r"\1 PORT", command.replace(base + "/", "")).replace("|", "\\|")


def ten_million(bench):
    """Ten million entries beside one million: does everything grow linearly?"""
    paths = {}
    for count in (1_000_000, 10_000_000):
        bench.say(f"making an archive of {count} names")
        path = archives.make(bench.path(f"names-{count}.tar"), archives.small_files, count, False)
        bench.run(f"cat {path}")
        paths[f"{count:,} entries"] = path
    bench.compare(
        "entries without contents: mounted and complete",
        [
            (who, "restorefs mount names.tar MNT", lambda path=path: bench.time_of_mount(bench.restorefs(path)))
            for who, path in paths.items()
        ],
    )
    figures = {}
    for who, path in paths.items():
        with bench.mounted(bench.restorefs(path)) as (point, _):
            figures[who] = (resident(point) / 2**20, bench.run(f"find {point} -ls"))
        os.unlink(path)
    for n, (what, command, unit) in enumerate(
        (("memory", "VmRSS of the daemon", "MiB"), ("`find -ls`, for the first time", "find MNT -ls", "s"))
    ):
        bench.compare(
            f"entries without contents: {what}",
            [(who, command, lambda value=value[n]: value) for who, value in figures.items()],
            unit,
            rounds=1,
        )


PARTS = {
    "mount": mount,
    "pipe": pipe,
    "memory": memory,
    "list": listing,
    "walk": walk,
    "read": read,
    "latency": latency,
    "decompress": decompress,
    "restore-large": restore_large,
    "restore": restore,
    "send": send,
}
LARGE = {"ten-million": ten_million}
