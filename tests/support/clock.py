"""A world whose clock can be set: Postgres, proxy, worker and simulator under libfaketime.

The library is Debian's package `faketime`; where it is missing there is no such world. Only the wall clock is
shifted: what measures durations goes on as it does.
"""

from __future__ import annotations

import datetime as dt
import stat
import time
from pathlib import Path

from proxy.embedded.binaries import postgres_bin_dir

#: the library reads the file again when more than a whole second has passed
_SETTLE_SECONDS = 3.2


def library() -> Path | None:
    """libfaketime for programs with threads, None where it is not installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None


class Clock:
    """Shifts every process that was started with `environment`."""

    def __init__(self, folder: Path, preload: Path) -> None:
        self._file = folder / "shift"
        self._preload = preload
        self._shift = 0
        self._write()

    def _write(self) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"+{self._shift}\n")
        fresh.chmod(0o644)
        fresh.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self._preload),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set(self, moment: dt.datetime) -> None:
        """Never back. Returns when every process has noticed."""
        shift = int(moment.timestamp() - time.time())
        assert shift >= self._shift, "time does not go back"
        self._shift = shift
        self._write()
        time.sleep(_SETTLE_SECONDS)

    def now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(time.time() + self._shift, dt.UTC)

    def postgres(self, folder: Path) -> Path:
        """A folder of Postgres' programs whose server lives in this time."""
        real = postgres_bin_dir()
        folder.mkdir(mode=0o755)
        for program in real.iterdir():
            (folder / program.name).symlink_to(program)
        wrapped = folder / "postgres"
        wrapped.unlink()
        exports = "\n".join(f"export {name}='{value}'" for name, value in self.environment.items())
        wrapped.write_text(f'#!/bin/sh\n{exports}\nexec "{real / "postgres"}" "$@"\n')
        wrapped.chmod(wrapped.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        for parent in (folder, *folder.parents):
            if parent in {Path("/tmp"), Path("/dev/shm"), Path("/")}:
                break
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)
        return folder
