"""Animations of a simulated sample: moving along z, and turning about z; drawn with Pillow.

Slices show x to the right and y upwards; scale bars are in voxels. Fluorescence is blue, masks are
red, the ground is black. An animation loops, and is written whole or not at all.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from utils.errors import UserError
from utils.figures.colours import MASK_RED, blue
from utils.figures.rendering import Camera, cast, smooth_solid
from utils.figures.slices import scale_to_display
from utils.replacing import make_folder, replacing

if TYPE_CHECKING:
    from utils.simulation import SimulatedVolume

MOST_BYTES = 3_000_000
"""Animations stay below this size."""
COLOUR_COUNTS = (128, 64, 32, 16, 8)
"""Sizes of the palette, tried in this order until the file is small enough."""
AXIS_YELLOW = (255, 214, 10)


def save_slice_gif(
    volume: SimulatedVolume, path: str | Path, *, title: str = "", most_frames: int = 64
) -> Path:
    """Write a looping animation along z: image (blue, 1..99 % scaling) and mask (red) side by side.

    Args:
        volume: sample to show.
        path: ``.gif`` to write, under 3 MB.
        title: words at the top, such as the sample's name.
        most_frames: slices are left out evenly to stay within this number.

    Raises:
        ValueError: the animation does not fit 3 MB with 8 colours.
    """
    image, mask = scale_to_display(volume.image), volume.mask
    depth = image.shape[2]
    zoom = max(1, round(264 / max(image.shape[:2])))
    stride = -(-depth // most_frames)
    frames = []
    for z in range(0, depth, stride):
        panels = (blue(image[..., z]), mask[..., z, None] * np.array(MASK_RED, dtype=np.float32))
        frames.append(_slice_frame(panels, z, depth, zoom, title))
    return _save_gif(frames, path, milliseconds=90)


def _slice_frame(
    panels: tuple[np.ndarray, np.ndarray], z: int, depth: int, zoom: int, title: str
) -> Image.Image:
    """Return a frame of two (X, Y, 3) panels enlarged by ``zoom``, with z, a bar and a scale."""
    width, height = panels[0].shape[0] * zoom, panels[0].shape[1] * zoom
    gap, top, bottom = 8, 24, 26
    frame = Image.new("RGB", (2 * width + gap, height + top + bottom))
    draw = ImageDraw.Draw(frame)
    for k, (panel, words) in enumerate(zip(panels, ("fluorescence", "mask"), strict=True)):
        pixels = _to_bytes(np.repeat(np.repeat(panel, zoom, 0), zoom, 1))
        left = k * (width + gap)
        frame.paste(
            Image.fromarray(np.ascontiguousarray(np.swapaxes(pixels, 0, 1)[::-1])), (left, top)
        )
        _write(draw, (left + width / 2, top / 2), words, anchor="mm")
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=(70, 70, 70))
    _write(draw, (2, top / 2), title, anchor="lm", colour=(150, 150, 150))
    foot = top + height + bottom / 2
    _write(draw, (width + gap + 2, foot), f"z = {z:3d} / {depth}", anchor="lm")
    start, end = width + gap + 100, 2 * width + gap - 8
    draw.line((start, foot, end, foot), fill=(70, 70, 70), width=2)
    here = start + (end - start) * z / max(depth - 1, 1)
    draw.ellipse((here - 4, foot - 4, here + 4, foot + 4), fill=(235, 235, 235))
    _draw_scale(draw, (4, foot), max(1, panels[0].shape[0] // 4), zoom)
    return frame


def save_3d_gif(
    volume: SimulatedVolume,
    path: str | Path,
    *,
    title: str = "",
    frames: int = 40,
    height: int = 340,
) -> Path:
    """Write a looping animation that turns about z: fluorescence blue on the left, masks red too.

    Both panels turn together; the right one puts the masks, as lit solids, into the fluorescence.
    The cube's edges, the axes and a scale in voxels turn along.

    Args:
        volume: sample to show.
        path: ``.gif`` to write, under 3 MB.
        title: words at the top, such as the sample's name.
        frames: views in a full turn.
        height: of the view in pixels, about.

    Raises:
        ValueError: the animation does not fit 3 MB with 8 colours.
    """
    x, y, z = volume.image.shape
    glow, solid = _glow(volume.image), smooth_solid(volume.mask)
    zoom = height / Camera((x, y, z), 0.0).grid[1]
    pictures = []
    for turn in np.arange(frames) / frames:
        camera = Camera((x, y, z), azimuth=2.0 * np.pi * turn + 0.5, zoom=zoom)
        pictures.append(_turned_frame(camera, glow, solid, title))
    return _save_gif(pictures, path, milliseconds=100)


def _glow(image: np.ndarray) -> np.ndarray:
    """Return (X, Y, Z) float32 in 0..1: the image with its noise and background taken down."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    dark, bright = np.percentile(smooth, [90.0, 99.8])
    if bright <= dark:
        return np.zeros(image.shape, dtype=np.float32)
    return np.clip((smooth - dark) / (bright - dark), 0.0, 1.0)


def _turned_frame(camera: Camera, glow: np.ndarray, solid: np.ndarray, title: str) -> Image.Image:
    """Return fluorescence, and fluorescence with masks, as ``camera`` sees them, side by side."""
    view = cast(camera, glow, solid)
    cover = 0.9 * view.cover[..., None]
    lit = (1.25 * view.shade)[..., None] * np.array(MASK_RED, dtype=np.float32)
    solids = cover * np.clip(lit, 0.0, 1.0) + (1.0 - cover) * blue(view.whole)
    mixed = 1.0 - (1.0 - solids) * (1.0 - 0.8 * blue(view.in_front))
    rows, columns = view.shade.shape
    top, bottom = 24, 22
    frame = Image.new("RGB", (2 * columns, rows + top + bottom))
    for k, colours in enumerate((blue(view.whole), mixed)):
        panel = Image.fromarray(_to_bytes(colours))
        _draw_cube(ImageDraw.Draw(panel), camera)
        frame.paste(panel, (k * columns, top))
    draw = ImageDraw.Draw(frame)
    _write(draw, (8, top / 2), title, anchor="lm", colour=(150, 150, 150))
    for k, words in enumerate(("fluorescence", "fluorescence and mask")):
        _write(draw, ((k + 0.5) * columns, top / 2), words, anchor="mm")
    _draw_scale(draw, (8, rows + top + bottom / 2), max(1, camera.shape[0] // 4), camera.zoom)
    return frame


def _draw_cube(draw: ImageDraw.ImageDraw, camera: Camera) -> None:
    """Draw the cube's edges (hidden ones darker) and name the axes at the corner (0, 0, 0)."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    seen = camera.project(corners * np.array(camera.shape))
    farthest = int(np.argmax(seen[:, 2]))
    for a in range(8):
        for b in range(a + 1, 8):
            if np.abs(corners[a] - corners[b]).sum() == 1:
                grey = 70 if farthest in (a, b) else 130
                draw.line((*seen[a, :2], *seen[b, :2]), fill=(grey, grey, grey), width=1)
    origin = seen[0, :2]
    for name, corner in (("z", 1), ("y", 2), ("x", 4)):
        tip = origin + 0.22 * (seen[corner, :2] - origin)
        beyond = origin + 0.30 * (seen[corner, :2] - origin)
        draw.line((*origin, *tip), fill=AXIS_YELLOW, width=2)
        _write(draw, tuple(beyond), name, "mm", AXIS_YELLOW)


def _draw_scale(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], voxels: int, zoom: float
) -> None:
    """Draw a bar of ``voxels`` from ``at`` to the right, its length beside it."""
    left, middle = at
    draw.line((left, middle, left + voxels * zoom, middle), fill=(235, 235, 235), width=3)
    _write(draw, (left + voxels * zoom + 6, middle), f"{voxels} voxels", anchor="lm")


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    words: str,
    anchor: str,
    colour: tuple[int, int, int] = (230, 230, 230),
) -> None:
    draw.text(at, words, fill=colour, anchor=anchor, font=ImageFont.load_default(size=13))


def _to_bytes(colours: np.ndarray) -> np.ndarray:
    """Return ``colours`` in 0..1 as uint8."""
    return (np.clip(colours, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _save_gif(frames: Sequence[Image.Image], path: str | Path, milliseconds: int) -> Path:
    """Write a looping GIF with as many colours as stay below 3 MB."""
    path = Path(path)
    make_folder(path.parent)
    for colours in COLOUR_COUNTS:
        content = _encode_gif(frames, colours, milliseconds)
        if len(content) < MOST_BYTES:
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            return path
    raise UserError(
        f"{path}: {len(frames)} frames of {frames[0].width} x {frames[0].height} need "
        f"{len(content)} bytes with {COLOUR_COUNTS[-1]} colours, "
        f"{MOST_BYTES} are allowed: ask for fewer frames"
    )


def _encode_gif(frames: Sequence[Image.Image], colours: int, milliseconds: int) -> bytes:
    """Return the bytes of a looping GIF whose frames share one palette."""
    chosen = frames[:: max(1, len(frames) // 6)]
    montage = Image.new("RGB", (frames[0].width, frames[0].height * len(chosen)))
    for k, frame in enumerate(chosen):
        montage.paste(frame, (0, k * frame.height))
    palette = montage.quantize(colours, method=Image.Quantize.MEDIANCUT)
    first, *rest = [f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    memory = io.BytesIO()
    first.save(memory, "GIF", save_all=True, append_images=rest, loop=0, duration=milliseconds)
    return memory.getvalue()
