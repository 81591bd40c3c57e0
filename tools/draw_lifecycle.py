"""Draws the life of a node as a diagram and tables, from the transition table itself.

``python tools/draw_lifecycle.py`` prints them; ``--write`` puts them into the marked block of
specs/lifecycle.md. A test compares that file with what is drawn here.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import fields
from inspect import getdoc
from pathlib import Path
from typing import Any, Final

from butterfly_cluster.lifecycle import (
    PHASES_OF_STATE,
    TRANSITIONS,
    Effect,
    Event,
    Node,
    NodeState,
    step,
)

DOCUMENT: Final = Path(__file__).parents[1] / "specs" / "lifecycle.md"
BEGIN: Final = "<!-- begin: drawn by tools/draw_lifecycle.py; change nothing here -->"
END: Final = "<!-- end -->"


def draw() -> str:
    """The block for the document, without its marks."""
    return "\n\n".join((_diagram(), _phases(), _transitions(), _meanings())) + "\n"


def with_block(text: str, block: str) -> str:
    """The document with a new block between its marks. Raises ValueError without marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{DOCUMENT.name} lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{block}\n{END}{after}"


def events() -> tuple[type[Event], ...]:
    """Every event that some state can take, in the order of the table."""
    return tuple(dict.fromkeys(event for row in TRANSITIONS.values() for event in row))


def _diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> COLD"]
    for source, row in TRANSITIONS.items():
        together: dict[NodeState, list[str]] = {}
        for event, target in row.items():
            together.setdefault(target, []).append(event.__name__)
        lines += [
            f"    {source.value} --> {target.value}: {', '.join(names)}"
            for target, names in together.items()
        ]
    return "\n".join([*lines, "```"])


def _phases() -> str:
    rows = (
        (f"**{state.value}**", ", ".join(f"`{phase.value}`" for phase in phases))
        for state, phases in PHASES_OF_STATE.items()
    )
    return _table(("state", "phases that it may be in"), rows)


def _transitions() -> str:
    rows = (
        (
            f"`{event.__name__}`",
            *(row[event].value if event in row else "refused" for row in TRANSITIONS.values()),
        )
        for event in events()
    )
    return _table(("event", *(f"in {state.value}" for state in TRANSITIONS)), rows)


def _meanings() -> str:
    rows = (
        (
            f"`{event.__name__}`",
            " ".join((getdoc(event) or "").split()),
            ", ".join(f"`{type(effect).__name__}`" for effect in _effects_of(event)),
        )
        for event in events()
    )
    return _table(("event", "what happened", "what the node does"), rows)


def _effects_of(event: type[Event]) -> tuple[Effect, ...]:
    """What ``step`` answers to this event in the first state that takes it."""
    state = next(state for state, row in TRANSITIONS.items() if event in row)
    for epoch in (1, 2):  # an answer belongs to the node's epoch, a new plan to the next one
        _, effects = step(Node(state, epoch=1), _example_of(event, epoch))
        if effects:
            return effects
    return ()


def _example_of(event: type[Event], epoch: int) -> Event:
    values: dict[str, Any] = {"epoch": epoch, "start": 0, "stop": 1, "reason": "…", "count": 1}
    return event(**{field.name: values[field.name] for field in fields(event)})


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in (head, tuple("---" for _ in head), *rows)
    )


def main(argv: list[str] | None = None) -> int:
    """Print the block, or write it into the document; exit code 0."""
    parser = argparse.ArgumentParser(description="Draw the life of a node.")
    parser.add_argument("--write", action="store_true", help=f"update {DOCUMENT.name}")
    if parser.parse_args(argv).write:
        DOCUMENT.write_text(with_block(DOCUMENT.read_text(), draw()))
    else:
        print(draw())
    return 0


if __name__ == "__main__":
    sys.exit(main())
