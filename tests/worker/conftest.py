"""Models are made once per run: importing transformers alone takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.worker.tiny_models import TinyModel


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyModel]:
    """The tiny model of a kind."""
    from tests.worker.tiny_models import make_tiny

    @cache
    def made(kind: str) -> TinyModel:
        return make_tiny(kind, tmp_path_factory.mktemp(kind))

    return made
