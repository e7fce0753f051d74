"""A caller of the token that is left alone, and the audit of a site whose tokens stand behind shims."""

from __future__ import annotations

import random
import threading
import time
from typing import Self

from fault_history import Auditor, Load
from fault_site import FaultSite, RefusedError


class Steady:
    """Signs with the key of the other token all the while and remembers every refusal."""

    def __init__(self, site: FaultSite) -> None:
        self._site, self._stop = site, threading.Event()
        self.signed, self.refused = 0, []  # type: int, list[RefusedError]
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._site.wire() as wire:
            while not self._stop.is_set():
                try:
                    wire.sign("steady", timeout=10)
                    self.signed += 1
                except RefusedError as refused:
                    self.refused.append(refused)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def progress(self) -> None:
        """Wait until some more signatures were made from here on."""
        aim, deadline = self.signed + 3, time.monotonic() + 20
        while self.signed < aim and not self.refused:
            assert time.monotonic() < deadline, "the other token stopped signing"
            time.sleep(0.01)


def judge(site: FaultSite) -> Auditor:
    """Read the log of a site with two tokens; every intent is closed, and nothing was signed or released without one."""
    auditor = Auditor(site)
    with site.wire() as wire:
        auditor.read(wire)
    auditor.check_all_closed()
    auditor.compare(Load(site, random.Random(0)), site.soft, site.other, tokens=("soft", "other"))
    return auditor
