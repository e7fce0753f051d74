"""The pages of a list of the log's entries, asked for one by one and checked as they come.

What a daemon may not do, whatever it is: give an entry twice, out of order or beyond the start, give
bytes that are larger than any entry, or go on for ever with pages that are empty.

    pages = Pages(calls, start=0, descending=False, page_size=1000)
    while not pages.done:
        page = ...run(pages.following(timeout))...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from greatseal import wire
from greatseal.errors import UsageError, VerificationFailed
from greatseal.messages import EntryFilter, EntryPage

if TYPE_CHECKING:
    from collections.abc import Generator

    from greatseal.calls import Calls

MAX_ENTRY_BYTES: Final = 16 * 1024


class Pages:
    """One list being read.

    Args:
        calls: the conversations with the daemon.
        start: the first index; descending, 0 means the end of the log.
        descending: towards index 0.
        page_size: entries a page, from 1 to 1,000.
        wanted: which entries; all where None.
        with_intents: whether the intents of outcomes are wanted beside them.

    Attributes:
        done: whether the last page was read.
    """

    def __init__(
        self,
        calls: Calls,
        start: int,
        *,
        descending: bool,
        page_size: int,
        wanted: EntryFilter | None = None,
        with_intents: bool = False,
    ) -> None:
        if not 0 <= start < 1 << 63:
            message = f"start must be from 0 to 2^63 - 1, not {start}"
            raise UsageError(message)
        self._calls = calls
        self._start = start
        self._descending = descending
        self._page_size = page_size
        self._wanted = wanted
        self._with_intents = with_intents
        self._token = ""
        # The index before the first that may come.
        self._last = start - 1 if not descending else start + 1 if start else 1 << 64
        self._pages = 0
        self.done = False

    def following(self, timeout: float | None) -> Generator[Any, Any, EntryPage]:
        """Read the next page.

        Raises:
            VerificationFailed: the daemon's answer is none that a log can give.
        """
        request = wire.list_entries_request(
            self._start,
            self._page_size,
            self._token,
            descending=self._descending,
            wanted=self._wanted,
            with_intents=self._with_intents,
        )
        answer = yield from self._calls.ask("ListEntries", request, timeout)
        page = wire.entry_page(answer)
        for entry in page.entries:
            if entry.index == self._last or (entry.index < self._last) != self._descending:
                message = (
                    f"the daemon's list has entry {entry.index} where it cannot stand: an entry twice, or out of order"
                )
                raise VerificationFailed(message)
            self._last = entry.index
        for entry in (*page.entries, *page.intents):
            if len(entry.data) > MAX_ENTRY_BYTES:
                message = f"entry {entry.index} has {len(entry.data)} bytes, and {MAX_ENTRY_BYTES} is the limit"
                raise VerificationFailed(message)
        token: str = answer.next_page_token
        self._pages += 1
        # A page goes on by one entry at least, found or looked at.
        some = bool(page.entries) or self._wanted is not None
        if token and (token == self._token or not some or self._pages > page.log_size + 1):
            message = "the daemon's pages do not end: a page is empty or the same as the one before"
            raise VerificationFailed(message)
        self._token = token
        self.done = not token
        return page
