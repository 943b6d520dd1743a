# SPDX-License-Identifier: BSD-3-Clause
"""A graph's metadata comes back as it was written, or is refused by name."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest

from brevitas_divqat.errors import GraphError
from brevitas_divqat.export import GraphMetadata, tool_versions


def test_round_trip_through_json(metadata: GraphMetadata) -> None:
    found = GraphMetadata.from_json(metadata.to_json(), "model.onnx")
    assert found == metadata
    assert isinstance(found.image_shape, tuple)
    assert isinstance(found.class_names, tuple)


def test_versions_of_the_tools_are_recorded(metadata: GraphMetadata) -> None:
    assert metadata.versions == tool_versions()
    assert metadata.versions["brevitas"] == version("brevitas")
    assert metadata.versions["qonnx"] == version("qonnx")


def without(metadata: GraphMetadata, key: str) -> str:
    content = json.loads(metadata.to_json())
    del content[key]
    return json.dumps(content)


@pytest.mark.parametrize(
    "damage",
    ["none", "no JSON", "a list", "no shape", "no schema", "another schema", "unknown field"],
)
def test_damaged_metadata_is_refused_with_the_graph_s_name(
    metadata: GraphMetadata, damage: str
) -> None:
    content = json.loads(metadata.to_json())
    text = {
        "none": None,
        "no JSON": "{",
        "a list": "[]",
        "no shape": without(metadata, "image_shape"),
        "no schema": without(metadata, "schema"),
        "another schema": json.dumps(content | {"schema": 99}),
        "unknown field": json.dumps(content | {"colour": "red"}),
    }[damage]
    with pytest.raises(GraphError, match=r"^model\.onnx .*export it") as caught:
        GraphMetadata.from_json(text, "model.onnx")
    assert "\n" not in str(caught.value)
