"""The command line: ``python -m utils.figures demo`` and the like write the pictures of assets/.

A user's mistake is one line on stderr and exit status 2. Simulation and readers are imported by the
command that needs them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, exit_status
from utils.figures import canvas, samples, stacks
from utils.flags import voxel_ranges


def _draw_stack(options: argparse.Namespace) -> list[Path]:
    """Read the planes of the stack and its masks, and draw them."""
    from utils.stacks import crop_stack, open_stack

    boxes = options.crop or [((None, None),) * 3] * len(options.mask)
    if len(boxes) != len(options.mask):
        raise UserError(f"--crop: {len(boxes)} boxes for {len(options.mask)} masks; one each")
    rows = []
    with open_stack(options.input, channel=options.channel) as stack:
        for box, name in zip(boxes, options.mask, strict=True):
            start = box[0][0] or 0
            part = crop_stack(stack, box)
            with open_stack(name) as mask:
                if mask.shape != part.shape:
                    raise UserError(f"{name}: {mask.shape} voxels, but its box has {part.shape}")
                wrong = [z for z in options.z if not 0 <= z - start < part.shape[-1]]
                if wrong:
                    raise UserError(f"--z {wrong[0]}: not in the box of {name}, {box[0]}")
                label = f"{Path(name).stem}, " if len(boxes) > 1 else ""
                rows.append([])
                for z in options.z:
                    planes = [s.read(z - start, z - start + 1)[..., 0] for s in (part, mask)]
                    rows[-1].append((*planes, f"{label}z = {z}"))
    look = {"spacing": stack.spacing and stack.spacing[:2], "step": options.step}
    return [stacks.save_overlays(rows, options.output, caption=options.caption, **look)]


def _draw_images(options: argparse.Namespace) -> list[Path]:
    from utils.data.normalize import PercentileNormalizer
    from utils.simulation.image import ImageConfig, image_rng, simulate_image

    rngs = (image_rng(options.seed, index) for index in range(options.count))
    drawn = [simulate_image(ImageConfig(), rng) for rng in rngs]
    scale = PercentileNormalizer()
    images = [scale.apply(one.image, *scale.fit(one.image)) for one in drawn]
    masks, centres = [one.mask for one in drawn], [one.centres for one in drawn]
    figure = samples.draw_images(images, masks, centres)
    return [canvas.save_figure(figure, options.directory / "samples_2d.png", dpi=75)]


def _draw_volumes(options: argparse.Namespace) -> list[Path]:
    """Simulate volumes and draw them, as animations for the demo."""
    from utils.simulation import preset, sample_rng, simulate_volume

    folder, demo = options.directory, options.command == "demo"
    name = "reference" if demo else options.preset
    config = preset(name, shape=(options.voxels,) * 3)
    indices = (3, 20) if demo else range(options.count)
    volumes = [simulate_volume(config, sample_rng(options.seed, index)) for index in indices]
    if demo:
        return [
            samples.save_slice_gif(volumes[0], folder / "slice_demo_3.gif", title="sample 3"),
            samples.save_3d_gif(volumes[0], folder / "3d_demo_3.gif", title="sample 3"),
            samples.save_3d_gif(volumes[1], folder / "3d_demo_20.gif", title="sample 20"),
        ]
    titles = [f"seed {options.seed}, sample {index}" for index in indices]
    file = "samples_wide.png" if name == "wide" else "samples.png"
    return [samples.save_samples_panel(volumes, folder / file, titles)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.figures",
        description="Draw simulated samples, named by seed and index, or a microscope's stack.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, count, what in (
        ("demo", None, "slice_demo_3.gif, 3d_demo_3.gif and 3d_demo_20.gif: samples 3 and 20"),
        ("samples", 8, "samples.png or samples_wide.png: slices and projections of samples"),
        ("samples-2d", 16, "samples_2d.png: the first 2D samples"),
    ):
        command = commands.add_parser(name, help=what, description=f"Writes {what}.")
        command.set_defaults(draw=_draw_images if name == "samples-2d" else _draw_volumes)
        add = command.add_argument
        add("--directory", type=Path, default=Path("assets"), help="folder to write to")
        add("--seed", type=int, default=0, help="seed of the samples")
        if name != "samples-2d":
            add("--voxels", type=int, default=128, help="edge of the cube")
        if name == "samples":
            add("--preset", choices=("reference", "wide"), default="reference")
        if count is not None:
            add("--count", type=int, default=count, help="number of samples")
    command = commands.add_parser(
        "stack",
        help="planes of a stack and of masks that predict.py made of it",
        description="Draws planes of a stack from a microscope with masks of predict.py on them.",
    )
    command.set_defaults(draw=_draw_stack)
    add = command.add_argument
    add("--input", required=True, help="the stack that was predicted")
    add("--mask", required=True, nargs="+", help="its masks, each a row of the picture")
    add("--output", required=True, type=Path, help="picture to write")
    add("--crop", nargs="+", type=voxel_ranges, metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="the box that each mask was made of, as given to predict.py")  # fmt: skip
    add("--z", required=True, nargs="+", type=int, help="planes, in voxels of the stack from 0")
    add("--channel", type=int, help="channel of the stack, as given to predict.py")
    add("--step", type=float, default=1.0, help="voxels a pixel; above 1 the image is coarsened")
    add("--caption", default="", help="words below the picture")
    options = parser.parse_args(arguments)
    return exit_status(parser.prog, lambda: print(*options.draw(options), sep="\n"))


if __name__ == "__main__":
    sys.exit(main())
