"""The batch files that this machine holds: a folder with one file per batch, named by its pieces root."""

from __future__ import annotations

import os
from pathlib import Path

from swarm.batches import BatchTree, PostedBatch, file_name
from swarm.errors import ProtocolError, ResourceError


class BatchFiles:
    """A folder of batch files. What is read back is checked against its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, pieces_root: bytes) -> Path:
        """Where a batch's file is or would be."""
        return self.folder / file_name(pieces_root)

    def save(self, tree: BatchTree) -> Path:
        """Write a file and sync it, whole or not at all. Raises `ResourceError` if it cannot be written."""
        path = self.path(tree.pieces_root)
        part = path.with_suffix(".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(tree.file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise ResourceError(f"cannot write {path}: {error.strerror}; free some space") from error
        return path

    def load(self, posted: PostedBatch) -> BatchTree | None:
        """The tree over a posted batch's file; None if it is not here, or is not what its name says."""
        path = self.path(posted.pieces_root)
        try:
            if path.stat().st_size != posted.size:
                return None
            tree = BatchTree(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ResourceError(f"cannot read {path}: {error.strerror}; check the folder") from error
        except ProtocolError:
            return None
        return tree if tree.pieces_root == posted.pieces_root else None
