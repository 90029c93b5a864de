"""The tables of a comparison for a paper, with booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .parts import Part, plain

_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}

_INTERVAL = re.compile(r"(-?\d+\.\d+) (\[-?\d+\.\d+, -?\d+\.\d+\])")


def tex(tables: Sequence[Part]) -> str:
    r"""The parts as tables for ``\usepackage{booktabs}``, intervals small below their estimates.

    >>> print(tex([Part("A", "100 %.", ["method", "x, mean"], [["a_b", "0.5 [0.2, 0.8]"], ["c", "1"]])]), end="")
    % needs \usepackage{booktabs}
    \begin{table*}
    \centering\small
    \caption{100 \%.}
    \begin{tabular}{lr}
    \toprule
    method & \shortstack[r]{x\\mean} \\
    \midrule
    a\_b & \shortstack[r]{0.5\\{\scriptsize [0.2, 0.8]}} \\
    \addlinespace
    c & 1 \\
    \bottomrule
    \end{tabular}
    \end{table*}
    """

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_cell, cells)) + " \\\\\n"

    return "% needs \\usepackage{booktabs}\n" + "\n".join(
        "\\begin{table*}\n\\centering\\small\n"
        f"\\caption{{{escape_tex(caption)}}}\n\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule\n"
        f"{line(head)}\\midrule\n"
        + "\\addlinespace\n".join(map(line, body))
        + "\\bottomrule\n\\end{tabular}\n\\end{table*}\n"
        for _, caption, head, body in tables
    )


def _cell(text: str) -> str:
    """In two lines what is an interval, or has a comma: side by side, three judges are wider than a page."""
    if match := _INTERVAL.fullmatch(text):
        return rf"\shortstack[r]{{{match[1]}\\{{\scriptsize {match[2]}}}}}"
    if ", " in text:
        return r"\shortstack[r]{" + r"\\".join(map(escape_tex, text.split(", "))) + "}"
    return escape_tex(text)


def escape_tex(text: str) -> str:
    r"""Text in one line that TeX sets as it stands.

    >>> print(escape_tex(r"a_b & 50 %"))
    a\_b \& 50 \%
    """
    return re.sub(r"^[\[*]|[&%$#_{}\\~^<>|]|-(?=-)|[?!`](?=`)|'(?=')", _escape, plain(text))


def _escape(match: re.Match[str]) -> str:
    """A special letter; braces keep it apart from a letter that it would form another with, or from a command."""
    letter = match[0]
    return _TEX.get(letter) or (f"{{{letter}}}" if letter in "[*" else f"{letter}{{}}")
