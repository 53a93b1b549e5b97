"""Check the project's language: report each banned word, with the word to write instead.

    python -m tools.words [FILE ...]

The table is the glossary in CONTRIBUTING.md: the first column of each row holds regular expressions in backticks, the
second the replacement. Without arguments all sources and documents under git are checked. Exit code 1 if there are any.
"""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "CONTRIBUTING.md"
SUFFIXES = {".py", ".md", ".cpp", ".h", ".cu", ".cuh"}
# The files that must name the words: the glossary, and this check's test.
EXEMPT = {"CONTRIBUTING.md", "tests/test_words.py"}


class Rule(NamedTuple):
    """A banned pattern and its replacement."""

    pattern: re.Pattern[str]
    instead: str


class Finding(NamedTuple):
    """A banned word in a file."""

    path: str
    line: int
    word: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.word!r}: write {self.instead}"


def glossary(text: str) -> list[Rule]:
    """Read the rules from the table under the heading "Glossary"."""
    table = text.partition("\n## Glossary\n")[2].partition("\n## ")[0]
    rules = []
    for row in table.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        if row.startswith("| `") and len(cells) == 2:
            patterns = [p.replace("\\|", "|") for p in re.findall(r"`([^`]+)`", cells[0])]
            # Words inside identifiers count too: snake_case, camelCase and capitals.
            rules += [Rule(re.compile(rf"(?<![A-Za-z]){p}(?![a-z])", re.IGNORECASE), cells[1]) for p in patterns]
    return rules


def check(path: str, text: str, rules: Iterable[Rule]) -> Iterator[Finding]:
    """Yield the banned words of one text."""
    for number, line in enumerate(text.splitlines(), 1):
        for rule in rules:
            if found := rule.pattern.search(line):
                yield Finding(path, number, found[0], rule.instead)


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in listed.splitlines() if (ROOT / path).is_file()]


def main(arguments: list[str]) -> int:
    rules = glossary(GLOSSARY.read_text())
    paths = [p for p in arguments or tracked() if Path(p).suffix in SUFFIXES and p not in EXEMPT]
    findings = [finding for p in paths for finding in check(p, (ROOT / p).read_text(), rules)]
    print(*findings, sep="\n", end="\n" if findings else "")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
