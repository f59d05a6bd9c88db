"""The plots as pictures: each as PNG and SVG, the same bytes for the same numbers."""

import xml.etree.ElementTree as ElementTree

import pytest

from support.harness import succeed

NAMES = ("agreement", "betas", "estimators", "lengths", "signatures", "teachers", "variants")


@pytest.fixture(scope="module")
def drawn(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots") / "new"
    succeed(*plotting(demo, folder))
    return folder


def plotting(demo, folder):
    store, betas = demo / "run.sqlite", demo / "betas.parquet"
    return ["report", "--store", store, "--betas", betas, "--draws", 20, "--plots", folder]


def test_every_plot_is_written_as_png_and_svg(drawn):
    expected = sorted(f"{name}.{kind}" for name in NAMES for kind in ("png", "svg"))
    assert sorted(path.name for path in drawn.iterdir()) == expected
    for path in drawn.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000


def test_an_svg_names_nothing_outside_of_itself(drawn):
    for path in drawn.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg")
        for element in root.iter():
            assert not element.tag.endswith(("script", "image"))
            for name, value in element.attrib.items():
                assert not name.endswith("href") or value.startswith("#")


def test_the_same_run_draws_the_same_bytes(drawn, demo, tmp_path):
    succeed(*plotting(demo, tmp_path))
    for path in drawn.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name
