"""Texts of the page: costs, progress and captions."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from .._cost import Cost, spell_counts
from .._forecast import Rates
from .._values import spell_seconds
from ..service import Desk, Order


def cost_line(cost: Cost, rates: Rates | None, found: Cost | None) -> str:
    """Return a line on what drawing will cost, and what is left to pay if the bank is already there.

    Args:
        cost: cost of the whole.
        rates: speed of this machine; None if not measured yet.
        found: cost of the rest, if the bank is already there; else None.

    >>> cost_line(Cost(network_evaluations=900, reward_calls=50), None, Cost(network_evaluations=400))
    '**900 network evaluations, 50 reward calls.** The bank is there already: 400 network evaluations are left.'
    """
    whole = spell_counts(cost) + (
        "" if rates is None else f", about {spell_seconds(max(1.0, rates.seconds(cost)))} here"
    )
    if found is None:
        return f"**{whole}.**"
    left = f"{found.network_evaluations:,} network evaluations are left"
    return f"**{whole}.** The bank is there already: {left}" + (
        "." if rates is None else f", about {spell_seconds(max(1.0, rates.seconds(found)))}."
    )


_PHASES = {"loading": "loading the model", "lookahead": "looking ahead", "sampling": "guided sampling", "": "judging"}


def status(desk: Desk, order: Order) -> str:
    """Return the state of an order as HTML with a bar."""
    if order.state == "waiting":
        before = desk.position(order)
        return _bar(f"Waiting: {before} before this one." if before else "Starting.", None)
    if order.state == "running":
        progress = order.progress
        phase, part = (progress.phase, progress.part) if progress else ("loading", 0.0)
        what = (
            "plain sampling"
            if phase == "sampling" and order.job.methods == ("vanilla",)
            else _PHASES.get(phase, phase)
        )
        return _bar(what.capitalize(), part if phase in ("lookahead", "sampling") else None)
    if order.state == "done":
        return say("Done.")
    said = {"failed": f"It failed: {order.problem}", "cancelled": "Cancelled.", "lost": f"Lost: {order.problem}"}
    return say(said[order.state]) if order.state == "cancelled" else refusal(said[order.state])


def refusal(problem: str) -> str:
    """Return the reason for missing pictures as HTML."""
    return f'<p class="status failed" role="alert">{html.escape(problem)}</p>'


def say(text: str) -> str:
    """Return a line on what was done as HTML."""
    return f'<p class="status" role="status">{html.escape(text)}</p>'


def say_restored(lost: Sequence[str]) -> str:
    """Return what the page says after it has restored a picture's settings, except those that were ``lost``.

    >>> say_restored([]), say_restored(["noise", "window"])
    ('Settings restored.', 'Settings restored, but not noise, window: the page draws with its own.')
    """
    but = f", but not {', '.join(lost)}: the page draws with its own" if lost else ""
    return f"Settings restored{but}."


def _bar(text: str, part: float | None) -> str:
    value = "" if part is None else f' value="{part:.3f}" max="1"'
    percent = "" if part is None else f" {100 * part:.0f} %"
    return say(text + percent) + f'<progress aria-label="{html.escape(text)}"{value}></progress>'


def scores(rewards: Mapping[str, float | None]) -> list[str]:
    """Return a line for each reward of a picture; for GenEval it gives the verdict.

    >>> scores({"glyph": 29.4321, "geneval": 1.0, "ocr": None})
    ['glyph 29.43', 'geneval right', 'ocr -']
    """
    return [f"{name} {_score(name, value)}" for name, value in rewards.items()]


def _score(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "geneval":
        return "right" if value == 1 else "wrong" if value == 0 else f"{value:.2f}"
    return f"{value:.4g}"
