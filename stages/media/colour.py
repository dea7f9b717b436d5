"""Conversion of HDR and wide-gamut colours to BT.709 by one look-up table, which includes the tone mapping.

The table follows the formulas of the recommendations named below. ffmpeg's lut3d filter or Pillow's Color3DLUT applies it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

POINTS = 65  # along each side of the table: with fewer, dark colours are off by more than two levels

# x and y of red, green and blue, ITU-T H.273; the white of all is D65
PRIMARIES = {
    "bt709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "p3": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
D65 = (0.3127, 0.3290)

HDR = ("pq", "hlg")
WHITE = 100.0  # cd/m2 of BT.709's white (BT.1886); 1.0 in linear light
PEAK = 1000.0  # cd/m2, the peak of HDR without metadata: BT.2100's nominal peak for HLG
KNEE = 0.3  # share of white up to which tone mapping changes nothing


def needs_conversion(transfer: str, primaries: str) -> bool:
    """Whether colours need the table to be shown as BT.709; an empty name means BT.709."""
    return transfer in (*HDR, "linear") or primaries in ("bt2020", "p3")


def table(transfer: str, primaries: str, peak: float = PEAK) -> np.ndarray:
    """The encoded BT.709 RGB for each encoded RGB of another system, float64 [R, G, B, 3], both in 0..1.

    `peak` is the peak luminance of HDR in cd/m2. HDR without primaries counts as BT.2020.
    """
    axis = np.linspace(0, 1, POINTS)
    stored = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    primaries = primaries or ("bt2020" if transfer in HDR else "bt709")
    light = to_linear(stored, transfer) @ (np.linalg.inv(rgb_to_xyz("bt709")) @ rgb_to_xyz(primaries)).T
    light = light.clip(0)
    if transfer in HDR:
        light = tone_map(light, peak / WHITE)
    return light.clip(0, 1) ** (1 / 2.4)


def to_linear(stored: np.ndarray, transfer: str) -> np.ndarray:
    """Linear display light, in which 1 is BT.709's white, of encoded RGB [..., 3] in 0..1."""
    if transfer == "pq":  # SMPTE ST 2084 / BT.2100, table 4
        m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
        power = stored ** (1 / m2)
        return 10_000 / WHITE * ((power - c1).clip(0) / (c2 - c3 * power)) ** (1 / m1)
    if transfer == "hlg":  # BT.2100, table 5, for a display of 1000 cd/m2; its gamma is applied per channel, as zimg does
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        scene = np.where(stored <= 0.5, stored**2 / 3, (np.exp((stored - c) / a) + b) / 12)
        return PEAK / WHITE * scene**1.2
    return stored if transfer == "linear" else stored**2.4  # BT.1886


def tone_map(light: np.ndarray, peak: float) -> np.ndarray:
    """Map light in 0..`peak` to 0..1 by ffmpeg's tonemap=mobius: unchanged below KNEE, with the hue kept."""
    brightest = light.max(axis=-1, keepdims=True).clip(1e-6)
    peak = max(peak, 1.01)
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    compressed = (b + KNEE) ** 2 / (b - a) * (brightest + a) / (brightest + b)
    return light * np.where(brightest <= KNEE, brightest, compressed) / brightest


def rgb_to_xyz(primaries: str) -> np.ndarray:
    """The matrix from linear RGB to XYZ, float64 [3, 3] (SMPTE RP 177)."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in PRIMARIES[primaries]]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def table_rows(values: np.ndarray) -> np.ndarray:
    """The entries of a table, float64 [N, 3], in the order of ffmpeg's lut3d and Pillow's Color3DLUT: red varies fastest."""
    return values.transpose(2, 1, 0, 3).reshape(-1, 3)


@contextmanager
def table_file(values: np.ndarray) -> Iterator[str]:
    """Write a table to a temporary .cube file for ffmpeg's lut3d; yields its name."""
    with tempfile.NamedTemporaryFile("w", suffix=".cube") as file:
        rows = table_rows(values)
        file.write(f"LUT_3D_SIZE {len(values)}\n")
        file.write("%.6f %.6f %.6f\n" * len(rows) % tuple(rows.ravel().tolist()))  # ten times as fast as numpy.savetxt
        file.flush()
        yield file.name
