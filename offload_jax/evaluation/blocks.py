"""One table as text: all that markdown and LaTeX share."""

from collections.abc import Callable
from dataclasses import dataclass

NO_MEANING = "–"


@dataclass(frozen=True)
class Block:
    """Header, rows and caption, all as text; the first column holds names."""

    header: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    caption: str


def decimals(decimals: int, scale: float = 1) -> Callable[[float], str]:
    """How a number is written: scaled, rounded, with a true minus."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    return lambda x: f"{round(scale * x, decimals) + 0.0:,.{decimals}f}".replace("-", "−")


def markdown(block: Block) -> str:
    """The table as markdown, its caption below."""

    def line(texts):
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |\n"

    rule = "|---" + "|---:" * (len(block.header) - 1) + "|\n"
    return line(block.header) + rule + "".join(map(line, block.body)) + f"\n{block.caption}\n"


def latex(block: Block) -> str:
    """The table for LaTeX with `booktabs` and `graphicx`, as wide as the text."""

    def line(texts):
        return "    " + " & ".join(map(_escaped, texts)) + r" \\"

    lines = (
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{_escaped(block.caption)}}}",
        r"  \resizebox{\textwidth}{!}{%",
        rf"  \begin{{tabular}}{{l{'r' * (len(block.header) - 1)}}}",
        r"    \toprule",
        line(block.header),
        r"    \midrule",
        *map(line, block.body),
        r"    \bottomrule",
        r"  \end{tabular}}",
        r"\end{table}",
    )
    return "\n".join(lines) + "\n"


_LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
    "α": r"$\alpha$",
    "ρ": r"$\rho$",
}


def _escaped(text: str) -> str:
    # Braces keep a bracket at the start of a row from being read as the length after its \\.
    text = "".join(_LATEX.get(c, c) for c in text)
    return f"{{[}}{text[1:]}" if text.startswith("[") else text
