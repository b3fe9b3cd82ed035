"""A BitTorrent session under trio. The one module that imports libtorrent.

The session opens one TCP port on one address and nothing else: no DHT, no local discovery, no STUN, no trackers, and
no port mapping unless it was asked for. Peers come from our own directory through `Torrent.add_peer`. Alerts wake trio
through a socket pair (a Python callback would deadlock) and become plain events at once: they die at the next
`pop_alerts`.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import libtorrent as lt
import trio

from swarm.errors import ResourceError, UsageError
from swarm.ids import InfoHash
from swarm.layout import ByteRange
from swarm.metadata import TorrentMetadata
from swarm.nurseries import open_nursery
from swarm.sharing import Neighbour
from swarm.torrent import Progress, Torrent
from swarm.torrent_events import (
    Added,
    Checked,
    Event,
    Failed,
    Flushed,
    FlushingItself,
    PeerBanned,
    PieceFinished,
    PieceRefused,
    Removed,
    Stats,
)
from swarm.torrent_settings import CROWD_QUEUE, QUEUE, TorrentConfig, session_settings
from swarm.weight_files import Placement, stamp_of

__all__ = ["Progress", "Torrent", "TorrentConfig", "Torrents", "open_torrents"]

PEER_ID_SIZE = 20  # bytes; ours is set whole, because the others' shares are computed from it
PEER_ID_PREFIX = b"-SI0100-"  # Azureus style: two letters of the client and its version
_ALERTS = (
    lt.alert_category.error
    | lt.alert_category.peer
    | lt.alert_category.status
    | lt.alert_category.storage
    | lt.alert_category.piece_progress
)
_CHECKING = (lt.torrent_status.states.checking_files, lt.torrent_status.states.checking_resume_data)


@asynccontextmanager
async def open_torrents(config: TorrentConfig) -> AsyncIterator[Torrents]:
    """A session that listens. Raises `ResourceError` if the port is in use or the address is not this machine's."""
    torrents = Torrents(config)
    # Whoever is cancelled inside the block still waits for the session's answers, as `Torrents.remove` does.
    pumping = trio.CancelScope(shield=True)
    try:
        async with open_nursery() as nursery:
            nursery.start_soon(torrents.pump, pumping)
            try:
                await torrents.listening()
                yield torrents
            finally:
                pumping.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await torrents.shut_down()


class Torrents:
    """A running session. Use `open_torrents`."""

    def __init__(self, config: TorrentConfig) -> None:
        self._config = config
        self._torrents: dict[InfoHash, Torrent] = {}
        self._handles: dict[InfoHash, Any] = {}
        self._crowded: set[InfoHash] = set()
        self.peer_id = PEER_ID_PREFIX + secrets.token_hex((PEER_ID_SIZE - len(PEER_ID_PREFIX)) // 2).encode("ascii")
        self._port = 0
        self._listen_problem = ""
        self._listen_event = trio.Event()
        self._wakeup, self._waker = socket.socketpair()
        self._wakeup.setblocking(False)
        self._waker.setblocking(False)
        parameters = lt.session_params()
        settings: Any = session_settings(config) | {
            "alert_mask": int(_ALERTS),
            "peer_fingerprint": self.peer_id.decode("ascii"),
        }
        parameters.settings = settings
        self._session: Any = lt.session(parameters)
        if config.upload_rate or config.download_rate:
            self._session.set_peer_class_filter(_count_local_peers())
        self._session.set_alert_fd(self._waker.fileno())
        self._waker.send(b"\0")  # alerts from before the descriptor was set

    @property
    def port(self) -> int:
        """The TCP port it listens on."""
        return self._port

    def map_port(self, port: int) -> None:
        """Have the router let TCP ``port`` in, too, where it was asked to (`TorrentConfig.map_ports`).

        libtorrent asks for its own port by itself. Whether the router does is not known: peers that call will tell.
        """
        if self._config.maps_ports:
            self._session.add_port_mapping(lt.portmap_protocol.tcp, port, port)

    async def seed(self, raw: bytes, folder: Path, *, unchanged: bool = False) -> Torrent:
        """Serve the files of the torrent ``raw`` from ``folder``, after a full check of every byte.

        ``unchanged`` says that they were hashed before and look the same since: they are not checked again. Nothing is
        ever written there. Raises `ResourceError` naming a file that is missing or differs, `ProtocolError` for a
        torrent that is not one of ours.
        """
        metadata = TorrentMetadata.decode(raw)
        _check_sizes(metadata, folder)
        everything = [ByteRange(file=number, start=0, stop=file.size) for number, file in enumerate(metadata.files)]
        placement = Placement.in_folder(metadata, folder)
        torrent = Torrent(metadata, placement, self, [everything])
        if unchanged:
            placement = Placement.in_folder(metadata, folder, have=torrent.plan.wanted)
            torrent = Torrent(metadata, placement, self, [everything])
        await self._add(torrent, raw, lt.torrent_flags.upload_mode, [0] * torrent.map.total)
        try:
            if wrong := torrent.plan.unfinished(torrent.plan.wanted):
                path = folder / metadata.files[torrent.map.place(min(wrong))[0]].name
                raise ResourceError(f"{path} differs from what was published; publish the folder again")
        except BaseException:
            self._forget(torrent)
            raise
        return torrent

    async def fetch(self, raw: bytes, where: Path | Placement, tiers: Sequence[Iterable[ByteRange]]) -> Torrent:
        """Start to fetch the pieces of the torrent ``raw`` that cover ``tiers``, earlier tiers first.

        ``where`` is a folder of its own, or a placement in the store. Returns once whatever was there already has been
        checked again, where it must be; then add peers and wait. Raises `ResourceError` if the files cannot be
        written, `ProtocolError` for a torrent that is not one of ours.
        """
        metadata = TorrentMetadata.decode(raw)
        placement = where if isinstance(where, Placement) else Placement.in_folder(metadata, where)
        torrent = Torrent(metadata, placement, self, tiers)
        _prepare(metadata, placement)
        await self._add(torrent, raw, None, torrent.plan.priorities())
        return torrent

    async def remove(self, torrent: Torrent) -> None:
        """Stop serving and fetching; the files stay. Returns once the session has let go of the torrent."""
        if self._torrents.get(torrent.info_hash) is torrent:
            self._session.remove_torrent(self._handles[torrent.info_hash])
            await torrent.removed()
            self._forget(torrent)

    # What a torrent asks for (`swarm.torrent.Engine`).

    def flush(self, info_hash: InfoHash) -> None:
        """Write finished pieces to the files; answered by `Flushed`."""
        self._handles[info_hash].flush_cache()

    def ask_stats(self, info_hash: InfoHash, *, pieces: bool) -> None:
        """Answered by `Stats`."""
        self._handles[info_hash].post_status(lt.torrent_handle.query_pieces if pieces else 0)

    def prioritise(self, info_hash: InfoHash, priorities: list[int]) -> None:
        """One priority per piece."""
        self._handles[info_hash].prioritize_pieces(priorities)

    def connect(self, info_hash: InfoHash, host: str, port: int) -> None:
        """Connect to a peer by numeric address."""
        try:
            self._handles[info_hash].connect_peer((host, port))
        except (RuntimeError, ValueError, TypeError, OverflowError) as error:
            raise UsageError(f"{host}:{port} is not a numeric address and port") from error

    async def neighbours(self, info_hash: InfoHash) -> list[Neighbour]:
        """Who is connected now. The binding cannot read the alert for it, so a thread waits for the answer."""
        handle = self._handles[info_hash]
        return await trio.to_thread.run_sync(lambda: _neighbours(handle.get_peer_info() if handle.is_valid() else []))

    def crowded(self, info_hash: InfoHash, *, crowded: bool) -> None:
        """Whether others fetch the same: then few requests are kept waiting at each peer."""
        self._crowded.discard(info_hash)
        if crowded:
            self._crowded.add(info_hash)
        self._session.apply_settings({"max_out_request_queue": CROWD_QUEUE if self._crowded else QUEUE})

    def pause(self, info_hash: InfoHash) -> None:
        """Stop serving and fetching."""
        self._handles[info_hash].pause()

    # The session's own life.

    async def pump(self, scope: trio.CancelScope) -> None:
        """Turn alerts into events until ``scope`` is cancelled."""
        with scope:
            while True:
                await trio.lowlevel.wait_readable(self._wakeup)
                try:
                    while self._wakeup.recv(4096):
                        pass
                except BlockingIOError:
                    pass
                for alert in self._session.pop_alerts():
                    self._dispatch(alert)

    async def listening(self) -> None:
        """Return once the port is open. Raises `ResourceError`."""
        await self._listen_event.wait()
        if self._listen_problem:
            raise ResourceError(
                f"cannot listen on {self._config.host}:{self._config.port}: {self._listen_problem}; choose another port"
            )

    async def shut_down(self) -> None:
        """Close every torrent and the session; libtorrent's destructor waits for its threads."""
        for torrent in list(self._torrents.values()):
            torrent.close()
        self._torrents.clear()
        self._handles.clear()
        holder, self._session = [self._session], None
        await trio.to_thread.run_sync(holder.clear)
        self._wakeup.close()
        self._waker.close()

    async def _add(self, torrent: Torrent, raw: bytes, flags: Any, priorities: list[int]) -> None:
        if torrent.info_hash in self._torrents:
            raise UsageError(f"the torrent {torrent.info_hash.short} is already open in this session; use that one")
        parameters = lt.load_torrent_buffer(raw)
        parameters.save_path = str(torrent.placement.paths[0].parent)
        parameters.renamed_files = _places(torrent)
        if torrent.placement.have:
            parameters.have_pieces = [number in torrent.placement.have for number in range(torrent.map.total)]
        parameters.piece_priorities = priorities
        parameters.flags = lt.torrent_flags.disable_dht | lt.torrent_flags.disable_lsd
        if flags is not None:
            parameters.flags |= flags
        self._torrents[torrent.info_hash] = torrent
        try:
            self._session.async_add_torrent(parameters)
            await torrent.added()
            await torrent.checked()
        except BaseException:
            self._forget(torrent)
            raise

    def _forget(self, torrent: Torrent) -> None:
        torrent.close()
        self._torrents.pop(torrent.info_hash, None)
        handle = self._handles.pop(torrent.info_hash, None)
        if handle is not None and handle.is_valid():
            self._session.remove_torrent(handle)

    def _dispatch(self, alert: Any) -> None:
        match alert:
            case lt.listen_succeeded_alert() if alert.socket_type == lt.socket_type_t.tcp:
                self._port = alert.port
                self._listen_event.set()
            case lt.listen_failed_alert() if alert.socket_type == lt.socket_type_t.tcp:
                self._listen_problem = alert.error.message().lower()
                self._listen_event.set()
            case lt.alerts_dropped_alert():
                for torrent in self._torrents.values():
                    torrent.answers_lost()
            case lt.state_update_alert():
                for status in alert.status:
                    self._deliver(status.info_hashes, _stats(status))
            case lt.torrent_removed_alert():  # its handle is already empty
                self._deliver(alert.info_hashes, Removed())
            case lt.add_torrent_alert():
                self._added(alert)
            case _:
                for kind, make in _EVENTS:
                    if isinstance(alert, kind):
                        self._deliver(alert.handle.info_hashes(), make(alert))

    def _added(self, alert: Any) -> None:
        info_hash = InfoHash(alert.params.info_hashes.v2.to_bytes())
        torrent = self._torrents.get(info_hash)
        if alert.error.value():
            if torrent is not None:
                torrent.handle(Added(problem=alert.error.message()))
        elif torrent is None:  # given up while it was being added
            self._session.remove_torrent(alert.handle)
        else:
            self._handles[info_hash] = alert.handle
            torrent.handle(Added(problem=""))

    def _deliver(self, info_hashes: Any, event: Event) -> None:
        torrent = self._torrents.get(InfoHash(info_hashes.v2.to_bytes()))
        if torrent is not None:
            torrent.handle(event)


_EVENTS: tuple[tuple[Any, Any], ...] = (
    (lt.piece_finished_alert, lambda alert: PieceFinished(piece=alert.piece_index)),
    (lt.peer_ban_alert, lambda alert: PeerBanned(peer_id=alert.pid.to_bytes())),
    (lt.hash_failed_alert, lambda alert: PieceRefused(piece=alert.piece_index)),
    (lt.cache_flushed_alert, lambda alert: Flushed()),
    (lt.torrent_finished_alert, lambda alert: FlushingItself()),
    (lt.torrent_paused_alert, lambda alert: FlushingItself()),
    (lt.torrent_checked_alert, lambda alert: Checked()),
    (lt.file_error_alert, lambda alert: Failed(path=alert.filename(), reason=alert.error.message().lower())),
)


def _check_sizes(metadata: TorrentMetadata, folder: Path) -> None:
    for file in metadata.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise ResourceError(f"{path} is missing or not {file.size} bytes; publish the folder again")


def _prepare(metadata: TorrentMetadata, placement: Placement) -> None:
    """Make the folders, and refuse to write through a link or over what cannot be this torrent's file."""
    for file, path in zip(metadata.files, placement.paths, strict=True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot make the folder {path.parent}: {error.strerror}; choose another") from error
        stamp = stamp_of(path)
        if stamp is not None and stamp.size > file.size:
            raise ResourceError(f"{path} is in the way of a file of {file.size} bytes; remove it")


def _count_local_peers() -> Any:
    """A filter that puts local addresses under the rate limits too; libtorrent leaves them out."""
    classes = lt.ip_filter()
    classes.add_rule("0.0.0.0", "255.255.255.255", 1 << lt.session.global_peer_class_id)  # noqa: S104 - a range
    classes.add_rule("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 1 << lt.session.global_peer_class_id)
    return classes


def _places(torrent: Torrent) -> dict[int, str]:
    """libtorrent's file number → absolute path. It counts the padding behind a file as a file of its own."""
    places: dict[int, str] = {}
    number = 0
    for file, path in zip(torrent.metadata.files, torrent.placement.paths, strict=True):
        places[number] = str(path.resolve())
        number += 1 + (file.size % torrent.metadata.piece_length != 0)
    return places


def _stats(status: Any) -> Stats:
    pieces = _numbers(status.pieces)
    return Stats(
        checking=status.state in _CHECKING,
        downloaded_payload=status.total_payload_download,
        uploaded_payload=status.total_payload_upload,
        peers=status.num_peers,
        rate=status.download_payload_rate,
        problem=status.errc.message().lower() if status.errc.value() else "",
        pieces=pieces if status.pieces else None,
    )


def _numbers(bits: Any) -> frozenset[int]:
    return frozenset(number for number, there in enumerate(bits) if there)


def _neighbours(peers: Any) -> list[Neighbour]:
    found = []
    for peer in peers:
        if not peer.flags & (lt.peer_info.connecting | lt.peer_info.handshake):
            fetching = not peer.flags & (lt.peer_info.seed | lt.peer_info.upload_only)
            pieces = _numbers(peer.pieces) if fetching else frozenset()
            found.append(Neighbour(peer_id=bytes(peer.pid.to_bytes()), pieces=pieces, fetching=fetching))
    return found
