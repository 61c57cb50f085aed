"""How strong each corruption is: the constants published with CIFAR-10-C, Tiny ImageNet-C and ImageNet-C.

Hendrycks & Dietterich 2019 (arXiv 1903.12261); from make_cifar_c.py, make_tinyimagenet_c.py and make_imagenet_c.py in
ImageNet-C/create_c of github.com/hendrycks/robustness. They are arguments of the functions in `corruption_kinds`;
lengths are in pixels of images of 32 × 32, 64 × 64 and 224 × 224.
"""

from math import log
from typing import Any

SEVERITIES = (1, 2, 3, 4, 5)

_ELASTIC = {
    32: [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)],
    64: [(0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)],
    # In shares of 244 pixels, where 224 was meant.
    244: [(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)],
}
_SNOW_32: list[tuple[float, ...]] = [
    (0.1, 0.2, 1, 0.6, 8, 3),
    (0.1, 0.2, 1, 0.5, 10, 4),
    (0.15, 0.3, 1.75, 0.55, 10, 4),
]
_SNOW_32 += [(0.25, 0.3, 2.25, 0.6, 12, 6), (0.3, 0.3, 1.25, 0.65, 14, 12)]
_SNOW_224: list[tuple[float, ...]] = [(0.1, 0.3, 3, 0.5, 10, 4), (0.2, 0.3, 2, 0.5, 12, 4), (0.55, 0.3, 4, 0.9, 12, 8)]
_SNOW_224 += [(0.55, 0.3, 4.5, 0.85, 12, 8), (0.55, 0.3, 2.5, 0.85, 12, 12)]
_ZOOM_32 = [(1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)]

STRENGTHS: dict[str, dict[int, list[Any]]] = {
    "gaussian_noise": {
        32: [0.04, 0.06, 0.08, 0.09, 0.10],
        64: [0.04, 0.08, 0.12, 0.15, 0.18],
        224: [0.08, 0.12, 0.18, 0.26, 0.38],
    },
    "shot_noise": {32: [500, 250, 100, 75, 50], 64: [250, 100, 50, 30, 15], 224: [60, 25, 12, 5, 3]},
    "impulse_noise": {
        32: [0.01, 0.02, 0.03, 0.05, 0.07],
        64: [0.01, 0.02, 0.05, 0.08, 0.14],
        224: [0.03, 0.06, 0.09, 0.17, 0.27],
    },
    "defocus_blur": {
        32: [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        64: [(0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)],
        224: [(3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)],
    },
    "glass_blur": {
        32: [(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        64: [(0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)],
        224: [(0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)],
    },
    "motion_blur": {
        32: [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        64: [(10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)],
        224: [(10, 3), (15, 5), (15, 8), (15, 12), (20, 15)],
    },
    "zoom_blur": {
        32: _ZOOM_32,
        64: _ZOOM_32,
        224: [(1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)],
    },
    "snow": {
        32: [(*drawn, keep) for drawn, keep in zip(_SNOW_32, (0.95, 0.9, 0.9, 0.85, 0.8), strict=True)],
        64: [(*drawn, keep) for drawn, keep in zip(_SNOW_32, (0.8, 0.8, 0.7, 0.65, 0.6), strict=True)],
        224: [(*drawn, keep) for drawn, keep in zip(_SNOW_224, (0.8, 0.7, 0.7, 0.65, 0.55), strict=True)],
    },
    "frost": {
        32: [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        64: [(1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)],
        224: [(1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)],
    },
    "fog": {
        32: [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        64: [(0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)],
        224: [(1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)],
    },
    "brightness": {
        32: [0.05, 0.1, 0.15, 0.2, 0.3],
        64: [0.1, 0.2, 0.3, 0.4, 0.5],
        224: [0.1, 0.2, 0.3, 0.4, 0.5],
    },
    "contrast": {
        32: [0.75, 0.5, 0.4, 0.3, 0.15],
        64: [0.4, 0.3, 0.2, 0.1, 0.05],
        224: [0.4, 0.3, 0.2, 0.1, 0.05],
    },
    "elastic_transform": {
        min(size, 224): [tuple(size * share for share in shares) for shares in five] for size, five in _ELASTIC.items()
    },
    "pixelate": {
        32: [0.95, 0.9, 0.85, 0.75, 0.65],
        64: [0.9, 0.8, 0.7, 0.6, 0.5],
        224: [0.6, 0.5, 0.4, 0.3, 0.25],
    },
    "jpeg_compression": {32: [80, 65, 58, 50, 40], 64: [65, 58, 50, 40, 25], 224: [25, 18, 15, 10, 7]},
}


def arguments(kind: str, severity: int, size: int) -> tuple[float, ...]:
    """The constants of a kind in a severity (1 to 5), of the published size nearest to `size`, by ratio."""
    of_size = STRENGTHS[kind]
    nearest = min(of_size, key=lambda published: abs(log(published / size)))
    constants = of_size[nearest][severity - 1]
    return constants if isinstance(constants, tuple) else (constants,)
