"""Finished responses must stop costing: the rows still running are packed into smaller batches.

A rollout decodes a grid of *tiles* of G' rows; the rows of a tile answer one prompt and share its
keys and values. It starts with one tile of G rows per prompt. Once enough rows have finished, the
running ones are packed into a smaller grid, prompt by prompt, into narrower tiles (a narrow tile
wastes few slots; a wide one reads the prompt's keys and values for more rows at once). The grids
are fixed beforehand, so that all of them are compiled in one program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

SMALLEST = 8  # rows per shard; below that a step mostly waits for the weights from memory


class Grid(NamedTuple):
    """A batch of tiles, per shard of the prompts."""

    tiles: int
    rows: int  # per tile


def grids(prompts: int, group: int, shrink: float) -> list[Grid]:
    """The grids of a rollout: all rows, then `shrink` times the rows of the one before, and so on.

    Args:
        prompts: P, per shard.
        group: G.
        shrink: in (0, 1); 1 keeps finished rows to the end.
    """
    chain = [Grid(prompts, group)]
    rows = prompts * group
    while shrink < 1 and (rows := int(rows * shrink)) >= SMALLEST:
        running = rows / prompts  # per prompt
        width = 1
        while 4 * width <= running:
            width *= 2
        grid = Grid(rows // width, width)
        if grid.tiles * grid.rows < chain[-1].tiles * chain[-1].rows:
            chain.append(grid)
    return chain


def by_shard(x: jax.Array, D: int) -> jax.Array:
    """An array of tiles [D n, ...] as those of each shard, [D, n, ...]."""
    return x.reshape(D, -1, *x.shape[1:])


def tiles_needed(
    prompt: Int[Array, "D n"], running: Bool[Array, "D n g"], prompts: int, grid: Grid
) -> Int[Array, " D"]:
    """How many tiles of `grid` the running rows take, in each shard.

    Args:
        prompt: which of the shard's prompts a tile belongs to.
        running: which rows are.
        prompts: P, per shard.
        grid: the next one.
    """
    count = jax.vmap(lambda p, r: jnp.zeros(prompts, jnp.int32).at[p].add(r))
    return (-(-count(prompt, running.sum(-1)) // grid.rows)).sum(axis=-1)


class Packing(NamedTuple):
    """Where each slot of a smaller grid comes from, in each shard; empty slots point anywhere."""

    tile: Int[Array, "D n g"]
    row: Int[Array, "D n g"]  # within the tile
    filled: Bool[Array, "D n g"]


def pack(
    prompt: Int[Array, "D n"], running: Bool[Array, "D n g"], prompts: int, grid: Grid
) -> Packing:
    """Packs the running rows into `grid`, which must have tiles enough for them."""

    def one(prompt, running):
        n, g = running.shape
        owner = jnp.where(running, prompt[:, None], prompts).reshape(-1)
        order = jnp.argsort(owner, stable=True)  # running rows first, by prompt
        owner = owner[order]
        counts = jnp.zeros(prompts + 1, jnp.int32).at[owner].add(1)
        first_row = jnp.cumsum(counts) - counts
        tiles = -(-counts // grid.rows)
        first_tile = jnp.cumsum(tiles) - tiles
        rank = jnp.arange(n * g) - first_row[owner]
        slot = first_tile[owner] * grid.rows + rank
        slot = jnp.where(owner < prompts, slot, grid.tiles * grid.rows)
        source = jnp.full(grid.tiles * grid.rows, -1).at[slot].set(order, mode="drop")
        source = source.reshape(grid)
        # A tile's first slot is filled unless the tile is empty; its other slots must belong to
        # the same prompt even where they are empty.
        source, filled = jnp.where(source < 0, source[:, :1], source), source >= 0
        source = jnp.maximum(source, 0)
        return Packing(source // g, source % g, filled)

    return jax.vmap(one)(prompt, running)


def take_rows(x: jax.Array, packing: Packing) -> jax.Array:
    """What belongs to rows, [D n, g, ...], in the new grid; no row leaves its shard."""
    x = by_shard(x, packing.tile.shape[0])
    taken = jax.vmap(lambda x, tile, row: x[tile, row])(x, packing.tile, packing.row)
    return taken.reshape(-1, *taken.shape[2:])


def take_tiles(x: jax.Array, packing: Packing) -> jax.Array:
    """What belongs to tiles, [D n, ...], in the new grid."""
    x = by_shard(x, packing.tile.shape[0])
    taken = jax.vmap(lambda x, tile: x[tile])(x, packing.tile[..., 0])
    return taken.reshape(-1, *taken.shape[2:])
