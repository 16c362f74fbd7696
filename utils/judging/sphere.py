"""Distances on the earth as the programs measure them whose figures are reproduced, vectorised, in float64."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GREAT_CIRCLE_RADIUS_KM = 6371.009  # lengths and radii of trips, in the published notebook and in the fork
NOTEBOOK_RADIUS_KM = 6378.0  # Hausdorff and DTW of the published notebook
MEAN_RADIUS_KM = 6371.0088  # Hausdorff and DTW of the fork, and of the comparison with the query's real trip
EQUATOR_RADIUS_M = 6_378_137.0  # the 100 m of EDR

# WGS 84
_A, _F = 6_378_137.0, 1 / 298.257223563
_B = _A * (1 - _F)


def great_circle_km(lon1: Floats, lat1: Floats, lon2: Floats, lat2: Floats) -> Floats:
    """Great-circle distance of points in degrees, by the arctangent formula, which is accurate at any distance."""
    lon1, lat1, lon2, lat2 = (np.radians(angle) for angle in (lon1, lat1, lon2, lat2))
    difference = lon2 - lon1
    across = np.cos(lat2) * np.sin(difference)
    along = np.cos(lat1) * np.sin(lat2) - np.sin(lat1) * np.cos(lat2) * np.cos(difference)
    cosine = np.sin(lat1) * np.sin(lat2) + np.cos(lat1) * np.cos(lat2) * np.cos(difference)
    return GREAT_CIRCLE_RADIUS_KM * np.arctan2(np.hypot(across, along), cosine)


def geodesic_m(lon1: Floats, lat1: Floats, lon2: Floats, lat2: Floats) -> Floats:
    """Distance on the ellipsoid WGS 84 of points in degrees, by Vincenty's inverse formula (1975).

    To less than a millimetre for points within a city or a country; it does not converge for antipodes.
    """
    lon1, lat1, lon2, lat2 = np.broadcast_arrays(*(np.radians(angle) for angle in (lon1, lat1, lon2, lat2)))
    u1, u2 = np.arctan((1 - _F) * np.tan(lat1)), np.arctan((1 - _F) * np.tan(lat2))
    difference = lon2 - lon1
    lam = difference
    for _ in range(50):
        sin_sigma = np.hypot(np.cos(u2) * np.sin(lam), np.cos(u1) * np.sin(u2) - np.sin(u1) * np.cos(u2) * np.cos(lam))
        cos_sigma = np.sin(u1) * np.sin(u2) + np.cos(u1) * np.cos(u2) * np.cos(lam)
        sigma = np.arctan2(sin_sigma, cos_sigma)
        safe_sine = np.where(sin_sigma > 0, sin_sigma, 1.0)
        sin_alpha = np.cos(u1) * np.cos(u2) * np.sin(lam) / safe_sine
        cos2_alpha = 1 - sin_alpha**2
        safe_cosine = np.where(cos2_alpha > 0, cos2_alpha, 1.0)  # 0 along the equator
        cos_2m = np.where(cos2_alpha > 0, cos_sigma - 2 * np.sin(u1) * np.sin(u2) / safe_cosine, 0.0)
        c = _F / 16 * cos2_alpha * (4 + _F * (4 - 3 * cos2_alpha))
        last, lam = (
            lam,
            difference
            + (1 - c) * _F * sin_alpha * (sigma + c * sin_sigma * (cos_2m + c * cos_sigma * (2 * cos_2m**2 - 1))),
        )
        if np.abs(lam - last).max(initial=0.0) < 1e-13:
            break
    u_squared = cos2_alpha * (_A**2 - _B**2) / _B**2
    a = 1 + u_squared / 16384 * (4096 + u_squared * (-768 + u_squared * (320 - 175 * u_squared)))
    b = u_squared / 1024 * (256 + u_squared * (-128 + u_squared * (74 - 47 * u_squared)))
    inner = cos_sigma * (2 * cos_2m**2 - 1) - b / 6 * cos_2m * (4 * sin_sigma**2 - 3) * (4 * cos_2m**2 - 3)
    return _B * a * (sigma - b * sin_sigma * (cos_2m + b / 4 * inner))
