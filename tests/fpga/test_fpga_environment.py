# SPDX-License-Identifier: BSD-3-Clause
"""FINN+ made usable: what is set, what is left alone, what is said where something is missing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from brevitas_divqat.fpga import finn_environment as env

from brevitas_divqat.errors import ToolError

VARIABLES = (
    "FINN_BUILD_DIR",
    "FINN_SETTINGS",
    "NUM_DEFAULT_WORKERS",
    "XILINX_VIVADO",
)

SHOW = f"""
import json, os
from finn import xsi
names = {{name: name in vars(xsi) for name in xsi._LAZY_NAMES}}
variables = {{name: os.environ.get(name) for name in {VARIABLES}}}
home = os.listdir(os.environ["HOME"])
print(json.dumps({{"bound": names, "variables": variables, "home": home}}))
"""


def in_process(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a new Python with an empty home and only these of FINN's variables."""
    kept = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", "from brevitas_divqat.fpga.finn_environment import *\n" + code],
        env=kept | {"HOME": str(home)} | variables,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


def fake_vivado(folder: Path) -> Path:
    root = folder / "Vivado" / "2024.2"
    program = root / "bin" / "vivado"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return root


def test_without_vivado_the_simulator_is_replaced(tmp_path: Path) -> None:
    pytest.importorskip("finn")
    run = in_process(
        f"from pathlib import Path\nprepare(Path({str(tmp_path / 'build')!r}))\n" + SHOW,
        tmp_path / "home",
        PATH="/usr/bin:/bin",
    )
    assert run.returncode == 0, run.stderr
    shown = json.loads(run.stdout)
    assert shown["variables"] == {
        "FINN_BUILD_DIR": str(tmp_path / "build"),
        "FINN_SETTINGS": str(tmp_path / "build" / "settings.yaml"),
        "NUM_DEFAULT_WORKERS": "1",
        "XILINX_VIVADO": env.NO_VIVADO,
    }
    assert shown["bound"]
    assert all(shown["bound"].values())
    assert shown["home"] == []  # FINN+ on its own would make ~/.finn
    assert (tmp_path / "build").is_dir()


@pytest.mark.parametrize("found_by", ["variable", "path"])
def test_with_vivado_nothing_of_it_is_touched(tmp_path: Path, found_by: str) -> None:
    pytest.importorskip("finn")
    root = fake_vivado(tmp_path)
    by_variable = found_by == "variable"
    run = in_process(
        "prepare()\n" + SHOW,
        tmp_path / "home",
        **(
            {"XILINX_VIVADO": str(root)}
            if by_variable
            else {"PATH": f"{root / 'bin'}:/usr/bin:/bin"}
        ),
    )
    assert run.returncode == 0, run.stderr
    shown = json.loads(run.stdout)
    assert not any(shown["bound"].values())
    assert shown["variables"]["XILINX_VIVADO"] == (str(root) if by_variable else None)


def test_preparing_twice_moves_only_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("finn")
    run = in_process(
        "from pathlib import Path\nimport sys\n"
        "prepare()\n"
        "from finn import xsi\n"
        "first = xsi.SimEngine\n"
        "prepare(Path('second'), workers=7)\n"
        "prepare(workers=9)\n"
        "assert xsi.SimEngine is first\n"
        "from finn.util.basic import make_build_dir\n"
        "print(Path(make_build_dir('some_')).parent)\n" + SHOW,
        tmp_path / "home",
        NUM_DEFAULT_WORKERS="3",
        XILINX_VIVADO="/gone/2022.2",
    )
    assert run.returncode == 0, run.stderr
    folder, shown = run.stdout.splitlines()
    assert folder == str(tmp_path / "home" / "second")
    variables = json.loads(shown)["variables"]
    assert variables["NUM_DEFAULT_WORKERS"] == "3"
    assert variables["XILINX_VIVADO"] == "/gone/2022.2"
    assert variables["FINN_BUILD_DIR"] == folder


@pytest.mark.hardware
def test_finns_builder_can_be_imported_and_its_simulator_refuses(tmp_path: Path) -> None:
    pytest.importorskip("finn")
    run = in_process(
        "prepare()\n"
        "with quiet():\n"
        "    import finn.builder.build_dataflow_steps as steps\n"
        "from finn.xsi import SimEngine, load_sim_obj\n"
        "for part in (SimEngine, load_sim_obj):\n"
        "    try:\n"
        "        part('a', b=1)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, str(error)[:60])\n",
        tmp_path / "home",
        PATH="/usr/bin:/bin",
    )
    assert run.returncode == 0, run.stderr
    assert (
        run.stdout.splitlines()
        == [
            "ToolError this step of FINN simulates with Vivado, which is not instal",
        ]
        * 2
    )


def test_vivado_is_found_by_variable_then_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("XILINX_VIVADO", raising=False)
    assert env.vivado() is None
    monkeypatch.setenv("XILINX_VIVADO", env.NO_VIVADO)
    assert env.vivado() is None
    root = fake_vivado(tmp_path)
    monkeypatch.setenv("PATH", str(root / "bin"))
    assert env.vivado() == env.Vivado(root, "2024.2")
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.setenv("XILINX_VIVADO", str(other))
    assert env.vivado() == env.Vivado(other, "")


@pytest.mark.parametrize(
    ("installed", "modules", "said"),
    [
        ((), (), "finn-plus is needed and is not installed"),
        ((), ("finn",), "another package is installed as finn"),
        (("finn-plus",), ("finn",), "needs psutil"),
    ],
    ids=["nothing", "another finn", "no psutil"],
)
def test_what_is_missing_is_said_with_the_remedy(
    installed: tuple[str, ...],
    modules: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return "1.6.1"

    monkeypatch.setattr(env, "version", version)
    monkeypatch.setattr(env, "find_spec", lambda name: object() if name in modules else None)
    with pytest.raises(ToolError, match=said) as caught:
        env.prepare(tmp_path / "build")
    assert "pip install 'brevitas-divqat[fpga]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "build").exists()


def test_quiet_keeps_everything_and_gives_everything_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "new" / "finn.log"
    root = logging.getLogger()
    before = (sys.stdout, sys.stderr, root.handlers, root.level, warnings.showwarning)
    with env.quiet(log):
        print("printed")
        print("on stderr", file=sys.stderr)
        logging.getLogger("finn_logger").warning("logged")
        warnings.warn("warned", stacklevel=1)
        # What FINN's builder does.
        logging.basicConfig(level=logging.DEBUG, filename=tmp_path / "b.log", force=True)
        logging.captureWarnings(True)
        sys.stdout = sys.stderr
    assert (sys.stdout, sys.stderr, root.handlers, root.level, warnings.showwarning) == before
    assert getattr(logging, "_warnings_showwarning", None) is None
    text = log.read_text()
    for said in ("printed", "on stderr", "logged", "UserWarning: warned"):
        assert said in text
    assert capsys.readouterr() == ("", "")


def test_quiet_hides_no_error_and_names_its_log(tmp_path: Path) -> None:
    log = tmp_path / "finn.log"

    def fail() -> None:
        print("before")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught, env.quiet(log):
        fail()
    assert caught.value.__notes__ == [f"FINN's output is in {log}"]
    assert log.read_text() == "before\n"
    with env.quiet(log):
        print("after")
    assert log.read_text() == "before\nafter\n"
