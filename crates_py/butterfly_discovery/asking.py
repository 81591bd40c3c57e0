"""Asks every source at once and notes what they say."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError
from butterfly_discovery.book import Book, merge
from butterfly_discovery.source import Source


@dataclass(frozen=True, slots=True)
class Asked:
    """The book after a round, and a sentence for each source that did not answer."""

    book: Book
    problems: tuple[str, ...]


async def ask(sources: Sequence[Source], book: Book, *, timeout_seconds: float) -> Asked:
    """Ask all sources side by side. A source that fails or is late keeps its last answer."""
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(_ask_one(source, timeout_seconds)) for source in sources]
    problems = []
    for source, task in zip(sources, asked, strict=True):
        answer = task.result()
        if isinstance(answer, str):
            problems.append(answer)
        else:
            book = merge(book, source.name, answer)
    return Asked(book, tuple(problems))


async def _ask_one(source: Source, timeout_seconds: float) -> frozenset[Address] | str:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await source.candidates()
    except TimeoutError:
        return f"{source.name}: no answer within {timeout_seconds:g} s; its last one is kept"
    except (ButterflyError, OSError) as error:
        return f"{source.name}: {error}; its last answer is kept"
