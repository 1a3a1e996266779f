"""The files around the code agree with each other and name no machine."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

import siamcam_lib

ROOT = Path(__file__).resolve().parents[2]
house = SimpleNamespace(**runpy.run_path(str(ROOT / "book" / "_ext" / "house.py")))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DIRECT = list(dict.fromkeys([*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS["bench"]]))
LOCK = (ROOT / "requirements.txt").read_text("utf-8")
# The layers of the library, as the book tells them: a module may import its own and earlier ones.
HOUSE = (ROOT / "book" / "appendix" / "house.md").read_text("utf-8")
STACK = re.search(r"```\{house\}\n(.*?)```", HOUSE, re.DOTALL)[1].splitlines()
LAYERS = [modules for _, modules in house.layers(STACK)]
LAYER = {module: depth for depth, modules in enumerate(LAYERS) for module in modules}


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def committed() -> list[Path]:
    """Text files of the project: what git lists, or all files where there is no git."""
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        out = subprocess.run(git, cwd=ROOT, capture_output=True, check=True, text=True).stdout
        files = [ROOT / name for name in out.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        made = re.compile(r"(^|/)(\.(?!ci/|gitignore)|_build/|__pycache__/)|\.egg-info/")
        files = [p for p in ROOT.rglob("*") if not made.search(p.relative_to(ROOT).as_posix())]
    text = {".py", ".toml", ".yml", ".txt", ".md", ".ipynb", ".json", ".js", ".css", ".cff", ""}
    return [p for p in files if p.suffix in text and p.is_file()]


def test_environment_yml_says_the_same_as_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    assert pip["pip"] == [*DIRECT, "-e ."]


def test_every_direct_requirement_has_its_reason():
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    for requirement in DIRECT:
        found = [one for one in lines if one.strip().startswith(f'"{requirement}"')]
        assert found and all(len(one.partition("#")[2].split()) >= 2 for one in found), requirement


def test_the_lock_pins_and_hashes_every_direct_requirement():
    pinned = {canonical(p) for p in re.findall(r"^(\S+)==", LOCK, flags=re.MULTILINE)}
    assert {canonical(requirement) for requirement in DIRECT} <= pinned


def test_every_entry_of_the_lock_has_a_version_and_a_hash():
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE))
    wrong = [e.split()[0] for e in entries if "==" not in e.split()[0] or "--hash=sha256:" not in e]
    assert len(entries) > 100
    assert wrong == []


def test_the_lock_names_no_registry():
    assert re.findall(r"https?://|--(?:extra-)?index-url|--find-links", LOCK) == []


def test_what_is_installed_is_what_the_lock_says():
    different = {}
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;]+) \\$", LOCK, flags=re.MULTILINE):
        try:
            have = version(name)
        except PackageNotFoundError:
            continue
        if have.partition("+")[0] != pinned:  # PyTorch's CPU build is 2.x+cpu
            different[name] = (have, pinned)
    assert different == {}


def test_no_file_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.$}~-])/(?:work|tmp|root|home)/[\w.]+")
    found = {
        (p.relative_to(ROOT).as_posix(), match)
        for p in committed()
        for match in pattern.findall(p.read_text("utf-8"))
    }
    assert found == set()


def test_imports_point_one_way():
    graph = {module: house.stands_on(module) for module in LAYER}
    assert "book" in graph
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    upward = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if LAYER.get(other, 0) > LAYER.get(module, len(LAYERS))
    ]
    assert upward == []


def test_the_book_names_every_module_once():
    named = [module for modules in LAYERS for module in modules]
    library = {
        path.stem if path.is_file() else path.name
        for path in (ROOT / "siamcam_lib").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert sorted(named) == sorted(library - {"__init__", "__main__"})


def test_the_diagram_shows_every_module_and_leads_to_it():
    drawn = house.diagram(house.layers(STACK))
    svg = ElementTree.fromstring(drawn)
    places = [f"house-{module}".replace("_", "-") for module in LAYER]  # as docutils spells them
    assert [a.get("href") for a in svg.iter("a")] == [f"#{place}" for place in places]
    assert len(set(places)) == len(places)
    right = max(float(box.get("x")) + float(box.get("width")) for box in svg.iter("rect"))
    assert right <= house.WIDE


def test_the_licence_and_the_citation_name_the_same_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    licence = (ROOT / "LICENSE").read_text("utf-8")
    [author] = PROJECT["authors"]
    assert author["name"] == citation["authors"][0]["name"] == "The SiamCAM authors"
    assert author["name"] in licence and licence.startswith("MIT License")
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert citation["version"] == PROJECT["version"]


def test_the_citation_and_the_bibliography_agree_on_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["references"][0]["doi"] in (ROOT / "book/references.bib").read_text("utf-8")


def test_the_readme_names_only_targets_and_files_that_exist():
    readme = (ROOT / "README.md").read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|&& )make ([a-z]+)", readme)) <= targets
    paths = re.findall(r"^\| `((?:siamcam_lib|book|tests)[\w./-]*)`", readme, flags=re.MULTILINE)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
class TestMakefile:
    def make(self, *words: str) -> str:
        # a make around this test must not hand its own settings down
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
        environment.pop("MFLAGS", None)
        done = subprocess.run(
            ["make", *words], cwd=ROOT, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_help_lists_what_a_reader_needs(self):
        told = self.make()
        for target in ("book", "test", "lab", "data", "bench", "clean", "help"):
            assert f"make {target} " in told

    def test_data_and_profile_reach_the_runner(self):
        told = self.make(
            "book", "READY=", "PY=printf [%s]", "DATA=my photos", "PROFILE=full", "SEED=3"
        )
        assert told == "[-m][siamcam_lib.book][--data][my photos][--profile][full][--seed][3]"

    @pytest.mark.parametrize(
        "given", ["a`id`b", 'a"; id; "b', "a$(shell id)b", "a$$(id)b", "a'b\\"]
    )
    def test_nothing_in_them_is_run(self, given):
        told = self.make("book", "READY=", "PY=printf [%s]", f"DATA={given}", f"ONLY={given}")
        assert f"[--data][{given}][--profile]" in told
        assert told.endswith(f"[--only][{given}]")

    def test_the_lab_listens_on_this_machine_only(self):
        assert "--ip=127.0.0.1" in self.make("--dry-run", "lab")

    def test_the_cpu_build_is_asked_for_without_the_hashes_of_the_other(self, tmp_path):
        told = self.make("--dry-run", "lab", "TORCH_BACKEND=cpu")
        assert '--torch-backend "cpu"' in told
        # run the very command that leaves PyTorch's packages out
        [command] = [line for line in told.splitlines() if line.startswith("awk ")]
        command = command.replace(".venv/without-torch.txt", str(tmp_path / "left.txt"))
        subprocess.run(["sh", "-c", command], cwd=ROOT, check=True)
        left = (tmp_path / "left.txt").read_text("utf-8")
        names = set(re.findall(r"^([\w.-]+)==", left, flags=re.MULTILINE))
        all_names = set(re.findall(r"^([\w.-]+)==", LOCK, flags=re.MULTILINE))
        gone = all_names - names
        assert {"torch", "torchvision", "triton", "cuda-toolkit"} <= gone
        assert {
            n for n in gone if not re.match("torch$|torchvision|triton|nvidia-|cuda-", n)
        } == set()
        assert left.count("--hash") > 500


def test_ci_runs_the_tests_and_points_them_at_the_photographs():
    script = (ROOT / ".ci/run").read_text("utf-8")
    assert os.access(ROOT / ".ci/run", os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / ".ci/run")], check=True)
    assert "SIAMCAM_DATA" in script and "../shared/data" in script
    assert script.rstrip().endswith("make test"), "pytest's closing lines come last"


def test_every_public_name_is_found_when_it_is_asked_for():
    homes = [name for names in siamcam_lib.HOMES.values() for name in names]
    assert len(homes) == len(set(homes)) and set(homes) <= set(siamcam_lib.__all__)
    for name in siamcam_lib.__all__:
        found = getattr(siamcam_lib, name)
        assert isinstance(found, ModuleType) is (name not in homes), name
    with pytest.raises(AttributeError, match="nothing"):
        _ = siamcam_lib.nothing


@pytest.mark.slow
def test_the_picture_of_the_readme_can_be_drawn_again(tmp_path):
    """Another machine rounds otherwise, and may choose another pair of scenes."""
    draw = runpy.run_path(str(ROOT / "examples" / "picture.py"))
    draw["main"](tmp_path / "again.jpg")
    assert draw["OUT"].relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text("utf-8")
    for path in (draw["OUT"], tmp_path / "again.jpg"):
        with Image.open(path) as picture:
            drawn = np.asarray(picture.convert("HSV"), float) / 255
        assert drawn.shape[1] > 700 and drawn.shape[0] > 500
        left, heat = np.split(drawn[80:-40, 40:], [drawn.shape[1] // 3], axis=1)
        assert (left[..., 1] > 0.3).mean() > 0.3  # the scenes are coloured
        assert 0.02 < (heat[..., 1] > 0.3).mean() < 0.6  # beside them, what glows on grey
