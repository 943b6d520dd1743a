# SPDX-License-Identifier: BSD-3-Clause
"""What is asked and answered: kept batch by batch, gone on with, refused where it is another's."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from brevitas_divqat.attacks import (
    Attack,
    Extraction,
    KnockoffNets,
    QueryStrategy,
    Resources,
    ThiefConfig,
    read_transcript,
)
from brevitas_divqat.attacks import transcript as transcript_module
from brevitas_divqat.attacks.inquiry import Inquiry
from brevitas_divqat.attacks.thief import Thief
from brevitas_divqat.errors import AttackError, ConfigError, DataError, DivQATError
from brevitas_divqat.training import FitConfig
from brevitas_divqat.victims import OutputInterface

Images = NDArray[np.uint8]
Answers = NDArray[np.float64]

SHAPE = (1, 4, 4)
CLASSES = 3
BATCH = 10
BUDGET = 35
FIT = FitConfig(
    epochs=1,
    batch_size=8,
    lr=0.05,
    optimizer="sgd",
    weight_decay=0.0,
    augmentation="none",
    device="cpu",
    precision="32-true",
)


class Linear:
    """A victim that counts its questions and may fail at one of them."""

    image_shape = SHAPE
    num_classes = CLASSES

    def __init__(
        self,
        fault: Callable[[Answers], Any] | None = None,
        at: int = 1,
        interface: OutputInterface | None = None,
    ) -> None:
        self.interface = OutputInterface() if interface is None else interface
        self.remaining: int | None = None
        self.questions: list[Images] = []
        self._fault = fault
        self._at = at
        self._weights = np.random.default_rng(0).normal(0, 0.01, (16, CLASSES))

    @property
    def queries(self) -> int:
        return sum(len(images) for images in self.questions)

    def query(self, images: Images) -> Answers:
        answers = self.interface.answer(
            (images.reshape(len(images), -1) @ self._weights).astype(np.float32)
        )
        if self._fault is not None and len(self.questions) == self._at:
            answers = self._fault(answers)
        self.questions.append(images.copy())
        return answers


class Follower(QueryStrategy):
    """Asks first about what its student is least sure of: its questions depend on the answers."""

    name = "follower"

    @property
    def learns(self) -> bool:
        return True

    def ask(self, inquiry: Inquiry, thief: Thief) -> None:
        left = np.arange(len(thief.pool))
        student = thief.new_surrogate("student")
        while inquiry.left:
            with torch.no_grad():
                logits = student(torch.from_numpy(thief.pool[left]).float() / 256)
            order = np.argsort(logits.max(dim=1).values.numpy(), kind="stable")
            chosen = left[order[: min(BATCH, inquiry.left)]]
            left = np.setdiff1d(left, chosen)
            answers = inquiry.ask(thief.pool[chosen])
            thief.learn(student, thief.pool[chosen], answers, purpose="student")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from brevitas_divqat.attacks import knockoff

    monkeypatch.setattr(transcript_module, "QUERY_BATCH", BATCH)
    monkeypatch.setattr(knockoff, "QUERY_BATCH", BATCH)


@pytest.fixture(scope="module")
def pool() -> Images:
    return np.random.default_rng(1).integers(0, 256, (60, *SHAPE), dtype=np.uint8)


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def steal(
    victim: Any,
    pool: Images | None,
    folder: Path | None = None,
    *,
    strategy: QueryStrategy | None = None,
    seed: int = 0,
    budget: int = BUDGET,
    points: tuple[int, ...] = (),
    graph: str | None = "abc",
    **thief: Any,
) -> Extraction:
    attack = Attack(strategy or KnockoffNets(), FIT, ThiefConfig(**thief))
    resources = Resources(budget, network, seed, pool)
    return attack(victim, resources, points=points, folder=folder, graph_sha256=graph)


def weights(extraction: Extraction) -> list[bytes]:
    return [
        tensor.numpy().tobytes()
        for point in extraction.curve
        for tensor in point.surrogate.state_dict().values()
    ]


def same(a: Extraction, b: Extraction) -> bool:
    return (
        a.transcript.images.tobytes() == b.transcript.images.tobytes()
        and a.transcript.answers.tobytes() == b.transcript.answers.tobytes()
        and weights(a) == weights(b)
        and a.queries == b.queries
    )


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def failing(error: BaseException) -> Callable[[Answers], Any]:
    def fail(answers: Answers) -> Any:
        raise error

    return fail


# Interruption and resumption


@pytest.mark.parametrize(
    "strategy", [KnockoffNets(), KnockoffNets("adaptive"), Follower()], ids=str
)
@pytest.mark.parametrize("copies", [1, 2])
def test_an_attack_that_is_interrupted_after_any_batch_ends_as_if_it_were_not(
    pool: Images, tmp_path: Path, strategy: QueryStrategy, copies: int
) -> None:
    options: dict[str, Any] = {"strategy": strategy, "copies": copies, "points": (12,)}
    whole = Linear()
    expected = steal(whole, pool, tmp_path / "whole", **options)
    assert len(whole.questions) >= 4
    for number in range(len(whole.questions)):
        folder = tmp_path / str(number)
        broken = Linear(failing(KeyboardInterrupt()), at=number)
        with pytest.raises(KeyboardInterrupt):
            steal(broken, pool, folder, **options)
        told = read_transcript(folder)
        assert (0 if told is None else len(told)) == broken.queries
        rest = Linear()
        assert same(steal(rest, pool, folder, **options), expected)
        # What was answered is not asked for again.
        assert broken.queries + rest.queries == expected.queries == whole.queries


def test_a_finished_attack_is_repeated_without_a_question(pool: Images, tmp_path: Path) -> None:
    expected = steal(Linear(), pool, tmp_path)
    before = parts(tmp_path)
    victim = Linear()
    again = steal(victim, pool, tmp_path)
    assert victim.queries == 0
    assert again.victim_seconds == 0
    assert same(again, expected)
    assert parts(tmp_path) == before


def test_other_thieves_learn_from_the_same_answers(pool: Images, tmp_path: Path) -> None:
    expected = steal(Linear(), pool, labels="hard")
    steal(Linear(), pool, tmp_path, labels="soft")
    victim = Linear()
    assert same(steal(victim, pool, tmp_path, labels="hard"), expected)
    assert victim.queries == 0


def test_a_thief_that_learns_on_its_way_does_not_take_over_another_s_answers(
    pool: Images, tmp_path: Path
) -> None:
    steal(Linear(), pool, tmp_path, strategy=Follower(), labels="soft")
    with pytest.raises(ConfigError, match="another attack: labels is soft, here hard"):
        steal(Linear(), pool, tmp_path, strategy=Follower(), labels="hard")


def test_a_transcript_is_what_was_asked_in_order(pool: Images, tmp_path: Path) -> None:
    victim = Linear()
    extraction = steal(victim, pool, tmp_path)
    told = read_transcript(tmp_path)
    assert told is not None
    np.testing.assert_array_equal(told.images, np.concatenate(victim.questions))
    np.testing.assert_array_equal(told.answers, extraction.transcript.answers)
    assert parts(tmp_path) == [*(f"{n:010d}.npz" for n in (0, 10, 20, 30)), "transcript.json"]


def test_a_folder_changes_no_number(pool: Images, tmp_path: Path) -> None:
    assert same(steal(Linear(), pool), steal(Linear(), pool, tmp_path))


# A victim that fails


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    ("fault", "match"),
    [
        pytest.param(
            failing(RuntimeError("lost\nthe board")), "RuntimeError: lost the board", id="raises"
        ),
        pytest.param(failing(DataError("no such image")), "no such image", id="our-error"),
        pytest.param(lambda a: a * np.nan, "NaN or infinity", id="nan"),
        pytest.param(lambda a: a + np.inf, "NaN or infinity", id="infinite"),
        pytest.param(lambda a: a[:-1], "answered .*expected finite numbers", id="fewer"),
        pytest.param(lambda a: a[:, :2], "answered .*expected finite numbers", id="classes"),
        pytest.param(lambda a: None, "AttributeError", id="nothing"),
    ],
)
def test_a_victim_that_fails_is_one_line_and_the_answers_are_kept(
    pool: Images, tmp_path: Path, fault: Callable[[Answers], Any], match: str, at: int
) -> None:
    with pytest.raises(AttackError, match=match) as caught:
        steal(Linear(fault, at=at), pool, tmp_path)
    assert "\n" not in str(caught.value)
    assert f"{at * BATCH} of {BUDGET} queries are in {tmp_path}" in str(caught.value)
    assert "--resume" in str(caught.value)
    rest = Linear()
    assert same(steal(rest, pool, tmp_path), steal(Linear(), pool))
    assert rest.queries == BUDGET - at * BATCH


def test_without_a_folder_nothing_is_promised(pool: Images) -> None:
    with pytest.raises(AttackError, match="10 of 35 queries were answered") as caught:
        steal(Linear(failing(OSError("gone"))), pool)
    assert "--resume" not in str(caught.value)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_full_disk_is_one_line_and_the_answers_before_it_are_kept(
    pool: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if f"{number * BATCH:010d}.npz" in path.name:
            write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DivQATError, match="No space left on device") as caught:
            steal(Linear(), pool, tmp_path)
    assert "\n" not in str(caught.value)
    assert parts(tmp_path) == [*(f"{n * BATCH:010d}.npz" for n in range(number)), "transcript.json"]
    rest = Linear()
    assert same(steal(rest, pool, tmp_path), steal(Linear(), pool))
    assert rest.queries == BUDGET - number * BATCH


# Files that cannot be gone on with


def refused(pool: Images, folder: Path, match: str, **attack: Any) -> None:
    victim = Linear()
    with pytest.raises(ConfigError, match=match) as caught:
        steal(victim, pool, folder, **attack)
    assert "\n" not in str(caught.value)
    assert victim.queries == 0


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: b"no archive", id="text"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut"),
        pytest.param(lambda data: data[:80] + bytes(40) + data[120:], id="overwritten"),
    ],
)
def test_a_damaged_file_is_named(
    pool: Images, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    steal(Linear(), pool, tmp_path)
    path = tmp_path / "0000000010.npz"
    path.write_bytes(damage(path.read_bytes()))
    refused(pool, tmp_path, "0000000010.npz is damaged.*--resume")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        pytest.param(
            lambda i, a: (i, a[:, :2]), r"answers \(10, 2\), expected .* \(N, 3\)", id="classes"
        ),
        pytest.param(
            lambda i, a: (i[..., :3], a), r"images \(10, 1, 4, 3\).*\(N, 1, 4, 4\)", id="width"
        ),
        pytest.param(lambda i, a: (i[:, 0], a), r"images \(10, 4, 4\)", id="axes"),
        pytest.param(lambda i, a: (i[0, 0, 0, 0], a), r"images \(\)", id="number"),
        pytest.param(lambda i, a: (i, a[:-1]), "10 images and 9 answers", id="unequal"),
        pytest.param(lambda i, a: (i[:0], a[:0]), "0 images and 0 answers", id="none"),
        pytest.param(lambda i, a: (i, a * np.nan), "NaN or infinity", id="nan"),
        pytest.param(lambda i, a: (i, a / 0), "NaN or infinity", id="infinite"),
        pytest.param(lambda i, a: (i / 255, a), "float64 images", id="float-images"),
        pytest.param(lambda i, a: (i, a.astype(str)), "<U32 answers", id="text"),
    ],
)
@pytest.mark.parametrize("number", [0, 10])
def test_a_readable_file_of_something_else_is_named(
    pool: Images, tmp_path: Path, content: Callable[[Images, Answers], Any], match: str, number: int
) -> None:
    steal(Linear(), pool, tmp_path)
    told = read_transcript(tmp_path)
    assert told is not None
    with np.errstate(divide="ignore"):
        images, answers = content(told.images[:10], told.answers[:10])
    np.savez(tmp_path / f"{number:010d}.npz", images=images, answers=answers)
    refused(pool, tmp_path, f"{number:010d}.npz holds .*{match}.*--resume")


def test_without_a_victim_files_must_fit_each_other(pool: Images, tmp_path: Path) -> None:
    steal(Linear(), pool, tmp_path)
    np.savez(tmp_path / "0000000010.npz", images=pool[:10], answers=np.zeros((10, 2)))
    with pytest.raises(ConfigError, match=r"0000000010.npz holds .*\(N, 1, 4, 4\) and \(N, 3\)"):
        read_transcript(tmp_path)


def test_a_file_of_another_name_is_noticed(pool: Images, tmp_path: Path) -> None:
    steal(Linear(), pool, tmp_path)
    (tmp_path / "0000000010.npz").rename(tmp_path / "more.npz")
    refused(pool, tmp_path, "0000000020.npz does not follow")
    (tmp_path / "more.npz").rename(tmp_path / "0000000010.npz")
    (tmp_path / "0000000000.npz").rename(tmp_path / "0.npz")
    refused(pool, tmp_path, "0.npz does not follow")


def test_a_missing_file_is_noticed(pool: Images, tmp_path: Path) -> None:
    steal(Linear(), pool, tmp_path)
    (tmp_path / "0000000010.npz").unlink()
    refused(pool, tmp_path, "0000000020.npz does not follow")


def test_after_deleting_what_is_damaged_the_attack_goes_on(pool: Images, tmp_path: Path) -> None:
    expected = steal(Linear(), pool, tmp_path)
    for name in ("0000000020.npz", "0000000030.npz"):
        (tmp_path / name).unlink()
    rest = Linear()
    assert same(steal(rest, pool, tmp_path), expected)
    assert rest.queries == 15


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_damaged_identity_is_named(pool: Images, tmp_path: Path, content: str) -> None:
    steal(Linear(), pool, tmp_path)
    (tmp_path / "transcript.json").write_text(content)
    refused(pool, tmp_path, "transcript.json is damaged")


def test_answers_of_unknown_origin_are_not_taken_over(pool: Images, tmp_path: Path) -> None:
    steal(Linear(), pool, tmp_path)
    (tmp_path / "transcript.json").unlink()
    refused(pool, tmp_path, "transcript.json is missing")


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        pytest.param({"seed": 1}, "seed is 0, here 1", id="seed"),
        pytest.param({"budget": 40}, "budget is 35, here 40", id="budget"),
        pytest.param({"graph": "def"}, "graph_sha256 is abc, here def", id="graph"),
        pytest.param({"strategy": KnockoffNets("adaptive")}, "another attack", id="policy"),
        pytest.param({"strategy": Follower()}, "attack is knockoff, here follower", id="attack"),
        pytest.param({"copies": 2}, "copies is 1, here 2", id="copies"),
    ],
)
def test_another_attack_s_transcript_is_refused(
    pool: Images, tmp_path: Path, attack: dict[str, Any], match: str
) -> None:
    steal(Linear(), pool, tmp_path)
    refused(pool, tmp_path, match, **attack)


def test_another_interface_s_transcript_is_refused(pool: Images, tmp_path: Path) -> None:
    steal(Linear(), pool, tmp_path)
    victim = Linear(interface=OutputInterface(decimals=2))
    with pytest.raises(ConfigError, match="another attack: interface is"):
        steal(victim, pool, tmp_path)
    assert victim.queries == 0


def test_other_images_of_the_same_number_are_noticed(pool: Images, tmp_path: Path) -> None:
    steal(Linear(), pool, tmp_path)
    refused(255 - pool, tmp_path, "holds another attack: pool_crc32 is")
    again = Linear()
    steal(again, pool.copy(), tmp_path)
    assert again.queries == 0


def test_the_identity_is_readable(pool: Images, tmp_path: Path) -> None:
    steal(Linear(), pool, tmp_path)
    identity = json.loads((tmp_path / "transcript.json").read_text())
    assert (identity["attack"], identity["seed"], identity["budget"]) == ("knockoff", 0, BUDGET)
    assert identity["graph_sha256"] == "abc"


# Bad input


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        pytest.param(lambda x: x[:0], "empty", id="empty"),
        pytest.param(lambda x: x[..., :3], "shape", id="narrow"),
        pytest.param(lambda x: x / 255, "float64", id="floats"),
    ],
)
def test_a_pool_that_does_not_fit_is_refused_before_a_file_is_written(
    pool: Images, tmp_path: Path, spoil: Callable[[Images], Any], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        steal(Linear(), spoil(pool), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_attack_that_asks_about_images_needs_some() -> None:
    with pytest.raises(ConfigError, match="asks about images of a pool"):
        steal(Linear(), None)


class Seeded(KnockoffNets):
    """Begins with 30 images."""

    @property
    def least_images(self) -> int:
        return 30


@pytest.mark.parametrize(("budget", "copies"), [(29, 1), (59, 2)])
def test_a_budget_below_the_seed_set_is_refused(pool: Images, budget: int, copies: int) -> None:
    victim = Linear()
    with pytest.raises(ConfigError, match=rf"needs 30 images.*is {budget}: raise --budget"):
        steal(victim, pool, strategy=Seeded(), budget=budget, copies=copies)
    assert victim.queries == 0
    assert len(steal(victim, pool, strategy=Seeded(), budget=60, copies=2).transcript) == 30


@pytest.mark.parametrize("points", [(BUDGET,), (0,), (5, 99)])
def test_points_outside_the_budget_are_refused(pool: Images, points: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="a point of the curve is at"):
        steal(Linear(), pool, points=points)


@pytest.mark.parametrize("points", [(10.5,), ("5",)])
def test_points_are_whole_numbers(pool: Images, points: Any) -> None:
    victim = Linear()
    with pytest.raises(ConfigError, match="give whole numbers of queries"):
        steal(victim, pool, points=points)
    assert victim.queries == 0


@pytest.mark.parametrize(
    ("surrogate", "match"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(17, CLASSES)), "cannot take images of"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), r"gives \(2, 4\) for 2 images"),
        (nn.Identity, r"gives \(2, 1, 4, 4\) for 2 images"),
    ],
)
def test_a_surrogate_that_does_not_fit_is_refused_before_a_query(
    pool: Images, surrogate: Callable[[], nn.Module], match: str
) -> None:
    victim = Linear()
    fit = FitConfig(1, 4, 0.05, "sgd", device="cpu")
    with pytest.raises(ConfigError, match=match) as caught:
        Attack(KnockoffNets(), fit)(victim, Resources(BUDGET, surrogate, 0, pool))
    assert victim.queries == 0
    assert "\n" not in str(caught.value)


# The learning curve, and copies


def test_a_point_of_the_curve_is_what_its_budget_would_have_bought(pool: Images) -> None:
    points = steal(Linear(), pool, points=(12, 24)).curve
    assert [point.queries for point in points] == [12, 24, BUDGET]
    for point in points[:2]:
        alone = steal(Linear(), pool, budget=point.queries)
        for a, b in zip(alone.surrogate.parameters(), point.surrogate.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["shifted", "mixed"])
def test_each_copy_is_a_query_and_the_answer_is_their_mean(pool: Images, kind: str) -> None:
    victim = Linear()
    extraction = steal(victim, pool, copies=3, copy_kind=kind)
    assert extraction.queries == victim.queries == 33  # three times eleven
    assert len(extraction.transcript) == 11
    questions = np.concatenate(victim.questions)
    # An image's copies follow each other: the first 3 n queries are the first n images'.
    means = Linear().query(questions).reshape(11, 3, CLASSES).mean(axis=1)
    np.testing.assert_allclose(extraction.transcript.answers, means)
    copies = {image.tobytes() for image in questions}
    originals = {image.tobytes() for image in pool}
    assert len(copies - originals) > 10, "they vary"


def test_points_are_whole_images_below_all_that_was_asked_each_once(pool: Images) -> None:
    extraction = steal(Linear(), pool, copies=3, points=(3, 10, 11, 12, 14, 33, 34))
    assert [point.queries for point in extraction.curve] == [3, 9, 12, 33]
    assert steal(Linear(), pool, points=(12, 24, 12)).curve[0].queries == 12
    assert [p.queries for p in steal(Linear(), pool, budget=10, copies=3, points=(9,)).curve] == [9]


@pytest.mark.parametrize("kind", ["shifted", "mixed"])
def test_a_point_learns_from_no_answer_that_came_after_it(pool: Images, kind: str) -> None:
    def changed_after(count: int) -> Callable[[Answers], Any]:
        return lambda answers: np.concatenate([answers[:count], answers[count:][:, ::-1]])

    options: dict[str, Any] = {"copies": 3, "copy_kind": kind, "points": (12,)}
    honest = steal(Linear(), pool, **options)
    # The second question of ten holds queries 10 to 19: of them 12 and before count.
    early, late = (steal(Linear(changed_after(n)), pool, **options) for n in (1, 2))
    first = [weights(extraction)[: len(weights(extraction)) // 2] for extraction in (early, late)]
    assert first[1] == weights(honest)[: len(weights(honest)) // 2]
    assert first[0] != first[1]
    assert weights(late) != weights(honest)


def test_the_mean_of_copies_is_soft_even_of_labels(pool: Images) -> None:
    victim = Linear(interface=OutputInterface("label"))
    extraction = steal(victim, pool, copies=3)
    assert set(np.unique(extraction.transcript.answers * 3).round(6)) <= {0.0, 1.0, 2.0, 3.0}
    np.testing.assert_allclose(extraction.transcript.answers.sum(axis=1), 1)
    with pytest.raises(ConfigError, match="shows none"):
        steal(Linear(interface=OutputInterface("label")), pool)
