"""Links between pages, recipes and files lead somewhere."""

import pytest

from tests.docs.markdown import FRONT, READMES, ROOT, anchors, links, name


@pytest.mark.parametrize("path", [*FRONT, *READMES], ids=name)
def test_relative_links_exist(path):
    for link in links(path):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        assert target.exists(), f"{link}: there is no {target}"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_readme_links_all_recipes():
    readme = ROOT / "README.md"
    found = {
        (ROOT / link.partition("#")[0]).resolve() for link in links(readme)
    }
    for recipe in (
        "DigitStrings/ASR/CTC",
        "SpeechCommands/ASR/CTC",
        "LibriSpeech/ASR/CTC",
        "VoxCeleb/SpeakerRec",
        "LibriSpeech/LM",
        "MultiDomainLM",
        "SUPERB",
    ):
        assert ROOT / "recipes" / recipe / "README.md" in found
