"""The distribution: links, imports on a bare machine, the wheel, the links of the documentation."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from wheel_test import build

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("spec", "models", "compiler", "hw", "sim", "runtime")
HEAVY = ("torch", "numba", "scipy", "safetensors", "transformers", "amaranth", "onnx", "matplotlib")

# argv: the blocked packages; then the packages whose modules are all imported, "!" = only itself.
IMPORT_ALL = """
import importlib, pkgutil, sys
blocked, wanted = sys.argv[1].split(","), sys.argv[2].split(",")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked here", name=name)
sys.meta_path.insert(0, Block())
count = 0
for name in wanted:
    package = importlib.import_module(name.rstrip("!"))
    count += 1
    if not name.endswith("!"):
        for module in pkgutil.walk_packages(package.__path__, name + "."):
            leaf = module.name.rpartition(".")[2]
            if "pynq" in blocked and leaf in ("pynq_driver", "pynq_link", "pynq_xrt"):
                continue
            importlib.import_module(module.name)
            count += 1
print(count)
"""


def run_python(code: str, *arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """Run ``code`` in a fresh interpreter that sees src/ first."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("part", PARTS)
def test_part_is_a_relative_link(part: str) -> None:
    link = ROOT / "src" / "flightllm" / part
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{part}"
    assert (link / "__init__.py").samefile(ROOT / part / "__init__.py")


@pytest.mark.parametrize("part", PARTS)
def test_bare_folder_is_refused(part: str) -> None:
    done = run_python(f"import sys; sys.path.insert(0, '.'); import {part}")
    assert done.returncode != 0
    assert f"import flightllm.{part}, not {part}" in done.stderr


def test_spec_needs_numpy_only() -> None:
    done = run_python(
        IMPORT_ALL, ",".join((*HEAVY, "tokenizers", "typer", "pynq")), "flightllm.spec"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == len(list((ROOT / "spec").rglob("*.py")))


def test_runtime_needs_no_heavy_package() -> None:
    done = run_python(IMPORT_ALL, ",".join((*HEAVY, "pynq")), "flightllm.runtime")
    assert done.returncode == 0, done.stderr[-2000:]


def test_packages_import_without_their_extras() -> None:
    packages = ",".join(f"flightllm.{part}!" for part in PARTS)
    done = run_python(IMPORT_ALL, ",".join(HEAVY), f"flightllm!,{packages}")
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_block_would_be_noticed() -> None:
    done = run_python(IMPORT_ALL, "numpy", "flightllm.spec")
    assert done.returncode != 0
    assert "numpy is blocked here" in done.stderr


def test_versions_agree() -> None:
    import flightllm

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert match and match[1] == flightllm.__version__
    assert f"## {match[1]}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def broken_links(page: Path) -> list[str]:
    """Return the relative links and pictures of a Markdown page that lead nowhere."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    return [
        link
        for link in links
        if not re.match(r"[a-z]+:", link) and not (page.parent / link).exists()
    ]


def markdown_pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", markdown_pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_pages_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#top) [b](https://example.org) [c](gone.md) `x`", encoding="utf-8")
    assert broken_links(page) == ["gone.md"]


def test_pictures_are_well_formed() -> None:
    pictures = list((ROOT / "docs").rglob("*.svg"))
    assert pictures
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()
        assert root.tag.endswith("svg")
        assert root.find("{http://www.w3.org/2000/svg}title") is not None, f"{picture}: no title"


def test_wheel_from_sdist_holds_everything(tmp_path: Path) -> None:
    sdist, wheel = build(tmp_path)
    with tarfile.open(sdist) as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        entry_points = archive.read(next(n for n in held if n.endswith("entry_points.txt")))
    expected = {"flightllm/__init__.py", "flightllm/py.typed"}
    source = tmp_path / "source"
    expected |= {f"flightllm/{f.name}" for f in (source / "src/flightllm").glob("*.py")}
    for part in (*PARTS, "src/flightllm/cli"):
        for pattern in ("*.py", "*.json", "presets/*.toml", "demo/*", "*.cpp", "*.h", "*.v"):
            files = [file for file in (source / part).rglob(pattern) if file.is_file()]
            expected |= {
                f"flightllm/{file.relative_to(source).as_posix().removeprefix('src/flightllm/')}"
                for file in files
            }
    assert any(name.startswith("flightllm/spec/presets/") for name in expected)
    assert expected - held == set()
    strangers = {n for n in held - expected if "dist-info/" not in n}
    assert strangers == set()
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert b"flightllm = flightllm.cli:main" in entry_points
