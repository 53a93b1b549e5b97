"""Comments cite sections of docs/SPEC.md: each cited section must exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = ROOT / "docs" / "SPEC.md"
SECTIONS = set(re.findall(r"^##+ ([A-Z](?:\.\d+)?)\.? ", SPEC.read_text(), re.MULTILINE))
SECTION = r"[A-Z](?:\.\d+)?(?![\w.]*\w)"
# "SPEC D.5, E", "SPEC D to G", "SPEC E (order of the weights), G", "SPEC.md sections E, F, G and A.3".
CITATION = re.compile(rf"\bSPEC(?:\.md,? sections?)? ({SECTION}(?:(?: \([^)]*\))?(?:, | and | to ){SECTION})*)")
SUFFIXES = {".py", ".h", ".cpp", ".cu", ".md"}
SOURCES = [
    path
    for folder in ("hyperseg", "kernels", "csrc", "bench", "tests")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in SUFFIXES and path != Path(__file__).resolve()
]


def citations(text: str) -> list[list[str]]:
    """Return the sections of each citation, also of citations across a line break."""
    flat = re.sub(r"\s+(?:(?:#|//|\*) ?)?", " ", text)
    return [re.findall(SECTION, re.sub(r"\([^)]*\)", "", found)) for found in CITATION.findall(flat)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(SPEC D.5, E).", [["D.5", "E"]]),
        ("# as in SPEC\n    # B.2: left", [["B.2"]]),
        ("SPEC E (order of the weights), G (the two halos).", [["E", "G"]]),
        ("SPEC.md sections E, F, G and A.3 hold", [["E", "F", "G", "A.3"]]),
        ("SPEC G's: 2x5 and SPEC D to G", [["G"], ["D", "G"]]),
        ("SPEC Apart", []),
    ],
)
def test_citations_are_recognised(text, expected):
    assert citations(text) == expected


def test_each_cited_section_exists():
    cited = {path: [s for found in citations(path.read_text()) for s in found] for path in SOURCES}
    missing = {str(path.relative_to(ROOT)): s for path, names in cited.items() if (s := set(names) - SECTIONS)}
    assert not missing
    assert sum(map(len, cited.values())) > 50


def test_every_mention_cites_a_section():
    for path in SOURCES:
        text = path.read_text()
        mentions = len(re.findall(r"\bSPEC\b(?!\.md(?! section))", text))
        assert mentions == len(citations(text)), path
