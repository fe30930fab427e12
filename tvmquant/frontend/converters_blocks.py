"""DepthToSpace and SpaceToDepth: blocks of pixels become channels, and back."""

from __future__ import annotations

from tvm import relax

from tvmquant.frontend.context import Context
from tvmquant.frontend.dimensions import UnsupportedNodeError
from tvmquant.frontend.node import Node
from tvmquant.frontend.registry import converter


@converter("DepthToSpace")
def _convert_depth_to_space(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    height, width = ctx.spatial(data)
    batch, channels = ctx.shape(data)[:2]
    block = node.integer("blocksize", 1)
    if block < 1 or int(channels) % block**2:
        raise UnsupportedNodeError(f"blocksize={block} does not divide {channels} channels twice")
    depth = int(channels) // block**2
    if node.text("mode", "DCR") == "DCR":
        split, order = (batch, block, block, depth, height, width), [0, 3, 4, 1, 5, 2]
    else:
        split, order = (batch, depth, block, block, height, width), [0, 1, 4, 2, 5, 3]
    moved = ctx.emit(relax.op.permute_dims(ctx.reshape(data, split), order))
    return ctx.reshape(moved, (batch, depth, height * block, width * block))


@converter("SpaceToDepth")
def _convert_space_to_depth(ctx: Context, node: Node) -> relax.Var:
    data = ctx.tensor(0)
    height, width = ctx.spatial(data)
    batch, channels = ctx.shape(data)[:2]
    block = node.integer("blocksize", 1)
    if block < 1 or height % block or width % block:
        raise UnsupportedNodeError(f"blocksize={block} does not divide {height} x {width}")
    split = (batch, channels, height // block, block, width // block, block)
    order = [0, 3, 5, 1, 2, 4] if node.text("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    moved = ctx.emit(relax.op.permute_dims(ctx.reshape(data, split), order))
    return ctx.reshape(moved, (batch, channels * block**2, height // block, width // block))
