"""What a user receives: the wheel's content and the lazily loaded public names."""

import ast
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lightning_dqnlr
from lightning_dqnlr.policy.policy import BUNDLED

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_dqnlr"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """A wheel built from a copy, so that no old `build/` can leak into it."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("lightning_dqnlr", "conf", "tests", "examples"):
        if (ROOT / folder).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (built_file,) = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(built_file)


@pytest.fixture(scope="session")
def wheel_files(wheel):
    return set(wheel.namelist())


def installed_name(path):
    """Where a file of the tree lies after installation: conf/ becomes lightning_dqnlr/conf/."""
    relative = path.relative_to(ROOT).as_posix()
    return f"lightning_dqnlr/{relative}" if relative.startswith("conf/") else relative


def test_no_module_is_forgotten_in_the_wheel(wheel_files):
    modules = {installed_name(path) for path in PACKAGE.rglob("*.py")}
    assert "lightning_dqnlr/control/__init__.py" in modules
    assert modules - wheel_files == set()


def test_no_configuration_is_forgotten_in_the_wheel(wheel_files):
    configs = {installed_name(path) for path in (ROOT / "conf").rglob("*.yaml")}
    assert "lightning_dqnlr/conf/train.yaml" in configs
    assert configs - wheel_files == set()
    assert "lightning_dqnlr/conf/__init__.py" in wheel_files


def test_the_wheel_is_typed_and_carries_the_bundled_policies(wheel_files):
    folders = [PACKAGE / "policy" / name for name in BUNDLED]
    bundled = {installed_name(p) for folder in folders for p in folder.iterdir()}
    assert len(bundled) >= 2 * len(BUNDLED)
    assert bundled | {"lightning_dqnlr/py.typed"} <= wheel_files


def test_the_wheel_carries_the_templates_of_both_reports(wheel_files):
    templates = {installed_name(path) for path in PACKAGE.rglob("*.jinja")}
    assert len(templates) == 2
    assert templates <= wheel_files


def test_the_wheel_carries_the_pretrained_network_of_the_fine_tuning_tasks(wheel_files):
    assert "lightning_dqnlr/bench/tasks/real/pretrained/source_gpt.safetensors" in wheel_files


def test_nothing_but_the_package_is_installed(wheel_files):
    metadata = f"lightning_dqnlr-{lightning_dqnlr.__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel_files} == {"lightning_dqnlr", metadata}


def test_pypi_would_show_the_readme_with_links_and_pictures_that_lead_somewhere(wheel):
    name = f"lightning_dqnlr-{lightning_dqnlr.__version__}.dist-info/METADATA"
    metadata = wheel.read(name).decode()
    assert "Description-Content-Type: text/markdown" in metadata
    repository = re.search(r"^Project-URL: Repository, (\S+)$", metadata, re.M)[1]
    places = re.findall(r"\]\(([^)]+)\)", metadata.split("\n\n", 1)[1])
    assert f"{repository}/raw/main/docs/mistuning.svg" in places
    assert f"{repository}/blob/main/docs/results.md" in places
    assert [place for place in places if not place.startswith("https://")] == []


def test_the_installation_finds_the_configurations_as_a_package(tmp_path):
    """Run from elsewhere: the configurations must not be found through the working directory."""
    code = (
        "from importlib.resources import files;"
        "print((files('lightning_dqnlr.conf') / 'train.yaml').is_file())"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == "True", shown.stderr


def test_importing_the_package_loads_neither_torch_nor_lightning():
    code = "import sys, lightning_dqnlr; print({'torch', 'lightning'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.parametrize("name", lightning_dqnlr.__all__)
def test_every_public_name_resolves_and_is_listed(name):
    assert getattr(lightning_dqnlr, name) is not None
    assert name in dir(lightning_dqnlr)


def test_importing_everything_asks_for_no_extra():
    code = (
        "import sys; from lightning_dqnlr import *;"
        "print(DQNLRScheduler.__name__, 'lightning_dqnlr.host.hf_trainer' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == "DQNLRScheduler False", shown.stderr


def test_type_checkers_and_the_interpreter_see_the_same_public_names():
    """The lazy table and the imports under TYPE_CHECKING say the same thing twice."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert typed == lightning_dqnlr._HOME
    extras = {"DQNLRTrainerCallback"}  # left out of `import *`
    assert set(typed) | {"__version__"} == set(lightning_dqnlr.__all__) | extras


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'DQNLRCallbak'"):
        lightning_dqnlr.DQNLRCallbak  # noqa: B018


def test_make_rebuild_checks_out_the_code_that_trained_what_ships():
    """`make` reads the commit with sed: a record written otherwise would leave it without one."""
    record = PACKAGE / "policy/default/policy.json"
    commit = json.loads(record.read_text())["record"]["commit"]
    command = ["make", "--dry-run", f"outputs/rebuilt/{commit}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
