"""One process on a device at a time: a lock file that the kernel releases when its holder ends."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from pathlib import Path

from flightllm.spec.errors import DeviceError

__all__ = ["DeviceLock"]


class DeviceLock:
    """Held from construction to `release`, or to the end of the process, however it ends.

    Parameters
    ----------
    device : name of the device, unique on this machine.
    folder : of the lock files; every user of the machine must see the same one.

    Raises
    ------
    DeviceError
        When another process, or another object of this one, holds the device; names the process.
    """

    def __init__(self, device: str, folder: Path | None = None) -> None:
        where = folder or Path(tempfile.gettempdir())
        path = where / f"flightllm-{re.sub('[^A-Za-z0-9_.-]', '_', device)}.lock"
        self._path, self._file = path, self._open(device, path)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    @staticmethod
    def _open(device: str, path: Path) -> int:
        """The locked file, which still has its name: a holder removes it when it is done."""
        while True:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except OSError as error:
                raise DeviceError(f"{device}: the lock file {path}: {error.strerror}") from None
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(file)
                raise DeviceError(
                    f"{device} is in use by process {holder}: wait for it or end it"
                ) from None
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
            os.close(file)

    def release(self) -> None:
        """Let others use the device; releasing twice does nothing."""
        file, self._file = self._file, -1
        if file >= 0:
            self._path.unlink(missing_ok=True)
            os.close(file)
