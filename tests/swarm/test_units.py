from __future__ import annotations

import json
from typing import Any

import pytest

from swarm.architecture import parse_config
from swarm.layout import LayoutError
from swarm.safetensors_header import header_size, parse_header
from swarm.units import Layout, unit_names, units_of
from tests.tiny_models import Shapes, llama_config, model_shapes, safetensors_bytes


def layout(shapes: Shapes, *, dtype: str = "F32", **changes: Any) -> Layout:
    raw = safetensors_bytes(shapes, dtype=dtype)
    header = parse_header(raw[: header_size(raw[:8], file_size=len(raw))], file_size=len(raw))
    return units_of(parse_config(json.dumps(llama_config(**changes)).encode()), [header])


def test_units_are_in_order_and_hold_every_byte_once() -> None:
    shapes = model_shapes(llama_config())
    result = layout(shapes)
    assert tuple(result.tensors) == unit_names(12)
    assert {entry.name for entries in result.tensors.values() for entry in entries} == shapes.keys()
    ranges = result.ranges()
    assert all(len(ranges[f"layer.{index}"]) == 1 for index in range(12)), "a layer lies in one piece"
    assert ranges["layer.1"][0].stop == ranges["layer.10"][0].start, "files are in order of names, not of numbers"


def test_a_tied_head_is_the_embedding_and_a_stored_copy_is_not_placed() -> None:
    shapes = model_shapes(llama_config(tie_word_embeddings=True))
    result = layout(shapes, tie_word_embeddings=True)
    assert result.ranges()["head"] == result.ranges()["embed"]
    copied = layout(shapes | {"lm_head.weight": (512, 96)}, tie_word_embeddings=True)
    assert "lm_head.weight" not in {entry.name for entries in copied.tensors.values() for entry in entries}


def test_rotary_frequencies_of_old_exports_are_left_out() -> None:
    shapes = model_shapes(llama_config()) | {"model.layers.3.self_attn.rotary_emb.inv_freq": (12,)}
    assert layout(shapes).tensors.keys() == set(unit_names(12))


@pytest.mark.parametrize(
    ("extra", "lost"),
    [
        ({}, "model.layers.7.mlp.up_proj.weight"),
        ({}, "lm_head.weight"),
        ({"model.norm.weight": (95,)}, None),
        ({"model.layers.12.mlp.up_proj.weight": (256, 96)}, None),
        ({"model.layers.12.self_attn.rotary_emb.inv_freq": (12,)}, None),
        ({"model.layers.0.self_attn.q_proj.qweight": (4,)}, None),
        ({"vision.weight": (4,)}, None),
    ],
)
def test_a_tensor_that_is_missing_or_has_no_place_is_named(extra: Shapes, lost: str | None) -> None:
    shapes = model_shapes(llama_config()) | extra
    if lost is not None:
        del shapes[lost]
    with pytest.raises(LayoutError, match=lost or next(iter(extra))):
        layout(shapes)


def test_weights_of_another_dtype_are_refused() -> None:
    assert layout(model_shapes(llama_config()), dtype="BF16").dtype == "BF16"
    with pytest.raises(LayoutError, match="F64"):
        layout(model_shapes(llama_config()), dtype="F64")


def test_a_tensor_in_two_files_is_refused() -> None:
    raw = safetensors_bytes(model_shapes(llama_config()))
    header = parse_header(raw[: header_size(raw[:8], file_size=len(raw))], file_size=len(raw))
    with pytest.raises(LayoutError, match="twice"):
        units_of(parse_config(json.dumps(llama_config()).encode()), [header, header])
