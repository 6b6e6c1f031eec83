"""Commands with time limits, mounts that go away again, and a place to work that is gone afterwards."""

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def target():
    """Where cargo puts what it builds: CARGO_TARGET_DIR, or what a configuration says."""
    command = ["cargo", "metadata", "--format-version=1", "--no-deps"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)["target_directory"]


RESTOREFS = os.path.join(target(), "release/restorefs")


class Failed(Exception):
    """A contender failed or hung: its cell stays empty, the rest goes on."""


class Row:
    """One contender's figures for one thing that is measured."""

    def __init__(self, what, who, command, unit):
        self.what, self.who, self.command, self.unit = what, who, command, unit
        self.values, self.failure = [], None

    def saved(self):
        return vars(self)

    @classmethod
    def restored(cls, saved):
        row = cls(saved["what"], saved["who"], saved["command"], saved["unit"])
        row.values, row.failure = saved["values"], saved["failure"]
        return row

    @property
    def median(self):
        return statistics.median(self.values) if self.values else None


class Bench:
    def __init__(self, directory, quick, rounds, limit):
        self.quick, self.rounds = quick, rounds
        self.work = tempfile.mkdtemp(dir=directory, prefix="restorefs-bench.")
        self.rows, self.archives = [], {}
        # No command of any of the contenders may take longer, in seconds: a peer that hangs must not stop the rest.
        self.limit = limit

    def path(self, *parts):
        return os.path.join(self.work, *parts)

    def directory(self, *parts):
        os.makedirs(self.path(*parts), exist_ok=True)
        return self.path(*parts)

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    # What is measured

    def measure(self, name, part):
        """Runs a part, and gives its rows. One that fails leaves out what it had still to measure."""
        self.say(f"# {name}")
        begin = len(self.rows)
        try:
            part(self)
        except (Failed, OSError, subprocess.SubprocessError) as failure:
            self.say(f"  the rest of {name} is left out: {failure}")
        return self.rows[begin:]

    def compare(self, what, contenders, unit="s", rounds=None, before=None):
        """Measures contenders in turns, round by round. Each is (who, command to show, what gives a figure). `before`
        makes ready for each."""
        rows = [Row(what, who, command, unit) for who, command, _ in contenders]
        for _ in range(rounds or self.rounds):
            for row, (_, _, measure) in zip(rows, contenders):
                if row.failure:
                    continue
                try:
                    # Nobody pays for what the one before has left to be written.
                    os.sync()
                    if before:
                        before()
                    row.values.append(measure())
                except (Failed, OSError, subprocess.SubprocessError) as failure:
                    row.failure = str(failure)
                    self.say(f"  {row.who}: {failure}")
        for row in rows:
            if row.values:
                self.say(f"  {what}: {row.who}: {row.median:.4g} {unit}")
        self.rows += rows
        return {row.who: row for row in rows}

    # Commands

    def run(self, command, output=subprocess.DEVNULL, **kwargs):
        """Runs a command line of the shell, or arguments, in a process group of its own. Returns the seconds it took."""
        shell = isinstance(command, str)
        command = ["bash", "-o", "pipefail", "-c", command] if shell else command
        # A file, since servers that go to the background keep it open.
        errors = tempfile.TemporaryFile()
        begun = time.monotonic()
        process = subprocess.Popen(
            command, stdout=output, stderr=errors, start_new_session=True, cwd=self.work, **kwargs
        )
        # Popen.wait with a time limit looks only every 50 ms.
        hung = threading.Event()

        def kill():
            hung.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(self.limit, kill)
        timer.start()
        try:
            process.wait()
            seconds = time.monotonic() - begun
        finally:
            timer.cancel()
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if hung.is_set():
            raise Failed(f"no end after {self.limit} s")
        with errors:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
        if process.returncode:
            raise Failed(f"exit code {process.returncode}: {' '.join(last)}")
        return seconds

    # Mounts

    @contextlib.contextmanager
    def mounted(self, command):
        """Mounts by a command that ends when everything can be seen; `MNT` in it is the mount point. Gives that, and
        the seconds that it took."""
        point = self.path(f"mnt-{len(os.listdir(self.work))}")
        os.makedirs(point)
        try:
            seconds = self.run(command.replace("MNT", point))
            if not os.path.ismount(point):
                raise Failed("it did not mount")
            yield point, seconds
        finally:
            unmount(point)
            os.rmdir(point)

    def time_of_mount(self, command):
        with self.mounted(command) as (_, seconds):
            return seconds

    def cache_only(self, path):
        """Leaves the page cache with nothing but a file, where that is allowed: who then writes to memory does not wait
        for some to be taken back."""
        with contextlib.suppress(PermissionError), open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as caches:
            caches.write("1")
        self.run(f"cat {path}")

    def restorefs(self, arguments):
        return f"{RESTOREFS} mount --spool {self.work} {arguments} MNT"

    def close(self):
        """Leaves nothing behind, whatever happened."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        for point in mounts_below(self.work):
            unmount(point)
        shutil.rmtree(self.work, ignore_errors=True)


def mounts_below(directory):
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        points = [line.split()[1] for line in mounts]
    return [point for point in reversed(points) if point.startswith(directory + "/")]


def unmount(point):
    """Takes a mount away and waits until its server is gone, so that it disturbs nobody; lazily where that does not help."""
    for command in (["umount", point], ["umount", "--lazy", point]):
        for _ in range(50):
            if not os.path.ismount(point):
                return
            if subprocess.run(command, stderr=subprocess.DEVNULL, timeout=60, check=False).returncode == 0:
                break
            time.sleep(0.1)


def resident(point):
    """Bytes of memory of the daemon that serves one of our mounts."""
    device = os.stat(point).st_dev
    with open(f"/run/restorefs/{os.major(device)}:{os.minor(device)}.json", encoding="utf-8") as trace:
        pid = json.load(trace)["pid"]
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS"].split()[0]) * 1024


def installed(name):
    """The path of a program, or None. Peers from PyPI may stand beside the Python that runs this."""
    return shutil.which(name) or shutil.which(name, path=os.environ.get("PEERS", ""))
