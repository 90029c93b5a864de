"""The tables of a comparison as TeX for a paper, with booktabs."""

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
    r"""Return the parts as tables for ``\usepackage{booktabs}``, with small intervals below their estimates.

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
        + "\\bottomrule\n\\end{tabular}\n"
        + (f"\\par\\smallskip {escape_tex(note)}\n" if note else "")
        + "\\end{table*}\n"
        for _, caption, head, body, note in tables
    )


def _cell(text: str) -> str:
    """Return a cell; one with an interval or a comma takes two lines, since three judges would not fit on a page."""
    if match := _INTERVAL.fullmatch(text):
        return rf"\shortstack[r]{{{match[1]}\\{{\scriptsize {match[2]}}}}}"
    if ", " in text:
        return r"\shortstack[r]{" + r"\\".join(map(escape_tex, text.split(", "))) + "}"
    return escape_tex(text)


def escape_tex(text: str) -> str:
    r"""Return text in one line that TeX sets unchanged.

    >>> print(escape_tex(r"a_b & 50 %"))
    a\_b \& 50 \%
    """
    return re.sub(r"^[\[*]|[&%$#_{}\\~^<>|]|-(?=-)|[?!`](?=`)|'(?=')", _escape, plain(text))


def _escape(match: re.Match[str]) -> str:
    """Return a special letter escaped; braces keep it from joining its neighbour or a command."""
    letter = match[0]
    return _TEX.get(letter) or (f"{{{letter}}}" if letter in "[*" else f"{letter}{{}}")
