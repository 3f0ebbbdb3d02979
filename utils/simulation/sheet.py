"""Where columns of preset wide stand: paths of a drawn sheet, or of a table of measured columns.

Positions are in voxels, axis order (x, y, z), the centre of voxel i at i + 0.5. A sheet is curved
and its lattice sheared; a column stands at a place (u, v) of the sheet's middle surface and runs
along its normals from its proximal end (depth 0) to its distal end (depth 1).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.random import Generator
from scipy.spatial import cKDTree

from utils.simulation.configuration import PlainConfig, Range, Shape, limited
from utils.simulation.geometry import GeometryError, axis_rotation, rotate, rotation_to_z

DEPTHS = 9  # nodes of a drawn path
STEPS = ((1, 0), (0, 1), (1, 1))
"""Steps (dp, dq) to three of a column's six neighbours; the others are their opposites."""
MOST_TURN = 1.4  # A sheet ends where its normal is turned by this much, in radians
CLEARANCE = 0.75  # columns of a second sheet keep this share of both spacings' sum from the first
BENT_OVER = 4.0  # columns shorter than this many spacings are bent in proportion to their length
MARGIN = 1.5  # columns that stay further outside of the volume, in spacings, are left away


@dataclass(frozen=True)
class SheetConfig(PlainConfig):
    """Where columns stand; ranges are (low, high) of uniform draws, one a sheet.

    Defaults are those of preset wide.
    """

    spacing: Range = limited((5.0, 16.0), 2.0)
    """Square root of the product of both singular values of the lattice's cell, in voxels."""
    anisotropy: Range = limited((1.0, 2.1), 1.0)
    """Ratio of these singular values; 1 is a lattice of regular hexagons, sqrt(3) a square one."""
    stretch_angle: Range = limited((-15.0, 15.0), -30.0, 30.0)
    """Angle between the stretch and the nearest of the six steps, in degrees."""
    spacing_change: Range = limited((1.1, 1.4), 1.0)
    """Largest over smallest spacing along an edge of the volume (ratio)."""
    jitter: Range = limited((0.0, 0.1), 0.0)
    """Standard deviation of a column's place along u and v, in spacings."""
    length: Range = limited((1.0, 10.0), 0.1)  # Length of a column, in spacings
    taper: Range = limited((1.0, 1.4), 1.0)
    """Distal over proximal spacing (ratio); less where the curvature it needs is out of range."""
    curvature: Range = limited((0.0, 0.11), 0.0, 1.0)
    """Both principal curvatures of the middle surface times the spacing, in radians."""
    tilt: Range = limited((0.0, 20.0), 0.0, 60.0)  # Angle of columns to the normal, degrees
    bend: Range = limited((0.0, 0.6), 0.0)  # Largest deviation from the chord, in spacings
    own_bend: float = limited(0.3, 0.0, 1.0)  # Sd of a column's own bend, as a share of the sheet's
    shift: float = limited(0.25, 0.0, 1.0)  # Share of the volume by which a sheet is moved, at most
    border: float = limited(0.3, 0.0, 1.0)  # Probability of a straight border inside of the volume
    holes: tuple[int, int] = limited((0, 2), 0)  # Number of holes without columns, inclusive
    hole_radius: Range = limited((1.0, 3.0), 0.0)  # Radius of a hole, in spacings
    second_sheet: float = limited(0.2, 0.0, 1.0)  # Probability of a second sheet beside the first
    neuropil: float = limited(0.3, 0.0, 1.0)
    """Probability of a neighbouring neuropil without columns, an ellipsoid."""
    neuropil_radius: Range = limited((3.0, 12.0), 0.1)
    """Each half axis of the neighbouring neuropil, in spacings."""
    gap: Range = limited((0.5, 4.0), 0.0)  # From the first sheet to a second or neuropil, spacings
    left_out: Range = limited((0.0, 0.4), 0.0, 1.0)  # Share of the columns without any stain
    radius: float = limited(0.35, 1e-3)
    """Radius of a column's label, in its own nearest-neighbour distances at that depth."""
    min_columns: int = limited(30, 2)
    """A geometry is drawn again until at least this many columns have their middle inside."""
    max_tries: int = limited(100, 1)  # Number of geometries drawn before giving up


@dataclass(frozen=True)
class Columns:
    """N columns as paths of D nodes, from their proximal to their distal ends."""

    paths: np.ndarray  # (N, D, 3) float32, voxels; D is at least 9 where it was drawn
    spacing: np.ndarray  # (N, D) float32, voxels: to the sheet's nearest column at that depth
    lattice: np.ndarray  # (N, 3) int32: chart (0, 1 in a second sheet), p, q
    neighbours: np.ndarray  # (E, 2) int32: pairs k < l of columns one lattice step apart
    left_out: np.ndarray  # (N,) bool: columns that stand there and have no stain
    parameters: dict[str, float]  # what was drawn, by name; of a second sheet as second_...
    neuropil: np.ndarray = field(default_factory=lambda: np.zeros((0, 4, 3), np.float32))
    """(M, 4, 3) float32: centre and three half axes of neuropils without columns, voxels."""


@dataclass(frozen=True)
class ColumnTable:
    """N >= 2 measured columns; positions in micrometres, float64."""

    name: str
    hash: str  # SHA-256 of the files that it was read from
    p: np.ndarray  # (N,) int
    q: np.ndarray  # (N,) int
    proximal: np.ndarray  # (N, 3)
    distal: np.ndarray  # (N, 3)
    paths: np.ndarray | None = None  # (N, D, 3) from proximal to distal; None: straight

    @cached_property
    def nodes(self) -> np.ndarray:
        """(N, D, 3) the paths, given or straight."""
        if self.paths is not None:
            return self.paths
        t = np.linspace(0.0, 1.0, DEPTHS)[:, None]
        return self.proximal[:, None] * (1.0 - t) + self.distal[:, None] * t

    @cached_property
    def nearest(self) -> np.ndarray:
        """(N, D) distance to the nearest other column at that depth."""
        return nearest_distances(self.nodes)

    @cached_property
    def spacing(self) -> float:
        """The median of what ``SheetConfig.spacing`` is of one cell, at the middle depth.

        A cell is spanned by a step along p and one along q, and its area is sqrt(3) / 2 of the
        squared spacing; without any cell it is the median nearest distance.
        """
        middle = self.nodes.shape[1] // 2
        sites = zip(self.p.tolist(), self.q.tolist(), strict=True)
        at = dict(zip(sites, self.nodes[:, middle], strict=True))
        areas = [
            np.linalg.norm(np.cross(at[p + 1, q] - place, at[p, q + 1] - place))
            for (p, q), place in at.items()
            if (p + 1, q) in at and (p, q + 1) in at
        ]
        if not areas:
            return float(np.median(self.nearest[:, middle]))
        return float(np.sqrt(np.median(areas) / np.sqrt(0.75)))


@dataclass(frozen=True)
class _Sheet:
    """A drawn sheet: lattice sites become places (u, v), and these become paths."""

    origin: np.ndarray  # (3,) the middle surface's centre, in voxels
    turn: np.ndarray  # (3, 3): from the sheet's frame (u, v, normal) to voxel axes
    cell: np.ndarray  # (2, 2): columns are the steps p and q at the centre, in voxels
    growth: complex  # relative change of spacing per voxel, and in which direction it grows
    curvature: np.ndarray  # (2,) along u and v, per voxel
    length: float  # in voxels
    slope: np.ndarray  # (2,) drift along u and v per voxel along the normal
    bend: np.ndarray  # (2,) largest deviation along u and v, in voxels
    bend_phase: float  # 0: one arc, pi / 2: an S
    spacing: float  # in voxels


def draw_columns(
    config: SheetConfig, shape: Shape, rng: Generator, table: ColumnTable | None = None
) -> Columns:
    """Draw geometries until one has ``config.min_columns`` columns with their middle inside.

    With a ``table`` its columns are placed instead, for which ``spacing``, ``shift`` and
    ``left_out`` are used. ``shape`` is in voxels. Raises GeometryError: none of
    ``config.max_tries`` had enough columns.
    """
    most = 0
    for tries in range(1, config.max_tries + 1):
        if table is None:
            columns = _draw_once(config, shape, rng)
        else:
            columns = placed_columns(table, draw_placement(table, config, shape, rng), shape)
            columns = draw_left_out(config, columns, rng)
        inside = int(_middle_inside(columns.paths, shape).sum())
        if inside >= config.min_columns:
            return replace(columns, parameters={**columns.parameters, "tries": float(tries)})
        most = max(most, inside)
    raise GeometryError(
        f"no geometry with at least {config.min_columns} columns in {shape} voxels in "
        f"{config.max_tries} tries (most found: {most}; spacing {config.spacing[0]}.."
        f"{config.spacing[1]} voxels): ask for fewer columns (min_columns) or a finer lattice"
    )


def _middle_inside(paths: np.ndarray, shape: Shape) -> np.ndarray:
    """Return (N,) bool: the paths whose middle node lies in the volume."""
    middle = paths[:, paths.shape[1] // 2]
    return np.all((middle >= 0) & (middle < shape), axis=1)


def by_axis(name: str, vector: Iterable[float]) -> dict[str, float]:
    """Return three numbers as ``name``_x, _y and _z."""
    return {f"{name}_{axis}": float(v) for axis, v in zip("xyz", vector, strict=True)}


def _draw_once(config: SheetConfig, shape: Shape, rng: Generator) -> Columns:
    size = np.array(shape, dtype=np.float64)
    axis, angle = draw_turn(rng)
    origin = size * (0.5 + rng.uniform(-config.shift, config.shift, size=3))
    sheet, drawn = _draw_sheet(config, shape, origin, turn_to(axis, angle), rng)
    paths, spacing, lattice, stood = _stand(config, sheet, shape, rng)
    parameters = by_axis("axis", axis) | {"turn": angle} | drawn | stood
    if rng.random() < config.second_sheet:
        beside, drawn = _draw_second(config, sheet, shape, rng)
        paths_2, spacing_2, lattice_2, stood = _stand(config, beside, shape, rng)
        parameters |= {f"second_{name}": value for name, value in (drawn | stood).items()}
        clear = CLEARANCE * (sheet.spacing + beside.spacing)
        first = cKDTree(paths.reshape(-1, 3))
        near, _ = first.query(paths_2.reshape(-1, 3), distance_upper_bound=clear)
        free = np.isinf(near.reshape(spacing_2.shape)).all(axis=1)
        paths = np.concatenate([paths, paths_2[free]])
        spacing = np.concatenate([spacing, spacing_2[free]])
        lattice = np.concatenate([lattice, lattice_2[free] + np.array([1, 0, 0])])
    neuropil = np.zeros((0, 4, 3))
    if rng.random() < config.neuropil:
        # an ellipsoid beyond one end of the sheet
        radii = sheet.spacing * rng.uniform(*config.neuropil_radius, size=3)
        side, gap = 2.0 * rng.integers(2) - 1.0, rng.uniform(*config.gap) * sheet.spacing
        aside = rng.uniform(-0.5, 0.5, size=2) * radii[:2]
        place = np.array([*aside, side * (0.5 * sheet.length + gap + radii[2])])
        centre = sheet.origin + rotate(sheet.turn, place[None])[0]
        neuropil = np.concatenate([centre[None], (sheet.turn * radii).T])[None]
    columns = near_volume(paths, spacing, lattice, shape, parameters)
    return replace(draw_left_out(config, columns, rng), neuropil=neuropil.astype(np.float32))


def draw_left_out(config: SheetConfig, columns: Columns, rng: Generator) -> Columns:
    """Draw the share of columns left out, and which."""
    share = rng.uniform(*config.left_out)
    left_out = rng.random(len(columns.paths)) < share
    drawn = {**columns.parameters, "left_out": float(share)}
    return replace(columns, left_out=left_out, parameters=drawn)


def draw_turn(rng: Generator) -> tuple[tuple[float, float, float], float]:
    """Draw a rotation, uniformly, as the arguments of :func:`turn_to`."""
    direction = rng.normal(size=3)
    x, y, z = (direction / np.sqrt(np.sum(direction**2))).tolist()
    return (x, y, z), float(rng.uniform(0.0, 2.0 * np.pi))


def turn_to(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    """Return the (3, 3) turn by ``angle`` radians about z that then takes +z to ``axis``."""
    return rotate(rotation_to_z(np.array(axis)).T, axis_rotation(2, angle).T).T


def _draw_sheet(
    config: SheetConfig, shape: Shape, origin: np.ndarray, turn: np.ndarray, rng: Generator
) -> tuple[_Sheet, dict[str, float]]:
    """Draw a sheet about ``origin`` in the frame ``turn``, and return what was drawn.

    Length, taper and curvatures hang together: along the normals of a surface with curvatures
    k1, k2 the spacing of columns of length h grows by the factor T with
    ln T = atanh(k1 h / 2) + atanh(k2 h / 2); k1 gets a drawn share of ln T.
    """
    spacing, length = rng.uniform(*config.spacing), rng.uniform(*config.length)
    log_taper, share = np.log(rng.uniform(*config.taper)), rng.uniform(0.0, 0.5)
    shares = np.array([share, 1.0 - share])
    k = np.clip(np.tanh(log_taper * shares) * 2.0 / length, *config.curvature)
    k = np.minimum(k, 1.8 / length)  # the proximal ends stay apart
    anisotropy = rng.uniform(*config.anisotropy)
    step, aside = rng.integers(3), rng.uniform(*config.stretch_angle)
    stretch = step * np.pi / 3.0 + np.deg2rad(aside)
    mirror = 1.0 - 2.0 * rng.integers(2)
    cell = spacing * _cell(anisotropy, stretch, rng.uniform(0.0, 2.0 * np.pi), mirror)
    change, tilt = rng.uniform(*config.spacing_change), rng.uniform(*config.tilt)
    bend = rng.uniform(*config.bend)
    angles = rng.uniform(0.0, 2.0 * np.pi, size=3)
    across = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    sheet = _Sheet(
        origin=origin,
        turn=turn,
        cell=cell,
        growth=complex(*(np.log(change) / max(shape) * across[0])),
        curvature=k / spacing,
        length=length * spacing,
        slope=np.tan(np.deg2rad(tilt)) * across[1],
        bend=bend * spacing * min(1.0, length / BENT_OVER) * across[2],
        bend_phase=rng.uniform(-0.5, 0.5) * np.pi,
        spacing=spacing,
    )
    drawn = {
        **{"spacing": spacing, "anisotropy": anisotropy, "spacing_change": change},
        **{"stretch_angle": aside, "length": length, "tilt": tilt, "bend": bend},
        **{"mirrored": mirror < 0, "taper": np.exp(np.arctanh(k * length / 2.0).sum())},
        **{"curvature_1": k[0], "curvature_2": k[1], **by_axis("centre", origin)},
    }
    return sheet, {name: float(value) for name, value in drawn.items()}


def _cell(anisotropy: float, stretch: float, turn: float, mirror: float) -> np.ndarray:
    """Return the (2, 2) cell of unit spacing whose columns are the steps p and q.

    Regular hexagons, p and q at 120 degrees, are stretched along ``stretch`` (radians from p) by
    the root of ``anisotropy`` and shrunk across by as much, then turned and, if ``mirror`` is -1,
    mirrored.
    """
    hexagons = np.array([[1.0, -0.5], [0.0, np.sqrt(0.75)]])
    c, s = np.cos(stretch), np.sin(stretch)
    long, short = np.sqrt(anisotropy), 1.0 / np.sqrt(anisotropy)
    off = (long - short) * c * s
    stretched = [[long * c * c + short * s * s, off], [off, long * s * s + short * c * c]]
    turned = axis_rotation(2, turn)[:2, :2] * np.array([[1.0], [mirror]])
    return np.einsum("ij,jk,kl->il", turned, np.array(stretched), hexagons)


def _draw_second(
    config: SheetConfig, first: _Sheet, shape: Shape, rng: Generator
) -> tuple[_Sheet, dict[str, float]]:
    """Draw a sheet beyond one end of the first, its frame turned by up to 30 degrees."""
    side, tip = 2.0 * rng.integers(2) - 1.0, np.deg2rad(rng.uniform(0.0, 30.0))
    gap, about = rng.uniform(*config.gap), rng.uniform(0.0, 2.0 * np.pi)
    tipped = rotate(axis_rotation(2, about), axis_rotation(0, tip).T).T
    turn = rotate(first.turn, tipped.T).T
    sheet, drawn = _draw_sheet(config, shape, first.origin, turn, rng)
    away = side * (0.5 * (first.length + sheet.length) + gap * first.spacing)
    origin = first.origin + away * first.turn[:, 2]
    drawn |= by_axis("centre", origin) | {"gap": float(gap)}
    return replace(sheet, origin=origin), drawn


def _stand(
    config: SheetConfig, sheet: _Sheet, shape: Shape, rng: Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    """Return paths (N, D, 3), spacings (N, D) and lattice (N, 3) of the columns near the volume.

    Also what was drawn: jitter, border and holes. The spacings are those before the border and the
    holes, beside which they would be too large.
    """
    sites, steps = _sites(sheet, shape)
    jitter = rng.uniform(*config.jitter)
    own = rng.normal(size=(len(sites), 4))
    t = np.linspace(-0.5, 0.5, DEPTHS)
    arc = np.cos(sheet.bend_phase) * np.cos(np.pi * t)
    arc = arc + np.sin(sheet.bend_phase) * np.sin(2.0 * np.pi * t)
    arc /= np.abs(arc).max()
    bends = sheet.bend + config.own_bend * np.sqrt(np.sum(sheet.bend**2)) * own[:, 2:]
    places = _places(sheet, sites) + jitter * sheet.spacing * own[:, :2]
    depth = t * sheet.length
    places = places[:, None] + depth[:, None] * sheet.slope + arc[:, None] * bends[:, None]
    paths = _map(sheet, places, depth)
    inside = _middle_inside(paths, shape)
    keep, drawn = _without_border_and_holes(config, sheet, sites, inside, rng)
    keep &= _within(paths, shape, 2.0 * MARGIN * sheet.spacing)
    lattice = np.concatenate([np.zeros((len(steps), 1), np.int64), steps], axis=1)
    drawn["jitter"] = jitter
    return paths[keep], nearest_distances(paths, keep), lattice[keep], drawn


def _sites(sheet: _Sheet, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return the flat sites (N, 2) in voxels, and (p, q), of columns that may meet the volume."""
    size = np.array(shape, dtype=np.float64)
    bound = 0.5 * np.sqrt(np.sum(size**2)) + 2.0 * sheet.spacing
    bound += 0.5 * sheet.length * np.sqrt(1.0 + np.sum(sheet.slope**2))
    extent = 1.5 * (bound + np.sqrt(np.sum((sheet.origin - size / 2) ** 2)))
    ((a, b), (c, d)), area = sheet.cell, abs(np.linalg.det(sheet.cell))
    most_p, most_q = (int(extent * np.hypot(*row) / area) for row in ((d, b), (c, a)))
    p, q = np.mgrid[-most_p : most_p + 1, -most_q : most_q + 1]
    steps = np.stack([p.ravel(), q.ravel()], axis=1)
    sites = np.einsum("ij,nj->ni", sheet.cell, steps)
    near = np.sum(sites**2, axis=1) < extent**2
    sites, steps = sites[near], steps[near]
    places = _places(sheet, sites)
    turned = np.sum((sheet.curvature * places) ** 2, axis=1) < MOST_TURN**2
    sites, steps, places = sites[turned], steps[turned], places[turned]
    near = np.sum((_map(sheet, places, np.zeros(1))[:, 0] - size / 2) ** 2, axis=1) < bound**2
    return sites[near], steps[near]


def _without_border_and_holes(
    config: SheetConfig, sheet: _Sheet, sites: np.ndarray, inside: np.ndarray, rng: Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """Return (N,) bool, the sites that no border and no hole through one ``inside`` takes.

    Also whether there is a border (1) or not (0), and the radii of the holes in spacings.
    """
    keep, inside = np.ones(len(sites), dtype=bool), sites[inside]
    drawn = {"border": 0.0}
    if not len(inside):
        return keep, drawn
    if rng.random() < config.border:
        point, angle = inside[rng.integers(len(inside))], rng.uniform(0.0, 2.0 * np.pi)
        drawn["border"] = 1.0
        keep &= np.sum((sites - point) * [np.cos(angle), np.sin(angle)], axis=1) >= 0.0
    for hole in range(rng.integers(config.holes[0], config.holes[1] + 1)):
        point, radius = inside[rng.integers(len(inside))], rng.uniform(*config.hole_radius)
        keep &= np.sum((sites - point) ** 2, axis=1) > (sheet.spacing * radius) ** 2
        drawn[f"hole_radius_{hole + 1}"] = radius
    return keep, drawn


def _places(sheet: _Sheet, sites: np.ndarray) -> np.ndarray:
    """Return the places (u, v) (N, 2) of flat sites (N, 2): the spacing grows along one direction.

    The map (exp(g z) - 1) / g of the complex plane is conformal, so that hexagons keep their form.
    """
    if not abs(sheet.growth):
        return sites
    g = np.conj(sheet.growth)
    w = (np.exp(g * (sites[:, 0] + 1j * sites[:, 1])) - 1.0) / g
    return np.stack([w.real, w.imag], axis=1)


def _map(sheet: _Sheet, places: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the voxel positions (N, D, 3) of places (N, 2) or (N, D, 2) at depths (D,) in voxels.

    A ray from the centre is laid along a circle of its own normal curvature; for equal curvatures
    that is a sphere.
    """
    if places.ndim == 2:
        places = places[:, None]
    k = sheet.curvature
    squares = np.sum(places**2, axis=2)
    normal_curvature = np.sum(k * places**2, axis=2) / np.maximum(squares, 1e-12)
    angle = normal_curvature * np.sqrt(squares)
    slope = k * places
    turned = np.sqrt(np.sum(slope**2, axis=2))
    surface = places * np.sinc(angle / np.pi)[..., None]
    height = -0.5 * normal_curvature * squares * np.sinc(0.5 * angle / np.pi) ** 2
    across = surface + depth[:, None] * slope * np.sinc(turned / np.pi)[..., None]
    along = height + depth * np.cos(turned)
    points = np.concatenate([across, along[..., None]], axis=2)
    return np.einsum("ij,ndj->ndi", sheet.turn, points) + sheet.origin


def near_volume(
    paths: np.ndarray,
    spacing: np.ndarray,
    lattice: np.ndarray,
    shape: Shape,
    parameters: dict[str, float],
) -> Columns:
    """Return as Columns those with a node inside or up to MARGIN spacings outside the volume."""
    near = _within(paths, shape, (MARGIN * spacing)[..., None])
    sites = lattice[near].astype(np.int32)
    return Columns(
        paths=paths[near].astype(np.float32),
        spacing=spacing[near].astype(np.float32),
        lattice=sites,
        neighbours=lattice_neighbours(sites),
        left_out=np.zeros(len(sites), dtype=bool),
        parameters=parameters,
    )


def _within(paths: np.ndarray, shape: tuple[int, ...], margin: np.ndarray | float) -> np.ndarray:
    """Return (N,) bool: paths (N, D, 3) with a node less than ``margin`` outside of the volume."""
    return np.all((paths > -margin) & (paths < shape + np.asarray(margin)), axis=2).any(axis=1)


def nearest_distances(paths: np.ndarray, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Return (N, D): each node's distance to the nearest other path's node of the same depth.

    With ``rows``, for these of the paths alone, to any of them.
    """
    n, depths, _ = paths.shape
    distances = np.ones((len(paths[rows, 0]), depths))
    if n > 1:
        for d in range(depths):
            tree = cKDTree(paths[:, d], balanced_tree=False, compact_nodes=False)
            distances[:, d] = tree.query(paths[rows, d], k=2)[0][:, 1]
    return distances


def lattice_neighbours(lattice: np.ndarray) -> np.ndarray:
    """Return the (E, 2) int32 pairs k < l of sites (N, 3) that are one of six steps apart."""
    number = {tuple(site): k for k, site in enumerate(lattice.tolist())}
    pairs = [
        sorted((k, number[chart, p + dp, q + dq]))
        for (chart, p, q), k in number.items()
        for dp, dq in STEPS
        if (chart, p + dp, q + dq) in number
    ]
    return np.unique(np.array(pairs, np.int32).reshape(-1, 2), axis=0)


@dataclass(frozen=True)
class Placement:
    """Where a table lies in a volume: x becomes turn (mirror (x - place)) / voxel_size + centre."""

    voxel_size: float  # edge of a voxel in micrometres
    place: tuple[float, float, float]  # the table's point at the volume's centre, in micrometres
    axis: tuple[float, float, float]  # unit vector to which +z is turned
    turn: float  # turn about z before, in radians
    mirrored: bool  # whether x is inverted first: a right lobe becomes a left one


def draw_placement(
    table: ColumnTable, config: SheetConfig, shape: Shape, rng: Generator
) -> Placement:
    """Draw a placement that puts some column's node within ``config.shift`` of the centre.

    The voxel size is such that the table's spacing is drawn from ``config.spacing``.
    """
    voxel_size = table.spacing / rng.uniform(*config.spacing)
    nodes = table.nodes.reshape(-1, 3)
    shift = rng.uniform(-config.shift, config.shift, size=3) * shape * voxel_size
    x, y, z = (nodes[rng.integers(len(nodes))] + shift).tolist()
    axis, turn = draw_turn(rng)
    return Placement(float(voxel_size), (x, y, z), axis, turn, bool(rng.integers(2)))


def placed_columns(table: ColumnTable, at: Placement, shape: Shape) -> Columns:
    """Return a table's columns where they are placed; those outside of it are cropped away."""
    turn = turn_to(at.axis, at.turn) * ([-1.0, 1.0, 1.0] if at.mirrored else [1.0, 1.0, 1.0])
    places = rotate(turn, (table.nodes - at.place).reshape(-1, 3)) / at.voxel_size
    paths = places.reshape(table.nodes.shape) + 0.5 * np.array(shape)
    lattice = np.stack([np.zeros_like(table.p), table.p, table.q], axis=1)
    parameters = {
        **{"voxel_size": at.voxel_size, "spacing": table.spacing / at.voxel_size},
        **by_axis("place", at.place),
        **by_axis("axis", at.axis),
        **{"turn": at.turn, "mirrored": float(at.mirrored)},
    }
    return near_volume(paths, table.nearest / at.voxel_size, lattice, shape, parameters)
