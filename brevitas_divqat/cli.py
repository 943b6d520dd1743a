# SPDX-License-Identifier: BSD-3-Clause
"""The console script `divqat`: subcommands that are plain functions.

Flags, configuration files and help come from the same dataclasses as the Python API. A user's
mistake prints one line and exits with status 2.
"""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NoReturn

from jsonargparse import ArgumentParser, Namespace

from brevitas_divqat import __version__
from brevitas_divqat.errors import CheckpointError, ConfigError, DivQATError
from brevitas_divqat.workers import quieten

__all__ = ["main"]

REPORT_COLUMNS = 110
SUMMARY_COLUMNS = 140


class _Parser(ArgumentParser):
    """Spells flags with hyphens, though fields have underscores; raises its errors as ours."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(_in_plain_words(" ".join(message.split()))) from ex

    def format_help(self, formatter: Any = None) -> str:
        words = super().format_help(formatter).split(" ")
        return " ".join(w.replace("_", "-") if w.lstrip("[").startswith("--") else w for w in words)


def _in_plain_words(message: str) -> str:
    """Put jsonargparse's complaint about a value as the rest of this program would."""
    message = re.sub(rf"\b({'|'.join(COMMANDS)})\.(?=\w)", "", message)
    message = re.sub(r"\{[\w,]+, \.\.\.\}", f"{{{','.join(COMMANDS)}}}", message)
    found = re.search(
        r'Parser key "(?P<flag>\w+)": .*?'
        r"(?:\[tuple\[typing\.Literal\[(?P<words>.*?)\]|"
        r"(?:<class '|\[)(?:pathlib\.)?(?P<type>(?!None)\w+)(?:'>|\[)|"
        r"typing\.Literal\[(?P<of>.*?)\]).*"
        r"(?:Given|Got) value: ?(?P<value>.*)",
        message,
    )
    if found is None:
        return message
    words = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "Path": "a path",
        "list": "whole numbers in brackets, e.g. [1,2]",
        "tuple": "whole numbers in brackets, e.g. [1,2]",
    }
    kind = found["type"]
    if found["words"]:
        expected = f"some of {found['words']} in brackets and with commas"
    else:
        expected = words.get(kind, kind) if kind else f"one of {found['of']}"
    return f"--{found['flag'].replace('_', '-')}: expected {expected}, got {found['value']!r}"


@dataclass(frozen=True)
class _Command:
    """A subcommand: what it does, which groups of settings it takes, its function.

    Where it has subjects, its first word names one, which has arguments of its own.
    """

    help: str
    groups: tuple[str, ...]
    function: Callable[[Namespace], int | None]
    arguments: Callable[[ArgumentParser], None]
    subjects: Mapping[str, Callable[[ArgumentParser], None]] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit status: 0, 1 for findings of `divqat check --strict` and `divqat verify`, 2 for a
        user's mistake, 130 for an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    quieten()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" is no error
    status: int | None = 0
    try:
        command, settings = _parse(arguments)
        status = command.function(settings)
        sys.stdout.flush()
    except DivQATError as error:
        print(f"divqat: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `divqat report RUN | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"divqat: error: cannot read or write{where}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"divqat: interrupted{_way_on(arguments)}", file=sys.stderr)
        return 130
    return status or 0


def _command_name(argv: list[str]) -> str | None:
    return next((a for a in argv if a in COMMANDS), None)


def _way_on(argv: list[str]) -> str:
    """Say how to go on after an interruption, where that is possible."""
    if _command_name(argv) in ("run", "train", "attack"):
        return "; what is finished is kept, go on with --resume"
    if _command_name(argv) == "build":
        return "; what is finished is kept, go on with the same command"
    return ""


def _parse(argv: list[str]) -> tuple[_Command, Namespace]:
    top = _Parser(
        prog="divqat",
        allow_abbrev=False,
        description="Train, export and attack low-bit CNNs with DivQAT.",
    )
    top.add_argument("--version", action="version", version=f"divqat {__version__}")
    subcommands = top.add_subcommands(metavar="COMMAND", help="")
    if "" in argv or any(a.startswith("--") and a.endswith("=") for a in argv):
        raise ConfigError("an argument is empty: give it a value or leave it out")
    places = sum(a in ("-o", "--out") or a.startswith("--out=") for a in argv)
    if places > 1:
        raise ConfigError(f"--out is given {places} times: give it once")
    name = _command_name(argv)
    for key, command in COMMANDS.items():
        parser = _Parser(description=command.help, allow_abbrev=False)
        if key == name:  # the others' flags would cost their imports
            _add_arguments(parser, command, argv)
        subcommands.add_subcommand(key, parser, help=command.help)
    settings = top.parse_args([_underscored(a) for a in argv])
    return COMMANDS[settings.subcommand], settings[settings.subcommand]


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _flag_value(flag: str, argv: list[str]) -> str | None:
    values = [b for a, b in zip(argv, argv[1:], strict=False) if a == flag]
    values += [a.partition("=")[2] for a in argv if a.startswith(f"{flag}=")]
    if len(values) > 1:
        raise ConfigError(f"{flag} is given {len(values)} times: give it once")
    return values[0] if values else None


def _run_of(graph: Path) -> Path | None:
    """Find the run in whose folder a graph or a checkpoint lies: RUN/METHOD[/model.onnx]."""
    from brevitas_divqat.evaluation.config import CONFIG_FILE

    folder = graph.resolve().parent
    if graph.suffix == ".onnx":
        folder = folder.parent
    return folder if (folder / CONFIG_FILE).is_file() else None


def _groups() -> dict[str, Any]:
    """Name each group of settings by its field in ``RunConfig``."""
    from brevitas_divqat.evaluation import RunConfig

    return {f.name: f.default_factory for f in fields(RunConfig) if f.name in ALL_GROUPS}


def _config_file(argv: list[str]) -> Path | None:
    """Find the file of settings: the one that is named, or that of the run to attack or compare."""
    from brevitas_divqat.evaluation.config import CONFIG_FILE

    named = _flag_value("--config", argv)
    if named is not None:
        return Path(named)
    if _command_name(argv) not in ("attack", "diff", "verify"):
        return None
    places = (Path(a) for a in argv if a.endswith(".onnx") or Path(a).is_dir())
    runs = (_run_of(place) for place in places)
    return next((run / CONFIG_FILE for run in runs if run), None)


def _add_arguments(parser: ArgumentParser, command: _Command, argv: list[str]) -> None:
    command.arguments(parser)
    subject = _subject(command, argv)
    if subject is not None:
        command.subjects[subject](parser)
    if not command.groups:
        return
    known = _groups()
    parser.add_argument("--config", type=Path, help="YAML file of settings; flags override it.")
    parser.add_argument("--seed", type=int, default=0, help="of everything random but the splits.")
    for name in command.groups:
        parser.add_class_arguments(known[name], None)
    if command.function is _simulate:
        _use_built_data(parser, argv)
    if command.function is _attack and _flag_value("--battery", argv) is not None:
        _check_battery_flags(argv)
    file = _config_file(argv)
    if file is not None:
        _use_config(parser, command, file, known, _flag_value("--preset", argv))


def _use_built_data(parser: ArgumentParser, argv: list[str]) -> None:
    """Make the data set of the network in a build folder the default."""
    for place in filter(Path.is_dir, map(Path, argv)):
        data = _hardware("built_data")(place)
        if data is not None:
            parser.set_defaults({"data": data})


def _subject(command: _Command, argv: list[str]) -> str | None:
    """Find what a command is about; None where it has no subjects, or help is asked for."""
    name = _command_name(argv)
    words = [a for a in argv if not a.startswith("-") and a != name]
    subject = next((a for a in words if a in command.subjects), None)
    if subject is None and command.subjects and not {"-h", "--help"} & set(argv):
        choices = " or ".join(map(repr, command.subjects))
        got = repr(words[0]) if words else "nothing"
        raise ConfigError(f"divqat {name}: say {choices} first, got {got}")
    return subject


def _use_config(
    parser: ArgumentParser,
    command: _Command,
    file: Path,
    known: dict[str, Any],
    preset: str | None,
) -> None:
    """Make a file's settings the defaults; those of groups that this command lacks are skipped.

    A file that names a preset, as a run's does, holds what that stands for: another preset on the
    command line replaces it.
    """
    from brevitas_divqat.evaluation import settings_in
    from brevitas_divqat.loss import OF_PRESET

    names = {f.name: group for group, cls in known.items() for f in fields(cls)} | {"seed": ""}
    chosen: dict[str, Any] = {}
    content = settings_in(file)
    other_preset = preset is not None and content.get("preset", preset) != preset
    for name, value in content.items():
        key = str(name).replace("-", "_")
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "see `divqat run --help`"
            raise ConfigError(f"{file}: unknown setting {name!r}: {hint}")
        if key in chosen:
            raise ConfigError(f"{file}: {key} is given twice, with hyphens and with underscores")
        if names[key] in ("", *command.groups) and not (other_preset and key in OF_PRESET):
            chosen[key] = value
    for name, value in chosen.items():
        try:
            parser.parse_object({name: value}, defaults=False, _skip_required=True)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
    parser.set_defaults(chosen)


def _run_config(settings: Namespace, groups: Sequence[str]) -> Any:
    """Build the ``RunConfig`` of a command from its flat settings."""
    from brevitas_divqat.evaluation import RunConfig

    known = _groups()
    parts = {
        name: known[name](**{f.name: settings[f.name] for f in fields(known[name])})
        for name in groups
    }
    return RunConfig(**parts, seed=settings.seed)


def _load(config: Any, *, foreign: bool = True) -> Any:
    from brevitas_divqat.data import load

    return load(config.data, foreign=foreign)


def _run(settings: Namespace) -> None:
    from brevitas_divqat.evaluation import (
        check_float,
        check_folder,
        check_settings,
        open_folder,
        run,
        take_float,
    )
    from brevitas_divqat.progress import bar

    config = _run_config(settings, ALL_GROUPS)
    folder = settings.out or Path("runs") / config.title
    check_folder(config, folder, resume=settings.resume)
    if settings.float_of is not None:
        check_float(config, settings.float_of)
    dataset = _load(config)
    check_settings(config, dataset, folder)
    open_folder(config, folder, resume=settings.resume)
    if settings.float_of is not None:
        take_float(config, settings.float_of, folder)
    run(config, dataset, folder, progress=bar)
    _show_report([folder], folder)


def _train(settings: Namespace) -> None:
    from brevitas_divqat.evaluation import (
        METHODS,
        check_float,
        check_folder,
        check_settings,
        open_folder,
        take_float,
        train,
    )
    from brevitas_divqat.progress import bar
    from brevitas_divqat.training import load_checkpoint

    config = _run_config(settings, ALL_GROUPS)
    folder = settings.out or Path("runs") / config.title
    check_folder(config, folder, resume=settings.resume)
    if settings.float_of is not None:
        check_float(config, settings.float_of)
    dataset = _load(config, foreign=False)
    check_settings(config, dataset, folder)
    open_folder(config, folder, resume=settings.resume)
    if settings.float_of is not None:
        take_float(config, settings.float_of, folder)
    methods = METHODS if settings.method == "both" else (settings.method,)
    train(config, dataset, folder, methods, progress=bar)
    for name in ("float", *methods):
        info = load_checkpoint(folder / name)[1]
        print(
            f"{folder / name}: {100 * (info.validation_accuracy or 0):.2f} % of the validation "
            f"images (epoch {info.best_epoch})"
        )


def _export(settings: Namespace) -> None:
    from brevitas_divqat.evaluation import export

    if settings.out is not None:
        if settings.out.exists():
            raise ConfigError(f"--out {settings.out} exists: choose another file")
        if settings.out.suffix != ".onnx" or settings.out.stem.endswith("-integer"):
            raise ConfigError(
                f"--out {settings.out}: give a name that ends in .onnx, and not in -integer.onnx, "
                "which the integer graph beside it has"
            )
    exported = export(settings.checkpoint, settings.out)
    print(exported.graph)
    if exported.integer is None:
        print(f"divqat: no integer graph: {exported.reason}", file=sys.stderr)
    else:
        print(exported.integer)


def _attack(settings: Namespace) -> None:
    if settings.battery is not None:
        _battery(settings)
        return
    if settings.jobs is not None:
        raise ConfigError(f"--jobs {settings.jobs} is for a --battery: leave it out")
    from brevitas_divqat.evaluation import attack, measure_victim
    from brevitas_divqat.evaluation.theft import load_original
    from brevitas_divqat.progress import bar
    from brevitas_divqat.training import is_finished

    config = _run_config(settings, ATTACK_GROUPS)
    graph = _victim(settings, config)
    checkpoint = settings.graph.resolve().parent if settings.graph else None
    own = _run_of(settings.graph) if settings.graph else None
    if settings.out is not None:
        folder = settings.out
    elif own:
        folder = own
        config.check_same(folder, config.names_in("data", "interface", "attack"))
    else:
        what = settings.graph or settings.victim
        raise ConfigError(f"{what} lies in no run's folder: give a folder with --out")
    original = settings.reference or (own / "float" if own else None)
    reference = None if original is None else load_original(original, graph)
    images = settings.images
    if images is None:
        images = "ood" if config.attack.strategy().needs_pool else "none"
    dataset = _load(config, foreign=images == "ood")
    record = attack(
        graph,
        config.attack,
        config.interface,
        dataset,
        pool=images,
        labels=settings.labels,
        reference=reference,
        seed=config.seed,
        folder=folder,
        resume=settings.resume,
        progress=bar,
    )
    if reference is not None and checkpoint is not None and is_finished(checkpoint):
        measure_victim(checkpoint, graph, reference, dataset, folder)
    print(record.read_text(), end="")


def _battery(settings: Namespace) -> None:
    from rich.console import Console

    from brevitas_divqat.evaluation.battery import run_battery
    from brevitas_divqat.evaluation.battery_process import Setting
    from brevitas_divqat.progress import bar
    from brevitas_divqat.report import (
        BATTERY_PLOT,
        battery_table,
        battery_verdict,
        load_batteries,
        write_battery_plot,
    )

    config = _run_config(settings, ATTACK_GROUPS)
    _check_one_victim(settings, config)
    own = _run_of(settings.graph) if settings.graph else None
    folder = settings.out
    if folder is None:
        if own is None:
            what = settings.graph or settings.victim
            raise ConfigError(f"{what} lies in no run's folder: give a folder with --out")
        folder = own / f"battery-{settings.graph.resolve().parent.name}"
    setting = Setting(
        graph=settings.graph,
        hardware=settings.victim,
        executor=config.executor,
        interface=config.interface,
        data=config.data,
        reference=settings.reference or (own / "float" if own else None),
        seed=config.seed,
        folder=folder,
        battery=settings.battery,
        device=config.attack.surrogate_device,
    )
    file = run_battery(setting, resume=settings.resume, jobs=settings.jobs, progress=bar)
    (battery,) = load_batteries([folder])
    plot = folder / BATTERY_PLOT
    write_battery_plot(battery, plot)
    console = Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS)
    console.print(battery_table(battery))
    console.print(battery_verdict(battery), highlight=False, markup=False)
    print(f"\nbattery: {file}\nplot:    {plot}")


def _check_battery_flags(argv: list[str]) -> None:
    """Refuse what a battery fixes for each of its entries."""
    from brevitas_divqat.attacks import AttackConfig

    fixed = {f.name for f in fields(AttackConfig)} - {"surrogate_device"} | {"images", "labels"}
    for argument in argv:
        name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name in fixed:
            raise ConfigError(
                f"--{name.replace('_', '-')} does not go with --battery, which fixes it for each "
                "of its attacks: leave one of them out"
            )


def _victim(settings: Namespace, config: Any) -> Any:
    """Open the executor that answers for the victim: a graph's, or hardware."""
    from brevitas_divqat.executors import open_executor
    from brevitas_divqat.victims import open_hardware

    _check_one_victim(settings, config)
    if settings.graph is not None:
        return open_executor(settings.graph, config.executor)
    return open_hardware(settings.victim)


def _check_one_victim(settings: Namespace, config: Any) -> None:
    if (settings.graph is None) == (settings.victim is None):
        raise ConfigError("give either a graph or --victim rtl:DIR or board:DIR@PORT to steal")
    if settings.graph is None and config.executor.executor is not None:
        raise ConfigError(
            f"--executor {config.executor.executor} runs a graph, but --victim {settings.victim} "
            "is hardware: leave one of them out"
        )


def _check(settings: Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from brevitas_divqat.export import SEVERITIES, check_graph

    mildest = SEVERITY_FLAGS[settings.severity]
    least = [str(severity) for severity in SEVERITIES].index(mildest)
    counted = [f for f in check_graph(settings.model) if SEVERITIES.index(f.severity) <= least]
    console = Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS)
    if not counted:
        console.print(f"{settings.model}: nothing found", highlight=False, markup=False)
        return 0
    table = Table(title=Text(str(settings.model)), show_lines=True)
    for column in ("severity", "rule", "layer", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in counted:
        cells = (finding.severity, finding.rule, finding.layer, finding.found, finding.remedy)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    by_severity = [f"{sum(f.severity == s for f in counted)} {s}" for s in SEVERITIES]
    console.print(f"{len(counted)} found: {', '.join(by_severity)}", highlight=False)
    return int(settings.strict)


def _summary(settings: Namespace) -> None:
    from rich.console import Console

    from brevitas_divqat.files import write_json
    from brevitas_divqat.inspection import summary
    from brevitas_divqat.training import load_checkpoint

    _check_new_file("--json", settings.json)
    if settings.checkpoint.is_file():
        model, image_shape = _bnn_pynq_network(settings.checkpoint)
    else:
        model, info = load_checkpoint(settings.checkpoint)
        image_shape = info.image_shape
    found = summary(model, image_shape)
    console = Console(width=None if sys.stdout.isatty() else SUMMARY_COLUMNS)
    console.print(found)
    if settings.json is not None:
        write_json(settings.json, found.to_json())


def _bnn_pynq_network(checkpoint: Path) -> tuple[Any, tuple[int, ...]]:
    """Return the network of a file, and the shape of its images."""
    from brevitas_divqat.bnn_pynq.loading import load_network

    try:
        return load_network(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; divqat summary takes the folder of a model that `divqat train` wrote, or a "
            ".tar of `divqat-bnn-pynq-train`: for any other model, build it in Python and print "
            "brevitas_divqat.summary(model) (`divqat check` reads graphs)"
        ) from error


def _diff(settings: Namespace) -> None:
    from brevitas_divqat.export import diff, load_form
    from brevitas_divqat.files import write_json
    from brevitas_divqat.progress import bar

    _check_new_file("--json", settings.json)
    a, b = load_form(settings.a), load_form(settings.b)
    images, labels = _images_to_compare(settings)
    found = diff(a, b, images, labels, examples=settings.examples, progress=bar)
    print(found)
    if settings.json is not None:
        write_json(settings.json, found.to_json())


def _verify(settings: Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from brevitas_divqat.evaluation.verify import VERIFIED_EQUAL, verify
    from brevitas_divqat.files import write_json
    from brevitas_divqat.progress import bar

    _check_new_file("--json", settings.json)
    images, _ = _images_to_compare(settings)
    record = verify(settings.model, images, progress=bar)
    if settings.json is not None:
        write_json(settings.json, record)
    title = f"{settings.model}: of {record['images']:,} images, those that differ in"
    table = Table(title=Text(title))
    table.add_column("")
    for column in ("any bit", "a step of the scores", "the label"):
        table.add_column(column, justify="right")
    for name, row in record["comparisons"].items():
        counts = ("bits_differing", "multiples_differing", "labels_differing")
        table.add_row(name, *(f"{row[count]:,}" for count in counts))
    console = Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS)
    console.print(table)
    return int(any(record["comparisons"][name]["bits_differing"] for name in VERIFIED_EQUAL))


def _check_new_file(flag: str, file: Path | None) -> None:
    """Refuse a file that cannot be written, before time is spent on what it is to hold."""
    if file is None:
        return
    if file.is_dir():
        raise ConfigError(f"{flag} {file} is a folder: give a file")
    if file.exists():
        raise ConfigError(f"{flag} {file} exists: choose another file")
    if not file.parent.is_dir():
        raise ConfigError(f"{flag} {file}: there is no folder {file.parent}, make it first")


def _images_to_compare(settings: Namespace) -> tuple[Any, Any]:
    import numpy as np

    from brevitas_divqat.data import DataConfig, load
    from brevitas_divqat.errors import DataError

    if settings.images.isascii() and settings.images.isdigit():
        config = DataConfig(**{f.name: settings[f.name] for f in fields(DataConfig)})
        test = load(config, foreign=False).test
        count = int(settings.images)
        return test.images[:count], test.labels[:count]
    try:
        return np.load(settings.images, allow_pickle=False), None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"--images {settings.images} is neither a number of test images nor a .npy file of "
            "8-bit pixels, (N, C, H, W)"
        ) from error


def _bench(settings: Namespace) -> None:
    from rich.console import Console

    from brevitas_divqat.files import write_json

    _check_new_file("--out", settings.out)
    measure = {
        "executor": _bench_executor,
        "training": _bench_training,
        "attacks": _bench_attacks,
        "hardware": _bench_hardware,
    }[settings.what]
    record, table = measure(settings)
    if settings.out is not None:
        write_json(settings.out, record)
    console = Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS)
    console.print(table)


def _bench_executor(settings: Namespace) -> tuple[dict[str, Any], Any]:
    from brevitas_divqat.evaluation.bench import bench_executors, bench_table
    from brevitas_divqat.progress import bar

    record = bench_executors(
        settings.model, threads=settings.threads, seconds=settings.seconds, progress=bar
    )
    return record, bench_table(record)


def _bench_training(settings: Namespace) -> tuple[dict[str, Any], Any]:
    from brevitas_divqat.evaluation.bench_training import bench_training, training_table
    from brevitas_divqat.progress import bar

    record = bench_training(
        settings.model,
        width=settings.width,
        bits=settings.bits,
        batch_size=settings.batch_size,
        device=settings.device,
        threads=settings.threads,
        seconds=settings.seconds,
        rounds=settings.rounds,
        progress=bar,
    )
    return record, training_table(record)


def _bench_attacks(settings: Namespace) -> tuple[dict[str, Any], Any]:
    from brevitas_divqat.evaluation.bench_attacks import attacks_table, bench_attacks
    from brevitas_divqat.progress import bar

    record = bench_attacks(
        settings.model,
        budget=settings.budget,
        battery=settings.battery,
        data_root=settings.data_root,
        jobs=settings.jobs,
        progress=bar,
    )
    return record, attacks_table(record)


def _bench_hardware(settings: Namespace) -> tuple[dict[str, Any], Any]:
    return _hardware("bench")(settings)


def _hardware(name: str) -> Any:
    """Return a name of the hardware commands, which are imported with their first use."""
    return getattr(import_module("brevitas_divqat.fpga.commands"), name)


def _build(settings: Namespace) -> None:
    _hardware("build")(settings)


def _build_arguments(parser: ArgumentParser) -> None:
    _hardware("build_arguments")(parser)


def _simulate(settings: Namespace) -> int | None:
    images, _ = _images_to_compare(settings)
    return _hardware("simulate")(settings, images)


def _simulate_arguments(parser: ArgumentParser) -> None:
    _hardware("simulate_arguments")(parser)
    _images_argument(parser)


def _synth(settings: Namespace) -> None:
    _hardware("synth")(settings)


def _synth_arguments(parser: ArgumentParser) -> None:
    _hardware("synth_arguments")(parser)


def _doctor(settings: Namespace) -> int | None:
    return _hardware("doctor")(settings)


def _doctor_arguments(parser: ArgumentParser) -> None:
    _hardware("doctor_arguments")(parser)


def _report(settings: Namespace) -> None:
    _show_report(settings.runs, settings.out or settings.runs[0])


def _tradeoff(settings: Namespace) -> None:
    from rich.console import Console

    from brevitas_divqat.report import load_tradeoff, tradeoff_tables, write_plot

    _check_new_file("--out", settings.out)
    if settings.out is not None and settings.out.suffix != ".png":
        raise ConfigError(f"--out {settings.out}: expected a file name that ends in .png")
    tradeoff = load_tradeoff(settings.runs)
    console = Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS)
    for table in tradeoff_tables(tradeoff):
        console.print(table)
    if settings.out is not None:
        write_plot(tradeoff, settings.out)
        print(f"plot: {settings.out}")


def _show_report(runs: Sequence[Path], out: Path) -> None:
    from rich.console import Console

    from brevitas_divqat.files import make_folder
    from brevitas_divqat.report import (
        BATTERY_FILE,
        battery_table,
        battery_verdict,
        compare_batteries,
        comparison_table,
        load_batteries,
        load_measurements,
        not_compared,
        tables,
        verdict,
        write_battery_plot,
        write_report,
    )

    # Without a terminal rich assumes 80 columns, which the tables outgrow.
    console = Console(width=None if sys.stdout.isatty() else REPORT_COLUMNS)
    measured = [run for run in runs if (run / "measurements").is_dir()]
    for run in runs:
        if run.is_file():
            raise ConfigError(f"{run} is a file: name its folder")
        if run not in measured and not (run / BATTERY_FILE).exists():
            raise ConfigError(
                f"{run}: holds neither measurements nor {BATTERY_FILE}: name the folder of a run "
                "or a battery"
            )
    batteries = load_batteries(runs)
    measurements = load_measurements(measured) if measured else None
    make_folder(out)  # before anything is printed
    if measurements is not None:
        files = write_report(measured, out, measurements=measurements)
        for table in tables(measurements):
            console.print(table)
        console.print(verdict(measurements), highlight=False, markup=False)
        print(f"\nreport: {files.html}\nplot:   {files.png}")
        if files.curves is not None:
            print(f"curves: {files.curves}")
    for index, battery in enumerate(batteries, 1):
        console.print(battery_table(battery))
        console.print(battery_verdict(battery), highlight=False, markup=False)
        number = "" if len(batteries) == 1 else f"-{index}"
        plot = out / f"report-battery{number}.png"
        write_battery_plot(battery, plot)
        print(f"\nplot: {plot}")
    for comparison in compare_batteries(batteries):
        console.print(comparison_table(comparison))
    for line in not_compared(batteries):
        print(line)


def _out_argument(parser: ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--out", type=Path, default=None, help=what)


def _folder_arguments(parser: ArgumentParser) -> None:
    _out_argument(parser, "the run's folder; by default runs/ and a name made of the settings.")
    parser.add_argument(
        "--resume", action="store_true", help="go on in a folder that holds this run already."
    )
    parser.add_argument(
        "--float_of",
        type=Path | None,
        default=None,
        help="folder of another run, whose full-precision network has the same settings and seed "
        "and is copied instead of trained again.",
    )


def _train_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--method",
        type=Literal["qat", "divqat", "both"],
        default="both",
        help="which quantized network to train after the full-precision one.",
    )
    _folder_arguments(parser)


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="folder of a quantized model.")
    _out_argument(
        parser,
        "the exported graph's file, with the integer graph beside it; by default model.onnx and "
        "model-integer.onnx in that folder.",
    )


def _attack_arguments(parser: ArgumentParser) -> None:
    from brevitas_divqat.attacks import Labels
    from brevitas_divqat.attacks.battery import BatteryName

    parser.add_argument(
        "graph",
        type=Path | None,
        nargs="?",
        default=None,
        help="a QONNX graph that `divqat export` wrote; or give --victim.",
    )
    parser.add_argument(
        "--victim",
        type=str | None,
        default=None,
        help="hardware to steal from instead: rtl:DIR simulates the RTL of a build folder, "
        "board:DIR@PORT asks a board on a serial line.",
    )
    parser.add_argument(
        "--battery",
        type=BatteryName | None,
        default=None,
        help="carry out many attacks, each with settings of its own, and show the worst case: "
        "quick, standard or full (docs/attacks.md lists them).",
    )
    parser.add_argument(
        "--jobs",
        type=int | None,
        default=None,
        help="attacks of a battery at a time; by default the number of cores.",
    )
    parser.add_argument(
        "--images",
        type=Literal["in", "ood", "none"] | None,
        default=None,
        help="the thief's images: of the victim's distribution, foreign, or none; by default "
        "foreign where the attack asks about images.",
    )
    parser.add_argument("--labels", type=Labels, default="soft", help="what is made of an answer.")
    parser.add_argument(
        "--reference",
        type=Path,
        default=None,
        help="folder of the full-precision original, for the divergence on the queries; by default "
        "the run's, if the graph lies in a run's folder.",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an attack or a battery that was interrupted; no answer is asked for "
        "again.",
    )
    _out_argument(
        parser,
        "folder of the results; by default the run's that the graph lies in, for a battery the "
        "folder battery-METHOD in it.",
    )


def _check_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a QONNX graph with float scales.")
    parser.add_argument(
        "--severity",
        type=Literal["breaks", "hls", "area"],
        default="area",
        help="the mildest findings to list: what breaks FINN, what falls back to HLS, or all.",
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with status 1 if anything is listed."
    )


def _summary_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="folder of a model, quantized or not, or a .tar of divqat-bnn-pynq-train.",
    )
    parser.add_argument("--json", type=Path, default=None, help="a file to write it all to.")


def _diff_arguments(parser: ArgumentParser) -> None:
    what = "a checkpoint's folder, an exported graph, or an integer graph."
    parser.add_argument("a", type=Path, help=what)
    parser.add_argument("b", type=Path, help=what)
    _images_argument(parser)
    _json_argument(parser)
    parser.add_argument(
        "--examples", type=int, default=10, help="how many differing elements to show."
    )


def _images_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--images",
        type=str,
        default="256",
        help="how many test images of --data, or a .npy file of 8-bit pixels (N, C, H, W).",
    )


def _json_argument(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, default=None, help="a file to write it all to.")


def _verify_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, help="a checkpoint's folder with model.onnx, or an exported graph."
    )
    _images_argument(parser)
    _json_argument(parser)


def _bench_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what", type=Literal["executor", "training", "attacks", "hardware"], help=BENCH_HELP
    )


def _bench_executor_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an exported graph.")
    _timing_arguments(parser)


def _bench_training_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, default="lenet5", help="name of the network.")
    parser.add_argument(
        "--width", type=float, default=1.0, help="factor on the numbers of channels and features."
    )
    parser.add_argument("--bits", type=int, default=4, help="bits of weights and activations.")
    parser.add_argument("--batch_size", type=int, default=128, help="images per step.")
    parser.add_argument(
        "--device", type=Literal["cpu", "cuda"], default="cpu", help="where to train: cpu or cuda."
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="fresh processes per number of threads."
    )
    _timing_arguments(parser)


def _bench_attacks_arguments(parser: ArgumentParser) -> None:
    from brevitas_divqat.attacks.battery import BatteryName

    parser.add_argument("model", type=Path, help="a deployed graph.")
    parser.add_argument("--budget", type=int, default=2_000, help="queries of each attack.")
    parser.add_argument(
        "--battery",
        type=BatteryName | None,
        default=None,
        help="time this battery too: quick, standard or full.",
    )
    parser.add_argument(
        "--data_root", type=Path, default=Path("data"), help="where the battery's data lie."
    )
    parser.add_argument(
        "--jobs",
        type=int | None,
        default=None,
        help="attacks of the battery at a time; by default the number of cores.",
    )
    _out_argument(parser, "a JSON file of the measurements.")


def _bench_hardware_arguments(parser: ArgumentParser) -> None:
    _hardware("bench_arguments")(parser)
    _out_argument(parser, "a JSON file of the measurements.")


def _timing_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=list[int] | None,
        default=None,
        help="numbers of threads, e.g. [1,2]; by default 1 and 2, as far as there are cores.",
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="least duration of each measurement."
    )
    _out_argument(parser, "a JSON file of the measurements.")


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="folders of runs or attacks, which may differ in their seed alone, and of batteries "
        "(`divqat attack --battery`), which are averaged where they differ in their seed alone, "
        "shown apart where not, and beside each other where one is against plain QAT.",
    )
    _out_argument(parser, "folder of the page and the plots; by default the first one.")


def _tradeoff_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="folders of measurements, each of one bit width and one alpha, with plain QAT or "
        "without; they may differ in these and in the seed alone.",
    )
    _out_argument(parser, "the plot, a PNG file; none by default.")


BENCH_HELP = (
    "what to measure: executor (GRAPH [flags]), training ([flags]), attacks (GRAPH [flags]) or "
    "hardware (GRAPH [flags])."
)
SEVERITY_FLAGS = {"breaks": "breaks FINN", "hls": "falls back to HLS", "area": "costs area"}
ALL_GROUPS = ("data", "model", "training", "loss", "interface", "executor", "attack")
ATTACK_GROUPS = ("data", "interface", "executor", "attack")

COMMANDS = {
    "run": _Command(
        "Train plain QAT and DivQAT, export both, steal both, print the verdict.",
        ALL_GROUPS,
        _run,
        _folder_arguments,
    ),
    "train": _Command(
        "Train the full-precision network and quantized ones from its weights.",
        ALL_GROUPS,
        _train,
        _train_arguments,
    ),
    "export": _Command(
        "Write a trained model as QONNX graphs: exported and integer.",
        (),
        _export,
        _export_arguments,
    ),
    "attack": _Command(
        "Steal a QONNX graph: one attack, or a battery of them (docs/attacks.md).",
        ATTACK_GROUPS,
        _attack,
        _attack_arguments,
    ),
    "check": _Command(
        "List what keeps a QONNX graph from becoming an all-RTL accelerator.",
        (),
        _check,
        _check_arguments,
    ),
    "summary": _Command(
        "Show a model's effective bits layer by layer, and what is probably not meant.",
        (),
        _summary,
        _summary_arguments,
    ),
    "diff": _Command(
        "Compare two forms of one network layer by layer.", ("data",), _diff, _diff_arguments
    ),
    "verify": _Command(
        "Count where the executors and forms of one network differ.",
        ("data",),
        _verify,
        _verify_arguments,
    ),
    "bench": _Command(
        "Measure executors, training steps, attacks or the way to hardware, on this machine.",
        (),
        _bench,
        _bench_arguments,
        {
            "executor": _bench_executor_arguments,
            "training": _bench_training_arguments,
            "attacks": _bench_attacks_arguments,
            "hardware": _bench_hardware_arguments,
        },
    ),
    "build": _Command(
        "Build a network for an FPGA board: a folder for FINN, with estimates and RTL.",
        (),
        _build,
        _build_arguments,
    ),
    "simulate": _Command(
        "Simulate a build folder's RTL, and compare every integer with the graph's.",
        ("data",),
        _simulate,
        _simulate_arguments,
    ),
    "synth": _Command(
        "Synthesise a build folder's RTL: resources by layer.", (), _synth, _synth_arguments
    ),
    "doctor": _Command(
        "Show what of the hardware flow works on this machine.", (), _doctor, _doctor_arguments
    ),
    "report": _Command(
        "Render runs, attacks and batteries: tables, verdict, plots, and victims side by side.",
        (),
        _report,
        _report_arguments,
    ),
    "tradeoff": _Command(
        "Compare victims over alpha: what each costs its user, and its thief.",
        (),
        _tradeoff,
        _tradeoff_arguments,
    ),
}
