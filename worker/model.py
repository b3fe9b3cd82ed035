"""The weights of one span on one device, and the arithmetic of any stage inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from swarm.architecture import EMBEDDING, HEAD, LAYER_PREFIX, NORM
from swarm.errors import ModelFolderError, ResourceError, UsageError
from worker import layers
from worker.config import DtypeName, ModelConfig
from worker.kv import KvCache
from worker.shards import TORCH_DTYPES, UnitSource, load_unit

SHARED_HEAD_BYTES: Final = 1 << 30  # a tied head above this stays a view of the embedding, to save memory


class SpanModel:
    """Layers [start, stop) of a model; the embedding when the span starts at 0, norm and head when it ends at the end.

    A stage is any sub-range of the span. On a CPU everything is computed in float32, elsewhere in the dtype of the
    weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        start: int,
        stop: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        wire_dtype: DtypeName,
    ) -> None:
        self.config = config
        self.start = start
        self.stop = stop
        self.device = device
        self.dtype = dtype
        self.wire_dtype = wire_dtype
        self.weight_bytes = 0
        self._layers: dict[int, layers.LayerWeights] = {}
        self._embedding = torch.empty(0)
        self._norm = torch.empty(0)
        self._head = torch.empty(0)
        self._rotary = layers.Rotary(config, device)
        self._eps = torch.full((1, 1), config.rms_norm_eps, device=device)
        self._lean = device.type == "cpu"

    @classmethod
    def load(
        cls,
        config: ModelConfig,
        source: UnitSource,
        start: int,
        stop: int,
        *,
        device: str = "cpu",
        wire_dtype: DtypeName | None = None,
        arrive: Callable[[str], None] | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> SpanModel:
        """Read the units of [start, stop) and fuse them; ``progress`` hears each unit's name when it is loaded.

        ``arrive`` is called with a unit's name before its bytes are read and may block until they are there, so that
        the first layer is on the device while the last is on its way. ``wire_dtype`` is the manifest's; by default
        float32 for weights in float32, bfloat16 otherwise. Blocks.
        Raises UsageError for a span outside the model, ModelFolderError for missing or malformed tensors and
        ResourceError when the device has no room.
        """
        if not 0 <= start < stop <= config.layers:
            raise UsageError(f"span {start}:{stop} is not within the model's layers 0:{config.layers}")
        where = _usable(device)
        stored = next((entry.dtype for entry in source.tensors(f"layer.{start}")), "F32")
        computed = torch.float32 if where.type == "cpu" else TORCH_DTYPES.get(stored, torch.float32)
        wire = wire_dtype or ("F32" if stored == "F32" else "BF16")
        if where.type == "cuda":  # accumulate in float32: audits compare results across kernels
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        model = cls(config, start, stop, device=where, dtype=computed, wire_dtype=wire)
        try:
            for unit in model.units():
                if arrive is not None:
                    arrive(unit)
                model._load(source, unit)
                if progress is not None:
                    progress(unit)
        except torch.OutOfMemoryError as error:
            raise ResourceError(f"{device} has no room for layers {start}:{stop}; take a shorter span") from error
        return model

    def units(self) -> list[str]:
        """The units that the span needs, in the order that a token passes them."""
        names = ["embed"] if self.start == 0 else []
        names += [f"layer.{index}" for index in range(self.start, self.stop)]
        return names + (["norm", "head"] if self.stop == self.config.layers else [])

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[count] int64 ids within the vocabulary → [count, hidden]; the span must start at 0."""
        return self._embedding.index_select(0, ids).to(self.dtype)

    def run(self, x: torch.Tensor, cache: KvCache, start: int, stop: int, position: int) -> torch.Tensor:
        """Layers [start, stop) over [count, hidden] at ``position``; overwrites and returns ``x``.

        Raises ProtocolError for a position that does not follow the cache. When anything fails, the cache holds only
        the positions before this step.
        """
        count = x.shape[0]
        window = cache.window(position, count)
        views = zip(window.writes, window.keys, window.values, strict=True)
        chosen = [self._layers[index] for index in range(start, stop)]
        if count == 1 and self._lean:
            turns = self._rotary.fused(position)
            for weights, kv in zip(chosen, views, strict=True):
                layers.decode_layer(self.config, weights, x, kv, turns, self._eps)
        else:
            turns = self._rotary.chunk(position, count)
            mask = layers.causal_mask(position, count, x)
            for weights, kv in zip(chosen, views, strict=True):
                layers.chunk_layer(self.config, weights, x, kv, turns, mask)
        cache.length = position + count
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[count, hidden] after the last layer → [count, vocabulary]; the span must reach the model's end."""
        return torch.mm(layers.rms_norm(x, self._norm, self.config.rms_norm_eps), self._head)

    def _load(self, source: UnitSource, unit: str) -> None:
        config = self.config
        if unit == "embed":
            tensors = load_unit(source, unit, None, self.device)
            self._embedding = layers.take_tensor(tensors, EMBEDDING, config.vocabulary, config.hidden)
            self._count(self._embedding)
        elif unit == "norm":
            self._norm = layers.take_tensor(load_unit(source, unit, self.dtype, self.device), NORM, config.hidden)
            self._count(self._norm)
        elif unit == "head":
            self._load_head(source)
        else:
            index = int(unit.removeprefix("layer."))
            prefix = f"{LAYER_PREFIX}{index}."
            tensors = load_unit(source, unit, self.dtype, self.device)
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            try:
                weights = layers.LayerWeights.build(config, own)
            except ModelFolderError as error:
                raise ModelFolderError(f"layer {index}: {error.message}") from error
            self._layers[index] = weights
            self._count(weights.qkv, weights.output, weights.gate_up, weights.down)

    def _load_head(self, source: UnitSource) -> None:
        config = self.config
        shape = (config.vocabulary, config.hidden)
        if not config.tied:
            tensors = load_unit(source, "head", self.dtype, self.device)
            self._head = layers.input_major(layers.take_tensor(tensors, HEAD, *shape))
            self._count(self._head)
            return
        weight = self._embedding
        if self.start > 0:
            weight = layers.take_tensor(load_unit(source, "head", None, self.device), EMBEDDING, *shape)
        small = weight.numel() * self.dtype.itemsize <= SHARED_HEAD_BYTES
        weight = weight.to(self.dtype)
        self._head = layers.input_major(weight) if small else weight.t()
        if self._head.data_ptr() != self._embedding.data_ptr():
            self._count(self._head)

    def _count(self, *tensors: torch.Tensor) -> None:
        self.weight_bytes += sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _usable(device: str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without a device's support
        raise ResourceError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}; try cpu") from error
