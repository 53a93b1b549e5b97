"""Shared and global memory of the emulated blocks, and what accesses cost: sectors, passes, cached loads."""

from __future__ import annotations

import numpy as np

from tools.machine.state import WARP, Array, Mask, State

SECTOR = 32  # bytes of global memory that one access transfers at least
BANKS = 32
RESERVED = 0x400  # bytes at the start of shared memory that sm_90 keeps for itself


class Buffers:
    """Global memory for checks of values: arrays at their addresses; elsewhere loads return 0 and stores are lost."""

    def __init__(self, arrays: dict[int, Array]):
        self.arrays = [(base, a.reshape(-1).view(np.uint8)) for base, a in sorted(arrays.items())]

    def load(self, addresses: Array, size: int) -> Array:
        """Return bytes [threads, size]."""
        found = np.zeros((len(addresses), size), np.uint8)
        for rows, places, data in self._inside(addresses, size):
            found[rows] = data[places[:, None] + np.arange(size)]
        return found

    def store(self, addresses: Array, values: Array) -> None:
        for rows, places, data in self._inside(addresses, values.shape[1]):
            data[places[:, None] + np.arange(values.shape[1])] = values[rows]

    def _inside(self, addresses: Array, size: int):
        for base, data in self.arrays:
            places = addresses.astype(np.int64) - base
            rows = np.flatnonzero((places >= 0) & (places + size <= len(data)))
            if len(rows):
                yield rows, places[rows], data


class Traffic:
    """Costs of each instruction's accesses, by block; and the sectors of global memory that each block touches."""

    def __init__(self, length: int, blocks: int):
        self.wavefronts = np.zeros((length, blocks), np.int64)
        self.sectors = np.zeros((length, blocks), np.int64)
        self.touched: dict[str, list[Array]] = {"load": [], "store": [], "bypass": []}
        self.stored: list[tuple[Array, int]] = []  # addresses and bytes, for checks
        self._banks: dict[tuple[int, bytes], int] = {}

    def shared(self, at: int, addresses: Array, size: int, mask: Mask, block_of_warp: Array, lanes: int = WARP) -> None:
        """Count the wavefronts of one access to shared memory by `size` bytes per thread of the first `lanes`."""
        rows = _by_warp(addresses, mask)[:, :lanes]
        relative = rows - (rows[:, :1] & ~np.int64(3))
        if len(relative) > 1 and (relative == relative[0]).all():
            costs = np.full(len(relative), self._conflicts(relative[0], size))
        else:
            costs = np.array([self._conflicts(row, size) for row in relative])
        if mask is not None:
            costs = costs * mask.reshape(-1, WARP).any(1)
        self.wavefronts[at] += np.bincount(block_of_warp, costs, self.wavefronts.shape[1]).astype(np.int64)

    def _conflicts(self, row: Array, size: int) -> int:
        """Return the wavefronts of a warp: most words per bank, for each part of the warp that accesses at once."""
        key = size, row.tobytes()
        if key not in self._banks:
            lanes = WARP * 4 // max(size, 4)
            parts = row.reshape(-1, lanes)
            words = (parts[:, :, None] // 4 + np.arange(max(size // 4, 1))).reshape(len(parts), -1)
            found = [np.bincount(np.unique(part) % BANKS, minlength=BANKS).max() for part in words]
            self._banks[key] = int(sum(found))
        return self._banks[key]

    def touch(self, at: int, kind: str, addresses: Array, mask: Mask, block_of_warp: Array) -> None:
        """Count the sectors of one access to global memory, which is aligned and so within one sector per 32 bytes."""
        rows = np.sort(_by_warp(addresses, mask) // SECTOR, axis=1)
        new = np.ones(rows.shape, bool)
        new[:, 1:] = rows[:, 1:] != rows[:, :-1]
        if mask is not None:
            new &= mask.reshape(-1, WARP).any(1)[:, None]
        costs = new.sum(1)
        self.sectors[at] += np.bincount(block_of_warp, costs, self.sectors.shape[1]).astype(np.int64)
        self.touched[kind].append((rows + (block_of_warp[:, None].astype(np.int64) << np.int64(43)))[new])


def _by_warp(addresses: Array, mask: Mask) -> Array:
    """Return addresses [warps, 32]; inactive lanes take the address of an active one, which costs nothing."""
    rows = addresses.astype(np.int64).reshape(-1, WARP)
    if mask is None:
        return rows
    active = mask.reshape(-1, WARP)
    first = rows[np.arange(len(rows)), active.argmax(1)]
    return np.where(active, rows, first[:, None])


class Memory:
    """Shared memory of the sampled blocks, and the way to global memory."""

    def __init__(self, s: State, length: int, shared_bytes: int, buffers: Buffers | None):
        self.stride = RESERVED + -(-shared_bytes // 16) * 16 + 48 * 1024  # static shared memory: at most 48 KB
        self.shared = np.zeros(s.threads.blocks * self.stride, np.uint8)
        self.buffers = buffers
        self.per_block = s.threads.per_block
        self.active: Mask = None  # of the running segment, whatever the guards
        self.traffic = Traffic(length, s.threads.blocks)
        self.block_of_warp = s.block[::WARP]
        self.base = s.block.astype(np.int64) * self.stride
        # Of some warps: for each load, whether L1 has its data: whether their block has loaded all of it before.
        per_block = s.threads.per_block // WARP
        self.watched = s.threads.blocks // 2
        first = self.watched * per_block
        self.hits: dict[int, list[bool]] = {first: [], first + per_block - 1: []}
        self._loaded: set[int] = set()

    def watch(self, addresses: Array, mask: Mask, active: Mask, through: bool) -> None:
        """Note for the watched warps whether a load hits L1.

        Args:
            mask: threads that load.
            active: threads that execute the instruction, whatever its guard.
            through: the load does not look at L1.
        """
        sectors = addresses // SECTOR
        for warp, found in self.hits.items():
            lanes = slice(warp * WARP, (warp + 1) * WARP)
            if active is None or active[lanes].any():
                wanted = sectors[lanes] if mask is None else sectors[lanes][mask[lanes]]
                found.append(not through and self._loaded.issuperset(wanted.tolist()))
        block = slice(self.watched * self.per_block, (self.watched + 1) * self.per_block)
        loaded = sectors[block] if mask is None else sectors[block][mask[block]]
        self._loaded.update(np.unique(loaded).tolist())

    def forget(self) -> None:
        """Empty L1."""
        self._loaded.clear()

    def places(self, addresses: Array, size: int, mask: Mask) -> Array:
        """Return indices into `shared`, of the threads in `mask`."""
        chosen = addresses if mask is None else addresses[mask]
        if len(chosen) and (chosen.min() < 0 or chosen.max() + size > self.stride):
            raise ValueError(f"access to shared memory at {int(chosen.max()):#x}, which has {self.stride:#x} bytes")
        return chosen + (self.base if mask is None else self.base[mask])

    def load_shared(self, addresses: Array, size: int, mask: Mask) -> Array:
        return self.shared[self.places(addresses, size, mask)[:, None] + np.arange(size)]

    def store_shared(self, addresses: Array, values: Array, mask: Mask) -> None:
        self.shared[self.places(addresses, values.shape[1], mask)[:, None] + np.arange(values.shape[1])] = values

    def load_global(self, addresses: Array, size: int, mask: Mask) -> Array:
        chosen = addresses if mask is None else addresses[mask]
        if self.buffers is None:
            return np.zeros((len(chosen), size), np.uint8)
        return self.buffers.load(chosen, size)

    def store_global(self, addresses: Array, values: Array, mask: Mask) -> None:
        chosen = addresses if mask is None else addresses[mask]
        self.traffic.stored.append((chosen, values.shape[1]))
        if self.buffers is not None:
            self.buffers.store(chosen, values)
