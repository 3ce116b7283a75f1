"""The hash of a function's code changes with all that it uses, and with nothing else."""

from __future__ import annotations

import importlib.util
import os
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from interp.source import code_hash, forget, modules_of

FILES = {
    "__init__": "from hashed_package.deep import passed_on\n",
    "start": '''
        """Where it starts."""
        from __future__ import annotations

        import os
        from typing import TYPE_CHECKING

        import hashed_package.attribute as att
        from hashed_package import passed_on
        from hashed_package.used import helper as other_name

        if TYPE_CHECKING:
            from hashed_package.types import Model

        LIMIT = 3
        UNUSED = 4

        def begin(model: Model) -> int:
            """Says what comes out."""
            from hashed_package.lazily import late

            return other_name(LIMIT) + att.reached() + passed_on() + late()

        def beside() -> int:
            return UNUSED
    ''',
    "used": "import math\n\ndef helper(x):\n    return _inner(x)\n\ndef _inner(x):\n    return x + 1\n",
    "attribute": "def reached():\n    return 1\n\ndef not_reached():\n    return 2\n",
    "deep": "def passed_on():\n    return 1\n",
    "lazily": "TABLE = {'a': 'hashed_package.named:thing'}\n\ndef late():\n    return TABLE\n",
    "named": "def thing():\n    return 1\n\ndef no_thing():\n    return 2\n",
    "types": "class Model:\n    def run(self):\n        return 1\n",
    "apart": "def apart():\n    return 1\n",
    "registry": "def register(f):\n    return f\n",
}

Package = Callable[..., str | None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """``package(module, old, new)``: the hash of ``begin`` once a text in a module was changed."""
    folder = tmp_path / "hashed_package"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))

    def changed(module: str = "", old: str = "", new: str = "") -> str | None:
        if module:
            path = folder / f"{module}.py"
            assert old in path.read_text()
            path.write_text(path.read_text().replace(old, new))
        forget()
        return code_hash("hashed_package.start:begin")

    yield changed
    forget()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("start", "+ passed_on()", ""),
        ("start", "LIMIT = 3", "LIMIT = 5"),
        ("used", "x + 1", "x + 2"),
        ("attribute", "return 1", "return 3"),
        ("deep", "return 1", "return 3"),
        ("lazily", "return TABLE", "return list(TABLE)"),
        ("named", "return 1", "return 3"),
        ("types", "return 1", "return 3"),
        ("used", "import math\n", "import math\nprint(math)\n"),  # runs when it is imported
    ],
)
def test_it_changes_with_what_is_used(package: Package, module: str, old: str, new: str) -> None:
    before = package()
    assert before is not None
    assert package(module, old, new) != before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("start", "Says what comes out.", "Says it otherwise."),
        ("start", "Where it starts.", "Elsewhere."),
        ("start", "UNUSED = 4", "UNUSED = 5"),
        ("used", "    return _inner(x)", "    # why\n    return _inner(\n        x\n    )"),
        ("attribute", "return 2", "return 3"),
        ("named", "return 2", "return 3"),
        ("apart", "return 1", "return 3"),
    ],
)
def test_it_stays_with_everything_else(package: Package, module: str, old: str, new: str) -> None:
    before = package()
    assert package(module, old, new) == before


def test_what_is_registered_counts_with_its_module(package: Package) -> None:
    text = "from hashed_package.registry import register\n\n@register\ndef more():\n    return 1\n"
    before = package("used", "import math\n", text)
    assert package("used", "return 1", "return 2") != before


def test_a_package_that_is_scanned_counts_whole(package: Package) -> None:
    before = package("used", "import math", "import pkgutil")
    assert package("apart", "return 1", "return 2") == before, "imported, but not used"
    before = package("used", "return x + 1", "return len(list(pkgutil.walk_packages()))")
    assert package("apart", "return 2", "return 3") != before


def test_code_that_was_written_since_it_was_loaded_has_no_hash(package: Package) -> None:
    assert package() is not None
    path = Path(importlib.util.find_spec("hashed_package").submodule_search_locations[0])
    later = time.time() + 60
    os.utime(path / "apart.py", (later, later))
    assert package() is not None, "not used"
    os.utime(path / "used.py", (later, later))
    assert package() is None


def test_functions_methods_and_partials_have_the_hash_of_what_they_are_in() -> None:
    from interp.data import PromptSet
    from interp.evaluate.scores import judge

    name = code_hash("interp.data.prompts:PromptSet")
    assert name is not None
    assert code_hash(PromptSet) == code_hash(PromptSet.halves) == name
    assert code_hash(partial(partial(judge), texts=[])) == code_hash(judge) != name
    assert code_hash(lambda: judge([])) == code_hash(
        test_functions_methods_and_partials_have_the_hash_of_what_they_are_in
    )
    assert code_hash(len) is None
    assert code_hash("interp.data.prompts:nothing") is None


def test_what_measures_reaches_the_model_and_every_family() -> None:
    reached = modules_of("interp.study:Study")
    assert {"interp.backends.hooks", "interp.models.llama_like", "interp.models.mamba"} <= reached
